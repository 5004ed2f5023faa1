// What a VM is, on paper: beside its .vmx, for RegisterVM_Task and for a restart.
package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

// record is a VM's configuration and snapshots, as the .vmx, the .vmsd and the .vmsn hold them in vSphere.
type record struct {
	XMLName   xml.Name                        `xml:"record"`
	Config    *types.VirtualMachineConfigInfo `xml:"config"`
	Snapshots []savedSnapshot                 `xml:"snapshot"`
	LastID    int32                           `xml:"lastId"`
	Current   int32                           `xml:"current"`

	version string // changeVersion as it was saved
}

type savedSnapshot struct {
	ID          int32                           `xml:"id"`
	Parent      int32                           `xml:"parent"`
	Moref       string                          `xml:"moref"`
	Name        string                          `xml:"name"`
	Description string                          `xml:"description"`
	Created     time.Time                       `xml:"created"`
	State       types.VirtualMachinePowerState  `xml:"state"`
	Quiesced    bool                            `xml:"quiesced"`
	Vmsn        string                          `xml:"vmsn"`
	Config      *types.VirtualMachineConfigInfo `xml:"config"`
}

func (m *machine) record() *record {
	r := &record{Config: m.vm.Config, LastID: m.lastSnapID}
	if m.current != nil {
		r.Current = m.current.id
	}
	for _, s := range m.snaps {
		saved := savedSnapshot{
			ID: s.id, Moref: s.ref.Value, Name: s.name, Description: s.description, Created: s.created,
			State: s.state, Quiesced: s.quiesced, Vmsn: s.vmsn, Config: s.config,
		}
		if s.parent != nil {
			saved.Parent = s.parent.id
		}
		r.Snapshots = append(r.Snapshots, saved)
	}
	return r
}

// save writes the record as .vmxf, and a .vmx for people.
func (m *machine) save() error {
	var out bytes.Buffer
	var r *record
	simulator.Map.WithLock(m.vm, func() { r = m.record() })
	if err := xml.NewEncoder(&out).Encode(r); err != nil {
		return err
	}
	vmx := filePath(m.vm.Config.Files.VmPathName)
	if err := writePaper(strings.TrimSuffix(vmx, ".vmx")+".vmxf", out.Bytes()); err != nil {
		return err
	}
	var text strings.Builder
	line := func(k string, v interface{}) { fmt.Fprintf(&text, "%s = \"%v\"\n", k, v) }
	line(".encoding", "UTF-8")
	line("displayName", m.vm.Config.Name)
	line("guestOS", m.vm.Config.GuestId)
	line("memSize", m.vm.Config.Hardware.MemoryMB)
	line("numvcpus", m.vm.Config.Hardware.NumCPU)
	line("uuid.bios", m.vm.Config.Uuid)
	line("vc.uuid", m.vm.Config.InstanceUuid)
	for _, d := range virtualDisks(m.vm.Config.Hardware.Device) {
		if d.UnitNumber != nil {
			line(fmt.Sprintf("disk%d:%d.fileName", d.ControllerKey, *d.UnitNumber), filepath.Base(backing(d).FileName))
		}
	}
	for _, o := range m.vm.Config.ExtraConfig {
		line(o.GetOptionValue().Key, o.GetOptionValue().Value)
	}
	if have, err := os.ReadFile(vmx); err == nil && string(have) == text.String() {
		return nil
	}
	return writePaper(vmx, []byte(text.String()))
}

// writePaper replaces a file so that a killed process leaves the old one, the new one, or the new one as .tmp.
// It does not rename over the old one: ext4 would flush it, and this runs on each change.
func writePaper(file string, content []byte) error {
	if err := os.WriteFile(file+".tmp", content, 0600); err != nil {
		return err
	}
	_ = os.Remove(file)
	return os.Rename(file+".tmp", file)
}

func readPaper(file string) ([]byte, error) {
	b, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		return os.ReadFile(file + ".tmp")
	}
	return b, err
}

func loadRecord(vmx string) (*record, error) {
	text, err := readPaper(strings.TrimSuffix(vmx, ".vmx") + ".vmxf")
	if err != nil {
		return nil, err
	}
	r := &record{}
	d := xml.NewDecoder(bytes.NewReader(text))
	d.TypeFunc = types.TypeFunc()
	if err := d.Decode(r); err != nil {
		return nil, err
	}
	r.version = r.Config.ChangeVersion
	return r, nil
}

