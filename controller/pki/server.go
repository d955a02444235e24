package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/circuitseal/circuitseal/controller/model"
)

const (
	serverKeyFile  = "server.key"
	serverCertFile = "server.crt"
)

// renewPause is how long a renewal that failed is left alone: every peer that
// connects asks for it.
const renewPause = time.Minute

// DefaultNames are what the server is called where nobody says more: the
// loopback names and the host's own.
func DefaultNames() []string {
	names := []string{"localhost", "127.0.0.1", "::1"}
	host, err := os.Hostname()
	if err != nil {
		return names
	}
	if host = strings.ToLower(host); checkHostName(host) == nil && !slices.Contains(names, host) {
		names = append(names, host)
	}
	return names
}

// ServerTLS is how the controller serves: TLS 1.3, with a certificate for the
// names (host names and IP addresses; DefaultNames when empty) that is issued
// anew when the names have changed or less than a third of its 90 days is
// left, also while it serves. The chain ends with the root, by whose
// fingerprint agents know it.
//
// Clients are asked for a certificate and prove that they have its key; who
// they are is for Identify to say on every request. There are no session
// tickets: a resumed session would outlive a revocation.
func (a *Authority) ServerTLS(names []string) (*tls.Config, error) {
	if len(names) == 0 {
		names = DefaultNames()
	}
	s := &server{authority: a}
	if err := s.setNames(names); err != nil {
		return nil, fmt.Errorf("server certificate: %w", err)
	}
	if _, err := s.certificate(); err != nil {
		return nil, fmt.Errorf("server certificate: %w", err)
	}
	// Tells clients that have several certificates which one to show.
	issuers := x509.NewCertPool()
	issuers.AddCert(a.root)
	issuers.AddCert(a.issuing.cert)
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return s.certificate()
		},
		ClientAuth:             tls.RequestClientCert,
		ClientCAs:              issuers,
		CurvePreferences:       []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP384, tls.CurveP256},
		SessionTicketsDisabled: true,
		NextProtos:             []string{"h2", "http/1.1"},
	}, nil
}

type server struct {
	authority *Authority
	dns       []string
	ips       []net.IP

	mu      sync.Mutex
	current *tls.Certificate
	// failed is why the last renewal failed, if it did; next is when it is
	// tried again.
	failed error
	next   time.Time
}

// CheckNames says which of a server's names are no names. Nothing is needed
// for it, so that it can be known first.
func CheckNames(names []string) error { return new(server).setNames(names) }

func (s *server) setNames(names []string) error {
	var errs []error
	for _, n := range names {
		if ip, err := netip.ParseAddr(n); err == nil && ip.Zone() == "" {
			s.ips = append(s.ips, net.IP(ip.Unmap().AsSlice()))
			continue
		}
		n = strings.ToLower(n)
		errs = append(errs, checkHostName(n))
		s.dns = append(s.dns, n)
	}
	slices.Sort(s.dns)
	s.dns = slices.Compact(s.dns)
	byText := func(a, b net.IP) int { return strings.Compare(a.String(), b.String()) }
	slices.SortFunc(s.ips, byText)
	s.ips = slices.CompactFunc(s.ips, net.IP.Equal)
	return errors.Join(errs...)
}

// checkHostName takes what TLS clients match: labels of letters, digits and
// "-" (RFC 1123, section 2.1), no wildcard.
func checkHostName(n string) error {
	ok := len(n) <= 253
	for label := range strings.SplitSeq(n, ".") {
		ok = ok && label != "" && len(label) <= 63 && label[0] != '-' && label[len(label)-1] != '-' &&
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
	}
	if !ok {
		return fmt.Errorf("server name %q: want a host name or an IP address", model.Shorten(n))
	}
	return nil
}

// certificate is the one to serve with, renewed when it is time.
func (s *server) certificate() (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.authority
	if s.current == nil {
		var err error
		if s.current, err = s.load(); err != nil {
			return nil, err
		}
	}
	if s.current != nil && !a.due(s.current.Leaf) {
		return s.current, nil
	}
	if s.failed == nil || !a.now().Before(s.next) {
		var renewed *tls.Certificate
		if renewed, s.failed = s.issue(); s.failed == nil {
			s.current = renewed
			return s.current, nil
		}
		s.next = a.now().Add(renewPause)
		if s.current != nil {
			a.log.Error("the server's certificate was not renewed", "expires", s.current.Leaf.NotAfter, "error", s.failed)
		}
	}
	if s.current == nil {
		return nil, s.failed
	}
	// One that has ended is shown all the same: who is to judge it has a clock
	// of its own, and this one may be wrong.
	return s.current, nil
}

// load reads the certificate of an earlier run; nil when there is none, or
// none that fits: it costs nothing to issue another.
func (s *server) load() (*tls.Certificate, error) {
	a := s.authority
	cert, err := a.dir.certificate(serverCertFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		a.log.Warn("the server's certificate cannot be read; another is issued", "error", err)
		return nil, nil
	}
	key, err := a.dir.key(serverKeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	fits := key.fits(cert) && cert.CheckSignatureFrom(a.issuing.cert) == nil &&
		!cert.NotBefore.After(a.now()) &&
		slices.Equal(cert.DNSNames, s.dns) && slices.EqualFunc(cert.IPAddresses, s.ips, net.IP.Equal)
	if !fits {
		return nil, nil
	}
	return s.chain(cert, key), nil
}

// issue makes a key and a certificate. Whoever dies between the two files
// leaves a pair that does not fit, which load passes over.
func (s *server) issue() (*tls.Certificate, error) {
	a := s.authority
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	t := template("circuitseal controller", a.now(), serverLife)
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	t.DNSNames, t.IPAddresses = s.dns, s.ips
	cert, err := a.issue(t, key.publicKey())
	if err != nil {
		return nil, err
	}
	if err := a.dir.writeKey(serverKeyFile, key); err != nil {
		return nil, err
	}
	if err := a.dir.writeCertificates(serverCertFile, cert); err != nil {
		return nil, err
	}
	a.log.Info("issued the server's certificate", "names", s.dns, "addresses", s.ips, "expires", cert.NotAfter)
	return s.chain(cert, key), nil
}

func (s *server) chain(cert *x509.Certificate, key privateKey) *tls.Certificate {
	a := s.authority
	return &tls.Certificate{
		Certificate: [][]byte{cert.Raw, a.issuing.cert.Raw, a.root.Raw},
		PrivateKey:  key,
		Leaf:        cert,
	}
}
