package document_test

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"pgregory.net/rapid"

	"github.com/circuitseal/circuitseal/controller/document"
	"github.com/circuitseal/circuitseal/controller/model"
)

var update = flag.Bool("update", false, "write golden files")

var comparer = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func sampleFiles(t testing.TB) []document.Source {
	t.Helper()
	var files []string
	for _, pattern := range []string{"../../deploy/samples/*.yaml", "../../deploy/samples/kinds/*.yaml"} {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			t.Fatalf("no samples: %v", err)
		}
		files = append(files, found...)
	}
	var sources []document.Source
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		sources = append(sources, document.Source{Name: filepath.Base(f), Text: string(text)})
	}
	return sources
}

func set(docs []model.Document) map[model.Key]model.Document {
	m := map[model.Key]model.Document{}
	for _, d := range docs {
		m[d.Key] = d
	}
	return m
}

func render(problems []model.Problem) string {
	var b strings.Builder
	for _, p := range problems {
		fmt.Fprintf(&b, "%s:%d: %s %s %q\n\twhat: %s\n\thint: %s\n", p.Source, p.Line, p.Document, p.Field, p.Value, p.Message, p.Hint)
	}
	return b.String()
}

// The samples are applied one after the other: every file has to be valid
// together with those before it.
func TestSamples(t *testing.T) {
	all := map[model.Key]model.Document{}
	for _, s := range sampleFiles(t) {
		docs, where, problems := document.Decode([]document.Source{s})
		if len(docs) == 0 {
			t.Errorf("%s has no documents", s.Name)
		}
		for _, d := range docs {
			all[d.Key] = d
		}
		if got := render(where.Merge(problems, model.Validate(all))); got != "" {
			t.Errorf("%s has problems:\n%s", s.Name, got)
		}
	}
}

