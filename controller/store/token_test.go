package store

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/circuitseal/circuitseal/controller/model"
)

func issuer(serial string) func(string) (Issued, error) {
	return func(node string) (Issued, error) {
		return Issued{
			Enrolment:    model.Enrolment{Serial: serial, Expires: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)},
			Certificates: [][]byte{[]byte("leaf of " + node + " " + serial), []byte("intermediate")},
		}, nil
	}
}

func TestRedeem(t *testing.T) {
	now := time.Now()
	token := func(id string, hash byte, life time.Duration) Token {
		return Token{ID: id, Hash: [32]byte{hash}, Node: "prem-1", Expires: now.Add(life)}
	}
	ask := func(id string, hash, spki byte, after time.Duration) Redemption {
		return Redemption{ID: id, Hash: [32]byte{hash}, SPKI: [32]byte{spki}, Now: now.Add(after)}
	}
	s := start(t, dataDir(t))
	if err := s.PutToken(t.Context(), token("token001", 1, time.Hour)); !errors.Is(err, ErrUnknownNode) {
		t.Errorf("token of an unknown node: %v, want ErrUnknownNode", err)
	}
	write(t, s, Change{Put: []model.Document{node("prem-1")}})
	put := func(tok Token) {
		t.Helper()
		if err := s.PutToken(t.Context(), tok); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(name string, q Redemption, want error) {
		t.Helper()
		_, _, err := s.Redeem(t.Context(), q, func(string) (Issued, error) {
			t.Errorf("%s: a certificate was issued", name)
			return Issued{}, nil
		})
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	put(token("token001", 1, time.Hour))
	if err := s.PutToken(t.Context(), token("token001", 2, time.Hour)); err == nil {
		t.Error("an id was taken twice")
	}
	for _, id := range []string{"", "..", "../epoch", "token001/", "TOKEN001", "tok\x00n001"} {
		refused("malformed id", ask(id, 1, 1, 0), ErrTokenUnknown)
		if err := s.PutToken(t.Context(), token(id, 1, time.Hour)); err == nil {
			t.Errorf("token id %q was taken", id)
		}
	}
	refused("unknown", ask("token999", 1, 1, 0), ErrTokenUnknown)
	refused("other secret", ask("token001", 2, 1, 0), ErrTokenUnknown)
	other := ask("token001", 1, 1, 0)
	other.Node = "nva-1"
	refused("another node", other, ErrOtherNode)
	if name, _, _ := s.Redeem(t.Context(), other, nil); name != "prem-1" {
		t.Errorf("the token is for %q, want prem-1", name)
	}
	refused("too late", ask("token001", 1, 1, time.Hour), ErrTokenExpired)

	before := snapshot(t, s)
	boom := errors.New("boom")
	if _, _, err := s.Redeem(t.Context(), ask("token001", 1, 1, 0), func(string) (Issued, error) { return Issued{}, boom }); !errors.Is(err, boom) {
		t.Errorf("issuing failed: %v", err)
	}
	if snapshot(t, s) != before {
		t.Error("tokens or a failed attempt made a new snapshot")
	}
	name, got, err := s.Redeem(t.Context(), ask("token001", 1, 7, 0), issuer("aa"))
	want, _ := issuer("aa")("prem-1")
	want.Key = model.FingerprintOf([32]byte{7})
	if err != nil || name != "prem-1" {
		t.Fatalf("Redeem: node %q, %v", name, err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("issued (-want +got):\n%s", d)
	}
	if d := cmp.Diff(map[string]model.Enrolment{"prem-1": want.Enrolment}, snapshot(t, s).Enrolments); d != "" {
		t.Errorf("enrolments (-want +got):\n%s", d)
	}
	refused("other key", ask("token001", 1, 8, 0), ErrTokenUsed)
	refused("other secret after use", ask("token001", 2, 7, 0), ErrTokenUnknown)
	other.SPKI = [32]byte{7}
	refused("another node after use", other, ErrOtherNode)
	name, got, err = s.Redeem(t.Context(), ask("token001", 1, 7, time.Minute), issuer("bb"))
	if d := cmp.Diff(want, got); d != "" || err != nil || name != "prem-1" {
		t.Errorf("the same key again: node %q, %v (-want +got):\n%s", name, err, d)
	}
	refused("same key too late", ask("token001", 1, 7, 2*time.Hour), ErrTokenExpired)

	// A newer token voids an unused one and leaves a used one's retry alone.
	put(token("token002", 2, time.Hour))
	put(token("token003", 3, time.Hour))
	refused("voided", ask("token002", 2, 9, 0), ErrTokenUnknown)
	if _, _, err := s.Redeem(t.Context(), ask("token001", 1, 7, time.Minute), issuer("cc")); err != nil {
		t.Errorf("the same key after a newer token: %v", err)
	}
	if _, _, err := s.Redeem(t.Context(), ask("token003", 3, 9, 0), issuer("dd")); err != nil {
		t.Fatal(err)
	}
	refused("its enrolment is not the node's any more", ask("token001", 1, 7, time.Minute), ErrTokenUsed)

	// Deleting the node voids its token for good, and its enrolment.
	put(token("token004", 4, time.Hour))
	write(t, s, Change{Delete: []model.Key{node("prem-1").Key}})
	if e := snapshot(t, s).Enrolments; len(e) != 0 {
		t.Errorf("a deleted node has enrolments: %v", e)
	}
	write(t, s, Change{Put: []model.Document{node("prem-1")}})
	for _, id := range []string{"token003", "token004"} {
		_, _, err := s.Redeem(t.Context(), ask(id, id[7]-'0', 9, 0), issuer("ee"))
		if !errors.Is(err, ErrTokenUnknown) && !errors.Is(err, ErrTokenUsed) {
			t.Errorf("%s of a deleted node: %v", id, err)
		}
	}

	// Collected: voided tokens at once, expired ones after a day.
	put(token("token005", 5, -2*expiredKept))
	put(token("token006", 6, -time.Hour))
	if err := s.collect(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	refused("long expired", ask("token005", 5, 1, 0), ErrTokenUnknown)
	refused("just expired", ask("token006", 6, 1, 0), ErrTokenExpired)
	if err := s.collect(t.Context(), now.Add(2*expiredKept+time.Hour)); err != nil {
		t.Fatal(err)
	}
	for _, prefix := range []string{tokensRoot, redeemRoot} {
		r, err := s.client.Get(t.Context(), prefix, clientv3.WithPrefix())
		if err != nil {
			t.Fatal(err)
		}
		for _, kv := range r.Kvs {
			t.Errorf("left: %s %s", kv.Key, kv.Value)
		}
	}
}

// tokenRounds is how many tokens are raced for; `make test-tokens` says 10000.
func tokenRounds(t *testing.T) int {
	if testing.Short() {
		return 5
	}
	v := os.Getenv("CIRCUITSEAL_TOKEN_ROUNDS")
	if v == "" {
		return 100
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 {
		t.Fatalf("CIRCUITSEAL_TOKEN_ROUNDS is %q, want a number", v)
	}
	return n
}

// TestOneTokenManyClients is a race for each of many tokens.
func TestOneTokenManyClients(t *testing.T) {
	const clients = 64
	tokens := tokenRounds(t)
	s := start(t, dataDir(t))
	write(t, s, Change{Put: []model.Document{node("prem-1")}})
	for n := range tokens {
		tok := Token{ID: fmt.Sprintf("token%05d", n), Hash: [32]byte{byte(n)}, Node: "prem-1", Expires: time.Now().Add(time.Hour)}
		if err := s.PutToken(t.Context(), tok); err != nil {
			t.Fatal(err)
		}
		var won, used atomic.Int64
		var serial atomic.Value
		gate := make(chan struct{})
		var wg sync.WaitGroup
		for c := range clients {
			wg.Go(func() {
				<-gate
				q := Redemption{ID: tok.ID, Hash: tok.Hash, SPKI: [32]byte{byte(c), 1}, Now: time.Now()}
				_, got, err := s.Redeem(t.Context(), q, issuer(fmt.Sprintf("%d-%d", n, c)))
				switch {
				case err == nil:
					won.Add(1)
					serial.Store(got.Serial)
				case errors.Is(err, ErrTokenUsed):
					used.Add(1)
				default:
					t.Errorf("client %d: %v", c, err)
				}
			})
		}
		close(gate)
		wg.Wait()
		if won.Load() != 1 || used.Load() != clients-1 {
			t.Fatalf("token %d: %d won and %d were told that it is used, want 1 and %d", n, won.Load(), used.Load(), clients-1)
		}
		if got := snapshot(t, s).Enrolments["prem-1"].Serial; got != serial.Load() {
			t.Fatalf("token %d: the store has serial %s, the winner %s", n, got, serial.Load())
		}
	}
}

func TestTokenSecretIsNotOnDisk(t *testing.T) {
	dir := dataDir(t)
	s := start(t, dir)
	write(t, s, Change{Put: []model.Document{node("prem-1")}})
	var secret [32]byte
	if _, err := rand.Read(secret[:]); err != nil {
		t.Fatal(err)
	}
	hash := sha256.Sum256(secret[:])
	if err := s.PutToken(t.Context(), Token{ID: "token001", Hash: hash, Node: "prem-1", Expires: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	q := Redemption{ID: "token001", Hash: hash, SPKI: [32]byte{1}, Now: time.Now()}
	if _, _, err := s.Redeem(t.Context(), q, issuer("aa")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	needles := map[string][]byte{
		"bytes":  secret[:],
		"hex":    []byte(hex.EncodeToString(secret[:])),
		"base64": []byte(base64.RawStdEncoding.EncodeToString(secret[:])),
		"url":    []byte(base64.RawURLEncoding.EncodeToString(secret[:])),
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
		for name, n := range needles {
			if bytes.Contains(b, n) {
				t.Errorf("%s has the secret as %s", path, name)
			}
		}
		found = found || bytes.Contains(b, []byte(base64.StdEncoding.EncodeToString(hash[:])))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !found {
		t.Error("the hash is nowhere either: this test looks in the wrong place")
	}
}
