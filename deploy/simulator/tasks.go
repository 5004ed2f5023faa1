// Calls and tasks: what a handler gets, how a task runs, also when it shall be slow.
package main

import (
	"context"
	"reflect"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// call is one request that we answer ourselves.
type call struct {
	name string
	this types.ManagedObjectReference
	body types.AnyType
	ctx  *simulator.Context
	m    *machine
	snap *snapshot
}

// task methods answer with a task, direct ones with a response or a fault. The description ids are vCenter's.
var (
	taskMethods = map[string]struct {
		id  string
		run func(*call) (types.AnyType, *refusal)
	}{
		"Folder.CreateVM_Task":                                {"Folder.createVm", createVM},
		"Folder.RegisterVM_Task":                              {"Folder.registerVm", registerVM},
		"VirtualMachine.ReconfigVM_Task":                      {"VirtualMachine.reconfigure", reconfigure},
		"VirtualMachine.Rename_Task":                          {"VirtualMachine.rename", rename},
		"VirtualMachine.CloneVM_Task":                         {"VirtualMachine.clone", cloneVM},
		"VirtualMachine.RelocateVM_Task":                      {"VirtualMachine.relocate", relocate},
		"VirtualMachine.CustomizeVM_Task":                     {"VirtualMachine.customize", customize},
		"VirtualMachine.Destroy_Task":                         {"VirtualMachine.destroy", destroyVM},
		"VirtualMachine.PowerOnVM_Task":                       {"VirtualMachine.powerOn", powerOn},
		"VirtualMachine.PowerOffVM_Task":                      {"VirtualMachine.powerOff", powerOff},
		"VirtualMachine.SuspendVM_Task":                       {"VirtualMachine.suspend", suspend},
		"VirtualMachine.ResetVM_Task":                         {"VirtualMachine.reset", reset},
		"VirtualMachine.CreateSnapshot_Task":                  {"VirtualMachine.createSnapshot", createSnapshot},
		"VirtualMachine.CreateSnapshotEx_Task":                {"VirtualMachine.createSnapshotEx", createSnapshot},
		"VirtualMachine.RemoveAllSnapshots_Task":              {"VirtualMachine.removeAllSnapshots", removeAllSnapshots},
		"VirtualMachine.RevertToCurrentSnapshot_Task":         {"VirtualMachine.revertToCurrentSnapshot", revertToCurrent},
		"VirtualMachine.ConsolidateVMDisks_Task":              {"VirtualMachine.consolidateDisks", consolidateDisks},
		"VirtualMachineSnapshot.RemoveSnapshot_Task":          {"vm.Snapshot.remove", removeSnapshot},
		"VirtualMachineSnapshot.RevertToSnapshot_Task":        {"vm.Snapshot.revert", revertToSnapshot},
		"HostDatastoreBrowser.SearchDatastore_Task":           {"HostDatastoreBrowser.searchDatastore", searchDatastore},
		"HostDatastoreBrowser.SearchDatastoreSubFolders_Task": {"HostDatastoreBrowser.searchDatastoreSubFolders", searchDatastore},
		"Folder.Destroy_Task":                                 {"Folder.destroy", destroyFolder},
		"VirtualDiskManager.CopyVirtualDisk_Task":             {"VirtualDiskManager.copyVirtualDisk", notModelled},
		"VirtualDiskManager.MoveVirtualDisk_Task":             {"VirtualDiskManager.moveVirtualDisk", notModelled},
		"VirtualDiskManager.ExtendVirtualDisk_Task":           {"VirtualDiskManager.extendVirtualDisk", notModelled},
		"VirtualDiskManager.CreateVirtualDisk_Task":           {"VirtualDiskManager.createVirtualDisk", createVirtualDisk},
		"VirtualDiskManager.DeleteVirtualDisk_Task":           {"VirtualDiskManager.deleteVirtualDisk", deleteVirtualDisk},
	}
	directMethods = map[string]func(*call) (interface{}, *refusal){
		"VirtualMachine.QueryChangedDiskAreas":        queryChanges,
		"VirtualMachine.ShutdownGuest":                shutdownGuest,
		"VirtualMachine.RebootGuest":                  rebootGuest,
		"VirtualMachine.MarkAsTemplate":               markAsTemplate,
		"VirtualMachine.MarkAsVirtualMachine":         markAsVM,
		"VirtualMachine.UnregisterVM":                 unregisterVM,
		"VirtualMachine.RefreshStorageInfo":           refreshStorage,
		"VirtualMachineSnapshot.RenameSnapshot":       renameSnapshot,
		"VirtualDiskManager.QueryVirtualDiskUuid":     queryDiskUUID,
		"AuthorizationManager.HasPrivilegeOnEntities": hasPrivileges,
		"ResourcePool.ImportVApp":                     notModelledDirectly,
		"SearchIndex.FindAllByUuid":                   findAllByUUID,
		"CustomFieldsManager.SetField":                setField,
		"Datastore.RefreshDatastore":                  refreshDatastore,
	}
)

// resolve finds what the call is about, and says when it is gone. It runs under world's lock, at execution time:
// a slow task may find that its VM has been removed meanwhile.
func (c *call) resolve() *refusal {
	obj := simulator.Map.Get(c.this)
	if obj == nil {
		return refuse(&types.ManagedObjectNotFound{Obj: c.this}, "The object '%s:%s' has already been deleted or has not been completely created.", c.this.Type, c.this.Value)
	}
	switch x := obj.(type) {
	case *simulator.VirtualMachine:
		c.m = world.vms[x.Self]
	case *simulator.VirtualMachineSnapshot:
		c.m = world.vms[x.Vm]
		if c.m != nil {
			c.snap = c.m.snapshotOf(x.Self)
		}
	}
	return nil
}

func newContext(caller types.ManagedObjectReference) *simulator.Context {
	s := &simulator.Session{Registry: simulator.NewRegistry()}
	s.UserName = "vcenter-sim"
	return &simulator.Context{Context: context.Background(), Session: s, Caller: &caller, Map: simulator.Map}
}

// locked runs a handler as the only change of this vCenter.
func (c *call) locked(run func(*call) (types.AnyType, *refusal)) (types.AnyType, *refusal) {
	world.Lock()
	defer world.Unlock()
	if f := c.resolve(); f != nil {
		return nil, f
	}
	res, f := run(c)
	saveState()
	return res, f
}

// runTask makes the task; with slow it stays running for that time and the effect comes at the end.
func (c *call) runTask(id string, run func(*call) (types.AnyType, *refusal), slow time.Duration) types.ManagedObjectReference {
	t := newTask(c, id)
	work := func() {
		res, f := c.locked(run)
		finish(t, res, f)
	}
	if slow == 0 {
		work()
		return t.Self
	}
	setTask(t, types.PropertyChange{Name: "info.progress", Val: int32(1)})
	go func() {
		for part := int32(1); part <= 4; part++ {
			time.Sleep(slow / 4)
			setTask(t, types.PropertyChange{Name: "info.progress", Val: part * 24})
		}
		work()
	}()
	return t.Self
}

func newTask(c *call, id string) *simulator.Task {
	t := simulator.CreateTask(c.this, c.name, nil)
	entity := c.this
	if c.this.Type == "VirtualMachineSnapshot" {
		if s, ok := simulator.Map.Get(c.this).(*simulator.VirtualMachineSnapshot); ok {
			entity = s.Vm
		}
	}
	now := time.Now().UTC()
	simulator.Map.WithLock(t, func() {
		t.Info.DescriptionId, t.Info.Name = id, c.name
		t.Info.Entity, t.Info.EntityName = nil, ""
		if e, ok := simulator.Map.Get(entity).(mo.Entity); ok { // clients insist that it is a managed entity
			t.Info.Entity, t.Info.EntityName = &entity, e.Entity().Name
			remember(e, t.Self)
		}
		t.Info.Reason = &types.TaskReasonUser{UserName: "user"}
		t.Info.StartTime = &now
		t.Info.State = types.TaskInfoStateRunning
	})
	return t
}

// remember lists the task with its entity, as vSphere does for some ten minutes; ours keeps the last ten.
func remember(e mo.Entity, task types.ManagedObjectReference) {
	simulator.Map.WithLock(e, func() {
		recent := append([]types.ManagedObjectReference{}, e.Entity().RecentTask...)
		if len(recent) >= 10 {
			recent = recent[1:]
		}
		e.Entity().RecentTask = append(recent, task)
	})
}

func setTask(t *simulator.Task, changes ...types.PropertyChange) {
	simulator.Map.WithLock(t, func() { simulator.Map.Update(t, changes) })
}

func finish(t *simulator.Task, res types.AnyType, f *refusal) {
	changes := []types.PropertyChange{{Name: "info.completeTime", Val: time.Now().UTC()}}
	if f != nil {
		changes = append(changes, types.PropertyChange{Name: "info.error", Val: types.LocalizedMethodFault{Fault: f.fault, LocalizedMessage: f.message}},
			types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateError})
	} else {
		if res != nil {
			changes = append(changes, types.PropertyChange{Name: "info.result", Val: res})
		}
		changes = append(changes, types.PropertyChange{Name: "info.progress", Val: int32(100)},
			types.PropertyChange{Name: "info.state", Val: types.TaskInfoStateSuccess})
	}
	setTask(t, changes...)
}

