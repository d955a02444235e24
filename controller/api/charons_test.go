package api

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/controller/profile"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// debian12 is what strongSwan 5.9.8 says of itself with all plugins.
func debian12(backend string) *desired.CharonStatus {
	c := &desired.CharonStatus{Version: "5.9.8", Backend: backend, Algorithms: []string{
		"aes128", "aes128gcm16", "aes256", "aes256gcm16", "chacha20poly1305", "sha256", "sha384", "sha512",
		"prfsha256", "prfsha384", "prfsha512", "ecp256", "ecp384", "ecp521", "ecp256bp", "ecp384bp", "ecp512bp", "modp2048", "modp3072", "modp4096", "x25519", "ppk",
	}}
	if backend == desired.BackendKernel {
		c.Algorithms = append(c.Algorithms, "esn")
	}
	return c
}

// two are a node with two connections by IPsec, of one customer.
func two(profile string, postQuantum model.PostQuantum) map[model.Key]model.Document {
	docs := map[model.Key]model.Document{}
	put := func(kind model.Kind, name string, spec model.Spec) {
		k := model.Key{Kind: kind, Customer: "contoso", Name: name}
		docs[k] = model.Document{Key: k, Spec: spec}
	}
	a := netip.MustParseAddr
	put(model.KindCircuit, "er", &model.CircuitSpec{})
	put(model.KindEndpoint, "hq", &model.EndpointSpec{Site: "hq", Node: "prem-1", Underlay: []model.UnderlaySpec{
		{Address: a("172.16.0.1"), Circuit: "er", Link: model.Primary}, {Address: a("172.16.0.5"), Circuit: "er", Link: model.Secondary},
	}})
	put(model.KindEncryptionPolicy, "p", &model.EncryptionPolicySpec{Protocol: model.ProtocolIPsec, CryptoProfile: profile, PostQuantum: postQuantum})
	put(model.KindEncryptionPolicy, "wg", &model.EncryptionPolicySpec{Protocol: model.ProtocolWireGuard})
	put(model.KindCryptoProfile, "plain", &model.CryptoProfileSpec{
		IKE: []model.IKEProposal{{Encryption: "aes256gcm16", PRF: "prfsha384", KeyExchange: "ecp384"}},
		ESP: []model.ESPProposal{{Encryption: "aes256gcm16", KeyExchange: "ecp384", ESN: model.ESNOff}},
	})
	for i, site := range []string{"a", "b"} {
		put(model.KindEndpoint, site, &model.EndpointSpec{Site: site, Node: "nva-" + site, Underlay: []model.UnderlaySpec{{Address: a("10.2.0.4").Next()}}})
		put(model.KindConnection, "to-"+site, &model.ConnectionSpec{Endpoints: []string{"hq", site}, Circuits: []string{"er"}, EncryptionPolicy: []string{"p", "wg"}[i]})
	}
	return docs
}

