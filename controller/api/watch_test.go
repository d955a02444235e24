package api

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	"github.com/circuitseal/circuitseal/controller/model"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
)

// restless is a store whose documents change all the time.
type restless struct {
	Store
	ended chan struct{}
}

func (r restless) Watch(ctx context.Context) iter.Seq2[*model.Snapshot, error] {
	return func(yield func(*model.Snapshot, error) bool) {
		defer close(r.ended)
		for revision := uint64(1); ctx.Err() == nil; revision++ {
			docs := map[model.Key]model.Document{}
			for i := range 32 {
				k := model.Key{Kind: model.KindCustomer, Name: fmt.Sprintf("c%d", i)}
				docs[k] = model.Document{Key: k, Revision: revision, Spec: &model.CustomerSpec{DisplayName: strings.Repeat("x", 128<<10)}}
			}
			if !yield(&model.Snapshot{Revision: revision, Documents: docs}, nil) {
				return
			}
		}
	}
}

// A watcher that takes nothing is cut off, though its connection lives.
func TestSlowWatcherIsCutOff(t *testing.T) {
	before := takeTimeout
	takeTimeout = 200 * time.Millisecond
	defer func() { takeTimeout = before }()
	store := restless{ended: make(chan struct{})}
	p := newPolicy(t.Context(), store, nil, newUploads(time.Now), slog.New(slog.DiscardHandler))
	_, handler := circuitsealv1connect.NewPolicyServiceHandler(p)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := call{deadlines: http.NewResponseController(w)}
		handler.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callKey{}, c)))
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	stream, err := circuitsealv1connect.NewPolicyServiceClient(server.Client(), server.URL).Watch(t.Context(), connect.NewRequest(&v1.WatchRequest{Kind: "all"}))
	if err != nil {
		t.Fatal(err)
	}
	if !stream.Receive() {
		t.Fatal(stream.Err())
	}
	<-store.ended
	for stream.Receive() {
	}
	if stream.Err() == nil {
		t.Error("the watch ended without an error")
	}
	// Not in a defer: the server waits for it.
	_ = stream.Close()
}

func TestChanges(t *testing.T) {
	doc := func(kind model.Kind, name string, revision uint64) model.Document {
		k := model.Key{Kind: kind, Name: name}
		if kind.HasCustomer() {
			k.Customer = "c"
		}
		return model.Document{Key: k, Revision: revision}
	}
	set := func(docs ...model.Document) map[model.Key]model.Document {
		m := map[model.Key]model.Document{}
		for _, d := range docs {
			m[d.Key] = d
		}
		return m
	}
	before := set(doc(model.KindCustomer, "c", 1), doc(model.KindSite, "a", 1), doc(model.KindSite, "b", 1), doc(model.KindEndpoint, "e", 1), doc(model.KindNode, "n", 1))
	after := set(doc(model.KindCustomer, "c", 1), doc(model.KindSite, "b", 2), doc(model.KindConnection, "k", 3), doc(model.KindCircuit, "er", 3), doc(model.KindNode, "n", 1))
	for _, tt := range []struct {
		name string
		f    filter
		want []string
	}{
		{"all", filter{kinds: model.Kinds()}, []string{
			"CREATED Circuit/c/er", "CHANGED Site/c/b", "CREATED Connection/c/k", "DELETED Endpoint/c/e", "DELETED Site/c/a",
		}},
		{"a kind", filter{kinds: []model.Kind{model.KindSite}}, []string{"CHANGED Site/c/b", "DELETED Site/c/a"}},
		{"a name", filter{kinds: model.Kinds(), customer: "c", name: "e"}, []string{"DELETED Endpoint/c/e"}},
		{"another customer", filter{kinds: model.Kinds(), customer: "d"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, e := range changes(tt.f, before, after) {
				got = append(got, strings.TrimPrefix(e.kind.String(), "WATCH_EVENT_")+" "+e.doc.Key.String())
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}
