package model_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/circuitseal/circuitseal/controller/document"
	"github.com/circuitseal/circuitseal/controller/model"
)

var update = flag.Bool("update", false, "write golden files")

// samples are the documents that are shipped.
func samples(t testing.TB) string { return shipped(t, "../../deploy/samples/*.yaml") }

// kinds are those of the kinds that agents do not enforce yet.
func kinds(t testing.TB) string { return shipped(t, "../../deploy/samples/kinds/*.yaml") }

func shipped(t testing.TB, pattern string) string {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no samples: %v", err)
	}
	var b strings.Builder
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString("---\n")
		b.Write(text)
	}
	return b.String()
}

func decode(t testing.TB, text string) map[model.Key]model.Document {
	t.Helper()
	docs, _, problems := document.Decode([]document.Source{{Name: "test.yaml", Text: text}})
	for _, p := range problems {
		t.Fatalf("decode: %+v\n%s", p, text)
	}
	set := map[model.Key]model.Document{}
	for _, d := range docs {
		set[d.Key] = d
	}
	return set
}

// TestValidate goes through testdata/*.txtar. In each, "replace" has lines
// "old => new" that change the samples, "kinds" adds those of deploy/samples/kinds, "add" documents that come on top, and
// "problems" what Validate then says.
func TestValidate(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	base := samples(t)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			text, want := base, ""
			golden := -1
			for i, f := range archive.Files {
				switch f.Name {
				case "kinds":
					text += kinds(t)
				case "replace":
					text = replace(t, text, string(f.Data))
				case "add":
					text += "---\n" + string(f.Data)
				case "problems":
					golden, want = i, string(f.Data)
				default:
					t.Fatalf("unknown part %q", f.Name)
				}
			}
			got := render(model.Validate(decode(t, text)))
			if *update {
				if golden < 0 {
					archive.Files = append(archive.Files, txtar.File{Name: "problems"})
					golden = len(archive.Files) - 1
				}
				archive.Files[golden].Data = []byte(got)
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func replace(t *testing.T, text, edits string) string {
	t.Helper()
	for edit := range strings.Lines(edits) {
		old, new, ok := strings.Cut(strings.TrimSuffix(edit, "\n"), " => ")
		if !ok {
			old, ok = strings.CutSuffix(old, " =>")
		}
		if !ok || strings.Count(text, old) == 0 {
			t.Fatalf("edit %q does not apply", edit)
		}
		text = strings.Replace(text, old, strings.ReplaceAll(new, `\n`, "\n"), 1)
	}
	return text
}

func render(problems []model.Problem) string {
	var b strings.Builder
	for _, p := range problems {
		fmt.Fprintf(&b, "%s %s %q\n\twhat: %s\n\thint: %s\n", p.Document, p.Field, p.Value, p.Message, p.Hint)
	}
	return b.String()
}

func TestSamplesAreValid(t *testing.T) {
	set := decode(t, samples(t)+kinds(t))
	if got := render(model.Validate(set)); got != "" {
		t.Errorf("samples have problems:\n%s", got)
	}
	// The samples of kinds have a gateway with IPv4 only, so they stand beside these no
	// longer.
	plain := decode(t, samples(t))
	six := maps.Clone(plain)
	maps.Copy(six, decode(t, shipped(t, "../../deploy/samples/ipv6/*.yaml")))
	if got := render(model.Validate(six)); len(six) != len(plain) || got != "" {
		t.Errorf("samples with IPv6 outside, %d documents instead of %d, have problems:\n%s", len(six), len(plain), got)
	}
	seen := map[model.Kind]bool{}
	for k := range set {
		seen[k.Kind] = true
	}
	for _, k := range model.Kinds() {
		if !seen[k] {
			t.Errorf("there is no sample of kind %s", k)
		}
	}
}

func TestIPsecPageIsValid(t *testing.T) {
	page, err := os.ReadFile("../../docs/ipsec.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	text := samples(t) + kinds(t)
	for _, b := range blocks {
		text += "---\n" + b[1]
	}
	before, set := decode(t, samples(t)+kinds(t)), decode(t, text)
	if got := render(model.Validate(set)); len(blocks) == 0 || len(set) < len(before)+len(blocks) || got != "" {
		t.Errorf("%d blocks, which bring %d documents, have problems:\n%s", len(blocks), len(set)-len(before), got)
	}
}

func TestPublicPeeringOfAStoredCircuitIsRead(t *testing.T) {
	docs := decode(t, `{apiVersion: circuitseal.io/v1, kind: Customer, metadata: {name: c}, spec: {model: connect-to}}
---
apiVersion: circuitseal.io/v1
kind: Circuit
metadata: {name: old, customer: c}
spec: {peering: public, bandwidthMbps: 50, links: {primary: {subnet: 10.0.0.0/30}, secondary: {subnet: 10.0.0.4/30}}}
`)
	key := model.Key{Kind: model.KindCircuit, Customer: "c", Name: "old"}
	if got := model.Validate(docs); len(got) != 1 || got[0].Field != "spec.peering" {
		t.Errorf("new circuit: got %s, want one problem at spec.peering", render(got))
	}
	d := docs[key]
	d.Revision = 7
	docs[key] = d
	if got := model.Validate(docs); len(got) != 0 {
		t.Errorf("stored circuit: got %s, want none", render(got))
	}
}

// The new one of two documents that collide is blamed, whatever its name.
func TestNewDocumentIsBlamed(t *testing.T) {
	docs := decode(t, samples(t)+`---
apiVersion: circuitseal.io/v1
kind: Site
metadata: {name: aaa, customer: contoso}
spec: {type: on-premises, prefixes: [10.1.2.0/24]}
`)
	for _, stored := range []string{"aaa", "hq"} {
		set := maps.Clone(docs)
		key := model.Key{Kind: model.KindSite, Customer: "contoso", Name: stored}
		d := set[key]
		d.Revision = 1
		set[key] = d
		got := model.Validate(set)
		if len(got) != 1 || got[0].Document == key.String() {
			t.Errorf("with %s stored: got %s, want one problem of the other", stored, render(got))
		}
	}
}

// Validate is given whatever a caller has, also documents that no text makes.
func TestValidateOddDocuments(t *testing.T) {
	docs := map[model.Key]model.Document{
		{}:                                     {},
		{Kind: model.KindSite, Name: "x"}:      {Spec: (*model.SiteSpec)(nil)},
		{Kind: model.KindNode, Name: "x"}:      {Spec: &model.SiteSpec{}},
		{Kind: model.KindCustomer, Name: "x"}:  {Spec: &model.CustomerSpec{}},
		{Kind: model.KindNode, Name: "n"}:      {Spec: &model.NodeSpec{Interfaces: make([]model.InterfaceSpec, 3)}},
		{Kind: "Router", Name: "x\x00\u200fy"}: {Spec: &model.SiteSpec{}},
		{Kind: model.KindConnection, Customer: "x", Name: strings.Repeat("a", 1<<16)}: {Spec: &model.ConnectionSpec{Endpoints: make([]string, 2), Circuits: make([]string, 2)}},
		{Kind: model.KindEndpoint, Customer: "x", Name: "e"}:                          {Spec: &model.EndpointSpec{Underlay: make([]model.UnderlaySpec, 3)}},
		{Kind: model.KindCircuit, Customer: "x", Name: "c"}:                           {Spec: &model.CircuitSpec{}},
	}
	for _, p := range model.Validate(docs) {
		for what, s := range map[string]string{"document": p.Document, "value": p.Value, "message": p.Message} {
			if strings.ContainsAny(s, "\x00\u200f\n") || len(s) > 400 {
				t.Errorf("%s of %s %s is not fit to be shown: %.500q", what, p.Document, p.Field, s)
			}
		}
		if p.Message == "" || p.Hint == "" || p.Field == "" {
			t.Errorf("problem without field, message or hint: %+v", p)
		}
	}
}

// Azure knows who comes by the common name of a certificate, which holds no long one.
func TestCommonNameForAzure(t *testing.T) {
	key := func(kind model.Kind, name string) model.Key {
		return model.Key{Kind: kind, Customer: "contoso", Name: name}
	}
	for _, tt := range []struct {
		name   string
		auth   model.GatewayAuthentication
		length int
		want   int
	}{
		{"as long as may be", model.AuthCertificate, model.MaxCommonName, 0},
		{"longer", model.AuthCertificate, model.MaxCommonName + 1, 1},
		{"longer, with a key", model.AuthPSK, model.MaxCommonName + 1, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			docs := decode(t, samples(t)+kinds(t))
			name := strings.Repeat("h", tt.length-len(model.IdentityName("contoso", "")))
			d := docs[key(model.KindEndpoint, "hq")]
			delete(docs, d.Key)
			d.Key.Name = name
			docs[d.Key] = d
			for k, d := range docs {
				if c, ok := d.Spec.(*model.ConnectionSpec); ok {
					c.Endpoints[0] = name
					docs[k] = d
				}
			}
			of := func(name string) *model.ExternalSpec {
				e, _ := model.Lookup[*model.EndpointSpec](docs, key(model.KindEndpoint, name))
				return e.External
			}
			azure := of("vpngw-uks")
			if azure.Authentication = tt.auth; tt.auth == model.AuthCertificate {
				azure.Identity, azure.Authorities = "gw.example.net", of("gw-lon").Authorities
			}
			problems := model.Validate(docs)
			if len(problems) != tt.want {
				t.Fatalf("got %+v, want %d", problems, tt.want)
			}
			for _, p := range problems {
				if p.Document != "Connection/contoso/hq-uks" || p.Field != "spec.endpoints[0]" || p.Value != name {
					t.Errorf("got %+v", p)
				}
			}
		})
	}
}
