package agent

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/circuitseal/circuitseal/proto/desired"
)

// An agent that has not heard of its controller for longer than a group may do
// without closes the group, goes on doing so after a restart, and opens it with
// the controller's first message. A connection that says nothing is none.
func TestOfflineForTooLong(t *testing.T) {
	l := newLiar(t)
	first, second := desired.ProbeAddresses(7)
	tunnel := desired.Tunnel{
		ID: "c/shut/er/primary", Number: 7, Link: "c/er/primary", MTU: 1328, LocalProbe: first, RemoteProbe: second,
		Local: netip.MustParseAddrPort("172.16.10.1:51826"), Remote: netip.MustParseAddrPort("172.20.255.4:51826"),
		// No key of the peer, so that no device is made on this host.
		WireGuard: &desired.WireGuard{},
	}
	state := desired.State{
		Interfaces: []desired.Interface{
			{Name: "none0", Role: desired.RoleCircuit, Addresses: []netip.Prefix{netip.MustParsePrefix("172.16.10.1/30")}},
		},
		Links: []desired.Link{{ID: "c/er/primary", Number: 3, Interface: "none0", NextHop: netip.MustParseAddr("172.16.10.2")}},
		Sections: []desired.Section{{Customer: "c", Tenant: 1, Groups: []desired.Group{
			{ID: "c/on", Number: 4, MaxOffline: 2 * time.Hour, OfflineAction: desired.OfflineContinue},
			{ID: "c/shut", Number: 5, MaxOffline: time.Hour, OfflineAction: desired.OfflineClose, Tunnels: []desired.Tunnel{tunnel}},
		}}},
	}
	good := l.seal(t, desired.Header{Node: "prem-1", Position: desired.Position{Epoch: 1, Revision: 1}, Issued: time.Now()}, state, l.by)
	shut := func(s desired.Status) bool {
		problems := strings.Join(s.Problems, "\n")
		return strings.Contains(problems, "connection c/shut: nothing was heard of the controller for ") &&
			strings.Contains(problems, "its tunnels are closed until the controller answers") &&
			strings.Contains(problems, "connection c/on: nothing was heard of the controller for ") &&
			slices.ContainsFunc(s.Tunnels, func(t desired.TunnelStatus) bool { return strings.Contains(t.Problem, "closed: ") })
	}
	opened := func(s desired.Status) bool {
		return s.Acknowledged.Revision == 1 && !strings.Contains(strings.Join(s.Problems, "\n"), "nothing was heard") &&
			slices.ContainsFunc(s.Tunnels, func(t desired.TunnelStatus) bool {
				return strings.Contains(t.Problem, "waits for the peer's public key")
			})
	}

	stop := start(t, l.config)
	l.until(t, good, "the state is taken", opened)
	stop()

	// Another boot found three hours gone.
	file := filepath.Join(l.instance.StateDir(), "last-contact")
	gone := `{"boot":"before","sinceBootNanoseconds":0,"wall":"` + time.Now().UTC().Format(time.RFC3339) + `","ageNanoseconds":10800000000000}`
	if err := os.WriteFile(file, []byte(gone), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		stop = start(t, l.config)
		l.until(t, nil, "closed", shut)
		stop()
	}
	stop = start(t, l.config)
	l.until(t, nil, "closed", shut)
	l.until(t, nil, "still closed", shut)
	l.until(t, good, "open again", opened)
	stop()
}
