package gateway_test

import (
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/circuitseal/circuitseal/controller/compile"
	"github.com/circuitseal/circuitseal/controller/document"
	"github.com/circuitseal/circuitseal/controller/gateway"
	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/desired"
)

var update = flag.Bool("update", false, "write golden files")

const others = `
apiVersion: circuitseal.io/v1
kind: Site
metadata: {name: dc, customer: contoso}
spec: {type: azure-vnet, prefixes: [10.201.0.0/16, 10.202.0.0/16]}
---
apiVersion: circuitseal.io/v1
kind: Endpoint
metadata: {name: dc, customer: contoso}
spec: {site: dc, external: {type: ikev2, authentication: psk}, underlay: [{address: 172.20.3.4}, {address: 172.20.3.5}]}
---
apiVersion: circuitseal.io/v1
kind: EncryptionPolicy
metadata: {name: encapsulated, customer: contoso}
spec: {protocol: ipsec, udpEncapsulation: always, lifetimes: {time: 30m}}
---
apiVersion: circuitseal.io/v1
kind: Connection
metadata: {name: hq-dc, customer: contoso}
spec: {endpoints: [hq, dc], circuits: [er-ams], encryptionPolicy: encapsulated}
`

// snapshot has the shipped documents and a gateway of any make.
func snapshot(t *testing.T) *model.Snapshot {
	t.Helper()
	sources := []document.Source{{Name: "others", Text: others}}
	for _, pattern := range []string{"../../deploy/samples/*.yaml", "../../deploy/samples/kinds/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("no samples: %v", err)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			sources = append(sources, document.Source{Name: f, Text: string(text)})
		}
	}
	docs, where, problems := document.Decode(sources)
	s := &model.Snapshot{Epoch: 1, Revision: 1, Documents: map[model.Key]model.Document{}, PresharedKeys: map[string]model.PresharedKeys{}}
	for _, d := range docs {
		s.Documents[d.Key] = d
	}
	if problems = where.Merge(problems, model.Validate(s.Documents)); len(problems) > 0 {
		t.Fatalf("invalid documents: %+v", problems)
	}
	var err error
	if s.Numbers, err = compile.Number(s.Documents, model.Numbers{}); err != nil {
		t.Fatal(err)
	}
	n := byte(0)
	for _, c := range []string{"hq-dc", "hq-uks"} {
		for _, link := range model.LinkNames() {
			n++
			key := func(generation uint64) model.PresharedGeneration {
				return model.PresharedGeneration{PresharedKey: desired.PresharedKey{Generation: generation, Key: desired.Secret{n, byte(generation)}}}
			}
			s.PresharedKeys[model.TunnelID("contoso", c, "er-ams", link)] = model.PresharedKeys{
				Phase: model.PresharedActivate, Keys: []model.PresharedGeneration{key(5), key(4)},
			}
		}
	}
	return s
}

