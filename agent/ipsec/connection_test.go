package ipsec

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/strongswan/govici/vici"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/proto/desired"
)

const inst = instance.Instance("main")

func sample() plan.IPsecTunnel {
	return plan.IPsecTunnel{
		ID: "customer/connection/circuit/link", Device: inst.IPsecDevice(7), Number: 7,
		InterfaceID: instance.InterfaceID(7), Mark: instance.Mark(3), MTU: 1400,
		Local: netip.MustParseAddr("192.0.2.1"), Remote: netip.MustParseAddr("192.0.2.2"), Initiates: true,
		Policy: desired.IPsecPolicy{
			LocalID: "a.example", RemoteID: "b.example", Authentication: desired.AuthenticationCertificate,
			PeerCertificates: [][]byte{[]byte("peer")}, IKEProposals: []string{"aes256gcm16-prfsha384-ecp384"},
			ESPProposals: []string{"aes256gcm16-ecp384-esn"}, PPKRequired: true,
			IKELifetime: 4 * time.Hour, ESPLifetime: time.Hour, DPDDelay: 10 * time.Second,
		},
		PresharedKeys: []desired.PresharedKey{{Generation: 1, Key: desired.Secret{1}}, {Generation: 2, Key: desired.Secret{2}}},
		Locals:        []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, Remotes: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")},
	}
}

func build(t plan.IPsecTunnel, preferred int) connection {
	return connect(inst, Kernel, t, []byte("own"), [][]byte{[]byte("ca")}, preferred)
}

// text is a message as lines.
func text(m *vici.Message, indent string) string {
	var b strings.Builder
	for _, k := range m.Keys() {
		switch v := m.Get(k).(type) {
		case *vici.Message:
			fmt.Fprintf(&b, "%s%s\n%s", indent, k, text(v, indent+"  "))
		default:
			fmt.Fprintf(&b, "%s%s = %v\n", indent, k, v)
		}
	}
	return b.String()
}

func TestConnection(t *testing.T) {
	c := build(sample(), 0)
	name := c.name.in(inst)
	want := name + `
  version = 2
  local_addrs = [192.0.2.1]
  remote_addrs = [192.0.2.2]
  proposals = [aes256gcm16-prfsha384-ecp384]
  mobike = no
  fragmentation = yes
  encap = no
  unique = never
  send_cert = always
  send_certreq = yes
  dpd_delay = 10s
  rekey_time = 14400s
  over_time = 1440s
  ppk_id = 1.` + ppk + `
  ppk_required = yes
  keyingtries = 0
  local
    id = a.example
    auth = pubkey
    certs = [own]
  remote
    id = b.example
    revocation = relaxed
    auth = pubkey
    certs = [peer]
    cacerts = [ca]
  children
    g1
      mode = tunnel
      esp_proposals = [aes256gcm16-ecp384-esn]
      local_ts = [0.0.0.0/0 ::/0]
      remote_ts = [0.0.0.0/0 ::/0]
      reqid = 1129512967
      set_mark_out = 0x43530003
      rekey_time = 3600s
      life_time = 3960s
      rekey_bytes = 384000000000
      life_bytes = 480000000000
      rekey_packets = 268435456
      life_packets = 335544320
      replay_window = 1024
      start_action = none
      dpd_action = restart
      close_action = start
      copy_dscp = out
      if_id_in = 0x43530007
      if_id_out = 0x43530007
`
	if d := cmp.Diff(want, text(c.message, "")); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if !strings.HasPrefix(name, "cs-main.7.") {
		t.Errorf("name %s", name)
	}
	if n, ours := parseName(inst, name); !ours || n != c.name {
		t.Errorf("parsed %+v, %t; want %+v", n, ours, c.name)
	}
	for _, other := range []string{"cs-main2.7.t.a.b", "cs-main.7", "cs-main.x.t.a.b", "cs-main.70000.t.a.b", "home", ""} {
		if n, ours := parseName(inst, other); ours {
			t.Errorf("%q is taken for %+v", other, n)
		}
	}
}

const ppk = "eoi7rtgtu4e18sc7.ppk.circuitseal"