func TestWhatStrongSwanCannotDo(t *testing.T) {
	both := func(docs map[model.Key]model.Document) map[model.Key]model.Document {
		k := model.Key{Kind: model.KindConnection, Customer: "contoso", Name: "to-b"}
		docs[k] = model.Document{Key: k, Spec: &model.ConnectionSpec{Endpoints: []string{"hq", "b"}, Circuits: []string{"er"}, EncryptionPolicy: "p"}}
		return docs
	}
	old := debian12(desired.BackendKernel)
	old.Version, old.Algorithms = "5.6.0", slices.DeleteFunc(slices.Clone(old.Algorithms), func(a string) bool { return a == "ppk" })
	for _, tt := range []struct {
		name   string
		docs   map[model.Key]model.Document
		charon *desired.CharonStatus
		want   []string
	}{
		{"nothing was said", two("pq-hybrid-commercial", ""), nil, nil},
		{"the default", two("", ""), debian12(desired.BackendKernel), nil},
		{"post-quantum by PPK", two("", model.PostQuantumRequired), debian12(desired.BackendKernel), nil},
		{"ML-KEM", two("pq-hybrid-commercial", ""), debian12(desired.BackendKernel), []string{
			"Connection/contoso/to-a spec.encryptionPolicy: node prem-1 runs strongSwan 5.9.8, which has no mlkem768: proposal aes256gcm16-prfsha384-ecp384-ke1_mlkem768 of profile \"pq-hybrid-commercial\" wants it"}},
		{"no PPK", two("", model.PostQuantumRequired), old, []string{
			"Connection/contoso/to-a spec.encryptionPolicy: node prem-1 runs strongSwan 5.6.0, which cannot mix in post-quantum pre-shared keys (RFC 8784)"}},
		{"no extended sequence numbers", two("", ""), debian12(desired.BackendLibipsec), []string{
			"Connection/contoso/to-a spec.encryptionPolicy: node prem-1 runs strongSwan 5.9.8, and its ESP is in user space (libipsec, a backend for tests): it has no extended sequence numbers (esn), which proposal aes256gcm16-ecp384-esn of profile \"cnsa1\" wants; a profile whose ESP proposals have esn: off does not"}},
		{"none wanted", two("plain", ""), debian12(desired.BackendLibipsec), nil},
		{"a second tunnel in user space", both(two("plain", "")), debian12(desired.BackendLibipsec), []string{
			"Connection/contoso/to-b spec.endpoints: node prem-1 runs strongSwan 5.9.8, and its ESP is in user space (libipsec, a backend for tests): it carries one tunnel, which Connection/contoso/to-a has"}},
		{"two in the kernel", both(two("plain", "")), debian12(desired.BackendKernel), nil},
		{"none installed", two("", ""), &desired.CharonStatus{Problem: "there is no charon-systemd"}, []string{
			"Connection/contoso/to-a spec.encryptionPolicy: node prem-1 has no strongSwan that works: there is no charon-systemd"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &charons{seen: map[string]*desired.CharonStatus{"prem-1": tt.charon, "nva-a": nil, "nva-b": nil}}
			var got []string
			for _, p := range c.judge(tt.docs) {
				got = append(got, p.Document+" "+p.Field+": "+p.Message)
				if p.Hint == "" {
					t.Errorf("no hint: %+v", p)
				}
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

// An Azure gateway's one suite is no choice of the policy's profile, so that another
// profile would not help.
func TestAdviceFitsAnAzureGateway(t *testing.T) {
	docs := two("cnsa1", "")
	k := model.Key{Kind: model.KindEndpoint, Customer: "contoso", Name: "a"}
	docs[k] = model.Document{Key: k, Spec: &model.EndpointSpec{Site: "a", External: &model.ExternalSpec{Type: model.GatewayAzure, Authentication: model.AuthPSK},
		Underlay: []model.UnderlaySpec{{Address: netip.MustParseAddr("10.2.0.5")}}}}
	lacking := debian12(desired.BackendKernel)
	lacking.Algorithms = slices.DeleteFunc(lacking.Algorithms, func(a string) bool { return a == "aes256gcm16" })
	c := &charons{seen: map[string]*desired.CharonStatus{"prem-1": lacking, "nva-b": nil}}
	told := c.judge(docs)
	if len(told) != 1 {
		t.Fatalf("told is %+v", told)
	}
	if got, want := told[0].Message, `node prem-1 runs strongSwan 5.9.8, which has no aes256gcm16: proposal aes256gcm16-prfsha384-ecp384 of gateway "a" wants it`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, want := told[0].Hint, `spec.external.ipsecPolicy of Endpoint/contoso/a with what the node can do, or another strongSwan on the node`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	// What it has no use for, it does not ask of the node either.
	c.seen["prem-1"] = debian12(desired.BackendLibipsec)
	if told := c.judge(docs); len(told) != 0 {
		t.Errorf("without ESN it is told %+v", told)
	}
}

// No customer is told of another's connections.
func TestLimitsOfAnotherCustomer(t *testing.T) {
	connection := func(customer string) model.Key {
		return model.Key{Kind: model.KindConnection, Customer: customer, Name: "secret-" + customer}
	}
	for _, p := range limits("shared", *debian12(desired.BackendLibipsec), []model.Key{connection("contoso"), connection("fabrikam")}) {
		if text := fmt.Sprintf("%+v", p); strings.Contains(text, "contoso") || !strings.Contains(p.Message, "of another customer") {
			t.Errorf("fabrikam is told %s", text)
		}
	}
}

// Every built-in profile but the one with ML-KEM is within what Debian 12 has.
func TestDebian12HasWhatProfilesWant(t *testing.T) {
	for _, p := range profile.All() {
		why := lacks("n", *debian12(desired.BackendKernel), p, p.PPK, "profile x")
		if refused := p.Name == "pq-hybrid-commercial"; (why != "") != refused || refused && !strings.Contains(why, "5.9.8, which has no mlkem768") {
			t.Errorf("%s: %q", p.Name, why)
		}
	}
}
