// The inventory on paper (-state): a vCenter that is killed comes back with its VMs, their snapshots and their power.
package main

import (
	"bytes"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

// stateFile is -state; empty: a restart loses the inventory, and the VMs can be registered again.
var stateFile string

type state struct {
	XMLName xml.Name               `xml:"state"`
	Fields  []types.CustomFieldDef `xml:"field"`
	Folders []savedFolder          `xml:"folder"`
	VMs     []savedVM              `xml:"vm"`
}

type savedFolder struct {
	Ref    types.ManagedObjectReference `xml:"ref"`
	Parent types.ManagedObjectReference `xml:"parent"`
	Name   string                       `xml:"name"`
}

type savedVM struct {
	Ref    types.ManagedObjectReference    `xml:"ref"`
	Folder types.ManagedObjectReference    `xml:"parent"`
	Pool   types.ManagedObjectReference    `xml:"pool"`
	Host   types.ManagedObjectReference    `xml:"host"`
	Vmx    string                          `xml:"vmx"`
	On     bool                            `xml:"on"`
	Boot   *time.Time                      `xml:"boot"`
	Guest  guest                           `xml:"guest"`
	Values []*types.CustomFieldStringValue `xml:"value"`
}

// saveState writes what has changed: the VM's own files, then the list of VMs.
func saveState() {
	for _, m := range world.vms {
		if m.dirty {
			if err := m.save(); err != nil {
				log.Printf("save %s: %v", m.vm.Name, err)
				continue
			}
			m.dirty = false
		}
	}
	if stateFile == "" {
		return
	}
	s := state{Fields: simulator.Map.CustomFieldsManager().Field}
	for _, e := range sorted("Folder") {
		if f, ok := e.(*simulator.Folder); ok && !ours[f.Self] && f.Parent != nil {
			s.Folders = append(s.Folders, savedFolder{f.Self, *f.Parent, f.Name})
		}
	}
	for _, e := range sorted("VirtualMachine") {
		vm := e.(*simulator.VirtualMachine)
		if m := world.vms[vm.Self]; m != nil {
			s.VMs = append(s.VMs, m.saved())
		}
	}
	var out bytes.Buffer
	if err := xml.NewEncoder(&out).Encode(s); err != nil {
		log.Print(err)
		return
	}
	if err := writePaper(stateFile, out.Bytes()); err != nil {
		log.Print(err)
	}
}

func (m *machine) saved() savedVM {
	vm := m.vm
	v := savedVM{
		Ref: vm.Self, Folder: *vm.Parent, Host: *vm.Runtime.Host, Vmx: vm.Config.Files.VmPathName,
		On: m.on(), Boot: vm.Runtime.BootTime, Guest: m.guest,
	}
	if vm.ResourcePool != nil {
		v.Pool = *vm.ResourcePool
	} else if pool, ok := hostOf(vm.Runtime.Host); ok {
		v.Pool = pool
	}
	for _, c := range vm.CustomValue {
		if x, ok := c.(*types.CustomFieldStringValue); ok {
			v.Values = append(v.Values, x)
		}
	}
	return v
}

// ours are the folders that every start makes.
var ours = map[types.ManagedObjectReference]bool{}

func restoreState() error {
	for _, e := range simulator.Map.All("Folder") {
		ours[e.Reference()] = true
	}
	addField("never used") // vCenter's field keys are positive
	dropField(0)
	if stateFile == "" {
		return nil
	}
	text, err := readPaper(stateFile)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	var s state
	d := xml.NewDecoder(bytes.NewReader(text))
	d.TypeFunc = types.TypeFunc()
	if err := d.Decode(&s); err != nil {
		return fmt.Errorf("%s: %w", stateFile, err)
	}
	return s.restore()
}

func (s *state) restore() error {
	s.restoreFields()
	highest := 0
	seen := func(ref types.ManagedObjectReference) {
		if n := number(ref); n > highest {
			highest = n
		}
	}
	for _, f := range s.Folders {
		parent, ok := simulator.Map.Get(f.Parent).(*simulator.Folder)
		if !ok {
			return fmt.Errorf("%s: folder %q has no parent %s: start with the flags of the run that wrote the file", stateFile, f.Name, f.Parent.Value)
		}
		folder := &simulator.Folder{}
		folder.Self, folder.Name, folder.ChildType = f.Ref, f.Name, parent.ChildType
		simulator.Map.PutEntity(parent, folder)
		parent.ChildEntity = append(parent.ChildEntity, f.Ref)
		seen(f.Ref)
	}
	for _, v := range s.VMs {
		m, err := v.restore()
		if err != nil {
			return err
		}
		seen(v.Ref)
		for _, x := range m.snaps {
			seen(x.ref)
		}
	}
	for e := simulator.Map.NewEntity(&simulator.Folder{}); number(e.Reference()) < highest; {
		e = simulator.Map.NewEntity(&simulator.Folder{}) // new objects shall not take the numbers of old ones
	}
	return nil
}

func number(ref types.ManagedObjectReference) (n int) {
	_, _ = fmt.Sscanf(ref.Value[strings.LastIndex(ref.Value, "-")+1:], "%d", &n)
	return n
}

func (v *savedVM) restore() (*machine, error) {
	r, err := loadRecord(filePath(v.Vmx))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", v.Vmx, err)
	}
	host := v.Host
	m, f := r.revive(placement{folder: v.Folder, pool: v.Pool, host: &host}, v.Ref)
	if f != nil {
		return nil, fmt.Errorf("%s: %s", v.Vmx, f.message)
	}
	m.guest = v.Guest
	version := r.version
	m.change(func() *refusal {
		vm := m.vm
		for _, c := range v.Values {
			vm.CustomValue = append(vm.CustomValue, c)
		}
		vm.Value = vm.CustomValue
		if v.On { // the hosts went on running it
			vm.Runtime.PowerState, vm.Runtime.BootTime = poweredOn, v.Boot
			vm.Guest.IpAddress, vm.Guest.HostName = v.Guest.IP, v.Guest.Host
		}
		m.showGuest()
		m.settle()
		vm.Config.ChangeVersion = version
		return nil
	})
	m.refreshLocks()
	if v.On {
		m.activateTracking()
	}
	return m, nil
}

// restoreFields adds the fields in the order of their keys, with gaps where fields had been removed.
func (s *state) restoreFields() {
	byKey, last := map[int32]types.CustomFieldDef{}, int32(0)
	for _, f := range s.Fields {
		byKey[f.Key] = f
		if f.Key > last {
			last = f.Key
		}
	}
	for k := int32(1); k <= last; k++ {
		f, ok := byKey[k]
		cm := simulator.Map.CustomFieldsManager()
		if !ok {
			addField("gap")
			dropField(k)
			continue
		}
		cm.AddCustomFieldDef(&types.AddCustomFieldDef{This: cm.Self, Name: f.Name, MoType: f.ManagedObjectType})
	}
}

func addField(name string) {
	cm := simulator.Map.CustomFieldsManager()
	cm.AddCustomFieldDef(&types.AddCustomFieldDef{This: cm.Self, Name: name, MoType: "VirtualMachine"})
}

func dropField(key int32) {
	cm := simulator.Map.CustomFieldsManager()
	cm.RemoveCustomFieldDef(&types.RemoveCustomFieldDef{This: cm.Self, Key: key})
}
