// The inventory at start: one datacenter without VMs, clusters with hosts, datastores that are folders, networks.
package main

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/simulator"
	_ "github.com/vmware/govmomi/vapi/simulator" // tags and the /rest session
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// world is what the stock simulator does not keep. Its lock is held by whoever changes something: one change at a
// time in one vCenter. Readers do not take it: they take the stock registry's lock of the object they read.
var world = struct {
	sync.Mutex
	vms    map[types.ManagedObjectReference]*machine
	images map[string]*image
	roots  map[string]string // datastore name -> folder
	space  map[string]int64  // datastore name -> free bytes, where the control endpoint has set them
}{
	vms:    map[types.ManagedObjectReference]*machine{},
	images: map[string]*image{},
	roots:  map[string]string{},
	space:  map[string]int64{},
}

func simulatorAbout() *types.AboutInfo {
	return &simulator.Map.Get(vim25.ServiceInstance).(*simulator.ServiceInstance).Content.About
}

func inventory(o options) (*simulator.Service, error) {
	m := simulator.VPX()
	m.Datacenter, m.Cluster, m.ClusterHost = 1, o.clusters, o.hosts
	m.Host, m.Machine, m.Datastore, m.Portgroup = 0, 0, 0, 0
	if err := m.Create(); err != nil {
		return nil, err
	}
	about := simulatorAbout()
	about.InstanceUuid = o.uuid
	if o.uuid == "" {
		about.InstanceUuid = uuid.NewSHA1(uuid.NameSpaceDNS, []byte(o.name)).String()
	}
	dc := datacenter()
	simulator.Map.Update(dc, []types.PropertyChange{{Name: "name", Val: o.dc}})
	for i, e := range sorted("ClusterComputeResource") {
		c := e.(*simulator.ClusterComputeResource)
		simulator.Map.Update(c, []types.PropertyChange{{Name: "name", Val: fmt.Sprintf("cluster%d", i+1)}})
	}
	for i, e := range sorted("HostSystem") {
		h := e.(*simulator.HostSystem)
		h.Name = fmt.Sprintf("esx%d.%s.example", i+1, o.name)
		h.Summary.Config.Name = h.Name
	}
	for i, name := range strings.Split(o.networks, ",") {
		addNetwork(dc, name, i == 0)
	}
	for i, name := range strings.Split(o.datastores, ",") {
		if err := addDatastore(dc, i, name, filepath.Join(o.dir, name)); err != nil {
			return nil, err
		}
	}
	s := m.Service
	login := strings.SplitN(o.user, ":", 2)
	s.Listen = &url.URL{Host: "127.0.0.1:0", User: url.UserPassword(login[0], login[1])}
	s.RegisterEndpoints = true
	// Only the mux of this inner server is used: it must not stay reachable past our refusals.
	s.NewServer().Close()
	return s, nil
}

func datacenter() *simulator.Datacenter {
	return simulator.Map.Any("Datacenter").(*simulator.Datacenter)
}

// sorted gives the objects of a kind in the order in which they were made.
func sorted(kind string) []mo.Entity {
	all := simulator.Map.All(kind)
	for i := range all {
		for j := i; j > 0 && number(all[j].Reference()) < number(all[j-1].Reference()); j-- {
			all[j], all[j-1] = all[j-1], all[j]
		}
	}
	return all
}

func addNetwork(dc *simulator.Datacenter, name string, first bool) {
	net, _ := simulator.Map.Get(dc.Network[0]).(*mo.Network)
	if !first {
		net = &mo.Network{}
		simulator.Map.PutEntity(simulator.Map.Get(dc.NetworkFolder).(mo.Entity), net)
		folder := simulator.Map.Get(dc.NetworkFolder).(*simulator.Folder)
		folder.ChildEntity = append(folder.ChildEntity, net.Self)
		dc.Network = append(dc.Network, net.Self)
		for _, e := range simulator.Map.All("ClusterComputeResource") {
			c := e.(*simulator.ClusterComputeResource)
			c.Network = append(c.Network[:len(c.Network):len(c.Network)], net.Self)
		}
		for _, e := range simulator.Map.All("HostSystem") {
			h := e.(*simulator.HostSystem)
			h.Network = append(h.Network[:len(h.Network):len(h.Network)], net.Self)
		}
	}
	net.Name = name
	net.Entity().Name = name
	net.Summary = &types.NetworkSummary{Network: &net.Self, Name: name, Accessible: true}
}

