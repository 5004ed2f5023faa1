// The rest of a VM's life: rename, template, unregister, register, destroy, relocate.
package main

import (
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

func rename(c *call) (types.AnyType, *refusal) {
	q := c.body.(*types.Rename_Task)
	if q.NewName == c.m.vm.Name {
		return nil, nil
	}
	return nil, c.m.reconfigure(c, &types.VirtualMachineConfigSpec{Name: q.NewName})
}

func markAsTemplate(c *call) (interface{}, *refusal) {
	m := c.m
	if m.vm.Config.Template {
		return nil, refuse(&types.NotSupported{}, "'%s' is a template already.", m.vm.Name)
	}
	if m.vm.Runtime.PowerState != poweredOff {
		return nil, m.wrongState(poweredOff)
	}
	m.change(func() *refusal {
		m.vm.Config.Template = true
		m.vm.ResourcePool = nil
		m.settle()
		return nil
	})
	return &types.MarkAsTemplateResponse{}, nil
}

func markAsVM(c *call) (interface{}, *refusal) {
	m, q := c.m, c.body.(*types.MarkAsVirtualMachine)
	if !m.vm.Config.Template {
		return nil, refuse(&types.NotSupported{}, "'%s' is no template.", m.vm.Name)
	}
	at := placement{pool: q.Pool, host: q.Host}
	if f := choosePlace(&at); f != nil {
		return nil, f
	}
	m.change(func() *refusal {
		m.vm.Config.Template = false
		m.vm.ResourcePool = &at.pool
		m.vm.Runtime.Host = at.host
		m.settle()
		return nil
	})
	return &types.MarkAsVirtualMachineResponse{}, nil
}

// relocate moves a VM between hosts, pools and folders. Its files stay: moving them is not modelled, and refused.
func relocate(c *call) (types.AnyType, *refusal) {
	m, q := c.m, c.body.(*types.RelocateVM_Task)
	if ref := q.Spec.Datastore; ref != nil {
		if ds, ok := simulator.Map.Get(*ref).(*simulator.Datastore); !ok || ds.Name != datastoreOf(m.vm.Config.Files.VmPathName) {
			return nil, refuse(&types.NotSupported{}, "This vCenter does not move files between datastores.")
		}
	}
	q.Spec.Datastore = nil
	return nil, m.change(func() *refusal {
		_, f := stock(m.vm.RelocateVMTask(c.ctx, q))
		if f == nil {
			m.settle()
		}
		return f
	})
}

// customize leaves the work to the stock simulator: it takes effect at the next power-on.
func customize(c *call) (types.AnyType, *refusal) {
	m := c.m
	return nil, m.change(func() *refusal {
		_, f := stock(m.vm.CustomizeVMTask(c.body.(*types.CustomizeVM_Task)))
		if f == nil {
			m.settle()
		}
		return f
	})
}

func unregisterVM(c *call) (interface{}, *refusal) {
	return &types.UnregisterVMResponse{}, c.m.unregister()
}

// unregister takes the VM out of the inventory; its files stay and say what it was.
func (m *machine) unregister() *refusal {
	if m.on() { // API Reference, UnregisterVM: InvalidPowerState
		return m.wrongState(poweredOff)
	}
	_ = m.save()
	var f *refusal
	simulator.Map.WithLock(m.vm, func() {
		if fault := m.vm.UnregisterVM(newContext(m.vm.Self), &types.UnregisterVM{This: m.vm.Self}).Fault(); fault != nil {
			f = refuse(fault.VimFault().(types.BaseMethodFault), "%s", fault.String)
		}
	})
	if f != nil {
		return f
	}
	for _, s := range m.snaps {
		simulator.Map.Remove(s.ref)
	}
	delete(world.vms, m.vm.Self)
	return nil
}

func destroyVM(c *call) (types.AnyType, *refusal) { return nil, c.m.destroy() }

// destroy removes the VM and its files. Disks that other VMs stand on, and files that are not the VM's, stay.
func (m *machine) destroy() *refusal {
	if m.on() { // API Reference, Destroy_Task: InvalidPowerState
		return m.wrongState(poweredOff)
	}
	var disks []string
	for _, i := range m.chains() {
		disks = append(disks, i.name)
	}
	for _, d := range virtualDisks(m.vm.Config.Hardware.Device) {
		disks = append(disks, backing(d).FileName)
	}
	files := m.ownFiles()
	if f := m.unregister(); f != nil {
		return f
	}
	saveState()                                   // before the files go
	for round := len(disks); round > 0; round-- { // children first, whatever the order of the list
		for _, name := range disks {
			if _, err := os.Stat(filePath(name)); err == nil {
				deleteDisk(name)
			}
		}
	}
	for _, name := range files {
		_ = os.Remove(name)
	}
	_ = os.Remove(path.Dir(filePath(m.vm.Config.Files.VmPathName))) // only when empty
	return nil
}

// ownFiles are the files of a VM that are no disks.
func (m *machine) ownFiles() (r []string) {
	vmx := filePath(m.vm.Config.Files.VmPathName)
	stem := strings.TrimSuffix(vmx, ".vmx")
	r = append(r, vmx, stem+".vmxf", stem+".vmsd", stem+".nvram", filepath.Join(path.Dir(vmx), "vmware.log"))
	for _, s := range m.snaps {
		r = append(r, filePath(s.vmsn))
	}
	return r
}

// registerVM brings back what unregister has left, with hardware and snapshots; custom attributes are lost and the
// VM has a new moref (API Reference, RegisterVM_Task).
func registerVM(c *call) (types.AnyType, *refusal) {
	q := c.body.(*types.RegisterVM_Task)
	var p object.DatastorePath
	if !p.FromString(q.Path) || world.roots[p.Datastore] == "" {
		return nil, refuse(&types.InvalidDatastorePath{DatastorePath: q.Path}, "'%s' is not a path on a datastore of this vCenter.", q.Path)
	}
	for _, m := range world.vms {
		if m.vm.Config.Files.VmPathName == p.String() {
			return nil, refuse(&types.AlreadyExists{Name: q.Path}, "'%s' is registered already as '%s'.", q.Path, m.vm.Name)
		}
	}
	r, err := loadRecord(filePath(p.String()))
	if err != nil {
		return nil, fileFault(q.Path, err)
	}
	if q.Name != "" {
		r.Config.Name = q.Name
	}
	if f := checkName(q.This, r.Config.Name); f != nil {
		return nil, f
	}
	at := placement{folder: q.This, host: q.Host}
	if q.Pool != nil {
		at.pool = *q.Pool
	} else if host, ok := hostOf(q.Host); ok && q.AsTemplate {
		at.pool = host
	} else {
		return nil, refuse(&types.InvalidArgument{InvalidProperty: "pool"}, "A VM needs a resource pool.")
	}
	if f := choosePlace(&at); f != nil {
		return nil, f
	}
	r.Config.Template = q.AsTemplate
	m, f := r.revive(at, types.ManagedObjectReference{})
	if f != nil {
		return nil, f
	}
	return m.vm.Self, nil
}

func hostOf(ref *types.ManagedObjectReference) (types.ManagedObjectReference, bool) {
	if ref == nil {
		return types.ManagedObjectReference{}, false
	}
	h, ok := simulator.Map.Get(*ref).(*simulator.HostSystem)
	if !ok || h.Parent == nil {
		return types.ManagedObjectReference{}, false
	}
	c, ok := simulator.Map.Get(*h.Parent).(*simulator.ClusterComputeResource)
	if !ok || c.ResourcePool == nil {
		return types.ManagedObjectReference{}, false
	}
	return *c.ResourcePool, true
}
