package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/controller/pki"
	"github.com/circuitseal/circuitseal/controller/store"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

const (
	defaultTokenLifetime = time.Hour
	maxTokenLifetime     = 7 * 24 * time.Hour
)

// nodes is the NodeService.
type nodes struct {
	store     Store
	authority Authority
	sessions  Sessions
	// advertised is the address by which agents reach the controller, or "".
	advertised string
	log        *slog.Logger
	now        func() time.Time
}

// CreateToken implements circuitsealv1connect.NodeServiceHandler.
func (n *nodes) CreateToken(ctx context.Context, q *connect.Request[v1.CreateTokenRequest]) (*connect.Response[v1.CreateTokenResponse], error) {
	answer, err := n.createToken(ctx, q.Msg)
	if err != nil {
		audit(ctx, n.log, "token creation", err, "node", model.Shorten(q.Msg.GetNode()))
		return nil, err
	}
	audit(ctx, n.log, "token creation", nil, "node", answer.GetNode(), "expires", answer.GetExpires().AsTime())
	return connect.NewResponse(answer), nil
}

func (n *nodes) createToken(ctx context.Context, q *v1.CreateTokenRequest) (*v1.CreateTokenResponse, error) {
	if err := validNames(field{"node", q.GetNode(), true}); err != nil {
		return nil, err
	}
	lifetime := defaultTokenLifetime
	if l := q.GetLifetime(); l != nil {
		if err := l.CheckValid(); err != nil {
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("lifetime: %w", err))
		}
		lifetime = l.AsDuration()
	}
	if lifetime <= 0 || lifetime > maxTokenLifetime {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("lifetime is %s; want more than 0 and at most %s", lifetime, maxTokenLifetime))
	}
	s, err := n.store.Snapshot(ctx)
	if err != nil {
		return nil, storeError(err)
	}
	key := model.Key{Kind: model.KindNode, Name: q.GetNode()}
	if _, ok := s.Documents[key]; !ok {
		return nil, unknownNode(s, q.GetNode())
	}
	token := pki.NewToken()
	expires := n.now().Add(lifetime)
	err = n.store.PutToken(ctx, store.Token{ID: token.ID(), Hash: token.Hash(), Node: q.GetNode(), Expires: expires})
	if errors.Is(err, store.ErrUnknownNode) {
		return nil, unknownNode(s, q.GetNode())
	}
	if err != nil {
		return nil, writeError(err)
	}
	return &v1.CreateTokenResponse{
		Node: q.GetNode(), Token: token.Reveal(), Expires: timestamppb.New(expires), RootPin: n.authority.RootPin(), Controller: n.advertised,
	}, nil
}

// unknownNode says what to do before a node can have a token.
func unknownNode(s *model.Snapshot, name string) error {
	hint := ""
	if near := nearestName(s, model.KindNode, "", name); near != "" {
		hint = fmt.Sprintf(" (did you mean %q?)", near)
	}
	return connect.NewError(connect.CodeNotFound, fmt.Errorf(
		"there is no node %q%s: apply a document of kind Node with this name first, then make its token", name, hint))
}

// notFound names what is near to what was asked for.
func notFound(s *model.Snapshot, key model.Key, any bool) error {
	if any {
		return connect.NewError(connect.CodeNotFound, fmt.Errorf("there is no document with the name %q", key.Name))
	}
	hint := ""
	if near := nearestName(s, key.Kind, key.Customer, key.Name); near != "" {
		hint = fmt.Sprintf("; did you mean %q?", near)
	}
	return connect.NewError(connect.CodeNotFound, fmt.Errorf("there is no %s%s", key, hint))
}

// nearestName is a name of the kind, and of the customer when one is given.
func nearestName(s *model.Snapshot, kind model.Kind, customer, name string) string {
	var names []string
	for _, k := range selected(s.Documents, kind, customer) {
		names = append(names, k.Name)
	}
	return model.Nearest(name, names)
}
