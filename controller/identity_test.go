package controller_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/circuitseal/circuitseal/controller"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
)

const day = 24 * time.Hour

// requestOf is a certificate request over the key of a certificate.
func requestOf(t *testing.T, cert *tls.Certificate) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func (r *running) renew(t *testing.T, cert *tls.Certificate, request []byte) (*tls.Certificate, error) {
	t.Helper()
	a, err := r.agents(cert).Renew(t.Context(), connect.NewRequest(&v1.RenewRequest{CertificateRequest: request}))
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: a.Msg.GetCertificates(), PrivateKey: cert.PrivateKey}, nil
}

func leafOf(t *testing.T, c *tls.Certificate) *x509.Certificate {
	t.Helper()
	leaf, err := x509.ParseCertificate(c.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// nva is the identity of node nva-1.
func (o operator) nva(t *testing.T) *v1.NodeIdentity {
	t.Helper()
	a, err := o.nodes.ListNodes(t.Context(), connect.NewRequest(&v1.ListNodesRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(a.Msg.GetNodes(), func(n *v1.NodeIdentity) bool { return n.GetNode() == "nva-1" })
	if i < 0 {
		t.Fatal("node nva-1 is not listed")
	}
	return a.Msg.GetNodes()[i]
}

// clock is a controller's clock, which a test can set.
type clock struct{ off atomic.Int64 }

func (c *clock) now() time.Time      { return time.Now().Add(time.Duration(c.off.Load())) }
func (c *clock) set(d time.Duration) { c.off.Store(int64(d)) }

func wants(t *testing.T, what string, err error, code connect.Code, says string) {
	t.Helper()
	if connect.CodeOf(err) != code || err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("%s: %v; want %s that says %q", what, err, code, says)
	}
}

func TestRenewal(t *testing.T) {
	t.Parallel()
	c := &clock{}
	r := startWith(t, controller.Config{DataDir: t.TempDir() + "/data", Now: c.now})
	o := r.operator()
	o.apply(t, samples(t)...)
	first := r.enrol("nva-1")
	a := r.session(t, "nva-1", first)
	a.report(&v1.NodeStatus{})
	a.next()
	before := o.nva(t)
	request := requestOf(t, first)

	again, err := r.renew(t, first, request)
	if err != nil {
		t.Fatal(err)
	}
	if !leafOf(t, again).Equal(leafOf(t, first)) {
		t.Error("a certificate of this hour was renewed: every call would write")
	}
	c.set(26 * time.Hour)
	second, err := r.renew(t, first, request)
	if err != nil {
		t.Fatal(err)
	}
	if leafOf(t, second).Equal(leafOf(t, first)) {
		t.Error("a day later the certificate is the same")
	}
	// As after a lost answer, with either certificate.
	for _, with := range []*tls.Certificate{first, second} {
		third, err := r.renew(t, with, requestOf(t, first))
		if err != nil || !leafOf(t, third).Equal(leafOf(t, second)) {
			t.Errorf("asked again: another certificate, or %v", err)
		}
	}
	after := o.nva(t)
	if after.GetCertificate().GetFingerprint() != before.GetCertificate().GetFingerprint() || !after.GetConnected() ||
		after.GetCertificate().GetSerial() != leafOf(t, second).SerialNumber.Text(16) ||
		!after.GetCertificate().GetExpires().AsTime().Equal(leafOf(t, second).NotAfter) {
		t.Errorf("listed as %v, before as %v", after, before)
	}

	// The same process moves on, while its old session lives.
	b := r.session(t, "nva-1", second)
	b.report(&v1.NodeStatus{})
	b.send(&v1.SessionRequest{ProbeAnswer: <-a.probes})
	b.next()
	wants(t, "the old session", a.end(), connect.CodeAborted, "has taken this one's place")
	if n := o.nva(t); !n.GetConnected() || len(n.GetProblems()) != 0 {
		t.Errorf("after moving: %v", n)
	}

	// Only for the same key.
	_, other := newKey(t)
	_, err = r.renew(t, second, other)
	wants(t, "another key", err, connect.CodeInvalidArgument, "another key")
	_, err = r.renew(t, second, []byte("x"))
	wants(t, "no request", err, connect.CodeInvalidArgument, "certificate_request")
	named, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "prem-1"}}, first.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	c.set(52 * time.Hour)
	_, err = r.renew(t, second, named)
	wants(t, "another name", err, connect.CodeInvalidArgument, "prem-1")
	// Who enrols anew takes the right of the former key.
	r.enrol("nva-1")
	_, err = r.renew(t, second, request)
	wants(t, "a former key", err, connect.CodeUnauthenticated, "does not have the present key")
}

// A certificate that has ended is good for its renewal, and for nothing else.
func TestExpiredCertificateRenewsOnly(t *testing.T) {
	t.Parallel()
	c := &clock{}
	r := startWith(t, controller.Config{DataDir: t.TempDir() + "/data", Now: c.now})
	r.operator().apply(t, samples(t)...)
	cert := r.enrol("nva-1")
	c.set(37 * day)
	a := r.session(t, "nva-1", cert)
	a.report(&v1.NodeStatus{})
	wants(t, "a session after the end", a.end(), connect.CodeUnauthenticated, "it can be renewed still")
	_, err := circuitsealv1connect.NewStatusServiceClient(r.client(cert), r.url).GetStatus(t.Context(), connect.NewRequest(&v1.GetStatusRequest{}))
	wants(t, "status after the end", err, connect.CodeUnauthenticated, "ended")
	if p := r.operator().nva(t).GetProblems(); len(p) != 1 || !strings.Contains(p[0], "was not renewed") {
		t.Errorf("problems: %q", p)
	}
	fresh, err := r.renew(t, cert, requestOf(t, cert))
	if err != nil {
		t.Fatalf("after 30 days: %v", err)
	}
	b := r.session(t, "nva-1", fresh)
	b.report(&v1.NodeStatus{})
	b.next()

	// At the limit by a day, the older one cannot any more and the newer can.
	c.set(98 * day)
	r.now = c.now
	_, err = r.renew(t, cert, requestOf(t, cert))
	wants(t, "91 days after its end", err, connect.CodeUnauthenticated, "enrol the node again")
	if _, err := r.renew(t, fresh, requestOf(t, cert)); err != nil {
		t.Errorf("61 days after its end: %v", err)
	}
}

// A clock that jumps by ten years leaves sessions alone, is named to who
// authenticates, and nothing is left of it once it is right.
func TestClockJumps(t *testing.T) {
	t.Parallel()
	for name, off := range map[string]time.Duration{"ahead": 3650 * day, "behind": -3650 * day, "ahead by a year": 365 * day} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := &clock{}
			dir := t.TempDir() + "/data"
			r := startWith(t, controller.Config{DataDir: dir, Now: c.now})
			o := r.operator()
			o.apply(t, samples(t)...)
			cert := r.enrol("nva-1")
			a := r.session(t, "nva-1", cert)
			a.report(&v1.NodeStatus{})
			a.next()
			c.set(off)
			says := "the controller's clock says " + c.now().UTC().Format("2006-")
			_, err := r.renew(t, cert, requestOf(t, cert))
			if name == "ahead by a year" {
				// Its server's certificate is of that year, too.
				if err == nil || !strings.Contains(err.Error(), "not yet valid") {
					t.Errorf("a renewal meanwhile: %v", err)
				}
			} else {
				wants(t, "a renewal meanwhile", err, connect.CodeUnauthenticated, says)
				b := r.session(t, "nva-1", cert)
				b.report(&v1.NodeStatus{})
				wants(t, "a session meanwhile", b.end(), connect.CodeUnauthenticated, says)
			}
			a.report(&v1.NodeStatus{Version: "still here"})
			c.set(0)
			eventually(t, "the session was alive all the time", func() bool {
				return o.getStatus(t).GetNodes()[0].GetStatus().GetVersion() == "still here"
			})
			if _, err := r.renew(t, cert, requestOf(t, cert)); err != nil {
				t.Errorf("with the right clock again: %v", err)
			}
			a.cancel()
			eventually(t, "the session is over", func() bool { return !o.nva(t).GetConnected() })
			d := r.session(t, "nva-1", cert)
			d.report(&v1.NodeStatus{})
			d.next()

			// A controller that starts under a wrong clock mends what it made.
			for _, at := range []time.Duration{off, 0} {
				if err := r.stop(); err != nil {
					t.Fatal(err)
				}
				c.set(at)
				r = startWith(t, controller.Config{DataDir: dir, Now: c.now})
			}
			e := r.session(t, "nva-1", cert)
			e.report(&v1.NodeStatus{})
			e.next()
		})
	}
}

