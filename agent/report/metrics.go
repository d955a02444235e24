package report

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/circuitseal/circuitseal/proto/desired"
)

// Metrics is a node's status as Prometheus metrics. It keeps nothing: a scrape
// reads the drivers, as a status does, so that both say the same. Its labels
// are bounded by what the node is configured with.
type Metrics struct {
	status func(context.Context) desired.Status
}

// readTimeout bounds what a scrape may take of the drivers.
const readTimeout = 10 * time.Second

// NewMetrics makes a collector that calls status at every scrape.
func NewMetrics(status func(context.Context) desired.Status) *Metrics {
	return &Metrics{status: status}
}

func description(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("circuitseal_"+name, help, labels, nil)
}

var (
	infoDesc         = description("agent_info", "The agent's version and the kernel that it runs on; always 1.", "version", "kernel")
	epochDesc        = description("agent_state_epoch", "Epoch of the newest state that the agent has acknowledged or applied in full.", "stage")
	revisionDesc     = description("agent_state_revision", "Revision of the newest state that the agent has acknowledged or applied in full.", "stage")
	rejectedDesc     = description("agent_state_rejected", "1 while the last state that was received is refused.")
	problemsDesc     = description("agent_problems", "How many things are wrong; `circuitseal-agent status` says which.")
	tunnelUpDesc     = description("tunnel_up", "1 while the tunnel's probe is answered.", append(tunnelLabels(), "backend")...)
	tunnelShakeDesc  = description("tunnel_last_handshake_timestamp_seconds", "When the last handshake was, since the epoch; absent before the first.", tunnelLabels()...)
	tunnelInDesc     = description("tunnel_received_bytes_total", "Bytes received in the tunnel.", tunnelLabels()...)
	tunnelOutDesc    = description("tunnel_sent_bytes_total", "Bytes sent into the tunnel.", tunnelLabels()...)
	tunnelProbesDesc = description("tunnel_probes_sent_total", "Probes sent through the tunnel.", tunnelLabels()...)
	tunnelLostDesc   = description("tunnel_probes_lost_total", "Probes that were not answered in time.", tunnelLabels()...)
	tunnelWeakDesc   = description("tunnel_weak", "1 while an SA of the tunnel is weaker than its crypto profile; it is taken down.", tunnelLabels()...)
	tunnelDelayDesc  = description("tunnel_probe_round_trip_seconds", "Round trip of the last probe that was answered; absent before the first.", tunnelLabels()...)
	guardDesc        = description("guard_layer_alive", "1 while a layer of the guard closes the circuit interface.", "interface", "layer")
	repairsDesc      = description("repairs_total", "What somebody else changed and the agent put right, by driver and kind.", "what")
	packetsDesc      = description("packets_total", "Packets that the guard and the classifier have counted, by what became of them.", "counter", "interface")
)

// idLabels are the parts of a tunnel's ID.
func idLabels() []string { return []string{"customer", "connection", "circuit", "link"} }

// tunnelLabels are those parts and the protocol: a tunnel that changes it has both.
func tunnelLabels() []string { return append(idLabels(), "protocol") }

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		infoDesc, epochDesc, revisionDesc, rejectedDesc, problemsDesc,
		tunnelUpDesc, tunnelShakeDesc, tunnelInDesc, tunnelOutDesc, tunnelProbesDesc, tunnelLostDesc, tunnelDelayDesc, tunnelWeakDesc,
		guardDesc, packetsDesc, repairsDesc,
	} {
		out <- d
	}
}

// Collect implements prometheus.Collector. It reads the drivers.
func (m *Metrics) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), readTimeout)
	defer cancel()
	s := m.status(ctx)
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(infoDesc, 1, s.Version, s.Kernel)
	for stage, p := range map[string]desired.Position{"acknowledged": s.Acknowledged, "applied": s.Applied} {
		gauge(epochDesc, float64(p.Epoch), stage)
		gauge(revisionDesc, float64(p.Revision), stage)
	}
	gauge(rejectedDesc, truth(s.Rejection != nil))
	gauge(problemsDesc, float64(len(s.Problems)))
	for _, t := range s.Tunnels {
		parts := strings.SplitN(t.ID, "/", len(idLabels()))
		if len(parts) != len(idLabels()) {
			continue
		}
		parts = append(parts, t.Protocol.String())
		gauge(tunnelUpDesc, truth(t.Phase == desired.PhaseUp), append(parts, t.Backend)...)
		if !t.LastHandshake.IsZero() {
			gauge(tunnelShakeDesc, float64(t.LastHandshake.UnixMilli())/1e3, parts...)
		}
		if t.RoundTrip > 0 {
			gauge(tunnelDelayDesc, t.RoundTrip.Seconds(), parts...)
		}
		if t.Protocol == desired.ProtocolIPsec {
			weak := slices.ContainsFunc(t.Associations, func(a desired.SecurityAssociation) bool { return a.Weakness != "" })
			gauge(tunnelWeakDesc, truth(weak), parts...)
		}
		count(tunnelInDesc, t.ReceivedBytes, parts...)
		count(tunnelOutDesc, t.SentBytes, parts...)
		count(tunnelProbesDesc, t.ProbesSent, parts...)
		count(tunnelLostDesc, t.ProbesLost, parts...)
	}
	for _, g := range s.Guards {
		gauge(guardDesc, truth(g.Alive), g.Interface, g.Layer)
	}
	for _, d := range s.Drift {
		count(repairsDesc, d.Count, d.What)
	}
	for _, c := range s.Counters {
		count(packetsDesc, c.Packets, c.Name, c.Interface)
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
