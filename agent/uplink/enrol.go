package uplink

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"

	"connectrpc.com/connect"

	"github.com/circuitseal/circuitseal/agent/identity"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
)

// ParseController reads a controller's address: https, a host, no path.
func ParseController(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || (u.Path != "" && u.Path != "/") || strings.ContainsAny(s, "?#") {
		return nil, fmt.Errorf("controller %.200q: want an address such as https://controller.example:8443", s)
	}
	u.Path = ""
	return u, nil
}

// Enrol exchanges a token for a certificate and stores the identity in dir.
// pin is the SHA-256 of the controller's root: whoever answers with another
// root learns nothing, for the token goes out only after the check. node, when
// set, is the name that the token must be for. Repeating a call whose answer
// was lost is safe: the key in dir is used again.
func Enrol(ctx context.Context, dir string, controller *url.URL, pin [sha256.Size]byte, token, node string) (*identity.Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, enrolTimeout)
	defer cancel()
	key, err := identity.NewKey(dir)
	if err != nil {
		return nil, err
	}
	request, err := key.Request()
	if err != nil {
		return nil, err
	}
	c := client(&tls.Config{
		// The chain is verified in VerifyConnection, from the pinned root.
		InsecureSkipVerify: true, //nolint:gosec // replaced by verifyPinned
		VerifyConnection:   func(s tls.ConnectionState) error { return verifyPinned(s.PeerCertificates, controller.Hostname(), pin) },
	})
	defer c.CloseIdleConnections()
	answer, err := circuitsealv1connect.NewAgentServiceClient(c, controller.String(), connect.WithReadMaxBytes(256<<10)).
		Enrol(ctx, connect.NewRequest(&v1.EnrolRequest{Token: token, CertificateRequest: request, Node: node}))
	if err != nil {
		return nil, fmt.Errorf("enrol at %s: %w", controller, explain(controller, err))
	}
	root := answer.Msg.GetRoot()
	if sum := sha256.Sum256(root); subtle.ConstantTimeCompare(sum[:], pin[:]) != 1 {
		return nil, fmt.Errorf("enrol at %s: the answer names another root than the pinned one", controller)
	}
	return identity.Store(dir, controller, root, answer.Msg.GetCertificates())
}

// verifyPinned wants the pinned root among the certificates that the server
// sent, and a server's certificate for the dialled name that leads to it.
func verifyPinned(chain []*x509.Certificate, host string, pin [sha256.Size]byte) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	found := false
	for _, c := range chain[1:] {
		if sum := sha256.Sum256(c.Raw); subtle.ConstantTimeCompare(sum[:], pin[:]) == 1 {
			roots.AddCert(c)
			found = true
			continue
		}
		between.AddCert(c)
	}
	if !found {
		return fmt.Errorf("the controller's root is not the pinned one (sha256:%x); compare --root-pin with what `sealctl token create` prints, and if it is the same, do not enrol here: somebody answers in the controller's place", pin)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		DNSName: host, Roots: roots, Intermediates: between,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return err
}
