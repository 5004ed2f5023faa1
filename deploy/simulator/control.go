// The control endpoint /_ctl: what tests and demonstrations may do to this vCenter. Loopback only.
package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/types"
)

// order is the body of a POST; each part that is present is carried out, in this order. The README explains them.
type order struct {
	Clear               bool
	Rules               []*rule
	Guest               *guestOrder
	GuestWrite          *writeOrder
	Cbt                 *cbtOrder
	MaxAreas            *int
	OverReport          *int
	FreeSpace           *spaceOrder
	LeaveUnconsolidated *leaveOrder
	Deny                *[]string
	ExpireSessions      bool
	RestOnly            *bool
}

type guestOrder struct {
	VM        string
	Tools     *bool
	Heartbeat *string
	IP, Host  *string
	Stubborn  *bool
}

type writeOrder struct {
	VM      string
	Disk    int // 0 is the first disk in the order of keys
	Offset  int64
	Hex     string
	Repeat  int // write Hex so many times in a row (default 1)
	Force   bool
	KeepCid bool // as a writer that does not go through VMware's disk library
}

type cbtOrder struct {
	VM    string
	Disk  int
	Reset bool
	Hide  *struct{ Offset, Length int64 }
	// Answers: so many answers of QueryChangedDiskAreas hide the range.
	Answers int
}

type spaceOrder struct {
	Datastore string
	Bytes     *int64 // absent: back to what the file system has
}

type leaveOrder struct {
	VM    string
	Count int
}

func control(w http.ResponseWriter, r *http.Request) {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		http.Error(w, "the control endpoint answers on loopback only", http.StatusForbidden)
		return
	}
	if r.Method == http.MethodPost {
		var o order
		d := json.NewDecoder(r.Body)
		d.DisallowUnknownFields()
		if err := d.Decode(&o); err != nil {
			http.Error(w, "not understood: "+err.Error(), http.StatusBadRequest)
			return
		}
		if err := o.carryOut(); err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
	}
	faults.Lock()
	defer faults.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]interface{}{"calls": faults.calls, "rules": faults.rules})
}

func (o *order) carryOut() error {
	for _, r := range o.Rules {
		if problem := r.check(); problem != "" {
			return fmt.Errorf("%s", problem)
		}
	}
	faults.Lock()
	if o.Clear {
		faults.rules, faults.calls = nil, map[string]int{}
	}
	faults.rules = append(faults.rules, o.Rules...)
	faults.Unlock()
	world.Lock()
	defer world.Unlock()
	if o.Clear {
		denied = map[string]bool{}
	}
	if o.MaxAreas != nil {
		maxAreas = *o.MaxAreas
	}
	if o.OverReport != nil {
		cbtOver = *o.OverReport
	}
	if o.Deny != nil {
		denied = map[string]bool{}
		for _, p := range *o.Deny {
			denied[p] = true
		}
	}
	if o.ExpireSessions {
		expireSessions()
	}
	if o.Clear || o.RestOnly != nil {
		restOnly.Store(o.RestOnly != nil && *o.RestOnly)
	}
	if err := o.carryOutOnVMs(); err != nil {
		return err
	}
	if s := o.FreeSpace; s != nil {
		if world.roots[s.Datastore] == "" {
			return fmt.Errorf("there is no datastore %q", s.Datastore)
		}
		delete(world.space, s.Datastore)
		if s.Bytes != nil {
			world.space[s.Datastore] = *s.Bytes
		}
		showSpace(s.Datastore)
	}
	saveState()
	return nil
}

func (o *order) carryOutOnVMs() error {
	if o.Guest != nil {
		if err := o.Guest.carryOut(); err != nil {
			return err
		}
	}
	if o.GuestWrite != nil {
		if err := o.GuestWrite.carryOut(); err != nil {
			return err
		}
	}
	if o.Cbt != nil {
		if err := o.Cbt.carryOut(); err != nil {
			return err
		}
	}
	if l := o.LeaveUnconsolidated; l != nil {
		m := machineByName(l.VM)
		if m == nil {
			return fmt.Errorf("there is no VM %q", l.VM)
		}
		m.leaveDelta = l.Count
	}
	return nil
}

