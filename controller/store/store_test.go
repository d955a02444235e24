package store

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// syncBuffer takes logs from several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func dataDir(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "data")
}

func start(t *testing.T, dir string) *Store {
	t.Helper()
	var log syncBuffer
	s, err := Open(t.Context(), Config{Dir: dir, Log: slog.New(slog.NewTextHandler(&log, nil)), Secrets: ring})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		for l := range strings.Lines(log.String()) {
			// What it warns of is mostly that the machine is slow, which says
			// nothing new of a test's.
			if strings.Contains(l, "level=ERROR") {
				t.Errorf("the engine logged: %s", l)
			}
		}
	})
	return s
}

func snapshot(t *testing.T, s *Store) *model.Snapshot {
	t.Helper()
	m, err := s.Snapshot(t.Context())
	if err != nil {
		t.Fatalf("Snapshot: %v", err)
	}
	return m
}

// write applies a change on the newest snapshot, keeping the numbers unless
// the change brings its own.
func write(t *testing.T, s *Store, c Change) uint64 {
	t.Helper()
	m := snapshot(t, s)
	if c.Numbers.Tunnels == nil {
		c.Numbers = m.Numbers
	}
	r, err := s.Write(t.Context(), m.Revision, c)
	if err != nil {
		t.Fatalf("Write: %v", err)
	}
	return r
}

func site(name, prefix string) model.Document {
	return model.Document{
		Key:  model.Key{Kind: model.KindSite, Customer: "contoso", Name: name},
		Spec: &model.SiteSpec{Type: model.SiteOnPremises, Prefixes: []netip.Prefix{netip.MustParsePrefix(prefix)}},
	}
}

func node(name string) model.Document {
	return model.Document{
		Key:  model.Key{Kind: model.KindNode, Name: name},
		Spec: &model.NodeSpec{Owner: model.OwnerProvider, Interfaces: []model.InterfaceSpec{{Name: "lan0", Role: model.RoleLAN}}},
	}
}

const (
	tunnelA = "contoso/hq-weu/er-ams/primary"
	tunnelB = "contoso/hq-weu/er-ams/secondary"
)

func numbers() model.Numbers {
	return model.Numbers{
		Tenants: map[string]uint32{"contoso": 1},
		Links:   map[string]uint16{"contoso/er-ams/primary": 1, "contoso/er-ams/secondary": 2},
		Groups:  map[string]uint32{"contoso/hq-weu": 1},
		Tunnels: map[string]uint16{tunnelA: 1, tunnelB: 2},
	}
}

// Who reads while an engine dies in a commit of its backend waits there for ever.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("go.etcd.io/etcd/server/v3/storage/backend.(*readTx).RLock"))
}

func TestSurvivesRestart(t *testing.T) {
	dir := dataDir(t)
	s := start(t, dir)
	if e := snapshot(t, s).Epoch; e != 1 {
		t.Errorf("epoch of a new store is %d, want 1", e)
	}
	write(t, s, Change{Put: []model.Document{site("hq", "10.1.0.0/16"), node("prem-1")}, Numbers: numbers()})
	key := desired.PublicKey{1, 2, 3}
	if err := s.PutKeys(t.Context(), "prem-1", map[string]desired.PublicKey{tunnelA: key, tunnelB: {}}); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, s)
	want := &model.Snapshot{
		Epoch: 1, Revision: before.Revision,
		Documents:  map[model.Key]model.Document{},
		Numbers:    numbers(),
		Keys:       map[model.TunnelEnd]desired.PublicKey{{Tunnel: tunnelA, Node: "prem-1"}: key},
		Enrolments: map[string]model.Enrolment{}, Revocations: map[model.Fingerprint]model.Revocation{},

		PresharedKeys: map[string]model.PresharedKeys{},
		Identities:    map[string]model.IdentityCertificates{}, Settled: map[string]model.Settled{},
	}
	for _, d := range []model.Document{site("hq", "10.1.0.0/16"), node("prem-1")} {
		d.Revision = before.Documents[d.Key].Revision
		if d.Revision == 0 || d.Revision > before.Revision {
			t.Errorf("%s has revision %d in a snapshot of revision %d", d.Key, d.Revision, before.Revision)
		}
		want.Documents[d.Key] = d
	}
	compare := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	addr := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if d := cmp.Diff(want, before, compare, addr); d != "" {
		t.Errorf("snapshot (-want +got):\n%s", d)
	}
	if again := snapshot(t, s); again != before {
		t.Error("an unchanged store made a second snapshot")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Snapshot(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Snapshot of a closed store: %v, want ErrClosed", err)
	}
	// Only the revision rises: another version may compile otherwise.
	after := *snapshot(t, start(t, dir))
	if after.Revision <= before.Revision {
		t.Errorf("revision %d after a restart, want more than %d", after.Revision, before.Revision)
	}
	after.Revision = before.Revision
	if d := cmp.Diff(before, &after, compare, addr); d != "" {
		t.Errorf("snapshot after a restart (-want +got):\n%s", d)
	}
}

