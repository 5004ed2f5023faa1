// vcenter-sim is one small vCenter for tests and demonstrations: the govmomi simulator, with disks that hold
// bytes, snapshots that freeze them, changed block tracking, refusals and faults. The README says what it models.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vmware/govmomi/simulator"
)

// options are the flags, in the words of the README.
type options struct {
	listen, user, dir, name, uuid, dc  string
	datastores, networks, cert, key    string
	state                              string
	clusters, hosts, maxAreas, cbtOver int
	idle                               time.Duration
	clean, verbose                     bool
}

func flags() options {
	var o options
	flag.StringVar(&o.listen, "l", "127.0.0.1:0", "address to listen on; port 0 picks a free one")
	flag.StringVar(&o.user, "u", "user:password", "the only login that is accepted, as user:password; or @FILE whose first line is that")
	flag.StringVar(&o.dir, "dir", "", "folder that holds one folder per datastore (default: a new one under the temporary folder)")
	flag.StringVar(&o.name, "name", "vcenter", "name of this vCenter; about.instanceUuid follows from it")
	flag.StringVar(&o.uuid, "uuid", "", "about.instanceUuid, when it shall not follow from -name")
	flag.StringVar(&o.dc, "dc", "DC0", "name of the datacenter")
	flag.StringVar(&o.datastores, "datastores", "datastore1", "names of the datastores, with commas")
	flag.StringVar(&o.networks, "networks", "VM Network,DR Network", "names of the networks, with commas")
	flag.IntVar(&o.clusters, "clusters", 1, "number of clusters")
	flag.IntVar(&o.hosts, "hosts", 2, "number of hosts in each cluster")
	flag.DurationVar(&o.idle, "idle", 30*time.Minute, "a session that is idle for so long expires")
	flag.StringVar(&o.cert, "cert", "", "certificate, PEM; written if absent, together with -key")
	flag.StringVar(&o.key, "key", "", "private key, PEM; written if absent, together with -cert")
	flag.StringVar(&o.state, "state", "", "file that keeps the inventory over a restart (read at start, written after each change)")
	flag.IntVar(&o.maxAreas, "max-areas", 2000, "areas in one answer of QueryChangedDiskAreas")
	flag.IntVar(&o.cbtOver, "cbt-over", 10, "per cent of changed areas that drag an unchanged neighbour with them")
	flag.BoolVar(&o.clean, "clean", false, "remove the datastores' folders at the end")
	flag.BoolVar(&o.verbose, "v", false, "log to standard error")
	flag.Parse()
	return o
}

func main() {
	o := flags()
	log.SetFlags(log.LstdFlags | log.Lmicroseconds)
	if !o.verbose {
		log.SetOutput(quiet{})
	}
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "vcenter-sim:", err)
		os.Exit(1)
	}
}

// quiet drops the log of the stock simulator: it writes a line for each property update.
type quiet struct{}

func (quiet) Write(p []byte) (int, error) { return len(p), nil }

func run(o options) error {
	simulator.SessionIdleTimeout = o.idle
	if strings.HasPrefix(o.user, "@") { // a password in the arguments can be read by everyone on the machine
		line, err := os.ReadFile(o.user[1:])
		if err != nil {
			return err
		}
		o.user = strings.SplitN(string(line), "\n", 2)[0]
	}
	if !strings.Contains(o.user, ":") {
		return fmt.Errorf("-u has no colon: write user:password")
	}
	if o.dir == "" {
		dir, err := os.MkdirTemp("", "vcenter-sim-")
		if err != nil {
			return err
		}
		o.dir = dir
	}
	dir, err := filepath.Abs(o.dir)
	if err != nil {
		return err
	}
	o.dir = dir
	pair, err := certificate(&o)
	if err != nil {
		return err
	}
	cbtOver, maxAreas = o.cbtOver, o.maxAreas
	service, err := inventory(o)
	if err != nil {
		return err
	}
	stateFile = o.state
	if err := restoreState(); err != nil {
		return err
	}
	l, err := net.Listen("tcp", o.listen)
	if err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-stop
		world.Lock() // let the change under way finish, so that the files on disk are whole
		if o.clean {
			for _, root := range world.roots {
				_ = os.RemoveAll(root)
			}
		}
		os.Exit(0)
	}()
	out, err := json.Marshal(map[string]interface{}{
		"url": "https://" + l.Addr().String() + "/sdk", "control": "https://" + l.Addr().String() + "/_ctl",
		"pid": os.Getpid(), "name": o.name, "instanceUuid": simulatorAbout().InstanceUuid,
		"cert": o.cert, "thumbprint": thumbprint(pair, "sha1"), "thumbprintSha256": thumbprint(pair, "sha256"),
		"dir": o.dir, "datastores": world.roots,
	})
	if err != nil {
		return err
	}
	fmt.Println(string(out))
	return serve(l, pair, service, o.user)
}
