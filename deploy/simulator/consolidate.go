// Removing snapshots, and consolidation: what nobody refers to any more is folded into its parent.
package main

import (
	"os"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

func removeSnapshot(c *call) (types.AnyType, *refusal) {
	q := c.body.(*types.RemoveSnapshot_Task)
	gone := []*snapshot{c.snap}
	if q.RemoveChildren {
		for _, s := range c.m.snaps { // oldest first, so that a child always comes after its parent
			if s != c.snap && contains(gone, s.parent) {
				gone = append(gone, s)
			}
		}
	}
	return nil, c.m.removeSnapshots(gone, q.Consolidate == nil || *q.Consolidate)
}

func removeAllSnapshots(c *call) (types.AnyType, *refusal) {
	q := c.body.(*types.RemoveAllSnapshots_Task)
	return nil, c.m.removeSnapshots(append([]*snapshot{}, c.m.snaps...), q.Consolidate == nil || *q.Consolidate)
}

func consolidateDisks(c *call) (types.AnyType, *refusal) {
	f := c.m.consolidate()
	c.m.setLive(nil)
	c.m.refreshLocks()
	return nil, f
}

func contains(l []*snapshot, s *snapshot) bool {
	for _, x := range l {
		if x == s {
			return true
		}
	}
	return false
}

func (m *machine) removeSnapshots(gone []*snapshot, consolidate bool) *refusal {
	var rest []*snapshot
	for _, s := range m.snaps {
		if contains(gone, s) {
			simulator.Map.Remove(s.ref)
			_ = os.Remove(filePath(s.vmsn))
			for _, d := range virtualDisks(s.config.Hardware.Device) {
				if i := world.images[backing(d).FileName]; i != nil {
					i.left = true
				}
			}
			continue
		}
		for contains(gone, s.parent) {
			s.parent = s.parent.parent
		}
		rest = append(rest, s)
	}
	for contains(gone, m.current) {
		m.current = m.current.parent
	}
	m.snaps = rest
	m.setLive(nil)
	saveState() // before the files: after a crash a delta is left over, never a snapshot without its content
	var f *refusal
	if m.leaveDelta > 0 && len(gone) > 0 {
		m.leaveDelta--
	} else if consolidate {
		f = m.consolidate()
	}
	m.setLive(nil)
	m.activateTracking()
	m.refreshLocks()
	return f
}

// users counts the devices, of VMs and of snapshots, that name this file.
func (i *image) users() (n int) {
	count := func(l devices) {
		for _, d := range virtualDisks(l) {
			if backing(d).FileName == i.name {
				n++
			}
		}
	}
	for _, m := range world.vms {
		count(m.vm.Config.Hardware.Device)
		for _, s := range m.snaps {
			count(s.config.Hardware.Device)
		}
	}
	return n
}

// consolidate removes every file of this VM's chains that no snapshot and no device needs. A file with one child
// takes over the child's content and place; a file with several children stays, as they all stand on it.
func (m *machine) consolidate() *refusal {
	for {
		i := m.superfluous()
		if i == nil {
			return nil
		}
		children := i.children()
		if len(children) == 0 {
			i.remove()
			continue
		}
		child := children[0]
		if err := i.fold(child); err != nil {
			return fileFault(child.name, err)
		}
		m.rename(child.name, i.name)
		saveState() // before the child goes: after a crash a file is left over, never missed
		child.remove()
	}
}

// superfluous finds one file that consolidation would remove or fold. A leaf that somebody has detached from the VM
// is not ours to remove: only what a removed snapshot or a revert has left behind is.
func (m *machine) superfluous() *image {
	for _, i := range m.chains() {
		if i.users() > 0 {
			continue
		}
		switch children := i.children(); {
		case len(children) == 0 && i.left && i.parent != nil:
			return i
		case len(children) == 1 && m.owns(children[0]) && (children[0].users() > 0 || len(children[0].children()) > 0):
			return i
		}
	}
	return nil
}

// chains are all files below the VM's devices and snapshots, and the files that stand on these.
func (m *machine) chains() (r []*image) {
	seen := map[*image]bool{}
	var up func(i *image)
	up = func(i *image) {
		if i == nil || seen[i] {
			return
		}
		seen[i] = true
		r = append(r, i)
		up(i.parent)
	}
	add := func(l devices) {
		for _, d := range virtualDisks(l) {
			up(world.images[backing(d).FileName])
		}
	}
	add(m.vm.Config.Hardware.Device)
	for _, s := range m.snaps {
		add(s.config.Hardware.Device)
	}
	for k := 0; k < len(r); k++ {
		for _, child := range r[k].children() {
			if child.users() == 0 {
				up(child)
			}
		}
	}
	return r
}

// owns is false for a linked clone's file: it stands on ours, and ours must not be folded into it.
func (m *machine) owns(i *image) bool {
	for _, other := range world.vms {
		if other == m {
			continue
		}
		for _, d := range virtualDisks(other.vm.Config.Hardware.Device) {
			for x := world.images[backing(d).FileName]; x != nil; x = x.parent {
				if x == i {
					return false
				}
			}
		}
	}
	return true
}

func (m *machine) rename(from, to string) {
	m.dirty = true
	swap := func(l devices) {
		for _, d := range virtualDisks(l) {
			if backing(d).FileName == from {
				backing(d).FileName = to
			}
		}
	}
	for _, s := range m.snaps {
		swap(s.config.Hardware.Device)
	}
	m.change(func() *refusal {
		swap(m.vm.Config.Hardware.Device)
		return nil
	})
}

// unconsolidated: a live disk has more parents than snapshots account for
// (API Reference, VirtualMachineRuntimeInfo.consolidationNeeded).
func (m *machine) unconsolidated() bool { return m.superfluous() != nil }

// deleteDisk removes a disk's files, up its chain, as far as nobody else uses them.
func deleteDisk(name string) {
	i, err := openImage(name)
	if err != nil {
		(&image{name: name}).remove()
		return
	}
	for ; i != nil && i.users() == 0 && len(i.children()) == 0; i = i.parent {
		if d, err := readDescriptor(i.descriptorPath()); err == nil && !d.thin && i.parent == nil {
			giveSpace(datastoreOf(i.name), d.size)
		}
		i.remove()
	}
}
