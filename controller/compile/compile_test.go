package compile_test

import (
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/circuitseal/circuitseal/controller/compile"
	"github.com/circuitseal/circuitseal/controller/document"
	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/desired"
)

var update = flag.Bool("update", false, "write golden files")

// snapshot decodes, validates and numbers documents.
func snapshot(t testing.TB, sources ...document.Source) *model.Snapshot {
	t.Helper()
	docs, where, problems := document.Decode(sources)
	set := map[model.Key]model.Document{}
	for _, d := range docs {
		set[d.Key] = d
	}
	for _, p := range where.Merge(problems, model.Validate(set)) {
		t.Fatalf("invalid documents: %+v", p)
	}
	numbers, err := compile.Number(set, model.Numbers{})
	if err != nil {
		t.Fatal(err)
	}
	return &model.Snapshot{Epoch: 1, Revision: 1, Documents: set, Numbers: numbers}
}

// samples are the documents that are shipped, as txtar files.
func samples(t testing.TB) []txtar.File {
	t.Helper()
	files, err := filepath.Glob("../../deploy/samples/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no samples: %v", err)
	}
	var parts []txtar.File
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, txtar.File{Name: filepath.Base(f), Data: text})
	}
	return parts
}

// sharedFor are the pre-shared keys of a tunnel in the middle of a rotation.
func sharedFor(tunnel string) model.PresharedKeys {
	sum := desired.Secret(sha256.Sum256([]byte(tunnel)))
	next := sum
	next[0]++
	return model.PresharedKeys{Phase: model.PresharedPrepare, Keys: []model.PresharedGeneration{
		{PresharedKey: desired.PresharedKey{Generation: 7, Key: sum}},
		{PresharedKey: desired.PresharedKey{Generation: 8, Key: next}},
	}}
}

// TestGolden goes through testdata/*.txtar: files ending in .yaml are documents
// (the shipped samples where there are none), "keys" has lines "tunnel node"
// whose keys are known, "certificates" lines "endpoint node phase" of identities,
// "settled" lines "connection protocol" of what is known to work, and NODE.json is
// that node's state.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var inputs []txtar.File
			want := map[string]string{}
			keys := map[model.TunnelEnd]desired.PublicKey{}
			identities := map[string]model.IdentityCertificates{}
			settled := map[string]model.Settled{}
			for _, f := range archive.Files {
				if name, ok := strings.CutSuffix(f.Name, ".json"); ok {
					want[name] = string(f.Data)
					continue
				}
				inputs = append(inputs, f)
				for line := range strings.Lines(string(f.Data)) {
					words := strings.Fields(line)
					switch f.Name {
					case "keys":
						keys[model.TunnelEnd{Tunnel: words[0], Node: words[1]}] = keyFor(words[0], words[1])
					case "certificates":
						customer, endpoint, _ := strings.Cut(words[0], "/")
						name := model.IdentityName(customer, endpoint)
						identities[name] = identityOf(&model.Snapshot{}, name, words[1], model.IdentityPhase(words[2]))
					case "settled":
						settled[words[0]] = model.Settled{Policy: model.EncryptionPolicySpec{Protocol: model.Protocol(words[1])}}
					}
				}
			}
			var sources []document.Source
			parts := slices.DeleteFunc(slices.Clone(inputs), func(f txtar.File) bool { return !strings.HasSuffix(f.Name, ".yaml") })
			if len(parts) == 0 {
				parts = samples(t)
			}
			for _, f := range parts {
				sources = append(sources, document.Source{Name: f.Name, Text: string(f.Data)})
			}
			s := snapshot(t, sources...)
			s.Keys, s.Identities, s.Settled = keys, identities, settled
			s.Authorities = [][]byte{certificateOf("issuing"), certificateOf("root")}
			s.PresharedKeys = map[string]model.PresharedKeys{}
			for id := range s.Numbers.Tunnels {
				s.PresharedKeys[id] = sharedFor(id)
			}
			got := map[string]string{}
			for node, state := range compile.Compile(s) {
				if err := state.Validate(); err != nil {
					t.Errorf("state of %s: %v", node, err)
				}
				got[node] = render(t, state)
			}
			if *update {
				archive.Files = inputs
				for _, node := range slices.Sorted(maps.Keys(got)) {
					archive.Files = append(archive.Files, txtar.File{Name: node + ".json", Data: []byte(got[node])})
				}
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("states (-want +got):\n%s", diff)
			}
		})
	}
}