// stock takes the outcome of a method of the stock simulator, whose tasks have ended when it returns, and drops its
// task: the client sees ours.
func stock(res soap.HasFault) (types.AnyType, *refusal) {
	if f := res.Fault(); f != nil {
		fault, _ := f.VimFault().(types.BaseMethodFault)
		return nil, refuse(fault, "%s", sentence(fault, f.String))
	}
	ref := reflect.ValueOf(res).Elem().FieldByName("Res").Elem().FieldByName("Returnval").Interface().(types.ManagedObjectReference)
	t := simulator.Map.Get(ref).(*simulator.Task)
	forget(ref)
	if e := t.Info.Error; e != nil {
		return nil, refuse(e.Fault, "%s", sentence(e.Fault, ""))
	}
	return t.Info.Result, nil
}

func sentence(f types.BaseMethodFault, text string) string {
	if text != "" {
		return text
	}
	kind := reflect.TypeOf(f).Elem().Name()
	if x, ok := f.(*types.InvalidArgument); ok {
		return "A specified parameter was not correct: " + x.InvalidProperty
	}
	if x, ok := f.(types.BaseInvalidVmConfig); ok {
		return kind + ": " + x.GetInvalidVmConfig().Property
	}
	if x, ok := f.(types.BaseFileFault); ok {
		return kind + ": " + x.GetFileFault().File
	}
	return strings.TrimSuffix(kind, "Fault") + " (refused by vCenter)."
}

func forget(ref types.ManagedObjectReference) {
	tm, ok := simulator.Map.Get(*simulator.Map.Get(types.ManagedObjectReference{Type: "ServiceInstance", Value: "ServiceInstance"}).(*simulator.ServiceInstance).Content.TaskManager).(*simulator.TaskManager)
	if ok {
		tm.Lock()
		var rest []types.ManagedObjectReference
		for _, r := range tm.RecentTask {
			if r != ref {
				rest = append(rest, r)
			}
		}
		simulator.Map.Update(tm, []types.PropertyChange{{Name: "recentTask", Val: rest}})
		tm.Unlock()
	}
	simulator.Map.Remove(ref)
}
