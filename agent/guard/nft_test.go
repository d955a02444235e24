package guard

import (
	"bytes"
	"net/netip"
	"os/exec"
	"testing"

	"github.com/circuitseal/circuitseal/agent/instance"
)

// A mark that is good on several interfaces opens none of them for what is
// another's, and a right tuple no interface that is not its own.
func TestNFTWantsMarkTupleAndInterfaceTogether(t *testing.T) {
	l := newLab(t)
	l.link("circ1", "peer1")
	l.must(l.quiet(l.circuit, "circ0"))
	l.must(l.quiet(l.circuit, "circ1"))
	l.up(false)
	g := l.guard()
	want := ipsecPlan("circ1")
	want.Interfaces = []string{"circ0", "circ1"}
	want.Flows = append(want.Flows, ipsecFlows("circ0", mark+1, localAddr, otherAddr)...)
	l.must(g.Sync(t.Context(), want))
	l.must(g.Close())
	l.detach()
	// All routes lead to circ0.
	tap, send := l.packets(l.peer, "peer0"), l.rawIP()
	at := func(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
	for _, tt := range []struct {
		name   string
		mark   uint32
		packet []byte
		pass   bool
	}{
		{"IKE", instance.ControlMark, udp(at(localAddr, 500), at(otherAddr, 500), nil), true},
		{"ESP", mark + 1, ipv4(protocolESP, localAddr, otherAddr, esp(300, 100)), true},
		{"IKE of the other interface", instance.ControlMark, udp(at(localAddr, 500), at(peerAddr, 500), nil), false},
		{"port 4500 of the other interface", mark, udp(at(localAddr, 4500), at(peerAddr, 4500), nil), false},
		{"port 4500 of the other interface by charon", instance.ControlMark, udp(at(localAddr, 4500), at(peerAddr, 4500), nil), false},
		{"ESP of the other interface", mark, ipv4(protocolESP, localAddr, peerAddr, esp(300, 100)), false},
		{"ESP with the other interface's mark", mark, ipv4(protocolESP, localAddr, otherAddr, esp(300, 100)), false},
		{"WireGuard of the other interface", mark, udp(tunnelLocal, tunnelRemote, nil), false},
	} {
		if err := send(tt.packet, tt.mark); err != nil && tt.pass {
			t.Errorf("%s: %v", tt.name, err)
		}
		if got := tap.seesAny(anything, tt.pass); got != tt.pass {
			t.Errorf("%s: leaves %t, want %t", tt.name, got, tt.pass)
		}
	}
}

// nft(8) reads what this package writes.
func TestNFTShowsTheTables(t *testing.T) {
	l := newLab(t)
	g := l.guard()
	l.must(g.Sync(t.Context(), ipsecPlan("circ0")))
	nft, err := exec.LookPath("nft")
	if err != nil {
		t.Fatal("there is no nft; `make deps` installs it")
	}
	var out []byte
	l.must(l.circuit.Do(func() error {
		out, err = exec.CommandContext(t.Context(), nft, "list", "ruleset").CombinedOutput()
		return err
	}))
	for _, want := range []string{
		`0x43530007 . "circ0" . 10.9.0.1 . 10.9.0.2 . 0x6dca6cca`,
		`0x43530000 . "circ0" . 10.9.0.1 . 10.9.0.2 . 0xf401f401`,
		`0x43530007 . "circ0" . 10.9.0.1 . 10.9.0.2`,
		`"circ0" . 10.9.0.2 . 4500 . 10.9.0.1 . 4500`,
		`"circ0" . 10.9.0.2 . 51821 . 10.9.0.1 . 51820`,
		`"circ0" . 10.9.0.1 . 10.9.0.2`,
		"hook forward priority filter; policy drop;",
		`oifname "lo" accept`,
	} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("nft list ruleset has no %s in\n%s", want, out)
		}
	}
	t.Logf("%s", out)
}
