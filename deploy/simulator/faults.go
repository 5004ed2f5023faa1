// Rules that make the n-th call fail, wait, vanish before or after it was executed.
package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// rule applies to calls of Method ("*": all) on Object (a moref, or the name of the VM; empty: any).
type rule struct {
	Method, Object string
	Skip           int             // let so many calls through first
	Count          int             // then apply to so many; negative: for ever
	Fault          string          // answer with this vim fault ...
	Detail         json.RawMessage // ... with these fields
	Message        string          // ... and this text
	AsTask         bool            // the fault is the outcome of a task, not of the call
	DelayMs        int             // wait before anything else
	HTTP           int             // answer with this status and no body
	Drop           bool            // close the connection, do nothing
	DropAfter      bool            // do it, then close the connection without an answer
	Halve          bool            // a list in a REST answer lacks every second item
	TaskMs         int             // the task stays running for so long and takes effect at the end
}

var faults struct {
	sync.Mutex
	rules []*rule
	calls map[string]int
}

// next counts the call and gives the rule that applies to it, if any.
func next(name string, objects []string) rule {
	faults.Lock()
	defer faults.Unlock()
	if faults.calls == nil {
		faults.calls = map[string]int{}
	}
	faults.calls[name]++
	for _, r := range faults.rules {
		if r.Count == 0 || r.Method != name && r.Method != "*" || r.Object != "" && !has(objects, r.Object) {
			continue
		}
		if r.Skip > 0 {
			r.Skip--
			continue
		}
		r.Count--
		return *r
	}
	return rule{}
}

func has(l []string, s string) bool {
	for _, x := range l {
		if x == s {
			return true
		}
	}
	return false
}

// check refuses a rule that could never apply: a test with a typing error shall not pass.
func (r *rule) check() string {
	if r.Method == "" {
		return "a rule needs a Method (or \"*\")"
	}
	_, known := types.TypeFunc()(r.Method)
	known = known || r.Method == "*" || r.Method == "Fetch" || strings.HasPrefix(r.Method, "folder.")
	known = known || strings.HasPrefix(r.Method, "rest.") && restPart.MatchString("/"+r.Method[len("rest."):])
	if !known {
		return "there is no method " + r.Method
	}
	if r.Fault != "" {
		if _, err := r.fault(); err != "" {
			return err
		}
	}
	if r.Count == 0 {
		return "a rule needs a Count (negative: for ever)"
	}
	return ""
}

func (r *rule) fault() (types.BaseMethodFault, string) {
	t, ok := types.TypeFunc()(r.Fault)
	if !ok {
		return nil, "there is no fault " + r.Fault
	}
	f, ok := reflect.New(t).Interface().(types.BaseMethodFault)
	if !ok {
		return nil, r.Fault + " is no fault"
	}
	if len(r.Detail) > 0 {
		d := json.NewDecoder(bytes.NewReader(r.Detail))
		d.DisallowUnknownFields()
		if err := d.Decode(f); err != nil {
			return nil, r.Fault + ": " + err.Error()
		}
	}
	return f, ""
}

// before applies all but DropAfter and TaskMs; true: the call has been answered.
func (r *rule) before(w http.ResponseWriter, c *call) bool {
	time.Sleep(time.Duration(r.DelayMs) * time.Millisecond)
	if r.Drop {
		panic(http.ErrAbortHandler) // net/http closes the connection without a word
	}
	if r.HTTP != 0 {
		w.WriteHeader(r.HTTP)
		return true
	}
	if r.Fault == "" {
		return false
	}
	f, _ := r.fault()
	fillReferences(reflect.ValueOf(f).Elem(), c.this)
	message := r.Message
	if message == "" {
		message = "Injected fault " + r.Fault + "."
	}
	if r.AsTask {
		t := newTask(c, "injected."+c.name)
		work := func() { finish(t, nil, &refusal{f, message}) }
		if r.TaskMs > 0 {
			time.AfterFunc(time.Duration(r.TaskMs)*time.Millisecond, work)
		} else {
			work()
		}
		answerTask(w, c.name, t.Self)
		return true
	}
	answerFault(w, &refusal{f, message})
	return true
}

// fillReferences names the call's object wherever a fault needs one and the rule has not said which: clients fail to
// read a reference without a type.
func fillReferences(v reflect.Value, ref types.ManagedObjectReference) {
	for i := 0; i < v.NumField(); i++ {
		f := v.Field(i)
		if r, ok := f.Interface().(types.ManagedObjectReference); ok {
			if r.Type == "" {
				f.Set(reflect.ValueOf(ref))
			}
		} else if f.Kind() == reflect.Struct {
			fillReferences(f, ref)
		}
	}
}
