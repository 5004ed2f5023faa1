// Small methods of vCenter's managers that the stock simulator lacks or gets wrong.
package main

import (
	"os"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// denied are privileges that the session lacks (control endpoint).
var denied = map[string]bool{}

func hasPrivileges(c *call) (interface{}, *refusal) {
	q := c.body.(*types.HasPrivilegeOnEntities)
	r := &types.HasPrivilegeOnEntitiesResponse{}
	for _, e := range q.Entity {
		p := types.EntityPrivilege{Entity: e}
		for _, id := range q.PrivId {
			p.PrivAvailability = append(p.PrivAvailability, types.PrivilegeAvailability{PrivId: id, IsGranted: !denied[id]})
		}
		r.Returnval = append(r.Returnval, p)
	}
	return r, nil
}

func findAllByUUID(c *call) (interface{}, *refusal) {
	q := c.body.(*types.FindAllByUuid)
	r := &types.FindAllByUuidResponse{}
	for _, e := range sorted("VirtualMachine") {
		vm := e.(*simulator.VirtualMachine)
		id := vm.Config.Uuid
		if q.InstanceUuid != nil && *q.InstanceUuid {
			id = vm.Config.InstanceUuid
		}
		if q.VmSearch && strings.EqualFold(id, q.Uuid) {
			r.Returnval = append(r.Returnval, vm.Self)
		}
	}
	return r, nil
}

// searchDatastore lends the stock search the specification that it cannot do without and clients may leave out.
func searchDatastore(c *call) (res types.AnyType, f *refusal) {
	browser := simulator.Map.Get(c.this).(*simulator.HostDatastoreBrowser)
	complete := func(s *types.HostDatastoreBrowserSearchSpec) *types.HostDatastoreBrowserSearchSpec {
		if s == nil {
			s = &types.HostDatastoreBrowserSearchSpec{}
		}
		if len(s.MatchPattern) == 0 {
			s.MatchPattern = []string{"*"}
		}
		return s
	}
	simulator.Map.WithLock(browser, func() {
		switch q := c.body.(type) {
		case *types.SearchDatastore_Task:
			q.SearchSpec = complete(q.SearchSpec)
			res, f = stock(browser.SearchDatastoreTask(q))
		case *types.SearchDatastoreSubFolders_Task:
			q.SearchSpec = complete(q.SearchSpec)
			res, f = stock(browser.SearchDatastoreSubFoldersTask(q))
		}
	})
	return res, f
}

// notModelled refuses what the stock simulator would do without the bytes: a refusal is better than an empty disk.
func notModelled(c *call) (types.AnyType, *refusal) {
	return nil, refuse(&types.NotSupported{}, "%s is not modelled by this vCenter.", c.name)
}

func notModelledDirectly(c *call) (interface{}, *refusal) { return notModelled(c) }

// destroyFolder removes an empty folder; vCenter would destroy the VMs in it too, which nobody here should ask for.
func destroyFolder(c *call) (types.AnyType, *refusal) {
	folder := simulator.Map.Get(c.this).(*simulator.Folder)
	if len(folder.ChildEntity) > 0 {
		return nil, refuse(&types.NotSupported{}, "The folder '%s' is not empty: this vCenter destroys empty folders only.", folder.Name)
	}
	var f *refusal
	simulator.Map.WithLock(folder, func() {
		_, f = stock(folder.DestroyTask(c.ctx, &types.Destroy_Task{This: c.this}))
	})
	return nil, f
}

// setField keeps one value per field; an empty one is kept too, as vCenter keeps it.
func setField(c *call) (interface{}, *refusal) {
	q := c.body.(*types.SetField)
	known := false
	for _, f := range simulator.Map.CustomFieldsManager().Field {
		known = known || f.Key == q.Key
	}
	e, ok := simulator.Map.Get(q.Entity).(mo.Entity)
	if !known || !ok {
		return nil, refuse(&types.InvalidArgument{InvalidProperty: "key"}, "There is no custom field %d, or no object %s.", q.Key, q.Entity.Value)
	}
	simulator.Map.WithLock(e, func() {
		var values []types.BaseCustomFieldValue
		for _, v := range e.Entity().CustomValue {
			if v.GetCustomFieldValue().Key != q.Key {
				values = append(values, v)
			}
		}
		values = append(values, &types.CustomFieldStringValue{CustomFieldValue: types.CustomFieldValue{Key: q.Key}, Value: q.Value})
		e.Entity().CustomValue = values
		e.Entity().Value = values
	})
	return &types.SetFieldResponse{}, nil
}

func refreshDatastore(c *call) (interface{}, *refusal) {
	showSpace(simulator.Map.Get(c.this).(*simulator.Datastore).Name)
	return &types.RefreshDatastoreResponse{}, nil
}

func diskPath(name string) (string, *refusal) {
	var p object.DatastorePath
	if !p.FromString(name) || world.roots[p.Datastore] == "" || !strings.HasSuffix(p.Path, ".vmdk") {
		return "", refuse(&types.InvalidDatastorePath{DatastorePath: name}, "'%s' is not the path of a disk on a datastore of this vCenter.", name)
	}
	return p.String(), nil
}

func createVirtualDisk(c *call) (types.AnyType, *refusal) {
	q := c.body.(*types.CreateVirtualDisk_Task)
	name, f := diskPath(q.Name)
	if f != nil {
		return nil, f
	}
	if _, err := os.Stat(filePath(name)); err == nil {
		return nil, fileFault(name, os.ErrExist)
	}
	spec, ok := q.Spec.(types.BaseFileBackedVirtualDiskSpec)
	if !ok {
		return nil, refuse(&types.InvalidArgument{InvalidProperty: "spec"}, "A new disk needs a capacity.")
	}
	thin := q.Spec.GetVirtualDiskSpec().DiskType == string(types.VirtualDiskTypeThin)
	size := spec.GetFileBackedVirtualDiskSpec().CapacityKb * 1024
	if !thin {
		if f := takeSpace(datastoreOf(name), name, size); f != nil {
			return nil, f
		}
	}
	if _, err := newBase(name, size, "", thin); err != nil {
		return nil, fileFault(name, err)
	}
	return name, nil
}

func deleteVirtualDisk(c *call) (types.AnyType, *refusal) {
	name, f := diskPath(c.body.(*types.DeleteVirtualDisk_Task).Name)
	if f != nil {
		return nil, f
	}
	i, err := openImage(name)
	if err != nil {
		return nil, fileFault(name, err)
	}
	if i.users() > 0 || len(i.children()) > 0 {
		return nil, refuse(&types.FileLocked{FileFault: types.FileFault{File: name}}, "Unable to access file %s since it is in use.", name)
	}
	deleteDisk(name)
	return nil, nil
}

func queryDiskUUID(c *call) (interface{}, *refusal) {
	name, f := diskPath(c.body.(*types.QueryVirtualDiskUuid).Name)
	if f != nil {
		return nil, f
	}
	d, err := readDescriptor(filePath(name))
	if err != nil {
		return nil, fileFault(name, err)
	}
	return &types.QueryVirtualDiskUuidResponse{Returnval: d.uuid}, nil
}
