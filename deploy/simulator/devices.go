// A VM's devices: keys, disks and their files, edits, networks.
package main

import (
	"crypto/rand"
	"fmt"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

type devices = []types.BaseVirtualDevice

func backing(d *types.VirtualDisk) *types.VirtualDiskFlatVer2BackingInfo {
	b, _ := d.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
	return b
}

// virtualDisks are the disks that have files; raw device mappings have none of their own.
func virtualDisks(l devices) (r []*types.VirtualDisk) {
	for _, d := range l {
		if x, ok := d.(*types.VirtualDisk); ok && backing(x) != nil {
			r = append(r, x)
		}
	}
	return r
}

// independent disks stand outside snapshots.
// vSphere API Reference, VirtualDiskMode: "independent_persistent: ... not affected by snapshots".
func independent(d *types.VirtualDisk) bool {
	return strings.HasPrefix(backing(d).DiskMode, "independent")
}

func writable(d *types.VirtualDisk) bool {
	return !strings.HasSuffix(backing(d).DiskMode, "nonpersistent")
}

func findKey(l devices, key int32) types.BaseVirtualDevice {
	for _, d := range l {
		if d.GetVirtualDevice().Key == key {
			return d
		}
	}
	return nil
}

// assignKeys gives new devices the keys that vSphere gives: 1000 for the first SCSI controller, 2000 for its first
// disk, 4000 for the first network card, ... Clients refer to devices of the same request by negative keys.
func assignKeys(l devices, changes []types.BaseVirtualDeviceConfigSpec) {
	taken := map[int32]bool{}
	for _, d := range l {
		taken[d.GetVirtualDevice().Key] = true
	}
	given := map[int32]int32{}
	pick := func(d *types.VirtualDevice, from int32) {
		for taken[from] {
			from++
		}
		taken[from] = true
		if d.Key != 0 {
			given[d.Key] = from
		}
		d.Key = from
	}
	adds := func(do func(types.BaseVirtualDevice, *types.VirtualDevice)) {
		for _, c := range changes {
			s := c.GetVirtualDeviceConfigSpec()
			if d := s.Device.GetVirtualDevice(); s.Operation == types.VirtualDeviceConfigSpecOperationAdd && d.Key <= 0 {
				do(s.Device, d)
			}
		}
	}
	adds(func(dev types.BaseVirtualDevice, d *types.VirtualDevice) {
		if c, ok := dev.(types.BaseVirtualController); ok {
			pick(d, controllerKey(dev)+c.GetVirtualController().BusNumber)
		}
	})
	for _, c := range changes {
		d := c.GetVirtualDeviceConfigSpec().Device.GetVirtualDevice()
		if k, ok := given[d.ControllerKey]; ok {
			d.ControllerKey = k
		}
	}
	adds(func(dev types.BaseVirtualDevice, d *types.VirtualDevice) { pick(d, deviceKey(dev)) })
}

func controllerKey(d types.BaseVirtualDevice) int32 {
	switch d.(type) {
	case types.BaseVirtualSCSIController:
		return 1000
	case types.BaseVirtualSATAController:
		return 15000
	case *types.VirtualNVMEController:
		return 31000
	case *types.VirtualUSBXHCIController:
		return 14000
	case *types.VirtualUSBController:
		return 7000
	}
	return 200
}

func deviceKey(dev types.BaseVirtualDevice) int32 {
	d := dev.GetVirtualDevice()
	unit := int32(0)
	if d.UnitNumber != nil {
		unit = *d.UnitNumber
	}
	if _, ok := dev.(types.BaseVirtualEthernetCard); ok {
		return 4000
	}
	switch c := d.ControllerKey; {
	case c >= 1000 && c < 1010:
		return 2000 + 16*(c-1000) + unit
	case c >= 15000 && c < 15010:
		return 16000 + 30*(c-15000) + unit
	case c >= 31000 && c < 31010:
		return 32000 + 30*(c-31000) + unit
	case c >= 200 && c < 202:
		return 3000 + 2*(c-200) + unit
	}
	return 13000
}

// assignMAC gives a card without an address one of vCenter's range 00:50:56:80:00:00 to bf:ff:ff
// (vSphere Networking, "VMware OUI Allocation").
func assignMAC(c *types.VirtualEthernetCard) {
	if c.MacAddress != "" {
		if c.AddressType == "" {
			c.AddressType = string(types.VirtualEthernetCardMacTypeManual)
		}
		return
	}
	var b [3]byte
	_, _ = rand.Read(b[:])
	c.MacAddress = fmt.Sprintf("00:50:56:%02x:%02x:%02x", 0x80|b[0]&0x3f, b[1], b[2])
	c.AddressType = string(types.VirtualEthernetCardMacTypeAssigned)
}

// edited is the device after an edit: what the client left out stays.
func edited(old, in types.BaseVirtualDevice) types.BaseVirtualDevice {
	o, n := old.GetVirtualDevice(), in.GetVirtualDevice()
	if disk, ok := old.(*types.VirtualDisk); ok {
		d := deepCopy(disk)
		if x, ok := in.(*types.VirtualDisk); ok {
			if size := capacity(x); size > 0 {
				d.CapacityInBytes, d.CapacityInKB = size, size/1024
			}
			if b := backing(x); b != nil && backing(d) != nil && b.DiskMode != "" {
				backing(d).DiskMode = b.DiskMode
			}
			if x.UnitNumber != nil && x.ControllerKey != 0 {
				d.UnitNumber, d.ControllerKey = x.UnitNumber, x.ControllerKey
			}
		}
		d.DeviceInfo.GetDescription().Summary = fmt.Sprintf("%d KB", d.CapacityInKB)
		return d
	}
	if n.Backing == nil {
		n.Backing = o.Backing
	}
	if n.Connectable == nil {
		n.Connectable = o.Connectable
	}
	if n.UnitNumber == nil {
		n.UnitNumber = o.UnitNumber
	}
	if n.ControllerKey == 0 {
		n.ControllerKey = o.ControllerKey
	}
	if n.DeviceInfo == nil {
		n.DeviceInfo = o.DeviceInfo
	}
	if c, ok := in.(types.BaseVirtualEthernetCard); ok {
		if was := old.(types.BaseVirtualEthernetCard).GetVirtualEthernetCard(); c.GetVirtualEthernetCard().MacAddress == "" {
			c.GetVirtualEthernetCard().MacAddress, c.GetVirtualEthernetCard().AddressType = was.MacAddress, was.AddressType
		}
	}
	return in
}

// capacity is what the client asks for: bytes where they are given and the two do not agree, as in vSphere 5.5 on.
// labelDisk names a new disk as vSphere does: "Hard disk" and the lowest number that no other disk of the VM has.
// vSphere API Reference, Description.label: what the client shows.
func labelDisk(l devices, d *types.VirtualDisk) {
	taken := map[string]bool{}
	for _, other := range l {
		if o, ok := other.(*types.VirtualDisk); ok && o.Key != d.Key && o.DeviceInfo != nil {
			taken[o.DeviceInfo.GetDescription().Label] = true
		}
	}
	label := ""
	for n := 1; label == "" || taken[label]; n++ {
		label = fmt.Sprintf("Hard disk %d", n)
	}
	d.DeviceInfo = &types.Description{Label: label, Summary: fmt.Sprintf("%d KB", d.CapacityInKB)}
}

func capacity(d *types.VirtualDisk) int64 {
	if d.CapacityInBytes > 0 && d.CapacityInBytes/1024 >= d.CapacityInKB {
		return d.CapacityInBytes
	}
	return d.CapacityInKB * 1024
}

// ensureFile makes the file of a new disk, or takes capacity and uuid from the file of an attached one.
func ensureFile(d *types.VirtualDisk, created bool) *refusal {
	b := backing(d)
	var p object.DatastorePath
	p.FromString(b.FileName)
	b.FileName = p.String()
	if ds := findDatastore(p.Datastore); ds != nil {
		b.Datastore = &ds.Self
	}
	if created {
		size := capacity(d)
		thin := b.ThinProvisioned != nil && *b.ThinProvisioned
		if !thin {
			if f := takeSpace(p.Datastore, b.FileName, size); f != nil {
				return f
			}
		}
		if _, err := newBase(b.FileName, size, b.Uuid, thin); err != nil {
			return fileFault(b.FileName, err)
		}
	}
	i, err := openImage(b.FileName)
	if err != nil {
		return fileFault(b.FileName, err)
	}
	if len(i.children()) > 0 && writable(d) {
		// VDDK guide, "Restoring a Virtual Machine and Disk" and "SAN Transport": on vVols and on vSAN a disk is read-only
		// while a snapshot stands on it. VMFS and NFS let it be written: whoever has to do that could not go elsewhere.
		return refuse(&types.FileFault{File: b.FileName}, "The file %s is read-only: a snapshot stands on it.", b.FileName)
	}
	info, err := readDescriptor(i.descriptorPath())
	if err != nil {
		return fileFault(b.FileName, err)
	}
	d.CapacityInBytes, d.CapacityInKB = info.size, info.size/1024
	b.ThinProvisioned = types.NewBool(info.thin)
	if b.DiskMode == "" {
		b.DiskMode = string(types.VirtualDiskModePersistent)
	}
	return nil
}

// grow extends the file of a disk. The caller has made sure that no snapshot stands on it.
func grow(d *types.VirtualDisk) *refusal {
	i, err := openImage(backing(d).FileName)
	if err != nil {
		return fileFault(backing(d).FileName, err)
	}
	info, err := readDescriptor(i.descriptorPath())
	if err != nil {
		return fileFault(i.name, err)
	}
	if info.size == d.CapacityInBytes {
		return nil
	}
	var p object.DatastorePath
	p.FromString(i.name)
	if !info.thin {
		if f := takeSpace(p.Datastore, i.name, d.CapacityInBytes-info.size); f != nil {
			return f
		}
	}
	if err := truncate(i.flatPath(), d.CapacityInBytes); err != nil {
		return fileFault(i.name, err)
	}
	info.size = d.CapacityInBytes
	if err := info.write(i.descriptorPath()); err != nil {
		return fileFault(i.name, err)
	}
	return nil
}

// showBackings writes file names of parents, uuid and content id into the disks of a VM or of a snapshot.
func (m *machine) showBackings(l devices, changeIDs map[int32]string) {
	for _, d := range virtualDisks(l) {
		b := backing(d)
		i, err := openImage(b.FileName)
		if err != nil {
			continue // the file was taken away behind our back; the device still says where it was
		}
		if id, ok := changeIDs[d.Key]; ok {
			b.ChangeId = id
		}
		b.Parent = nil
		for at := b; i != nil; i = i.parent {
			if info, err := readDescriptor(i.descriptorPath()); err == nil {
				at.Uuid, at.ContentId = info.uuid, info.contentID()
			}
			if i.parent != nil {
				at.Parent = &types.VirtualDiskFlatVer2BackingInfo{DiskMode: b.DiskMode, ThinProvisioned: b.ThinProvisioned}
				at.Parent.FileName, at.Parent.Datastore = i.parent.name, b.Datastore
				at = at.Parent
			}
		}
	}
}

// networkOf finds what a network card is connected to.
func networkOf(d types.BaseVirtualDevice) *types.ManagedObjectReference {
	switch b := d.GetVirtualDevice().Backing.(type) {
	case *types.VirtualEthernetCardNetworkBackingInfo:
		if e := simulator.Map.FindByName(b.DeviceName, datacenter().Network); e != nil {
			ref := e.Reference()
			return &ref
		}
	case *types.VirtualEthernetCardDistributedVirtualPortBackingInfo:
		ref := types.ManagedObjectReference{Type: "DistributedVirtualPortgroup", Value: b.Port.PortgroupKey}
		if _, ok := simulator.Map.Get(ref).(mo.Entity); ok {
			return &ref
		}
	}
	return nil
}

func (m *machine) showNetworks() {
	vm, seen := m.vm, map[types.ManagedObjectReference]bool{}
	vm.Network = nil
	nics := int32(0)
	var guestNICs []types.GuestNicInfo
	for _, d := range vm.Config.Hardware.Device {
		c, ok := d.(types.BaseVirtualEthernetCard)
		if !ok {
			continue
		}
		nics++
		guestNICs = append(guestNICs, m.guestNIC(c.GetVirtualEthernetCard()))
		ref := networkOf(d)
		if ref != nil && !seen[*ref] {
			seen[*ref] = true
			vm.Network = append(vm.Network, *ref)
		}
		if b, ok := c.GetVirtualEthernetCard().Backing.(*types.VirtualEthernetCardNetworkBackingInfo); ok {
			b.Network = ref
			if info := c.GetVirtualEthernetCard().DeviceInfo; info != nil {
				info.GetDescription().Summary = b.DeviceName
			}
		}
	}
	vm.Summary.Config.NumEthernetCards = nics
	vm.Guest.Net = guestNICs
}

// guestNIC is what the guest says about a card; an address set by a customisation stays.
func (m *machine) guestNIC(c *types.VirtualEthernetCard) types.GuestNicInfo {
	info := types.GuestNicInfo{DeviceConfigId: c.Key}
	for _, n := range m.vm.Guest.Net {
		if n.DeviceConfigId == c.Key {
			info = n
		}
	}
	info.MacAddress = c.MacAddress
	info.Connected = m.on() && (c.Connectable == nil || c.Connectable.Connected)
	if b, ok := c.Backing.(*types.VirtualEthernetCardNetworkBackingInfo); ok {
		info.Network = b.DeviceName
	}
	return info
}
