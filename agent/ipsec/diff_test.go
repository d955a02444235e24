package ipsec

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/proto/desired"
)

func lines[T interface{ String() string }](steps []T) string {
	var out []string
	for _, s := range steps {
		out = append(out, s.String())
	}
	return strings.Join(out, "\n")
}

func TestDiffLoads(t *testing.T) {
	c := build(sample(), 0)
	name := c.name.in(inst)
	old := "cs-main.7.tunnel.trust.old"
	keys := map[string]identityKey{"aa": {}}
	want := wanted{connections: map[uint16]connection{7: c}, initiates: map[uint16]bool{7: true}, keys: keys}
	loaded := map[string]desired.Secret{"cs-main.7.ppk.1": {1}, "cs-main.7.ppk.2": {2}}
	whole := held{connections: []string{name}, secrets: []string{"cs-main.7.ppk.1", "cs-main.7.ppk.2"}, keys: []string{"aa"}}
	tests := []struct {
		name       string
		want       wanted
		have       held
		loaded     map[string]desired.Secret
		now, later string
	}{
		{"all is there", want, whole, loaded, "", ""},
		{"nothing is there", want, held{}, loaded, "load private key aa\nload pre-shared key cs-main.7.ppk.1\nload pre-shared key cs-main.7.ppk.2\nload connection " + name + "\ninitiate connection " + name, ""},
		{"an agent that has just begun does not know the secrets", want, whole, nil, "load pre-shared key cs-main.7.ppk.1\nload pre-shared key cs-main.7.ppk.2", ""},
		{"another secret of the same generation", want, whole, map[string]desired.Secret{"cs-main.7.ppk.1": {9}, "cs-main.7.ppk.2": {2}}, "load pre-shared key cs-main.7.ppk.1", ""},
		{"it was another", want, held{connections: []string{old}, secrets: append([]string{"cs-main.7.ppk.0"}, whole.secrets...), keys: whole.keys}, loaded,
			"load connection " + name + "\nunload connection " + old + "\nunload pre-shared key cs-main.7.ppk.0\ninitiate connection " + name, ""},
		{"what is not wanted, and what is somebody else's", wanted{}, held{connections: []string{name, "home", "cs-mainx.7.t.a.b"}, secrets: []string{"cs-main.7.ppk.1", "home"}, keys: []string{"bb"}}, loaded,
			"", "unload connection " + name + "\nunload pre-shared key cs-main.7.ppk.1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			now, later := diffLoads(inst, tt.want, tt.have, tt.loaded)
			if d := cmp.Diff(tt.now, lines(now)); d != "" {
				t.Errorf("now (-want +got):\n%s", d)
			}
			if d := cmp.Diff(tt.later, lines(later)); d != "" {
				t.Errorf("later (-want +got):\n%s", d)
			}
		})
	}
}

func TestDiffDevices(t *testing.T) {
	x := sample()
	x.LocalProbe, x.RemoteProbe = desired.ProbeAddresses(7)
	probe := func(a netip.Addr) []netip.Prefix { return single(a) }
	whole := device{
		kind: kindXFRM, main: true, mtu: 1400, up: true, quiet: true,
		addresses: probe(x.LocalProbe), routes: probe(x.RemoteProbe),
	}
	fresh := `make device cs-main~7
set device cs-main~7 to make no address by itself
add address fdc5:5ea1:7d10::7:1/128 to device cs-main~7
set device cs-main~7 up
add route to fdc5:5ea1:7d10::7:2/128 by device cs-main~7`
	changed := whole
	changed.mtu, changed.up, changed.quiet = 1300, false, false
	changed.addresses, changed.routes = probe(netip.MustParseAddr("2001:db8::1")), nil
	other := whole
	other.kind = kindVeth
	tests := []struct {
		name       string
		have       map[string]device
		now, later string
	}{
		{"all is there", map[string]device{x.Device: whole}, "", ""},
		{"nothing is there", nil, fresh, ""},
		{"its maker died before it was moved", map[string]device{x.Device: {circuit: true}}, "remove device cs-main~7\n" + fresh, ""},
		{"another backend's", map[string]device{x.Device: other}, "remove device cs-main~7\n" + fresh, ""},
		{"changed", map[string]device{x.Device: changed}, `set device cs-main~7 to make no address by itself
set MTU of device cs-main~7 to 1400
add address fdc5:5ea1:7d10::7:1/128 to device cs-main~7
remove address 2001:db8::1/128 from device cs-main~7
set device cs-main~7 up
add route to fdc5:5ea1:7d10::7:2/128 by device cs-main~7`, ""},
		{"not wanted", map[string]device{x.Device: whole, "cs-main~9": whole}, "", "remove device cs-main~9"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			now, later := diffDevices([]plan.IPsecTunnel{x}, kindXFRM, tt.have)
			if d := cmp.Diff(tt.now, lines(now)); d != "" {
				t.Errorf("now (-want +got):\n%s", d)
			}
			if d := cmp.Diff(tt.later, lines(later)); d != "" {
				t.Errorf("later (-want +got):\n%s", d)
			}
		})
	}
	x.LocalProbe, x.RemoteProbe = netip.Addr{}, netip.Addr{}
	if steps := diffDevice(x, kindXFRM, device{}); strings.Contains(lines(steps), "address fd") {
		t.Errorf("of a far end that answers no probes: %s", lines(steps))
	}
}

