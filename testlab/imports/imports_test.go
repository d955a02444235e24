// Package imports enforces who may know whom. The rules are the structure of
// the project as text: a line here is easier to review than a cycle is to undo.
package imports

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/circuitseal/circuitseal/"

// rule says that packages under from must not import, directly, any package
// that begins with one of never, except those in but.
type rule struct {
	from  string
	never []string
	but   []string
	why   string
}

const (
	wire    = module + "proto/circuitseal"
	kernel  = "github.com/vishvananda/netlink"
	ebpf    = "github.com/cilium/ebpf"
	nft     = "github.com/google/nftables"
	wgctrl  = "golang.zx2c4.com/wireguard"
	etcd    = "go.etcd.io"
	cli     = "github.com/spf13/cobra"
	connect = "connectrpc.com/connect"
	vici    = "github.com/strongswan/govici"
)

var rules = []rule{
	{from: "proto/circuitseal", never: []string{module + "agent", module + "controller", module + "testlab", module + "proto/desired"},
		why: "generated code is pure wire"},
	{from: "proto/desired", never: []string{module + "agent", module + "controller", module + "testlab", etcd, kernel, ebpf, connect},
		why: "what both sides share knows neither of them, nor stores or kernels"},

	{from: "proto/chunk", never: []string{module, etcd, connect, "os", "net/http"},
		why: "cutting texts knows neither where they come from nor where they go"},
	{from: "proto/sealed", never: []string{module},
		why: "how secrets lie on disk knows nothing of what they are"},

	{from: "agent", never: []string{module + "controller", module + "testlab"},
		why: "agent and controller meet in proto/desired only; the product does not know its lab"},
	{from: "controller", never: []string{module + "agent", module + "testlab"},
		why: "agent and controller meet in proto/desired only; the product does not know its lab"},

	{from: "agent/plan", never: []string{wire, kernel, ebpf, nft, wgctrl, "net/http", "os/exec"},
		why: "a plan is pure: it is printed and tested without privilege"},
	{from: "agent/instance", never: []string{module, kernel}, why: "names derive from the instance alone"},
	{from: "agent/durable", never: []string{module}, why: "files know nothing of what they hold"},
	{from: "agent/nlmsg", never: []string{ebpf, module + "agent/plan", module + "agent/instance", module + "agent/guard", module + "agent/link"},
		why: "messages are read, whatever they are about"},
	{from: "agent/netdev", never: []string{ebpf, module + "agent/plan", module + "agent/instance"}, why: "interfaces are looked at, and their settings set, whoever wants what"},
	{from: "agent/rcu", never: []string{module, ebpf, kernel}, why: "grace periods are hurried, whatever waits for them"},
	{from: "agent/bpfmap", never: []string{module}, why: "maps are read, whatever is in them"},
	{from: "agent/reconcile", never: []string{kernel, ebpf, nft, wgctrl, wire, connect},
		why: "the loop knows the drivers' interfaces, not what is beneath them"},
	{from: "agent/uplink", never: []string{kernel, ebpf, nft, wgctrl, module + "agent/plan", module + "agent/guard", module + "agent/link", module + "agent/classifier", module + "agent/slowpath", module + "agent/wireguard", module + "agent/ipsec"},
		why: "the uplink carries states and does not act on them"},
	{from: "agent/lastgood", never: []string{kernel, ebpf, connect, module + "agent/plan"}, why: "the last good state is kept as signed bytes"},
	{from: "agent/guard", never: []string{wire, connect, wgctrl, ebpf + "/link", module + "agent/classifier", module + "agent/link", module + "agent/wireguard", module + "agent/ipsec", module + "agent/slowpath"},
		why: "each layer holds without the others"},
	{from: "agent/classifier", never: []string{wire, connect, wgctrl, nft, ebpf + "/link", module + "agent/guard", module + "agent/link", module + "agent/wireguard", module + "agent/ipsec", module + "agent/slowpath"},
		why: "each layer holds without the others"},
	{from: "agent/tchook", never: []string{wire, connect, wgctrl, nft, module + "agent/plan", module + "agent/instance", module + "agent/guard", module + "agent/classifier", module + "agent/link", module + "agent/wireguard", module + "agent/ipsec", module + "agent/slowpath"},
		why: "how programs are attached knows neither what they do nor where they belong"},
	{from: "agent/slowpath", never: []string{wire, connect, wgctrl, ebpf, nft, module + "agent/guard", module + "agent/classifier", module + "agent/link", module + "agent/wireguard", module + "agent/ipsec", module + "agent/tchook"},
		why: "slow paths know netlink; who sends packets there and judges what comes back is the classifier's"},
	{from: "agent/link", never: []string{wire, connect, wgctrl, ebpf, nft, module + "agent/guard", module + "agent/classifier", module + "agent/wireguard", module + "agent/ipsec", module + "agent/slowpath"},
		why: "links know netlink and nothing above it"},
	{from: "agent/wireguard", never: []string{wire, connect, ebpf, nft, module + "agent/guard", module + "agent/classifier", module + "agent/link", module + "agent/slowpath", module + "agent/ipsec"},
		why: "tunnels know neither what guards them nor what fills them"},
	{from: "agent/ipsec", never: []string{wire, connect, wgctrl, nft, module + "agent/guard", module + "agent/classifier", module + "agent/link", module + "agent/wireguard", module + "agent/slowpath"},
		why: "tunnels know neither what guards them nor what fills them"},
	{from: "agent/outlive", never: []string{module}, why: "processes are started, whatever they do"},
	{from: "agent/liveness", never: []string{wire, connect, wgctrl, ebpf, nft, module + "agent/guard", module + "agent/classifier", module + "agent/wireguard", module + "agent/ipsec", module + "agent/slowpath"},
		why: "liveness measures; who acts on it is the agent's wiring"},

	{from: "controller/model", never: []string{wire, etcd, connect, "os", "net/http"}, why: "the operators' words are neither wire nor disk"},
	{from: "controller/profile", never: []string{module, etcd, connect, "os", "net", "net/http"},
		why: "what algorithms may be negotiated depends on nothing of ours"},
	{from: "controller/document", never: []string{wire, etcd, connect, "os", "net/http"}, why: "documents are text, wherever they lie"},
	{from: "controller/schema", never: []string{wire, etcd, connect, "net/http", module + "controller/store", module + "controller/api"},
		why: "what documents look like is read from the model alone"},
	{from: "controller/compile", never: []string{wire, etcd, connect, "os", "net/http", "log/slog", module + "controller/store", module + "controller/api"},
		why: "compile is pure: no I/O, clock or log"},
	{from: "controller/preview", never: []string{wire, etcd, connect, "os", "net/http", "log/slog", module + "controller/store", module + "controller/api", module + "controller/session"},
		why: "what a change does is found out without doing any of it: no I/O, clock or log"},
	{from: "controller/store", never: []string{wire, connect, module + "controller/api", module + "controller/session", module + "controller/compile"},
		why: "the store keeps; it neither serves nor decides"},
	{from: "controller/rotate", never: []string{wire, etcd, connect, "os", "net/http", module + "controller/api", module + "controller/compile", module + "proto/sealed"},
		why: "when a secret changes is decided from values; who keeps, seals and carries it is elsewhere"},
	{from: "controller/certify", never: []string{wire, etcd, connect, "os", "net/http", module + "controller/api", module + "controller/compile", module + "proto/sealed"},
		why: "when a certificate changes is decided from values; who keeps, makes and carries it is elsewhere"},
	{from: "controller/handover", never: []string{wire, etcd, connect, "os", "net/http", module + "controller/api", module + "controller/compile", module + "proto/sealed"},
		why: "when a protocol has taken over is decided from values"},
	{from: "controller/follow", never: []string{wire, etcd, connect, "os", "net/http", module + "controller/api", module + "controller/compile", module + "controller/rotate", module + "controller/certify", module + "controller/handover"},
		why: "the loop knows nothing of what is done in it"},
	{from: "controller/cmd/sealctl", never: []string{module + "controller", module + "proto/desired", etcd}, but: []string{module + "controller/cmd/sealctl"},
		why: "sealctl speaks the public API and nothing else, so anybody could have written it"},

	{from: "testlab/tap", never: []string{module + "agent", module + "controller", module + "proto"},
		why: "the tap is independent evidence: it shares no code with what it judges"},
	{from: "testlab/cmd/tap", never: []string{module + "agent", module + "controller", module + "proto"},
		why: "the tap is independent evidence: it shares no code with what it judges"},
}

