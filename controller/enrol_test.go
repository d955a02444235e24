package controller_test

import (
	"crypto/tls"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
)

func TestOneTokenSixtyFourClients(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	o := r.operator()
	o.apply(t, samples(t)...)
	token := o.token(t, "nva-1")
	var wg sync.WaitGroup
	var won, used atomic.Int32
	ready := make(chan struct{})
	for range 64 {
		_, request := newKey(t)
		// A connection each.
		agents := r.agents(nil)
		wg.Go(func() {
			<-ready
			_, err := agents.Enrol(t.Context(), connect.NewRequest(&v1.EnrolRequest{Token: token, CertificateRequest: request}))
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
	if won.Load() != 1 || used.Load() != 63 {
		t.Errorf("%d won and %d were told that it is used, want 1 and 63", won.Load(), used.Load())
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
