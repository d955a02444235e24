package schema

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/circuitseal/circuitseal/controller/document"
	"github.com/circuitseal/circuitseal/controller/model"
)

func build(t *testing.T) *Schema {
	t.Helper()
	s, err := Build("../model", nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCommittedFilesAreUpToDate(t *testing.T) {
	files, err := Files(".")
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range files {
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what `go generate ./controller/schema` writes (%v)", path, err)
		}
	}
}

// Whoever adds a kind or a field says what it is.
func TestEverythingIsDescribed(t *testing.T) {
	s := build(t)
	if len(s.Kinds) != len(model.Kinds()) {
		t.Errorf("%d kinds, want %d", len(s.Kinds), len(model.Kinds()))
	}
	count := 0
	var walk func(path string, fields []Field)
	walk = func(path string, fields []Field) {
		if len(fields) == 0 {
			t.Errorf("%s has no fields", path)
		}
		for _, f := range fields {
			count++
			at := path + "." + f.Name
			if len(strings.Fields(f.Doc)) < 3 || !strings.Contains(f.Doc, ".") {
				t.Errorf("%s is not described by a comment that ends with a full stop: %q", at, f.Doc)
			}
			if strings.Contains(f.Type, "group") {
				walk(at, f.Fields)
			} else if len(f.Fields) > 0 {
				t.Errorf("%s of type %q has fields", at, f.Type)
			}
		}
	}
	for _, k := range s.Kinds {
		if !strings.HasPrefix(k.Doc, k.Kind+" ") {
			t.Errorf("%s is not described: %q", k.Kind, k.Doc)
		}
		walk(k.Kind, k.Fields)
	}
	if count < 30 {
		t.Errorf("only %d fields were found", count)
	}
}

func TestFacts(t *testing.T) {
	tests := []struct{ text, bounds, standard string }{
		{"BandwidthMbps is 50 to 100,000.", "50 to 100,000", ""},
		{"PathMTU is the largest, 1280 to 9000. The default\nof 1400 is what passes.", "1280 to 9000", "1400"},
		{"How often, 5m to 24h; 1h when left out.", "5m to 24h", "1h"},
		{"DisplayName is for people, at most 128 bytes.", "at most 128 bytes", ""},
		{"Enforcement is enforce (the default), or observe.", "", "enforce"},
		{"Links lead from one to the other.", "", ""},
	}
	for _, tt := range tests {
		text := strings.Join(strings.Fields(tt.text), " ")
		if b, d := bounds(text), defaultOf(text); b != tt.bounds || d != tt.standard {
			t.Errorf("%q: bounds %q, default %q; want %q and %q", tt.text, b, d, tt.bounds, tt.standard)
		}
	}
}

// set is the documents of the samples.
func set(t *testing.T) map[model.Key]model.Document {
	t.Helper()
	paths, err := filepath.Glob("../../deploy/samples/*.yaml")
	if err != nil || len(paths) == 0 {
		t.Fatal(paths, err)
	}
	var sources []document.Source
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		sources = append(sources, document.Source{Name: p, Text: string(b)})
	}
	docs, _, problems := document.Decode(sources)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	all := map[model.Key]model.Document{}
	for _, d := range docs {
		all[d.Key] = d
	}
	return all
}

// leaf is a value of a document that the schema describes.
type leaf struct {
	path  string
	field Field
	value reflect.Value
	// customer is what a field customer beside it says.
	customer string
}

func leaves(path string, fields []Field, v reflect.Value) []leaf {
	customer := ""
	if f := v.FieldByName("Customer"); f.IsValid() {
		customer = f.String()
	}
	var all []leaf
	for i, f := range fields {
		at := path + "." + f.Name
		x := reflect.Indirect(v.Field(i))
		items := map[string]reflect.Value{at: x}
		if x.IsValid() && x.Kind() == reflect.Slice {
			items = map[string]reflect.Value{}
			for i := range x.Len() {
				items[at+"["+strconv.Itoa(i)+"]"] = x.Index(i)
			}
		}
		for at, x := range items {
			switch {
			case !x.IsValid():
			case len(f.Fields) > 0:
				all = append(all, leaves(at, f.Fields, x)...)
			default:
				all = append(all, leaf{at, f, x, customer})
			}
		}
	}
	return all
}

