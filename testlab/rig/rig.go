package rig

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/tap"
	"github.com/circuitseal/circuitseal/testlab/traffic"
)

// BinEnv names the directory with the binaries.
const BinEnv = "CIRCUITSEAL_BIN"

// Config says what to build.
type Config struct {
	Log *slog.Logger
	// Bin holds the binaries of product and lab.
	Bin string
	// Dir takes logs; empty for a temporary one.
	Dir string
	// Control builds a lab without agents; see netns.Config.
	Control bool
	// IPv6 builds one with IPv6 outside, as deploy/samples/ipv6 have it; see
	// netns.Config.
	IPv6 bool
	// Slow is of this machine.
	Slow Slow
	// Debug has agents log every step that they take.
	Debug bool
}

// Slow is how many times longer than on a usual machine things may take, 1 if
// it is less.
type Slow float64

// Times is what a figure that grows with time comes to on this machine.
func (s Slow) Times(x float64) float64 { return max(float64(s), 1) * x }

// Longer is a time limit on this machine.
func (s Slow) Longer(limit time.Duration) time.Duration {
	return time.Duration(s.Times(float64(limit)))
}

// Rig is a lab with the product in it. Traffic may be made from several
// goroutines at once; what starts and stops daemons is for one at a time.
type Rig struct {
	Lab    *netns.Lab
	Canary traffic.Canary

	ipv6 bool
	bin  string
	slow Slow
	// private holds keys and tokens; it goes with the lab, unlike logs.
	private    string
	log        *slog.Logger
	controller *netns.Process
	// nodes by the name of the appliance.
	// Debug has controllers and agents that are started from then on log all.
	Debug bool

	nodes map[netns.Host]*node
	taps  []*Tap
	// targets are the addresses, IPv4 and IPv6, at which traffic servers answer.
	targets map[netns.Host][2]netip.Addr
	// watches are what taps see beside the links of deploy/samples.
	watches []tap.Interface
}

// node is an appliance with an agent.
type node struct {
	name  string
	agent *netns.Process
	// manager is where the agent says what it says to a service manager.
	manager *net.UnixConn
}

// NodeName is what deploy/samples call an appliance's node.
func NodeName(h netns.Host) (string, error) {
	switch h {
	case netns.Prem:
		return "prem-1", nil
	case netns.NVA:
		return "nva-1", nil
	default:
		return "", fmt.Errorf("%q is no appliance: want %s or %s", string(h), netns.Prem, netns.NVA)
	}
}

// New builds the lab and starts the servers that answer test traffic on both
// LAN hosts. The caller must Close it.
func New(ctx context.Context, c Config) (*Rig, error) {
	for _, tool := range []string{"tap", "traffic"} {
		if _, err := os.Stat(filepath.Join(c.Bin, tool)); err != nil {
			return nil, fmt.Errorf("find the lab's program %s (`make build` makes it): %w", tool, err)
		}
	}
	lab, err := netns.New(ctx, netns.Config{Log: c.Log, Dir: c.Dir, Control: c.Control, IPv6: c.IPv6})
	if err != nil {
		return nil, err
	}
	private, err := os.MkdirTemp("", "circuitseal-lab-"+lab.ID()+"-")
	if err == nil {
		err = lab.Adopt(private)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a place for keys: %w", err), lab.Close())
	}
	r := &Rig{private: private, Lab: lab, Canary: traffic.NewCanary(), bin: c.Bin, ipv6: c.IPv6, slow: c.Slow, Debug: c.Debug, log: c.Log, nodes: make(map[netns.Host]*node), targets: make(map[netns.Host][2]netip.Addr)}
	for _, h := range []netns.Host{netns.Prem, netns.NVA} {
		name, err := NodeName(h)
		if err != nil {
			return nil, errors.Join(err, lab.Close())
		}
		r.nodes[h] = &node{name: name}
	}
	for h, a := range map[netns.Host][2]netip.Addr{
		netns.HQ: {netns.HQAddress, netns.HQAddress6}, netns.VNet: {netns.VNetAddress, netns.VNetAddress6},
	} {
		if err := r.Serve(h, a[0], a[1]); err != nil {
			return nil, errors.Join(err, lab.Close())
		}
	}
	return r, nil
}

// Serve starts the server that answers test traffic on a machine, and says at
// which addresses others find it; one may be missing.
func (r *Rig) Serve(h netns.Host, v4, v6 netip.Addr) error {
	r.targets[h] = [2]netip.Addr{v4, v6}
	_, err := r.Lab.Start(h, r.program("traffic", "traffic-"+string(h), "serve"))
	return err
}

// AddNode makes a machine that was added as an appliance the node of this name.
func (r *Rig) AddNode(h netns.Host, name string) { r.nodes[h] = &node{name: name} }

// Watch adds an interface to what taps see that are started from now on.
func (r *Rig) Watch(h netns.Host, i tap.Interface) {
	i.Namespace = netns.Path(r.Lab.Namespace(h))
	// Links on the VLANs of one interface are watched together.
	for j, w := range r.watches {
		if len(i.VLANs) > 0 && len(w.VLANs) > 0 && w.Namespace == i.Namespace && w.Name == i.Name {
			r.watches[j].VLANs = append(r.watches[j].VLANs, i.VLANs...)
			return
		}
	}
	r.watches = append(r.watches, i)
}

// Close ends everything and removes all traces except logs in Config.Dir.
func (r *Rig) Close() error {
	var errs []error
	for h, n := range r.nodes {
		if n.manager != nil {
			_ = n.manager.Close()
		}
		errs = append(errs, r.keepCharonLog(h))
	}
	return errors.Join(append(errs, r.Lab.Close())...)
}

// program is a binary with the canary in its environment.
func (r *Rig) program(binary, name string, args ...string) netns.Spec {
	return netns.Spec{
		Name: name, Path: filepath.Join(r.bin, binary), Args: args,
		Env: []string{traffic.CanaryEnv + "=" + r.Canary.Hex()},
	}
}

// file is a path in the lab's directory.
func (r *Rig) file(elem ...string) string {
	return filepath.Join(append([]string{r.Lab.Dir()}, elem...)...)
}
