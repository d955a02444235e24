package controller_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	"github.com/circuitseal/circuitseal/proto/chunk"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

func customer(name, model, metadata string) *v1.Source {
	return &v1.Source{Name: "x", Text: fmt.Sprintf(
		"apiVersion: circuitseal.io/v1\nkind: Customer\nmetadata: {name: %s%s}\nspec: {model: %s}\n", name, metadata, model)}
}

func keys(names ...string) []*v1.DocumentKey {
	var all []*v1.DocumentKey
	for _, n := range names {
		p := strings.Split(n, "/")
		k := &v1.DocumentKey{Kind: p[0], Name: p[len(p)-1]}
		if len(p) == 3 {
			k.Customer = p[1]
		}
		all = append(all, k)
	}
	return all
}

func text(kind, customer, name string) string {
	return strings.Join(slices.DeleteFunc([]string{kind, customer, name}, func(s string) bool { return s == "" }), "/")
}

// What refers to itself goes together; what others need stays, and they are named.
func TestDeleteTogether(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	o := r.operator()
	o.apply(t, samples(t)...)
	remove := func(q *v1.DeleteRequest) ([]string, error) {
		a, err := o.policy.Delete(t.Context(), connect.NewRequest(q))
		if err != nil {
			return nil, err
		}
		var gone []string
		for _, k := range a.Msg.GetDeleted() {
			gone = append(gone, text(k.GetKind(), k.GetCustomer(), k.GetName()))
		}
		return gone, nil
	}

	_, err := remove(&v1.DeleteRequest{Keys: keys("Customer/contoso", "Circuit/contoso/er-ams", "Site/contoso/hq", "Endpoint/contoso/hq")})
	rpc := new(connect.Error)
	if !errors.As(err, &rpc) || rpc.Code() != connect.CodeFailedPrecondition || len(rpc.Details()) != 1 {
		t.Fatalf("%v, want failed_precondition with a detail", err)
	}
	detail, err := rpc.Details()[0].Value()
	if err != nil {
		t.Fatal(err)
	}
	in, ok := detail.(*v1.InUse)
	if !ok {
		t.Fatalf("the detail is %T", detail)
	}
	var uses []string
	for _, u := range in.GetUses() {
		if u.GetField() == "metadata.customer" {
			continue
		}
		uses = append(uses, u.GetDocument()+" "+u.GetField()+" -> "+u.GetRefersTo())
	}
	want := []string{
		"Connection/contoso/hq-weu spec.endpoints[0] -> Endpoint/contoso/hq",
		"Connection/contoso/hq-weu spec.circuits[0] -> Circuit/contoso/er-ams",
		"Node/nva-1 spec.interfaces[1].customer -> Customer/contoso",
		"Node/prem-1 spec.interfaces[0].link.customer -> Customer/contoso",
		"Node/prem-1 spec.interfaces[0].link.circuit -> Circuit/contoso/er-ams",
		"Node/prem-1 spec.interfaces[1].link.customer -> Customer/contoso",
		"Node/prem-1 spec.interfaces[1].link.circuit -> Circuit/contoso/er-ams",
		"Node/prem-1 spec.interfaces[2].customer -> Customer/contoso",
	}
	if d := cmp.Diff(want, uses); d != "" {
		t.Errorf("uses (-want +got):\n%s", d)
	}

	for name, q := range map[string]*v1.DeleteRequest{
		"both forms":        {Kind: "site", Keys: keys("Site/contoso/hq")},
		"a name that is no": {Keys: keys("Site/contoso/../hq")},
		"no customer":       {Keys: keys("Site/hq")},
	} {
		if _, err := remove(q); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("%s: %v, want invalid_argument", name, err)
		}
	}
	if _, err := remove(&v1.DeleteRequest{Keys: keys("Connection/contoso/hq-weu", "Site/contoso/moon")}); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("one that is not there: %v, want not_found", err)
	}

	gone, err := remove(&v1.DeleteRequest{MissingOk: true, Keys: keys(
		"Customer/contoso", "Node/prem-1", "Node/nva-1", "Circuit/contoso/er-ams", "Site/contoso/hq", "Site/contoso/vnet-weu", "Site/contoso/moon",
		"Endpoint/contoso/hq", "Endpoint/contoso/vnet-weu", "EncryptionPolicy/contoso/standard", "Connection/contoso/hq-weu", "Site/contoso/hq",
	)})
	if err != nil || len(gone) != 10 || gone[0] != "Connection/contoso/hq-weu" || gone[9] != "Customer/contoso" {
		t.Errorf("deleted %v, %v, want ten, the connection first", gone, err)
	}
}