// What was issued while the clock was ahead is renewed once it is right.
func TestCertificateFromTheFutureRenews(t *testing.T) {
	t.Parallel()
	c := &clock{}
	r := startWith(t, controller.Config{DataDir: t.TempDir() + "/data", Now: c.now})
	r.now = c.now
	r.operator().apply(t, samples(t)...)
	c.set(60 * day)
	cert := r.enrol("nva-1")
	c.set(day)
	a := r.session(t, "nva-1", cert)
	a.report(&v1.NodeStatus{})
	wants(t, "a session before the beginning", a.end(), connect.CodeUnauthenticated, "begins at")
	fresh, err := r.renew(t, cert, requestOf(t, cert))
	if err != nil {
		t.Fatal(err)
	}
	b := r.session(t, "nva-1", fresh)
	b.report(&v1.NodeStatus{})
	b.next()
	// Before the root there was nothing: that clock is the wrong one.
	c.set(-30 * day)
	r.now = func() time.Time { return time.Now().Add(day) }
	_, err = r.renew(t, fresh, requestOf(t, cert))
	wants(t, "before the root", err, connect.CodeUnauthenticated, "begins at")
}

func (o operator) revoke(t *testing.T, node, reason string) *v1.RevokeResponse {
	t.Helper()
	a, err := o.nodes.Revoke(t.Context(), connect.NewRequest(&v1.RevokeRequest{Node: node, Reason: reason}))
	if err != nil {
		t.Fatal(err)
	}
	return a.Msg
}

