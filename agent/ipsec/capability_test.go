package ipsec

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Without a charon that runs one is asked that lives for it; with one, that one.
func TestCharonSaysWhatItCan(t *testing.T) {
	backends(t, func(t *testing.T, b Backend) {
		p := newPair(t)
		alone := p.a.driver.Charon(t.Context())
		if alone == nil || alone.Problem != "" || alone.Version == "" || alone.Backend != b.String() {
			t.Fatalf("status %+v", alone)
		}
		for _, a := range []string{"aes256gcm16", "aes128", "sha384", "prfsha384", "ecp384", "ecp384bp", "modp3072", "x25519", "chacha20poly1305", "ppk"} {
			if !slices.Contains(alone.Algorithms, a) {
				t.Errorf("%s is missing of %v", a, alone.Algorithms)
			}
		}
		if slices.Contains(alone.Algorithms, "esn") != (b == Kernel) || slices.Contains(alone.Algorithms, "modp1024s160") && slices.Contains(alone.Algorithms, "mlkem768") {
			t.Errorf("algorithms %v", alone.Algorithms)
		}
		a, _ := p.plans(t)
		p.a.sync(t, a)
		p.a.driver.capable = nil
		if d := cmp.Diff(alone, p.a.driver.Charon(t.Context())); d != "" {
			t.Errorf("the one that runs says (-alone +running):\n%s", d)
		}
	})
}
