// The SOAP front: decides who answers a call, and writes answers and faults.
package main

import (
	"bytes"
	"crypto/subtle"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

type front struct {
	service        *simulator.Service
	user, password string
}

func serve(l net.Listener, pair tls.Certificate, s *simulator.Service, login string) error {
	parts := strings.SplitN(login, ":", 2)
	f := &front{s, parts[0], parts[1]}
	mux := http.NewServeMux()
	mux.HandleFunc("/sdk", f.sdk)
	mux.HandleFunc("/_ctl", control)
	mux.HandleFunc("/folder/", f.folder)
	mux.HandleFunc("/rest/", f.rest)
	mux.HandleFunc("/api/", f.rest)
	mux.Handle("/", s.ServeMux)
	server := &http.Server{
		Handler: mux, ErrorLog: log.New(problems{}, "vcenter-sim: ", 0),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12},
	}
	return server.ServeTLS(l, "", "")
}

// problems passes on what net/http has to say, above all a panic; clients that do not trust the certificate are theirs.
type problems struct{}

func (problems) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte("TLS handshake error")) {
		return len(p), nil
	}
	return os.Stderr.Write(p)
}

var (
	bodyMethod = regexp.MustCompile(`<(?:\w+:)?Body[^>]*>\s*<(?:\w+:)?(\w+)`)
	bodyThis   = regexp.MustCompile(`_this[^>]*type="([^"]+)"[^>]*>([^<]*)<`)
)

func (f *front) sdk(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	c := decode(body)
	rule := next(c.name, c.objects())
	if rule.before(w, c) {
		return
	}
	if rule.DropAfter {
		f.answer(httptest.NewRecorder(), r, c, rule)
		panic(http.ErrAbortHandler)
	}
	f.answer(w, r, c, rule)
}

// decode reads method, object and, where the types are known, the whole request.
func decode(body []byte) *call {
	c := &call{}
	if m, err := simulator.UnmarshalBody(types.TypeFunc(), body); err == nil {
		c.name, c.this, c.body = m.Name, m.This, m.Body
		return c
	}
	if m := bodyMethod.FindSubmatch(body); m != nil {
		c.name = string(m[1])
	}
	if m := bodyThis.FindSubmatch(body); m != nil {
		c.this = types.ManagedObjectReference{Type: string(m[1]), Value: string(m[2])}
	}
	return c
}

// objects are the names a rule may know the call's object by.
func (c *call) objects() []string {
	l := []string{c.this.Value}
	ref := c.this
	if s, ok := simulator.Map.Get(ref).(*simulator.VirtualMachineSnapshot); ok {
		ref = s.Vm
		l = append(l, ref.Value)
	}
	if e, ok := simulator.Map.Get(ref).(mo.Entity); ok {
		l = append(l, e.Entity().Name)
	}
	switch q := c.body.(type) {
	case *types.CreateVM_Task:
		l = append(l, q.Config.Name)
	case *types.CloneVM_Task:
		l = append(l, q.Name)
	case *types.RegisterVM_Task:
		l = append(l, q.Name)
	}
	return l
}

func (f *front) answer(w http.ResponseWriter, r *http.Request, c *call, rule rule) {
	key := c.this.Type + "." + c.name
	if t, ok := taskMethods[key]; ok && c.body != nil {
		if f.authenticated(w, r) {
			f.answerWithTask(w, c, t.id, t.run, time.Duration(rule.TaskMs)*time.Millisecond)
		}
		return
	}
	if run, ok := directMethods[key]; ok && c.body != nil {
		if f.authenticated(w, r) {
			f.answerDirectly(w, c, run)
		}
		return
	}
	switch c.name {
	case "RetrievePropertiesEx", "RetrieveProperties", "Fetch", "WaitForUpdatesEx", "WaitForUpdates":
		freshen(c)
	case "ContinueRetrievePropertiesEx", "CancelRetrievePropertiesEx":
		if f.authenticated(w, r) {
			continueRetrieve(w, r, c)
		}
		return
	}
	if q, ok := c.body.(*types.RetrievePropertiesEx); ok && q.Options.MaxObjects > 0 {
		f.retrievePage(w, r, int(q.Options.MaxObjects))
		return
	}
	if c.name == "Fetch" {
		f.fetch(w, r)
		return
	}
	f.pass(w, r, c)
}

