package controller_test

import (
	"crypto/tls"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/circuitseal/circuitseal/controller"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
)

// Fault 3, over TLS: of 64 clients with one token one enrols. `make test-tokens`
// tries it a hundred times.
func TestOneTokenSixtyFourClients(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	o := r.operator()
	o.apply(t, samples(t)...)
	rounds := 10
	switch {
	case testing.Short():
		rounds = 2
	case os.Getenv("CIRCUITSEAL_TOKEN_ROUNDS") != "":
		rounds = 100
	}
	const clients = 64
	// A connection and a key each, over all rounds: what is tried is the race
	// for a token, not the handshake.
	var agents [clients]circuitsealv1connect.AgentServiceClient
	var requests [clients][]byte
	for i := range clients {
		agents[i] = r.agents(nil)
		_, requests[i] = newKey(t)
	}
	for round := range rounds {
		token := o.token(t, "nva-1")
		var wg sync.WaitGroup
		var won, used atomic.Int32
		ready := make(chan struct{})
		for i := range clients {
			wg.Go(func() {
				<-ready
				_, err := agents[i].Enrol(t.Context(), connect.NewRequest(&v1.EnrolRequest{Token: token, CertificateRequest: requests[i]}))
				switch {
				case err == nil:
					won.Add(1)
				case connect.CodeOf(err) == connect.CodeUnauthenticated && strings.Contains(err.Error(), "used already"):
					used.Add(1)
				default:
					t.Errorf("got %v", err)
				}
			})
		}
		close(ready)
		wg.Wait()
		if won.Load() != 1 || used.Load() != clients-1 {
			t.Fatalf("round %d: %d won and %d were told that it is used, want 1 and %d", round, won.Load(), used.Load(), clients-1)
		}
	}
	if n := strings.Count(r.log.String(), `msg="enrolment refused"`); n != rounds*(clients-1) {
		t.Errorf("the log has %d refusals, want %d", n, rounds*(clients-1))
	}
}

// Fault 4: a token after use, expiry, a newer one, its node's deletion; one from
// a restored backup is in TestRestoredFromBackup.
func TestTokensThatAreOver(t *testing.T) {
	t.Parallel()
	c := &clock{}
	r := startWith(t, controller.Config{DataDir: t.TempDir() + "/data", Now: c.now})
	o := r.operator()
	o.apply(t, samples(t)...)
	o.apply(t, &v1.Source{Name: "x", Text: "apiVersion: circuitseal.io/v1\nkind: Node\nmetadata: {name: spare}\nspec: {owner: provider, interfaces: [{name: lan0, role: lan, customer: contoso}]}\n"})
	enrol := func(token string) error {
		_, request := newKey(t)
		_, err := r.agents(nil).Enrol(t.Context(), connect.NewRequest(&v1.EnrolRequest{Token: token, CertificateRequest: request}))
		return err
	}
	used, newer := o.token(t, "nva-1"), ""
	if err := enrol(used); err != nil {
		t.Fatal(err)
	}
	wants(t, "used", enrol(used), connect.CodeUnauthenticated, "used already")
	older := o.token(t, "spare")
	newer = o.token(t, "spare")
	wants(t, "older than another", enrol(older), connect.CodeUnauthenticated, "a newer one")
	if _, err := o.policy.Delete(t.Context(), connect.NewRequest(&v1.DeleteRequest{Kind: "node", Name: "spare"})); err != nil {
		t.Fatal(err)
	}
	wants(t, "of a node that is deleted", enrol(newer), connect.CodeUnauthenticated, "its node was deleted")
	late := o.token(t, "prem-1")
	c.set(61 * time.Minute)
	wants(t, "expired", enrol(late), connect.CodeUnauthenticated, "has expired")
	if n := strings.Count(r.log.String(), `msg="enrolment refused"`); n != 4 {
		t.Errorf("the log has %d refusals, want 4", n)
	}
}

