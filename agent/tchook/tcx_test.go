package tchook

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// mute is a link that the kernel says nothing about.
type mute struct{ link.Link }

func (mute) Info() (*link.Info, error) { return nil, unix.ENOMEM }

// A link that cannot be asked about is not dead: a look that fails must not be
// the end of a program that works.
func TestUnknownIsNotDead(t *testing.T) {
	if _, err := examine(mute{}); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("examine a link that cannot be asked: %v, want %v", err, unix.ENOMEM)
	}
}

func TestPinNames(t *testing.T) {
	for name, want := range map[string]string{
		"cs_lan_in-12-345": "cs_lan_in", "egress-4294967295-1": "egress", "cs_tunnel_out_12": "cs_tunnel_out",
		"groups": "", "egress-1": "", "egress-x-1": "", "cs_lan_in_": "", "a0-1-2": "", "egress-1-2-3": "",
	} {
		var got string
		if m := pinPattern.FindStringSubmatch(name); m != nil {
			got = m[1]
		}
		if got != want {
			t.Errorf("label of %s: %q, want %q", name, got, want)
		}
	}
}
