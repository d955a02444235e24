package wireguard

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/proto/desired"
)

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range texts {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func wanted() want {
	return want{
		Tunnel: plan.Tunnel{
			ID: "contoso/hq/er1/primary", Device: "cs-t-1", Mark: 0x43530001, MTU: 1380,
			Local: netip.MustParseAddrPort("192.0.2.1:51820"), Peer: netip.MustParseAddrPort("192.0.2.2:51820"),
			PeerKey: desired.PublicKey{2}, AllowedIPs: prefixes("10.1.0.0/16", "fdc5::2/128"),
			LocalProbe: netip.MustParseAddr("fdc5::1"), RemoteProbe: netip.MustParseAddr("fdc5::2"),
		},
		public: desired.PublicKey{1},
		shared: &desired.PresharedKey{Generation: 7, Key: desired.Secret{7}},
	}
}

func inPlace() device {
	return device{
		backend: UserSpace, hosted: true, innerMTU: 1380,
		place: inMain, index: 5, mtu: 1380, up: true, quiet: true,
		addresses: prefixes("fdc5::1/128"), routes: prefixes("fdc5::2/128"),
		config: settings{
			public: desired.PublicKey{1}, port: 51820, mark: 0x43530001,
			peers: []peer{{
				key: desired.PublicKey{2}, endpoint: netip.MustParseAddrPort("192.0.2.2:51820"),
				allowed: prefixes("10.1.0.0/16", "fdc5::2/128"), keepalive: keepalive,
				shared: &desired.Secret{7},
			}},
		},
	}
}

func TestDiff(t *testing.T) {
	const (
		key2 = "AgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
		key9 = "CQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	)
	whole := []string{
		"configure device cs-t-1: private key, port 51820, mark 0x43530001, peer " + key2 + " at 192.0.2.2:51820 with [10.1.0.0/16 fdc5::2/128] sharing generation 7",
		"set device cs-t-1 to make no address by itself",
		"add address fdc5::1/128 to device cs-t-1", "set device cs-t-1 up", "add route to fdc5::2/128 by device cs-t-1",
	}
	for _, tt := range []struct {
		name string
		have func(*device)
		want []string
	}{
		{"in place", func(*device) {}, nil},
		{"kernel device in place", func(d *device) { d.backend, d.hosted, d.innerMTU = Kernel, false, 0 }, nil},
		{"nothing there", func(d *device) { *d = device{} }, append([]string{"make device cs-t-1"}, whole...)},
		{"made and no more", func(d *device) {
			*d = device{backend: UserSpace, hosted: true, innerMTU: 1380, place: inMain, mtu: 1500}
		}, slices.Insert(slices.Clone(whole), 2, "set MTU of device cs-t-1 to 1380")},
		{"moved away", func(d *device) { d.place = inCircuit }, append([]string{"remove device cs-t-1", "make device cs-t-1"}, whole...)},
		{"its process is gone", func(d *device) { d.hosted = false }, append([]string{"remove device cs-t-1", "make device cs-t-1"}, whole...)},
		{"its interface is gone", func(d *device) { d.place = nowhere }, append([]string{"remove device cs-t-1", "make device cs-t-1"}, whole...)},
		{"down", func(d *device) { d.up = false }, []string{"set device cs-t-1 up"}},
		{"MTU", func(d *device) { d.mtu = 1400 }, []string{"set MTU of device cs-t-1 to 1380"}},
		{"MTU inside", func(d *device) { d.innerMTU = 1400 }, []string{"set MTU of device cs-t-1 to 1380"}},
		{"link-local address", func(d *device) { d.quiet, d.addresses = false, append(d.addresses, prefixes("fe80::1/64")...) }, []string{
			"set device cs-t-1 to make no address by itself", "remove address fe80::1/64 from device cs-t-1",
		}},
		{"route", func(d *device) { d.routes = prefixes("fdc5::9/128") }, []string{
			"add route to fdc5::2/128 by device cs-t-1", "remove route to fdc5::9/128 by device cs-t-1",
		}},
		{"another tunnel's", func(d *device) { d.config.public[0] = 9 }, append([]string{"remove device cs-t-1", "make device cs-t-1"}, whole...)},
		{"no key yet", func(d *device) { d.config.public = desired.PublicKey{} }, []string{"configure device cs-t-1: private key"}},
		{"mark", func(d *device) { d.config.mark = 0 }, []string{"configure device cs-t-1: mark 0x43530001"}},
		{"port", func(d *device) { d.config.port = 1 }, []string{"configure device cs-t-1: port 51820"}},
		{"endpoint", func(d *device) { d.config.peers[0].endpoint = netip.MustParseAddrPort("198.51.100.1:1") }, []string{
			"configure device cs-t-1: peer " + key2 + " at 192.0.2.2:51820",
		}},
		{"prefix to add", func(d *device) { d.config.peers[0].allowed = prefixes("fdc5::2/128") }, []string{
			"configure device cs-t-1: peer " + key2 + " with [10.1.0.0/16] in addition",
		}},
		{"prefix to remove", func(d *device) { d.config.peers[0].allowed = prefixes("10.0.0.0/8", "10.1.0.0/16", "fdc5::2/128") }, []string{
			"configure device cs-t-1: peer " + key2 + " with [10.1.0.0/16 fdc5::2/128]",
		}},
		{"keepalive", func(d *device) { d.config.peers[0].keepalive = time.Second }, []string{"configure device cs-t-1: peer " + key2}},
		{"another peer", func(d *device) { d.config.peers[0].key = desired.PublicKey{9} }, []string{
			"configure device cs-t-1: no peer " + key9 + ", peer " + key2 + " at 192.0.2.2:51820 with [10.1.0.0/16 fdc5::2/128] sharing generation 7",
		}},
		{"one peer too many", func(d *device) { d.config.peers = append(d.config.peers, peer{key: desired.PublicKey{9}}) }, []string{
			"configure device cs-t-1: no peer " + key9,
		}},
		{"no pre-shared key", func(d *device) { d.config.peers[0].shared = nil }, []string{"configure device cs-t-1: peer " + key2 + " sharing generation 7"}},
		{"another pre-shared key", func(d *device) { d.config.peers[0].shared = &desired.Secret{9} }, []string{"configure device cs-t-1: peer " + key2 + " sharing generation 7"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			have := inPlace()
			tt.have(&have)
			var got []string
			steps, leftovers := diff([]want{wanted()}, map[string]device{"cs-t-1": have})
			if len(leftovers) > 0 {
				t.Errorf("leftovers %v", leftovers)
			}
			for _, s := range steps {
				got = append(got, s.String())
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("steps (-want +got):\n%s", d)
			}
		})
	}
}

func TestDiffLeavesLeftoversForLater(t *testing.T) {
	clash, idle := inPlace(), inPlace()
	idle.config.port = 7
	steps, leftovers := diff([]want{wanted()}, map[string]device{"cs-t-8": idle, "cs-t-9": clash})
	if first := steps[0].String(); first != "remove device cs-t-9" {
		t.Errorf("first %q, want the one that holds the port to go", first)
	}
	if len(leftovers) != 1 || leftovers[0].String() != "remove device cs-t-8" {
		t.Errorf("leftovers %v, want the other", leftovers)
	}
	if devices := made(steps); !slices.Equal(devices, []string{"cs-t-1"}) {
		t.Errorf("made %q", devices)
	}
	if steps, leftovers := diff(nil, nil); len(steps)+len(leftovers) != 0 {
		t.Errorf("from nothing to nothing: %v, %v", steps, leftovers)
	}
}

// A tunnel whose key cannot be read keeps its device, and gets a new peer
// rather than that the old one stays.
func TestDiffWithoutKey(t *testing.T) {
	w := wanted()
	w.public, w.PeerKey = desired.PublicKey{}, desired.PublicKey{9}
	steps, _ := diff([]want{w}, map[string]device{"cs-t-1": inPlace()})
	if len(steps) != 1 || steps[0].setting.key || steps[0].setting.set == nil || len(steps[0].setting.drop) != 1 {
		t.Errorf("steps %v, want the peer replaced and the key left alone", steps)
	}
	if steps, _ := diff([]want{w}, nil); len(steps) != 0 {
		t.Errorf("without key and device: %v", steps)
	}
}
