package report

import (
	"context"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/circuitseal/circuitseal/proto/desired"
)

func TestMetrics(t *testing.T) {
	status := desired.Status{
		Version: "v1", Kernel: "6.12",
		Acknowledged: desired.Position{Epoch: 2, Revision: 9}, Applied: desired.Position{Epoch: 2, Revision: 8},
		Rejection: &desired.Rejection{Reason: "is older"}, Problems: []string{"one", "two"},
		Tunnels: []desired.TunnelStatus{
			{
				ID: "contoso/hq/er1/primary", Protocol: desired.ProtocolWireGuard, Phase: desired.PhaseUp, Backend: "wireguard-kernel",
				LastHandshake: time.UnixMilli(1_700_000_000_500), ReceivedBytes: 1, SentBytes: 2,
				ProbesSent: 4, ProbesLost: 3, RoundTrip: 1500 * time.Microsecond,
			},
			{ID: "contoso/hq/er1/secondary", Protocol: desired.ProtocolIPsec, Phase: desired.PhasePending},
			{
				ID: "contoso/hq/er1/primary", Protocol: desired.ProtocolIPsec, Phase: desired.PhaseDown, Backend: "ipsec-kernel",
				Associations: []desired.SecurityAssociation{{}, {Weakness: "no PPK"}},
			},
		},
		Guards:   []desired.GuardStatus{{Interface: "er0", Layer: "ebpf", Alive: true}, {Interface: "er0", Layer: "nftables"}},
		Counters: []desired.Counter{{Name: "guard_out_dropped_no_mark", Interface: "er0", Packets: 5}},
		Drift:    []desired.Drift{{What: "link/route", Count: 7, Detail: "route replace 10.0.0.1/32"}},
	}
	m := NewMetrics(func(context.Context) desired.Status { return status })
	want := `
		# HELP circuitseal_agent_info The agent's version and the kernel that it runs on; always 1.
		# TYPE circuitseal_agent_info gauge
		circuitseal_agent_info{kernel="6.12",version="v1"} 1
		# HELP circuitseal_agent_problems How many things are wrong; ` + "`circuitseal-agent status`" + ` says which.
		# TYPE circuitseal_agent_problems gauge
		circuitseal_agent_problems 2
		# HELP circuitseal_agent_state_epoch Epoch of the newest state that the agent has acknowledged or applied in full.
		# TYPE circuitseal_agent_state_epoch gauge
		circuitseal_agent_state_epoch{stage="acknowledged"} 2
		circuitseal_agent_state_epoch{stage="applied"} 2
		# HELP circuitseal_agent_state_rejected 1 while the last state that was received is refused.
		# TYPE circuitseal_agent_state_rejected gauge
		circuitseal_agent_state_rejected 1
		# HELP circuitseal_agent_state_revision Revision of the newest state that the agent has acknowledged or applied in full.
		# TYPE circuitseal_agent_state_revision gauge
		circuitseal_agent_state_revision{stage="acknowledged"} 9
		circuitseal_agent_state_revision{stage="applied"} 8
		# HELP circuitseal_guard_layer_alive 1 while a layer of the guard closes the circuit interface.
		# TYPE circuitseal_guard_layer_alive gauge
		circuitseal_guard_layer_alive{interface="er0",layer="ebpf"} 1
		circuitseal_guard_layer_alive{interface="er0",layer="nftables"} 0
		# HELP circuitseal_packets_total Packets that the guard and the classifier have counted, by what became of them.
		# TYPE circuitseal_packets_total counter
		circuitseal_packets_total{counter="guard_out_dropped_no_mark",interface="er0"} 5
		# HELP circuitseal_repairs_total What somebody else changed and the agent put right, by driver and kind.
		# TYPE circuitseal_repairs_total counter
		circuitseal_repairs_total{what="link/route"} 7
		# HELP circuitseal_tunnel_last_handshake_timestamp_seconds When the last handshake was, since the epoch; absent before the first.
		# TYPE circuitseal_tunnel_last_handshake_timestamp_seconds gauge
		circuitseal_tunnel_last_handshake_timestamp_seconds{circuit="er1",connection="hq",customer="contoso",link="primary",protocol="wireguard"} 1.7000000005e+09
		# HELP circuitseal_tunnel_probe_round_trip_seconds Round trip of the last probe that was answered; absent before the first.
		# TYPE circuitseal_tunnel_probe_round_trip_seconds gauge
		circuitseal_tunnel_probe_round_trip_seconds{circuit="er1",connection="hq",customer="contoso",link="primary",protocol="wireguard"} 0.0015
		# HELP circuitseal_tunnel_probes_lost_total Probes that were not answered in time.
		# TYPE circuitseal_tunnel_probes_lost_total counter
		circuitseal_tunnel_probes_lost_total{circuit="er1",connection="hq",customer="contoso",link="primary",protocol="ipsec"} 0
		circuitseal_tunnel_probes_lost_total{circuit="er1",connection="hq",customer="contoso",link="primary",protocol="wireguard"} 3
		circuitseal_tunnel_probes_lost_total{circuit="er1",connection="hq",customer="contoso",link="secondary",protocol="ipsec"} 0
		# HELP circuitseal_tunnel_up 1 while the tunnel's probe is answered.
		# TYPE circuitseal_tunnel_up gauge
		circuitseal_tunnel_up{backend="",circuit="er1",connection="hq",customer="contoso",link="secondary",protocol="ipsec"} 0
		circuitseal_tunnel_up{backend="ipsec-kernel",circuit="er1",connection="hq",customer="contoso",link="primary",protocol="ipsec"} 0
		circuitseal_tunnel_up{backend="wireguard-kernel",circuit="er1",connection="hq",customer="contoso",link="primary",protocol="wireguard"} 1
		# HELP circuitseal_tunnel_weak 1 while an SA of the tunnel is weaker than its crypto profile; it is taken down.
		# TYPE circuitseal_tunnel_weak gauge
		circuitseal_tunnel_weak{circuit="er1",connection="hq",customer="contoso",link="primary",protocol="ipsec"} 1
		circuitseal_tunnel_weak{circuit="er1",connection="hq",customer="contoso",link="secondary",protocol="ipsec"} 0
	`
	if err := testutil.CollectAndCompare(m, strings.NewReader(want),
		"circuitseal_agent_info", "circuitseal_agent_problems", "circuitseal_agent_state_epoch", "circuitseal_agent_state_rejected",
		"circuitseal_agent_state_revision", "circuitseal_guard_layer_alive", "circuitseal_packets_total", "circuitseal_repairs_total",
		"circuitseal_tunnel_last_handshake_timestamp_seconds", "circuitseal_tunnel_probe_round_trip_seconds",
		"circuitseal_tunnel_probes_lost_total", "circuitseal_tunnel_up", "circuitseal_tunnel_weak"); err != nil {
		t.Error(err)
	}
	problems, err := testutil.CollectAndLint(m)
	if err != nil || len(problems) > 0 {
		t.Errorf("conventions: %v, %v", problems, err)
	}
	if err := prometheus.NewRegistry().Register(m); err != nil {
		t.Errorf("descriptions do not fit: %v", err)
	}
}

