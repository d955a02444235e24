package powercut_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/circuitseal/circuitseal/controller"
	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/controller/pki"
	"github.com/circuitseal/circuitseal/controller/store"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
)

// subjectEnv makes this test binary a controller with that data directory: it
// maps files of the disk into memory, so it is another process than the disk's.
const subjectEnv = "CIRCUITSEAL_POWERCUT_CONTROLLER"

// thoroughEnv asks for every cut instead of a sample.
const thoroughEnv = "CIRCUITSEAL_POWERCUT_ALL"

func TestMain(m *testing.M) {
	if dir := os.Getenv(subjectEnv); dir != "" {
		if err := subject(dir); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// subject is a controller until its input ends.
func subject(dir string) error {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		cancel()
	}()
	elsewhere, err := os.MkdirTemp("", "circuitseal-powercut-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(elsewhere) }()
	key := filepath.Join(elsewhere, "key")
	if err := os.WriteFile(key, []byte(secretKey), 0o600); err != nil {
		return err
	}
	return controller.Run(ctx, controller.Config{
		DataDir: dir, SecretKeyFile: key, Listen: "127.0.0.1:0", Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Ready: func(a net.Addr, _ string) { fmt.Println("ready", a) },
	})
}

// apart is a controller in a process of its own.
type apart struct {
	policy circuitsealv1connect.PolicyServiceClient
	// wait waits for its end and says what it printed last; end stops it first.
	wait, end func() (string, error)
}

func startApart(t *testing.T, dir string) apart {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), subjectEnv+"="+dir)
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Scan()
	address, ok := strings.CutPrefix(lines.Text(), "ready ")
	if !ok {
		t.Fatalf("the controller did not start: %s", lines.Text())
	}
	identity, err := os.ReadFile(filepath.Join(dir, "admin/identity.pem"))
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(identity, identity)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	root, err := os.ReadFile(filepath.Join(dir, "admin/root.pem"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(root)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(cert)
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, Certificates: []tls.Certificate{pair}}}
	wait := func() (string, error) {
		last := ""
		for lines.Scan() {
			last = lines.Text()
		}
		return last, cmd.Wait()
	}
	return apart{
		policy: circuitsealv1connect.NewPolicyServiceClient(&http.Client{Transport: transport, Timeout: time.Minute}, "https://"+address),
		wait:   wait,
		end: func() (string, error) {
			transport.CloseIdleConnections()
			_ = in.Close()
			return wait()
		},
	}
}

func (a apart) apply(t *testing.T, i int) error {
	t.Helper()
	_, err := a.policy.Apply(t.Context(), connect.NewRequest(&v1.ApplyRequest{Sources: []*v1.Source{{Name: "x", Text: fmt.Sprintf(`
apiVersion: circuitseal.io/v1
kind: Customer
metadata: {name: contoso}
spec: {displayName: "number %d", model: connect-to}
`, i)}}}))
	return err
}

// A controller starts again wherever the power was cut, its first start
// included, and has what it has acknowledged. A sample of the cuts is tried, or
// all of them with thoroughEnv.
func TestController(t *testing.T) {
	d := mount(t)
	data := filepath.Join(d.Path, "data")
	c := startApart(t, data)
	var begun, kept []promise
	for i := 1; i <= 8; i++ {
		begun = append(begun, promise{d.Mark(), i})
		if err := c.apply(t, i); err != nil {
			t.Fatal(err)
		}
		kept = append(kept, promise{d.Mark(), i})
	}
	if last, err := c.end(); err != nil {
		t.Fatalf("stop: %v: %s", err, last)
	}

	every := max(1, d.Mark()/5)
	if os.Getenv(thoroughEnv) != "" {
		every = 1
	}
	if bad := atEveryCut(t, d, begun, kept, every, func(dir string, kept, begun int) error {
		return startAgain(t, filepath.Join(dir, "data"), kept, begun)
	}); bad > 0 {
		t.Errorf("%d bad cuts after %d operations, every %dth tried", bad, d.Mark(), every)
	}
}

// startAgain opens what a controller opens at its start.
func startAgain(t *testing.T, data string, kept, begun int) error {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	if err := os.MkdirAll(filepath.Dir(data), 0o700); err != nil {
		return err
	}
	s, err := store.Open(t.Context(), store.Config{Dir: data, Log: log, Secrets: ring})
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	defer func() { _ = s.Close() }()
	snapshot, err := s.Snapshot(t.Context())
	if err != nil {
		return err
	}
	if _, err := pki.Open(pki.Config{Dir: data, Log: log, Secrets: ring, Needed: len(snapshot.Documents) > 0}); err != nil {
		return fmt.Errorf("open authority: %w", err)
	}
	have := 0
	if c, ok := model.Lookup[*model.CustomerSpec](snapshot.Documents, model.Key{Kind: model.KindCustomer, Name: "contoso"}); ok {
		if _, err := fmt.Sscanf(c.DisplayName, "number %d", &have); err != nil {
			return fmt.Errorf("torn: %q", c.DisplayName)
		}
	}
	if have < kept || have > begun {
		return fmt.Errorf("has %d, acknowledged %d, received %d", have, kept, begun)
	}
	return nil
}

// A disk that is full, read-only or broken: a clear error, and nothing that was
// acknowledged is lost.
func TestControllerOnABadDisk(t *testing.T) {
	want := map[string]syscall.Errno{"full": syscall.ENOSPC, "read-only": syscall.EROFS, "broken": syscall.EIO}
	for name, fault := range faults() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := mount(t)
			data := filepath.Join(d.Path, "data")
			c := startApart(t, data)
			if err := c.apply(t, 1); err != nil {
				t.Fatal(err)
			}
			d.Fail(fault)
			for i := 2; i <= 3; i++ {
				if err := c.apply(t, i); err == nil {
					t.Error("a change was acknowledged that nobody has kept")
				} else if text := err.Error(); i == 3 && (!strings.Contains(text, "nothing was changed") || !strings.Contains(text, want[name].Error())) {
					t.Errorf("apply: %v", err)
				}
			}
			// Reading goes on.
			r, err := c.policy.Get(t.Context(), connect.NewRequest(&v1.GetRequest{Kind: "Customer"}))
			if err != nil || len(r.Msg.GetDocuments()) != 1 || r.Msg.GetDocuments()[0].GetSpec().GetFields()["displayName"].GetStringValue() != "number 1" {
				t.Errorf("get: %v, %v", r, err)
			}
			// With a disk that works, it ends so that it is started anew.
			d.Fail(nil)
			if last, err := c.wait(); err == nil || !strings.Contains(last, want[name].Error()) {
				t.Errorf("it ended with %v: %s", err, last)
			}
			// This process serves the disk, and may not map what is on it.
			if err := startAgain(t, filepath.Join(d.Backing, "data"), 1, 2); err != nil {
				t.Error(err)
			}
		})
	}
}
