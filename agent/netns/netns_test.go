package netns_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/netns/netnstest"
)

func TestNames(t *testing.T) {
	for _, name := range []string{"", ".", "..", "../x", "a/b", "a\x00b", "-x", ".x", "a b", strings.Repeat("x", 64)} {
		if _, err := netns.Open(name); err == nil || !strings.Contains(err.Error(), "namespace name") {
			t.Errorf("Open(%q) = %v, want an error about the name", name, err)
		}
		if _, _, err := netns.Ensure(name); err == nil {
			t.Errorf("Ensure(%q) succeeded", name)
		}
		if err := netns.Remove(name); err == nil {
			t.Errorf("Remove(%q) succeeded", name)
		}
	}
}

func TestZero(t *testing.T) {
	var n netns.Namespace
	if n.FD() != -1 {
		t.Errorf("FD = %d, want -1", n.FD())
	}
	if err := n.Do(func() error { return nil }); err == nil {
		t.Error("Do in no namespace succeeded")
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

func TestLifecycle(t *testing.T) {
	netnstest.RequireRoot(t)
	name := netnstest.Name()
	if _, err := netns.Open(name); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("Open before Ensure = %v, want os.ErrNotExist", err)
	}
	first, made, err := netns.Ensure(name)
	if err != nil || !made {
		t.Fatalf("Ensure = made %t, %v", made, err)
	}
	defer func() { _ = first.Close() }()
	second, made, err := netns.Ensure(name)
	if err != nil || made {
		t.Fatalf("second Ensure = made %t, %v", made, err)
	}
	defer func() { _ = second.Close() }()
	wantSame(t, first, second, true)
	home, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = home.Close() }()
	wantSame(t, first, home, false)

	handle, err := first.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	links, err := handle.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Attrs().Name == "lo" && l.Attrs().RawFlags&unix.IFF_UP == 0 {
			t.Error("lo is down")
		}
	}

	for range 2 {
		if err := netns.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := netns.Open(name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open after Remove = %v, want os.ErrNotExist", err)
	}
}

func TestFileWithoutMountIsUsedAgain(t *testing.T) {
	_, _ = netnstest.New(t) // makes the directory
	name := netnstest.Name()
	path := filepath.Join(netns.Directory, name)
	if err := os.WriteFile(path, nil, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Remove(name); err != nil {
			t.Error(err)
		}
	})
	if _, err := netns.Open(name); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("Open of a plain file = %v, want os.ErrNotExist", err)
	}
	n, made, err := netns.Ensure(name)
	if err != nil || !made {
		t.Fatalf("Ensure = made %t, %v", made, err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

func TestEnsureAtOnce(t *testing.T) {
	netnstest.RequireRoot(t)
	name := netnstest.Name()
	t.Cleanup(func() {
		if err := netns.Remove(name); err != nil {
			t.Error(err)
		}
	})
	const callers = 16
	var (
		wg    sync.WaitGroup
		all   [callers]netns.Namespace
		makes [callers]bool
	)
	for i := range callers {
		wg.Go(func() {
			var err error
			if all[i], makes[i], err = netns.Ensure(name); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	made := 0
	for i := range callers {
		if makes[i] {
			made++
		}
		wantSame(t, all[0], all[i], true)
	}
	for _, n := range all {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	if made != 1 {
		t.Errorf("%d callers made the namespace, want 1", made)
	}
}

func TestDo(t *testing.T) {
	_, n := netnstest.New(t)
	home, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = home.Close() }()
	problem := errors.New("problem")
	for range 100 {
		err := n.Do(func() error {
			inside, err := netns.Current()
			if err != nil {
				return err
			}
			defer func() { _ = inside.Close() }()
			wantSame(t, inside, n, true)
			return problem
		})
		if !errors.Is(err, problem) {
			t.Fatalf("Do = %v, want f's error", err)
		}
		outside, err := netns.Current()
		if err != nil {
			t.Fatal(err)
		}
		wantSame(t, outside, home, true)
		_ = outside.Close()
	}
	process, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	thread, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(process, thread) {
		t.Error("the first thread was left in another namespace")
	}
}

func TestNetlinkStaysInside(t *testing.T) {
	_, n := netnstest.New(t)
	handle, err := n.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "cst0"}, PeerName: "cst1"}
	if err := handle.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	outside, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	if _, err := outside.LinkByName("cst0"); err == nil {
		t.Error("the device was made outside the namespace")
	}
}

func wantSame(t *testing.T, a, b netns.Namespace, want bool) {
	t.Helper()
	got, err := a.Same(b)
	if err != nil {
		t.Error(err)
	} else if got != want {
		t.Errorf("Same = %t, want %t", got, want)
	}
}
