// ReconfigVM_Task: all of a spec or nothing of it.
package main

import (
	"os"
	"reflect"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

func reconfigure(c *call) (types.AnyType, *refusal) {
	return nil, c.m.reconfigure(c, &c.body.(*types.ReconfigVM_Task).Spec)
}

func (m *machine) reconfigure(c *call, spec *types.VirtualMachineConfigSpec) *refusal {
	// vSphere API Reference, VirtualMachineConfigSpec.changeVersion: "if set and it does not match the current
	// changeVersion, the reconfigure fails"; the fault is ConcurrentAccess. World's lock makes it a compare-and-set.
	if v := spec.ChangeVersion; v != "" && v != m.vm.Config.ChangeVersion {
		return refuse(&types.ConcurrentAccess{}, "The configuration of '%s' has changed: the request expects version %s, it is %s.",
			m.vm.Name, v, m.vm.Config.ChangeVersion)
	}
	spec.ChangeVersion = ""
	if f := m.checkSpec(spec); f != nil {
		return f
	}
	var made []string // files of this request, removed again when a later part is refused
	var gone []*types.VirtualDisk
	space := saveSpace()
	f := m.change(func() *refusal { return m.apply(c, spec, &made, &gone) })
	if f != nil {
		for _, name := range made {
			(&image{name: name}).remove()
		}
		space.restore()
		return f
	}
	for _, d := range gone {
		deleteDisk(backing(d).FileName)
	}
	m.refreshLocks()
	return nil
}

// apply runs inside change.
func (m *machine) apply(c *call, spec *types.VirtualMachineConfigSpec, made *[]string, gone *[]*types.VirtualDisk) *refusal {
	vm := m.vm
	assignKeys(vm.Config.Hardware.Device, spec.DeviceChange)
	var rest []types.BaseVirtualDeviceConfigSpec
	var raw devices
	var disks []*types.VirtualDeviceConfigSpec
	for _, change := range spec.DeviceChange {
		s := change.GetVirtualDeviceConfigSpec()
		switch d := s.Device.(type) {
		case types.BaseVirtualEthernetCard:
			if s.Operation == types.VirtualDeviceConfigSpecOperationAdd {
				assignMAC(d.GetVirtualEthernetCard())
			}
		case *types.VirtualDisk:
			if s.Operation == types.VirtualDeviceConfigSpecOperationAdd && backing(d) == nil {
				raw = append(raw, rawDisk(vm.Config.Files.VmPathName, d))
				continue
			}
			if s.Operation == types.VirtualDeviceConfigSpecOperationAdd {
				disks = append(disks, s)
			}
		}
		switch s.Operation {
		case types.VirtualDeviceConfigSpecOperationEdit:
			replaceDevice(vm.Config.Hardware.Device, edited(findKey(vm.Config.Hardware.Device, s.Device.GetVirtualDevice().Key), s.Device))
		case types.VirtualDeviceConfigSpecOperationRemove:
			if d, ok := findKey(vm.Config.Hardware.Device, s.Device.GetVirtualDevice().Key).(*types.VirtualDisk); ok {
				if s.FileOperation == types.VirtualDeviceConfigSpecFileOperationDestroy && backing(d) != nil {
					*gone = append(*gone, deepCopy(d))
				}
			}
			vm.Config.Hardware.Device = without(vm.Config.Hardware.Device, s.Device.GetVirtualDevice().Key)
		default:
			rest = append(rest, change)
		}
	}
	extra, toggled := spec.ExtraConfig, spec.ChangeTrackingEnabled
	inner := *spec
	inner.DeviceChange, inner.ExtraConfig = rest, nil
	hidden := m.hideRaw()
	_, fault := stock(vm.ReconfigVMTask(c.ctx, &types.ReconfigVM_Task{This: vm.Self, Spec: inner}))
	vm.Config.Hardware.Device = append(append(vm.Config.Hardware.Device, hidden...), raw...)
	for _, s := range disks {
		d := s.Device.(*types.VirtualDisk)
		labelDisk(vm.Config.Hardware.Device, d)
		created := s.FileOperation != ""
		if created && backing(d).FileName != "" {
			*made = append(*made, backing(d).FileName)
		}
		if fault == nil {
			fault = ensureFile(d, created)
		}
	}
	for _, d := range virtualDisks(vm.Config.Hardware.Device) {
		if fault == nil {
			fault = grow(d)
		}
	}
	if fault != nil {
		return fault
	}
	vm.Config.ExtraConfig = mergeExtraConfig(vm.Config.ExtraConfig, extra)
	if b := spec.ManagedBy; b != nil && b.ExtensionKey == "" {
		vm.Config.ManagedBy = nil // API Reference, ManagedByInfo: an empty key removes the mark
	}
	if toggled != nil && !*toggled {
		m.trackers = map[int32]*tracker{}
	}
	for key := range m.trackers {
		if findKey(vm.Config.Hardware.Device, key) == nil {
			delete(m.trackers, key)
		}
	}
	m.settle()
	return nil
}

func replaceDevice(l devices, d types.BaseVirtualDevice) {
	for i := range l {
		if l[i].GetVirtualDevice().Key == d.GetVirtualDevice().Key {
			l[i] = d
		}
	}
}

func without(l devices, key int32) (r devices) {
	for _, d := range l {
		if d.GetVirtualDevice().Key != key {
			r = append(r, d)
		}
	}
	return r
}

// hideRaw takes raw device mappings away while stock code runs, which knows flat disks only.
func (m *machine) hideRaw() (hidden devices) {
	var rest devices
	for _, d := range m.vm.Config.Hardware.Device {
		if x, ok := d.(*types.VirtualDisk); ok && backing(x) == nil {
			hidden = append(hidden, d)
		} else {
			rest = append(rest, d)
		}
	}
	m.vm.Config.Hardware.Device = rest
	return hidden
}

// rawDisk is a mapping that can be seen and refused by those who look for it; it has no content here.
func rawDisk(vmx string, d *types.VirtualDisk) *types.VirtualDisk {
	if b, ok := d.Backing.(types.BaseVirtualDeviceFileBackingInfo); ok && b.GetVirtualDeviceFileBackingInfo().FileName == "" {
		b.GetVirtualDeviceFileBackingInfo().FileName = strings.TrimSuffix(vmx, ".vmx") + "-rdm.vmdk"
	}
	if d.DeviceInfo == nil {
		d.DeviceInfo = &types.Description{Label: "Hard disk", Summary: "Mapped raw LUN"}
	}
	return d
}

// mergeExtraConfig replaces values; an empty one removes its key.
// vSphere API Reference, VirtualMachineConfigSpec.extraConfig: "set the value to an empty string to remove a key".
func mergeExtraConfig(have, change []types.BaseOptionValue) []types.BaseOptionValue {
	for _, o := range change {
		v := o.GetOptionValue()
		at := -1
		for i := range have {
			if have[i].GetOptionValue().Key == v.Key {
				at = i
			}
		}
		s, isString := v.Value.(string)
		switch empty := v.Value == nil || isString && s == ""; {
		case empty && at >= 0:
			have = append(append([]types.BaseOptionValue{}, have[:at]...), have[at+1:]...)
		case !empty && at >= 0:
			have[at] = &types.OptionValue{Key: v.Key, Value: v.Value}
		case !empty:
			have = append(have, &types.OptionValue{Key: v.Key, Value: v.Value})
		}
	}
	return have
}

// checkSpec refuses what vSphere refuses, before anything is touched.
func (m *machine) checkSpec(spec *types.VirtualMachineConfigSpec) *refusal {
	vm := m.vm
	if vm.Config.Template {
		only := types.VirtualMachineConfigSpec{Name: spec.Name, Annotation: spec.Annotation}
		if !reflect.DeepEqual(spec, &only) { // API Reference, ReconfigVM_Task: NotSupported "if the virtual machine is marked as a template"
			return refuse(&types.NotSupported{}, "'%s' is a template: only its name and its annotation can be changed.", vm.Name)
		}
	}
	if spec.Name != "" && spec.Name != vm.Name {
		if f := checkName(*vm.Parent, spec.Name); f != nil {
			return f
		}
	}
	if spec.Files != nil && spec.Files.VmPathName != "" && spec.Files.VmPathName != vm.Config.Files.VmPathName {
		return refuse(&types.InvalidArgument{InvalidProperty: "spec.files.vmPathName"}, "The path of an existing VM cannot be changed.")
	}
	// API Reference, VirtualMachineConfigSpec.numCPUs and memoryMB: on a running VM only with hot add.
	hot := func(p *bool) bool { return p != nil && *p }
	if m.on() && (spec.NumCPUs != 0 && spec.NumCPUs != vm.Config.Hardware.NumCPU && !hot(vm.Config.CpuHotAddEnabled) ||
		spec.MemoryMB != 0 && spec.MemoryMB != int64(vm.Config.Hardware.MemoryMB) && !hot(vm.Config.MemoryHotAddEnabled)) {
		return m.wrongState(poweredOff)
	}
	for i, change := range spec.DeviceChange {
		if f := m.checkChange(int32(i), change.GetVirtualDeviceConfigSpec()); f != nil {
			return f
		}
	}
	return m.checkPlaces(spec.DeviceChange)
}

func invalidDevice(i int32, format string, args ...interface{}) *refusal {
	s := types.InvalidDeviceSpec{DeviceIndex: i}
	s.Property = "virtualDeviceSpec.device"
	return refuse(&s, format, args...)
}

func (m *machine) checkChange(i int32, s *types.VirtualDeviceConfigSpec) *refusal {
	if s.Device == nil {
		return invalidDevice(i, "Invalid configuration for device '%d': the change has no device.", i)
	}
	have := findKey(m.vm.Config.Hardware.Device, s.Device.GetVirtualDevice().Key)
	if s.Operation != types.VirtualDeviceConfigSpecOperationAdd && have == nil {
		return invalidDevice(i, "Invalid configuration for device '%d': '%s' has no device with key %d.",
			i, m.vm.Name, s.Device.GetVirtualDevice().Key)
	}
	if d := s.Device.GetVirtualDevice(); d.Backing != nil && s.Operation != types.VirtualDeviceConfigSpecOperationRemove {
		if _, ok := s.Device.(types.BaseVirtualEthernetCard); ok && networkOf(s.Device) == nil {
			return invalidDevice(i, "Invalid configuration for device '%d': there is no such network.", i)
		}
	}
	disk, ok := s.Device.(*types.VirtualDisk)
	if !ok {
		return nil
	}
	switch s.Operation {
	case types.VirtualDeviceConfigSpecOperationAdd:
		return m.checkNewDisk(i, s, disk)
	case types.VirtualDeviceConfigSpecOperationEdit:
		if d, ok := have.(*types.VirtualDisk); ok {
			return m.checkEdit(i, d, disk)
		}
		return invalidDevice(i, "Invalid configuration for device '%d': key %d is no disk.", i, disk.Key)
	}
	return nil
}

func (m *machine) checkNewDisk(i int32, s *types.VirtualDeviceConfigSpec, d *types.VirtualDisk) *refusal {
	b := backing(d)
	if b == nil {
		return nil
	}
	var p object.DatastorePath
	if b.FileName != "" && (!p.FromString(b.FileName) || world.roots[p.Datastore] == "") {
		return refuse(&types.InvalidDatastorePath{InvalidDatastore: types.InvalidDatastore{Name: b.FileName}, DatastorePath: b.FileName},
			"'%s' is not a path on a datastore of this vCenter.", b.FileName)
	}
	if s.FileOperation != "" {
		if capacity(d) <= 0 {
			return invalidDevice(i, "Invalid configuration for device '%d': a new disk needs a capacity.", i)
		}
		if _, err := os.Stat(filePath(b.FileName)); p.Path != "" && err == nil && s.FileOperation == types.VirtualDeviceConfigSpecFileOperationCreate {
			return fileFault(b.FileName, os.ErrExist)
		}
		return nil
	}
	if p.Path == "" {
		return invalidDevice(i, "Invalid configuration for device '%d': attaching a disk needs its file name.", i)
	}
	if _, err := openImage(p.String()); err != nil {
		return fileFault(b.FileName, err)
	}
	b.FileName = p.String()
	if m.on() && writable(d) {
		return m.checkUnlocked(p.String())
	}
	return nil
}

func (m *machine) checkEdit(i int32, have, want *types.VirtualDisk) *refusal {
	size := capacity(want)
	if backing(have) == nil || size == 0 || size == have.CapacityInBytes {
		return nil
	}
	if size < have.CapacityInBytes {
		return refuse(&types.InvalidArgument{InvalidProperty: "spec.deviceChange.device.capacityInKB"},
			"A disk cannot be made smaller: it has %d bytes, the request says %d.", have.CapacityInBytes, size)
	}
	// vSphere Virtual Machine Administration, "Change the Virtual Disk Configuration": a disk cannot be extended while
	// the VM has snapshots; the fault is the one of an edit that the device does not allow.
	if len(m.snaps) > 0 && !independent(have) || world.images[backing(have).FileName] != nil && world.images[backing(have).FileName].parent != nil {
		f := types.InvalidDeviceOperation{BadOp: types.VirtualDeviceConfigSpecOperationEdit}
		f.DeviceIndex = i
		f.Property = "virtualDeviceSpec.device.capacityInKB"
		return refuse(&f, "Invalid operation for device '%d': a disk cannot be extended while '%s' has snapshots.", i, m.vm.Name)
	}
	return nil
}

func checkName(folder types.ManagedObjectReference, name string) *refusal {
	f, ok := simulator.Map.Get(folder).(*simulator.Folder)
	if !ok {
		return nil
	}
	if e := simulator.Map.FindByName(name, f.ChildEntity); e != nil {
		return refuse(&types.DuplicateName{Name: name, Object: e.Reference()}, "The name '%s' already exists.", name)
	}
	return nil
}
