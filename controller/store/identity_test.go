package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// enrolled enrols prem-1 with a key by a token of that id.
func enrolled(t *testing.T, s *Store, id string, spki byte) error {
	t.Helper()
	if err := s.PutToken(t.Context(), Token{ID: id, Hash: [32]byte{1}, Node: "prem-1", Expires: time.Now().Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	_, _, err := s.Redeem(t.Context(), Redemption{ID: id, Hash: [32]byte{1}, SPKI: [32]byte{spki}, Now: time.Now()}, issuer("first"))
	return err
}

func issued(serial string, at time.Time) func() (Issued, error) {
	return func() (Issued, error) {
		return Issued{Enrolment: model.Enrolment{Serial: serial, Issued: at, Expires: at.Add(7 * 24 * time.Hour)}, Certificates: [][]byte{[]byte(serial)}}, nil
	}
}

func TestRenewInStore(t *testing.T) {
	s := start(t, dataDir(t))
	now := time.Now().UTC().Truncate(time.Second)
	write(t, s, Change{Put: []model.Document{node("prem-1"), node("nva-1")}})
	renew := func(name string, spki byte, at time.Time, serial string) (Issued, error) {
		return s.Renew(t.Context(), name, [32]byte{spki}, at, issued(serial, at))
	}
	for name, want := range map[string]error{"prem-1": ErrNotEnrolled, "prem-9": ErrUnknownNode} {
		if _, err := renew(name, 7, now, "x"); !errors.Is(err, want) {
			t.Errorf("%s before: %v, want %v", name, err, want)
		}
	}
	if _, err := renew("../prem-1", 7, now, "x"); err == nil {
		t.Error("a name that is none was taken")
	}
	if err := enrolled(t, s, "token001", 7); err != nil {
		t.Fatal(err)
	}
	if _, err := renew("prem-1", 8, now, "x"); !errors.Is(err, ErrNotEnrolled) {
		t.Errorf("another key: %v", err)
	}
	if _, err := renew("nva-1", 7, now, "x"); !errors.Is(err, ErrNotEnrolled) {
		t.Errorf("another node's key: %v", err)
	}
	boom := errors.New("boom")
	if _, err := s.Renew(t.Context(), "prem-1", [32]byte{7}, now, func() (Issued, error) { return Issued{}, boom }); !errors.Is(err, boom) {
		t.Errorf("issuing failed: %v", err)
	}
	for _, step := range []struct {
		what  string
		at    time.Duration
		asks  string
		given string
	}{
		{"the first", 0, "a", "a"},
		{"within the hour", 59 * time.Minute, "b", "a"},
		{"an hour later", time.Hour, "c", "c"},
		{"with a clock that was set back", -24 * time.Hour, "d", "d"},
		{"with one that was set forward again", 0, "e", "e"},
		{"after its end", 30 * 24 * time.Hour, "f", "f"},
	} {
		got, err := renew("prem-1", 7, now.Add(step.at), step.asks)
		if err != nil || got.Serial != step.given || string(got.Certificates[0]) != step.given || got.Key != model.FingerprintOf([32]byte{7}) {
			t.Errorf("%s: %+v, %v; want %s", step.what, got, err, step.given)
		}
		if have := snapshot(t, s).Enrolments["prem-1"]; have != got.Enrolment {
			t.Errorf("%s: the snapshot has %+v", step.what, have)
		}
	}
	// The token's answer is the newest certificate, as long as the key is the node's.
	_, again, err := s.Redeem(t.Context(), Redemption{ID: "token001", Hash: [32]byte{1}, SPKI: [32]byte{7}, Now: now}, nil)
	if err != nil || again.Serial != "f" {
		t.Errorf("the token again: %+v, %v", again, err)
	}
	// What does not write makes no snapshot.
	before := snapshot(t, s)
	if _, err := renew("prem-1", 7, now.Add(30*24*time.Hour+time.Minute), "g"); err != nil || snapshot(t, s) != before {
		t.Errorf("within the hour something was written, or %v", err)
	}
}

func TestRevokeInStore(t *testing.T) {
	dir := dataDir(t)
	s := start(t, dir)
	now := time.Now().UTC().Truncate(time.Second)
	sample(t, s)
	r := model.Revocation{Time: now, Reason: "stolen", By: "admin/default"}
	if _, _, err := s.Revoke(t.Context(), "prem-9", r); !errors.Is(err, ErrUnknownNode) {
		t.Errorf("an unknown node: %v", err)
	}
	// Not enrolled: its token is void, nothing else happens.
	if err := s.PutToken(t.Context(), Token{ID: "token000", Hash: [32]byte{1}, Node: "prem-1", Expires: now.Add(time.Hour)}); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, s)
	if key, _, err := s.Revoke(t.Context(), "prem-1", r); err != nil || key != "" || snapshot(t, s) != before {
		t.Errorf("not enrolled: %q, %v", key, err)
	}
	if _, _, err := s.Redeem(t.Context(), Redemption{ID: "token000", Hash: [32]byte{1}, Now: now}, issuer("x")); !errors.Is(err, ErrTokenUnknown) {
		t.Errorf("its token: %v", err)
	}

	if err := enrolled(t, s, "token001", 7); err != nil {
		t.Fatal(err)
	}
	key, kept, err := s.Revoke(t.Context(), "prem-1", r)
	r.Node = "prem-1"
	if d := cmp.Diff(r, kept); err != nil || key != model.FingerprintOf([32]byte{7}) || d != "" {
		t.Fatalf("revoked %q, %v (-want +got):\n%s", key, err, d)
	}
	if _, kept, err = s.Revoke(t.Context(), "prem-1", model.Revocation{Reason: "again"}); err != nil || kept.Reason != "stolen" {
		t.Errorf("revoked again: %+v, %v", kept, err)
	}
	check := func(when string, decommissioned bool) {
		t.Helper()
		if _, err := s.Renew(t.Context(), "prem-1", [32]byte{7}, now, issued("x", now)); !errors.Is(err, ErrRevoked) {
			t.Errorf("%s: renewal: %v", when, err)
		}
		if got := snapshot(t, s).Revocations[key]; got.Reason != "stolen" || got.Decommissioned != decommissioned {
			t.Errorf("%s: the snapshot has %+v", when, got)
		}
	}
	check("after it", false)
	for end := range snapshot(t, s).Keys {
		if end.Node == "prem-1" {
			t.Errorf("its key of tunnel %s is still there", end.Tunnel)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = start(t, dir)
	check("after a restart", false)

	// The key does not come back, also not with a new token, which stays good.
	if err := enrolled(t, s, "token002", 7); !errors.Is(err, ErrRevoked) {
		t.Errorf("the same key with a new token: %v", err)
	}
	if _, _, err := s.Redeem(t.Context(), Redemption{ID: "token002", Hash: [32]byte{1}, SPKI: [32]byte{8}, Now: now}, issuer("second")); err != nil {
		t.Fatal(err)
	}
	if _, revoked := snapshot(t, s).Revoked("prem-1"); revoked {
		t.Error("the node is revoked though it was enrolled anew")
	}
	check("after another enrolment", false)

	// A node that goes takes its present key along.
	drop(t, s, "prem-1", model.Revocation{Time: now, Reason: "site closed", By: "admin/default"})
	got := snapshot(t, s).Revocations[model.FingerprintOf([32]byte{8})]
	if want := (model.Revocation{Node: "prem-1", Time: now, Reason: "site closed", By: "admin/default", Decommissioned: true}); got != want {
		t.Errorf("the node that went has %+v, want %+v", got, want)
	}
	check("after the node went", false)
}

// sample is two nodes, of which prem-1 has a key reported.
func sample(t *testing.T, s *Store) {
	t.Helper()
	const id = "contoso/hq-weu/er/primary"
	write(t, s, Change{Put: []model.Document{node("prem-1"), node("nva-1")}, Numbers: model.Numbers{Tunnels: map[string]uint16{id: 1}}})
	if err := s.PutKeys(t.Context(), "prem-1", map[string]desired.PublicKey{id: {1}}); err != nil {
		t.Fatal(err)
	}
	if len(snapshot(t, s).Keys) != 1 {
		t.Fatal("the key was not kept")
	}
}

// drop deletes a node.
func drop(t *testing.T, s *Store, name string, r model.Revocation) {
	t.Helper()
	write(t, s, Change{Delete: []model.Key{node(name).Key}, Numbers: snapshot(t, s).Numbers, Revocation: r})
}

// Whatever comes first, a key that was revoked is not the node's afterwards.
func TestRevokeRaces(t *testing.T) {
	s := start(t, dataDir(t))
	write(t, s, Change{Put: []model.Document{node("prem-1")}})
	for round := range 20 {
		spki := byte(round + 1)
		if err := enrolled(t, s, fmt.Sprintf("token%03d", round), spki); err != nil {
			t.Fatal(err)
		}
		later := time.Now().Add(time.Duration(round+1) * 2 * time.Hour)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				_, err := s.Renew(context.WithoutCancel(t.Context()), "prem-1", [32]byte{spki}, later, issued("r", later))
				if err != nil && !errors.Is(err, ErrRevoked) {
					t.Errorf("renewal: %v", err)
				}
			})
		}
		wg.Go(func() {
			if _, _, err := s.Revoke(context.WithoutCancel(t.Context()), "prem-1", model.Revocation{Reason: "x"}); err != nil {
				t.Errorf("revocation: %v", err)
			}
		})
		wg.Wait()
		if _, revoked := snapshot(t, s).Revoked("prem-1"); !revoked {
			t.Fatal("the node is not revoked")
		}
		if _, err := s.Renew(t.Context(), "prem-1", [32]byte{spki}, later.Add(2*time.Hour), issued("r", later)); !errors.Is(err, ErrRevoked) {
			t.Fatalf("a renewal after it: %v", err)
		}
	}
}