// sockets lists every socket of this process, as the kernel has them.
func sockets(t *testing.T) map[string]bool {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	inodes := map[string]bool{}
	for _, fd := range fds {
		link, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if inode, ok := strings.CutPrefix(link, "socket:["); err == nil && ok {
			inodes[strings.TrimSuffix(inode, "]")] = true
		}
	}
	return inodes
}

func TestNoListener(t *testing.T) {
	before := sockets(t)
	s := start(t, dataDir(t))
	write(t, s, Change{Put: []model.Document{node("prem-1")}})
	for inode := range sockets(t) {
		if !before[inode] {
			for _, table := range []string{"tcp", "tcp6", "udp", "unix"} {
				b, err := os.ReadFile("/proc/self/net/" + table)
				if err != nil {
					t.Fatal(err)
				}
				for line := range strings.Lines(string(b)) {
					if strings.Contains(line, inode) {
						t.Errorf("%s: %s", table, line)
					}
				}
			}
			t.Errorf("the open store has socket %s", inode)
		}
	}
}

func TestRefusesDirectory(t *testing.T) {
	tests := []struct {
		name string
		prep func(t *testing.T, dir string)
		want string
	}{
		{"open to the group", func(t *testing.T, dir string) { mkdir(t, dir, 0o750) }, "mode 0750: others can reach"},
		{"open to the world", func(t *testing.T, dir string) { mkdir(t, dir, 0o701) }, "mode 0701: others can reach"},
		{"read-only", func(t *testing.T, dir string) { mkdir(t, dir, 0o500) }, "is read-only"},
		{"a file", func(t *testing.T, dir string) {
			if err := os.WriteFile(dir, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "is a file"},
		{"lock is a link", func(t *testing.T, dir string) {
			mkdir(t, dir, 0o700)
			if err := os.Symlink("/dev/null", filepath.Join(dir, "lock")); err != nil {
				t.Fatal(err)
			}
		}, "lock data directory"},
		{"no parent", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Dir(dir)); err != nil {
				t.Fatal(err)
			}
		}, "does not exist"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := dataDir(t)
			tt.prep(t, dir)
			_, err := Open(t.Context(), Config{Dir: dir, Log: slog.New(slog.DiscardHandler), Secrets: ring})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open: %v, want %q", err, tt.want)
			}
		})
	}
}

// A lock that another user has made is no read-only disk.
func TestLockOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("giving files away needs root")
		}
		t.Skip("giving files away needs root")
	}
	path := filepath.Join(t.TempDir(), "lock")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	refused := &fs.PathError{Op: "open", Path: path, Err: unix.EACCES}
	err := explainLock(filepath.Dir(path), path, refused)
	if !errors.Is(err, refused) || !strings.Contains(err.Error(), path+" belongs to user 65534") || strings.Contains(err.Error(), "read-only") {
		t.Errorf("got %v, want an error that names the lock's owner", err)
	}
}

func mkdir(t *testing.T, dir string, mode os.FileMode) {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, mode); err != nil {
		t.Fatal(err)
	}
}

func requireMount(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("mounting needs root")
	}
	t.Skip("mounting needs root")
}

func TestReadOnlyFileSystem(t *testing.T) {
	requireMount(t)
	dir := dataDir(t)
	mkdir(t, dir, 0o700)
	if err := unix.Mount("none", dir, "tmpfs", unix.MS_RDONLY, "mode=0700"); err != nil {
		t.Fatalf("mount tmpfs: %v", err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	_, err := Open(t.Context(), Config{Dir: dir, Log: slog.New(slog.DiscardHandler), Secrets: ring})
	if err == nil || !strings.Contains(err.Error(), "is read-only") {
		t.Errorf("Open: %v, want an error that says read-only", err)
	}
}

func TestDirectoryInUse(t *testing.T) {
	dir := dataDir(t)
	s := start(t, dir)
	_, err := Open(t.Context(), Config{Dir: dir, Log: slog.New(slog.DiscardHandler), Secrets: ring})
	want := fmt.Sprintf("in use by pid %d", os.Getpid())
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), want) {
		t.Errorf("second Open: %v, want ErrInUse and %q", err, want)
	}
	flags, err := unix.FcntlInt(s.lock.file.Fd(), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("lock file: flags %#x, error %v; want FD_CLOEXEC", flags, err)
	}
}