// What a status gains has to be thought of here too.
func TestMetricsKnowTheStatus(t *testing.T) {
	for _, c := range []struct {
		of    reflect.Type
		known []string
	}{
		// Time is the scrape's own. A tunnel's ID is its labels, its problem is
		// text, its key is nobody's business here, and how old keys of several
		// ends are is the controller's to say.
		{reflect.TypeFor[desired.Status](), []string{"Version", "Kernel", "Capabilities", "Time", "Acknowledged", "Applied", "Rejection", "Problems", "Tunnels", "Guards", "Counters", "Drift", "Charon", "IdentityKeys"}},
		{reflect.TypeFor[desired.TunnelStatus](), []string{"ID", "Phase", "Backend", "PublicKey", "LastHandshake", "ReceivedBytes", "SentBytes", "ProbesSent", "ProbesLost", "RoundTrip", "Problem", "PresharedKeyGenerations", "PresharedKeyUsed", "Protocol", "Associations", "Retiring"}},
	} {
		for _, f := range reflect.VisibleFields(c.of) {
			if !slices.Contains(c.known, f.Name) {
				t.Errorf("%s has a field %s that metrics do not know", c.of, f.Name)
			}
		}
	}
}

func TestMetricsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	out := make(chan *prometheus.Desc)
	go func() {
		defer close(out)
		(&Metrics{}).Describe(out)
	}()
	for d := range out {
		name := strings.Split(d.String(), `"`)[1]
		if !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("docs/operations.md does not know %s", name)
		}
	}
}