// addDatastore makes an NFS datastore on all hosts, whose info.url is the folder itself: a file carrier's mount.
func addDatastore(dc *simulator.Datacenter, i int, name, dir string) error {
	if err := os.MkdirAll(dir, 0700); err != nil {
		return err
	}
	world.roots[name] = dir
	now := time.Now()
	ds := &simulator.Datastore{}
	ds.Self = types.ManagedObjectReference{Type: "Datastore", Value: fmt.Sprintf("datastore-%d", 1001+i)}
	ds.Name = name
	ds.Info = &types.NasDatastoreInfo{
		DatastoreInfo: types.DatastoreInfo{Name: name, Url: dir, Timestamp: &now},
		Nas: &types.HostNasVolume{
			HostFileSystemVolume: types.HostFileSystemVolume{Type: "NFS", Name: name},
			RemoteHost:           "127.0.0.1", RemotePath: dir,
		},
	}
	ds.Summary = types.DatastoreSummary{
		Datastore: &ds.Self, Name: name, Url: dir, Accessible: true, Type: "NFS",
		MultipleHostAccess: types.NewBool(true),
		MaintenanceMode:    string(types.DatastoreSummaryMaintenanceModeStateNormal),
	}
	ds.Capability = types.DatastoreCapability{
		DirectoryHierarchySupported: true, PerFileThinProvisioningSupported: true,
		TopLevelDirectoryCreateSupported: types.NewBool(true), NativeSnapshotSupported: types.NewBool(false),
		StorageIORMSupported: types.NewBool(true), SeSparseSupported: types.NewBool(true),
	}
	browser := &simulator.HostDatastoreBrowser{}
	browser.Datastore = []types.ManagedObjectReference{ds.Self}
	ds.Browser = simulator.Map.Put(browser).Reference()
	for _, e := range sorted("HostSystem") {
		h := e.(*simulator.HostSystem)
		ds.Host = append(ds.Host, types.DatastoreHostMount{Key: h.Self, MountInfo: types.HostMountInfo{
			Path: dir, AccessMode: string(types.HostMountModeReadWrite),
			Mounted: types.NewBool(true), Accessible: types.NewBool(true),
		}})
		h.Datastore = append(h.Datastore[:len(h.Datastore):len(h.Datastore)], ds.Self)
		if s, ok := simulator.Map.Get(*h.ConfigManager.DatastoreSystem).(*simulator.HostDatastoreSystem); ok {
			s.Datastore = h.Datastore
		}
	}
	for _, e := range simulator.Map.All("ClusterComputeResource") {
		c := e.(*simulator.ClusterComputeResource)
		c.Datastore = append(c.Datastore, ds.Self)
	}
	folder := simulator.Map.Get(dc.DatastoreFolder).(*simulator.Folder)
	folder.ChildEntity = append(folder.ChildEntity, ds.Self)
	simulator.Map.PutEntity(folder, ds)
	dc.Datastore = append(dc.Datastore, ds.Self)
	showSpace(name)
	return nil
}

func findDatastore(name string) *simulator.Datastore {
	for _, e := range simulator.Map.All("Datastore") {
		if ds, ok := e.(*simulator.Datastore); ok && ds.Name == name {
			return ds
		}
	}
	return nil
}

// takeSpace books a thick disk where the control endpoint has limited the datastore, or refuses it.
// vSphere API Reference, NoDiskSpace: "thrown when an operation fails because the datastore is out of space".
func takeSpace(name, file string, bytes int64) *refusal {
	free, limited := world.space[name]
	if limited && bytes > free {
		return refuse(&types.NoDiskSpace{FileFault: types.FileFault{File: file}, Datastore: name},
			"Insufficient disk space on datastore '%s': %d bytes needed, %d free.", name, bytes, free)
	}
	if limited {
		world.space[name] = free - bytes
	}
	showSpace(name)
	return nil
}

func giveSpace(name string, bytes int64) {
	if free, limited := world.space[name]; limited {
		world.space[name] = free + bytes
	}
	showSpace(name)
}

// showSpace writes capacity and free space where a client reads them.
func showSpace(name string) {
	ds := findDatastore(name)
	if ds == nil {
		return
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(world.roots[name], &fs); err != nil {
		return
	}
	free := int64(fs.Bavail) * fs.Bsize
	if limit, limited := world.space[name]; limited {
		free = limit
	}
	simulator.Map.WithLock(ds, func() {
		ds.Summary.Capacity = int64(fs.Blocks) * fs.Bsize
		ds.Summary.FreeSpace = free
		info := ds.Info.GetDatastoreInfo()
		info.FreeSpace, info.MaxFileSize = free, 62<<40
	})
}

// spaceBefore lets a refused request give back what its first disks had taken.
type spaceBefore map[string]int64

func saveSpace() spaceBefore {
	s := spaceBefore{}
	for name, free := range world.space {
		s[name] = free
	}
	return s
}

func (s spaceBefore) restore() {
	for name, free := range s {
		world.space[name] = free
		showSpace(name)
	}
}
