package rig

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/traffic"
)

// target is a machine's traffic server.
func (r *Rig) target(h netns.Host, v6 bool) (string, error) {
	a := r.targets[h]
	which := a[0]
	if v6 {
		which = a[1]
	}
	if !which.IsValid() {
		return "", fmt.Errorf("%q serves no traffic there: want one of %v", string(h), slices.Sorted(maps.Keys(r.targets)))
	}
	return net.JoinHostPort(which.String(), strconv.Itoa(traffic.Port)), nil
}

// Probe is a question whether a host can be reached.
type Probe struct {
	From, To netns.Host
	V6, UDP  bool
	// Deadline bounds all attempts, Attempt each of them.
	Deadline, Attempt time.Duration
}

// Reach probes. That the host was not reached is an error.
func (r *Rig) Reach(ctx context.Context, p Probe) (traffic.ProbeReport, error) {
	to, err := r.target(p.To, p.V6)
	if err != nil {
		return traffic.ProbeReport{}, err
	}
	args := []string{"probe", "--to", to, "--deadline", p.Deadline.String(), "--udp=" + strconv.FormatBool(p.UDP)}
	if p.Attempt > 0 {
		args = append(args, "--attempt", p.Attempt.String())
	}
	out, err := r.Lab.Run(ctx, p.From, r.program("traffic", "probe", args...))
	var report traffic.ProbeReport
	if decode := json.Unmarshal([]byte(out.Stdout), &report); err == nil && decode != nil {
		return report, fmt.Errorf("decode the probe's report: %w", decode)
	}
	return report, err
}

// ReachAddress asks a traffic server, by connections, until it answers at an
// address, which may be any of its machine's.
func (r *Rig) ReachAddress(ctx context.Context, from netns.Host, to netip.Addr, deadline, attempt time.Duration) error {
	_, err := r.Lab.Run(ctx, from, r.program("traffic", "probe", "probe", "--to", netip.AddrPortFrom(to, traffic.Port).String(),
		"--deadline", deadline.String(), "--attempt", attempt.String()))
	return err
}

// Unreachable probes and wants failure, for the whole of the time.
func (r *Rig) Unreachable(ctx context.Context, p Probe) error {
	report, err := r.Reach(ctx, p)
	if err == nil {
		return fmt.Errorf("%s reaches %s after %.3f s, and must not", p.From, p.To, report.ElapsedSeconds)
	}
	if report.Attempts == 0 {
		return err
	}
	return nil
}

// Streams runs TCP at full speed.
func (r *Rig) Streams(ctx context.Context, from, to netns.Host, flows int, d time.Duration, reverse bool) (traffic.StreamReport, error) {
	address, err := r.target(to, false)
	if err != nil {
		return traffic.StreamReport{}, err
	}
	out, err := r.Lab.Run(ctx, from, r.program("traffic", "streams", "streams", "--to", address,
		"--flows", strconv.Itoa(flows), "--duration", d.String(), "--reverse="+strconv.FormatBool(reverse)))
	if err != nil {
		return traffic.StreamReport{}, err
	}
	var report traffic.StreamReport
	if err := json.Unmarshal([]byte(out.Stdout), &report); err != nil {
		return report, fmt.Errorf("decode the streams' report: %w", err)
	}
	return report, nil
}

// Datagrams are numbered datagrams that flow in the background.
type Datagrams struct {
	process *netns.Process
	out     *lockedBuffer
	// patience is how long it may take to end.
	patience time.Duration
}

// lockedBuffer is written by the process's copier while nobody reads.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// StartDatagrams sends numbered datagrams that come back, until Stop.
func (r *Rig) StartDatagrams(from, to netns.Host, v6 bool, flows int, interval time.Duration) (*Datagrams, error) {
	address, err := r.target(to, v6)
	if err != nil {
		return nil, err
	}
	d := &Datagrams{out: new(lockedBuffer), patience: r.slow.Longer(10*time.Second) + traffic.LingerLimit}
	s := r.program("traffic", "datagrams", "datagrams", "--to", address, "--flows", strconv.Itoa(flows), "--interval", interval.String())
	s.Stdout = d.out
	d.process, err = r.Lab.Start(from, s)
	return d, err
}

// Stop ends the sending and returns what was counted.
func (d *Datagrams) Stop() (traffic.DatagramReport, error) {
	if err := d.process.Stop(d.patience); err != nil {
		return traffic.DatagramReport{}, err
	}
	d.out.mu.Lock()
	defer d.out.mu.Unlock()
	var report traffic.DatagramReport
	if err := json.Unmarshal(d.out.b.Bytes(), &report); err != nil {
		return report, fmt.Errorf("decode the datagrams' report: %w: %s", err, tail(d.process.LogPath()))
	}
	return report, nil
}

// Forge sends packets with a forged source from a host.
func (r *Rig) Forge(ctx context.Context, from netns.Host, source, to netip.AddrPort, as traffic.Shape, count int) error {
	_, err := r.Lab.Run(ctx, from, r.program("traffic", "forge", "forge", "--from", source.String(), "--to", to.String(),
		"--as", string(as), "--count", strconv.Itoa(count)))
	return err
}

// Injection is frames that no stack would make.
type Injection struct {
	From      netns.Host
	Interface string
	// Circuit tells that Interface is in the circuit namespace of From's agent.
	Circuit bool
	// Source, To, MAC and Tags are as `traffic inject` takes them.
	Source, To, MAC, Tags string
	// Link is the number of the link whose mark they carry, 0 for no mark.
	Link, Count int
}

// CircuitNamespace is the name of the namespace that an appliance's circuit
// interfaces are in, and begins the names of their VLAN devices.
func (r *Rig) CircuitNamespace(h netns.Host) string { return "cs-" + r.Lab.Instance(h) }

// markBase is the upper half of the mark that encryptors' packets carry; see
// docs/architecture.md.
const markBase = 0x43530000

// Inject sends them.
func (r *Rig) Inject(ctx context.Context, i Injection) error {
	mark := 0
	if i.Link != 0 {
		mark = markBase | i.Link
	}
	s := r.program("traffic", "inject", "inject", "--interface", i.Interface, "--from", i.Source, "--to", i.To, "--mac", i.MAC,
		"--tags", i.Tags, "--mark", strconv.Itoa(mark), "--count", strconv.Itoa(i.Count))
	_, err := r.Lab.Run(ctx, i.From, r.inCircuit(i.From, i.Circuit, s))
	return err
}

// Replay keeps ESP packets that leave a machine by an interface, and sends them again.
func (r *Rig) Replay(ctx context.Context, from netns.Host, iface string, count int) error {
	_, err := r.Lab.Run(ctx, from, r.program("traffic", "replay", "replay", "--interface", iface, "--count", strconv.Itoa(count)))
	return err
}

// inCircuit has a program run in the circuit namespace of an appliance's agent,
// if it is to.
func (r *Rig) inCircuit(h netns.Host, circuit bool, s netns.Spec) netns.Spec {
	if circuit {
		s.Args = append([]string{"netns", "exec", r.CircuitNamespace(h), s.Path}, s.Args...)
		s.Path = "ip"
	}
	return s
}
