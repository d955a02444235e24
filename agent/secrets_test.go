package agent

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netns/netnstest"
)

// The key for secrets at rest is made once, and not again where something is
// encrypted with one that is gone: nothing would open it.
func TestLostSecretKey(t *testing.T) {
	netnstest.RequireRoot(t)
	i, err := instance.Parse("k" + strconv.FormatInt(int64(os.Getpid()), 36))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(i.StateDir()); err != nil {
			t.Error(err)
		}
	})
	if err := os.MkdirAll(i.StateDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	c := Config{Instance: i, SecretKeyFile: filepath.Join(t.TempDir(), "key")}
	log := slog.New(slog.DiscardHandler)
	first, err := openSecrets(c, log)
	if err != nil {
		t.Fatal(err)
	}
	again, err := openSecrets(c, log)
	if err != nil || again.First().ID() != first.First().ID() {
		t.Fatalf("opened again: another key, %v", err)
	}
	for _, path := range []string{filepath.Join(identityDir, "key.pem"), filepath.Join(wireguardKeys, "x.key"), "last-good-state"} {
		t.Run(path, func(t *testing.T) {
			file := filepath.Join(i.StateDir(), path)
			if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, first.Seal("x", nil), 0o600), os.Remove(c.SecretKeyFile)); err != nil {
				t.Fatal(err)
			}
			_, err := openSecrets(c, log)
			if err == nil || !strings.Contains(err.Error(), "there is no secret key file "+c.SecretKeyFile) || !strings.Contains(err.Error(), "remove --purge") {
				t.Errorf("with something encrypted: %v", err)
			}
			if _, err := os.Stat(c.SecretKeyFile); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("another key was made: %v", err)
			}
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			if _, err := openSecrets(c, log); err != nil {
				t.Errorf("with nothing encrypted: %v", err)
			}
		})
	}
}
