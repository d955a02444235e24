package controller_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"

	"github.com/circuitseal/circuitseal/controller"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// Each of these is one sentence that names the thing and what to do.
func TestRunSaysWhatToDo(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	taken := strings.TrimPrefix(r.url, "https://")
	readOnly := t.TempDir()
	if err := os.Chmod(readOnly, 0o500); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	exposed := t.TempDir()
	if err := os.Chmod(exposed, 0o755); err != nil { //nolint:gosec // that others can read it is the point
		t.Fatal(err)
	}
	orphaned := t.TempDir() + "/data"
	o := start(t, orphaned)
	o.operator().apply(t, samples(t)...)
	if err := errors.Join(o.stop(), os.RemoveAll(orphaned+"/pki")); err != nil {
		t.Fatal(err)
	}
	other := t.TempDir() + "/data"
	if err := start(t, other).stop(); err != nil {
		t.Fatal(err)
	}
	key, open := secretKey(t, t.TempDir()+"/d"), secretKey(t, t.TempDir()+"/d")
	if err := os.Chmod(open, 0o644); err != nil { //nolint:gosec // that others can read it is the point
		t.Fatal(err)
	}
	tests := []struct {
		name, dir, listen string
		key               string
		says              []string
	}{
		{"port in use", t.TempDir() + "/d", taken, key, []string{taken, "another process", "--listen"}},
		{"no such address", t.TempDir() + "/d", "192.0.2.1:8443", key, []string{"192.0.2.1:8443", "--listen"}},
		{"malformed address", t.TempDir() + "/d", "eight", key, []string{"eight", "--listen"}},
		{"directory in use", r.dir, "127.0.0.1:0", secretKey(t, r.dir), []string{r.dir, "in use by pid", "stop that", "--data-dir"}},
		{"directory read-only", readOnly, "127.0.0.1:0", key, []string{readOnly, "read-only", "--data-dir"}},
		{"directory is a file", file, "127.0.0.1:0", key, []string{file, "is a file", "name a directory with --data-dir"}},
		{"directory open to all", exposed, "127.0.0.1:0", key, []string{"mode 0755: others can reach its keys", "run `chmod 700 " + exposed + "`"}},
		{"authority lost", orphaned, "127.0.0.1:0", secretKey(t, orphaned), []string{orphaned + " holds policy and no certificate authority (" + orphaned + "/pki): restore it from a backup of the same time", "--restored"}},
		{"no parent", t.TempDir() + "/a/b", "127.0.0.1:0", key, []string{"/a/b", "--data-dir", "/a, does not exist", "make it"}},
		{"no directory named", "", "127.0.0.1:0", key, []string{"--data-dir is empty"}},
		{"no secret key", t.TempDir() + "/d", "127.0.0.1:0", "/nowhere/key", []string{"no secret key file /nowhere/key", "make one with `circuitseal-controller secret-key generate /nowhere/key`", "--secret-key-file"}},
		{"no secret key named", t.TempDir() + "/d", "127.0.0.1:0", "", []string{"--secret-key-file is empty"}},
		{"secret key in the data directory", other, "127.0.0.1:0", other + "/key", []string{other + "/key: it lies in " + other, "keep it elsewhere"}},
		{"secret key that others read", t.TempDir() + "/d", "127.0.0.1:0", open, []string{open + ": its mode 0644 lets others at it; make it 0600"}},
		{"another secret key", other, "127.0.0.1:0", key, []string{"another secret key's", key, "--secret-key-file", "nothing was changed"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			err := controller.Run(ctx, controller.Config{DataDir: tt.dir, SecretKeyFile: tt.key, Listen: tt.listen, Log: slog.New(slog.DiscardHandler)})
			if err == nil {
				t.Fatal("it ran")
			}
			for _, s := range tt.says {
				if !strings.Contains(err.Error(), s) {
					t.Errorf("%q does not say %q", err, s)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q is more than one line", err)
			}
		})
	}
}

// What is wrong with a name is found before anything is made.
func TestNamesAreCheckedFirst(t *testing.T) {
	t.Parallel()
	dir := t.TempDir() + "/data"
	err := controller.Run(t.Context(), controller.Config{DataDir: dir, SecretKeyFile: "/none", Listen: "127.0.0.1:0", Names: []string{"ok.example", "a_b"}, Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "--name") || !strings.Contains(err.Error(), `"a_b"`) {
		t.Errorf("it ended with %v", err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the data directory is there: %v", err)
	}
}

// Handshakes that never end do not keep out those who are quick.
func TestIdleHandshakes(t *testing.T) {
	if testing.Short() {
		t.Skip("opens many connections")
	}
	r := start(t, t.TempDir()+"/data")
	const idle = 10_000
	grown := peakDuring(func() {
		for range idle {
			c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", strings.TrimPrefix(r.url, "https://"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = c.Close() })
		}
		if got := call(t, r.client(r.admin()), r.url, "/circuitseal.v1.StatusService/GetStatus", false); got != "" {
			t.Errorf("with %d idle handshakes: %q", idle, got)
		}
	})
	if grown > 64<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
}

// Whoever has asked for something is no less a stranger: one makes way for
// those who come after it, and a connection with an identity stays.
func TestStrangersMakeWayForEachOther(t *testing.T) {
	if testing.Short() {
		t.Skip("opens many connections")
	}
	r := start(t, t.TempDir()+"/data")
	address := strings.TrimPrefix(r.url, "https://")
	dial := func(cert *tls.Certificate) *tls.Conn {
		t.Helper()
		config := &tls.Config{RootCAs: pool(r), MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}}
		if cert != nil {
			config.Certificates = []tls.Certificate{*cert}
		}
		c, err := tls.Dial("tcp", address, config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	// ask makes a call on a connection and reads the answer's first line.
	ask := func(c *tls.Conn) (string, error) {
		if _, err := io.WriteString(c, "POST /circuitseal.v1.StatusService/GetStatus HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"); err != nil {
			return "", err
		}
		a, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return "", err
		}
		_, err = io.Copy(io.Discard, a.Body)
		return a.Status, errors.Join(err, a.Body.Close())
	}
	// Agents and operators speak HTTP/2.
	second, reused := r.client(r.admin()), false
	trace := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused }})
	status := func() error {
		c := circuitsealv1connect.NewStatusServiceClient(second, r.url)
		_, err := c.GetStatus(trace, connect.NewRequest(&v1.GetStatusRequest{}))
		return err
	}
	if err := status(); err != nil {
		t.Fatal(err)
	}
	stranger, admin := dial(nil), dial(r.admin())
	if got, err := ask(stranger); !strings.HasPrefix(got, "401") {
		t.Fatalf("a stranger got %q, %v", got, err)
	}
	if got, err := ask(admin); !strings.HasPrefix(got, "200") {
		t.Fatalf("the administrator got %q, %v", got, err)
	}
	for range 1100 {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	if got, err := ask(admin); !strings.HasPrefix(got, "200") {
		t.Errorf("behind 1,100 strangers the administrator got %q, %v", got, err)
	}
	if err := status(); err != nil || !reused {
		t.Errorf("behind 1,100 strangers over HTTP/2: %v; the connection was kept: %v", err, reused)
	}
	// The last of the strangers may not have been accepted yet.
	eventually(t, "the first stranger makes way", func() bool { _, err := ask(stranger); return err != nil })
}

// Stopping cuts off whoever does not finish.
func TestStopsInTime(t *testing.T) {
	r := start(t, t.TempDir()+"/data")
	reader, writer := net.Pipe()
	defer func() { _ = writer.Close() }()
	q, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/circuitseal.v1.PolicyService/Apply", reader)
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Set("Content-Type", "application/json")
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		if a, err := r.client(r.admin()).Do(q); err == nil {
			_ = a.Body.Close()
		}
	}()
	if _, err := writer.Write([]byte("{")); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := r.stop(); err != nil {
		t.Errorf("it stopped with %v", err)
	}
	// Half of what the call itself may take: long enough for a busy machine.
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %s", took)
	}
	<-answered
}
