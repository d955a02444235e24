package uplink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"syscall"

	"connectrpc.com/connect"
)

// explain says what kept an enrolment from its controller and what to do next.
// What the controller itself has said it leaves as it is.
func explain(controller *url.URL, err error) error {
	if connect.IsWireError(err) {
		return plain(err)
	}
	var (
		name    x509.HostnameError
		invalid x509.CertificateInvalidError
		dns     *net.DNSError
		record  tls.RecordHeaderError
		timeout net.Error
	)
	switch {
	case errors.Is(err, context.Canceled):
		return errors.New("interrupted; repeating it is safe")
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nothing listens at %s: is the controller running, and is this its address (--controller)?", controller)
	case errors.As(err, &dns):
		return fmt.Errorf("the name %q cannot be resolved: see --controller and this host's DNS", dns.Name)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return fmt.Errorf("%s cannot be reached from here: no route leads there", controller)
	case errors.As(err, &name):
		return fmt.Errorf("%w: reach the controller by a name in its certificate, or start it with --name %s", name, name.Host)
	case errors.As(err, &invalid):
		return fmt.Errorf("the controller's certificate is not valid: %w; are both clocks right?", invalid)
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Errorf("%s does not speak TLS: is it the controller's port?", controller)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("%s did not answer in time: see whether a firewall on the way drops what goes there; repeating it is safe", controller)
	}
	return plain(err)
}
