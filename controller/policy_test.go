package controller_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

func problems(t *testing.T, err error) []*v1.Problem {
	t.Helper()
	rpc := new(connect.Error)
	if !errors.As(err, &rpc) {
		t.Fatalf("got %v", err)
	}
	for _, d := range rpc.Details() {
		m, err := d.Value()
		if err != nil {
			t.Fatal(err)
		}
		if p, ok := m.(*v1.InvalidDocuments); ok {
			return p.GetProblems()
		}
	}
	t.Fatalf("no detail says what is wrong: %v", err)
	return nil
}

func TestApplyIsAllOrNothing(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	o := r.operator()
	bad := &v1.Source{Name: "bad.yaml", Text: "apiVersion: circuitseal.io/v1\nkind: Site\nmetadata:\n  customer: contoso\n  name: annex\nspec:\n  type: moon\n  prefixes: [10.1.4.0/24, fe80::/64]\n  color: red\n"}
	_, err := o.policy.Apply(t.Context(), connect.NewRequest(&v1.ApplyRequest{Sources: append(samples(t), bad)}))
	if connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Fatalf("a bad document: %v", err)
	}
	lines := map[string]uint32{}
	for _, p := range problems(t, err) {
		if p.GetSource() == "bad.yaml" {
			lines[p.GetField()] = p.GetLine()
		}
		if p.GetMessage() == "" || p.GetHint() == "" {
			t.Errorf("%v says too little", p)
		}
	}
	for field, line := range map[string]uint32{"spec.type": 7, "spec.color": 9, "spec.prefixes[0]": 8, "spec.prefixes[1]": 8} {
		if lines[field] != line {
			t.Errorf("%s is reported in line %d, want %d", field, lines[field], line)
		}
	}
	all, err := o.policy.Get(t.Context(), connect.NewRequest(&v1.GetRequest{Kind: "all"}))
	if err != nil || len(all.Msg.GetDocuments()) != 0 {
		t.Fatalf("after a refused apply there are %d documents, %v", len(all.Msg.GetDocuments()), err)
	}

	dry, err := o.policy.Apply(t.Context(), connect.NewRequest(&v1.ApplyRequest{Sources: samples(t), DryRun: true}))
	if err != nil || len(dry.Msg.GetChanges()) != 10 || dry.Msg.GetRevision() != all.Msg.GetRevision() {
		t.Fatalf("dry run: %v, %v", dry, err)
	}
	first := o.apply(t, samples(t)...)
	o.awaitSecrets(t, 2)
	before, err := o.status.GetStatus(t.Context(), connect.NewRequest(&v1.GetStatusRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	second := o.apply(t, samples(t)...)
	if second.GetRevision() != before.Msg.GetRevision() {
		t.Errorf("a change of nothing raised the revision from %d to %d", before.Msg.GetRevision(), second.GetRevision())
	}
	for i, c := range second.GetChanges() {
		if first.GetChanges()[i].GetAction() != v1.ChangeAction_CHANGE_ACTION_CREATED || c.GetAction() != v1.ChangeAction_CHANGE_ACTION_UNCHANGED {
			t.Errorf("%v, then %v", first.GetChanges()[i], c)
		}
	}
}

func TestGetAndDelete(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	o := r.operator()
	o.apply(t, samples(t)...)
	get := func(q *v1.GetRequest) []string {
		t.Helper()
		a, err := o.policy.Get(t.Context(), connect.NewRequest(q))
		if err != nil {
			return []string{connect.CodeOf(err).String()}
		}
		var names []string
		for _, d := range a.Msg.GetDocuments() {
			names = append(names, strings.Join([]string{d.GetKind(), d.GetCustomer(), d.GetName()}, "/"))
			if d.GetApiVersion() == "" || d.GetRevision() == 0 || len(d.GetSpec().GetFields()) == 0 {
				t.Errorf("%v lacks something", d)
			}
		}
		return names
	}
	tests := []struct {
		name string
		q    *v1.GetRequest
		want []string
	}{
		{"plural", &v1.GetRequest{Kind: "sites"}, []string{"Site/contoso/hq", "Site/contoso/vnet-weu"}},
		{"one, other case", &v1.GetRequest{Kind: "eNdPoInT", Customer: "contoso", Name: "hq"}, []string{"Endpoint/contoso/hq"}},
		{"of no customer", &v1.GetRequest{Kind: "site", Customer: "fabrikam"}, []string{"not_found"}},
		{"one of no customer", &v1.GetRequest{Kind: "site", Customer: "fabrikam", Name: "hq"}, []string{"not_found"}},
		{"unknown kind", &v1.GetRequest{Kind: "planet"}, []string{"invalid_argument"}},
		{"dots", &v1.GetRequest{Kind: "site", Customer: "..", Name: "../hq"}, []string{"invalid_argument"}},
		{"NUL", &v1.GetRequest{Kind: "site", Name: "h\x00q"}, []string{"invalid_argument"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if d := cmp.Diff(tt.want, get(tt.q)); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}

	remove := func(kind, customer, name string) error {
		_, err := o.policy.Delete(t.Context(), connect.NewRequest(&v1.DeleteRequest{Kind: kind, Customer: customer, Name: name}))
		return err
	}
	err := remove("site", "contoso", "hq")
	if connect.CodeOf(err) != connect.CodeFailedPrecondition || !strings.Contains(err.Error(), "Endpoint/contoso/hq (spec.site)") {
		t.Errorf("a site in use: %v", err)
	}
	if err := remove("site", "contoso", "moon"); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("a site that is not there: %v", err)
	}
	for _, k := range []string{"connection/hq-weu", "endpoint/hq", "endpoint/vnet-weu", "sites/hq"} {
		kind, name, _ := strings.Cut(k, "/")
		if err := remove(kind, "contoso", name); err != nil {
			t.Errorf("delete %s: %v", k, err)
		}
	}
	if got := get(&v1.GetRequest{Kind: "site"}); len(got) != 1 {
		t.Errorf("sites are left: %v", got)
	}
}

// Names never reach a path, a key or a terminal unless they are labels.
func TestHostileNames(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	o := r.operator()
	o.apply(t, samples(t)...)
	for label, name := range map[string]string{
		"dots": "../../etc/passwd", "NUL": "a\x00b", "long": strings.Repeat("a", 64<<10), "slash": "a/b",
		"escaped": "%2e%2e%2f", "direction": "a\u202eb", "capital": "Contoso", "escape": "a\x1b[2J",
	} {
		t.Run(label, func(t *testing.T) {
			yaml, err := json.Marshal(map[string]any{
				"apiVersion": "circuitseal.io/v1", "kind": "Customer",
				"metadata": map[string]string{"name": name}, "spec": map[string]string{"model": "connect-to"},
			})
			if err != nil {
				t.Fatal(err)
			}
			_, err = o.policy.Apply(t.Context(), connect.NewRequest(&v1.ApplyRequest{Sources: []*v1.Source{{Name: "x", Text: string(yaml)}}}))
			if connect.CodeOf(err) != connect.CodeInvalidArgument {
				t.Fatalf("Apply: %v", err)
			}
			if p := problems(t, err); p[0].GetField() != "metadata.name" || len(p[0].GetValue()) > 256 {
				t.Errorf("Apply: %v", p)
			}
			_, err = o.nodes.CreateToken(t.Context(), connect.NewRequest(&v1.CreateTokenRequest{Node: name}))
			if connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), "node ") || len(err.Error()) > 500 {
				t.Errorf("CreateToken: %v", err)
			}
			_, err = o.policy.Delete(t.Context(), connect.NewRequest(&v1.DeleteRequest{Kind: "site", Customer: name, Name: name}))
			if connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), "customer ") || !strings.Contains(err.Error(), "name ") {
				t.Errorf("Delete: %v", err)
			}
		})
	}
}

