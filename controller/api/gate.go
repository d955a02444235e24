package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/controller/pki"
)

const (
	// callTimeout is how long a caller may take to send its message and to
	// take the answer. Streams have no such bound: their peers are watched by
	// pings.
	callTimeout = 60 * time.Second
	// strangerTimeout is the same for callers that nobody knows yet, and
	// maxStrangers is how many of them are served at once.
	strangerTimeout = 10 * time.Second
	maxStrangers    = 256
	// framing is what a message may have around it.
	framing = 64
	// maxSessions is how many streams of a node may come from one network at
	// once: one, and one that takes its place. mostSessions is how many it may
	// have in all: whoever else has its key does not fill the node's own room.
	maxSessions  = 2
	mostSessions = 8
	// refusalBurst refusals of strangers are logged at once, and then one every
	// refusalEvery: nobody who has no identity can fill a disk.
	refusalBurst = 20
	refusalEvery = 10 * time.Second
)

// gate stands before all services.
type gate struct {
	authority Authority
	now       func() time.Time
	log       *slog.Logger
	// handlers by the path of their service, "/package.Service/".
	handlers map[string]http.Handler
	errors   *connect.ErrorWriter
	// strangers has room for the calls of those who need no certificate.
	strangers chan struct{}
	// told bounds what is logged of strangers.
	told *bucket
	// refused counts by code.
	refused *prometheus.CounterVec

	mu sync.Mutex
	// sessions are the open streams of each node, by network.
	sessions map[string]map[netip.Prefix]int
}

// call is what handlers know of the call they serve.
type call struct {
	// caller is nobody where no certificate counts.
	caller pki.Identity
	// expires is when the caller's certificate ends.
	expires   time.Time
	address   string
	deadlines *http.ResponseController
}

type callKey struct{}

// callOf is the call that the gate has let in.
func callOf(ctx context.Context) call {
	c, _ := ctx.Value(callKey{}).(call)
	return c
}

// ServeHTTP lets a call in or says why not.
func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := call{address: host(r.RemoteAddr), deadlines: http.NewResponseController(w)}
	rule, handler, err := g.admit(r, &c)
	if err == nil && rule.stream && rule.access == AccessNode {
		if err = g.enter(c.caller.Name, c.address); err == nil {
			defer g.leave(c.caller.Name, c.address)
		}
	}
	// A stream needs HTTP/2; on HTTP/1.1 it is refused by its handler.
	if err := bound(c, err == nil && rule.stream && r.ProtoMajor >= 2); err != nil {
		g.log.Error("a call could not be bounded in time", "address", c.address, "error", err)
		panic(http.ErrAbortHandler)
	}
	if err != nil {
		g.refuse(w, r, c, err)
		return
	}
	if rule.access == AccessToken {
		select {
		case g.strangers <- struct{}{}:
			defer func() { <-g.strangers }()
		default:
			g.refuse(w, r, c, connect.NewError(connect.CodeUnavailable, errors.New("too many hosts enrol at this moment; try again")))
			return
		}
	}
	if !rule.stream {
		r.Body = http.MaxBytesReader(w, r.Body, int64(rule.most)+framing)
	}
	handler.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callKey{}, c)))
}

// enter counts a stream of a node in, if there is room.
func (g *gate) enter(node, address string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	from, all := network(address), 0
	for _, n := range g.sessions[node] {
		all += n
	}
	if g.sessions[node][from] >= maxSessions || all >= mostSessions {
		return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf(
			"node %q has %d sessions already, and one is enough: see that no two hosts have the same identity", node, all))
	}
	if g.sessions[node] == nil {
		g.sessions[node] = map[netip.Prefix]int{}
	}
	g.sessions[node][from]++
	return nil
}

func (g *gate) leave(node, address string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	from := network(address)
	if g.sessions[node][from]--; g.sessions[node][from] == 0 {
		delete(g.sessions[node], from)
	}
	if len(g.sessions[node]) == 0 {
		delete(g.sessions, node)
	}
}

// bound gives a call its time; a stream that is let in lives on. What an earlier
// call set on the same connection is replaced.
func bound(c call, stream bool) error {
	deadline := time.Now().Add(callTimeout)
	switch {
	case stream:
		deadline = time.Time{}
	case c.caller == pki.Identity{}:
		deadline = time.Now().Add(strangerTimeout)
	}
	return errors.Join(c.deadlines.SetReadDeadline(deadline), c.deadlines.SetWriteDeadline(deadline))
}

// admit judges a call by its headers alone.
func (g *gate) admit(r *http.Request, c *call) (rule, http.Handler, error) {
	// The path is compared as it came: no cleaning, no other spelling.
	rule, known := rules[r.URL.Path]
	if !known || r.URL.RawPath != "" {
		return rule, nil, connect.NewError(connect.CodeUnimplemented, fmt.Errorf("there is no procedure %q", model.Shorten(r.URL.Path)))
	}
	if r.TLS == nil {
		return rule, nil, connect.NewError(connect.CodeInternal, errors.New("the connection has no TLS"))
	}
	if rule.quantumSafe && r.TLS.CurveID != tls.X25519MLKEM768 {
		return rule, nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf(
			"the key exchange of this connection is %s; the agent service takes %s only, which this project's agents offer: see that nothing terminates TLS in between", r.TLS.CurveID, tls.X25519MLKEM768))
	}
	// A certificate is judged wherever it counts. Who enrols may bring an old one.
	if rule.access != AccessToken && len(r.TLS.PeerCertificates) > 0 {
		identify := g.authority.Identify
		if rule.access == AccessRenewal {
			identify = g.authority.IdentifyForRenewal
		}
		caller, err := identify(r.TLS.PeerCertificates, g.now())
		if err != nil {
			return rule, nil, connect.NewError(connect.CodeUnauthenticated, err)
		}
		c.caller, c.expires = caller, r.TLS.PeerCertificates[0].NotAfter
	}
	if err := rule.access.permit(c.caller); err != nil {
		return rule, nil, err
	}
	if !rule.stream && r.ContentLength > int64(rule.most)+framing {
		return rule, nil, connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("the message has %d bytes; at most %d are read", r.ContentLength, rule.most))
	}
	handler := g.handlers[r.URL.Path[:strings.LastIndexByte(r.URL.Path, '/')+1]]
	if handler == nil {
		return rule, nil, connect.NewError(connect.CodeUnimplemented, errors.New("nothing serves this procedure"))
	}
	return rule, handler, nil
}

func (g *gate) refuse(w http.ResponseWriter, r *http.Request, c call, err error) {
	g.refused.WithLabelValues(connect.CodeOf(err).String()).Inc()
	log, tell := g.log, true
	if c.caller == (pki.Identity{}) {
		var leftOut int
		if tell, leftOut = g.told.take(); leftOut > 0 {
			log = log.With("left_out", leftOut)
		}
	}
	if tell {
		log.Warn("call refused", "procedure", model.Shorten(r.URL.Path), "caller", callerName(c.caller), "address", c.address,
			"code", connect.CodeOf(err), "reason", message(err))
	}
	if err := g.errors.Write(w, r, err); err != nil {
		g.log.Debug("a refusal did not reach its caller", "address", c.address, "error", err)
	}
}

// host is the address without the port, which says nothing.
func host(remote string) string {
	if h, _, err := net.SplitHostPort(remote); err == nil {
		return h
	}
	return remote
}

// callerName names a caller in logs.
func callerName(i pki.Identity) string {
	if i == (pki.Identity{}) {
		return "anonymous"
	}
	return i.String()
}