// edges are the few packages that may know generated types.
var edges = []string{
	"proto/", "controller/api", "controller/session", "controller/pki", "controller/cmd/sealctl",
	"controller", "agent/uplink", "agent/lastgood", "agent", "testlab/",
}

type pkg struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", module+"...")
	out, err := cmd.Output()
	if err != nil {
		exit := new(exec.ExitError)
		if errors.As(err, &exit) {
			t.Fatalf("go list: %s", exit.Stderr)
		}
		t.Fatal(err)
	}
	var all []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func under(path, prefix string) bool {
	prefix = strings.TrimSuffix(prefix, "/")
	return path == prefix || strings.HasPrefix(path, prefix+"/")
}

func underAny(path string, prefixes []string) bool {
	for _, p := range prefixes {
		if under(path, p) {
			return true
		}
	}
	return false
}

func TestImports(t *testing.T) {
	all := packages(t)
	if len(all) < 10 {
		t.Fatalf("go list found only %d packages", len(all))
	}
	for _, r := range rules {
		seen := false
		for _, p := range all {
			if !under(p.ImportPath, module+r.from) {
				continue
			}
			seen = true
			for _, i := range p.Imports {
				if under(i, p.ImportPath) || underAny(i, r.but) || under(i, module+r.from) {
					continue
				}
				if underAny(i, r.never) {
					t.Errorf("%s imports %s: %s", strings.TrimPrefix(p.ImportPath, module), i, r.why)
				}
			}
		}
		if !seen {
			t.Errorf("rule for %s is about no package", r.from)
		}
	}
}

