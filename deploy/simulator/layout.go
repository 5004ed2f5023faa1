// Which files a VM has: layoutEx, storage, and what the disks use.
package main

import (
	"os"
	"path"
	"sort"
	"strings"
	"syscall"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
)

var fileTypes = map[string]types.VirtualMachineFileLayoutExFileType{
	".vmx": types.VirtualMachineFileLayoutExFileTypeConfig, ".vmxf": types.VirtualMachineFileLayoutExFileTypeExtendedConfig,
	".nvram": types.VirtualMachineFileLayoutExFileTypeNvram, ".log": types.VirtualMachineFileLayoutExFileTypeLog,
	".vmsn": types.VirtualMachineFileLayoutExFileTypeSnapshotData, ".vmsd": types.VirtualMachineFileLayoutExFileTypeSnapshotList,
}

// layOut lists the files of the VM's folder and of its disks' chains. Call it inside change.
func (m *machine) layOut() {
	keys := map[string]int32{}
	ex := &types.VirtualMachineFileLayoutEx{Timestamp: time.Now().UTC()}
	var committed int64
	add := func(name, kind string) int32 {
		if k, ok := keys[name]; ok {
			return k
		}
		st, err := os.Stat(filePath(name))
		if err != nil {
			return -1
		}
		used := st.Size()
		if s, ok := st.Sys().(*syscall.Stat_t); ok && kind == string(types.VirtualMachineFileLayoutExFileTypeDiskExtent) {
			used = s.Blocks * 512 // a thin disk's size is what it uses (API Reference, FileInfo.size)
		}
		k := int32(len(ex.File))
		keys[name] = k
		committed += used
		ex.File = append(ex.File, types.VirtualMachineFileLayoutExFileInfo{
			Key: k, Name: name, Type: kind, Size: used, UniqueSize: used, Accessible: types.NewBool(true),
		})
		return k
	}
	var p object.DatastorePath
	p.FromString(m.vm.Config.Files.VmPathName)
	folder := path.Dir(p.Path)
	if l, err := os.ReadDir(path.Dir(filePath(p.String()))); err == nil {
		sort.Slice(l, func(i, j int) bool { return l[i].Name() < l[j].Name() })
		for _, e := range l {
			if kind := fileTypes[path.Ext(e.Name())]; kind != "" {
				p.Path = path.Join(folder, e.Name())
				add(p.String(), string(kind))
			}
		}
	}
	chain := func(l devices) (r []types.VirtualMachineFileLayoutExDiskLayout) {
		for _, d := range virtualDisks(l) {
			disk := types.VirtualMachineFileLayoutExDiskLayout{Key: d.Key}
			var units []types.VirtualMachineFileLayoutExDiskUnit
			for i := world.images[backing(d).FileName]; i != nil; i = i.parent {
				units = append([]types.VirtualMachineFileLayoutExDiskUnit{{FileKey: []int32{
					add(i.name, string(types.VirtualMachineFileLayoutExFileTypeDiskDescriptor)),
					add(strings.TrimSuffix(i.name, ".vmdk")+"-flat.vmdk", string(types.VirtualMachineFileLayoutExFileTypeDiskExtent)),
				}}}, units...) // the base first, as in the API
			}
			disk.Chain = units
			r = append(r, disk)
		}
		return r
	}
	ex.Disk = chain(m.vm.Config.Hardware.Device)
	for _, s := range m.snaps {
		ex.Snapshot = append(ex.Snapshot, types.VirtualMachineFileLayoutExSnapshotLayout{
			Key: s.ref, DataKey: add(s.vmsn, string(types.VirtualMachineFileLayoutExFileTypeSnapshotData)), MemoryKey: -1,
			Disk: chain(s.config.Hardware.Device),
		})
	}
	vm := m.vm
	vm.LayoutEx = ex
	vm.Summary.Storage = &types.VirtualMachineStorageSummary{Committed: committed, Unshared: committed, Timestamp: ex.Timestamp}
	vm.Datastore = nil
	seen := map[string]bool{}
	for _, f := range ex.File {
		if name := datastoreOf(f.Name); !seen[name] {
			seen[name] = true
			if ds := findDatastore(name); ds != nil {
				vm.Datastore = append(vm.Datastore, ds.Self)
			}
		}
	}
}

func refreshStorage(c *call) (interface{}, *refusal) {
	c.m.change(func() *refusal {
		c.m.layOut()
		return nil
	})
	return &types.RefreshStorageInfoResponse{}, nil
}
