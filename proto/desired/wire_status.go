package desired

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

// ToWire converts without loss.
func (p Position) ToWire() *v1.Position {
	return &v1.Position{Epoch: p.Epoch, Revision: p.Revision}
}

// PositionFromWire reads a position; none is the zero one.
func PositionFromWire(w *v1.Position) Position {
	return Position{Epoch: w.GetEpoch(), Revision: w.GetRevision()}
}

// ToWire converts without loss, except that what is over the limits of
// StatusFromWire or over MaxStatus is cut: a node with much to complain about
// must not lose its controller by it.
func (s Status) ToWire() *v1.NodeStatus {
	w := &v1.NodeStatus{
		Version: clip(s.Version), Kernel: clip(s.Kernel), Time: timeToWire(s.Time),
		Acknowledged: s.Acknowledged.ToWire(), Applied: s.Applied.ToWire(),
		Problems:     convert(most(s.Problems, maxStatusProblems), clip),
		Capabilities: convert(most(s.Capabilities, maxStatusCapabilities), clip),
		Tunnels:      convert(most(s.Tunnels, maxStatusTunnels), tunnelStatusToWire),
		Guards: convert(most(s.Guards, maxStatusGuards), func(g GuardStatus) *v1.GuardStatus {
			return &v1.GuardStatus{Interface: clip(g.Interface), Layer: clip(g.Layer), Alive: g.Alive}
		}),
		Counters: convert(most(s.Counters, maxStatusCounters), func(c Counter) *v1.Counter {
			return &v1.Counter{Name: clip(c.Name), Interface: clip(c.Interface), Packets: c.Packets}
		}),
		Drift: convert(most(s.Drift, maxStatusDrift), func(d Drift) *v1.Drift {
			return &v1.Drift{What: clip(d.What), Count: d.Count, Last: timeToWire(d.Last), Detail: clip(d.Detail)}
		}),
		Charon:       charonToWire(s.Charon),
		IdentityKeys: convert(most(s.IdentityKeys, maxStatusIdentityKeys), identityKeyToWire),
	}
	if s.Rejection != nil {
		w.Rejection = &v1.Rejection{Position: s.Rejection.Position.ToWire(), Reason: clip(s.Rejection.Reason)}
	}
	fit(w)
	return w
}

func tunnelStatusToWire(t TunnelStatus) *v1.TunnelStatus {
	w := &v1.TunnelStatus{
		Id: clip(t.ID), Protocol: v1.TunnelProtocol(t.Protocol), Phase: v1.TunnelPhase(t.Phase), Backend: clip(t.Backend),
		LastHandshake: timeToWire(t.LastHandshake),
		ReceivedBytes: t.ReceivedBytes, SentBytes: t.SentBytes,
		ProbesSent: t.ProbesSent, ProbesLost: t.ProbesLost,
		Problem:                 clip(t.Problem),
		PresharedKeyGenerations: most(t.PresharedKeyGenerations, maxStatusGenerations),
		PresharedKeyUsed:        t.PresharedKeyUsed,
		Associations:            convert(most(t.Associations, maxStatusAssociations), associationToWire),
		Retiring:                t.Retiring,
	}
	if !t.PublicKey.IsZero() {
		w.PublicKey = t.PublicKey[:]
	}
	w.RoundTrip = durationToWire(t.RoundTrip)
	return w
}

// Limits on what a node may report: a controller holds one status per node.
const (
	maxStatusTunnels  = 20_000
	maxStatusCounters = 4_096
	maxStatusGuards   = 4_096
	maxStatusProblems = 256
	maxStatusDrift    = 64
	// maxStatusCapabilities is a bound, not a count of what there is.
	maxStatusCapabilities = 64
	maxStatusText         = 1_024
	// maxStatusGenerations is how many pre-shared keys a tunnel has at most.
	maxStatusGenerations = 2
	// maxStatusAlgorithms is several times what strongSwan knows.
	maxStatusAlgorithms   = 256
	maxStatusIdentityKeys = 4_096
	// maxStatusAssociations is more than a tunnel has while keys are replaced.
	maxStatusAssociations = 4
)

func most[T any](in []T, n int) []T { return in[:min(len(in), n)] }

// clip cuts a text to what a status carries and leaves out what is not UTF-8,
// which protobuf refuses to marshal.
func clip(s string) string { return shorten(s, maxStatusText) }

// shorten cuts a text to a number of bytes and says so where there is room.
func shorten(s string, n int) string {
	const mark = "…"
	if len(s) > n {
		s = s[:max(0, n-len(mark))] + mark[:min(n, len(mark))]
	}
	return strings.ToValidUTF8(s, "")
}

