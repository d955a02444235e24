package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/circuitseal/circuitseal/controller/pki"
	"github.com/circuitseal/circuitseal/controller/session"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
)

// known takes every certificate for the node of its common name.
type known struct{ Authority }

func (known) Identify(chain []*x509.Certificate, _ time.Time) (pki.Identity, error) {
	return pki.Identity{Kind: pki.KindNode, Name: chain[0].Subject.CommonName}, nil
}

// open are sessions that last until their peer goes.
type open struct {
	Sessions
	peers chan session.Peer
}

func (o open) Serve(ctx context.Context, p session.Peer, _ session.Stream) error {
	o.peers <- p
	<-ctx.Done()
	return nil
}

// answer records the deadlines of a call.
type answer struct {
	*httptest.ResponseRecorder
	read, write time.Time
}

func (a *answer) SetReadDeadline(t time.Time) error  { a.read = t; return nil }
func (a *answer) SetWriteDeadline(t time.Time) error { a.write = t; return nil }

type gateTest struct {
	handler http.Handler
	peers   chan session.Peer
	log     *bytes.Buffer
}

func newGateTest() gateTest {
	g := gateTest{peers: make(chan session.Peer, 8), log: &bytes.Buffer{}}
	g.handler = New(Config{
		Authority: known{}, Sessions: open{peers: g.peers},
		Log: slog.New(slog.NewTextHandler(g.log, nil)), Now: time.Now,
	})
	return g
}

// open calls Session as a node, or as nobody.
func (g gateTest) open(ctx context.Context, node string, expires time.Time) *answer {
	q := httptest.NewRequestWithContext(ctx, http.MethodPost, circuitsealv1connect.AgentServiceSessionProcedure, http.NoBody)
	q.Proto, q.ProtoMajor, q.ProtoMinor = "HTTP/2.0", 2, 0
	q.Header.Set("Content-Type", "application/grpc")
	q.TLS = &tls.ConnectionState{CurveID: tls.X25519MLKEM768}
	if node != "" {
		leaf := &x509.Certificate{NotAfter: expires}
		leaf.Subject.CommonName = node
		q.TLS.PeerCertificates = []*x509.Certificate{leaf}
	}
	a := &answer{ResponseRecorder: httptest.NewRecorder()}
	g.handler.ServeHTTP(a, q)
	return a
}

// A call that is refused keeps its deadline, whatever it asked for: its body is
// read to the end on HTTP/1.1.
func TestRefusedCallsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newGateTest().open(t.Context(), "", time.Time{})
		if want := time.Now().Add(strangerTimeout); a.read != want || a.write != want {
			t.Errorf("the deadlines of a refused stream are %s and %s, want %s", a.read, a.write, want)
		}
	})
}

func TestSessionsPerNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateTest()
		expires := time.Now().Add(time.Hour)
		ctx, cancel := context.WithCancel(t.Context())
		// A second one takes the place of one that hangs; another node's do not count.
		for _, node := range []string{"nva-1", "nva-1", "prem-1"} {
			go g.open(ctx, node, expires)
			if p := <-g.peers; p.Node != node || p.Expires != expires {
				t.Errorf("the session of %s is %+v", node, p)
			}
		}
		a := g.open(t.Context(), "nva-1", expires)
		if status := a.Header().Get("Grpc-Status"); status != "8" {
			t.Errorf("a third session: status %q, want 8 (resource exhausted): %v", status, a.Header())
		}
		if want := time.Now().Add(callTimeout); a.read != want || a.write != want {
			t.Errorf("the deadlines of a third session are %s and %s, want %s", a.read, a.write, want)
		}
		cancel()
		synctest.Wait()
		again, cancel := context.WithCancel(t.Context())
		defer cancel()
		go g.open(again, "nva-1", expires)
		<-g.peers
	})
}

// Strangers do not fill the log; what is left out is counted.
func TestRefusalsOfStrangersAreLoggedNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateTest()
		for range 1000 {
			g.open(t.Context(), "", time.Time{})
		}
		if n := strings.Count(g.log.String(), "\n"); n != refusalBurst {
			t.Errorf("1,000 refusals made %d lines, want %d", n, refusalBurst)
		}
		g.log.Reset()
		time.Sleep(refusalEvery)
		g.open(t.Context(), "", time.Time{})
		g.open(t.Context(), "", time.Time{})
		if got := g.log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "left_out=980") {
			t.Errorf("later: %s", got)
		}
	})
}