func tunnels(s received) int {
	n := 0
	for _, section := range s.state.Sections {
		for _, g := range section.Groups {
			n += len(g.Tunnels)
		}
	}
	return n
}

// Fault 6: whatever a revoked node still holds, it is out, and its peers know.
func TestRevocation(t *testing.T) {
	t.Parallel()
	dir := t.TempDir() + "/data"
	r := start(t, dir)
	o := r.operator()
	o.apply(t, samples(t)...)
	cert := r.enrol("nva-1")
	// One client, so that everything below goes over its open connection.
	nva, prem := r.session(t, "nva-1", cert), r.session(t, "prem-1", r.enrol("prem-1"))
	nva.report(&v1.NodeStatus{Tunnels: []*v1.TunnelStatus{tunnelUp(primary, key(1)), tunnelUp(secondary, key(2))}})
	prem.report(&v1.NodeStatus{})
	nva.next()
	for s := prem.next(); s.tunnel(t, primary).Pending(); s = prem.next() {
		if tunnels(s) != 2 {
			t.Fatalf("before there are %d tunnels", tunnels(s))
		}
	}
	token := o.token(t, "nva-1")

	began := time.Now()
	answer := o.revoke(t, "nva-1", "appliance stolen")
	wants(t, "the open stream", nva.end(), connect.CodePermissionDenied, "appliance stolen")
	cut := time.Since(began)
	s := prem.next()
	t.Logf("the stream was cut after %s, the peer had its state after %s", cut, time.Since(began))
	if tunnels(s) != 0 {
		t.Errorf("the peer's state still has %d tunnels", tunnels(s))
	}
	if len(s.state.Interfaces) == 0 {
		t.Error("the peer's circuit interfaces are not guarded any more")
	}
	if again := o.revoke(t, "nva-1", "another reason"); again.GetRevocation().GetReason() != "appliance stolen" || again.GetFingerprint() != answer.GetFingerprint() {
		t.Errorf("revoked again: %v", again)
	}
	out := func(when string) {
		t.Helper()
		_, err := r.renew(t, cert, requestOf(t, cert))
		wants(t, "renewal "+when, err, connect.CodePermissionDenied, "was revoked at")
		b := r.session(t, "nva-1", cert)
		b.report(&v1.NodeStatus{})
		wants(t, "session "+when, b.end(), connect.CodePermissionDenied, "was revoked at")
	}
	out("after it")
	_, request := newKey(t)
	_, err := r.agents(nil).Enrol(t.Context(), connect.NewRequest(&v1.EnrolRequest{Token: token, CertificateRequest: request}))
	wants(t, "an unused token", err, connect.CodeUnauthenticated, "the token is unknown")
	if n := o.nva(t); n.GetRevocation().GetBy() != "admin/default" || n.GetConnected() || len(n.GetProblems()) != 1 {
		t.Errorf("listed as %v", n)
	}
	if st := o.getStatus(t); !said(st, "node nva-1 is revoked") {
		t.Errorf("status: %v", st.GetConnections())
	}

	// Over a restart it stays so.
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = start(t, dir)
	o = r.operator()
	out("after a restart")

	// The node comes back with another key only, and with its peers' tunnels to
	// be keyed anew.
	token = o.token(t, "nva-1")
	_, err = r.agents(nil).Enrol(t.Context(), connect.NewRequest(&v1.EnrolRequest{Token: token, CertificateRequest: requestOf(t, cert)}))
	wants(t, "the revoked key with a new token", err, connect.CodePermissionDenied, "the token is still good")
	_, err = r.agents(nil).Enrol(t.Context(), connect.NewRequest(&v1.EnrolRequest{Token: token, CertificateRequest: request}))
	if err != nil {
		t.Fatalf("another key: %v", err)
	}
	prem = r.session(t, "prem-1", r.enrol("prem-1"))
	prem.report(&v1.NodeStatus{})
	if s := prem.next(); tunnels(s) != 2 || !s.tunnel(t, primary).Pending() {
		t.Error("the peer's tunnels are not back, or have the stolen host's keys")
	}
	out("after the node was enrolled anew")
	if log := r.log.String(); !strings.Contains(log, "renewal refused") {
		t.Error("refused renewals are not in the log")
	}
}