func TestConfiguration(t *testing.T) {
	for _, b := range []Backend{Kernel, Libipsec} {
		text := configuration(b, "/run/x/charon.vici")
		for _, want := range []string{"install_routes = no", "fwmark = 0x43530000", "reuse_ikesa = no", "socket = unix:///run/x/charon.vici", "retransmit_tries = 8", "fragment_size = 1232"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: %q is missing", b, want)
			}
		}
		for _, never := range []string{"bypass-lan", "updown", "resolve", "attr", "%!"} {
			if strings.Contains(text, never) {
				t.Errorf("%s: %q is there", b, never)
			}
		}
		if has := strings.Contains(text, "kernel-libipsec kernel-netlink"); has != (b == Libipsec) {
			t.Errorf("%s: libipsec is loaded: %t", b, has)
		}
		if i, j := strings.Index(text, "aesni"), strings.Index(text, "gcm"); i > j {
			t.Errorf("%s: gcm comes before aesni", b)
		}
		if want := map[Backend]string{Kernel: "routing_table = 0", Libipsec: "routing_table = 220"}[b]; !strings.Contains(text, want) {
			t.Errorf("%s: %q is missing", b, want)
		}
	}
}

func TestReasons(t *testing.T) {
	tests := []struct{ line, want string }{
		{"received NO_PROPOSAL_CHOSEN notify error", "NO_PROPOSAL_CHOSEN"},
		{"tried 1 shared key for 'a' - 'b', but MAC mismatched", "pre-shared keys of the two ends differ"},
		{"subject certificate invalid (valid from Nov 27 to Nov 28)", "not valid now"},
		{"no trusted ECDSA public key found for 'b.example'", "no certificate that is pinned"},
		{"giving up after 8 retransmits", "does not answer"},
		{"parsed IKE_AUTH response 1 [ N(AUTH_FAILED) ]", ""},
		{"received INVALID_KE_PAYLOAD notify error", ""},
	}
	for _, tt := range tests {
		if _, got := (noise{text: tt.line}).reason(false); (tt.want == "") != (got == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%q is %q, want %q", tt.line, got, tt.want)
		}
	}
	if g, ok := (noise{text: "using PPK for PPK_ID '12.abc.ppk.circuitseal'"}).generation(); !ok || g != "12" {
		t.Errorf("generation %q, %t", g, ok)
	}
}

// TestBlame: what the latest attempt failed for is what counts, and of that what says
// most.
func TestBlame(t *testing.T) {
	var x tunnel
	for _, step := range []struct {
		ike        uint64
		line, want string
	}{
		{1, "received NO_PROPOSAL_CHOSEN notify error", "NO_PROPOSAL_CHOSEN"},
		{1, "giving up after 8 retransmits", "NO_PROPOSAL_CHOSEN"},
		{2, "parsed IKE_AUTH response 1 [ N(AUTH_FAILED) ]", "NO_PROPOSAL_CHOSEN"},
		{2, "received AUTHENTICATION_FAILED notify error", "AUTHENTICATION_FAILED"},
		{2, "tried 1 shared key for 'a' - 'b', but MAC mismatched", "pre-shared keys of the two ends differ"},
		{3, "giving up after 8 retransmits", "does not answer"},
	} {
		if x.blame(noise{ike: step.ike, text: step.line}); !strings.Contains(x.reason, step.want) {
			t.Errorf("after %q of IKE SA %d the reason is %q, want %q", step.line, step.ike, x.reason, step.want)
		}
	}
}
