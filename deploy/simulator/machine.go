// What we keep about one VM beside the stock simulator's object, and how that object is changed: on a copy.
package main

import (
	"fmt"
	"reflect"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// machine is one VM. All fields are guarded by world's lock.
type machine struct {
	vm         *simulator.VirtualMachine
	snaps      []*snapshot // oldest first
	current    *snapshot
	lastSnapID int32
	trackers   map[int32]*tracker // device key -> changed block tracking of that disk
	guest      guest
	lockFiles  []string
	dirty      bool // the files that describe it are older than it
	leaveDelta int  // so many snapshot removals still leave their delta behind (control endpoint)
}

// snapshot is one node of a VM's tree. Its config is the truth; the registry's object is made from it.
type snapshot struct {
	ref               types.ManagedObjectReference
	name, description string
	id                int32
	created           time.Time
	state             types.VirtualMachinePowerState
	quiesced          bool
	parent            *snapshot
	config            *types.VirtualMachineConfigInfo
	vmsn              string
}

func newMachine(vm *simulator.VirtualMachine) *machine {
	m := &machine{vm: vm, trackers: map[int32]*tracker{}, guest: defaultGuest()}
	world.vms[vm.Self] = m
	return m
}

func machineByName(name string) *machine {
	for _, m := range world.vms {
		if m.vm.Name == name || m.vm.Self.Value == name {
			return m
		}
	}
	return nil
}

func (m *machine) on() bool {
	return m.vm.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn
}

// change runs f on a copy of the VM's properties while its registry lock is held: readers that are still encoding
// see the old ones, and a refusal puts all of them back.
func (m *machine) change(f func() *refusal) *refusal {
	var fault *refusal
	simulator.Map.WithLock(m.vm, func() {
		old := m.vm.VirtualMachine
		vm := &m.vm.VirtualMachine
		vm.Config, vm.Guest, vm.Storage = deepCopy(old.Config), deepCopy(old.Guest), deepCopy(old.Storage)
		vm.Layout, vm.LayoutEx = deepCopy(old.Layout), deepCopy(old.LayoutEx)
		vm.Summary.Guest, vm.Summary.Storage = deepCopy(old.Summary.Guest), deepCopy(old.Summary.Storage)
		vm.Network, vm.Datastore = deepCopy(old.Network), deepCopy(old.Datastore)
		if fault = f(); fault != nil {
			m.vm.VirtualMachine = old
		}
	})
	return fault
}

// settle makes everything that follows from devices, files and snapshots agree again. Call it inside change.
func (m *machine) settle() {
	vm := m.vm
	m.dirty = true
	m.showBackings(vm.Config.Hardware.Device, nil)
	m.showNetworks()
	vm.Config.ChangeVersion = nextVersion()
	vm.Config.Modified = time.Now().UTC()
	vm.Capability.ChangeTrackingSupported = types.NewBool(true)
	if vm.GuestHeartbeatStatus == "" { // an empty enum is an error for clients that read it
		vm.GuestHeartbeatStatus = types.ManagedEntityStatusGray
	}
	vm.Runtime.ConsolidationNeeded = types.NewBool(m.unconsolidated())
	host, power, boot := vm.Runtime.Host, vm.Runtime.PowerState, vm.Runtime.BootTime
	vm.Summary.Runtime.Host, vm.Summary.Runtime.PowerState, vm.Summary.Runtime.BootTime = host, power, boot
	vm.Summary.Runtime.ConsolidationNeeded = vm.Runtime.ConsolidationNeeded
	vm.Summary.Runtime.ConnectionState = vm.Runtime.ConnectionState
	vm.Summary.Config.Annotation = vm.Config.Annotation
	vm.Summary.Config.Template = vm.Config.Template
	vm.Summary.Config.Uuid, vm.Summary.Config.InstanceUuid = vm.Config.Uuid, vm.Config.InstanceUuid
	vm.Summary.Config.ManagedBy = vm.Config.ManagedBy
	vm.Summary.Config.NumCpu = vm.Config.Hardware.NumCPU
	vm.Summary.Config.MemorySizeMB = vm.Config.Hardware.MemoryMB
	vm.Summary.Config.Name, vm.Summary.Config.VmPathName = vm.Config.Name, vm.Config.Files.VmPathName
	vm.Summary.Config.NumVirtualDisks = int32(len(virtualDisks(vm.Config.Hardware.Device)))
	m.publishSnapshots()
	m.layOut()
	// The values are set already: this call is for clients that wait for updates of these properties.
	simulator.Map.Update(vm, []types.PropertyChange{
		{Name: "config.changeVersion", Val: vm.Config.ChangeVersion},
		{Name: "config.hardware.device", Val: vm.Config.Hardware.Device},
		{Name: "runtime.powerState", Val: vm.Runtime.PowerState},
	})
}

var (
	versionLock sync.Mutex
	lastVersion time.Time
)

// nextVersion is opaque to clients and never given twice.
// vSphere API Reference, VirtualMachineConfigInfo.changeVersion: "a unique identifier for a given version of the configuration".
func nextVersion() string {
	versionLock.Lock()
	defer versionLock.Unlock()
	now := time.Now().UTC().Truncate(time.Microsecond)
	if !now.After(lastVersion) {
		now = lastVersion.Add(time.Microsecond)
	}
	lastVersion = now
	return now.Format("2006-01-02T15:04:05.000000Z")
}

// deepCopy copies whatever the vim25 types are made of: structs, pointers, slices, interfaces, maps.
func deepCopy[T any](v T) T {
	return copyValue(reflect.ValueOf(&v).Elem()).Interface().(T)
}

func copyValue(v reflect.Value) reflect.Value {
	n := reflect.New(v.Type()).Elem()
	switch v.Kind() {
	case reflect.Ptr:
		if !v.IsNil() {
			n.Set(reflect.New(v.Type().Elem()))
			n.Elem().Set(copyValue(v.Elem()))
		}
	case reflect.Interface:
		if !v.IsNil() {
			n.Set(copyValue(v.Elem()))
		}
	case reflect.Slice:
		if !v.IsNil() {
			n.Set(reflect.MakeSlice(v.Type(), v.Len(), v.Len()))
			for i := 0; i < v.Len(); i++ {
				n.Index(i).Set(copyValue(v.Index(i)))
			}
		}
	case reflect.Struct:
		n.Set(v)
		if v.Type() == reflect.TypeOf(time.Time{}) {
			return n
		}
		for i := 0; i < v.NumField(); i++ {
			if n.Field(i).CanSet() {
				n.Field(i).Set(copyValue(v.Field(i)))
			}
		}
	default:
		n.Set(v)
	}
	return n
}

// refusal is a fault with its sentence.
type refusal struct {
	fault   types.BaseMethodFault
	message string
}

func refuse(fault types.BaseMethodFault, format string, args ...interface{}) *refusal {
	return &refusal{fault, fmt.Sprintf(format, args...)}
}