// A TLS session cannot be resumed, so that none outlives a revocation.
func TestNoResumption(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	r.operator().apply(t, samples(t)...)
	cert := r.enrol("nva-1")
	cache := tls.NewLRUClientSessionCache(8)
	for range 3 {
		c := r.client(cert, tls.X25519MLKEM768)
		config := c.Transport.(*http.Transport).TLSClientConfig
		config.ClientSessionCache = cache
		conn, err := tls.Dial("tcp", strings.TrimPrefix(r.url, "https://"), config)
		if err != nil {
			t.Fatal(err)
		}
		// Tickets come with the first bytes.
		_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		_, _ = conn.Read(make([]byte, 1))
		if conn.ConnectionState().DidResume {
			t.Error("a session was resumed")
		}
		_ = conn.Close()
	}
}

func TestDecommission(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	o := r.operator()
	o.apply(t, samples(t)...)
	cert := r.enrol("nva-1")
	nva, prem := r.session(t, "nva-1", cert), r.session(t, "prem-1", r.enrol("prem-1"))
	nva.report(&v1.NodeStatus{})
	prem.report(&v1.NodeStatus{})
	nva.next()
	prem.next()
	token := o.token(t, "nva-1")
	decommission := func(node string, with bool) (*v1.DecommissionResponse, error) {
		a, err := o.nodes.Decommission(t.Context(), connect.NewRequest(&v1.DecommissionRequest{Node: node, Reason: "site closed", WithEndpoints: with}))
		if err != nil {
			return nil, err
		}
		return a.Msg, nil
	}
	_, err := decommission("nva-2", true)
	wants(t, "an unknown node", err, connect.CodeNotFound, `did you mean "nva-1"?`)
	_, err = decommission("nva-1", false)
	wants(t, "a node in use", err, connect.CodeFailedPrecondition, "is in use by Endpoint/contoso/")
	gone, err := decommission("nva-1", true)
	if err != nil {
		t.Fatal(err)
	}
	if d := gone.GetDeleted(); len(d) != 3 || d[0] != "Node/nva-1" || !strings.HasPrefix(d[1], "Endpoint/contoso/") || d[2] != "Connection/contoso/hq-weu" {
		t.Errorf("deleted: %q", d)
	}
	told := `node "nva-1" was decommissioned at`
	wants(t, "its session", nva.end(), connect.CodePermissionDenied, told)
	if s := prem.next(); tunnels(s) != 0 {
		t.Errorf("the peer has %d tunnels", tunnels(s))
	}
	_, err = r.renew(t, cert, requestOf(t, cert))
	wants(t, "a renewal", err, connect.CodePermissionDenied, told)
	b := r.session(t, "nva-1", cert)
	b.report(&v1.NodeStatus{})
	wants(t, "another session", b.end(), connect.CodePermissionDenied, "circuitseal-agent remove")
	enrol := func() error {
		_, err := r.agents(nil).Enrol(t.Context(), connect.NewRequest(&v1.EnrolRequest{Token: token, CertificateRequest: requestOf(t, cert)}))
		return err
	}
	wants(t, "its token", enrol(), connect.CodeUnauthenticated, "its node was deleted")
	// A node of the same name is another one.
	o.apply(t, samples(t)...)
	wants(t, "its token for the new node", enrol(), connect.CodeUnauthenticated, "its node was deleted")
	_, err = r.renew(t, cert, requestOf(t, cert))
	wants(t, "a renewal at the new node", err, connect.CodePermissionDenied, told)

	// Deleting the document comes to the same.
	fresh := r.enrol("nva-1")
	for _, d := range []*v1.DeleteRequest{
		{Kind: "connection", Customer: "contoso", Name: "hq-weu"}, {Kind: "endpoint", Customer: "contoso", Name: strings.TrimPrefix(gone.GetDeleted()[1], "Endpoint/contoso/")}, {Kind: "node", Name: "nva-1"},
	} {
		if _, err := o.policy.Delete(t.Context(), connect.NewRequest(d)); err != nil {
			t.Fatal(err)
		}
	}
	_, err = r.renew(t, fresh, requestOf(t, fresh))
	wants(t, "a renewal after the document was deleted", err, connect.CodePermissionDenied, "its Node document was deleted")
}