// keyFor is a key that says whose it is.
func keyFor(tunnel, node string) desired.PublicKey {
	var k desired.PublicKey
	copy(k[:], node+" "+tunnel)
	return k
}

// render writes a state so that a reader can check it.
func render(t testing.TB, s desired.State) string {
	t.Helper()
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(readable(s)); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// readable folds what belongs to one thing into one line.
func readable(s desired.State) any {
	type group struct {
		ID      string
		Number  uint32
		Remotes []netip.Prefix
		Offline string   `json:",omitempty"`
		IPsec   []string `json:",omitempty"`
		Tunnels []string
	}
	type section struct {
		Customer string
		Tenant   uint32
		Locals   []string
		Groups   []group
	}
	var out struct {
		Interfaces, Links []string
		Sections          []section
		Identities        []string `json:",omitempty"`
		Authorities       []string `json:",omitempty"`
		CharonSocket      string   `json:",omitempty"`
	}
	out.CharonSocket = s.CharonSocket
	for _, i := range s.Identities {
		text := i.Name + ":"
		for _, c := range i.Certificates {
			text += fmt.Sprintf(" generation %d", c.Generation)
			if len(c.Certificate) == 0 {
				text += " (not issued)"
			}
		}
		out.Identities = append(out.Identities, text)
	}
	for _, a := range s.Authorities {
		out.Authorities = append(out.Authorities, nameIn(a))
	}
	for _, i := range s.Interfaces {
		out.Interfaces = append(out.Interfaces, strings.TrimSpace(fmt.Sprintf("%s %s %v %s", i.Name, i.Role, i.Addresses, i.Customer)))
	}
	for _, l := range s.Links {
		text := fmt.Sprintf("%s #%d on %s via %s", l.ID, l.Number, l.Interface, l.NextHop)
		if l.Tagged() {
			text += fmt.Sprintf(", vlan %d in %d, %v", l.VLAN, l.OuterVLAN, l.Addresses)
		}
		out.Links = append(out.Links, text)
	}
	for _, x := range s.Sections {
		o := section{Customer: x.Customer, Tenant: x.Tenant}
		for _, l := range x.Locals {
			o.Locals = append(o.Locals, fmt.Sprintf("%s on %s", l.Prefix, l.Interface))
		}
		for _, g := range x.Groups {
			og := group{ID: g.ID, Number: g.Number, Remotes: g.Remotes}
			if g.MaxOffline != 0 {
				og.Offline = fmt.Sprintf("%s after %s", g.OfflineAction, g.MaxOffline)
			}
			if g.IPsec != nil {
				og.IPsec = negotiated(g)
			}
			for _, tn := range g.Tunnels {
				key := "pending"
				if tn.IPsec != nil {
					key = fmt.Sprintf("ipsec with %v", tn.IPsec.PresharedKeys)
				}
				if tn.IPsec != nil && tn.WireGuard != nil {
					key += " and wireguard"
				}
				if tn.WireGuard != nil && !tn.WireGuard.Pending() {
					key = "peer " + strings.TrimRight(string(tn.WireGuard.PeerKey[:]), "\x00")
				}
				og.Tunnels = append(og.Tunnels, fmt.Sprintf("%s #%d on %s: %s -> %s, probe %s -> %s, mtu %d, %s",
					tn.ID, tn.Number, tn.Link, tn.Local, tn.Remote, tn.LocalProbe, tn.RemoteProbe, tn.MTU, key))
			}
			o.Groups = append(o.Groups, og)
		}
		out.Sections = append(out.Sections, o)
	}
	return out
}

// negotiated is a group's policy in lines.
func negotiated(g desired.Group) []string {
	p := g.IPsec
	names := func(list [][]byte) (out []string) {
		for _, der := range list {
			out = append(out, nameIn(der))
		}
		return out
	}
	lines := []string{
		fmt.Sprintf("profile %s, %s, %q to %q", p.Profile, p.Authentication, p.LocalID, p.RemoteID),
		fmt.Sprintf("ike %s", strings.Join(p.IKEProposals, ", ")),
		fmt.Sprintf("esp %s", strings.Join(p.ESPProposals, ", ")),
		fmt.Sprintf("for %s and %s, %d bytes, %d packets, dpd %s", p.IKELifetime, p.ESPLifetime, p.ESPBytes, p.ESPPackets, p.DPDDelay),
		fmt.Sprintf("ppk %t, udp %t, external %t", p.PPKRequired, p.UDPEncapsulation, p.External),
	}
	if g.Retiring != 0 {
		lines = append(lines, "retiring "+g.Retiring.String())
	}
	if len(p.LocalSelectors) > 0 {
		lines = append(lines, fmt.Sprintf("from %v to %v", p.LocalSelectors, p.RemoteSelectors))
	}
	if len(p.PeerCertificates) > 0 {
		lines = append(lines, fmt.Sprintf("pins %q", names(p.PeerCertificates)))
	}
	if len(p.PeerAuthorities) > 0 {
		lines = append(lines, fmt.Sprintf("by %q", names(p.PeerAuthorities)))
	}
	return lines
}

// A snapshot that was never validated or numbered must not end the controller.
func TestCompileIncomplete(t *testing.T) {
	var sources []document.Source
	for _, f := range samples(t) {
		sources = append(sources, document.Source{Name: f.Name, Text: string(f.Data)})
	}
	whole := snapshot(t, sources...)
	for missing := range whole.Documents {
		s := *whole
		s.Documents = maps.Clone(whole.Documents)
		delete(s.Documents, missing)
		for node, state := range compile.Compile(&s) {
			if err := state.Validate(); err != nil {
				t.Errorf("without %s: state of %s: %v", missing, node, err)
			}
		}
	}
	s := *whole
	s.Numbers = model.Numbers{}
	for node, state := range compile.Compile(&s) {
		if err := state.Validate(); err != nil || len(state.Sections) != 0 {
			t.Errorf("without numbers: state of %s: %v, %d sections", node, err, len(state.Sections))
		}
	}
	if got := compile.Compile(&model.Snapshot{}); len(got) != 0 {
		t.Errorf("states of nothing: %v", got)
	}
}

// A revoked node has no end: neither it nor its peer has a tunnel, and both
// guard their circuit interfaces. Other connections stay as they are.
func TestRevokedNodeHasNoEnd(t *testing.T) {
	archive, err := txtar.ParseFile("testdata/two-customers.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var sources []document.Source
	for _, f := range archive.Files {
		if strings.HasSuffix(f.Name, ".yaml") {
			sources = append(sources, document.Source{Name: f.Name, Text: string(f.Data)})
		}
	}
	s := snapshot(t, sources...)
	// tunnels are the customers of a node's tunnels, by node.
	tunnels := func() map[string][]string {
		out := map[string][]string{}
		for name, state := range compile.Compile(s) {
			if len(state.Interfaces) == 0 {
				t.Errorf("node %s guards nothing", name)
			}
			for _, section := range state.Sections {
				for _, g := range section.Groups {
					if len(g.Tunnels) == 0 {
						t.Errorf("node %s has a group without a tunnel: %s", name, g.ID)
					}
					out[name] = append(out[name], g.ID)
				}
			}
		}
		return out
	}
	before := tunnels()
	for name := range before {
		s.Enrolments = map[string]model.Enrolment{name: {Key: "sha256:a"}}
		s.Revocations = map[model.Fingerprint]model.Revocation{"sha256:a": {Node: name}}
		want := map[string][]string{}
		for other, groups := range before {
			for _, g := range groups {
				if !slices.Contains(before[name], g) {
					want[other] = append(want[other], g)
				}
			}
		}
		if d := cmp.Diff(want, tunnels()); d != "" {
			t.Errorf("with node %s revoked (-want +got):\n%s", name, d)
		}
		// Enrolled anew, it is back.
		s.Enrolments[name] = model.Enrolment{Key: "sha256:b"}
		if d := cmp.Diff(before, tunnels()); d != "" {
			t.Errorf("with node %s enrolled anew (-want +got):\n%s", name, d)
		}
	}
}
