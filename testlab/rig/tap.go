package rig

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/tap"
)

// innerMTU is the tunnels' MTU at the default path MTU of 1400 bytes: an IP header, 8
// bytes of UDP and 32 of WireGuard less.
func innerMTU(header int) int { return (1400 - header - 8 - 32) / 16 * 16 }

// wireGuardPorts are the ports of the two tunnels of deploy/samples.
const (
	PrimaryPort   = 51820
	SecondaryPort = 51821
)

// TapConfig is what may be seen on the links according to deploy/samples: the
// primary tunnel on the primary link only, the secondary on the secondary,
// both between the gateway and the NVA. They speak WireGuard, or what protocols
// say; while a connection changes, there are two. With IPv6 outside, nothing of
// IPv4 may be seen.
//
// Where somebody translates the NVA's addresses between the edges and the
// gateway, seen has what the edges see of each.
func (r *Rig) TapConfig(seen map[netip.Addr]netip.Addr, protocols ...tap.Protocol) tap.Config {
	u, overhead := netns.Underlay4, 20
	if r.ipv6 {
		u, overhead = netns.Underlay6, 40
	}
	at := func(h netns.Host, name, label string, addresses []netip.Addr, tunnels ...tap.Tunnel) tap.Interface {
		return tap.Interface{Namespace: netns.Path(r.Lab.Namespace(h)), Name: name, Label: label, Link: tap.Link{Addresses: addresses, Tunnels: tunnels}}
	}
	var first, second, inside []tap.Tunnel
	if len(protocols) == 0 {
		protocols = []tap.Protocol{tap.WireGuard}
	}
	outside := func(a netip.Addr) netip.Addr {
		if other, ok := seen[a]; ok {
			return other
		}
		return a
	}
	for _, p := range protocols {
		for _, x := range []struct {
			to        *[]tap.Tunnel
			near, far netip.Addr
			port      uint16
		}{{&first, u.PremPrimary, u.NVAFirst, PrimaryPort}, {&second, u.PremSecondary, u.NVASecond, SecondaryPort}} {
			near := netip.AddrPortFrom(x.near, x.port)
			*x.to = append(*x.to, tap.Of(p, near, netip.AddrPortFrom(outside(x.far), x.port)))
			inside = append(inside, tap.Of(p, near, netip.AddrPortFrom(x.far, x.port)))
		}
	}
	return tap.Config{
		Canary: r.Canary.Hex(), InnerMTU: innerMTU(overhead),
		Interfaces: append([]tap.Interface{
			at(netns.Edge1, netns.EdgeInterface, "primary", []netip.Addr{u.PremPrimary, u.EdgePrimary}, first...),
			at(netns.Edge2, netns.EdgeInterface, "secondary", []netip.Addr{u.PremSecondary, u.EdgeSecondary}, second...),
			at(netns.ErGw, netns.GatewayInterface, "gateway", []netip.Addr{u.Gateway, u.NVAFirst, u.NVASecond}, inside...),
		}, r.watches...),
	}
}

// Tap is a running tap.
type Tap struct {
	process *netns.Process
	ask     io.WriteCloser
	lines   *bufio.Reader
	once    sync.Once
	last    tap.Summary
	err     error
}

// StartTap starts the tap on all links, as TapConfig has it, and waits until it
// looks.
func (r *Rig) StartTap(seen map[netip.Addr]netip.Addr, protocols ...tap.Protocol) (*Tap, error) {
	config := r.file(fmt.Sprintf("tap-%d.json", len(r.taps)))
	b, err := json.Marshal(r.TapConfig(seen, protocols...))
	if err != nil {
		return nil, fmt.Errorf("encode the tap's configuration: %w", err)
	}
	if err := os.WriteFile(config, b, 0o600); err != nil {
		return nil, fmt.Errorf("write the tap's configuration: %w", err)
	}
	// Files, unlike io.Pipe, are handed to the process itself.
	stdin, ask, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe to the tap: %w", err)
	}
	answers, stdout, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a pipe from the tap: %w", err), stdin.Close(), ask.Close())
	}
	s := r.program("tap", "tap", "--config", config)
	s.Stdin, s.Stdout = stdin, stdout
	p, err := r.Lab.Start(netns.Ctl, s)
	_, _ = stdin.Close(), stdout.Close()
	if err != nil {
		return nil, errors.Join(err, ask.Close(), answers.Close())
	}
	t := &Tap{process: p, ask: ask, lines: bufio.NewReader(answers)}
	r.taps = append(r.taps, t)
	if _, err := t.lines.ReadBytes('\n'); err != nil {
		return nil, fmt.Errorf("start the tap: %w: %s", err, tail(p.LogPath()))
	}
	return t, nil
}

// Report says what was seen so far. An invalid result is an error.
func (t *Tap) Report() (tap.Summary, error) {
	if t.err != nil || t.ask == nil {
		return t.last, t.err
	}
	if _, err := io.WriteString(t.ask, "\n"); err != nil {
		return tap.Summary{}, fmt.Errorf("ask the tap: %w", err)
	}
	return t.read()
}

func (t *Tap) read() (tap.Summary, error) {
	line, err := t.lines.ReadBytes('\n')
	if err != nil {
		return tap.Summary{}, fmt.Errorf("read the tap's answer: %w: %s", err, tail(t.process.LogPath()))
	}
	var s tap.Summary
	if err := json.Unmarshal(line, &s); err != nil {
		return tap.Summary{}, fmt.Errorf("decode the tap's answer: %w", err)
	}
	if !s.Valid {
		return s, fmt.Errorf("the tap's result is invalid: %d frames dropped by the kernel: %+v", s.Drops, s.Interfaces)
	}
	return s, nil
}

// Stop ends the tap and returns its last word. Repeats return the same.
func (t *Tap) Stop(ctx context.Context) (tap.Summary, error) {
	t.once.Do(func() {
		_ = t.ask.Close()
		t.last, t.err = t.read()
		t.ask = nil
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		// Its exit status repeats the summary.
		_ = t.process.Wait(ctx)
	})
	return t.last, t.err
}

// Describe names the first frames in clear, for error messages.
func Describe(s tap.Summary) string {
	var text strings.Builder
	// A strings.Builder does not fail.
	_, _ = fmt.Fprintf(&text, "%d of %d frames in clear, %d with the canary", s.InClear, s.Frames, s.Canaries)
	for _, i := range s.Interfaces {
		for _, e := range i.Examples {
			_, _ = fmt.Fprintf(&text, "\n  %s, outgoing %t: %s: %.128s", i.Label, e.Outgoing, e.Reason, e.Header)
		}
	}
	return text.String()
}