// A name changes with everything that is loaded, and not with the secrets' bits.
func TestNameTellsWhatIsLoaded(t *testing.T) {
	base := build(sample(), 0)
	same := map[string]func(*plan.IPsecTunnel){
		"prefixes":                func(t *plan.IPsecTunnel) { t.Locals = nil },
		"a secret":                func(t *plan.IPsecTunnel) { t.PresharedKeys[0].Key[5] = 9 },
		"the key to fall back to": func(t *plan.IPsecTunnel) { t.PresharedKeys = t.PresharedKeys[:1] },
		"the MTU":                 func(t *plan.IPsecTunnel) { t.MTU = 1300 },
		"the profile's name":      func(t *plan.IPsecTunnel) { t.Policy.Profile = "other" },
	}
	for name, change := range same {
		x := sample()
		change(&x)
		if c := build(x, 0); c.name != base.name {
			t.Errorf("%s: another name", name)
		}
	}
	others := map[string]struct {
		change func(*plan.IPsecTunnel)
		trust  bool
	}{
		"remote":         {func(t *plan.IPsecTunnel) { t.Remote = t.Remote.Next() }, false},
		"proposal":       {func(t *plan.IPsecTunnel) { t.Policy.IKEProposals = []string{"x"} }, false},
		"ESP proposal":   {func(t *plan.IPsecTunnel) { t.Policy.ESPProposals = []string{"x"} }, false},
		"lifetime":       {func(t *plan.IPsecTunnel) { t.Policy.ESPLifetime++; t.Policy.ESPLifetime += time.Second }, false},
		"packets":        {func(t *plan.IPsecTunnel) { t.Policy.ESPPackets = 5 }, false},
		"DPD":            {func(t *plan.IPsecTunnel) { t.Policy.DPDDelay = time.Minute }, false},
		"encapsulation":  {func(t *plan.IPsecTunnel) { t.Policy.UDPEncapsulation = true }, false},
		"generation":     {func(t *plan.IPsecTunnel) { t.PresharedKeys[0].Generation = 9 }, false},
		"mark":           {func(t *plan.IPsecTunnel) { t.Mark++ }, false},
		"selectors":      {func(t *plan.IPsecTunnel) { t.Policy.LocalSelectors, t.Policy.RemoteSelectors = t.Locals, t.Remotes }, false},
		"peer":           {func(t *plan.IPsecTunnel) { t.Policy.RemoteID = "c.example" }, true},
		"certificate":    {func(t *plan.IPsecTunnel) { t.Policy.PeerCertificates = [][]byte{[]byte("x")} }, true},
		"no certificate": {func(t *plan.IPsecTunnel) { t.Policy.PeerCertificates = nil }, true},
		"no PPK":         {func(t *plan.IPsecTunnel) { t.Policy.PPKRequired = false }, true},
		"PSK":            {func(t *plan.IPsecTunnel) { t.Policy.Authentication = desired.AuthenticationPSK }, true},
	}
	for name, o := range others {
		x := sample()
		o.change(&x)
		c := build(x, 0)
		if c.name.whole == base.name.whole || (c.name.trust != base.name.trust) != o.trust {
			t.Errorf("%s: name %+v after %+v", name, c.name, base.name)
		}
	}
	if c := build(sample(), 1); c.name.whole == base.name.whole || c.generation != 2 || c.secrets[0].key != (desired.Secret{2}) {
		t.Errorf("with the other pre-shared key: %+v", c)
	}
}

