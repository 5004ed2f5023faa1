// Changed block tracking: which areas changed between two snapshots, with the habits of the real thing.
package main

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"sort"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/vim25/types"
)

const grain = 64 << 10 // Virtual Disk Development Kit Programming Guide, "Changed Block Tracking": areas of at least 64 KiB

var (
	seed     = maphash.MakeSeed()
	maxAreas = 2000
	cbtOver  = 10
)

// tracker is the change tracking of one disk since it became active; a reset makes a new one.
type tracker struct {
	generation string           // the first half of a changeId
	seq        int              // the second half: counts snapshots
	last       map[int64]uint64 // block -> hash of its content at the snapshot seq; blocks of zeroes are left out
	changed    [][]int64        // changed[n]: blocks that changed between snapshot n and n+1
	touched    map[int64]bool   // blocks written since snapshot seq, also with the bytes that were there
	hide       []hidden
}

// hidden is a range that the next answers do not report (control endpoint): a tracking that lost a write.
type hidden struct {
	offset, length int64
	answers        int
}

func newTracker() *tracker {
	u := uuid.New()
	return &tracker{generation: fmt.Sprintf("% x-% x", u[:8], u[8:]), touched: map[int64]bool{}}
}

// activateTracking is called at the end of each stun-unstun cycle: power-on, resume, snapshot created, removed, reverted.
// API Reference, VirtualMachineConfigSpec.changeTrackingEnabled: that is when the setting takes effect.
func (m *machine) activateTracking() {
	if on := m.vm.Config.ChangeTrackingEnabled; on == nil || !*on {
		return
	}
	for _, d := range virtualDisks(m.vm.Config.Hardware.Device) {
		if m.trackers[d.Key] == nil && !independent(d) {
			m.trackers[d.Key] = newTracker()
		}
	}
}

// trackSnapshot closes the interval of each tracked disk and gives the change ids of the new snapshot.
func (m *machine) trackSnapshot(s *snapshot) map[int32]string {
	ids := map[int32]string{}
	for _, d := range virtualDisks(s.config.Hardware.Device) {
		t := m.trackers[d.Key]
		if t == nil || independent(d) {
			continue
		}
		i, err := openImage(backing(d).FileName)
		if err != nil {
			continue
		}
		now, err := hashBlocks(i.flatPath())
		if err != nil {
			continue
		}
		if t.seq > 0 {
			t.changed = append(t.changed, difference(t.last, now, t.touched))
		}
		t.seq++
		t.last, t.touched = now, map[int64]bool{}
		ids[d.Key] = fmt.Sprintf("%s/%d", t.generation, t.seq)
	}
	return ids
}

func difference(a, b map[int64]uint64, also map[int64]bool) []int64 {
	set := map[int64]bool{}
	for n, h := range a {
		if b[n] != h {
			set[n] = true
		}
	}
	for n := range b {
		if _, ok := a[n]; !ok {
			set[n] = true
		}
	}
	for n := range also {
		set[n] = true
	}
	return inOrder(set)
}

func inOrder(set map[int64]bool) []int64 {
	r := make([]int64, 0, len(set))
	for n := range set {
		r = append(r, n)
	}
	sort.Slice(r, func(i, j int) bool { return r[i] < r[j] })
	return r
}

var zeroes = make([]byte, grain)

// hashBlocks reads only the data of a sparse file.
func hashBlocks(flat string) (map[int64]uint64, error) {
	f, err := os.Open(flat)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sums := map[int64]uint64{}
	buf := make([]byte, grain)
	next := int64(0) // a block may lie in two data ranges
	err = dataRanges(f, func(off, length int64) error {
		for n := off / grain; n*grain < off+length; n++ {
			if n < next {
				continue
			}
			next = n + 1
			k, err := f.ReadAt(buf, n*grain)
			if err != nil && err != io.EOF {
				return err
			}
			if !bytes.Equal(buf[:k], zeroes[:k]) {
				sums[n] = maphash.Bytes(seed, buf[:k])
			}
		}
		return nil
	})
	return sums, err
}