func TestDescribe(t *testing.T) {
	s := snapshot(t)
	for _, endpoint := range []string{"vpngw-uks", "dc"} {
		for _, reveal := range []bool{false, true} {
			name := endpoint
			if reveal {
				name += "-revealed"
			}
			t.Run(name, func(t *testing.T) {
				var b strings.Builder
				for _, c := range gateway.Describe(s, "contoso", endpoint, reveal) {
					fmt.Fprintf(&b, "%s %s\n", c.Name, c.Type)
					for _, x := range c.Settings {
						fmt.Fprintf(&b, "%s: %s\n", x.Name, x.Value)
					}
					for _, k := range c.Keys {
						fmt.Fprintf(&b, "%s %d %s %s\n", k.Tunnel, k.Generation, k.Phase, k.Value)
					}
					b.WriteString("\n" + c.Text)
				}
				path := filepath.Join("testdata", name+".txt")
				if *update {
					if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(string(want), b.String()); d != "" {
					t.Errorf("(-want +got)\n%s", d)
				}
			})
		}
	}
	if got := gateway.Describe(s, "contoso", "hq", true); got != nil {
		t.Errorf("of an endpoint with an agent: %+v", got)
	}
	if got := gateway.Describe(s, "fabrikam", "dc", true); got != nil {
		t.Errorf("of another customer: %+v", got)
	}
}

// swanctl takes one certificate of a file, so that each has its own.
func TestAuthorities(t *testing.T) {
	s := snapshot(t)
	k := model.Key{Kind: model.KindEndpoint, Customer: "contoso", Name: "dc"}
	spec, _ := model.Lookup[*model.EndpointSpec](s.Documents, k)
	certified := *spec
	certified.External = &model.ExternalSpec{Type: spec.External.Type, Authentication: model.AuthCertificate, Identity: "dc.example.net"}
	d := s.Documents[k]
	d.Spec = &certified
	s.Documents[k] = d
	s.Authorities = [][]byte{[]byte("issuing"), []byte("root")}
	got := fmt.Sprintf("%+v", gateway.Describe(s, "contoso", "dc", false))
	for _, want := range []string{
		"cacerts = circuitseal-1.pem, circuitseal-2.pem\n", "auth = pubkey",
		"# /etc/swanctl/x509ca/circuitseal-1.pem is\n# -----BEGIN CERTIFICATE-----\n# aXNzdWluZw==\n",
		"# /etc/swanctl/x509ca/circuitseal-2.pem is\n# -----BEGIN CERTIFICATE-----\n# cm9vdA==\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	if strings.Contains(got, "secrets {") {
		t.Errorf("there are pre-shared keys in\n%s", got)
	}
}

// Azure wants the root first (MicrosoftDocs/azure-docs,
// site-to-site-certificate-authentication-gateway.md).
func TestAzureByCertificate(t *testing.T) {
	s := snapshot(t)
	k := model.Key{Kind: model.KindEndpoint, Customer: "contoso", Name: "vpngw-uks"}
	spec, _ := model.Lookup[*model.EndpointSpec](s.Documents, k)
	certified, external := *spec, *spec.External
	external.Authentication, external.Identity = model.AuthCertificate, "gw.example.net"
	certified.External = &external
	d := s.Documents[k]
	d.Spec = &certified
	s.Documents[k] = d
	s.Authorities = [][]byte{[]byte("issuing"), []byte("root")}
	text := gateway.Describe(s, "contoso", "vpngw-uks", false)[0].Text
	_, file, _ := strings.Cut(text, "<<EOF\n")
	file, _, _ = strings.Cut(file, "EOF\n")
	var inbound struct {
		Outbound string   `json:"outboundAuthCertificate"`
		Name     string   `json:"inboundAuthCertificateSubjectName"`
		Chain    []string `json:"inboundAuthCertificateChain"`
	}
	if err := json.Unmarshal([]byte(file), &inbound); err != nil || inbound.Outbound != "$OUTBOUND" || inbound.Name != "hq.contoso.circuitseal.internal" ||
		!slices.Equal(inbound.Chain, []string{"cm9vdA==", "aXNzdWluZw=="}) {
		t.Errorf("%+v, %v:\n%s", inbound, err, file)
	}
	if strings.Count(text, "--authentication-type Certificate --certificate-authentication @circuitseal.json") != 2 || strings.Contains(text, "PSK") {
		t.Errorf("%s", text)
	}
}

// What is printed is a script: each connection gets its own key, by standard input, and
// no program has one among its arguments.
func TestAzureGetsKeysByStandardInput(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash")
	}
	text := gateway.Describe(snapshot(t), "contoso", "vpngw-uks", false)[0].Text
	// What follows a rotation is in comments, one command a line.
	_, after, found := strings.Cut(text, "sealctl rotate psk")
	if !found {
		t.Fatalf("there is nothing about a rotation:\n%s", text)
	}
	_, after, _ = strings.Cut(after, "\n")
	dir := t.TempDir()
	az := "#!" + bash + "\necho \"az $*\"\ncase \"$*\" in *@-*) echo \"gets $(cat)\";; esac\n"
	if err := os.WriteFile(filepath.Join(dir, "az"), []byte(az), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct{ script, want string }{
		"at first":         {text, "vpn-connection create"},
		"after a rotation": {strings.ReplaceAll(after, "# ", ""), "vpn-connection shared-key update"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "script")
			if err := os.WriteFile(file, []byte(tt.script), 0o600); err != nil {
				t.Fatal(err)
			}
			c := exec.CommandContext(t.Context(), bash, "-eu", file)
			c.Env = []string{"PATH=" + dir + ":" + os.Getenv("PATH"), "RG=rg", "GATEWAY=gw", "LOCATION=uksouth"}
			c.Stdin = strings.NewReader("one+/=\ntwo+/=\n")
			out, err := c.CombinedOutput()
			if err != nil {
				t.Fatalf("%v:\n%s", err, out)
			}
			var got []string
			lines := strings.Split(string(out), "\n")
			for i, l := range lines {
				if strings.Contains(l, "one+/=") || strings.Contains(l, "two+/=") {
					if !strings.HasPrefix(l, "gets ") || i == 0 || !strings.Contains(lines[i-1], tt.want) {
						t.Errorf("a key is where it should not be:\n%s", out)
						continue
					}
					_, to, _ := strings.Cut(lines[i-1], "er-ams-")
					to, _, _ = strings.Cut(to, " ")
					got = append(got, to+" "+l)
				}
			}
			if want := []string{"primary gets one+/=", "secondary gets two+/="}; !slices.Equal(got, want) {
				t.Errorf("got %q, want %q:\n%s", got, want, out)
			}
		})
	}
}