// TestProblems goes through testdata/problems/*.txtar: files ending in .yaml are
// sources, and "problems" is what decoding and validating them says.
func TestProblems(t *testing.T) {
	files, err := filepath.Glob("testdata/problems/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var sources []document.Source
			want, golden := "", -1
			for i, f := range archive.Files {
				if f.Name == "problems" {
					golden, want = i, string(f.Data)
				} else {
					sources = append(sources, document.Source{Name: f.Name, Text: string(f.Data)})
				}
			}
			docs, where, problems := document.Decode(sources)
			got := render(where.Merge(problems, model.Validate(set(docs))))
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

// Text that a golden file cannot hold, or that is too long for one.
func TestHostileText(t *testing.T) {
	const customer = "apiVersion: circuitseal.io/v1\nkind: Customer\nmetadata: {name: c}\nspec: {model: connect-to}\n"
	for _, tt := range []struct {
		name    string
		sources []document.Source
		line    int
		want    string
	}{
		{"document too large", []document.Source{{Name: "a", Text: strings.Repeat("#", document.MaxDocument+1)}}, 1, "at most 1048576"},
		{"too large together", []document.Source{
			{Name: "a", Text: strings.Repeat("#", document.MaxDocument)}, {Name: "b", Text: strings.Repeat("#", document.MaxDocument)},
			{Name: "c", Text: strings.Repeat("#", document.MaxDocument)}, {Name: "d", Text: strings.Repeat("#", document.MaxDocument)}, {Name: "e", Text: "#"},
		}, 1, "at most 4194304"},
		{"not UTF-8", []document.Source{{Name: "a", Text: customer + "# \xff\n"}}, 5, "is no UTF-8"},
		{"NUL", []document.Source{{Name: "a", Text: customer + "# \x00\n"}}, 5, "control character"},
		{"UTF-16", []document.Source{{Name: "a", Text: "\xff\xfea\x00"}}, 1, "is no UTF-8"},
		{"carriage return", []document.Source{{Name: "a", Text: "# a\r" + customer}}, 1, "carriage return"},
		{"line separator", []document.Source{{Name: "a", Text: "\n# \u2028\n"}}, 2, "line break"},
		{"deep", []document.Source{{Name: "a", Text: "\n" + strings.Repeat("[", 40) + strings.Repeat("]", 40)}}, 2, "deeper than 32"},
		{"very deep", []document.Source{{Name: "a", Text: strings.Repeat("[", 100_000)}}, 1, "is no YAML"},
		{"many documents", []document.Source{{Name: "a", Text: strings.Repeat("---\n0\n", document.MaxDocuments+1)}}, 2, "is a whole number"},
		{"huge key", []document.Source{{Name: "a", Text: strings.Repeat("k", 1000) + ": 1\n"}}, 1, "no such field"},
		{"huge name", []document.Source{{Name: "a", Text: strings.Replace(customer, "name: c", "name: "+strings.Repeat("c", 1<<16), 1)}}, 3, "65536 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			docs, where, problems := document.Decode(tt.sources)
			problems = where.Merge(problems, model.Validate(set(docs)))
			if len(problems) == 0 {
				t.Fatal("no problem")
			}
			p := problems[0]
			if !strings.Contains(p.Message, tt.want) || p.Line != tt.line || p.Source != tt.sources[len(tt.sources)-1].Name {
				t.Errorf("got %s:%d: %s, want line %d and %q", p.Source, p.Line, p.Message, tt.line, tt.want)
			}
			checkShown(t, tt.sources, problems)
			if len(problems) > document.MaxProblems+1 {
				t.Errorf("%d problems are told", len(problems))
			}
		})
	}
}

func TestTooManyDocuments(t *testing.T) {
	var parts [2]strings.Builder
	for i := range document.MaxDocuments + 1 {
		fmt.Fprintf(&parts[i%2], "---\n{apiVersion: circuitseal.io/v1, kind: Customer, metadata: {name: c%d}, spec: {}}\n", i)
	}
	docs, _, problems := document.Decode([]document.Source{{Name: "a", Text: parts[0].String()}, {Name: "b", Text: parts[1].String()}})
	if len(docs) != document.MaxDocuments || len(problems) == 0 || !strings.Contains(problems[len(problems)-1].Message, "10000 documents") {
		t.Errorf("%d documents, problems %s", len(docs), render(problems))
	}
}

// checkShown holds for every problem of every input.
func checkShown(t testing.TB, sources []document.Source, problems []model.Problem) {
	t.Helper()
	lines := map[string]int{}
	for _, s := range sources {
		lines[s.Name] = max(lines[s.Name], 1+strings.Count(s.Text, "\n"))
	}
	for _, p := range problems {
		if p.Line < 1 || p.Line > lines[p.Source] {
			t.Errorf("line %d of %q, which has %d: %+v", p.Line, p.Source, lines[p.Source], p)
		}
		if p.Message == "" || p.Hint == "" {
			t.Errorf("problem without message or hint: %+v", p)
		}
		for what, s := range map[string]string{"document": p.Document, "field": p.Field, "value": p.Value, "message": p.Message, "hint": p.Hint} {
			if s != model.Shorten(s) && len(s) > 600 || strings.ContainsAny(s, "\x00\n\u202e") {
				t.Errorf("%s is not fit to be shown: %.700q", what, s)
			}
		}
	}
}

// FuzzDecode: whatever the text, Decode returns, its problems are fit to be
// shown, and what it accepts can be encoded and validated.
func FuzzDecode(f *testing.F) {
	for _, s := range sampleFiles(f) {
		f.Add(s.Text)
	}
	files, err := filepath.Glob("testdata/problems/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, part := range archive.Files {
			f.Add(string(part.Data))
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		sources := []document.Source{{Name: "a", Text: text}}
		docs, where, problems := document.Decode(sources)
		checkShown(t, sources, problems)
		validated := model.Validate(set(docs))
		checkShown(t, sources, where.Merge(problems, validated))
		if len(problems) > 0 {
			return
		}
		for _, d := range docs {
			b, err := document.Encode(d.Spec)
			if err != nil {
				t.Fatalf("encode %s: %v", d.Key, err)
			}
			again, err := document.DecodeSpec(string(d.Key.Kind), b)
			if err != nil {
				t.Fatalf("decode %s: %v\n%s", d.Key, err, b)
			}
			if diff := cmp.Diff(d.Spec, again, comparer); diff != "" {
				t.Errorf("%s (-want +got):\n%s", d.Key, diff)
			}
		}
	})
}

