// Making VMs: CreateVM_Task, CloneVM_Task, and what both need.
package main

import (
	"crypto/rand"
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/simulator/esx"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// placement is where a new VM goes.
type placement struct {
	folder, pool types.ManagedObjectReference
	host         *types.ManagedObjectReference
}

func createVM(c *call) (types.AnyType, *refusal) {
	q := c.body.(*types.CreateVM_Task)
	m, f := makeVM(c, placement{q.This, q.Pool, q.Host}, &q.Config)
	if f != nil {
		return nil, f
	}
	return m.vm.Self, nil
}

// makeVM makes the VM with its hardware and its files; the spec is changed on the way.
func makeVM(c *call, at placement, spec *types.VirtualMachineConfigSpec) (*machine, *refusal) {
	folder, ok := simulator.Map.Get(at.folder).(*simulator.Folder)
	if !ok {
		return nil, refuse(&types.ManagedObjectNotFound{Obj: at.folder}, "There is no folder %s.", at.folder.Value)
	}
	if spec.Name == "" {
		return nil, refuse(&types.InvalidName{}, "A VM needs a name.")
	}
	if f := checkGuest(spec.GuestId); f != nil {
		return nil, f
	}
	if f := checkName(at.folder, spec.Name); f != nil { // API Reference, CreateVM_Task: DuplicateName
		return nil, f
	}
	if f := choosePlace(&at); f != nil {
		return nil, f
	}
	vmx, f := choosePath(spec)
	if f != nil {
		return nil, f
	}
	dir := path.Dir(filePath(vmx))
	_, err := os.Stat(dir)
	fresh := os.IsNotExist(err)
	spec.Files.VmPathName = vmx
	if spec.Uuid == "" {
		spec.Uuid = uuid.New().String()
	}
	// Never from the path: a VM made again under the same name is another instance. vCenter keeps the ids unique.
	if spec.InstanceUuid == "" || instanceTaken(spec.InstanceUuid) {
		spec.InstanceUuid = uuid.New().String()
	}
	hardware, extra, managed := spec.DeviceChange, spec.ExtraConfig, spec.ManagedBy
	inner := *spec
	inner.DeviceChange, inner.ExtraConfig, inner.ManagedBy, inner.ChangeVersion = nil, nil, nil, ""
	var res types.AnyType
	simulator.Map.WithLock(folder, func() {
		res, f = stock(folder.CreateVMTask(newContext(folder.Self), &types.CreateVM_Task{
			This: folder.Self, Config: inner, Pool: at.pool, Host: at.host,
		}))
	})
	if f != nil {
		if fresh {
			_ = os.RemoveAll(dir)
		}
		return nil, f
	}
	m := adopt(simulator.Map.Get(res.(types.ManagedObjectReference)).(*simulator.VirtualMachine))
	f = m.reconfigure(c, &types.VirtualMachineConfigSpec{DeviceChange: hardware, ExtraConfig: extra, ManagedBy: managed})
	if f != nil {
		_ = m.unregister()
		if fresh {
			_ = os.RemoveAll(dir)
		}
		return nil, f
	}
	return m, nil
}

func instanceTaken(id string) bool {
	for _, m := range world.vms {
		if strings.EqualFold(m.vm.Config.InstanceUuid, id) {
			return true
		}
	}
	return false
}

// checkGuest: the stock simulator knows the ids of its API version, but asks only when a VM is reconfigured.
func checkGuest(id string) *refusal {
	for _, known := range simulator.GuestID {
		if id == "" || string(known) == id {
			return nil
		}
	}
	return refuse(&types.InvalidArgument{InvalidProperty: "configSpec.guestId"},
		"A specified parameter was not correct: configSpec.guestId. '%s' is no guest operating system of this version.", id)
}

// adopt fills in what the stock simulator leaves out of a new VM.
func adopt(vm *simulator.VirtualMachine) *machine {
	m := newMachine(vm)
	m.change(func() *refusal {
		vm.Config.Hardware.Device = deepCopy(vm.Config.Hardware.Device) // the stock defaults are shared by all VMs
		vm.Config.ExtraConfig = nil
		vm.Datastore = vm.Datastore[:len(vm.Datastore):len(vm.Datastore)]
		now := time.Now().UTC()
		vm.Config.CreateDate = &now
		vm.AvailableField = nil
		fields := simulator.Map.CustomFieldsManager()
		for _, f := range fields.Field {
			if f.ManagedObjectType == "" || f.ManagedObjectType == "VirtualMachine" {
				vm.AvailableField = append(vm.AvailableField, f)
			}
		}
		m.showGuest()
		return nil
	})
	nvram := strings.TrimSuffix(filePath(vm.Config.Files.VmPathName), ".vmx") + ".nvram"
	if st, err := os.Stat(nvram); err == nil && st.Size() == 0 {
		content := make([]byte, 8684) // the size that ESXi gives a BIOS VM's file
		_, _ = rand.Read(content[64:])
		copy(content, "MRVN"+vm.Config.InstanceUuid)
		_ = os.WriteFile(nvram, content, 0600)
	}
	return m
}

// choosePlace takes the first host of the pool's cluster when the client leaves the choice to DRS.
func choosePlace(at *placement) *refusal {
	pool, ok := simulator.Map.Get(at.pool).(mo.Entity)
	if !ok || at.pool.Type != "ResourcePool" && at.pool.Type != "VirtualApp" {
		return refuse(&types.ManagedObjectNotFound{Obj: at.pool}, "There is no resource pool %s.", at.pool.Value)
	}
	if at.host != nil {
		if _, ok := simulator.Map.Get(*at.host).(*simulator.HostSystem); !ok {
			return refuse(&types.ManagedObjectNotFound{Obj: *at.host}, "There is no host %s.", at.host.Value)
		}
		return nil
	}
	for e := pool; e.Entity().Parent != nil; {
		e = simulator.Map.Get(*e.Entity().Parent).(mo.Entity)
		if cluster, ok := e.(*simulator.ClusterComputeResource); ok && len(cluster.Host) > 0 {
			at.host = &cluster.Host[0]
			return nil
		}
	}
	return refuse(&types.InvalidArgument{InvalidProperty: "pool"}, "The pool %s has no host.", at.pool.Value)
}

// choosePath gives "[ds] name/name.vmx", with _1, _2, ... while the folder exists, as vCenter does.
func choosePath(spec *types.VirtualMachineConfigSpec) (string, *refusal) {
	var p object.DatastorePath
	if spec.Files == nil || !p.FromString(spec.Files.VmPathName) || world.roots[p.Datastore] == "" {
		at := ""
		if spec.Files != nil {
			at = spec.Files.VmPathName
		}
		return "", refuse(&types.InvalidDatastorePath{InvalidDatastore: types.InvalidDatastore{Name: at}, DatastorePath: at},
			"'%s' is not a path on a datastore of this vCenter.", at)
	}
	if path.Ext(p.Path) == ".vmx" {
		if _, err := os.Stat(filePath(p.String())); err == nil {
			return "", fileFault(p.String(), os.ErrExist)
		}
		return p.String(), nil
	}
	base := p.Path
	if base == "" {
		base = spec.Name
	}
	for n := 0; ; n++ {
		p.Path = base
		if n > 0 {
			p.Path = fmt.Sprintf("%s_%d", base, n)
		}
		if _, err := os.Stat(filePath(p.String())); os.IsNotExist(err) || n == 0 && emptyFolder(filePath(p.String())) {
			p.Path = path.Join(p.Path, spec.Name+".vmx")
			return p.String(), nil
		}
	}
}

func emptyFolder(dir string) bool {
	l, err := os.ReadDir(dir)
	return err == nil && len(l) == 0
}

// cloneVM copies disks, hardware and extraConfig; uuids, addresses and content ids are new.
// API Reference, CloneVM_Task and VirtualMachineCloneSpec.
func cloneVM(c *call) (types.AnyType, *refusal) {
	q := c.body.(*types.CloneVM_Task)
	src := c.m.vm
	from, frozen := src.Config, (*snapshot)(nil)
	if q.Spec.Snapshot != nil {
		if frozen = c.m.snapshotOf(*q.Spec.Snapshot); frozen == nil {
			return nil, refuse(&types.ManagedObjectNotFound{Obj: *q.Spec.Snapshot}, "%s is no snapshot of '%s'.", q.Spec.Snapshot.Value, src.Name)
		}
		from = frozen.config
	}
	linked := q.Spec.Location.DiskMoveType == string(types.VirtualMachineRelocateDiskMoveOptionsCreateNewChildDiskBacking)
	if linked && frozen == nil {
		return nil, refuse(&types.InvalidArgument{InvalidProperty: "spec.snapshot"}, "A linked clone needs the snapshot that it stands on.")
	}
	at := placement{folder: q.Folder, host: q.Spec.Location.Host}
	switch {
	case q.Spec.Location.Pool != nil:
		at.pool = *q.Spec.Location.Pool
	case src.ResourcePool != nil:
		at.pool = *src.ResourcePool
	default: // API Reference, VirtualMachineRelocateSpec.pool: required when a template becomes a VM
		return nil, refuse(&types.InvalidArgument{InvalidProperty: "spec.location.pool"}, "A clone of a template needs a resource pool.")
	}
	spec, disks, f := cloneSpec(q, src, from)
	if f != nil {
		return nil, f
	}
	m, f := makeVM(c, at, spec)
	if f != nil {
		return nil, f
	}
	if f := m.copyDisks(disks, linked); f != nil {
		_ = m.destroy()
		return nil, f
	}
	if b, err := os.ReadFile(nvramPath(src)); err == nil {
		_ = os.WriteFile(nvramPath(m.vm), b, 0600)
	}
	if q.Spec.Config != nil {
		q.Spec.Config.Name, q.Spec.Config.Files = "", nil
		q.Spec.Config.Uuid, q.Spec.Config.InstanceUuid = "", ""
		if f := m.reconfigure(c, q.Spec.Config); f != nil {
			_ = m.destroy()
			return nil, f
		}
	}
	m.setLive(nil)
	if q.Spec.Customization != nil {
		simulator.Map.WithLock(m.vm, func() {
			_, f = stock(m.vm.CustomizeVMTask(&types.CustomizeVM_Task{This: m.vm.Self, Spec: *q.Spec.Customization}))
		})
		if f != nil {
			return nil, f
		}
	}
	if q.Spec.Template {
		m.change(func() *refusal {
			m.vm.Config.Template, m.vm.ResourcePool = true, nil
			m.settle()
			return nil
		})
	}
	if q.Spec.PowerOn {
		return m.vm.Self, m.start(c)
	}
	return m.vm.Self, nil
}

func nvramPath(vm *simulator.VirtualMachine) string {
	return strings.TrimSuffix(filePath(vm.Config.Files.VmPathName), ".vmx") + ".nvram"
}

// cloneSpec is a spec that makes the same hardware again; disks[i] is the source file of the i-th disk in it.
func cloneSpec(q *types.CloneVM_Task, vm *simulator.VirtualMachine, from *types.VirtualMachineConfigInfo) (*types.VirtualMachineConfigSpec, []string, *refusal) {
	datastore := datastoreOf(from.Files.VmPathName)
	if ref := q.Spec.Location.Datastore; ref != nil {
		ds, ok := simulator.Map.Get(*ref).(*simulator.Datastore)
		if !ok {
			return nil, nil, refuse(&types.ManagedObjectNotFound{Obj: *ref}, "There is no datastore %s.", ref.Value)
		}
		datastore = ds.Name
	}
	spec := &types.VirtualMachineConfigSpec{
		Name: q.Name, GuestId: from.GuestId, Annotation: from.Annotation, Firmware: from.Firmware, Version: from.Version,
		NumCPUs: from.Hardware.NumCPU, NumCoresPerSocket: from.Hardware.NumCoresPerSocket, MemoryMB: int64(from.Hardware.MemoryMB),
		ChangeTrackingEnabled: from.ChangeTrackingEnabled, BootOptions: deepCopy(from.BootOptions), ManagedBy: deepCopy(from.ManagedBy),
		ExtraConfig: deepCopy(from.ExtraConfig), CpuHotAddEnabled: from.CpuHotAddEnabled, MemoryHotAddEnabled: from.MemoryHotAddEnabled,
		Files: &types.VirtualMachineFileInfo{VmPathName: "[" + datastore + "]"},
	}
	if q.Spec.Config != nil {
		spec.Uuid, spec.InstanceUuid = q.Spec.Config.Uuid, q.Spec.Config.InstanceUuid
	}
	var disks []string
	for _, d := range deepCopy(from.Hardware.Device) {
		if findKey(esx.VirtualDevice, d.GetVirtualDevice().Key) != nil {
			continue // every VM has these from the start
		}
		change := &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: d}
		switch x := d.(type) {
		case *types.VirtualDisk:
			if b := backing(x); b != nil {
				disks = append(disks, b.FileName)
				change.FileOperation = types.VirtualDeviceConfigSpecFileOperationCreate
				mode, thin := b.DiskMode, b.ThinProvisioned
				x.Backing = &types.VirtualDiskFlatVer2BackingInfo{DiskMode: mode, ThinProvisioned: thin}
			}
		case types.BaseVirtualEthernetCard:
			if c := x.GetVirtualEthernetCard(); c.AddressType != string(types.VirtualEthernetCardMacTypeManual) {
				c.MacAddress, c.AddressType = "", ""
			}
		}
		spec.DeviceChange = append(spec.DeviceChange, change)
	}
	return spec, disks, nil
}

// copyDisks fills the new disks. A linked clone's disk is a child of the snapshot's file instead.
func (m *machine) copyDisks(from []string, linked bool) *refusal {
	for n, d := range virtualDisks(m.vm.Config.Hardware.Device) {
		src, err := openImage(from[n])
		if err != nil {
			return fileFault(from[n], err)
		}
		dst := world.images[backing(d).FileName]
		if linked {
			dst.remove()
			dst, err = src.freezeAs(dst.name)
		} else if err = copyFlat(src.flatPath(), dst.flatPath()); err == nil {
			err = dst.setCID(newCID())
		}
		if err != nil {
			return fileFault(src.name, err)
		}
	}
	return nil
}

func datastoreOf(name string) string {
	var p object.DatastorePath
	p.FromString(name)
	return p.Datastore
}
