package api

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/controller/pki"
	"github.com/circuitseal/circuitseal/controller/session"
	"github.com/circuitseal/circuitseal/controller/store"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

const (
	maxReason = 256
	// duplicateTold is how long after the last attempt two hosts with one
	// identity are still a problem: an agent that is refused tries again twice
	// a minute.
	duplicateTold = 5 * time.Minute
	// expiryTold is how long before its end a certificate is a problem: it is
	// renewed daily, so something has been wrong for days.
	expiryTold = 48 * time.Hour
)

// ListNodes implements circuitsealv1connect.NodeServiceHandler.
func (n *nodes) ListNodes(ctx context.Context, _ *connect.Request[v1.ListNodesRequest]) (*connect.Response[v1.ListNodesResponse], error) {
	s, err := n.store.Snapshot(ctx)
	if err != nil {
		return nil, storeError(err)
	}
	answer := &v1.ListNodesResponse{}
	for _, k := range selected(s.Documents, model.KindNode, "") {
		answer.Nodes = append(answer.Nodes, identity(s, k.Name, n.sessions.Presence(k.Name), n.now()))
	}
	return connect.NewResponse(answer), nil
}

func identity(s *model.Snapshot, name string, p session.Presence, now time.Time) *v1.NodeIdentity {
	w := &v1.NodeIdentity{Node: name, Connected: p.Connected, Address: p.Address, Problems: identityProblems(s, name, p, now)}
	if e, ok := s.Enrolments[name]; ok {
		w.Certificate = &v1.NodeCertificate{
			Serial: e.Serial, Fingerprint: string(e.Key), Issued: timestamppb.New(e.Issued), Expires: timestamppb.New(e.Expires),
		}
	}
	if r, ok := s.Revoked(name); ok {
		w.Revocation = revocationToWire(r)
	}
	if !p.Seen.IsZero() {
		w.LastSeen = timestamppb.New(p.Seen)
	}
	return w
}

func revocationToWire(r model.Revocation) *v1.NodeRevocation {
	return &v1.NodeRevocation{Time: timestamppb.New(r.Time), Reason: r.Reason, By: r.By}
}

// identityProblems are sentences about who a node is, for operators.
func identityProblems(s *model.Snapshot, name string, p session.Presence, now time.Time) []string {
	var out []string
	e, enrolled := s.Enrolments[name]
	r, revoked := s.Revoked(name)
	switch {
	case !enrolled:
	case revoked:
		out = append(out, fmt.Sprintf("node %s is revoked since %s, by %s: %s; purge its host if others may have its keys, and enrol it anew with `sealctl token create %s`",
			name, r.Time.UTC().Format(time.RFC3339), r.By, r.Reason, name))
	case now.After(e.Expires.Add(pki.RenewalGrace)):
		out = append(out, fmt.Sprintf("the certificate of node %s ended at %s and cannot be renewed any more: enrol it again with `sealctl token create %s`",
			name, e.Expires.UTC().Format(time.RFC3339), name))
	case now.After(e.Expires.Add(-expiryTold)):
		verb := "ends"
		if now.After(e.Expires) {
			verb = "ended"
		}
		out = append(out, fmt.Sprintf("the certificate of node %s %s at %s and was not renewed: see `circuitseal-agent status` on its host", name, verb, e.Expires.UTC().Format(time.RFC3339)))
	}
	if d := p.Duplicate; d != nil && now.Sub(d.Last) < duplicateTold && !revoked {
		out = append(out, fmt.Sprintf("two hosts use the identity of node %s: %s has the session, and %s was refused at %s: find out which one is not the node, `sealctl node revoke %s`, and enrol the right one anew",
			name, d.Holder, d.Refused, d.Last.UTC().Format(time.RFC3339), name))
	}
	return out
}

// Revoke implements circuitsealv1connect.NodeServiceHandler.
func (n *nodes) Revoke(ctx context.Context, q *connect.Request[v1.RevokeRequest]) (*connect.Response[v1.RevokeResponse], error) {
	answer, err := n.revoke(ctx, q.Msg)
	audit(ctx, n.log, "revocation", err, "node", model.Shorten(q.Msg.GetNode()), "reason", model.Shorten(q.Msg.GetReason()), "fingerprint", answer.GetFingerprint())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(answer), nil
}

