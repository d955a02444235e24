package api

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/controller/store"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

// failing is a store with one document whose reads or writes fail.
type failing struct {
	Store
	read, write error
}

func (f failing) Snapshot(context.Context) (*model.Snapshot, error) {
	key := model.Key{Kind: model.KindCustomer, Name: "contoso"}
	return &model.Snapshot{Revision: 1, Documents: map[model.Key]model.Document{
		key: {Key: key, Revision: 1, Spec: &model.CustomerSpec{Model: model.ConnectTo}},
	}}, f.read
}

func (f failing) Write(context.Context, uint64, store.Change) (uint64, error) { return 0, f.write }

// Whether a write that was not answered took effect is not known, and nobody
// may be told that it was refused.
func TestWritesOfUnknownOutcome(t *testing.T) {
	slow := fmt.Errorf("write documents: %w: etcdserver: request timed out", store.ErrSlow)
	tests := []struct {
		name        string
		read, write error
		code        connect.Code
		says, log   string
	}{
		{"slow write", nil, slow, connect.CodeUnavailable, "whether the change was written is not known; look with `sealctl get` and repeat", "outcome unknown"},
		{"cancelled write", nil, context.Canceled, connect.CodeCanceled, "whether the change was written is not known", "outcome unknown"},
		{"closed while writing", nil, store.ErrClosed, connect.CodeUnavailable, "whether the change was written is not known", "outcome unknown"},
		{"full", nil, store.ErrFull, connect.CodeResourceExhausted, "store is full", "refused"},
		{"slow read", slow, nil, connect.CodeUnavailable, "disk is too slow", "refused"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			calls := map[string]func(p *policy) error{
				"apply": func(p *policy) error {
					text := "apiVersion: circuitseal.io/v1\nkind: Customer\nmetadata: {name: fabrikam}\nspec: {model: connect-to}\n"
					_, err := p.Apply(t.Context(), connect.NewRequest(&v1.ApplyRequest{Sources: []*v1.Source{{Name: "x", Text: text}}}))
					return err
				},
				"delete": func(p *policy) error {
					_, err := p.Delete(t.Context(), connect.NewRequest(&v1.DeleteRequest{Kind: "customer", Name: "contoso"}))
					return err
				},
			}
			for action, call := range calls {
				var log bytes.Buffer
				err := call(newPolicy(t.Context(), failing{read: tt.read, write: tt.write}, nil, newUploads(time.Now), slog.New(slog.NewTextHandler(&log, nil))))
				if connect.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("%s: %v, want %s that says %q", action, err, tt.code, tt.says)
				}
				if !strings.Contains(log.String(), action+" "+tt.log) || strings.Count(log.String(), "\n") != 1 {
					t.Errorf("%s: audited as %s, want %q", action, &log, tt.log)
				}
				if tt.read != nil && strings.Contains(err.Error(), "not known") {
					t.Errorf("%s: a read that failed wrote nothing: %v", action, err)
				}
			}
		})
	}
}
