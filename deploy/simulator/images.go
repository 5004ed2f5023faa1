// Disk files: a descriptor (text, with the content id) and a flat that holds the whole content of the disk at its
// point, also for a child of a snapshot. A real delta holds only what changed; a full flat keeps every reader simple.
package main

import (
	"crypto/rand"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
)

const noCID = "ffffffff" // parentCID of a disk without a parent (Virtual Disk Format 5.0, "The Header")

// image is one disk file of a tree: children stand on the frozen content of their parent.
type image struct {
	name   string // "[datastore] vm/x.vmdk"
	parent *image
	left   bool // a removed snapshot or a revert has left this file behind
}

// descriptor is what we read from a descriptor file; a worker may have rewritten it meanwhile.
type descriptor struct {
	size                   int64
	cid, parentCID, parent string // parent: the hint, as written
	uuid                   string // 6000c29x-... with dashes
	thin                   bool
}

func filePath(name string) string {
	var p object.DatastorePath
	p.FromString(name)
	return filepath.Join(world.roots[p.Datastore], p.Path)
}

func (i *image) descriptorPath() string { return filePath(i.name) }
func (i *image) flatPath() string       { return flatPath(filePath(i.name)) }

func flatPath(descriptor string) string {
	return strings.TrimSuffix(descriptor, ".vmdk") + "-flat.vmdk"
}

var (
	lineCID    = regexp.MustCompile(`(?m)^CID=([0-9a-fA-F]+)\s*$`)
	lineParent = regexp.MustCompile(`(?m)^parentCID=([0-9a-fA-F]+)\s*$`)
	lineHint   = regexp.MustCompile(`(?m)^parentFileNameHint="([^"]*)"\s*$`)
	lineExtent = regexp.MustCompile(`(?m)^RW (\d+) \S+ "[^"]*"`)
	lineUUID   = regexp.MustCompile(`(?m)^ddb\.uuid = "([^"]*)"\s*$`)
	lineThin   = regexp.MustCompile(`(?m)^ddb\.thinProvisioned = "1"\s*$`)
	hexOnly    = regexp.MustCompile(`[^0-9a-fA-F]`)
	deltaName  = regexp.MustCompile(`(-\d{6})?\.vmdk$`)
)

func readDescriptor(file string) (descriptor, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return descriptor{}, err
	}
	first := func(re *regexp.Regexp) string {
		if m := re.FindSubmatch(text); m != nil {
			return string(m[1])
		}
		return ""
	}
	d := descriptor{cid: first(lineCID), parentCID: first(lineParent), parent: first(lineHint), thin: lineThin.Match(text)}
	var sectors int64
	if _, err := fmt.Sscan(first(lineExtent), &sectors); err != nil || d.cid == "" {
		return d, fmt.Errorf("%s is not a disk descriptor: no CID or no extent line", file)
	}
	d.size = sectors * 512
	if h := hexOnly.ReplaceAllString(first(lineUUID), ""); len(h) == 32 {
		d.uuid = strings.ToLower(fmt.Sprintf("%s-%s-%s-%s-%s", h[:8], h[8:12], h[12:16], h[16:20], h[20:]))
	}
	return d, nil
}

// write makes the descriptor file new. The extent of a child says VMFSSPARSE, as on a real datastore, so that a
// reader who would mistake a delta for a raw disk there is found out here (Virtual Disk Format 5.0, "The Extents").
func (d descriptor) write(file string) error {
	kind, extent := "vmfs", "VMFS"
	hint := ""
	if d.parent != "" {
		kind, extent, hint = "vmfsSparse", "VMFSSPARSE", fmt.Sprintf("parentFileNameHint=\"%s\"\n", d.parent)
	}
	h := strings.ReplaceAll(d.uuid, "-", "")
	var pairs []string
	for i := 0; i+2 <= len(h); i += 2 {
		pairs = append(pairs, h[i:i+2])
	}
	id := ""
	if len(pairs) == 16 {
		id = strings.Join(pairs[:8], " ") + "-" + strings.Join(pairs[8:], " ")
	}
	thin := ""
	if d.thin {
		thin = "ddb.thinProvisioned = \"1\"\n"
	}
	text := fmt.Sprintf("# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID=%s\nparentCID=%s\ncreateType=\"%s\"\n%s\n"+
		"# Extent description\nRW %d %s \"%s\"\n\n# The Disk Data Base\n#DDB\n\nddb.adapterType = \"lsilogic\"\n"+
		"ddb.geometry.cylinders = \"%d\"\nddb.geometry.heads = \"255\"\nddb.geometry.sectors = \"63\"\n%sddb.uuid = \"%s\"\n"+
		"ddb.virtualHWVersion = \"13\"\n", d.cid, d.parentCID, kind, hint, d.size/512, extent, filepath.Base(flatPath(file)),
		d.size/512/(255*63), thin, id)
	return replaceFile(file, []byte(text))
}

func replaceFile(file string, content []byte) error {
	tmp := file + ".tmp"
	if err := os.WriteFile(tmp, content, 0600); err != nil {
		return err
	}
	return os.Rename(tmp, file)
}

// overwrite changes a descriptor in place when its length stays, as for a new CID: renaming over a file makes ext4
// flush the new one, 10 to 50 ms on a busy disk.
func overwrite(file string, old, content []byte) error {
	if len(old) != len(content) {
		return replaceFile(file, content)
	}
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(content, 0)
	return err
}