// Who pins one certificate more still trusts whom it trusted before.
func TestTrusts(t *testing.T) {
	name := func(change func(*desired.IPsecPolicy), pins ...string) connectionName {
		x := sample()
		x.Policy.PeerCertificates = nil
		for _, p := range pins {
			x.Policy.PeerCertificates = append(x.Policy.PeerCertificates, []byte(p))
		}
		if change != nil {
			change(&x.Policy)
		}
		return nameOf(x, [][]byte{[]byte("authority")})
	}
	for _, tt := range []struct {
		name      string
		now, then connectionName
		want      bool
	}{
		{"the same", name(nil, "a"), name(nil, "a"), true},
		{"in another order", name(nil, "a", "b"), name(nil, "b", "a"), true},
		{"one more", name(nil, "a", "b"), name(nil, "a"), true},
		{"one less", name(nil, "b"), name(nil, "a", "b"), false},
		{"another", name(nil, "b"), name(nil, "a"), false},
		{"any before", name(nil, "a"), name(nil), false},
		{"another identity", name(func(p *desired.IPsecPolicy) { p.RemoteID = "c.example" }, "a"), name(nil, "a"), false},
	} {
		if got := tt.now.trusts(tt.then); got != tt.want {
			t.Errorf("%s: %t, want %t", tt.name, got, tt.want)
		}
	}
}

// The end that answers takes any generation, so that the other one changes over alone.
func TestAnsweringEnd(t *testing.T) {
	x := sample()
	x.Initiates = false
	c := build(x, 0)
	x.PresharedKeys[0], x.PresharedKeys[1] = x.PresharedKeys[1], x.PresharedKeys[0]
	if other := build(x, 0); other.name != c.name {
		t.Error("the order of its keys changes its connection")
	}
	lines := text(c.message, "")
	for _, want := range []string{"ppk_id = *." + ppk, "keyingtries = 1", "dpd_action = clear", "close_action = none", "    g0\n"} {
		if !strings.Contains(lines, want) {
			t.Errorf("%q is missing of\n%s", want, lines)
		}
	}
}

func TestSecretsArePrintedNowhere(t *testing.T) {
	x := sample()
	x.Policy.Authentication = desired.AuthenticationPSK
	for _, c := range []connection{build(sample(), 0), build(x, 0)} {
		printed := fmt.Sprintf("%v %+v %#v %s", c.secrets, c.secrets, c.secrets, load{verb: loadSecret, secret: c.secrets[0]})
		for _, s := range c.secrets {
			for _, form := range []string{string(s.key[:4]), base64.StdEncoding.EncodeToString(s.key[:]), "1, 0, 0", "[1 0 0", "0x1, 0x0"} {
				if strings.Contains(printed, form) {
					t.Errorf("a secret is in %q", printed)
				}
			}
		}
	}
	p := build(x, 0).secrets
	if p[0].data() != base64.StdEncoding.EncodeToString(p[0].key[:]) || p[0].id != "cs-main.7.psk.1.2" || p[1].id != "cs-main.7.psk.0.1" {
		t.Errorf("PSKs %v", p)
	}
}

func TestLifetimes(t *testing.T) {
	tests := []struct {
		name   string
		policy desired.IPsecPolicy
		want   lifetimes
	}{
		{"our bounds", desired.IPsecPolicy{ESPProposals: []string{"aes256gcm16-esn"}}, lifetimes{
			ike: 4 * time.Hour, ikeOver: 24 * time.Minute, esp: time.Hour, espLife: 66 * time.Minute,
			bytes: 384e9, bytesLife: 480e9, packets: 1 << 28, packetsLife: 5 << 26,
		}},
		{"the policy's", desired.IPsecPolicy{ESPProposals: []string{"aes256gcm16-esn"}, IKELifetime: time.Minute, ESPLifetime: 40 * time.Second, ESPBytes: 1000, ESPPackets: 1 << 33}, lifetimes{
			ike: time.Minute, ikeOver: 30 * time.Second, esp: 40 * time.Second, espLife: 70 * time.Second,
			bytes: 1000, bytesLife: 1250, packets: 1 << 33, packetsLife: 10 << 30,
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := lifetimesOf(tt.policy); got != tt.want {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		})
	}
	for _, p := range []string{"aes256gcm16", "aes256gcm16-noesn", "aes256gcm16-esn-noesn", "aes256-sha256-modp2048"} {
		if l := lifetimesOf(desired.IPsecPolicy{ESPProposals: []string{"aes256gcm16-esn", p}, ESPPackets: 1 << 33}); l.packetsLife > 1<<31 {
			t.Errorf("%s: an SA may carry %d packets, and its sequence numbers end at 2^32", p, l.packetsLife)
		}
	}
}