// TestFull fills a store of 1 MiB and takes it into use again.
func TestFull(t *testing.T) {
	dir := dataDir(t)
	c := Config{Dir: dir, Log: slog.New(slog.DiscardHandler), Secrets: ring}
	s, err := open(t.Context(), c, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	m := snapshot(t, s)
	for i := range 100 {
		d := model.Document{
			Key: model.Key{Kind: model.KindCustomer, Name: "contoso"},
			Spec: &model.CustomerSpec{
				DisplayName: strings.Repeat("x", 64<<10) + strconv.Itoa(i), Model: model.ConnectTo,
			},
		}
		if _, err = s.Write(t.Context(), m.Revision, Change{Put: []model.Document{d}}); err != nil {
			break
		}
		m = snapshot(t, s)
	}
	if !errors.Is(err, ErrFull) {
		t.Fatalf("Write to a full store: %v, want ErrFull", err)
	}
	full := snapshot(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = open(t.Context(), c, 1<<20); err != nil {
		t.Fatal(err)
	}
	after := snapshot(t, s)
	if d := cmp.Diff(full.Documents, after.Documents); d != "" {
		t.Errorf("documents after making room (-want +got):\n%s", d)
	}
	if _, err := s.Write(t.Context(), after.Revision, Change{Put: []model.Document{node("prem-1")}}); err != nil {
		t.Errorf("Write after making room: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestWarningsReachTheLog(t *testing.T) {
	var log syncBuffer
	c := slogCore{log: slog.New(slog.NewTextHandler(&log, nil))}
	lg := zap.New(c).With(zap.String("node", "n"))
	lg.Info("quiet")
	lg.Warn("exceeded recommended request limit")
	lg.Warn("94cb cannot campaign at term 1 since there are still pending configuration changes to apply")
	lg.Warn("Failed to detect schema version", zap.Error(errors.New("missing term information")))
	lg.Error("failed to update storage version", zap.Error(errors.New("etcdserver: server stopped")))
	lg.Warn("disk is slow", zap.String("path", "x"))
	lg.Error("disk is gone")
	got := regexp.MustCompile(`time=\S+ `).ReplaceAllString(log.String(), "")
	want := "level=WARN msg=\"etcd: disk is slow\" node=n path=x\nlevel=ERROR msg=\"etcd: disk is gone\" node=n\n"
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("log (-want +got):\n%s", d)
	}
}

// residentMiB is VmRSS in proc_pid_status(5).
func residentMiB(t testing.TB) float64 {
	t.Helper()
	f, err := os.Open("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if v, ok := strings.CutPrefix(sc.Text(), "VmRSS:"); ok {
			kib, err := strconv.Atoi(strings.Fields(v)[0])
			if err != nil {
				t.Fatal(err)
			}
			return float64(kib) / 1024
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

func TestThousandDocuments(t *testing.T) {
	s := start(t, dataDir(t))
	c := Change{Numbers: numbers()}
	for i := range 1000 {
		c.Put = append(c.Put, site(fmt.Sprintf("site-%d", i), fmt.Sprintf("10.%d.%d.0/24", i/256, i%256)))
	}
	began := time.Now()
	r := write(t, s, c)
	t.Logf("1,000 documents in %v; resident %.1f MiB", time.Since(began), residentMiB(t))
	m := snapshot(t, s)
	if len(m.Documents) != 1000 || m.Revision != r {
		t.Fatalf("snapshot has %d documents at revision %d, want 1000 at %d", len(m.Documents), m.Revision, r)
	}
	for k, d := range m.Documents {
		if d.Revision != r {
			t.Fatalf("%s has revision %d, want %d: one transaction", k, d.Revision, r)
		}
	}
	if again := write(t, s, c); again != r {
		t.Errorf("the same again made revision %d, want %d", again, r)
	}
	next := write(t, s, Change{Put: []model.Document{site("site-7", "10.99.0.0/24")}})
	after := snapshot(t, s)
	for k, d := range after.Documents {
		if k.Name == "site-7" {
			if d.Revision != next {
				t.Errorf("%s has revision %d, want %d", k, d.Revision, next)
			}
		} else if d.Spec != m.Documents[k].Spec {
			t.Fatalf("%s was decoded again", k)
		}
	}
}
