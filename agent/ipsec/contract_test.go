package ipsec

import (
	"testing"

	"github.com/circuitseal/circuitseal/proto/desired"
)

func TestTunnel(t *testing.T) {
	backends(t, func(t *testing.T, b Backend) {
		p := newPair(t)
		a, z := p.plans(t)
		p.a.run(t)
		p.b.run(t)
		p.a.sync(t, a)
		p.b.sync(t, z)
		s, _ := p.awaitUp(t)
		x := s.Associations[0]
		if x.IKE != "aes256gcm16-prfsha384-ecp384" || !x.PPK || x.PFS != "" || x.LocalID != p.a.identity.Name {
			t.Errorf("evidence %+v", x)
		}
		if s.PresharedUsed != 1 {
			t.Errorf("pre-shared key of generation %d is used, want 1", s.PresharedUsed)
		}
		if b == Kernel {
			if err := p.carries(t); err != nil {
				t.Error(err)
			}
			if x.ESP != "aes256gcm16-esn" || !x.ESN || x.Backend != desired.BackendKernel {
				t.Errorf("evidence %+v", x)
			}
		}
	})
}