// A change that was made from an old revision is refused, and says both.
func TestRevisionsOfDocuments(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	o := r.operator()
	apply := func(s ...*v1.Source) (uint64, error) {
		a, err := o.policy.Apply(t.Context(), connect.NewRequest(&v1.ApplyRequest{Sources: s}))
		if err != nil {
			return 0, err
		}
		return a.Msg.GetRevision(), nil
	}
	first := o.apply(t, customer("c", "connect-to", "")).GetRevision()
	at := func(revision uint64) string { return fmt.Sprintf(", revision: %d", revision) }
	second, err := apply(customer("c", "connect-through", at(first)))
	if err != nil || second <= first {
		t.Fatalf("with the current revision: %d, %v", second, err)
	}
	// Once more, as after a call whose answer was lost.
	if again, err := apply(customer("c", "connect-through", at(first))); err != nil || again != second {
		t.Errorf("what changes nothing: %d, %v, want %d", again, err, second)
	}
	_, err = apply(customer("d", "connect-to", ""), customer("c", "connect-to", at(first)))
	for _, want := range []string{fmt.Sprintf("was made from revision %d", first), fmt.Sprintf("at revision %d by now", second), "nothing was changed"} {
		if connect.CodeOf(err) != connect.CodeAborted || !strings.Contains(err.Error(), want) {
			t.Errorf("with an old revision: %v, want aborted with %q", err, want)
		}
	}
	if _, err := apply(customer("d", "connect-to", at(first))); connect.CodeOf(err) != connect.CodeAborted || !strings.Contains(err.Error(), "there is no such document any more") {
		t.Errorf("one that is not there: %v", err)
	}
	if _, err := apply(customer("c", "connect-to", ", revision: -1")); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("a revision that is none: %v", err)
	}
	remove := func(revision uint64) error {
		_, err := o.policy.Delete(t.Context(), connect.NewRequest(&v1.DeleteRequest{Keys: []*v1.DocumentKey{{Kind: "customer", Name: "c", Revision: revision}}}))
		return err
	}
	if err := remove(first); connect.CodeOf(err) != connect.CodeAborted || !strings.Contains(err.Error(), fmt.Sprintf("revision %d", second)) {
		t.Errorf("delete at an old revision: %v", err)
	}
	if err := remove(second); err != nil {
		t.Errorf("delete at the current revision: %v", err)
	}
}

// The pages of a list show one moment, whatever happens between them.
func TestPages(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	o := r.operator()
	o.apply(t, samples(t)...)
	whole, err := o.policy.Get(t.Context(), connect.NewRequest(&v1.GetRequest{Kind: "all"}))
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, d := range whole.Msg.GetDocuments() {
		want = append(want, fmt.Sprint(text(d.GetKind(), d.GetCustomer(), d.GetName()), d.GetRevision()))
	}
	q := &v1.GetRequest{Kind: "all", PageSize: 3}
	var revision uint64
	for i := 0; ; i++ {
		a, err := o.policy.Get(t.Context(), connect.NewRequest(q))
		if err != nil {
			t.Fatalf("page %d: %v", i, err)
		}
		if i == 0 {
			revision = a.Msg.GetRevision()
		}
		if n := len(a.Msg.GetDocuments()); n > 3 || a.Msg.GetRevision() != revision || revision < whole.Msg.GetRevision() {
			t.Errorf("page %d has %d documents at revision %d, want at most 3 at %d", i, n, a.Msg.GetRevision(), revision)
		}
		for _, d := range a.Msg.GetDocuments() {
			got = append(got, fmt.Sprint(text(d.GetKind(), d.GetCustomer(), d.GetName()), d.GetRevision()))
		}
		if a.Msg.GetNextPageToken() == "" {
			break
		}
		q.PageToken = a.Msg.GetNextPageToken()
		// What is new, changed or gone meanwhile is not seen.
		o.apply(t, customer(fmt.Sprintf("a%d", i), "connect-to", ""), customer("contoso", []string{"connect-to", "connect-through"}[i%2], ""))
		if i == 1 {
			if _, err := o.policy.Delete(t.Context(), connect.NewRequest(&v1.DeleteRequest{Kind: "connection", Customer: "contoso", Name: "hq-weu"})); err != nil {
				t.Fatal(err)
			}
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("pages (-want +got):\n%s", d)
	}
	for _, token := range []string{"x", "MS8", strings.Repeat("A", 1000), "MTIzL05vZGUvL24="} {
		if _, err := o.policy.Get(t.Context(), connect.NewRequest(&v1.GetRequest{Kind: "all", PageToken: token})); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("page token %.20q: %v, want invalid_argument", token, err)
		}
	}
	// "999999/Customer//contoso": the future.
	if _, err := o.policy.Get(t.Context(), connect.NewRequest(&v1.GetRequest{Kind: "all", PageToken: "OTk5OTk5L0N1c3RvbWVyLy9jb250b3Nv"})); connect.CodeOf(err) != connect.CodeOutOfRange {
		t.Errorf("a token of another time: %v, want out_of_range", err)
	}
}

