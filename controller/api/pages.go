package api

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"connectrpc.com/connect"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/controller/store"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

const (
	// maxPage is how many documents a page has, and maxPageBytes about how large
	// their specs are together.
	maxPage      = 1000
	maxPageBytes = 4 << 20
	// maxToken is the longest page token in bytes.
	maxToken = 512
)

// filter is what of all documents a caller wants to see.
type filter struct {
	kinds          []model.Kind
	customer, name string
}

// newFilter checks what a request asks for.
func newFilter(kind, customer, name string) (filter, error) {
	f := filter{kinds: model.Kinds(), customer: customer, name: name}
	if !strings.EqualFold(kind, "all") {
		k, err := parseKind(kind)
		if err != nil {
			return filter{}, err
		}
		f.kinds = []model.Kind{k}
	}
	return f, validNames(field{"customer", customer, false}, field{"name", name, false})
}

func (f filter) passes(k model.Key) bool {
	return (f.customer == "" || k.Customer == f.customer) && (f.name == "" || k.Name == f.name) && slices.Contains(f.kinds, k.Kind)
}

// keys are those of the documents that the filter lets pass, in order.
func (f filter) keys(docs map[model.Key]model.Document) []model.Key {
	var keys []model.Key
	for k := range docs {
		if f.passes(k) {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b model.Key) int { return compareKeys(f.kinds, a, b) })
	return keys
}

// compareKeys orders documents by kind, customer and name.
func compareKeys(kinds []model.Kind, a, b model.Key) int {
	return cmp.Or(
		cmp.Compare(slices.Index(kinds, a.Kind), slices.Index(kinds, b.Kind)),
		cmp.Compare(a.Customer, b.Customer), cmp.Compare(a.Name, b.Name))
}

// page is a place in a list.
type page struct {
	// revision is that of the whole list.
	revision uint64
	// after is the last document before the place.
	after model.Key
}

// token is what a caller brings back to go on.
func (p page) token() string {
	text := strings.Join([]string{strconv.FormatUint(p.revision, 10), string(p.after.Kind), p.after.Customer, p.after.Name}, "/")
	return base64.RawURLEncoding.EncodeToString([]byte(text))
}

// parsePage reads what token has made.
func parsePage(token string) (page, error) {
	wrong := connect.NewError(connect.CodeInvalidArgument, errors.New("page_token is none that a list has given: leave it out to begin anew"))
	if len(token) > maxToken {
		return page{}, wrong
	}
	text, err := base64.RawURLEncoding.DecodeString(token)
	parts := strings.Split(string(text), "/")
	if err != nil || len(parts) != 4 {
		return page{}, wrong
	}
	revision, err := strconv.ParseUint(parts[0], 10, 64)
	p := page{revision, model.Key{Kind: model.Kind(parts[1]), Customer: parts[2], Name: parts[3]}}
	if err != nil || revision == 0 || model.NewSpec(p.after.Kind) == nil || p.token() != token {
		return page{}, wrong
	}
	return p, nil
}

// Get implements circuitsealv1connect.PolicyServiceHandler.
func (p *policy) Get(ctx context.Context, q *connect.Request[v1.GetRequest]) (*connect.Response[v1.GetResponse], error) {
	f, err := newFilter(q.Msg.GetKind(), q.Msg.GetCustomer(), q.Msg.GetName())
	if err != nil {
		return nil, err
	}
	s, err := p.store.Snapshot(ctx)
	if err != nil {
		return nil, storeError(err)
	}
	at, docs := page{revision: s.Revision}, s.Documents
	if token := q.Msg.GetPageToken(); token != "" {
		if at, err = parsePage(token); err != nil {
			return nil, err
		}
		if docs, err = p.documentsAt(ctx, at.revision, "page_token: the documents as they were when the list began are not kept any more; begin anew without it"); err != nil {
			return nil, err
		}
	}
	if f.customer != "" {
		key := model.Key{Kind: model.KindCustomer, Name: f.customer}
		if _, ok := docs[key]; !ok {
			return nil, notFound(s, key, false)
		}
	}
	keys := f.keys(docs)
	if f.name != "" && len(keys) == 0 {
		return nil, notFound(s, model.Key{Kind: f.kinds[0], Customer: f.customer, Name: f.name}, len(f.kinds) > 1)
	}
	answer := &v1.GetResponse{Revision: at.revision}
	size, most := 0, maxPage
	if n := q.Msg.GetPageSize(); n > 0 {
		most = min(most, int(min(n, maxPage)))
	}
	for _, k := range keys {
		if at.after != (model.Key{}) && compareKeys(f.kinds, at.after, k) >= 0 {
			continue
		}
		if len(answer.Documents) == most || size > maxPageBytes {
			answer.NextPageToken = page{at.revision, keyOf(answer.Documents[len(answer.Documents)-1])}.token()
			break
		}
		d, n, err := documentToWire(docs[k])
		if err != nil {
			return nil, connect.NewError(connect.CodeInternal, err)
		}
		answer.Documents = append(answer.Documents, d)
		size += n
	}
	return connect.NewResponse(answer), nil
}

// documentsAt are the documents at a revision; gone is the sentence for one that
// is not kept.
func (p *policy) documentsAt(ctx context.Context, revision uint64, gone string) (map[model.Key]model.Document, error) {
	docs, err := p.store.DocumentsAt(ctx, revision)
	if errors.Is(err, store.ErrCompacted) {
		return nil, connect.NewError(connect.CodeOutOfRange, fmt.Errorf("%s (revision %d)", gone, revision))
	}
	if err != nil {
		return nil, storeError(err)
	}
	return docs, nil
}

func keyOf(d *v1.Document) model.Key {
	return model.Key{Kind: model.Kind(d.GetKind()), Customer: d.GetCustomer(), Name: d.GetName()}
}
