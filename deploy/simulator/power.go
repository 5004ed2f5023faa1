// Power: what starts and stops a VM does to its disks, its lock files and its guest.
package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

const (
	poweredOn  = types.VirtualMachinePowerStatePoweredOn
	poweredOff = types.VirtualMachinePowerStatePoweredOff
	suspended  = types.VirtualMachinePowerStateSuspended
)

// guest is what a VM's guest does while it runs (control endpoint).
type guest struct {
	Tools     bool
	Heartbeat types.ManagedEntityStatus
	IP, Host  string
	Stubborn  bool // does not shut down when asked
}

func defaultGuest() guest { return guest{Tools: true, Heartbeat: types.ManagedEntityStatusGreen} }

func (m *machine) wrongState(want types.VirtualMachinePowerState) *refusal {
	is := m.vm.Runtime.PowerState
	return refuse(&types.InvalidPowerState{RequestedState: want, ExistingState: is},
		"The attempted operation cannot be performed in the current state (%s) of '%s'.", is, m.vm.Name)
}

func powerOn(c *call) (types.AnyType, *refusal) { return nil, c.m.start(c) }

func (m *machine) start(c *call) *refusal {
	vm := m.vm
	if vm.Config.Template { // API Reference, PowerOnVM_Task: InvalidState / NotSupported for a template
		return refuse(&types.InvalidState{}, "'%s' is a template: it cannot be powered on.", vm.Name)
	}
	if m.on() { // API Reference, PowerOnVM_Task: InvalidPowerState
		return m.wrongState(poweredOn)
	}
	for _, d := range virtualDisks(vm.Config.Hardware.Device) {
		if f := checkChain(backing(d).FileName); f != nil {
			return f
		}
		if writable(d) {
			if f := m.checkUnlocked(backing(d).FileName); f != nil {
				return f
			}
		}
	}
	f := m.change(func() *refusal {
		if _, f := stock(vm.PowerOnVMTask(c.ctx, &types.PowerOnVM_Task{This: vm.Self})); f != nil {
			return f
		}
		now := time.Now().UTC()
		vm.Runtime.BootTime = &now
		m.showGuest()
		return nil
	})
	if f != nil {
		return f
	}
	for _, d := range virtualDisks(vm.Config.Hardware.Device) {
		if i := world.images[backing(d).FileName]; i != nil && writable(d) {
			// Opening a disk for writing gives it a new content id (Virtual Disk Format 5.0, "CID").
			if err := i.setCID(newCID()); err != nil {
				return fileFault(i.name, err)
			}
		}
	}
	m.refreshLocks()
	m.activateTracking()
	m.setLive(nil)
	return nil
}

// checkChain refuses a child whose parent was written after the child was made: KB 1007969, "The parent virtual disk
// has been modified since the child was created".
func checkChain(name string) *refusal {
	i, err := openImage(name)
	if err != nil {
		return fileFault(name, err)
	}
	for ; i.parent != nil; i = i.parent {
		child, err := readDescriptor(i.descriptorPath())
		if err != nil {
			return fileFault(i.name, err)
		}
		parent, err := readDescriptor(i.parent.descriptorPath())
		if err != nil {
			return fileFault(i.parent.name, err)
		}
		if child.parentCID != parent.cid {
			reason := fmt.Sprintf("Cannot open the disk '%s' or one of the snapshot disks it depends on. "+
				"The parent virtual disk has been modified since the child was created. The content ID of the parent virtual disk "+
				"does not match the corresponding parent content ID in the child.", i.name)
			return refuse(&types.GenericVmConfigFault{Reason: reason}, "%s", reason)
		}
	}
	return nil
}

// checkUnlocked refuses a disk that another running VM writes (API Reference, FileLocked).
func (m *machine) checkUnlocked(name string) *refusal {
	for _, other := range world.vms {
		if other == m || !other.on() {
			continue
		}
		for _, d := range virtualDisks(other.vm.Config.Hardware.Device) {
			if backing(d).FileName == name && writable(d) {
				return refuse(&types.FileLocked{FileFault: types.FileFault{File: name}},
					"Unable to access file %s since it is locked by '%s'.", name, other.vm.Name)
			}
		}
	}
	return nil
}

func powerOff(c *call) (types.AnyType, *refusal) {
	if c.m.vm.Runtime.PowerState == poweredOff {
		return nil, c.m.wrongState(poweredOff)
	}
	c.m.stop(poweredOff)
	return nil, nil
}

func suspend(c *call) (types.AnyType, *refusal) {
	if !c.m.on() {
		return nil, c.m.wrongState(suspended)
	}
	c.m.stop(suspended)
	return nil, nil
}

