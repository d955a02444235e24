package tap

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var testCanary = []byte("0123456789abcdef")

func newInspector(t testing.TB, tunnels ...Tunnel) *Inspector {
	t.Helper()
	i := craftInterface()
	if len(tunnels) > 0 {
		i.Tunnels = tunnels
	}
	c := Config{Canary: hex.EncodeToString(testCanary), InnerMTU: 1340, Interfaces: []Interface{i}}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return NewInspector(c, c.Interfaces[0])
}

func TestSpecimens(t *testing.T) {
	for _, s := range specimens(testCanary) {
		t.Run(s.name, func(t *testing.T) {
			v := newInspector(t).Inspect(s.frame, s.meta)
			if got := v.Clear != ""; got != s.clear {
				t.Errorf("in clear = %t (%+v), want %t", got, v, s.clear)
			}
			if want := bytes.Contains(s.frame, testCanary); v.Canary != want {
				t.Errorf("canary = %t, want %t", v.Canary, want)
			}
		})
	}
}

func TestIPsecKinds(t *testing.T) {
	random := make([]byte, 1400)
	if _, err := rand.Read(random); err != nil {
		t.Fatal(err)
	}
	esp := bytes.Clone(random)
	esp[0] = 0xc0
	ike := craftSAInit()
	text := append(bytes.Clone(esp[:16]), bytes.Repeat([]byte("plain text, "), 40)...)
	tests := []struct {
		name  string
		frame []byte
		want  Kind
		clear bool
	}{
		{"esp", craftIPv4(protoESP, esp), ESP, false},
		{"esp with text", craftIPv4(protoESP, text), ESP, true},
		{"esp in udp", craftIPv4(protoUDP, craftUDP(4500, 4500, esp)), ESPInUDP, false},
		{"nat keepalive", craftIPv4(protoUDP, craftUDP(4500, 4500, []byte{0xff})), ESPInUDP, false},
		{"ike", craftIPv4(protoUDP, craftUDP(500, 500, ike)), IKE, false},
		{"ike on 4500", craftIPv4(protoUDP, craftUDP(4500, 4500, append(make([]byte, 4), ike...))), IKE, false},
		{"text on 500", craftIPv4(protoUDP, craftUDP(500, 500, text)), IKE, true},
		{"another port", craftIPv4(protoUDP, craftUDP(53, 53, esp)), "udp", true},
		{"tcp between the ends", craftIPv4(6, esp), "tcp", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := newInspector(t, Tunnel{Protocol: IPsec, A: craftA, B: craftB}).Inspect(tt.frame, Meta{})
			if v.Kind != tt.want || (v.Clear != "") != tt.clear {
				t.Errorf("verdict %+v, want kind %s, in clear %t", v, tt.want, tt.clear)
			}
		})
	}
}

// TestRandomContentIsNeverCalledPredictable guards against a tap that cries
// wolf: many windows of every length must pass.
func TestRandomContentIsNeverCalledPredictable(t *testing.T) {
	f := new(flow)
	b := make([]byte, 1400)
	for i := range 20_000 {
		n := 1 + (i*37)%len(b)
		if _, err := rand.Read(b[:n]); err != nil {
			t.Fatal(err)
		}
		if f.predictable(b[:n]) {
			t.Fatalf("random content of %d bytes is called predictable", n)
		}
	}
}

// TestShortTextIsFoundInAFlow hides text in messages that are too short to be
// judged alone.
func TestShortTextIsFoundInAFlow(t *testing.T) {
	f := new(flow)
	for range flowWindow/32 + 1 {
		if f.predictable([]byte("password=correct horse battery s")) {
			return
		}
	}
	t.Error("a flow of short texts passes as random")
}

// TestNeighbourDiscoveryOfOthers: what the crafted frames do not show.
func TestNeighbourDiscoveryOfOthers(t *testing.T) {
	in := newInspector(t)
	in.addresses = []netip.Addr{craftA, craftB}
	if v := in.Inspect(craftND(135, 0), Meta{}); v.Kind != ND || v.Clear == "" {
		t.Errorf("solicitation of another address: %+v, want it in clear", v)
	}
	in.addresses = append(in.addresses, craftA6, craftB6)
	if diff := cmp.Diff(allowed(ND), in.Inspect(craftND(135, 0), Meta{})); diff != "" {
		t.Errorf("solicitation of the link's own address (-want +got):\n%s", diff)
	}
}

func TestSelfTest(t *testing.T) {
	if err := SelfTest(); err != nil {
		t.Error(err)
	}
}

func TestReadConfigRefuses(t *testing.T) {
	tests := []struct{ name, text string }{
		{"no interfaces", `{"canary":"00112233445566778899aabbccddeeff"}`},
		{"short canary", `{"interfaces":[{"name":"x"}],"canary":"00"}`},
		{"unknown field", `{"interface":[]}`},
		{"unknown protocol", `{"interfaces":[{"name":"x","tunnels":[{"protocol":"gre","a":"10.0.0.1","b":"10.0.0.2"}]}],"canary":"00112233445566778899aabbccddeeff"}`},
		{"mixed families", `{"interfaces":[{"name":"x","tunnels":[{"protocol":"ipsec","a":"10.0.0.1","b":"fd00::1"}]}],"canary":"00112233445566778899aabbccddeeff"}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := ReadConfig(bytes.NewBufferString(tt.text)); err == nil {
				t.Error("accepted")
			}
		})
	}
}

func FuzzInspect(f *testing.F) {
	for _, s := range specimens(testCanary) {
		f.Add(s.frame, s.meta.Segment)
	}
	in := newInspector(f)
	ipsec := newInspector(f, Tunnel{Protocol: IPsec, A: craftA, B: craftB})
	f.Fuzz(func(t *testing.T, frame []byte, segment int) {
		for _, i := range []*Inspector{in, ipsec} {
			v := i.Inspect(frame, Meta{Segment: segment})
			if bytes.Contains(frame, testCanary) && v.Clear == "" {
				t.Error("a frame with the canary is allowed")
			}
			if v.Clear == "" && v.Kind == "" {
				t.Error("an allowed frame has no kind")
			}
		}
	})
}

func BenchmarkInspect(b *testing.B) {
	in := newInspector(b)
	// The same frame over and over would be predictable, and be called so.
	frames := make([][]byte, 256)
	for i := range frames {
		frames[i] = craftIPv4(protoUDP, craftUDP(51820, 51820, craftData(1372)))
	}
	b.SetBytes(int64(len(frames[0])))
	for i := 0; b.Loop(); i++ {
		if v := in.Inspect(frames[i%len(frames)], Meta{}); v.Clear != "" {
			b.Fatal(v.Clear)
		}
	}
}
