package profile_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/circuitseal/circuitseal/controller/profile"
)

func TestBuiltIn(t *testing.T) {
	if names := profile.Names(); !slices.IsSorted(names) || !slices.Contains(names, profile.Default) || !slices.Contains(names, profile.Azure) {
		t.Errorf("the profiles are %v", names)
	}
	for _, p := range profile.All() {
		t.Run(p.Name, func(t *testing.T) {
			if len(p.IKE) == 0 || len(p.ESP) == 0 || len(p.IKE) > 16 || len(p.ESP) > 16 {
				t.Errorf("%d and %d proposals", len(p.IKE), len(p.ESP))
			}
			seen := map[string]bool{}
			for _, c := range slices.Concat(p.IKE, p.ESP) {
				if c.Source.Text == "" || c.KeyExchange == "" || seen[c.String()] {
					t.Errorf("%s has no source, no key exchange, or stands twice", c)
				}
				seen[c.String()] = true
			}
			for _, c := range p.IKE {
				if c.PRF == "" || c.ESN {
					t.Errorf("IKE %s has no PRF, or ESN", c)
				}
			}
			for _, c := range p.ESP {
				if c.PRF != "" {
					t.Errorf("ESP %s has a PRF", c)
				}
			}
			// Who reads one of these must not take it for a certificate.
			if !strings.Contains(p.FIPS, "GOFIPS140") || !strings.Contains(p.FIPS, "FIPS provider") || !strings.Contains(p.FIPS, "nothing here claims FIPS") {
				t.Errorf("FIPS: %s", p.FIPS)
			}
			if (p.WireGuard == "") == (p.NoWireGuard == "") {
				t.Error("it does not say whether WireGuard may stand beside it")
			}
			if p.Source.Text == "" || p.Summary == "" || p.Certificates.Source.Text == "" || p.MaxIKE != 0 && p.Lifetimes.Text == "" {
				t.Error("something has no source")
			}
			// The certificates that this project issues fit.
			key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			if why := p.Certificates.Refuses(&key.PublicKey); why != "" {
				t.Errorf("a certificate that %s is refused", why)
			}
			if p.LifetimeIKE() > profile.DefaultIKE || p.LifetimeESP() > profile.DefaultESP {
				t.Errorf("lifetimes %s and %s", p.LifetimeIKE(), p.LifetimeESP())
			}
		})
	}
}

// What the profiles are for, said once more and apart from them.
func TestWhatProfilesForbid(t *testing.T) {
	forbidden := map[string][]string{
		"cnsa1":                {"aes128", "chacha20poly1305", "ecp256", "x25519", "sha256", "modp2048"},
		"nist-800-77r1":        {"chacha20poly1305", "x25519", "x448", "bp"},
		"bsi-tr-02102-3":       {"modp2048", "sha1", "3des", "x25519"},
		"rfc8221-8247":         {"des", "md5", "sha1", "modp1536", "modp1024", "modp768", "modp2048s", "blowfish"},
		"azure-vpngw":          {"mlkem", "x25519", "chacha20poly1305"},
		"pq-hybrid-commercial": {"aes128", "mlkem512"},
	}
	for name, words := range forbidden {
		p, ok := profile.BuiltIn(name)
		if !ok {
			t.Fatalf("there is no profile %s", name)
		}
		for _, proposal := range slices.Concat(profile.Strings(p.IKE), profile.Strings(p.ESP)) {
			for _, w := range words {
				if strings.Contains(proposal, w) {
					t.Errorf("%s has %s in %s", name, w, proposal)
				}
			}
		}
		esn := strings.Contains(strings.Join(profile.Strings(p.ESP), " "), "-esn")
		if esn != (name != profile.Azure) {
			t.Errorf("%s: extended sequence numbers %t", name, esn)
		}
		if pq := name == "pq-hybrid-commercial"; p.PPK != pq || p.PostQuantum() != pq || (p.WireGuard != "") != pq {
			t.Errorf("%s: PPK %t, post-quantum %t, WireGuard %q", name, p.PPK, p.PostQuantum(), p.WireGuard)
		}
	}
	if len(forbidden) != len(profile.All()) {
		t.Errorf("this test knows %d of %d profiles", len(forbidden), len(profile.All()))
	}
}

// A gateway that has nothing but what RFC 8221 and RFC 8247 say it MUST have finds
// each combination of that.
func TestWhateverAnImplementationMustHaveIsThere(t *testing.T) {
	p, _ := profile.BuiltIn("rfc8221-8247")
	ike, esp := profile.Strings(p.IKE), profile.Strings(p.ESP)
	for _, bits := range []string{"128", "256"} {
		if want := "aes" + bits + "-sha256-prfsha256-modp2048"; !slices.Contains(ike, want) {
			t.Errorf("IKE has no %s", want)
		}
		for _, suite := range []string{"aes" + bits + "gcm16-modp2048", "aes" + bits + "-sha256-modp2048"} {
			for _, want := range []string{suite, suite + "-esn"} {
				if !slices.Contains(esp, want) {
					t.Errorf("ESP has no %s", want)
				}
			}
		}
	}
}