func TestGeneratedTypesStayAtTheEdges(t *testing.T) {
	for _, p := range packages(t) {
		rel := strings.TrimPrefix(p.ImportPath, module)
		allowed := false
		for _, e := range edges {
			allowed = allowed || rel == e || strings.HasSuffix(e, "/") && under(rel, e) || strings.HasPrefix(e, "controller/cmd") && under(rel, e)
		}
		for _, i := range p.Imports {
			if under(i, wire) && !allowed {
				t.Errorf("%s imports %s: generated types stay at the edges, beyond them is proto/desired", rel, i)
			}
		}
	}
}

// Flags end where commands end.
func TestCobraStaysInCommands(t *testing.T) {
	for _, p := range packages(t) {
		rel := strings.TrimPrefix(p.ImportPath, module)
		for _, i := range p.Imports {
			if under(i, cli) && !strings.Contains(rel, "/cmd/") {
				t.Errorf("%s imports %s: flags are read in cmd, values go on from there", rel, i)
			}
		}
	}
}

// One package of the product speaks to charon; the lab asks one to rekey.
func TestVICIStaysInItsDriver(t *testing.T) {
	for _, p := range packages(t) {
		for _, i := range p.Imports {
			if rel := strings.TrimPrefix(p.ImportPath, module); under(i, vici) && rel != "agent/ipsec" && rel != "testlab/rig" {
				t.Errorf("%s imports %s: agent/ipsec is told what is wanted instead", rel, i)
			}
		}
	}
}
