// Places of disks and drives on their controllers: each has one of its own.
package main

import "github.com/vmware/govmomi/vim25/types"

type unit struct{ controller, number int32 }

// unitOf: a disk's or a drive's place; others are put where the host likes.
func unitOf(dev types.BaseVirtualDevice) (unit, bool) {
	switch dev.(type) {
	case *types.VirtualDisk, *types.VirtualCdrom:
	default:
		return unit{}, false
	}
	d := dev.GetVirtualDevice()
	if d.UnitNumber == nil || d.ControllerKey == 0 {
		return unit{}, false
	}
	return unit{d.ControllerKey, *d.UnitNumber}, true
}

// checkPlaces goes through the changes one by one: what an earlier one takes away makes room, what a later one does not.
// vSphere answers InvalidDeviceSpec ("Invalid configuration for device '0'."), also for the place that a SCSI controller
// has itself (API Reference, VirtualSCSIController.scsiCtlrUnitNumber).
func (m *machine) checkPlaces(changes []types.BaseVirtualDeviceConfigSpec) *refusal {
	taken, was := map[unit]bool{}, map[int32]unit{}
	all := append(devices{}, m.vm.Config.Hardware.Device...)
	for _, d := range all {
		if at, ok := unitOf(d); ok {
			taken[at], was[d.GetVirtualDevice().Key] = true, at
		}
	}
	for i, change := range changes {
		s := change.GetVirtualDeviceConfigSpec()
		key := s.Device.GetVirtualDevice().Key
		at, ok := unitOf(s.Device)
		if s.Operation != types.VirtualDeviceConfigSpecOperationAdd {
			delete(taken, was[key])
			if !ok {
				at, ok = was[key], was[key] != unit{}
			}
		}
		if s.Operation == types.VirtualDeviceConfigSpecOperationRemove {
			continue
		}
		all = append(all, s.Device)
		if !ok {
			continue
		}
		if _, scsi := findKey(all, at.controller).(types.BaseVirtualSCSIController); taken[at] || scsi && at.number == 7 {
			return invalidDevice(int32(i), "Invalid configuration for device '%d': unit %d of the controller %d is taken.",
				i, at.number, at.controller)
		}
		taken[at], was[key] = true, at
	}
	return nil
}
