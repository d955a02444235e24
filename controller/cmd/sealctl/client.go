package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
)

const (
	defaultServer = "https://localhost:8443"
	// maxPEM bounds identity and root files.
	maxPEM = 256 << 10
	// maxAnswer bounds what the controller may send.
	maxAnswer = 256 << 20
)

// options are the global flags.
type options struct {
	server, identity, root string
	output                 string
	timeout                time.Duration
}

func (o *options) register(cmd *cobra.Command, getenv func(string) string) {
	server := getenv("SEALCTL_SERVER")
	if server == "" {
		server = defaultServer
	}
	f := cmd.PersistentFlags()
	f.StringVar(&o.server, "server", server, "the controller's `address`; SEALCTL_SERVER")
	f.StringVar(&o.identity, "identity", getenv("SEALCTL_IDENTITY"), "PEM `file` with your certificate and key; SEALCTL_IDENTITY")
	f.StringVar(&o.root, "root", getenv("SEALCTL_ROOT"), "PEM `file` with the controller's root certificate; SEALCTL_ROOT")
	f.StringVarP(&o.output, "output", "o", "table", "table or json")
	f.DurationVar(&o.timeout, "timeout", 30*time.Second, "how long one call may take")
	cmd.PersistentPreRunE = func(*cobra.Command, []string) error {
		if o.output != "table" && o.output != "json" {
			return fmt.Errorf("%w: --output %q: want table or json", errUsage, o.output)
		}
		if o.timeout <= 0 {
			return fmt.Errorf("%w: --timeout %s: want more than 0", errUsage, o.timeout)
		}
		return nil
	}
}

func (o *options) json() bool { return o.output == "json" }

// connection is a way to the controller. Its holder closes it.
type connection struct {
	client *http.Client
	server string
}

func (c connection) close() { c.client.CloseIdleConnections() }

// limits are the client's options of every service.
func limits() connect.ClientOption { return connect.WithReadMaxBytes(maxAnswer) }

// connect reads the files and checks them; it does not dial yet.
func (o *options) connect() (connection, error) {
	u, err := url.Parse(o.server)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || (u.Path != "" && u.Path != "/") || strings.ContainsAny(o.server, "?#") {
		return connection{}, fmt.Errorf("%w: --server %q: want an address such as %s", errUsage, o.server, defaultServer)
	}
	pair, err := readIdentity(o.identity)
	if err != nil {
		return connection{}, err
	}
	roots, err := readRoot(o.root)
	if err != nil {
		return connection{}, err
	}
	return connection{
		server: "https://" + u.Host,
		client: &http.Client{
			Timeout: o.timeout,
			// A procedure does not move; a redirect is somebody else's answer.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &http.Transport{
				ForceAttemptHTTP2: true,
				TLSClientConfig: &tls.Config{
					MinVersion:           tls.VersionTLS13,
					RootCAs:              roots,
					GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair, nil },
				},
			},
		},
	}, nil
}

// readIdentity reads a certificate chain and its key from one file that nobody
// else can read.
func readIdentity(path string) (*tls.Certificate, error) {
	if path == "" {
		return nil, errors.New("there is no identity: name yours with --identity or SEALCTL_IDENTITY; the controller wrote the administrator's to admin/identity.pem in its data directory")
	}
	b, mode, err := readPEM(path)
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	// What is no identity may well be readable by all.
	if lacks := missing(b); lacks != "" {
		return nil, fmt.Errorf("identity %s holds %s: want both in one file, such as admin/identity.pem of the controller's data directory", path, lacks)
	}
	pair, err := tls.X509KeyPair(b, b)
	if err != nil {
		return nil, fmt.Errorf("identity %s: want a certificate, its chain and its key in PEM: %w", path, err)
	}
	if mode.Perm()&0o077 != 0 {
		return nil, fmt.Errorf("identity %s can be read by others (mode %#o): run `chmod 600 %s`, and have a new one made if somebody may have read it", path, mode.Perm(), path)
	}
	now := time.Now()
	if pair.Leaf != nil && now.After(pair.Leaf.NotAfter) {
		return nil, fmt.Errorf("identity %s expired on %s: restart the controller, which then writes a new one for the administrator", path, pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	if pair.Leaf != nil && now.Before(pair.Leaf.NotBefore) {
		return nil, fmt.Errorf("identity %s is valid from %s on, and this host's clock says %s: set the clock right", path, pair.Leaf.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return &pair, nil
}

// missing says what of an identity a file holds, where that is not all of it.
func missing(b []byte) string {
	certificate := bytes.Contains(b, []byte("-----BEGIN CERTIFICATE-----"))
	key := bytes.Contains(b, []byte("PRIVATE KEY-----"))
	switch {
	case certificate && key:
		return ""
	case certificate:
		return "a certificate and no PRIVATE KEY"
	case key:
		return "a PRIVATE KEY and no certificate"
	}
	return "neither a certificate nor a PRIVATE KEY in PEM"
}

func readRoot(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, errors.New("there is no root to know the controller by: name it with --root or SEALCTL_ROOT; it is admin/root.pem in the controller's data directory")
	}
	b, _, err := readPEM(path)
	if err != nil {
		return nil, fmt.Errorf("read root: %w", err)
	}
	pool := x509.NewCertPool()
	found := false
	for rest := b; ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("root %s: %w", path, err)
		}
		pool.AddCert(cert)
		found = true
	}
	if !found {
		return nil, fmt.Errorf("root %s holds no certificate in PEM", path)
	}
	return pool, nil
}

func readPEM(path string) ([]byte, fs.FileMode, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = f.Close() }()
	// Of the open file, so that what is checked is what is read.
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("%s is no file", path)
	}
	b, err := readAll(f, maxPEM)
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", path, err)
	}
	return b, info.Mode(), nil
}

// call makes one call with its own timeout.
func call[Q, A any](ctx context.Context, o *options, f func(context.Context, *connect.Request[Q]) (*connect.Response[A], error), q *Q) (*A, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	answer, err := f(ctx, connect.NewRequest(q))
	if err != nil {
		return nil, atServer{o.server, err}
	}
	return answer.Msg, nil
}