// edit replaces single lines and keeps the rest of a descriptor that somebody else may have written.
func (i *image) edit(re *regexp.Regexp, line string) error {
	text, err := os.ReadFile(i.descriptorPath())
	if err != nil {
		return err
	}
	return overwrite(i.descriptorPath(), text, re.ReplaceAllLiteral(text, []byte(line)))
}

func (i *image) setCID(cid string) error { return i.edit(lineCID, "CID="+cid) }

func newCID() string {
	var b [4]byte
	_, _ = rand.Read(b[:])
	b[0] &= 0x7f // never ffffffff nor fffffffe, which mean "no parent" and "never written"
	return hex.EncodeToString(b[:])
}

// newDiskUUID has VMware's prefix 6000c29 (naa identifiers of virtual disks).
func newDiskUUID() string { return "6000c29" + uuid.New().String()[7:] }

// contentID is equal for two readings exactly when neither the disk nor its CID has changed in between.
// vSphere API Reference, VirtualDiskFlatVer2BackingInfo.contentId: equal ids "and not being written" = equal content.
func (d descriptor) contentID() string {
	sum := sha1.Sum([]byte(d.uuid))
	return hex.EncodeToString(sum[:12]) + d.cid
}

// openImage finds the image of a file, reading its chain from the descriptors when it is not known yet.
func openImage(name string) (*image, error) {
	if i := world.images[name]; i != nil {
		return i, nil
	}
	d, err := readDescriptor(filePath(name))
	if err != nil {
		return nil, err
	}
	i := &image{name: name}
	if d.parent != "" {
		if i.parent, err = openImage(resolveHint(name, d.parent)); err != nil {
			return nil, fmt.Errorf("parent of %s: %w", name, err)
		}
	}
	world.images[name] = i
	return i, nil
}

func resolveHint(child, hint string) string {
	var p object.DatastorePath
	p.FromString(child)
	if rest := strings.TrimPrefix(hint, "/vmfs/volumes/"); rest != hint {
		parts := strings.SplitN(rest, "/", 2)
		p.Datastore, p.Path = parts[0], parts[1]
	} else {
		p.Path = path.Join(path.Dir(p.Path), hint)
	}
	return p.String()
}

func hintFor(child, parent string) string {
	var c, p object.DatastorePath
	c.FromString(child)
	p.FromString(parent)
	if c.Datastore == p.Datastore && path.Dir(c.Path) == path.Dir(p.Path) {
		return path.Base(p.Path)
	}
	return "/vmfs/volumes/" + p.Datastore + "/" + p.Path
}

func (i *image) children() (r []*image) {
	for _, c := range world.images {
		if c.parent == i {
			r = append(r, c)
		}
	}
	return r
}

// newBase makes an empty sparse disk with the content id of a disk that was never written.
func newBase(name string, size int64, id string, thin bool) (*image, error) {
	i := &image{name: name}
	if err := truncate(i.flatPath(), size); err != nil {
		return nil, err
	}
	if id == "" {
		id = newDiskUUID()
	}
	d := descriptor{size: size, cid: "fffffffe", parentCID: noCID, uuid: strings.ToLower(id), thin: thin}
	if err := d.write(i.descriptorPath()); err != nil {
		return nil, err
	}
	world.images[name] = i
	return i, nil
}

func truncate(file string, size int64) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0600)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Truncate(size)
}

// freeze makes a child on top of i: same content, same CID until somebody writes.
func (i *image) freeze() (*image, error) {
	name := ""
	for n := 1; ; n++ {
		name = deltaName.ReplaceAllString(i.name, fmt.Sprintf("-%06d.vmdk", n))
		if _, err := os.Stat(filePath(name)); os.IsNotExist(err) {
			break
		}
	}
	return i.freezeAs(name)
}

func (i *image) freezeAs(name string) (*image, error) {
	d, err := readDescriptor(i.descriptorPath())
	if err != nil {
		return nil, err
	}
	c := &image{name: name, parent: i}
	if err := copyFlat(i.flatPath(), c.flatPath()); err != nil {
		_ = os.Remove(c.flatPath())
		return nil, err
	}
	d.parentCID, d.parent = d.cid, hintFor(name, i.name)
	if err := d.write(c.descriptorPath()); err != nil {
		c.remove()
		return nil, err
	}
	world.images[name] = c
	return c, nil
}

func (i *image) remove() {
	delete(world.images, i.name)
	_ = os.Remove(i.flatPath())
	_ = os.Remove(i.descriptorPath())
}

// fold copies what the child has written into its parent, which keeps its name and its inode; the child can go then:
// consolidation goes into the parent (vSphere Virtual Machine Administration, "Consolidate Snapshots").
func (i *image) fold(c *image) error {
	from, err := readDescriptor(c.descriptorPath())
	if err != nil {
		return err
	}
	if err := mergeFlat(c.flatPath(), i.flatPath()); err != nil {
		return err
	}
	if err := i.setCID(from.cid); err != nil {
		return err
	}
	for _, grandchild := range c.children() {
		grandchild.parent = i
		hint := fmt.Sprintf("parentFileNameHint=\"%s\"", hintFor(grandchild.name, i.name))
		if err := grandchild.edit(lineHint, hint); err != nil {
			return err
		}
	}
	return nil
}

func fileFault(name string, err error) *refusal {
	var f types.BaseMethodFault = &types.FileFault{File: name}
	switch {
	case os.IsNotExist(err):
		f = &types.FileNotFound{FileFault: types.FileFault{File: name}}
	case os.IsExist(err):
		f = &types.FileAlreadyExists{FileFault: types.FileFault{File: name}}
	}
	return refuse(f, "%s: %v", name, err)
}