// revive puts the VM of a record into the inventory; an empty ref asks for a new one.
func (r *record) revive(at placement, ref types.ManagedObjectReference) (*machine, *refusal) {
	folder, ok := simulator.Map.Get(at.folder).(*simulator.Folder)
	if !ok {
		return nil, refuse(&types.ManagedObjectNotFound{Obj: at.folder}, "There is no folder %s.", at.folder.Value)
	}
	host, ok := simulator.Map.Get(*at.host).(*simulator.HostSystem)
	if !ok {
		return nil, refuse(&types.ManagedObjectNotFound{Obj: *at.host}, "There is no host %s.", at.host.Value)
	}
	for _, d := range virtualDisks(r.Config.Hardware.Device) {
		if _, err := openImage(backing(d).FileName); err != nil {
			return nil, fileFault(backing(d).FileName, err)
		}
	}
	vm := &simulator.VirtualMachine{}
	vm.Self = ref
	vm.Name, vm.Config = r.Config.Name, r.Config
	if !r.Config.Template {
		vm.ResourcePool = &at.pool
	}
	vm.Guest, vm.Layout, vm.LayoutEx = &types.GuestInfo{}, &types.VirtualMachineFileLayout{}, &types.VirtualMachineFileLayoutEx{}
	vm.Storage = &types.VirtualMachineStorageInfo{Timestamp: time.Now().UTC()}
	vm.Runtime.Host, vm.Runtime.PowerState = at.host, poweredOff
	vm.Runtime.ConnectionState = types.VirtualMachineConnectionStateConnected
	vm.Summary.Guest = &types.VirtualMachineGuestSummary{}
	vm.Summary.OverallStatus = types.ManagedEntityStatusGreen
	vm.Summary.Config.VmPathName, vm.Summary.Config.GuestId = r.Config.Files.VmPathName, r.Config.GuestId
	if c, ok := simulator.Map.Get(*host.Parent).(*simulator.ClusterComputeResource); ok && c.EnvironmentBrowser != nil {
		vm.EnvironmentBrowser = *c.EnvironmentBrowser
	}
	simulator.Map.WithLock(folder, func() {
		simulator.Map.PutEntity(folder, vm)
		folder.ChildEntity = append(folder.ChildEntity[:len(folder.ChildEntity):len(folder.ChildEntity)], vm.Self)
	})
	vm.Summary.Vm = &vm.Self
	simulator.Map.AppendReference(host, &host.Vm, vm.Self)
	if pool, ok := simulator.Map.Get(at.pool).(*simulator.ResourcePool); ok {
		simulator.Map.AppendReference(pool, &pool.Vm, vm.Self)
	}
	extra := r.Config.ExtraConfig
	m := adopt(vm)
	m.lastSnapID = r.LastID
	m.reviveSnapshots(r, ref.Value != "")
	m.change(func() *refusal {
		vm.Config.ExtraConfig = extra
		m.settle()
		return nil
	})
	for _, ds := range vm.Datastore {
		if d, ok := simulator.Map.Get(ds).(*simulator.Datastore); ok {
			simulator.Map.AppendReference(d, &d.Vm, vm.Self)
		}
	}
	return m, nil
}

// reviveSnapshots keeps the morefs when the same vCenter comes back; a registration gives new ones.
func (m *machine) reviveSnapshots(r *record, keep bool) {
	byID := map[int32]*snapshot{}
	for _, saved := range r.Snapshots {
		o := &simulator.VirtualMachineSnapshot{}
		o.Vm = m.vm.Self
		if keep {
			o.Self = types.ManagedObjectReference{Type: "VirtualMachineSnapshot", Value: saved.Moref}
		}
		s := &snapshot{
			ref: simulator.Map.Put(o).Reference(), id: saved.ID, name: saved.Name, description: saved.Description,
			created: saved.Created, state: saved.State, quiesced: saved.Quiesced, vmsn: saved.Vmsn, config: saved.Config,
			parent: byID[saved.Parent],
		}
		byID[s.id] = s
		m.snaps = append(m.snaps, s)
	}
	m.current = byID[r.Current]
}