// fetch reads one property. The stock simulator runs past the end of a list when the property is unset (a VM without
// a snapshot, for one), where vCenter answers with nothing.
func (f *front) fetch(w http.ResponseWriter, r *http.Request) {
	rec := httptest.NewRecorder()
	defer func() {
		if problem := recover(); problem != nil {
			if e, ok := problem.(runtime.Error); !ok || !strings.Contains(e.Error(), "index out of range [0] with length 0") {
				panic(problem)
			}
			w.Header().Set("Content-Type", "text/xml; charset=utf-8")
			_, _ = io.WriteString(w, emptyFetch)
			return
		}
		replay(w, rec)
	}()
	f.service.ServeMux.ServeHTTP(rec, r)
}

const emptyFetch = `<?xml version="1.0" encoding="UTF-8"?><soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/">` +
	`<soapenv:Body><FetchResponse xmlns="urn:vim25"></FetchResponse></soapenv:Body></soapenv:Envelope>`

// pass leaves the call to the stock simulator. Calls that change something take world's lock.
func (f *front) pass(w http.ResponseWriter, r *http.Request, c *call) {
	if !strings.HasSuffix(c.name, "_Task") {
		f.service.ServeMux.ServeHTTP(w, r)
		return
	}
	rec := httptest.NewRecorder()
	f.passLocked(rec, r)
	replay(w, rec)
}

func (f *front) passLocked(rec *httptest.ResponseRecorder, r *http.Request) {
	world.Lock()
	defer world.Unlock() // also when the stock code panics
	f.service.ServeMux.ServeHTTP(rec, r)
	if m := taskRef.FindSubmatch(rec.Body.Bytes()); m != nil {
		t, ok := simulator.Map.Get(types.ManagedObjectReference{Type: "Task", Value: string(m[1])}).(*simulator.Task)
		if ok && t.Info.Entity != nil {
			if _, managed := simulator.Map.Get(*t.Info.Entity).(mo.Entity); !managed { // clients insist on one
				simulator.Map.WithLock(t, func() { t.Info.Entity = nil })
			}
		}
	}
	saveState()
}

var taskRef = regexp.MustCompile(`type="Task">([^<]+)<`)

func replay(w http.ResponseWriter, rec *httptest.ResponseRecorder) {
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(rec.Code)
	_, _ = w.Write(rec.Body.Bytes())
}

const probe = `<?xml version="1.0"?><soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"><soapenv:Body>` +
	`<CurrentTime xmlns="urn:vim25"><_this type="ServiceInstance">ServiceInstance</_this></CurrentTime></soapenv:Body></soapenv:Envelope>`

// authenticated asks the stock simulator with the client's cookie, which also keeps an idle session alive; its
// NotAuthenticated fault is passed on.
func (f *front) authenticated(w http.ResponseWriter, r *http.Request) bool {
	rec := f.ask(r, probe)
	if rec.Code != http.StatusOK && w != nil {
		replay(w, rec)
	}
	return rec.Code == http.StatusOK
}

func (f *front) ask(r *http.Request, body string) *httptest.ResponseRecorder {
	q := httptest.NewRequest(http.MethodPost, "/sdk", strings.NewReader(body))
	q.Header["Cookie"] = r.Header["Cookie"]
	q.RemoteAddr = r.RemoteAddr
	rec := httptest.NewRecorder()
	f.service.ServeMux.ServeHTTP(rec, q)
	return rec
}

