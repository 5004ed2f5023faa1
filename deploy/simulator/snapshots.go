// Snapshots: they freeze disks, hardware and configuration; a revert brings all of these back.
package main

import (
	"fmt"
	"os"
	"path"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

const deepest = 32 // vSphere Configuration Maximums: snapshots per VM chain

func createSnapshot(c *call) (types.AnyType, *refusal) {
	m := c.m
	var name, description string
	var memory, quiesce bool
	switch q := c.body.(type) {
	case *types.CreateSnapshot_Task:
		name, description, memory, quiesce = q.Name, q.Description, q.Memory, q.Quiesce
	case *types.CreateSnapshotEx_Task:
		name, description, memory, quiesce = q.Name, q.Description, q.Memory, q.QuiesceSpec != nil
	}
	if f := m.checkSnapshot(name, memory); f != nil {
		return nil, f
	}
	s := &snapshot{
		name: name, description: description, quiesced: quiesce && m.on(), created: time.Now().UTC(), parent: m.current,
		state: types.VirtualMachinePowerStatePoweredOff, config: deepCopy(m.vm.Config),
	}
	if memory && m.on() { // API Reference, CreateSnapshot_Task.memory: without a dump the snapshot is of a stopped VM
		s.state = m.vm.Runtime.PowerState
	}
	live, f := m.freezeDisks(m.vm.Config.Hardware.Device)
	if f != nil {
		return nil, f
	}
	changeIDs := m.trackSnapshot(s)
	o := &simulator.VirtualMachineSnapshot{}
	o.Vm = m.vm.Self
	s.ref = simulator.Map.Put(o).Reference()
	m.lastSnapID++
	s.id = m.lastSnapID
	s.vmsn = m.writeVmsn(s)
	m.showBackings(s.config.Hardware.Device, changeIDs)
	m.snaps = append(m.snaps, s)
	m.current = s
	m.setLive(live)
	m.activateTracking() // a snapshot is a stun-unstun cycle: from now on tracking is on, this snapshot had none
	m.refreshLocks()
	return s.ref, nil
}

func (m *machine) checkSnapshot(name string, memory bool) *refusal {
	switch {
	case m.vm.Config.Template: // API Reference, CreateSnapshot_Task: a template "cannot be snapshotted"
		return refuse(&types.NotSupported{}, "'%s' is a template: templates have no snapshots.", m.vm.Name)
	case name == "":
		return refuse(&types.InvalidName{Name: name}, "A snapshot needs a name.")
	case m.depth() >= deepest: // API Reference, TooManySnapshotLevels
		return refuse(&types.TooManySnapshotLevels{}, "'%s' has %d snapshots in a row: no more are allowed.", m.vm.Name, deepest)
	}
	for _, d := range virtualDisks(m.vm.Config.Hardware.Device) {
		if memory && m.on() && independent(d) { // API Reference, MemorySnapshotOnIndependentDisk
			return refuse(&types.MemorySnapshotOnIndependentDisk{}, "'%s' has an independent disk: no snapshot with memory.", m.vm.Name)
		}
		var p object.DatastorePath
		p.FromString(backing(d).FileName)
		if free, limited := world.space[p.Datastore]; limited && free == 0 {
			return takeSpace(p.Datastore, backing(d).FileName, 1)
		}
	}
	return nil
}

func (m *machine) depth() (n int) {
	for s := m.current; s != nil; s = s.parent {
		n++
	}
	return n
}

// freezeDisks makes a child for each disk that a snapshot includes: device key -> file that becomes the live one.
func (m *machine) freezeDisks(l devices) (map[int32]*image, *refusal) {
	live := map[int32]*image{}
	for _, d := range virtualDisks(l) {
		if independent(d) {
			continue
		}
		base, err := openImage(backing(d).FileName)
		if err == nil {
			var child *image
			if child, err = base.freeze(); err == nil {
				live[d.Key] = child
				if m.on() { // a running guest writes at once
					err = child.setCID(newCID())
				}
			}
		}
		if err != nil {
			for _, i := range live {
				i.remove()
			}
			return nil, fileFault(backing(d).FileName, err)
		}
	}
	return live, nil
}

// setLive puts the files below the devices of the VM and settles.
func (m *machine) setLive(live map[int32]*image) {
	m.change(func() *refusal {
		for _, d := range virtualDisks(m.vm.Config.Hardware.Device) {
			if i := live[d.Key]; i != nil {
				backing(d).FileName = i.name
			}
		}
		m.settle()
		return nil
	})
}

func (m *machine) writeVmsn(s *snapshot) string {
	var p object.DatastorePath
	p.FromString(m.vm.Config.Files.VmPathName)
	p.Path = path.Join(path.Dir(p.Path), fmt.Sprintf("%s-Snapshot%d.vmsn", m.vm.Name, s.id))
	_ = os.WriteFile(filePath(p.String()), []byte(s.name+"\n"), 0600)
	return p.String()
}

func (m *machine) snapshotOf(ref types.ManagedObjectReference) *snapshot {
	for _, s := range m.snaps {
		if s.ref == ref {
			return s
		}
	}
	return nil
}

// publishSnapshots writes the tree where clients read it. Call it inside change.
func (m *machine) publishSnapshots() {
	m.vm.Snapshot, m.vm.RootSnapshot = nil, nil
	if len(m.snaps) == 0 {
		return
	}
	var tree func(parent *snapshot) []types.VirtualMachineSnapshotTree
	tree = func(parent *snapshot) (r []types.VirtualMachineSnapshotTree) {
		for _, s := range m.snaps {
			if s.parent == parent {
				r = append(r, types.VirtualMachineSnapshotTree{
					Snapshot: s.ref, Vm: m.vm.Self, Name: s.name, Description: s.description, Id: s.id, CreateTime: s.created,
					State: s.state, Quiesced: s.quiesced, ReplaySupported: types.NewBool(false), ChildSnapshotList: tree(s),
				})
			}
		}
		return r
	}
	info := &types.VirtualMachineSnapshotInfo{RootSnapshotList: tree(nil)}
	if m.current != nil {
		info.CurrentSnapshot = &m.current.ref
	}
	m.vm.Snapshot = info
	for _, s := range m.snaps {
		o := simulator.Map.Get(s.ref).(*simulator.VirtualMachineSnapshot)
		m.showBackings(s.config.Hardware.Device, nil)
		simulator.Map.WithLock(o, func() {
			o.Config = *deepCopy(s.config)
			o.ChildSnapshot = nil
			for _, child := range m.snaps {
				if child.parent == s {
					o.ChildSnapshot = append(o.ChildSnapshot, child.ref)
				}
			}
		})
		if s.parent == nil {
			m.vm.RootSnapshot = append(m.vm.RootSnapshot, s.ref)
		}
	}
}

func renameSnapshot(c *call) (interface{}, *refusal) {
	q := c.body.(*types.RenameSnapshot)
	if q.Name != "" {
		c.snap.name = q.Name
	}
	if q.Description != "" {
		c.snap.description = q.Description
	}
	c.m.setLive(nil)
	return &types.RenameSnapshotResponse{}, nil
}

func revertToSnapshot(c *call) (types.AnyType, *refusal) {
	q := c.body.(*types.RevertToSnapshot_Task)
	return nil, c.m.revert(c, c.snap, q.SuppressPowerOn != nil && *q.SuppressPowerOn)
}

func revertToCurrent(c *call) (types.AnyType, *refusal) {
	if c.m.current == nil { // API Reference, RevertToCurrentSnapshot_Task: NotFound "if the VM does not have a current snapshot"
		return nil, refuse(&types.NotFound{}, "'%s' has no current snapshot.", c.m.vm.Name)
	}
	q := c.body.(*types.RevertToCurrentSnapshot_Task)
	return nil, c.m.revert(c, c.m.current, q.SuppressPowerOn != nil && *q.SuppressPowerOn)
}

// revert brings back the disks of s, and with them the whole configuration: hardware, extraConfig, annotation
// (vSphere Virtual Machine Administration, "Restoring Snapshots": settings, disks and power state). Custom attributes
// and tags live in vCenter and stay. Independent disks keep their bytes. The frozen files are never written.
func (m *machine) revert(c *call, s *snapshot, suppressPowerOn bool) *refusal {
	config := deepCopy(s.config)
	if m.on() {
		m.stop(types.VirtualMachinePowerStatePoweredOff)
	}
	live, f := m.freezeDisks(config.Hardware.Device)
	if f != nil {
		return f
	}
	var old []*image
	for _, d := range virtualDisks(m.vm.Config.Hardware.Device) {
		if i := world.images[backing(d).FileName]; i != nil && i.parent != nil && !independent(d) {
			old = append(old, i)
		}
	}
	m.trackers = map[int32]*tracker{} // the old change ids say nothing about the disks as they are now
	m.current = s
	m.change(func() *refusal {
		config.Name, config.Files, config.Template = m.vm.Config.Name, m.vm.Config.Files, false
		m.vm.Config = config
		for _, d := range virtualDisks(config.Hardware.Device) {
			backing(d).ChangeId = ""
			if i := live[d.Key]; i != nil {
				backing(d).FileName = i.name
			}
		}
		m.settle()
		return nil
	})
	for _, i := range old {
		i.left = true
	}
	saveState() // before the files go
	f = m.consolidate()
	m.setLive(nil)
	m.activateTracking()
	if s.state == types.VirtualMachinePowerStatePoweredOn && !suppressPowerOn {
		return m.start(c)
	}
	return f
}
