package classifier

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/circuitseal/circuitseal/agent/netns/netnstest"
)

// Kernel 6.1 gives up on a program after a million instructions; being far
// below leaves room for verifiers that prune less.
func TestVerifierEffort(t *testing.T) {
	netnstest.RequireRoot(t)
	spec, err := loadBpf()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	var o bpfObjects
	err = spec.LoadAndAssign(&o, nil)
	if ve := new(ebpf.VerifierError); errors.As(err, &ve) {
		t.Fatalf("%-20v", ve)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = o.Close() }()
	for _, p := range []*ebpf.Program{o.CsLanIn, o.CsTunnelIn, o.CsTunnelOut, o.CsSlowIn} {
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		n, _ := info.VerifiedInstructions()
		t.Logf("%s: %d instructions verified", info.Name, n)
		if n > 50_000 {
			t.Errorf("%s: %d instructions verified, want at most 50000", info.Name, n)
		}
	}
}