func reset(c *call) (types.AnyType, *refusal) {
	if !c.m.on() {
		return nil, c.m.wrongState(poweredOn)
	}
	c.m.stop(poweredOff)
	return nil, c.m.start(c)
}

// stop never fails: what is on can be switched off.
func (m *machine) stop(state types.VirtualMachinePowerState) {
	m.change(func() *refusal {
		ctx := newContext(m.vm.Self)
		if state == suspended {
			_, _ = stock(m.vm.SuspendVMTask(ctx, &types.SuspendVM_Task{This: m.vm.Self}))
		} else {
			_, _ = stock(m.vm.PowerOffVMTask(ctx, &types.PowerOffVM_Task{This: m.vm.Self}))
		}
		m.vm.Runtime.BootTime = nil
		m.showGuest()
		m.settle()
		return nil
	})
	m.refreshLocks()
}

func (m *machine) needTools() *refusal {
	if !m.on() {
		return m.wrongState(poweredOn)
	}
	if !m.guest.Tools { // API Reference, ShutdownGuest and RebootGuest: ToolsUnavailable
		return refuse(&types.ToolsUnavailable{}, "VMware Tools is not running in '%s'.", m.vm.Name)
	}
	return nil
}

func shutdownGuest(c *call) (interface{}, *refusal) {
	if f := c.m.needTools(); f != nil {
		return nil, f
	}
	if !c.m.guest.Stubborn {
		c.m.stop(poweredOff)
	}
	return &types.ShutdownGuestResponse{}, nil
}

func rebootGuest(c *call) (interface{}, *refusal) {
	if f := c.m.needTools(); f != nil {
		return nil, f
	}
	c.m.stop(poweredOff)
	return &types.RebootGuestResponse{}, c.m.start(c)
}

// showGuest writes what the guest says of itself. Call it inside change.
func (m *machine) showGuest() {
	vm, g := m.vm, m.guest
	status, running := types.VirtualMachineToolsStatusToolsNotRunning, "guestToolsNotRunning"
	vm.GuestHeartbeatStatus = types.ManagedEntityStatusGray
	ip, host := "", ""
	switch {
	case !g.Tools:
		status = types.VirtualMachineToolsStatusToolsNotInstalled
	case m.on():
		// Only a customisation has filled these in since the last stop.
		if vm.Guest.IpAddress != "" {
			g.IP = vm.Guest.IpAddress
		}
		if vm.Guest.HostName != "" {
			g.Host = vm.Guest.HostName
		}
		m.guest = g
		status, running = types.VirtualMachineToolsStatusToolsOk, "guestToolsRunning"
		vm.GuestHeartbeatStatus = g.Heartbeat
		ip, host = g.IP, g.Host
	}
	vm.Guest.ToolsStatus, vm.Guest.ToolsRunningStatus = status, running
	vm.Guest.IpAddress, vm.Guest.HostName = ip, host
	vm.Guest.GuestState = map[bool]string{true: "running", false: "notRunning"}[m.on()]
	vm.Summary.Guest.ToolsStatus, vm.Summary.Guest.ToolsRunningStatus = status, running
	vm.Summary.Guest.IpAddress, vm.Summary.Guest.HostName = ip, host
	vm.Summary.QuickStats.GuestHeartbeatStatus = vm.GuestHeartbeatStatus
}

// refreshLocks keeps one NFS lock file beside each live flat of a running VM: .lck- and the file's id, as ESXi names
// them (Best Practices for Running VMware vSphere on NFS, "NFS file locking"). Whoever writes flats must look for them.
func (m *machine) refreshLocks() {
	for _, name := range m.lockFiles {
		_ = os.Remove(name)
	}
	m.lockFiles = nil
	if !m.on() {
		return
	}
	for _, d := range virtualDisks(m.vm.Config.Hardware.Device) {
		flat := flatPath(filePath(backing(d).FileName))
		st, err := os.Stat(flat)
		if err != nil || !writable(d) {
			continue
		}
		var id [8]byte
		binary.LittleEndian.PutUint64(id[:], st.Sys().(*syscall.Stat_t).Ino)
		name := filepath.Join(filepath.Dir(flat), fmt.Sprintf(".lck-%x", id))
		owner := fmt.Sprintf("%s %s\n", hostName(m.vm.Runtime.Host), m.vm.Name)
		if os.WriteFile(name, []byte(owner), 0600) == nil {
			m.lockFiles = append(m.lockFiles, name)
		}
	}
}

func hostName(ref *types.ManagedObjectReference) string {
	if ref != nil {
		if h, ok := simulator.Map.Get(*ref).(*simulator.HostSystem); ok {
			return h.Name
		}
	}
	return ""
}