// What the schema calls a reference is what validation wants to exist, and the
// other way round.
func TestReferencesAreTheModels(t *testing.T) {
	docs, s := set(t), build(t)
	said := map[string]bool{}
	for key, d := range docs {
		for _, k := range s.Kinds {
			if k.Kind != string(key.Kind) {
				continue
			}
			for _, l := range leaves("spec", k.Fields, reflect.ValueOf(d.Spec).Elem()) {
				if l.field.RefersTo == "" || l.value.String() == "" || l.value.String() == model.OwnerProvider {
					continue
				}
				to := model.Key{Kind: model.Kind(l.field.RefersTo), Name: l.value.String()}
				if to.Kind.HasCustomer() {
					if to.Customer = key.Customer; l.customer != "" {
						to.Customer = l.customer
					}
				}
				if _, ok := docs[to]; !ok {
					t.Errorf("%s: %s does not lead to %s", key, l.path, to)
				}
				said[key.String()+" "+l.path+" "+to.String()] = true
			}
		}
	}
	wanted := map[string]bool{}
	for gone := range docs {
		rest := map[model.Key]model.Document{}
		for k, d := range docs {
			if k != gone {
				rest[k] = d
			}
		}
		for _, p := range model.Validate(rest) {
			if strings.HasPrefix(p.Message, "there is no ") && p.Field != "metadata.customer" && p.Value == gone.Name {
				wanted[p.Document+" "+p.Field+" "+gone.String()] = true
			}
		}
	}
	for r := range wanted {
		if !said[r] {
			t.Errorf("the model wants %s, and the schema knows nothing of it", r)
		}
	}
	if len(said) < 10 || len(wanted) < 8 {
		t.Errorf("%d references by the schema, %d by the model", len(said), len(wanted))
	}
}

// Bounds come from comments; what they say is true.
func TestBoundsAreTheModels(t *testing.T) {
	s := build(t)
	tried := 0
	for key := range set(t) {
		for _, k := range s.Kinds {
			if k.Kind != string(key.Kind) {
				continue
			}
			for i := 0; ; i++ {
				docs := set(t)
				all := leaves("spec", k.Fields, reflect.ValueOf(docs[key].Spec).Elem())
				if i == len(all) {
					break
				}
				l := all[i]
				low, high, ok := strings.Cut(strings.ReplaceAll(l.field.Bounds, ",", ""), " to ")
				if !ok || l.value.Kind() != reflect.Int {
					continue
				}
				for text, by := range map[string]int64{low: -1, high: 1} {
					n, err := strconv.ParseInt(text, 10, 64)
					if err != nil {
						t.Fatal(err)
					}
					if n+by == 0 {
						continue // Left out.
					}
					l.value.SetInt(n + by)
					refused := false
					for _, p := range model.Validate(docs) {
						refused = refused || p.Document == key.String() && p.Field == l.path
					}
					if tried++; !refused {
						t.Errorf("%s: %s is %s, and %d is accepted", key, l.path, l.field.Bounds, n+by)
					}
				}
			}
		}
	}
	if tried < 4 {
		t.Errorf("only %d bounds were tried", tried)
	}
}

func TestDefaultsAreTheModels(t *testing.T) {
	for _, k := range build(t).Kinds {
		for _, f := range k.Fields {
			if f.Name != "pathMTU" {
				continue
			}
			want := []string{strconv.Itoa(model.DefaultPathMTU), strconv.Itoa(model.MinPathMTU) + " to " + strconv.Itoa(model.MaxPathMTU)}
			if diff := cmp.Diff(want, []string{f.Default, f.Bounds}); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			return
		}
	}
	t.Error("there is no field pathMTU")
}

func TestExamples(t *testing.T) {
	got := examplesOf([]string{"# About it.\nkind: Site\nspec: 1\n---\nkind: Node\n---\nkind: Site\nspec: 2\n", "kind: Site\n"})
	if diff := cmp.Diff(map[string]string{"Site": "kind: Site\nspec: 1\n", "Node": "kind: Node\n"}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// What validation refuses because agents cannot do it yet is said where the field
// is explained, and nowhere else.
func TestWhatIsRefusedAsYetIsSaid(t *testing.T) {
	docs := set(t)
	for _, d := range docs {
		switch s := d.Spec.(type) {
		case *model.SiteSpec:
			s.SecurityRules = &model.SiteRules{}
		case *model.NodeSpec:
			s.Exemptions = []string{"jump-host-ssh"}
		case *model.CircuitSpec:
			s.Enforcement = model.EnforcementObserve
		case *model.EncryptionPolicySpec:
			s.Protocol, s.CryptoProfile, s.Lifetimes, s.PostQuantum = model.ProtocolIPsec, "strict", &model.LifetimesSpec{}, model.PostQuantumRequired
		}
	}
	refused := map[string]bool{}
	for _, p := range model.Validate(docs) {
		if !strings.Contains(p.Message, "of this version cannot") {
			continue
		}
		kind, _, _ := strings.Cut(p.Document, "/")
		refused[kind+"."+p.Field] = true
	}
	if len(refused) != 3 {
		t.Errorf("validation refuses %v", refused)
	}
	var walk func(path string, fields []Field)
	walk = func(path string, fields []Field) {
		for _, f := range fields {
			at := path + "." + f.Name
			if says := strings.Contains(strings.ToLower(f.Doc), "refused as yet"); says != refused[at] {
				t.Errorf("%s: refused as yet: %t, and it says so: %t", at, refused[at], says)
			}
			walk(at, f.Fields)
		}
	}
	for _, k := range build(t).Kinds {
		walk(k.Kind+".spec", k.Fields)
	}
}