func (o *guestOrder) carryOut() error {
	m := machineByName(o.VM)
	if m == nil {
		return fmt.Errorf("there is no VM %q", o.VM)
	}
	g := &m.guest
	if o.Tools != nil {
		g.Tools = *o.Tools
	}
	if o.Heartbeat != nil {
		g.Heartbeat = types.ManagedEntityStatus(*o.Heartbeat)
	}
	if o.IP != nil {
		g.IP = *o.IP
	}
	if o.Host != nil {
		g.Host = *o.Host
	}
	if o.Stubborn != nil {
		g.Stubborn = *o.Stubborn
	}
	m.change(func() *refusal {
		m.vm.Guest.IpAddress, m.vm.Guest.HostName = "", ""
		m.showGuest()
		simulator.Map.Update(m.vm, []types.PropertyChange{
			{Name: "guest.ipAddress", Val: m.vm.Guest.IpAddress}, {Name: "guestHeartbeatStatus", Val: m.vm.GuestHeartbeatStatus},
		})
		return nil
	})
	return nil
}

func (m *machine) disk(n int) (*types.VirtualDisk, error) {
	var l []*types.VirtualDisk
	for _, d := range virtualDisks(m.vm.Config.Hardware.Device) {
		at := len(l)
		for at > 0 && l[at-1].Key > d.Key {
			at--
		}
		l = append(l[:at], append([]*types.VirtualDisk{d}, l[at:]...)...)
	}
	if n < 0 || n >= len(l) {
		return nil, fmt.Errorf("'%s' has %d disks: there is no disk %d", m.vm.Name, len(l), n)
	}
	return l[n], nil
}

// carryOut writes to the live file, as the guest or, with Force, as somebody with VMware's disk library.
func (o *writeOrder) carryOut() error {
	m := machineByName(o.VM)
	if m == nil {
		return fmt.Errorf("there is no VM %q", o.VM)
	}
	d, err := m.disk(o.Disk)
	if err != nil {
		return err
	}
	if !m.on() && !o.Force {
		return fmt.Errorf("'%s' is not powered on: no guest can write (or say force)", o.VM)
	}
	data, err := hex.DecodeString(o.Hex)
	if err != nil {
		return fmt.Errorf("hex: %w", err)
	}
	if o.Repeat > 1 {
		data = []byte(strings.Repeat(string(data), o.Repeat))
	}
	if o.Offset < 0 || o.Offset+int64(len(data)) > d.CapacityInBytes {
		return fmt.Errorf("%d bytes at %d do not fit into a disk of %d bytes", len(data), o.Offset, d.CapacityInBytes)
	}
	i, err := openImage(backing(d).FileName)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(i.flatPath(), os.O_RDWR, 0600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(data, o.Offset); err != nil {
		return err
	}
	if t := m.trackers[d.Key]; t != nil && len(data) > 0 {
		for n := o.Offset / grain; n <= (o.Offset+int64(len(data))-1)/grain; n++ {
			t.touched[n] = true
		}
	}
	if o.KeepCid {
		return nil
	}
	return i.setCID(newCID())
}

func (o *cbtOrder) carryOut() error {
	m := machineByName(o.VM)
	if m == nil {
		return fmt.Errorf("there is no VM %q", o.VM)
	}
	d, err := m.disk(o.Disk)
	if err != nil {
		return err
	}
	t := m.trackers[d.Key]
	if t == nil {
		return fmt.Errorf("changed block tracking is not active on disk %d of '%s'", o.Disk, o.VM)
	}
	if o.Reset {
		m.trackers[d.Key] = newTracker()
	}
	if o.Hide != nil {
		if o.Answers < 1 {
			return fmt.Errorf("hide needs answers: the number of answers that hide the range")
		}
		m.trackers[d.Key].hide = append(m.trackers[d.Key].hide, hidden{o.Hide.Offset, o.Hide.Length, o.Answers})
	}
	return nil
}

// expireSessions ends every session: the next call of each is NotAuthenticated.
func expireSessions() {
	ctx := newContext(vim25.ServiceInstance)
	ctx.Session.Key = "control"
	sm := simulator.Map.SessionManager()
	view := ctx.Session.Get(sm.Reference()).(*simulator.SessionManager)
	for _, s := range view.SessionList {
		sm.TerminateSession(ctx, &types.TerminateSession{This: sm.Reference(), SessionId: []string{s.Key}})
	}
}