// peakDuring is how much the heap grows, at most, while f runs. Garbage does not
// count: how much of it there is says how busy the machine is.
func peakDuring(f func()) uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	before, peak := m.HeapAlloc, m.HeapAlloc
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC()
				runtime.ReadMemStats(&m)
				peak = max(peak, m.HeapAlloc)
			}
		}
	}()
	f()
	close(stop)
	<-done
	return peak - before
}

// endless is a body whose length nobody is told.
type endless struct{ io.Reader }

func TestOversizedRequests(t *testing.T) {
	r := start(t, t.TempDir()+"/data")
	large := bytes.Repeat([]byte(" "), 6<<20)
	message, err := proto.Marshal(&v1.ApplyRequest{Sources: []*v1.Source{{Name: "x", Text: string(large)}}})
	if err != nil {
		t.Fatal(err)
	}
	admin, nobody := r.client(r.admin()), r.client(nil)
	post := func(c *http.Client, procedure, contentType string, body io.Reader) (int, string) {
		t.Helper()
		q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+procedure, body)
		if err != nil {
			t.Fatal(err)
		}
		q.Header.Set("Content-Type", contentType)
		a, err := c.Do(q)
		if err != nil {
			// The server may answer and hang up before all is sent, and then
			// the answer can get lost.
			return 0, err.Error()
		}
		defer func() { _ = a.Body.Close() }()
		b, err := io.ReadAll(a.Body)
		if err != nil {
			return 0, err.Error()
		}
		return a.StatusCode, string(b)
	}
	const apply, enrol = "/circuitseal.v1.PolicyService/Apply", "/circuitseal.v1.AgentService/Enrol"
	tests := []struct {
		name        string
		client      *http.Client
		procedure   string
		contentType string
		body        func() io.Reader
		most        uint64
	}{
		{"its length is told", admin, apply, "application/proto", func() io.Reader { return bytes.NewReader(message) }, 8 << 20},
		{"its length is not told", admin, apply, "application/proto", func() io.Reader { return endless{bytes.NewReader(message)} }, 48 << 20},
		{"JSON", admin, apply, "application/json", func() io.Reader { return endless{bytes.NewReader(large)} }, 48 << 20},
		{"a stranger's", nobody, enrol, "application/proto", func() io.Reader { return endless{bytes.NewReader(message)} }, 16 << 20},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var code int
			var text string
			var grown uint64
			for hungUp := 0; code == 0 && hungUp < 20; hungUp++ {
				grown = peakDuring(func() { code, text = post(tt.client, tt.procedure, tt.contentType, tt.body()) })
			}
			if code != http.StatusTooManyRequests || !strings.Contains(text, "resource_exhausted") {
				t.Errorf("got %d %.300s", code, text)
			}
			if grown > tt.most {
				t.Errorf("the heap grew by %d MiB", grown>>20)
			}
		})
	}
	// Compressed bytes are not read at all: a bomb has nothing to blow up.
	q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+apply, strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Content-Type", "application/proto")
	q.Header.Set("Content-Encoding", "gzip")
	a, err := admin.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Body.Close() }()
	if b, err := io.ReadAll(a.Body); err != nil || !strings.Contains(string(b), "unimplemented") {
		t.Errorf("gzip: %s, %v", b, err)
	}
}