// Fault 7: the first of two hosts stays, if it lives.
func TestTwoHostsWithOneKey(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	o := r.operator()
	o.apply(t, samples(t)...)
	cert := r.enrol("nva-1")
	owner := r.session(t, "nva-1", cert)
	owner.alive.Store(true)
	owner.report(&v1.NodeStatus{Version: "owner"})
	owner.next()
	for range 3 {
		thief := r.session(t, "nva-1", cert)
		thief.report(&v1.NodeStatus{Version: "thief", Tunnels: []*v1.TunnelStatus{tunnelUp(primary, key(9))}})
		// A guess at what the owner was asked is no answer.
		thief.send(&v1.SessionRequest{ProbeAnswer: slices.Repeat([]byte{1}, 16)})
		wants(t, "the second host", thief.end(), connect.CodeAlreadyExists, "another host uses the identity")
	}
	owner.report(&v1.NodeStatus{Version: "owner still"})
	eventually(t, "the owner's session goes on", func() bool {
		return o.getStatus(t).GetNodes()[0].GetStatus().GetVersion() == "owner still"
	})
	alarm := "two hosts use the identity of node nva-1: 127.0.0.1 has the session, and 127.0.0.1 was refused"
	// The owner has not said that it has applied its state, which is told first.
	if p := o.getStatus(t).GetNodes()[0].GetProblems(); len(p) != 2 || !strings.Contains(p[0], "has not applied state") || !strings.Contains(p[1], alarm) {
		t.Errorf("status says %q", p)
	}
	if p := o.nva(t).GetProblems(); len(p) != 1 || !strings.Contains(p[0], alarm) {
		t.Errorf("the list says %q", p)
	}
	if n := strings.Count(r.log.String(), "ALARM"); n != 1 {
		t.Errorf("%d alarms are in the log, want 1 a minute", n)
	}

	// Policy may want neither.
	text := strings.Replace(samples(t)[0].GetText(), "  name: nva-1\nspec:\n", "  name: nva-1\nspec:\n  onDuplicateIdentity: quarantine\n", 1)
	if !strings.Contains(text, "quarantine") {
		t.Fatalf("the samples look otherwise:\n%s", text)
	}
	o.apply(t, &v1.Source{Name: "q", Text: text})
	thief := r.session(t, "nva-1", cert)
	thief.report(&v1.NodeStatus{})
	wants(t, "the thief", thief.end(), connect.CodePermissionDenied, "two hosts used its identity at once")
	wants(t, "the owner", owner.end(), connect.CodePermissionDenied, "two hosts used its identity at once")
	if n := o.nva(t); n.GetRevocation().GetBy() != "controller" {
		t.Errorf("listed as %v", n)
	}
	// Whoever is the node is enrolled anew.
	back := r.session(t, "nva-1", r.enrol("nva-1"))
	back.report(&v1.NodeStatus{})
	back.next()
}

