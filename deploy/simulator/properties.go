// Reading properties: what must be read afresh, and answers in pages.
package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

// freshen reads the content ids of the VMs concerned from their descriptors: a worker may have written a disk.
func freshen(c *call) {
	config, layout := wanted(c)
	if !config && !layout {
		return
	}
	for _, vm := range concerned(c) {
		if layout {
			world.Lock()
			if m := world.vms[vm.Self]; m != nil {
				m.change(func() *refusal {
					m.layOut()
					return nil
				})
			}
			world.Unlock()
		}
		if config && len(staleContentIDs(vm)) > 0 {
			world.Lock() // changes read the VM's properties without the registry's lock
			freshenContentIDs(vm)
			world.Unlock()
		}
	}
}

// wanted says whether the request asks for disks, or for files and sizes.
func wanted(c *call) (config, layout bool) {
	see := func(path string) {
		config = config || path == "config" || strings.HasPrefix(path, "config.hardware")
		layout = layout || strings.HasPrefix(path, "layoutEx") || strings.HasPrefix(path, "summary")
	}
	var specs []types.PropertyFilterSpec
	switch q := c.body.(type) {
	case *types.RetrievePropertiesEx:
		specs = q.SpecSet
	case *types.RetrieveProperties:
		specs = q.SpecSet
	default: // Fetch and WaitForUpdates do not say it in a way that is read here
		return true, false
	}
	for _, s := range specs {
		for _, p := range s.PropSet {
			if p.Type != "VirtualMachine" && p.Type != "ManagedEntity" {
				continue
			}
			if p.All != nil && *p.All {
				return true, true
			}
			for _, path := range p.PathSet {
				see(path)
			}
		}
	}
	return config, layout
}

// concerned are the VMs named in the request, or all when it goes through a view.
func concerned(c *call) (r []*simulator.VirtualMachine) {
	add := func(ref types.ManagedObjectReference) bool {
		vm, ok := simulator.Map.Get(ref).(*simulator.VirtualMachine)
		if ok {
			r = append(r, vm)
		}
		return ok
	}
	if c.name == "Fetch" {
		add(c.this)
		return r
	}
	var specs []types.PropertyFilterSpec
	switch q := c.body.(type) {
	case *types.RetrievePropertiesEx:
		specs = q.SpecSet
	case *types.RetrieveProperties:
		specs = q.SpecSet
	}
	named := len(specs) > 0
	for _, s := range specs {
		for _, o := range s.ObjectSet {
			named = add(o.Obj) && named
		}
	}
	if named {
		return r
	}
	r = nil
	for _, e := range simulator.Map.All("VirtualMachine") {
		r = append(r, e.(*simulator.VirtualMachine))
	}
	return r
}

// staleContentIDs: device key -> content id, where a descriptor says something new.
func staleContentIDs(vm *simulator.VirtualMachine) map[int32]string {
	var l []*types.VirtualDisk
	simulator.Map.WithLock(vm, func() {
		if vm.Config != nil {
			l = virtualDisks(vm.Config.Hardware.Device)
		}
	})
	stale := map[int32]string{}
	for _, d := range l {
		if info, err := readDescriptor(filePath(backing(d).FileName)); err == nil && info.contentID() != backing(d).ContentId {
			stale[d.Key] = info.contentID()
		}
	}
	return stale
}

// freshenContentIDs replaces the list of devices: readers may hold the old one.
func freshenContentIDs(vm *simulator.VirtualMachine) {
	stale := staleContentIDs(vm)
	simulator.Map.WithLock(vm, func() {
		config := *vm.Config
		config.Hardware.Device = deepCopy(config.Hardware.Device)
		for _, d := range virtualDisks(config.Hardware.Device) {
			if id, ok := stale[d.Key]; ok {
				backing(d).ContentId = id
			}
		}
		vm.Config = &config
	})
}

var pages = struct {
	sync.Mutex
	last int
	rest map[string]rest
}{rest: map[string]rest{}}

type rest struct {
	objects []types.ObjectContent
	max     int
}

// retrievePage cuts the stock answer, which ignores maxObjects, into pages with a token.
// API Reference, PropertyCollector.RetrievePropertiesEx and ContinueRetrievePropertiesEx.
func (f *front) retrievePage(w http.ResponseWriter, r *http.Request, max int) {
	rec := httptest.NewRecorder()
	f.service.ServeMux.ServeHTTP(rec, r)
	var body struct {
		Res *types.RetrievePropertiesExResponse `xml:"RetrievePropertiesExResponse"`
	}
	if rec.Code != http.StatusOK || unwrap(rec, &body) != nil || body.Res == nil || body.Res.Returnval == nil {
		replay(w, rec)
		return
	}
	answerWith(w, &types.RetrievePropertiesExResponse{Returnval: firstPage(rest{body.Res.Returnval.Objects, max})})
}

func unwrap(rec *httptest.ResponseRecorder, body interface{}) error {
	d := xml.NewDecoder(rec.Body)
	d.TypeFunc = types.TypeFunc()
	return d.Decode(&soap.Envelope{Body: body})
}

func firstPage(r rest) *types.RetrieveResult {
	if len(r.objects) <= r.max {
		return &types.RetrieveResult{Objects: r.objects}
	}
	pages.Lock()
	defer pages.Unlock()
	pages.last++
	token := fmt.Sprintf("%d", pages.last)
	pages.rest[token] = rest{r.objects[r.max:], r.max}
	return &types.RetrieveResult{Token: token, Objects: r.objects[:r.max]}
}

func continueRetrieve(w http.ResponseWriter, _ *http.Request, c *call) {
	token := ""
	cancel := false
	switch q := c.body.(type) {
	case *types.ContinueRetrievePropertiesEx:
		token = q.Token
	case *types.CancelRetrievePropertiesEx:
		token, cancel = q.Token, true
	}
	pages.Lock()
	r, ok := pages.rest[token]
	delete(pages.rest, token)
	pages.Unlock()
	switch {
	case !ok:
		answerFault(w, refuse(&types.InvalidArgument{InvalidProperty: "token"}, "A specified parameter was not correct: token"))
	case cancel:
		answerWith(w, &types.CancelRetrievePropertiesExResponse{})
	default:
		answerWith(w, &types.ContinueRetrievePropertiesExResponse{Returnval: *firstPage(r)})
	}
}
