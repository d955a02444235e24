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
	"time"

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
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return untimely(invalid.Cert, time.Now())
	case errors.As(err, &invalid):
		return fmt.Errorf("the controller's certificate is not valid: %w", invalid)
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Errorf("%s does not speak TLS: is it the controller's port?", controller)
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("%s did not answer in time: see whether a firewall on the way drops what goes there; repeating it is safe", controller)
	}
	return plain(err)
}

// clocksDiffer is from when on two clocks are told apart: certificates begin
// this much in the past.
const clocksDiffer = 5 * time.Minute

// explain says what keeps a session or a renewal from the controller. Where the
// clocks may be the cause it names them.
func (u *Uplink) explain(err error) error {
	now := u.now()
	if invalid := (x509.CertificateInvalidError{}); errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return untimely(invalid.Cert, now)
	}
	c := new(connect.Error)
	if !errors.As(err, &c) {
		return err
	}
	theirs, failed := http.ParseTime(c.Meta().Get("Date"))
	if failed == nil && connect.CodeOf(err) == connect.CodeUnauthenticated && now.Sub(theirs).Abs() > clocksDiffer {
		return fmt.Errorf("%s; this host's clock says %s and the controller's says %s", c.Message(), now.UTC().Format(time.RFC3339), theirs.UTC().Format(time.RFC3339))
	}
	return errors.New(c.Message())
}

// untimely says that a certificate of the controller is not good by this host's
// clock.
func untimely(c *x509.Certificate, now time.Time) error {
	return fmt.Errorf("the controller's certificate is good from %s to %s, and this host's clock says %s: set the clock that is wrong",
		c.NotBefore.UTC().Format(time.RFC3339), c.NotAfter.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
}
