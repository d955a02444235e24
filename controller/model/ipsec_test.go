package model

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/circuitseal/circuitseal/controller/profile"
)

// certificate is one over a key of its own, as PEM.
func certificate(t *testing.T, name string, authority bool, key any) string {
	t.Helper()
	signer, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if key == nil {
		key = &signer.PublicKey
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), IsCA: authority, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key, signer)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestGatewayCertificates(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca, leaf := certificate(t, "ca", true, nil), certificate(t, "gw.example.net", false, nil)
	other, third := certificate(t, "gw.example.net", false, &p256.PublicKey), certificate(t, "gw.example.net", false, nil)
	weak := certificate(t, "gw.example.net", false, &small.PublicKey)
	for _, tt := range []struct {
		name                      string
		authorities, certificates string
		want                      string
	}{
		{"authority alone", ca, "", ""},
		{"pinned", ca + "\n" + certificate(t, "root", true, nil), leaf + other, ""},
		{"nobody issues", "", leaf, "spec.external.authorities is required"},
		{"leaf for an authority", leaf, "", "spec.external.authorities is no authority's"},
		{"three", ca, leaf + other + third, "spec.external.certificates are more than the 2"},
		{"twice", ca, leaf + leaf, "spec.external.certificates has the certificate"},
		{"weak", ca, weak, "spec.external.certificates has an RSA key of 1024 bits"},
		{"text", ca, leaf + "tail", "spec.external.certificates is no PEM"},
		{"key", ca, "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n", "spec.external.certificates has a private key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &checker{}
			c.gatewayCertificates(Key{}, &ExternalSpec{Authentication: AuthCertificate, Authorities: tt.authorities, Certificates: tt.certificates})
			var said []string
			for _, p := range c.problems {
				said = append(said, p.Field+" "+p.Message)
				if strings.Contains(p.Value, "BEGIN") {
					t.Errorf("the text is repeated: %q", p.Value)
				}
			}
			if got := strings.Join(said, "\n"); tt.want == "" && got != "" || !strings.HasPrefix(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func FuzzParseCertificates(f *testing.F) {
	f.Add("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
	f.Add("x")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		certs, err := ParseCertificates(text)
		if err != nil && certs != nil {
			t.Error("certificates beside an error")
		}
		if err == nil && len(DER(text)) != len(certs) {
			t.Error("DER has other certificates")
		}
	})
}

func TestProfileOf(t *testing.T) {
	docs := map[Key]Document{}
	strict := &CryptoProfileSpec{
		IKE: []IKEProposal{{Encryption: "aes256gcm16", PRF: "prfsha384", KeyExchange: "ecp384", AdditionalKeyExchange: "mlkem1024"}},
		ESP: []ESPProposal{{Encryption: "aes256gcm16", KeyExchange: "ecp384", AdditionalKeyExchange: "mlkem1024"}, {Encryption: "aes256gcm16", KeyExchange: "ecp384", AdditionalKeyExchange: "mlkem1024", ESN: ESNOff}},
	}
	docs[Key{Kind: KindCryptoProfile, Customer: "c", Name: "strict"}] = Document{Spec: strict}
	azure := &ExternalSpec{Type: GatewayAzure, Authentication: AuthPSK}
	for _, tt := range []struct {
		name, profile string
		gateway       *ExternalSpec
		want          string
		ike, esp      string
		maxESP        time.Duration
	}{
		{"default", "", nil, "cnsa1", "aes256gcm16-prfsha384-ecp384", "aes256gcm16-ecp384-esn", 8 * time.Hour},
		{"own", "strict", nil, "strict", "aes256gcm16-prfsha384-ecp384-ke1_mlkem1024", "aes256gcm16-ecp384-ke1_mlkem1024-esn", 0},
		{"Azure", "", azure, "azure-vpngw", "aes256gcm16-prfsha384-ecp384", "aes256gcm16-ecp384", 27_000 * time.Second},
		{"Azure under another", "bsi-tr-02102-3", azure, "bsi-tr-02102-3", "aes256gcm16-prfsha384-ecp384", "aes256gcm16-ecp384", 4 * time.Hour},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, ok := ProfileOf(docs, "c", &EncryptionPolicySpec{CryptoProfile: tt.profile}, tt.gateway)
			if !ok || p.Name != tt.want || p.IKE[0].String() != tt.ike || p.ESP[0].String() != tt.esp || p.MaxESP != tt.maxESP {
				t.Errorf("got %t %s %v %v %s", ok, p.Name, profile.Strings(p.IKE), profile.Strings(p.ESP), p.MaxESP)
			}
		})
	}
	if _, ok := ProfileOf(docs, "d", &EncryptionPolicySpec{CryptoProfile: "strict"}, nil); ok {
		t.Error("a profile of another customer was found")
	}
	own, _ := ProfileOf(docs, "c", &EncryptionPolicySpec{CryptoProfile: "strict"}, nil)
	if got := profile.Strings(own.ESP)[1]; got != "aes256gcm16-ecp384-ke1_mlkem1024" {
		t.Errorf("without extended sequence numbers: %s", got)
	}
	if !own.PostQuantum() {
		t.Error("ML-KEM everywhere is not post-quantum")
	}
}

func TestPPK(t *testing.T) {
	cnsa, _ := profile.BuiltIn("cnsa1")
	pq, _ := profile.BuiltIn("pq-hybrid-commercial")
	kem := pq
	kem.PPK = false
	for _, tt := range []struct {
		name     string
		protocol Protocol
		want     PostQuantum
		p        profile.Profile
		external bool
		required bool
	}{
		{"nothing said", ProtocolIPsec, "", cnsa, false, false},
		{"required", ProtocolIPsec, PostQuantumRequired, cnsa, false, true},
		{"preferred", ProtocolIPsec, PostQuantumPreferred, cnsa, false, true},
		{"the profile's", ProtocolIPsec, "", pq, false, true},
		{"ML-KEM is enough", ProtocolIPsec, PostQuantumRequired, kem, false, false},
		{"WireGuard", ProtocolWireGuard, PostQuantumRequired, cnsa, false, false},
		{"a gateway", ProtocolIPsec, PostQuantumPreferred, cnsa, true, false},
	} {
		if got := (&EncryptionPolicySpec{Protocol: tt.protocol, PostQuantum: tt.want}).PPK(tt.p, tt.external); got != tt.required {
			t.Errorf("%s: required %t", tt.name, got)
		}
	}
}

func TestNames(t *testing.T) {
	a := netip.MustParseAddr
	tunnels := []Tunnel{
		{Ends: [2]End{{Endpoint: "gw", Address: a("172.20.254.4")}, {Endpoint: "hq", Node: "prem", Address: a("172.16.10.1"), Translated: a("192.0.2.1")}}},
		{Ends: [2]End{{Endpoint: "gw", Address: a("172.20.254.5")}, {Endpoint: "hq", Node: "prem", Address: a("172.16.10.5"), Translated: a("192.0.2.1")}}},
	}
	for _, tt := range []struct {
		name          string
		gateway       *ExternalSpec
		local, remote string
	}{
		{"our own", nil, "hq.contoso.circuitseal.internal", "gw.contoso.circuitseal.internal"},
		{"by addresses", &ExternalSpec{Authentication: AuthPSK}, "192.0.2.1", ""},
		{"by names", &ExternalSpec{Authentication: AuthCertificate, Identity: "gw.example.net"}, "hq.contoso.circuitseal.internal", "gw.example.net"},
	} {
		if local, remote := Names("contoso", tunnels, 1, tt.gateway); local != tt.local || remote != tt.remote {
			t.Errorf("%s: %q and %q", tt.name, local, remote)
		}
	}
	if k, ok := EndpointOfIdentity("hq.contoso.circuitseal.internal"); !ok || k.String() != "Endpoint/contoso/hq" {
		t.Errorf("the endpoint is %s", k)
	}
	for _, no := range []string{"hq.contoso.example", "hq.circuitseal.internal", "a.hq.contoso.circuitseal.internal", ""} {
		if k, ok := EndpointOfIdentity(no); ok {
			t.Errorf("%q is %s", no, k)
		}
	}
}

func TestDPDDelay(t *testing.T) {
	for timeout, want := range map[Duration]time.Duration{"": 10 * time.Second, "45s": 10 * time.Second, "9s": 3 * time.Second, "1h": 10 * time.Second} {
		if got := (&ExternalSpec{DPDTimeout: timeout}).DPDDelay(); got != want {
			t.Errorf("timeout %q: %s, want %s", timeout, got, want)
		}
	}
}
