package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
)

const (
	defaultServer = "https://localhost:8443"
	// maxAnswer bounds what the controller may send.
	maxAnswer = 256 << 20
)

// options are the global flags, and the environment that completes them.
type options struct {
	getenv func(string) string
	// mixture is target.mixture of what connect used.
	mixture string
	// server, root, rootPin, identity and key are flags; connect sets server to
	// the address that is used.
	server, root, rootPin, identity, key string
	// contexts is a file, context a name in it.
	contexts, context string
	output, colour    string
	timeout           time.Duration
}

func (o *options) register(cmd *cobra.Command, getenv func(string) string) {
	o.getenv = getenv
	f := cmd.PersistentFlags()
	f.StringVar(&o.server, "server", "", "the controller's `address`; SEALCTL_SERVER (else "+defaultServer+")")
	f.StringVar(&o.identity, "identity", "", "PEM `file` with your certificate, and your key unless --key names it; SEALCTL_IDENTITY")
	f.StringVar(&o.key, "key", "", "PEM `file` with your key; SEALCTL_KEY")
	f.StringVar(&o.root, "root", "", "PEM `file` with the controller's root certificate; SEALCTL_ROOT")
	f.StringVar(&o.rootPin, "root-pin", "", "SHA-256 of the controller's root, sha256:…, in place of --root; SEALCTL_ROOT_PIN")
	f.StringVar(&o.context, "context", "", "the `name` of a context, which gives the above; CIRCUITSEAL_CONTEXT")
	f.StringVar(&o.contexts, "contexts", "", "`file` of contexts; CIRCUITSEAL_CONTEXTS (else circuitseal/contexts.yaml in your configuration)")
	f.StringVarP(&o.output, "output", "o", "table", "the `format`: table or json, and with some commands wide, yaml or name")
	f.StringVar(&o.colour, "color", "auto", "auto (on a terminal, unless NO_COLOR is set), always or never")
	f.DurationVar(&o.timeout, "timeout", 30*time.Second, "how long one call may take")
	cmd.PersistentPreRunE = func(c *cobra.Command, _ []string) error { return o.check(c) }
}

// check looks at what all commands have in common.
func (o *options) check(c *cobra.Command) error {
	if have := outputs(c); !slices.Contains(have, o.output) {
		return fmt.Errorf("%w: --output %q: want %s", errUsage, o.output, or(have))
	}
	if !slices.Contains(colourModes, o.colour) {
		return fmt.Errorf("%w: --color %q: want %s", errUsage, o.colour, or(colourModes))
	}
	if o.timeout <= 0 {
		return fmt.Errorf("%w: --timeout %s: want more than 0", errUsage, o.timeout)
	}
	if o.root != "" && o.rootPin != "" {
		return fmt.Errorf("%w: --root and --root-pin: want one of them", errUsage)
	}
	return nil
}

// or lists words: "a, b or c".
func or(words []string) string {
	last := len(words) - 1
	if last <= 0 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// connection is a way to the controller. Its holder closes it.
type connection struct {
	client *http.Client
	server string
}

func (c connection) close() { c.client.CloseIdleConnections() }

// limits are the client's options of every service.
func limits() connect.ClientOption { return connect.WithReadMaxBytes(maxAnswer) }

// parseServer is the address of a controller, without what calls add; host:port is
// short for one.
func parseServer(s string) (string, error) {
	address := s
	if _, _, err := net.SplitHostPort(s); err == nil && !strings.Contains(s, "/") {
		address = "https://" + s
	}
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || (u.Path != "" && u.Path != "/") || strings.ContainsAny(s, "?#") {
		return "", fmt.Errorf("%q: want an address such as %s", s, defaultServer)
	}
	return "https://" + u.Host, nil
}

// connect reads the files and checks them; it does not dial yet.
func (o *options) connect() (connection, error) {
	t, err := o.resolve()
	if err != nil {
		return connection{}, err
	}
	server, err := parseServer(t.Server)
	if err != nil {
		return connection{}, fmt.Errorf("%w: %s %w", errUsage, t.from.Server, err)
	}
	o.server, o.mixture = server, t.mixture()
	pair, err := readIdentity(t.Identity, t.Key)
	if err != nil {
		return connection{}, withCode(exitIdentity, err)
	}
	config, err := trust(t.place)
	if err != nil {
		return connection{}, err
	}
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair, nil }
	return connection{
		server: server,
		client: &http.Client{
			Timeout: o.timeout,
			// A procedure does not move; a redirect is somebody else's answer.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport:     &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: config},
		},
	}, nil
}

// call makes one call with its own timeout.
func call[Q, A any](ctx context.Context, o *options, f func(context.Context, *connect.Request[Q]) (*connect.Response[A], error), q *Q) (*A, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	answer, err := f(ctx, connect.NewRequest(q))
	if err != nil {
		return nil, atServer{o.server, o.mixture, err}
	}
	return answer.Msg, nil
}
