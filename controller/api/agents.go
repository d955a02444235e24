package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"connectrpc.com/connect"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/controller/pki"
	"github.com/circuitseal/circuitseal/controller/session"
	"github.com/circuitseal/circuitseal/controller/store"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

// agents is the AgentService.
type agents struct {
	store     Store
	authority Authority
	sessions  Sessions
	log       *slog.Logger
	now       func() time.Time
	failures  *failures
}

// Session implements circuitsealv1connect.AgentServiceHandler.
func (a *agents) Session(ctx context.Context, stream *connect.BidiStream[v1.SessionRequest, v1.SessionResponse]) error {
	c := callOf(ctx)
	peer := session.Peer{Node: c.caller.Name, Serial: c.caller.Serial, Address: c.address, Deadlines: c.deadlines}
	return a.sessions.Serve(ctx, peer, stream)
}

// Enrol implements circuitsealv1connect.AgentServiceHandler.
func (a *agents) Enrol(ctx context.Context, q *connect.Request[v1.EnrolRequest]) (*connect.Response[v1.EnrolResponse], error) {
	answer, err := a.enrol(ctx, q.Msg)
	name := answer.GetNode()
	if name == "" {
		// What a stranger says is worth a look in the log, no more.
		name = model.Shorten(q.Msg.GetNode())
	}
	audit(ctx, a.log, "enrolment", err, "node", name)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(answer), nil
}

// errOtherNode keeps a token that is good but for another node than expected.
var errOtherNode = errors.New("the token is for another node")

func (a *agents) enrol(ctx context.Context, q *v1.EnrolRequest) (*v1.EnrolResponse, error) {
	address := callOf(ctx).address
	if wait := a.failures.wait(address); wait > 0 {
		return nil, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("too many enrolments with unknown tokens from %s; try again in %s", address, wait.Round(time.Second)))
	}
	if err := validNames(field{"node", q.GetNode(), false}); err != nil {
		return nil, err
	}
	request, err := pki.ParseRequest(q.GetCertificateRequest())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("certificate_request: %w", err))
	}
	token, err := pki.ParseToken(q.GetToken())
	if err != nil {
		a.failures.add(address)
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("token: %w", err))
	}
	tokenNode := ""
	node, got, err := a.store.Redeem(ctx, store.Redemption{ID: token.ID(), Hash: token.Hash(), SPKI: request.SPKI, Now: a.now()},
		func(node string) (store.Issued, error) {
			if tokenNode = node; q.GetNode() != "" && q.GetNode() != node {
				return store.Issued{}, errOtherNode
			}
			i, err := a.authority.IssueNode(request, node)
			return store.Issued{Enrolment: model.Enrolment{Serial: i.Serial, Expires: i.Expires}, Certificates: i.Chain}, err
		})
	if err == nil && q.GetNode() != "" && q.GetNode() != node {
		tokenNode, err = node, errOtherNode
	}
	switch {
	case errors.Is(err, errOtherNode):
		return nil, connect.NewError(connect.CodePermissionDenied, fmt.Errorf(
			"the token is for node %q and this host wants to be %q; the token is still good: use it there, or make one with `sealctl token create %s`", tokenNode, q.GetNode(), q.GetNode()))
	case errors.Is(err, store.ErrTokenUnknown):
		a.failures.add(address)
		return nil, connect.NewError(connect.CodeUnauthenticated, errors.New("the token is unknown: it was mistyped, a newer one for the same node has voided it, or its node was deleted; make a new one with `sealctl token create`"))
	case errors.Is(err, store.ErrTokenUsed):
		return nil, connect.NewError(connect.CodeUnauthenticated, errors.New("the token was used already, by another key: if that was not you, somebody else has enrolled as this node; make a new one with `sealctl token create`, which replaces that enrolment"))
	case errors.Is(err, store.ErrTokenExpired):
		return nil, connect.NewError(connect.CodeUnauthenticated, errors.New("the token has expired; make a new one with `sealctl token create`"))
	case errors.Is(err, pki.ErrRequest):
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("certificate_request: %w", err))
	case err != nil:
		a.log.Error("enrolment failed", "address", address, "error", err)
		return nil, connect.NewError(connect.CodeOf(storeError(err)), errors.New("the controller could not enrol the node; its log says why"))
	}
	return &v1.EnrolResponse{Node: node, Certificates: got.Certificates, Root: a.authority.Root()}, nil
}