// StatusFromWire reads what ToWire wrote, within limits. Errors name the
// field's path.
func StatusFromWire(w *v1.NodeStatus) (Status, error) {
	r := &reader{}
	s := Status{
		Version: r.text("version", w.GetVersion()), Kernel: r.text("kernel", w.GetKernel()),
		Time:         timeFromWire(r, "time", w.GetTime()),
		Acknowledged: PositionFromWire(w.GetAcknowledged()), Applied: PositionFromWire(w.GetApplied()),
	}
	r.limit("problems", len(w.GetProblems()), maxStatusProblems)
	r.limit("tunnels", len(w.GetTunnels()), maxStatusTunnels)
	r.limit("guards", len(w.GetGuards()), maxStatusGuards)
	r.limit("counters", len(w.GetCounters()), maxStatusCounters)
	r.limit("drift", len(w.GetDrift()), maxStatusDrift)
	r.limit("capabilities", len(w.GetCapabilities()), maxStatusCapabilities)
	r.limit("identity_keys", len(w.GetIdentityKeys()), maxStatusIdentityKeys)
	if r.err != nil {
		return Status{}, r.err
	}
	if j := w.GetRejection(); j != nil {
		s.Rejection = &Rejection{Position: PositionFromWire(j.GetPosition()), Reason: r.text("rejection.reason", j.GetReason())}
	}
	for i, p := range w.GetProblems() {
		s.Problems = append(s.Problems, r.text(fmt.Sprintf("problems[%d]", i), p))
	}
	for i, c := range w.GetCapabilities() {
		s.Capabilities = append(s.Capabilities, r.text(fmt.Sprintf("capabilities[%d]", i), c))
	}
	s.Tunnels = read(r, "tunnels", w.GetTunnels(), readTunnelStatus)
	s.Guards = read(r, "guards", w.GetGuards(), func(r *reader, g *v1.GuardStatus) GuardStatus {
		return GuardStatus{Interface: r.text("interface", g.GetInterface()), Layer: r.text("layer", g.GetLayer()), Alive: g.GetAlive()}
	})
	s.Counters = read(r, "counters", w.GetCounters(), func(r *reader, c *v1.Counter) Counter {
		return Counter{Name: r.text("name", c.GetName()), Interface: r.text("interface", c.GetInterface()), Packets: c.GetPackets()}
	})
	s.Drift = read(r, "drift", w.GetDrift(), func(r *reader, d *v1.Drift) Drift {
		return Drift{What: r.text("what", d.GetWhat()), Count: d.GetCount(), Last: timeFromWire(r, "last", d.GetLast()), Detail: r.text("detail", d.GetDetail())}
	})
	s.Charon = readCharon(r, w.GetCharon())
	s.IdentityKeys = read(r, "identity_keys", w.GetIdentityKeys(), readIdentityKey)
	if r.err != nil {
		return Status{}, r.err
	}
	return s, nil
}

func readTunnelStatus(r *reader, t *v1.TunnelStatus) TunnelStatus {
	key, err := PublicKeyFromBytes(t.GetPublicKey())
	r.fail("public_key", err)
	phase := Phase(narrow[uint8](r, "phase", uint32(t.GetPhase())))
	if phase < PhasePending || phase > PhaseUp {
		r.fail("phase", fmt.Errorf("%d is unknown to this version", t.GetPhase()))
	}
	// 0 is from an agent that knows WireGuard only.
	protocol := Protocol(narrow[uint8](r, "protocol", uint32(t.GetProtocol())))
	if protocol > ProtocolIPsec {
		r.fail("protocol", fmt.Errorf("%d is unknown to this version", t.GetProtocol()))
	}
	r.limit("preshared_key_generations", len(t.GetPresharedKeyGenerations()), maxStatusGenerations)
	r.limit("associations", len(t.GetAssociations()), maxStatusAssociations)
	return TunnelStatus{
		ID: r.text("id", t.GetId()), Protocol: protocol, Phase: phase, Backend: r.text("backend", t.GetBackend()),
		PublicKey:     key,
		LastHandshake: timeFromWire(r, "last_handshake", t.GetLastHandshake()),
		ReceivedBytes: t.GetReceivedBytes(), SentBytes: t.GetSentBytes(),
		ProbesSent: t.GetProbesSent(), ProbesLost: t.GetProbesLost(),
		RoundTrip: t.GetRoundTrip().AsDuration(),
		Problem:   r.text("problem", t.GetProblem()),

		PresharedKeyGenerations: t.GetPresharedKeyGenerations(),
		PresharedKeyUsed:        t.GetPresharedKeyUsed(),
		Associations:            read(r, "associations", t.GetAssociations(), readAssociation),
		Retiring:                t.GetRetiring(),
	}
}

func (r *reader) text(field, s string) string {
	r.limit(field, len(s), maxStatusText)
	return s
}

func (r *reader) limit(field string, n, most int) {
	if n > most {
		r.fail(field, fmt.Errorf("has length %d, at most %d are taken", n, most))
	}
}

func timeToWire(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func timeFromWire(r *reader, field string, w *timestamppb.Timestamp) time.Time {
	if w == nil {
		return time.Time{}
	}
	r.fail(field, w.CheckValid())
	return w.AsTime()
}
