package wireguard

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/circuitseal/circuitseal/proto/desired"
)

const told = `listen_port=51820
fwmark=1129512961
public_key=aa00000000000000000000000000000000000000000000000000000000000000
preshared_key=0000000000000000000000000000000000000000000000000000000000000000
protocol_version=1
endpoint=172.16.10.1:51820
last_handshake_time_sec=1790000000
last_handshake_time_nsec=5
tx_bytes=10
rx_bytes=20
persistent_keepalive_interval=25
allowed_ip=10.2.0.0/16
allowed_ip=fd00:c0:2::/48
public_key=bb00000000000000000000000000000000000000000000000000000000000000
preshared_key=0100000000000000000000000000000000000000000000000000000000000000
last_handshake_time_sec=0
last_handshake_time_nsec=0
`

func TestParseSettings(t *testing.T) {
	public := wgtypes.Key{7}
	w, err := parseSettings(hostedDevice{Name: "x", Public: public[:], Settings: told})
	if err != nil {
		t.Fatal(err)
	}
	s := settingsFrom(w)
	if s.public != desired.PublicKey(public) || s.port != 51820 || s.mark != 0x43530001 || len(s.peers) != 2 {
		t.Errorf("settings %+v", s)
	}
	first := w.Peers[0]
	if first.PublicKey[0] != 0xaa || s.peers[0].shared != nil || first.ReceiveBytes != 20 || first.TransmitBytes != 10 ||
		!first.LastHandshakeTime.Equal(time.Unix(1790000000, 5)) || s.peers[0].endpoint.String() != "172.16.10.1:51820" ||
		s.peers[0].keepalive != keepalive || len(first.AllowedIPs) != 2 {
		t.Errorf("first peer %+v", first)
	}
	if second := w.Peers[1]; second.PublicKey[0] != 0xbb || s.peers[1].shared == nil || !second.LastHandshakeTime.IsZero() || second.Endpoint != nil {
		t.Errorf("second peer %+v", second)
	}
	if w, err = parseSettings(hostedDevice{Settings: "listen_port=1\n"}); err != nil || !settingsFrom(w).public.IsZero() {
		t.Errorf("a device without a key: %+v, %v", w, err)
	}
	for _, bad := range []string{"x", "listen_port=70000", "public_key=aa", "public_key=" + strings.Repeat("0", 64) + "\nallowed_ip=1", "fwmark=-1"} {
		if _, err := parseSettings(hostedDevice{Settings: bad}); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
	if _, err := parseSettings(hostedDevice{Public: []byte{1}, Settings: told}); err == nil {
		t.Error("a key of one byte was read")
	}
}

// Whatever a process says, it is read the same again or refused.
func FuzzParseSettings(f *testing.F) {
	f.Add(make([]byte, 32), told)
	f.Add([]byte{}, "listen_port=1\n\nx=y\n")
	f.Fuzz(func(t *testing.T, public []byte, text string) {
		h := hostedDevice{Name: "x", Public: public, Settings: text}
		a, errA := parseSettings(h)
		b, errB := parseSettings(h)
		if (errA == nil) != (errB == nil) {
			t.Fatalf("%v, then %v", errA, errB)
		}
		if errA != nil {
			return
		}
		if diff := cmp.Diff(settingsFrom(a).public, settingsFrom(b).public); diff != "" {
			t.Fatal(diff)
		}
		if n := strings.Count("\n"+text, "\npublic_key="); len(a.Peers) != n {
			t.Fatalf("%d peers of %d", len(a.Peers), n)
		}
	})
}
