package store

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/desired"
	"github.com/circuitseal/circuitseal/proto/sealed"
)

const (
	lineA = "cskey1.1700000000.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE"
	lineB = "cskey1.1700000001.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAI"
)

var ring = mustRing(lineA)

func mustRing(lines ...string) *sealed.Ring {
	r, err := sealed.Parse([]byte(strings.Join(lines, "\n")))
	if err != nil {
		panic(err)
	}
	return r
}

func generation(n uint64, b byte) model.PresharedGeneration {
	return model.PresharedGeneration{
		PresharedKey: desired.PresharedKey{Generation: n, Key: desired.Secret(bytes.Repeat([]byte{'k', b}, 16))},
		Made:         time.Unix(int64(n), 0).UTC(),
	}
}

func steady(g ...model.PresharedGeneration) model.PresharedKeys {
	return model.PresharedKeys{Phase: model.PresharedSteady, Keys: g}
}

func preshared(t *testing.T, s *Store, keys map[string]model.PresharedKeys) {
	t.Helper()
	if err := s.PutPreshared(t.Context(), keys); err != nil {
		t.Fatal(err)
	}
}

func TestPresharedKeysSurvive(t *testing.T) {
	dir := dataDir(t)
	s := start(t, dir)
	write(t, s, Change{Numbers: numbers()})
	before := snapshot(t, s)
	preshared(t, s, map[string]model.PresharedKeys{tunnelA: steady(generation(1, 1)), tunnelB: steady(generation(1, 2))})
	now := snapshot(t, s)
	if now.Revision <= before.Revision || now.PresharedKeys[tunnelA].Revision == 0 {
		t.Fatalf("revision %d then %d, the record's %d", before.Revision, now.Revision, now.PresharedKeys[tunnelA].Revision)
	}
	next := now.PresharedKeys[tunnelA]
	next.Phase, next.Keys = model.PresharedPrepare, append(next.Keys[:1:1], generation(2, 3))
	preshared(t, s, map[string]model.PresharedKeys{tunnelA: next})

	// Decided on what has changed, on nothing, for no tunnel, of no sense.
	conflicts := map[string]map[string]model.PresharedKeys{
		"changed":   {tunnelA: next},
		"made":      {tunnelB: steady(generation(5, 5))},
		"no tunnel": {"contoso/old/er-ams/primary": steady(generation(1, 1))},
	}
	for name, keys := range conflicts {
		if err := s.PutPreshared(t.Context(), keys); !errors.Is(err, ErrConflict) {
			t.Errorf("%s: %v, want ErrConflict", name, err)
		}
	}
	bad := snapshot(t, s).PresharedKeys[tunnelB]
	bad.Phase = model.PresharedActivate
	if err := s.PutPreshared(t.Context(), map[string]model.PresharedKeys{tunnelB: bad}); err == nil || errors.Is(err, ErrConflict) {
		t.Errorf("a phase that does not fit: %v", err)
	}

	want := snapshot(t, s).PresharedKeys
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	got := snapshot(t, start(t, dir)).PresharedKeys
	if d := cmp.Diff(want, got, cmp.Comparer(desired.Secret.Equal)); d != "" {
		t.Errorf("keys after a restart (-want +got):\n%s", d)
	}
}

func TestPresharedKeysGoWithTheirTunnel(t *testing.T) {
	s := start(t, dataDir(t))
	write(t, s, Change{Numbers: numbers()})
	preshared(t, s, map[string]model.PresharedKeys{tunnelA: steady(generation(1, 1)), tunnelB: steady(generation(1, 2))})
	fewer := numbers()
	delete(fewer.Tunnels, tunnelB)
	write(t, s, Change{Numbers: fewer})
	if got := snapshot(t, s).PresharedKeys; len(got) != 1 || len(got[tunnelA].Keys) != 1 {
		t.Errorf("after a tunnel went: %v", got)
	}
}

func TestPresharedKeysAreNotOnDisk(t *testing.T) {
	dir := dataDir(t)
	s := start(t, dir)
	write(t, s, Change{Numbers: numbers()})
	key := generation(1, 7)
	preshared(t, s, map[string]model.PresharedKeys{tunnelA: steady(key)})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	found := false
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, form := range []string{string(key.Key[:]), hex.EncodeToString(key.Key[:]), base64.StdEncoding.EncodeToString(key.Key[:])} {
			if bytes.Contains(b, []byte(form)) {
				t.Errorf("%s has a pre-shared key", path)
			}
		}
		found = found || bytes.Contains(b, []byte(presharedKey(tunnelA)))
		return nil
	})
	if err != nil || !found {
		t.Errorf("the record was not looked at: found %t, %v", found, err)
	}
}

// A ring of another key is refused, nothing is written, and the right one opens
// the store after that.
func TestAnotherSecretKey(t *testing.T) {
	dir := dataDir(t)
	s := start(t, dir)
	write(t, s, Change{Numbers: numbers()})
	preshared(t, s, map[string]model.PresharedKeys{tunnelA: steady(generation(1, 1))})
	want := snapshot(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	quiet := slog.New(slog.DiscardHandler)
	if _, err := Open(t.Context(), Config{Dir: dir, Log: quiet, Secrets: mustRing(lineB)}); !errors.Is(err, ErrSecretKey) {
		t.Fatalf("opened with another key: %v", err)
	}
	both, err := Open(t.Context(), Config{Dir: dir, Log: quiet, Secrets: mustRing(lineB, lineA)})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want.PresharedKeys[tunnelA].Keys, snapshot(t, both).PresharedKeys[tunnelA].Keys, cmp.Comparer(desired.Secret.Equal)); d != "" {
		t.Errorf("keys with a new key before the old (-want +got):\n%s", d)
	}
	if got := snapshot(t, both); got.Revision < got.PresharedKeys[tunnelA].Revision {
		t.Errorf("what was sealed anew is newer (%d) than the snapshot (%d): nodes never acknowledge it", got.PresharedKeys[tunnelA].Revision, got.Revision)
	}
	if err := both.Close(); err != nil {
		t.Fatal(err)
	}
	// The old key is of no use any more, and not needed.
	if _, err := Open(t.Context(), Config{Dir: dir, Log: quiet, Secrets: ring}); !errors.Is(err, ErrSecretKey) {
		t.Errorf("the old key still opens the store: %v", err)
	}
	alone, err := Open(t.Context(), Config{Dir: dir, Log: quiet, Secrets: mustRing(lineB)})
	if err != nil {
		t.Fatal(err)
	}
	if err := alone.Close(); err != nil {
		t.Error(err)
	}
}

// Blobs that somebody who can write to the disk has moved are found out.
func TestPresharedKeysCannotBeSwapped(t *testing.T) {
	s := start(t, dataDir(t))
	write(t, s, Change{Numbers: numbers()})
	preshared(t, s, map[string]model.PresharedKeys{tunnelA: steady(generation(1, 1)), tunnelB: steady(generation(1, 2))})
	r, err := s.get(t.Context(), presharedKey(tunnelA))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"another tunnel's":   string(r.Kvs[0].Value),
		"another generation": strings.Replace(string(r.Kvs[0].Value), `"generation":1`, `"generation":2`, 1),
	} {
		to := tunnelB
		if name == "another generation" {
			to = tunnelA
		}
		if _, err := s.txn(t.Context(), nil, []clientv3.Op{clientv3.OpPut(presharedKey(to), value), clientv3.OpPut(changedKey, "")}, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Snapshot(t.Context()); !errors.Is(err, sealed.ErrDamaged) {
			t.Errorf("%s: %v, want ErrDamaged", name, err)
		}
	}
}