// folder is datastore access over HTTP, here only for those who may log in.
// vSphere Web Services SDK Programming Guide, "HTTP Access to vSphere Server Files".
func (f *front) folder(w http.ResponseWriter, r *http.Request) {
	user, password, basic := r.BasicAuth()
	same := subtle.ConstantTimeCompare([]byte(user+":"+password), []byte(f.user+":"+f.password)) == 1
	rule := next("folder."+r.Method, []string{r.URL.Path})
	if rule.before(w, &call{name: "folder"}) {
		return
	}
	if basic && !same || !basic && !f.authenticated(nil, r) {
		w.Header().Set("WWW-Authenticate", `Basic realm="VMware HTTP server"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	f.service.ServeMux.ServeHTTP(w, r)
}

func (f *front) answerWithTask(w http.ResponseWriter, c *call, id string, run func(*call) (types.AnyType, *refusal), slow time.Duration) {
	world.Lock()
	fault := c.resolve()
	world.Unlock()
	if fault != nil {
		answerFault(w, fault)
		return
	}
	c.ctx = newContext(c.this)
	answerTask(w, c.name, c.runTask(id, run, slow))
}

func (f *front) answerDirectly(w http.ResponseWriter, c *call, run func(*call) (interface{}, *refusal)) {
	c.ctx = newContext(c.this)
	res, fault := c.locked(func(c *call) (types.AnyType, *refusal) { return run(c) })
	if fault != nil {
		answerFault(w, fault)
		return
	}
	answerWith(w, res)
}

func answerTask(w http.ResponseWriter, method string, ref types.ManagedObjectReference) {
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	_, _ = fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?>`+"\n"+`<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/">`+
		`<soapenv:Body><%sResponse xmlns="urn:vim25"><returnval type="Task">%s</returnval></%sResponse></soapenv:Body></soapenv:Envelope>`,
		method, ref.Value, method)
}

// element writes a response struct under its own name in VMware's namespace.
type element struct{ value interface{} }

func (e element) MarshalXML(enc *xml.Encoder, start xml.StartElement) error {
	name := xml.StartElement{Name: xml.Name{Space: "urn:vim25", Local: reflect.TypeOf(e.value).Elem().Name()}}
	if err := enc.EncodeToken(start); err != nil {
		return err
	}
	if err := enc.EncodeElement(e.value, name); err != nil {
		return err
	}
	return enc.EncodeToken(start.End())
}

func answerWith(w http.ResponseWriter, res interface{}) { envelope(w, http.StatusOK, element{res}) }

type faultDetail struct{ fault types.BaseMethodFault }

func (d faultDetail) MarshalXML(e *xml.Encoder, start xml.StartElement) error {
	kind := reflect.TypeOf(d.fault).Elem().Name()
	start.Name.Local = kind + "Fault"
	start.Attr = append(start.Attr, xml.Attr{Name: xml.Name{Local: "xmlns"}, Value: "urn:vim25"},
		xml.Attr{Name: xml.Name{Local: "xsi:type"}, Value: kind})
	return e.EncodeElement(d.fault, start)
}

func answerFault(w http.ResponseWriter, f *refusal) {
	type detail struct{ Fault faultDetail }
	type soapFault struct {
		XMLName xml.Name `xml:"soapenv:Fault"`
		Code    string   `xml:"faultcode"`
		String  string   `xml:"faultstring"`
		Detail  detail   `xml:"detail"`
	}
	envelope(w, http.StatusInternalServerError, struct{ Fault soapFault }{soapFault{
		Code: "ServerFaultCode", String: f.message, Detail: detail{faultDetail{f.fault}},
	}})
}

func envelope(w http.ResponseWriter, code int, body interface{}) {
	var out bytes.Buffer
	out.WriteString(xml.Header)
	err := xml.NewEncoder(&out).Encode(struct {
		XMLName xml.Name    `xml:"soapenv:Envelope"`
		Env     string      `xml:"xmlns:soapenv,attr"`
		XSD     string      `xml:"xmlns:xsd,attr"`
		XSI     string      `xml:"xmlns:xsi,attr"`
		Body    interface{} `xml:"soapenv:Body"`
	}{
		Env: "http://schemas.xmlsoap.org/soap/envelope/", XSD: "http://www.w3.org/2001/XMLSchema",
		XSI: "http://www.w3.org/2001/XMLSchema-instance", Body: body,
	})
	if err != nil {
		log.Print(err)
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write(out.Bytes())
}
