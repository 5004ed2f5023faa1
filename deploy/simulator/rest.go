// The REST front: tags and their sessions, as /rest (the stock simulator's) and as /api of newer vCenters.
package main

import (
	"bytes"
	"crypto/subtle"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
)

// restOnly hides /api, as vCenters before 7.0 U2 have none.
var restOnly atomic.Bool

var (
	restPart = regexp.MustCompile(`/(session|category|tag-association|tag)(?:/|$)`)
	apiOne   = regexp.MustCompile(`^(.*/tagging/(?:category|tag))/([^/]+)$`)
)

// rest answers /rest and /api. Rules know the calls as "rest.session", "rest.tag", "rest.category" and
// "rest.tag-association"; of the last one the object is the action.
func (f *front) rest(w http.ResponseWriter, r *http.Request) {
	part := restPart.FindStringSubmatch(r.URL.Path)
	api := strings.HasPrefix(r.URL.Path, "/api/")
	if part == nil || api && restOnly.Load() {
		if api {
			http.NotFound(w, r)
			return
		}
		f.service.ServeMux.ServeHTTP(w, r)
		return
	}
	action := r.URL.Query().Get("action") + r.URL.Query().Get("~action")
	rule := next("rest."+part[1], []string{action})
	if rule.before(w, &call{name: "rest." + part[1]}) {
		return
	}
	if user, password, ok := r.BasicAuth(); ok && // the stock simulator lets any password in
		subtle.ConstantTimeCompare([]byte(user+":"+password), []byte(f.user+":"+f.password)) != 1 {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if api {
		r.URL = asRest(r.URL, action)
		r.RequestURI = r.URL.RequestURI()
	}
	rec := httptest.NewRecorder()
	f.service.ServeMux.ServeHTTP(rec, r)
	if rule.DropAfter {
		panic(http.ErrAbortHandler)
	}
	body := rec.Body.Bytes()
	var answer struct {
		Value json.RawMessage `json:"value"`
	}
	if rec.Code == http.StatusOK && json.Unmarshal(body, &answer) == nil && answer.Value != nil {
		if rule.Halve {
			answer.Value = halve(answer.Value)
		}
		if body = answer.Value; !api {
			body, _ = json.Marshal(answer)
		}
	} else if api && rec.Code == http.StatusOK && len(bytes.TrimSpace(body)) > 0 {
		body = []byte("[]") // the stock simulator leaves an empty list out
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(rec.Code)
	_, _ = io.Copy(w, bytes.NewReader(body))
}

func asRest(u *url.URL, action string) *url.URL {
	path := strings.Replace(u.Path, "/api/cis/", "/rest/com/vmware/cis/", 1)
	if u.Path == "/api/session" {
		path = "/rest/com/vmware/cis/session"
	}
	to := &url.URL{Path: apiOne.ReplaceAllString(path, "$1/id:$2")}
	if action != "" {
		to.RawQuery = "~action=" + url.QueryEscape(action)
	}
	return to
}

// halve leaves out every second item of a list: an answer that looks whole.
func halve(list json.RawMessage) json.RawMessage {
	var items []json.RawMessage
	if json.Unmarshal(list, &items) != nil {
		return list
	}
	kept := []json.RawMessage{}
	for i := 1; i < len(items); i += 2 {
		kept = append(kept, items[i])
	}
	out, _ := json.Marshal(kept)
	return out
}