// A random spec survives JSON, and the same JSON inside of a document.
func TestRoundTrip(t *testing.T) {
	for _, kind := range model.Kinds() {
		t.Run(string(kind), rapid.MakeCheck(func(t *rapid.T) {
			spec := model.NewSpec(kind)
			fill(t, reflect.ValueOf(spec).Elem(), "spec")
			b, err := document.Encode(spec)
			if err != nil {
				t.Fatal(err)
			}
			again, err := document.DecodeSpec(string(kind), b)
			if err != nil {
				t.Fatalf("%v: %s", err, b)
			}
			if diff := cmp.Diff(spec, again, comparer); diff != "" {
				t.Fatalf("JSON (-want +got):\n%s", diff)
			}
			customer := ""
			if kind.HasCustomer() {
				customer = `, "customer": "c"`
			}
			text := fmt.Sprintf(`{"apiVersion": %q, "kind": %q, "metadata": {"name": "n"%s}, "spec": %s}`, model.APIVersion, kind, customer, b)
			docs, _, problems := document.Decode([]document.Source{{Name: "-", Text: text}})
			if len(problems) > 0 || len(docs) != 1 {
				t.Fatalf("%s\n%s", render(problems), text)
			}
			if diff := cmp.Diff(spec, docs[0].Spec, comparer); diff != "" {
				t.Fatalf("document (-want +got):\n%s", diff)
			}
		}))
	}
}

// fill sets every field of a spec. It fails on a type that it does not know, so
// that a new field cannot be forgotten in the decoder either.
func fill(t *rapid.T, v reflect.Value, path string) {
	switch p := v.Addr().Interface().(type) {
	case *netip.Addr:
		*p = drawAddr(t, path)
		return
	case *netip.Prefix:
		a := drawAddr(t, path)
		*p = netip.PrefixFrom(a, rapid.IntRange(0, a.BitLen()).Draw(t, path+" bits"))
		return
	case *model.PortRange:
		p.From = rapid.Uint16().Draw(t, path+" from")
		p.To = rapid.Uint16Range(p.From, 65535).Draw(t, path+" to")
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), path+"."+v.Type().Field(i).Name)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), rapid.IntRange(1, 3).Draw(t, path+" length"), 3))
		for i := range v.Len() {
			fill(t, v.Index(i), fmt.Sprintf("%s[%d]", path, i))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), path)
	case reflect.Int:
		v.SetInt(int64(rapid.IntRange(-1000, 100_000).Draw(t, path)))
	case reflect.Bool:
		v.SetBool(rapid.Bool().Draw(t, path))
	case reflect.String:
		v.SetString(rapid.StringMatching(`[a-zA-Z0-9 <>&:#"'\\{}é…-]{1,20}`).Draw(t, path))
	default:
		t.Fatalf("%s has a type that documents do not know: %s", path, v.Type())
	}
}

func drawAddr(t *rapid.T, label string) netip.Addr {
	if rapid.Bool().Draw(t, label+" IPv4") {
		return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, label)))
	}
	return netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, label)))
}

func TestEncodeIsCanonical(t *testing.T) {
	docs, _, problems := document.Decode(sampleFiles(t))
	if len(problems) > 0 {
		t.Fatal(render(problems))
	}
	key := model.Key{Kind: model.KindEndpoint, Customer: "contoso", Name: "vnet-weu"}
	b, err := document.Encode(set(docs)[key].Spec)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"site":"vnet-weu","node":"nva-1","underlay":[{"address":"172.20.255.4"},{"address":"172.20.255.5"}]}`
	if got := string(b); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestDecodeSpecRefuses(t *testing.T) {
	for _, tt := range []struct{ name, kind, text, want string }{
		{"unknown kind", "Router\x00", `{}`, `no kind "Router\\x00"`},
		{"unknown field", "Site", `{"typ":"on-premises"}`, `unknown field "typ"`},
		{"trailing bytes", "Site", `{} {}`, "more after the end"},
		{"malformed", "Site", `{`, "unexpected EOF"},
		{"malformed behind", "Site", `{}x`, "invalid character"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := document.DecodeSpec(tt.kind, []byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v, want one with %q", err, tt.want)
			}
		})
	}
	if _, err := document.Encode(nil); err == nil {
		t.Error("no spec was encoded without error")
	}
}