// queryChanges is VirtualMachine.QueryChangedDiskAreas.
func queryChanges(c *call) (interface{}, *refusal) {
	q := c.body.(*types.QueryChangedDiskAreas)
	bad := func(p, format string, args ...interface{}) *refusal {
		return refuse(&types.InvalidArgument{InvalidProperty: p}, "A specified parameter was not correct: "+p+". "+format, args...)
	}
	m := c.m
	l, s := m.vm.Config.Hardware.Device, (*snapshot)(nil)
	if q.Snapshot != nil {
		if s = m.snapshotOf(*q.Snapshot); s == nil {
			return nil, refuse(&types.ManagedObjectNotFound{Obj: *q.Snapshot}, "%s is no snapshot of '%s'.", q.Snapshot.Value, m.vm.Name)
		}
		l = s.config.Hardware.Device
	}
	d, ok := findKey(l, q.DeviceKey).(*types.VirtualDisk)
	t := m.trackers[q.DeviceKey]
	if !ok || backing(d) == nil {
		return nil, bad("deviceKey", "There is no disk with key %d.", q.DeviceKey)
	}
	// With tracking off for the disk vSphere says InvalidArgument deviceKey; an id that does not belong to the disk's
	// present tracking is a FileFault (API Reference, QueryChangedDiskAreas, and KB 1020128).
	if s != nil && backing(d).ChangeId == "" || s == nil && t == nil {
		return nil, bad("deviceKey", "Changed block tracking was not active for disk %d.", q.DeviceKey)
	}
	size := d.CapacityInBytes
	if q.StartOffset < 0 || q.StartOffset >= size {
		return nil, bad("startOffset", "%d is not inside a disk of %d bytes.", q.StartOffset, size)
	}
	i, err := openImage(backing(d).FileName)
	if err != nil {
		return nil, fileFault(backing(d).FileName, err)
	}
	if s == nil && m.on() { // API Reference: without a snapshot only "for virtual machines that are powered off"
		return nil, refuse(&types.FileFault{File: i.name}, "'%s' is powered on: name a snapshot.", m.vm.Name)
	}
	blocks, f := changedBlocks(t, d, i, s, q.ChangeId)
	if f != nil {
		return nil, f
	}
	if q.ChangeId != "*" {
		blocks = overReport(blocks, size)
	}
	r := page(t.withoutHidden(blocks), q.StartOffset, size)
	return &types.QueryChangedDiskAreasResponse{Returnval: r}, nil
}

// changedBlocks gives the areas in use for '*', else all that changed in any interval from the id to the snapshot.
func changedBlocks(t *tracker, d *types.VirtualDisk, i *image, s *snapshot, id string) ([]int64, *refusal) {
	now, err := map[int64]uint64(nil), error(nil)
	if id == "*" || s == nil {
		if now, err = hashBlocks(i.flatPath()); err != nil {
			return nil, fileFault(i.name, err)
		}
	}
	set := map[int64]bool{}
	if id == "*" {
		for n := range now {
			set[n] = true
		}
		return inOrder(set), nil
	}
	from, ok := t.position(id)
	to := 0
	if s != nil {
		to, _ = t.position(backing(d).ChangeId)
	} else if t != nil {
		to = t.seq
	}
	if !ok || from > to {
		return nil, refuse(&types.FileFault{File: "/vmfs/volumes/" + i.name},
			"Error caused by file %s: change id %s does not belong to the present tracking of this disk.", i.name, id)
	}
	for k := from; k < to; k++ {
		for _, n := range t.changed[k-1] {
			set[n] = true
		}
	}
	if s == nil {
		for _, n := range difference(t.last, now, t.touched) {
			set[n] = true
		}
	}
	return inOrder(set), nil
}

// position is the sequence number of a change id of this tracker.
func (t *tracker) position(id string) (int, bool) {
	if t == nil || !strings.HasPrefix(id, t.generation+"/") {
		return 0, false
	}
	n, err := strconv.Atoi(id[len(t.generation)+1:])
	return n, err == nil && n >= 1 && n <= t.seq
}

// overReport adds neighbours that did not change: the real tracking is allowed to, and does (KB 1020128, "the returned
// areas may include unchanged blocks"). Which ones depends on the offset alone, so that tests repeat.
func overReport(blocks []int64, size int64) []int64 {
	set := map[int64]bool{}
	for _, n := range blocks {
		set[n] = true
		if spread := uint64(n) * 0x9e3779b97f4a7c15 >> 32; int(spread%100) < cbtOver && (n+1)*grain < size {
			set[n+1] = true
		}
	}
	return inOrder(set)
}

func (t *tracker) withoutHidden(blocks []int64) []int64 {
	if t == nil || len(t.hide) == 0 {
		return blocks
	}
	var r []int64
	for _, n := range blocks {
		out := false
		for _, h := range t.hide {
			out = out || n*grain < h.offset+h.length && h.offset < (n+1)*grain
		}
		if !out {
			r = append(r, n)
		}
	}
	var rest []hidden
	for _, h := range t.hide {
		if h.answers--; h.answers > 0 {
			rest = append(rest, h)
		}
	}
	t.hide = rest
	return r
}

// page makes one answer; the caller goes on at startOffset + length.
func page(blocks []int64, start, size int64) types.DiskChangeInfo {
	r := types.DiskChangeInfo{StartOffset: start, Length: size - start}
	for _, n := range blocks {
		from, to := n*grain, (n+1)*grain
		if from < start {
			from = start
		}
		if to > size {
			to = size
		}
		if from >= to {
			continue
		}
		if k := len(r.ChangedArea); k > 0 && r.ChangedArea[k-1].Start+r.ChangedArea[k-1].Length == from {
			r.ChangedArea[k-1].Length += to - from
			continue
		}
		if len(r.ChangedArea) == maxAreas {
			r.Length = from - start
			break
		}
		r.ChangedArea = append(r.ChangedArea, types.DiskChangeExtent{Start: from, Length: to - from})
	}
	return r
}