func TestProposalsAsStrongSwanTakesThem(t *testing.T) {
	p, _ := profile.BuiltIn("pq-hybrid-commercial")
	if got, want := p.IKE[0].String(), "aes256gcm16-prfsha384-ecp384-ke1_mlkem768"; got != want {
		t.Errorf("IKE is %s, want %s", got, want)
	}
	if got, want := p.ESP[0].String(), "aes256gcm16-x25519-ke1_mlkem768-esn"; got != want {
		t.Errorf("ESP is %s, want %s", got, want)
	}
	if got, want := p.ESP[0].Algorithms(), []string{"aes256gcm16", "x25519", "mlkem768", "esn"}; !slices.Equal(got, want) {
		t.Errorf("algorithms are %v, want %v", got, want)
	}
	if p.LifetimeIKE() != 4*time.Hour || p.LifetimeESP() != time.Hour {
		t.Errorf("lifetimes are %s and %s", p.LifetimeIKE(), p.LifetimeESP())
	}
}

func TestCertificates(t *testing.T) {
	cnsa, _ := profile.BuiltIn("cnsa1")
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	small, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		key  any
		want string
	}{
		{&p256.PublicKey, "has a key on curve P-256"},
		{&small.PublicKey, "has an RSA key of 2048 bits"},
		{"a word", "has a key of type string"},
	} {
		if got := cnsa.Certificates.Refuses(tt.key); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

// sent is an outer packet that is made step by step (RFC 4303, section 2; RFC
// 3948, section 2.2), apart from the arithmetic that it judges.
func sent(inner, iv, block, icv int, udp, six bool) int {
	payload := inner
	for payload += 2; payload%block != 0; payload++ { // pad length, next header, padding
	}
	packet := 4 + 4 + iv + payload + icv
	if udp {
		packet += 8
	}
	if six {
		return packet + 40
	}
	return packet + 20
}

func TestInnerMTU(t *testing.T) {
	suites := []struct {
		p              profile.Proposal
		iv, block, icv int
	}{
		{profile.Proposal{Encryption: "aes256gcm16"}, 8, 4, 16},
		{profile.Proposal{Encryption: "aes128ccm16"}, 8, 4, 16},
		{profile.Proposal{Encryption: "chacha20poly1305"}, 8, 4, 16},
		{profile.Proposal{Encryption: "aes128ctr", Integrity: "aescmac"}, 8, 4, 12},
		{profile.Proposal{Encryption: "aes256", Integrity: "sha256"}, 16, 16, 16},
		{profile.Proposal{Encryption: "aes192", Integrity: "sha384"}, 16, 16, 24},
		{profile.Proposal{Encryption: "aes128", Integrity: "sha512"}, 16, 16, 32},
	}
	for _, s := range suites {
		for _, udp := range []bool{false, true} {
			for _, six := range []bool{false, true} {
				for outer := 1280; outer <= 1500; outer++ {
					got := profile.InnerMTU([]profile.Choice{{Proposal: s.p}}, outer, udp, six)
					if n := sent(got, s.iv, s.block, s.icv, udp, six); n > outer {
						t.Fatalf("%s, UDP %t, IPv6 %t: %d bytes inside make %d outside, more than %d", s.p, udp, six, got, n, outer)
					}
					if n := sent(got+1, s.iv, s.block, s.icv, udp, six); n <= outer {
						t.Fatalf("%s, UDP %t, IPv6 %t: %d bytes inside would fit into %d", s.p, udp, six, got+1, outer)
					}
				}
			}
		}
	}
	gcm := []profile.Choice{{Proposal: suites[0].p}}
	// The figures of the arithmetic in this project's notes on Azure.
	if esp, udp := profile.InnerMTU(gcm, 1400, false, false), profile.InnerMTU(gcm, 1400, true, false); esp != 1346 || udp != 1338 {
		t.Errorf("1400 leaves %d for ESP and %d for ESP in UDP, want 1346 and 1338", esp, udp)
	}
	// The least of several, since nobody knows which is negotiated.
	both := append(gcm, profile.Choice{Proposal: suites[6].p})
	if got, want := profile.InnerMTU(both, 1400, true, false), profile.InnerMTU(both[1:], 1400, true, false); got != want {
		t.Errorf("two suites leave %d, want the least, %d", got, want)
	}
	if got := profile.InnerMTU([]profile.Choice{{Proposal: profile.Proposal{Encryption: "rot13"}}}, 1400, true, false); got != 0 {
		t.Errorf("an unknown cipher leaves %d", got)
	}
	for _, p := range profile.All() {
		if got := profile.InnerMTU(p.ESP, 1400, true, true); got < 1280 {
			t.Errorf("%s leaves %d of 1400 bytes over IPv6", p.Name, got)
		}
	}
}