func TestJSONForScripts(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	r.operator().apply(t, samples(t)...)
	c := r.client(r.admin(), tls.CurveP256)
	q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/circuitseal.v1.PolicyService/Get",
		strings.NewReader(`{"kind": "customer", "name": "contoso"}`))
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Content-Type", "application/json")
	a, err := c.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Body.Close() }()
	var got struct {
		Documents []struct {
			Kind, Name string
			Spec       struct{ Model string }
		}
	}
	if err := json.NewDecoder(a.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	if len(got.Documents) != 1 || got.Documents[0].Spec.Model != "connect-through" {
		t.Errorf("got %+v", got)
	}
}

// Writers at the same moment do not lose each other's documents.
func TestConcurrentApplies(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	o := r.operator()
	var wg sync.WaitGroup
	var made atomic.Int32
	const writers = 6
	for i := range writers {
		wg.Go(func() {
			name := "customer-" + string(rune('a'+i))
			_, err := o.policy.Apply(t.Context(), connect.NewRequest(&v1.ApplyRequest{Sources: []*v1.Source{{
				Name: "x", Text: "apiVersion: circuitseal.io/v1\nkind: Customer\nmetadata: {name: " + name + "}\nspec: {model: connect-to}\n",
			}}}))
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			made.Add(1)
		})
	}
	wg.Wait()
	all, err := o.policy.Get(t.Context(), connect.NewRequest(&v1.GetRequest{Kind: "customers"}))
	if err != nil || len(all.Msg.GetDocuments()) != int(made.Load()) || made.Load() != writers {
		t.Errorf("%d were made, %d are there, %v", made.Load(), len(all.Msg.GetDocuments()), err)
	}
}