// watcher reads a watch up to each bookmark.
type watcher struct {
	t      *testing.T
	stream *connect.ServerStreamForClient[v1.WatchResponse]
}

func (o operator) watch(t *testing.T, q *v1.WatchRequest) watcher {
	t.Helper()
	s, err := o.policy.Watch(t.Context(), connect.NewRequest(q))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return watcher{t, s}
}

// until reads to the first bookmark of a revision or a later one.
func (w watcher) until(revision uint64) []string {
	w.t.Helper()
	var events []string
	for w.stream.Receive() {
		m := w.stream.Msg()
		if m.GetEvent() == v1.WatchEvent_WATCH_EVENT_BOOKMARK {
			if m.GetRevision() >= revision {
				return events
			}
			continue
		}
		d := m.GetDocument()
		events = append(events, strings.ToLower(strings.TrimPrefix(m.GetEvent().String(), "WATCH_EVENT_"))+" "+text(d.GetKind(), d.GetCustomer(), d.GetName()))
		if gone := m.GetEvent() == v1.WatchEvent_WATCH_EVENT_DELETED; gone != (d.GetSpec() == nil) || d.GetRevision() == 0 {
			w.t.Errorf("%v", m)
		}
	}
	w.t.Fatalf("the watch ended: %v", w.stream.Err())
	return nil
}

func TestWatch(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	o := r.operator()
	begun := o.apply(t, samples(t)...).GetRevision()
	all := o.watch(t, &v1.WatchRequest{Kind: "all"})
	if got := all.until(begun); len(got) != 10 || got[0] != "created Customer/contoso" || got[9] != "created Connection/contoso/hq-weu" {
		t.Errorf("at first: %v", got)
	}
	customers := o.watch(t, &v1.WatchRequest{Kind: "customers"})
	if got := customers.until(begun); len(got) != 1 {
		t.Errorf("customers at first: %v", got)
	}
	o.apply(t, customer("fabrikam", "connect-to", ""), customer("contoso", "connect-to", ""))
	a, err := o.policy.Delete(t.Context(), connect.NewRequest(&v1.DeleteRequest{Kind: "connection", Customer: "contoso", Name: "hq-weu"}))
	if err != nil {
		t.Fatal(err)
	}
	end := a.Msg.GetRevision()
	want := []string{"changed Customer/contoso", "created Customer/fabrikam", "deleted Connection/contoso/hq-weu"}
	if d := cmp.Diff(want, all.until(end)); d != "" {
		t.Errorf("all (-want +got):\n%s", d)
	}
	if d := cmp.Diff(want[:2], customers.until(end)); d != "" {
		t.Errorf("customers (-want +got):\n%s", d)
	}
	// Who was away gets what was missed, deletions too.
	if d := cmp.Diff(want, o.watch(t, &v1.WatchRequest{Kind: "all", FromRevision: begun}).until(end)); d != "" {
		t.Errorf("from revision %d (-want +got):\n%s", begun, d)
	}
	if got := o.watch(t, &v1.WatchRequest{Kind: "all", FromRevision: end}).until(end); len(got) > 0 {
		t.Errorf("from the newest revision: %v", got)
	}
	future, err := o.policy.Watch(t.Context(), connect.NewRequest(&v1.WatchRequest{Kind: "all", FromRevision: end + 1000}))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = future.Close() }()
	if future.Receive() || connect.CodeOf(future.Err()) != connect.CodeOutOfRange {
		t.Errorf("from a revision that is not kept: %v, want out_of_range", future.Err())
	}
}

// longRules is the text of a rule set.
func longRules(rules int) string {
	var b strings.Builder
	b.WriteString("apiVersion: circuitseal.io/v1\nkind: SecurityRuleSet\nmetadata: {name: long, customer: contoso}\nspec:\n  direction: outbound\n  rules:\n")
	for i := range rules {
		fmt.Fprintf(&b, "    - name: rule-%d\n      priority: %d\n      protocol: tcp\n      sourceAddressPrefixes: [10.1.%d.%d/32]\n      destinationAddressPrefixes: [10.2.%d.0/24]\n      destinationPortRanges: [%d, 8000-8999]\n      action: encrypt\n",
			i, i+1, i/256%256, i%256, i%251, 1+i%7000)
	}
	return b.String()
}

