package scenario

import (
	"fmt"
	"math/rand/v2"
	"time"

	"rsc.io/script"

	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/rig"
	"github.com/circuitseal/circuitseal/testlab/traffic"
)

// fuzz sends from a LAN host, as its customer, what keeps to no rules.
func (x *session) fuzz(s *script.State, args []string) error {
	o, err := split(args, 2, "gateway=", "pool=", "seed=", "count=", "interface=")
	if err != nil {
		return err
	}
	seed, err := o.number("seed", 1)
	if err != nil {
		return err
	}
	count, err := o.number("count", 500)
	if err != nil {
		return err
	}
	if x.rig == nil {
		return errNoLab
	}
	f := rig.Fuzz{From: netns.Host(o.words[0]), Sender: o.words[1], Interface: o.settings["interface"], Gateway: o.settings["gateway"],
		Pool: o.settings["pool"], Seed: uint64(seed), Count: count, Pace: x.config.Slow.Longer(500 * time.Microsecond)}
	if f.Interface == "" {
		f.Interface = "eth0"
	}
	return x.rig.SendFuzz(s.Context(), f)
}

// tagFuzz sends frames with any VLAN tags to or from a port. Without a seed each run
// sends others, and says how to repeat it.
func (x *session) tagFuzz(s *script.State, args []string) (output, error) {
	o, err := split(args, 2, "mac=", "outer=", "others=", "pool=", "seed=", "count=", "-circuit")
	if err != nil {
		return output{}, err
	}
	if x.rig == nil {
		return output{}, errNoLab
	}
	h, name, err := end(o.words[0])
	if err != nil {
		return output{}, err
	}
	seed, err := o.number("seed", int(rand.Uint32()))
	if err != nil {
		return output{}, err
	}
	count, err := o.number("count", 500)
	if err != nil {
		return output{}, err
	}
	out := output{Stdout: fmt.Sprintf("%d frames: seed=%d\n", count, seed)}
	return out, x.rig.SendTagFuzz(s.Context(), rig.TagFuzz{From: h, Interface: name, Circuit: o.has("-circuit"), Sender: o.words[1], MAC: o.settings["mac"],
		Outer: o.settings["outer"], Others: o.settings["others"], Pool: o.settings["pool"], Seed: uint64(seed), Count: count})
}

// witness notes whose fuzz arrives at hosts.
func (x *session) witness(s *script.State, args []string) error {
	if x.rig == nil {
		return errNoLab
	}
	if len(args) > 1 && args[0] == "start" {
		for _, a := range args[1:] {
			h := netns.Host(a)
			if x.witnesses[h] != nil {
				return fmt.Errorf("there is a witness on %s already", h)
			}
			w, err := x.rig.StartWitness(s.Context(), h)
			if err != nil {
				return err
			}
			x.witnesses[h] = w
		}
		return nil
	}
	o, err := split(args, 1, "only=", "least=")
	if err != nil {
		return err
	}
	least, err := o.number("least", 1)
	if err != nil {
		return err
	}
	h := netns.Host(o.words[0])
	w := x.witnesses[h]
	if w == nil {
		return fmt.Errorf("no witness looks on %s: say `witness start %s` first", h, h)
	}
	delete(x.witnesses, h)
	seen, err := w.Stop()
	if err != nil {
		return err
	}
	s.Logf("%s received %v\n", h, seen)
	return only(seen, h, o.settings["only"], least)
}

// only wants enough of one sender, so that the fuzz was not for nothing, and
// nothing of another.
func only(seen traffic.Sighted, h netns.Host, sender string, least int) error {
	for other := range seen {
		if other != sender {
			return fmt.Errorf("%s received what is another's, want %s only: %v", h, sender, seen)
		}
	}
	if seen[sender] < least {
		return fmt.Errorf("%s received %d packets of %s, want at least %d", h, seen[sender], sender, least)
	}
	return nil
}
