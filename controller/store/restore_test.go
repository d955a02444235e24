package store

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/circuitseal/circuitseal/controller/model"
)

func TestRestored(t *testing.T) {
	now := time.Now()
	token := func(id string, hash byte, node string) Token {
		return Token{ID: id, Hash: [32]byte{hash}, Node: node, Expires: now.Add(time.Hour)}
	}
	redeem := func(s *Store, id string, hash byte) error {
		_, _, err := s.Redeem(t.Context(), Redemption{ID: id, Hash: [32]byte{hash}, SPKI: [32]byte{1}, Now: now}, issuer("01"))
		return err
	}
	dir, backup := dataDir(t), dataDir(t)
	s := start(t, dir)
	write(t, s, Change{Put: []model.Document{node("prem-1"), node("nva-1")}})
	for _, tok := range []Token{token("token001", 1, "prem-1"), token("token002", 2, "nva-1")} {
		if err := s.PutToken(t.Context(), tok); err != nil {
			t.Fatal(err)
		}
	}
	if err := redeem(s, "token001", 1); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.CopyFS(backup, os.DirFS(dir)), os.Chmod(backup, 0o700)); err != nil {
		t.Fatal(err)
	}

	s = start(t, backup)
	before := snapshot(t, s)
	epoch, voided, err := s.Restored(t.Context(), now)
	if err != nil || epoch <= before.Epoch || voided != 1 {
		t.Fatalf("epoch %d after %d, %d tokens voided, %v", epoch, before.Epoch, voided, err)
	}
	after := snapshot(t, s)
	if after.Epoch != epoch || len(after.Documents) != 2 || after.Enrolments["prem-1"].Serial != "01" {
		t.Errorf("the snapshot after it: %+v", after)
	}
	if err := redeem(s, "token002", 2); !errors.Is(err, ErrTokenUnknown) {
		t.Errorf("an unused token: %v, want ErrTokenUnknown", err)
	}
	if err := redeem(s, "token001", 1); err != nil {
		t.Errorf("a used token, by the key that has used it: %v", err)
	}
	// Again, by a clock that runs behind.
	again, voided, err := s.Restored(t.Context(), time.Unix(1, 0))
	if err != nil || again != epoch+1 || voided != 0 {
		t.Errorf("again: epoch %d, %d tokens voided, %v", again, voided, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := snapshot(t, start(t, backup)).Epoch; got != again {
		t.Errorf("epoch %d after a restart, want %d", got, again)
	}

	// The same backup a second time is newer than the first time.
	s = start(t, dir)
	second, _, err := s.Restored(t.Context(), now.Add(2*time.Second))
	if err != nil || second <= again {
		t.Errorf("epoch %d of the same backup, restored anew; it was %d before; %v", second, again, err)
	}
}
