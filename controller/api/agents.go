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
	// told bounds what is logged of calls that say nothing but that somebody is
	// there.
	told *bucket
}

// Session implements circuitsealv1connect.AgentServiceHandler.
func (a *agents) Session(ctx context.Context, stream *connect.BidiStream[v1.SessionRequest, v1.SessionResponse]) error {
	c := callOf(ctx)
	peer := session.Peer{
		Node: c.caller.Name, Key: model.FingerprintOf(c.caller.SPKI), Expires: c.expires,
		Address: c.address, Deadlines: c.deadlines,
	}
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
	attributes, tell := []any{"node", name}, true
	// Guesses at tokens and used ones are told always, and slowed down.
	if code := connect.CodeOf(err); code == connect.CodeInvalidArgument || code == connect.CodeResourceExhausted {
		var leftOut int
		if tell, leftOut = a.told.take(); leftOut > 0 {
			attributes = append(attributes, "left_out", leftOut)
		}
	}
	if tell {
		audit(ctx, a.log, "enrolment", err, attributes...)
	}
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(answer), nil
}

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
	node, got, err := a.store.Redeem(ctx, store.Redemption{ID: token.ID(), Hash: token.Hash(), SPKI: request.SPKI, Node: q.GetNode(), Now: a.now()},
		func(node string) (store.Issued, error) {
			return a.issue(request, node)
		})
	switch {
	case errors.Is(err, store.ErrOtherNode):
		return nil, connect.NewError(connect.CodePermissionDenied, fmt.Errorf(
			"the token is for node %q and this host wants to be %q; the token is still good: use it there, or make one with `sealctl token create %s`", node, q.GetNode(), q.GetNode()))
	case errors.Is(err, store.ErrTokenUnknown):
		a.failures.add(address)
		return nil, connect.NewError(connect.CodeUnauthenticated, errors.New("the token is unknown: it was mistyped, a newer one for the same node has voided it, its node was deleted, or the controller was restored from a backup; make a new one with `sealctl token create`"))
	case errors.Is(err, store.ErrTokenUsed):
		return nil, connect.NewError(connect.CodeUnauthenticated, errors.New("the token was used already, by another key: if that was not you, somebody else has enrolled as this node; make a new one with `sealctl token create`, which replaces that enrolment"))
	case errors.Is(err, store.ErrTokenExpired):
		return nil, connect.NewError(connect.CodeUnauthenticated, errors.New("the token has expired; make a new one with `sealctl token create`"))
	case errors.Is(err, store.ErrRevoked):
		return nil, connect.NewError(connect.CodePermissionDenied, errors.New("this host's key was revoked and is not taken again; the token is still good: enrol with it and --force, which makes another key"))
	case errors.Is(err, pki.ErrRequest):
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("certificate_request: %w", err))
	case err != nil:
		a.log.Error("enrolment failed", "address", address, "error", err)
		answer := errors.New("the controller could not enrol the node; its log says why")
		if kept := writeError(err); errors.As(kept, &unknownOutcome{}) {
			answer = unknownOutcome{errors.New("the controller's store did not answer, so that it is not known whether the token is used; repeat the enrolment on this host, with the same token")}
		}
		return nil, connect.NewError(connect.CodeOf(storeError(err)), answer)
	}
	return &v1.EnrolResponse{Node: node, Certificates: got.Certificates, Root: a.authority.Root()}, nil
}

// issue makes a certificate in the store's words.
func (a *agents) issue(r *pki.Request, node string) (store.Issued, error) {
	i, err := a.authority.IssueNode(r, node)
	return store.Issued{
		Enrolment:    model.Enrolment{Serial: i.Serial, Issued: i.Issued, Expires: i.Expires},
		Certificates: i.Chain,
	}, err
}

// Renew implements circuitsealv1connect.AgentServiceHandler.
func (a *agents) Renew(ctx context.Context, q *connect.Request[v1.RenewRequest]) (*connect.Response[v1.RenewResponse], error) {
	c := callOf(ctx)
	got, err := a.renew(ctx, c.caller, q.Msg)
	if err != nil {
		audit(ctx, a.log, "renewal", err, "node", c.caller.Name, "serial", c.caller.Serial)
		return nil, err
	}
	audit(ctx, a.log, "renewal", nil, "node", c.caller.Name, "serial", c.caller.Serial, "new_serial", got.Serial, "expires", got.Expires)
	return connect.NewResponse(&v1.RenewResponse{Certificates: got.Certificates}), nil
}

func (a *agents) renew(ctx context.Context, caller pki.Identity, q *v1.RenewRequest) (store.Issued, error) {
	request, err := pki.ParseRequest(q.GetCertificateRequest())
	if err != nil {
		return store.Issued{}, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("certificate_request: %w", err))
	}
	if request.SPKI != caller.SPKI {
		return store.Issued{}, connect.NewError(connect.CodeInvalidArgument, errors.New(
			"certificate_request: it is for another key than the certificate that is to be renewed; a renewal keeps the key, another key needs a token"))
	}
	got, err := a.store.Renew(ctx, caller.Name, caller.SPKI, a.now(), func() (store.Issued, error) { return a.issue(request, caller.Name) })
	switch {
	case errors.Is(err, store.ErrRevoked), errors.Is(err, store.ErrUnknownNode), errors.Is(err, store.ErrNotEnrolled):
		now, failed := a.store.Snapshot(ctx)
		if failed != nil {
			return store.Issued{}, storeError(failed)
		}
		if err := session.Judge(now, caller.Name, model.FingerprintOf(caller.SPKI)); err != nil {
			return store.Issued{}, err
		}
		// The identity came or went between the two looks.
		return store.Issued{}, connect.NewError(connect.CodeAborted, errors.New("the node's identity changes at this moment; try again"))
	case errors.Is(err, pki.ErrRequest):
		return store.Issued{}, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("certificate_request: %w", err))
	case err != nil:
		a.log.Error("renewal failed", "node", caller.Name, "error", err)
		return store.Issued{}, connect.NewError(connect.CodeOf(storeError(err)), errors.New("the controller could not renew the certificate; its log says why, and repeating it is safe"))
	}
	return got, nil
}