func TestEnrolRefuses(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	o := r.operator()
	o.apply(t, samples(t)...)
	_, request := newKey(t)
	agents := r.agents(nil)
	enrol := func(token, node string, request []byte) error {
		_, err := agents.Enrol(t.Context(), connect.NewRequest(&v1.EnrolRequest{Token: token, CertificateRequest: request, Node: node}))
		return err
	}
	short, err := o.nodes.CreateToken(t.Context(), connect.NewRequest(&v1.CreateTokenRequest{Node: "prem-1", Lifetime: durationpb.New(time.Millisecond)}))
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Millisecond)
	good := o.token(t, "nva-1")
	head, secret, _ := strings.Cut(good[5:], ".")
	other := "A"
	if secret[0] == 'A' {
		other = "B"
	}
	tests := []struct {
		name, token, node string
		request           []byte
		code              connect.Code
		says              string
	}{
		{"expired", short.Msg.GetToken(), "", request, connect.CodeUnauthenticated, "has expired"},
		{"wrong secret", "cst1." + head + "." + other + secret[1:], "", request, connect.CodeUnauthenticated, "unknown"},
		{"malformed token", "letmein", "", request, connect.CodeInvalidArgument, "token: malformed"},
		{"no request", good, "", nil, connect.CodeInvalidArgument, "certificate_request: "},
		{"no request at all", good, "", []byte("x"), connect.CodeInvalidArgument, "certificate_request: "},
		{"another node's", good, "prem-1", request, connect.CodePermissionDenied, `is for node "nva-1"`},
		{"hostile name", good, "../prem-1", request, connect.CodeInvalidArgument, "node "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := enrol(tt.token, tt.node, tt.request)
			if connect.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want %s that says %q", err, tt.code, tt.says)
			}
			if err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("the secret is in the error: %v", err)
			}
		})
	}
	// None of this used the token up.
	if err := enrol(good, "nva-1", request); err != nil {
		t.Fatalf("the good token: %v", err)
	}
	if err := enrol(good, "nva-1", request); err != nil {
		t.Errorf("the same key again: %v", err)
	}
	_, another := newKey(t)
	if err := enrol(good, "nva-1", another); connect.CodeOf(err) != connect.CodeUnauthenticated || !strings.Contains(err.Error(), "used already") {
		t.Errorf("another key: %v", err)
	}
	if log := r.log.String(); strings.Contains(log, secret) || strings.Contains(log, good) {
		t.Error("a token is in the log")
	}
}

func TestTokensAreForNodesThatExist(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	o := r.operator()
	o.apply(t, samples(t)...)
	tests := []struct {
		name, node string
		lifetime   time.Duration
		code       connect.Code
		says       string
	}{
		{"unknown", "nva-2", time.Hour, connect.CodeNotFound, "apply a document of kind Node"},
		{"too long", "nva-1", 7*24*time.Hour + 1, connect.CodeInvalidArgument, "at most 168h"},
		{"negative", "nva-1", -1, connect.CodeInvalidArgument, "more than 0"},
		{"no name", "", time.Hour, connect.CodeInvalidArgument, "node is empty"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := o.nodes.CreateToken(t.Context(), connect.NewRequest(&v1.CreateTokenRequest{Node: tt.node, Lifetime: durationpb.New(tt.lifetime)}))
			if connect.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want %s that says %q", err, tt.code, tt.says)
			}
		})
	}
	a, err := o.nodes.CreateToken(t.Context(), connect.NewRequest(&v1.CreateTokenRequest{Node: "nva-1"}))
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(a.Msg.GetExpires().AsTime()); left < 59*time.Minute || left > 61*time.Minute {
		t.Errorf("by default a token is good for %s", left)
	}
	if !strings.HasPrefix(a.Msg.GetRootPin(), "sha256:") {
		t.Errorf("the pin is %q", a.Msg.GetRootPin())
	}
}

// Guessing is slowed down; who has a good token behind the same address and
// has not guessed is not harmed for long.
func TestGuessingIsSlowedDown(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	o := r.operator()
	o.apply(t, samples(t)...)
	_, request := newKey(t)
	agents := circuitsealv1connect.NewAgentServiceClient(r.client(nil, tls.X25519MLKEM768), r.url)
	for range 200 {
		_, err := agents.Enrol(t.Context(), connect.NewRequest(&v1.EnrolRequest{Token: "x", CertificateRequest: request}))
		if connect.CodeOf(err) == connect.CodeResourceExhausted {
			return
		}
	}
	t.Error("200 guesses were answered")
}
