package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/circuitseal/circuitseal/agent/identity"
	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/lastgood"
	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/proto/desired"
	"github.com/circuitseal/circuitseal/proto/sealed"
)

// listen opens the local status socket: root's only.
func (n *node) listen() (net.Listener, error) {
	path := n.config.Instance.AgentSocket()
	// The lock says that no agent runs, so what lies there is a leftover.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (n *node) serve(ctx context.Context, l net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(n.Status(r.Context())); err != nil {
			n.log.Warn("status went out in part", "error", err)
		}
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		<-ctx.Done()
		_ = server.Close()
	}()
	err := server.Serve(l)
	<-ended
	if errors.Is(err, http.ErrServerClosed) {
		return ctx.Err()
	}
	return err
}

// Status asks the running agent of an instance. The error wraps
// fs.ErrNotExist or says that the connection was refused when none runs.
func Status(ctx context.Context, i instance.Instance) (desired.Status, error) {
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", i.AgentSocket())
		},
	}}
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/status", nil)
	if err != nil {
		return desired.Status{}, err
	}
	answer, err := client.Do(request)
	if err != nil {
		cause := errors.Unwrap(err)
		if cause == nil {
			cause = err
		}
		return desired.Status{}, fmt.Errorf("the agent of instance %q does not answer; does it run, and are you root? %w", i, cause)
	}
	defer func() { _ = answer.Body.Close() }()
	var s desired.Status
	if err := json.NewDecoder(io.LimitReader(answer.Body, 16<<20)).Decode(&s); err != nil {
		return desired.Status{}, fmt.Errorf("read the agent's status: %w", err)
	}
	return s, nil
}

// Plan is what c.Instance brings about from its last good state, and that
// state's header.
func Plan(c Config) (desired.Header, plan.Plan, error) {
	if err := RequireRoot(); err != nil {
		return desired.Header{}, plan.Plan{}, err
	}
	i := c.Instance
	if _, err := identity.Describe(IdentityDir(i)); err != nil {
		return desired.Header{}, plan.Plan{}, err
	}
	secrets, err := sealed.Load(c.secretKeyFile(), i.StateDir())
	if err != nil {
		return desired.Header{}, plan.Plan{}, err
	}
	id, err := identity.Load(IdentityDir(i), secrets)
	if err != nil {
		return desired.Header{}, plan.Plan{}, err
	}
	_, h, state, err := lastgood.Open(i.StateDir(), id.Node, id.Root, secrets)
	if err != nil {
		return desired.Header{}, plan.Plan{}, err
	}
	if h.Node == "" {
		return h, plan.Plan{}, fmt.Errorf("node %s has received no state yet; `circuitseal-agent run` fetches it", id.Node)
	}
	return h, plan.Build(i, state), nil
}