// send brings a text in parts and returns the source that names them, and how
// many were sent.
func (o operator) send(t *testing.T, whole string) (*v1.Source, int) {
	t.Helper()
	s := &v1.Source{Name: "long.yaml"}
	parts := map[string][]byte{}
	for part := range chunk.Split([]byte(whole)) {
		sum := chunk.Of(part)
		s.Chunks = append(s.Chunks, sum[:])
		parts[string(sum[:])] = part
	}
	missing, err := o.policy.MissingChunks(t.Context(), connect.NewRequest(&v1.MissingChunksRequest{Chunks: s.Chunks}))
	if err != nil {
		t.Fatal(err)
	}
	for _, sum := range missing.Msg.GetMissing() {
		if _, err := o.policy.PutChunk(t.Context(), connect.NewRequest(&v1.PutChunkRequest{Data: parts[string(sum)]})); err != nil {
			t.Fatal(err)
		}
	}
	return s, len(missing.Msg.GetMissing())
}

// A rule set that no message holds comes and goes in parts.
func TestLongRuleSet(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	o := r.operator()
	o.apply(t, samples(t)...)
	whole := longRules(100_000)
	wrong := strings.Replace(whole, "priority: 90000\n", "priority: 0\n", 1)
	source, sent := o.send(t, wrong)
	_, err := o.policy.Apply(t.Context(), connect.NewRequest(&v1.ApplyRequest{Sources: []*v1.Source{source}}))
	got := problems(t, err)
	if len(got) != 1 || got[0].GetField() != "spec.rules[89999].priority" || got[0].GetLine() != uint32(7+7*89999) {
		t.Errorf("a wrong rule: %v", got)
	}
	// Once it is right, what has not changed is there already.
	source, again := o.send(t, whole)
	if sent < 50 || again > 2 {
		t.Errorf("%d parts were sent, and %d once one rule had changed", sent, again)
	}
	o.apply(t, source)
	if _, err := o.policy.Apply(t.Context(), connect.NewRequest(&v1.ApplyRequest{Sources: []*v1.Source{source}})); connect.CodeOf(err) != connect.CodeFailedPrecondition || !strings.Contains(err.Error(), "PutChunk") {
		t.Errorf("parts that were applied and are forgotten: %v, want failed_precondition", err)
	}

	list, err := o.policy.Get(t.Context(), connect.NewRequest(&v1.GetRequest{Kind: "securityrulesets"}))
	if err != nil || len(list.Msg.GetDocuments()) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	d := list.Msg.GetDocuments()[0]
	if d.GetSpec() != nil || len(d.GetSpecChunks()) == 0 {
		t.Fatalf("a spec of %d rules came whole", 100_000)
	}
	key := &v1.DocumentKey{Kind: d.GetKind(), Customer: d.GetCustomer(), Name: d.GetName(), Revision: d.GetRevision()}
	var spec strings.Builder
	for _, sum := range d.GetSpecChunks() {
		a, err := o.policy.GetChunk(t.Context(), connect.NewRequest(&v1.GetChunkRequest{Document: key, Chunk: sum}))
		if err != nil {
			t.Fatal(err)
		}
		spec.Write(a.Msg.GetData())
	}
	if n := strings.Count(spec.String(), `"name":"rule-`); n != 100_000 {
		t.Errorf("%d rules came back", n)
	}
	for name, q := range map[string]*v1.GetChunkRequest{
		"of another revision": {Document: &v1.DocumentKey{Kind: d.GetKind(), Customer: d.GetCustomer(), Name: d.GetName(), Revision: d.GetRevision() - 1}, Chunk: d.GetSpecChunks()[0]},
		"of no document":      {Document: &v1.DocumentKey{Kind: "site", Customer: "contoso", Name: "hq", Revision: d.GetRevision()}, Chunk: d.GetSpecChunks()[0]},
		"unknown":             {Document: key, Chunk: make([]byte, 32)},
	} {
		if _, err := o.policy.GetChunk(t.Context(), connect.NewRequest(q)); connect.CodeOf(err) != connect.CodeNotFound {
			t.Errorf("a chunk %s: %v, want not_found", name, err)
		}
	}
}
