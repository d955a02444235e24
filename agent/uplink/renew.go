package uplink

import (
	"context"
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"time"

	"connectrpc.com/connect"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

const (
	renewTimeout = 30 * time.Second
	// renewCheck is how often the clock is looked at: it may be set, and a host
	// may sleep.
	renewCheck      = time.Minute
	firstRenewRetry = 2 * time.Second
	lastRenewRetry  = 10 * time.Minute
)

// renewAt is when a certificate is to be renewed: after a seventh of its life,
// which is daily, and up to a quarter of that later, so that nodes that were
// enrolled together do not come together. jitter is from 0 to 1.
func renewAt(leaf *x509.Certificate, jitter float64) time.Time {
	seventh := leaf.NotAfter.Sub(leaf.NotBefore) / 7
	return leaf.NotBefore.Add(seventh + time.Duration(jitter*float64(seventh/4)))
}

// due reports whether a certificate is to be renewed: also one that has not
// begun, which was issued while clocks were ahead.
func due(leaf *x509.Certificate, now time.Time, jitter float64) bool {
	return now.Before(leaf.NotBefore) || !now.Before(renewAt(leaf, jitter))
}

// renewals renews the certificate whenever it is time, until ctx ends.
func (u *Uplink) renewals(ctx context.Context) {
	retry, jitter := firstRenewRetry, rand.Float64()
	for {
		pause := renewCheck
		leaf, err := u.present().Leaf()
		if now := u.now(); err == nil && due(leaf, now, jitter) {
			if err = u.renew(ctx); err == nil {
				retry, jitter = firstRenewRetry, rand.Float64()
			} else {
				pause = retry/2 + rand.N(retry)
				most := lastRenewRetry
				if now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
					// Without it there is no session.
					most = lastRetry
				}
				retry = min(2*retry, most)
			}
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			u.log.Warn("certificate is not renewed", "retry_in", pause.Round(time.Millisecond), "error", err)
		}
		u.mu.Lock()
		u.unrenewed = err
		u.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		case <-u.reached:
		}
	}
}

// renew asks for a new certificate over the same key, with the one at hand,
// which may have ended, and keeps it.
func (u *Uplink) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	u.reload()
	id := u.present()
	request, err := id.Request()
	if err != nil {
		return err
	}
	c, service := u.dial(id)
	defer c.CloseIdleConnections()
	answer, err := service.Renew(ctx, connect.NewRequest(&v1.RenewRequest{CertificateRequest: request}))
	if err != nil {
		return u.explain(err)
	}
	if len(answer.Msg.GetCertificates()) == 0 {
		return errors.New("the controller's answer has no certificate")
	}
	next, err := u.config.Renew(id, answer.Msg.GetCertificates())
	if err != nil {
		return err
	}
	leaf, err := next.Leaf()
	if err != nil {
		return err
	}
	u.mu.Lock()
	u.identity = next
	u.mu.Unlock()
	signal(u.renewed)
	u.log.Info("certificate renewed", "serial", leaf.SerialNumber.Text(16), "expires", leaf.NotAfter)
	return nil
}
