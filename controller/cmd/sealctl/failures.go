package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"unicode"

	"connectrpc.com/connect"
)

// atServer is an error of a call.
type atServer struct {
	server string
	// mixture is target.mixture of what was used.
	mixture string
	err     error
}

func (e atServer) Error() string { return e.server + ": " + e.err.Error() }
func (e atServer) Unwrap() error { return e.err }

// usage marks an error as one of the command line where that is what the
// controller has refused.
func usage(err error) error {
	if connect.CodeOf(err) == connect.CodeInvalidArgument {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	return err
}

// timedOut reports a call whose outcome is not known. The controller is told
// the time, too, and may be the first to notice.
func timedOut(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || connect.CodeOf(err) == connect.CodeDeadlineExceeded
}

// explain says what happened and what to do next.
func explain(err error) string {
	text, _ := diagnose(err)
	return text
}

// diagnose says what happened, what to do next, and which exit code that is.
func diagnose(err error) (string, int) {
	at := atServer{}
	if !errors.As(err, &at) {
		return err.Error(), exitFailed
	}
	if errors.Is(err, context.Canceled) {
		return "interrupted", exitFailed
	}
	if text := distrust(err, at); text != "" {
		if at.mixture != "" {
			text = at.mixture + ". If they do: " + text
		}
		return text, exitIdentity
	}
	if text := silence(err, at); text != "" {
		return text, exitUnreachable
	}
	rpc := new(connect.Error)
	if !errors.As(err, &rpc) {
		return err.Error(), exitFailed
	}
	text := rpc.Message()
	switch rpc.Code() {
	case connect.CodeUnauthenticated:
		return and(text+"; --identity says who you are, and `sealctl context show` what is used", at.mixture), exitIdentity
	case connect.CodePermissionDenied:
		return and(text+"; `sealctl context show` says which identity is used", at.mixture), exitIdentity
	case connect.CodeUnimplemented:
		text += "; is the controller older than this sealctl?"
	case connect.CodeUnavailable:
		return text, exitUnreachable
	default:
	}
	return text, exitFailed
}

// and adds a sentence where there is one.
func and(text, more string) string {
	if more == "" {
		return text
	}
	return text + "; " + more
}

// distrust says why one side does not take the other for who it should be.
func distrust(err error, at atServer) string {
	var (
		unknown x509.UnknownAuthorityError
		name    x509.HostnameError
		invalid x509.CertificateInvalidError
		alert   tls.AlertError
		pin     pinError
	)
	switch {
	case errors.As(err, &pin):
		return fmt.Sprintf("the controller at %s does not belong to the root of --root-pin (%s): compare it with what `sealctl token create` prints on the controller's host, and if that is what you have, do not go on: somebody answers in the controller's place", at.server, pin)
	case errors.As(err, &unknown):
		return fmt.Sprintf("the controller at %s does not belong to the root in --root: take admin/root.pem of its data directory, and if that is what you have, do not go on: somebody answers in the controller's place", at.server)
	case errors.As(err, &name):
		return fmt.Sprintf("%v: reach the controller by a name in its certificate, or start it with --name %s", name, name.Host)
	case errors.As(err, &invalid):
		return fmt.Sprintf("the controller's certificate is not valid: %v; are both clocks right?", invalid)
	case errors.As(err, &alert):
		return fmt.Sprintf("the controller at %s ended the TLS handshake: %v; does the identity belong to this controller?", at.server, alert)
	}
	return ""
}

// silence says why no answer of a controller came.
func silence(err error, at atServer) string {
	var (
		dns    *net.DNSError
		record tls.RecordHeaderError
		rpc    *connect.Error
	)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("nothing listens at %s: is the controller running, and is this its address (--server, SEALCTL_SERVER, or the context's)?", at.server)
	case errors.As(err, &dns):
		return fmt.Sprintf("the name %q cannot be resolved: see --server, SEALCTL_SERVER or the context's server", dns.Name)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return fmt.Sprintf("%s cannot be reached from here: no route leads there", at.server)
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Sprintf("%s does not speak TLS: is it the controller's port?", at.server)
	case timedOut(err):
		return fmt.Sprintf("%s did not answer in time; --timeout gives it longer", at.server)
	case errors.As(err, &rpc) && !connect.IsWireError(rpc) && rpc.Code() == connect.CodeUnavailable:
		return fmt.Sprintf("the connection to %s failed: %s; try again, and see the controller's log if it stays so", at.server, rpc.Message())
	}
	return ""
}

// clean makes foreign text fit for a terminal: what could move the cursor or
// turn the reading direction is shown and not done.
func clean(s string) string {
	harmless := func(r rune) bool { return unicode.IsPrint(r) || r == '\n' }
	if strings.IndexFunc(s, func(r rune) bool { return !harmless(r) }) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if harmless(r) {
			b.WriteRune(r)
			continue
		}
		fmt.Fprintf(&b, "\\u%04x", r)
	}
	return b.String()
}

// line is clean on one line.
func line(s string) string { return strings.ReplaceAll(clean(s), "\n", `\n`) }
