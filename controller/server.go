package controller

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"
)

// The bounds of what strangers and the dead may cost. Messages are bounded by
// controller/api.
const (
	// headerTimeout bounds the TLS handshake, too.
	headerTimeout  = 10 * time.Second
	idleTimeout    = 60 * time.Second
	maxHeaderBytes = 32 << 10

	// A peer that is silent for pingAfter is pinged, and is dead when it has
	// not answered after pingTimeout (RFC 9113, section 6.7).
	pingAfter   = 6 * time.Second
	pingTimeout = 6 * time.Second
	// writeTimeout is how long a peer's TCP may take no byte at all.
	writeTimeout = 15 * time.Second
	// maxStreams are calls at once on one connection, and the buffers are what
	// a peer may send of them before anybody has read it.
	maxStreams       = 32
	connectionBuffer = 128 << 10
	streamBuffer     = 64 << 10

	// maxStrangers are connections whose peer has shown no identity;
	// maxConnections are all that are open.
	maxStrangers   = 1024
	maxConnections = 16384

	// stopTimeout is how long calls under way may take when the controller
	// stops.
	stopTimeout = 1500 * time.Millisecond
)

// checkAddress says what is wrong with a flag's address to listen on, by itself.
func checkAddress(flag, address string) error {
	_, port, err := net.SplitHostPort(address)
	if err == nil && port == "" {
		err = errors.New("there is no port")
	}
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("%s %q is no address: want a host and a port, or a port alone, such as :8443", flag, address)
	}
	return nil
}

// listen opens the port, so that one that is taken is known before anything
// else is touched.
func listen(ctx context.Context, flag, address string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("another process listens on %s: stop it (`ss -ltnp` names it), or listen elsewhere with %s", address, flag)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("this user may not listen on %s: take a port from 1024 on with %s", address, flag)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("this host has no address %s: listen on one that it has with %s, or on all of them, as :8443 does", address, flag)
	}
	return nil, fmt.Errorf("listen on %s: %w; want a host and a port with %s, such as :8443", address, err, flag)
}

// closed closes a listener; one that was closed already is no error.
func closed(l net.Listener) error {
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// serve serves until ctx is done. Streams end by themselves when the hub does;
// what is left after stopTimeout is cut. identify says whether certificates name
// somebody.
func serve(ctx context.Context, l net.Listener, config *tls.Config, handler http.Handler, identify func([]*x509.Certificate) bool, log *slog.Logger) error {
	known := func(c net.Conn) bool {
		t, ok := c.(*tls.Conn)
		return ok && identify(t.ConnectionState().PeerCertificates)
	}
	guarded := newGuardedListener(l, maxConnections, maxStrangers, known, log)
	server := &http.Server{
		Handler:           handler,
		TLSConfig:         config,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams,
			MaxReadFrameSize:     64 << 10,
			SendPingTimeout:      pingAfter,
			PingTimeout:          pingTimeout,
			WriteByteTimeout:     writeTimeout,

			MaxReceiveBufferPerConnection: connectionBuffer,
			MaxReceiveBufferPerStream:     streamBuffer,
		},
		ConnState: guarded.state,
		// What strangers do to a TLS listener is no news.
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		// "OPTIONS *" has no procedure either.
		DisableGeneralOptionsHandler: true,
	}
	failed := make(chan error, 1)
	go func() { failed <- server.ServeTLS(guarded, "", "") }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	err := server.Shutdown(stopping)
	if errors.Is(err, context.DeadlineExceeded) {
		log.Info("calls were cut off, since the controller stops")
		err = server.Close()
	}
	if served := <-failed; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("stop serving: %w", err)
	}
	return nil
}
