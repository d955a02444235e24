package controller_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// foreign is a certificate that claims to be something, by a CA of its own.
func foreign(t *testing.T, uri string) *tls.Certificate {
	t.Helper()
	issue := func(template, parent *x509.Certificate, public any, signer any) []byte {
		der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "foreign"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, URIs: []*url.URL{u},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	return &tls.Certificate{
		Certificate: [][]byte{issue(leaf, ca, &key.PublicKey, caKey), issue(ca, ca, &caKey.PublicKey, caKey)},
		PrivateKey:  key,
	}
}

// call makes a call with an empty message and returns the answer's code.
func call(t *testing.T, c *http.Client, at, procedure string, stream bool) string {
	t.Helper()
	contentType, body := "application/json", "{}"
	if stream {
		// An enveloped empty message, then the end.
		contentType, body = "application/connect+json", "\x00\x00\x00\x00\x02{}"
	}
	q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, at+procedure, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Content-Type", contentType)
	r, err := c.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	if stream {
		if len(b) < 5 {
			t.Fatalf("%s: the answer is %q", procedure, b)
		}
		var end struct{ Error struct{ Code string } }
		if err := json.Unmarshal(b[5:], &end); err != nil {
			t.Fatalf("%s: the answer is %q: %v", procedure, b, err)
		}
		return end.Error.Code
	}
	var answer struct{ Code, Message string }
	if r.StatusCode != http.StatusOK {
		if err := json.Unmarshal(b, &answer); err != nil {
			t.Fatalf("%s: the answer is %q: %v", procedure, b, err)
		}
		if answer.Message == "" {
			t.Errorf("%s: %s without a message", procedure, answer.Code)
		}
	}
	return answer.Code
}

func TestWhoMayCallWhat(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	r.operator().apply(t, samples(t)...)
	clients := map[string]*http.Client{
		"nobody":        r.client(nil),
		"node":          r.client(r.enrol("nva-1")),
		"admin":         r.client(r.admin()),
		"foreign admin": r.client(foreign(t, "spiffe://circuitseal/admin/default")),
		"foreign node":  r.client(foreign(t, "spiffe://circuitseal/node/nva-1")),
	}
	const (
		no     = "unauthenticated"
		denied = "permission_denied"
		bad    = "invalid_argument"
	)
	// What an empty message gets where the caller may call.
	operator := func(code string) map[string]string {
		return map[string]string{"nobody": no, "node": denied, "admin": code, "foreign admin": no, "foreign node": no}
	}
	want := map[string]map[string]string{
		"/circuitseal.v1.AgentService/Enrol":   {"nobody": bad, "node": bad, "admin": bad, "foreign admin": bad, "foreign node": bad},
		"/circuitseal.v1.AgentService/Renew":   {"nobody": no, "node": bad, "admin": denied, "foreign admin": no, "foreign node": no},
		"/circuitseal.v1.AgentService/Session": {"nobody": no, "node": bad, "admin": denied, "foreign admin": no, "foreign node": no},
		"/circuitseal.v1.PolicyService/Apply":  operator(bad),
		"/circuitseal.v1.PolicyService/Get":    operator(bad),
		"/circuitseal.v1.PolicyService/Delete": operator(bad),
		"/circuitseal.v1.PolicyService/Watch":  operator(bad),
		// Nothing is missing of nothing.
		"/circuitseal.v1.PolicyService/MissingChunks":     operator(""),
		"/circuitseal.v1.PolicyService/PutChunk":          operator(bad),
		"/circuitseal.v1.PolicyService/GetChunk":          operator(bad),
		"/circuitseal.v1.NodeService/CreateToken":         operator(bad),
		"/circuitseal.v1.NodeService/ListNodes":           operator(""),
		"/circuitseal.v1.NodeService/Revoke":              operator(bad),
		"/circuitseal.v1.NodeService/Decommission":        operator(bad),
		"/circuitseal.v1.KeyService/ListKeys":             operator(""),
		"/circuitseal.v1.ProfileService/ListProfiles":     operator(""),
		"/circuitseal.v1.GatewayService/DescribeGateway":  operator(bad),
		"/circuitseal.v1.GatewayService/RotateGatewayKey": operator(bad),
		"/circuitseal.v1.StatusService/GetStatus":         operator(""),
		"/circuitseal.v1.PlanService/Plan":                operator(bad),
	}
	protoregistry.GlobalFiles.RangeFilesByPackage("circuitseal.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				procedure := fmt.Sprintf("/%s/%s", s.FullName(), m.Name())
				if want[procedure] == nil {
					t.Errorf("%s: this test does not say who may call it", procedure)
				}
				for who, code := range want[procedure] {
					if got := call(t, clients[who], r.url, procedure, m.IsStreamingClient() || m.IsStreamingServer()); got != code {
						t.Errorf("%s by %s: %q, want %q", procedure, who, got, code)
					}
				}
			}
		}
		return true
	})
}

func TestPathsAreTakenAsTheyCome(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	c := r.client(r.admin())
	for _, path := range []string{
		"/", "/x", "//circuitseal.v1.StatusService/GetStatus", "/circuitseal.v1.StatusService/GetStatus/",
		"/circuitseal.v1.statusservice/getstatus", "/CIRCUITSEAL.V1.StatusService/GetStatus",
		"/x/../circuitseal.v1.StatusService/GetStatus", "/circuitseal.v1.StatusService/../StatusService/GetStatus",
		"/circuitseal.v1.StatusService/%47etStatus", "/circuitseal.v1.StatusService%2fGetStatus",
		"/circuitseal.v1.StatusService/GetStatus%00", "/circuitseal.v1.StatusService",
		"/circuitseal.v1.StatusService/Nothing", "/circuitseal.v2.StatusService/GetStatus",
		"/circuitseal.v1.StatusServiceGetStatus",
	} {
		if got := call(t, c, r.url, path, false); got != "unimplemented" {
			t.Errorf("%s: %q, want unimplemented", path, got)
		}
	}
	// HTTP/1.1 takes a path without a slash as it comes.
	conn, err := tls.Dial("tcp", strings.TrimPrefix(r.url, "https://"), &tls.Config{RootCAs: pool(r), MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "POST circuitseal.v1.StatusService/GetStatus HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 400") {
		t.Errorf("no slash: %q, %v", b, err)
	}
}

func pool(r *running) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(r.root)
	return p
}

func TestAgentServiceWantsTheQuantumSafeCurve(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	classic := r.client(r.admin(), tls.X25519)
	for procedure, want := range map[string]string{
		"/circuitseal.v1.AgentService/Enrol":      "failed_precondition",
		"/circuitseal.v1.StatusService/GetStatus": "",
	} {
		if got := call(t, classic, r.url, procedure, false); got != want {
			t.Errorf("%s over X25519: %q, want %q", procedure, got, want)
		}
	}
	if got := call(t, classic, r.url, "/circuitseal.v1.AgentService/Session", true); got != "failed_precondition" {
		t.Errorf("Session over X25519: %q", got)
	}
}