// What is missing ends the script before it has made anything.
func TestAzureStopsForWhatIsMissing(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash")
	}
	text := gateway.Describe(snapshot(t), "contoso", "vpngw-uks", false)[0].Text
	dir := t.TempDir()
	for name, content := range map[string]string{"az": "#!" + bash + "\necho made\n", "script": text} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	all := []string{"RG=rg", "GATEWAY=gw", "LOCATION=uksouth"}
	for _, tt := range []struct {
		env        []string
		keys, want string
	}{
		{all[1:], "one\ntwo\n", "RG: is the resource group"}, {all[:2], "one\ntwo\n", "LOCATION: is"},
		{all, "\ntwo\n", "PSK: was not typed"}, {all, "", ""},
	} {
		c := exec.CommandContext(t.Context(), bash, filepath.Join(dir, "script"))
		c.Env = append([]string{"PATH=" + dir + ":" + os.Getenv("PATH")}, tt.env...)
		c.Stdin = strings.NewReader(tt.keys)
		out, err := c.CombinedOutput()
		if err == nil || strings.Contains(string(out), "made") || !strings.Contains(string(out), tt.want) {
			t.Errorf("%q, keys %q: %v, want %q and nothing made:\n%s", tt.env, tt.keys, err, tt.want, out)
		}
	}
}

// A gateway whose selectors leave the choice to routes has a device for each tunnel.
func TestByRoute(t *testing.T) {
	s := snapshot(t)
	k := model.Key{Kind: model.KindEndpoint, Customer: "contoso", Name: "dc"}
	spec, _ := model.Lookup[*model.EndpointSpec](s.Documents, k)
	routed, external := *spec, *spec.External
	external.TrafficSelectors = model.RouteBased
	routed.External = &external
	d := s.Documents[k]
	d.Spec = &routed
	s.Documents[k] = d
	text := gateway.Describe(s, "contoso", "dc", false)[0].Text
	for _, link := range model.LinkNames() {
		n := s.Numbers.Tunnels[model.TunnelID("contoso", "hq-dc", "er-ams", link)]
		for _, want := range []string{
			fmt.Sprintf("# ip link add cs%d type xfrm dev lo if_id %[1]d && ip link set cs%[1]d up\n", n),
			fmt.Sprintf("# ip route add 10.1.0.0/16 dev cs%d metric ", n),
			fmt.Sprintf("if_id_in = %d\n                if_id_out = %[1]d\n", n),
		} {
			if n == 0 || !strings.Contains(text, want) {
				t.Errorf("%q is missing in\n%s", want, text)
			}
		}
	}
	if !strings.Contains(text, "# ip route add unreachable 10.1.0.0/16 ") {
		t.Errorf("packets find the default route:\n%s", text)
	}
}

// No key is shown that was not asked for, in whatever form.
func TestKeysAreHidden(t *testing.T) {
	s := snapshot(t)
	for _, endpoint := range []string{"vpngw-uks", "dc"} {
		hidden := fmt.Sprintf("%+v", gateway.Describe(s, "contoso", endpoint, false))
		shown := fmt.Sprintf("%+v", gateway.Describe(s, "contoso", endpoint, true))
		found := 0
		for id, keys := range s.PresharedKeys {
			for _, k := range keys.Keys {
				text := k.Key.Typed()
				for _, form := range []string{text, base64.StdEncoding.EncodeToString([]byte(text)), fmt.Sprintf("%x", [32]byte(k.Key))} {
					if strings.Contains(hidden, form) {
						t.Errorf("%s of %s is shown", id, endpoint)
					}
				}
				if strings.Contains(shown, text) {
					found++
				}
			}
		}
		// A sentence in the place of a key would be a key that everybody knows.
		if strings.Contains(hidden, "secret =") {
			t.Errorf("%s is told a secret that is none: %s", endpoint, hidden)
		}
		if found != 4 {
			t.Errorf("asked for, %d keys of %s are shown, want 4", found, endpoint)
		}
	}
}

// Both sides say the same: what a node of ours gets is what the gateway is told.
func TestBothSidesAgree(t *testing.T) {
	s := snapshot(t)
	state := compile.Compile(s)["prem-1"]
	for _, x := range state.Sections {
		for _, g := range x.Groups {
			if g.IPsec == nil {
				continue
			}
			endpoint := map[string]string{"contoso/hq-dc": "dc", "contoso/hq-uks": "vpngw-uks", "contoso/hq-lon": "gw-lon"}[g.ID]
			c := gateway.Describe(s, "contoso", endpoint, true)[0]
			told := c.Text + fmt.Sprint(c.Keys)
			for _, tunnel := range g.Tunnels {
				p := g.IPsec.For(tunnel)
				wants := []string{tunnel.Local.Addr().String(), p.LocalID}
				if p.Authentication == desired.AuthenticationPSK {
					wants = append(wants, tunnel.IPsec.PresharedKeys[0].Key.Typed())
				}
				for _, want := range wants {
					if !strings.Contains(told, want) && !strings.Contains(told, base64.StdEncoding.EncodeToString([]byte(want))) {
						t.Errorf("%s: the gateway is not told of %s", tunnel.ID, want)
					}
				}
			}
			if c.Type == model.GatewayIKEv2 {
				for _, want := range slices.Concat(g.IPsec.IKEProposals, g.IPsec.ESPProposals) {
					if !strings.Contains(c.Text, want) {
						t.Errorf("%s: the gateway is not told of %s", g.ID, want)
					}
				}
			}
		}
	}
}