// Fault 5: who has a token gets what the token says, whatever it asks for.
func TestEnrolRefusesRequestsForMore(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	o := r.operator()
	o.apply(t, samples(t)...)
	token := o.token(t, "nva-1")
	private, _ := newKey(t)
	uri := func(s string) []*url.URL { u, _ := url.Parse(s); return []*url.URL{u} }
	for name, template := range map[string]*x509.CertificateRequest{
		"another node's name":  {Subject: pkix.Name{CommonName: "prem-1"}},
		"another node's URI":   {URIs: uri("spiffe://circuitseal/node/prem-1")},
		"administrator's URI":  {URIs: uri("spiffe://circuitseal/admin/default")},
		"state signer's URI":   {URIs: uri("spiffe://circuitseal/state-signer")},
		"a wildcard":           {DNSNames: []string{"*"}},
		"to be an authority":   {ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}}},
		"to sign certificates": {ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 15}, Critical: true, Value: []byte{0x03, 0x02, 0x01, 0x06}}}},
	} {
		der, err := x509.CreateCertificateRequest(rand.Reader, template, private)
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.agents(nil).Enrol(t.Context(), connect.NewRequest(&v1.EnrolRequest{Token: token, CertificateRequest: der}))
		wants(t, name, err, connect.CodeInvalidArgument, "certificate_request")
	}
	// None of them used the token up, and what it gives is the node's alone.
	good := requestOf(t, &tls.Certificate{PrivateKey: private})
	a, err := r.agents(nil).Enrol(t.Context(), connect.NewRequest(&v1.EnrolRequest{Token: token, CertificateRequest: good}))
	if err != nil {
		t.Fatal(err)
	}
	leaf := leafOf(t, &tls.Certificate{Certificate: a.Msg.GetCertificates()})
	if leaf.IsCA || len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://circuitseal/node/nva-1" || !leaf.PublicKey.(*ecdsa.PublicKey).Equal(&private.PublicKey) {
		t.Errorf("got a certificate for %v", leaf.URIs)
	}
}
