package ipsec

import (
	"cmp"
	"context"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/proto/desired"
)

// TunnelState is what was negotiated for a tunnel, not what was asked for.
type TunnelState struct {
	ID, Device string
	// Backend is who encrypts, as ipsec-kernel or ipsec-libipsec.
	Backend string
	// Up tells that packets can go both ways, by SAs that the policy allows.
	Up bool
	// Established is when the IKE SA was, zero where charon does not know.
	Established time.Time
	// ReceivedBytes and SentBytes are of the ESP SA: inner bytes since it was made.
	ReceivedBytes, SentBytes uint64
	// PresharedHeld are the generations that charon has of the tunnel's pre-shared
	// keys, in the order of the plan; PresharedUsed is that which the IKE SA began
	// with, 0 while that is not known.
	PresharedHeld []uint64
	PresharedUsed uint64
	// Associations are what was negotiated, the one that counts first.
	Associations []desired.SecurityAssociation
	// Problem is a sentence, empty when nothing is wrong.
	Problem string
}

// What Problem says that is no reason of charon's.
const (
	waitsForPeer   = "there is no SA: the far end begins, and has not yet"
	waitsForAnswer = "there is no SA yet"
	unknownSA      = "the kernel still carries packets by SAs of a charon that has died, until the tunnel begins anew, their time is over, or for three minutes after its policy has changed"
)

// Status reads every tunnel of the last Sync, sorted by ID. Where charon does not
// run, tunnels whose SAs it has left in the kernel carry on. An error means that
// nothing could be read.
func (d *Driver) Status(ctx context.Context) ([]TunnelState, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.tunnels) == 0 {
		return nil, nil
	}
	trouble := ""
	var sas map[uint16][]namedSA
	_, err := d.session(ctx, false)
	if err == nil {
		sas, err = d.listSAs(ctx)
	}
	if err != nil {
		trouble = err.Error()
	}
	states := make([]TunnelState, 0, len(d.tunnels))
	now := time.Now()
	lonely := false
	for _, t := range d.tunnels {
		s := d.state(t, sas[t.Number], now)
		if s.Problem == "" || !s.Up && trouble != "" {
			s.Problem = cmp.Or(trouble, s.Problem)
		}
		lonely = lonely || !s.Up
		states = append(states, s)
	}
	if lonely && d.backend == Kernel {
		if err := d.addKernel(states); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(states, func(a, b TunnelState) int { return cmp.Compare(a.ID, b.ID) })
	return states, nil
}

func (d *Driver) state(t *tunnel, sas []namedSA, now time.Time) TunnelState {
	sas = slices.DeleteFunc(sas, func(x namedSA) bool { return x.connection.tunnel != t.connection.name.tunnel })
	s := TunnelState{ID: t.ID, Device: t.Device, Backend: "ipsec-" + d.backend.String(), Problem: t.problem}
	for _, k := range t.PresharedKeys {
		if d.open == nil {
			// What charon has is not known.
			break
		}
		for _, x := range t.connection.secrets {
			if x.key.Equal(k.Key) && d.loaded[x.id].Equal(k.Key) {
				s.PresharedHeld = append(s.PresharedHeld, k.Generation)
				break
			}
		}
	}
	if len(sas) > 0 {
		t.observe(sas, now)
	}
	up := slices.DeleteFunc(slices.Clone(sas), func(x namedSA) bool { return !x.up() })
	slices.SortFunc(up, func(a, b namedSA) int { return younger(t.connection.name, a, b) })
	for i, x := range up {
		e := evidence(t.IPsecTunnel, d.backend, x.ikeSA)
		if !t.connection.name.trusts(x.connection) {
			e.PeerCertificates = nil
		}
		e.Weakness = judge(t.IPsecTunnel, d.backend, x.ikeSA)
		s.Associations = append(s.Associations, e)
		if i > 0 {
			continue
		}
		c := x.child()
		// One that the policy does not allow any more carries on while the ends change
		// over, as decide has it; that of the connection as it is to be does not.
		s.Up = e.Weakness == "" || x.connection != t.connection.name
		if x.state != ikeRekeying {
			s.Established = now.Add(-x.age)
		}
		s.ReceivedBytes, s.SentBytes = c.bytesIn, c.bytesOut
		s.PresharedUsed = t.used[x.id]
		if e.Weakness != "" {
			s.Problem = "the SA is weaker than its policy: " + e.Weakness
		}
	}
	if len(up) > 0 || s.Problem != "" {
		return s
	}
	switch {
	case t.weakness != "":
		s.Problem = "an SA was taken down that was weaker than its policy: " + t.weakness
	case t.reason != "":
		s.Problem = t.reason
	case t.Initiates:
		s.Problem = waitsForAnswer
	default:
		s.Problem = waitsForPeer
	}
	return s
}

// addKernel adds what the kernel has of tunnels that charon has no SA of.
func (d *Driver) addKernel(states []TunnelState) error {
	h, err := d.config.Circuit.Netlink(unix.NETLINK_XFRM)
	if err != nil {
		return err
	}
	defer h.Close()
	have, err := readKernel(h)
	if err != nil {
		return err
	}
	for i, s := range states {
		n, _ := deviceOf(d.config.Instance, s.Device)
		t, ok := d.tunnels[n]
		if !ok || s.Up || len(s.Associations) > 0 || t.weakness != "" {
			continue
		}
		local := t.Local.String()
		if k := have[n]; k.carries(local) {
			in, out := k.counters(local)
			states[i].Up, states[i].Problem = true, unknownSA
			states[i].ReceivedBytes, states[i].SentBytes = in.Bytes, out.Bytes
		}
	}
	return nil
}