func (n *nodes) revoke(ctx context.Context, q *v1.RevokeRequest) (*v1.RevokeResponse, error) {
	r, err := n.revocation(ctx, q.GetNode(), q.GetReason())
	if err != nil {
		return nil, err
	}
	s, err := n.store.Snapshot(ctx)
	if err != nil {
		return nil, storeError(err)
	}
	key, kept, err := n.store.Revoke(ctx, q.GetNode(), r)
	if errors.Is(err, store.ErrUnknownNode) {
		return nil, missingNode(s, q.GetNode())
	}
	if err != nil {
		return nil, writeError(err)
	}
	answer := &v1.RevokeResponse{Fingerprint: string(key)}
	if key != "" {
		answer.Revocation = revocationToWire(kept)
	}
	return answer, nil
}

// revocation is one by the caller, now.
func (n *nodes) revocation(ctx context.Context, node, reason string) (model.Revocation, error) {
	if err := validNames(field{"node", node, true}); err != nil {
		return model.Revocation{}, err
	}
	if reason = strings.TrimSpace(reason); len(reason) > maxReason || !utf8.ValidString(reason) || strings.ContainsFunc(reason, unicode.IsControl) {
		return model.Revocation{}, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("reason has %d bytes or control characters; want one line of at most %d bytes", len(reason), maxReason))
	}
	if reason == "" {
		reason = "no reason was given"
	}
	return model.Revocation{Node: node, Time: n.now().UTC().Truncate(time.Second), Reason: reason, By: callerName(callOf(ctx).caller)}, nil
}

// deletion is what is kept of a node's identity whose document is deleted.
func deletion(ctx context.Context) model.Revocation {
	return model.Revocation{Time: time.Now().UTC().Truncate(time.Second), Reason: "its Node document was deleted", By: callerName(callOf(ctx).caller)}
}

func missingNode(s *model.Snapshot, name string) error {
	return notFound(s, model.Key{Kind: model.KindNode, Name: name}, false)
}

// Decommission implements circuitsealv1connect.NodeServiceHandler.
func (n *nodes) Decommission(ctx context.Context, q *connect.Request[v1.DecommissionRequest]) (*connect.Response[v1.DecommissionResponse], error) {
	answer, err := n.decommission(ctx, q.Msg)
	audit(ctx, n.log, "decommissioning", err, "node", model.Shorten(q.Msg.GetNode()), "reason", model.Shorten(q.Msg.GetReason()), "deleted", answer.GetDeleted())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(answer), nil
}

func (n *nodes) decommission(ctx context.Context, q *v1.DecommissionRequest) (*v1.DecommissionResponse, error) {
	r, err := n.revocation(ctx, q.GetNode(), q.GetReason())
	if err != nil {
		return nil, err
	}
	for range writeAttempts {
		s, err := n.store.Snapshot(ctx)
		if err != nil {
			return nil, storeError(err)
		}
		key := model.Key{Kind: model.KindNode, Name: q.GetNode()}
		if _, ok := s.Documents[key]; !ok {
			return nil, missingNode(s, q.GetNode())
		}
		gone := []model.Key{key}
		if q.GetWithEndpoints() {
			gone = append(gone, dependents(s.Documents, q.GetNode())...)
		}
		targets := map[model.Key]bool{}
		for _, k := range gone {
			targets[k] = true
		}
		revision, err := remove(ctx, n.store, s, targets, r)
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return nil, err
		}
		answer := &v1.DecommissionResponse{Revision: revision}
		for _, k := range gone {
			answer.Deleted = append(answer.Deleted, k.String())
		}
		return answer, nil
	}
	return nil, errBusy
}

// dependents are the endpoints on a node and the connections that use them.
func dependents(docs map[model.Key]model.Document, node string) []model.Key {
	var out []model.Key
	on := map[model.Key]bool{}
	for _, k := range selected(docs, model.KindEndpoint, "") {
		if e, ok := model.Lookup[*model.EndpointSpec](docs, k); ok && e.Node == node {
			on[k] = true
			out = append(out, k)
		}
	}
	for _, k := range selected(docs, model.KindConnection, "") {
		c, ok := model.Lookup[*model.ConnectionSpec](docs, k)
		if ok && slices.ContainsFunc(c.Endpoints, func(e string) bool {
			return on[model.Key{Kind: model.KindEndpoint, Customer: k.Customer, Name: e}]
		}) {
			out = append(out, k)
		}
	}
	return out
}
