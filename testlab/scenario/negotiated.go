package scenario

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"rsc.io/script"

	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/rig"
)

// negotiation is what every IPsec tunnel of an appliance is to have negotiated.
type negotiation struct {
	ike, esp string
	// pfs is the key exchange of the last rekeying, none for a first ESP SA, whose keys
	// come from the IKE SA's (RFC 7296, section 1.2); empty where it does not matter.
	pfs string
	// ppk tells that a post-quantum pre-shared key has to be mixed in; without it
	// none may be.
	ppk bool
	// since are generations, by tunnel: those in use have to be newer. Nil where they
	// need not be.
	since map[string]uint64
}

// judge says what of an appliance's tunnels is not as it is to be, and which
// generations of pre-shared keys they use.
func (n negotiation) judge(tunnels []rig.TunnelStatus) (used map[string]uint64, err error) {
	if len(tunnels) == 0 {
		return nil, errors.New("there are no tunnels")
	}
	used = map[string]uint64{}
	var errs []error
	for _, t := range tunnels {
		wrong := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("tunnel %s %s", t.ID, fmt.Sprintf(format, args...)))
		}
		if !t.Up() || t.Retiring || t.Problem != "" {
			wrong("is %s, retiring %t: %s", t.Phase, t.Retiring, t.Problem)
			continue
		}
		if len(t.Associations) != 1 {
			wrong("has %d SAs", len(t.Associations))
			continue
		}
		switch a := t.Associations[0]; {
		case a.IKE != n.ike || a.ESP != n.esp:
			wrong("has negotiated %s and %s", a.IKE, a.ESP)
		case n.pfs != "" && cmp.Or(a.PFS, "none") != n.pfs:
			wrong("has PFS %q", a.PFS)
		case a.PPK != n.ppk:
			wrong("has a PPK mixed in: %t", a.PPK)
		case a.Weakness != "":
			wrong("is weak: %s", a.Weakness)
		case n.ppk && t.PresharedKeyUsed == 0:
			wrong("does not say which generation of its PPK is in use")
		case n.since != nil && t.PresharedKeyUsed <= n.since[t.ID]:
			wrong("uses generation %d of its PPK, before it was %d", t.PresharedKeyUsed, n.since[t.ID])
		}
		used[t.ID] = t.PresharedKeyUsed
	}
	return used, errors.Join(errs...)
}

// negotiated waits until every tunnel of each appliance is up by one SA of just
// what is said, by the agents' status, and all agree on the generation of its PPK.
func (x *session) negotiated(s *script.State, args []string) (output, error) {
	if x.rig == nil {
		return output{}, errNoLab
	}
	words := slices.IndexFunc(args, func(a string) bool { return strings.Contains(a, "=") })
	if words < 1 {
		return output{}, script.ErrUsage
	}
	o, err := split(args, words, "ike=", "esp=", "pfs=", "ppk=", "within=")
	if err != nil {
		return output{}, err
	}
	within, err := x.limit(o, "within", 20*time.Second)
	if err != nil {
		return output{}, err
	}
	want := negotiation{ike: o.settings["ike"], esp: o.settings["esp"], pfs: o.settings["pfs"]}
	switch o.settings["ppk"] {
	case "":
	case "used":
		want.ppk = true
	case "newer":
		if want.ppk, want.since = true, x.generations; want.since == nil {
			return output{}, errors.New("ppk=newer has nothing to compare with: say ppk=used first")
		}
	default:
		return output{}, script.ErrUsage
	}
	if want.ike == "" || want.esp == "" {
		return output{}, script.ErrUsage
	}
	var out output
	began := time.Now()
	err = eventually(s.Context(), within, func() error {
		all := map[string]uint64{}
		for i, h := range o.words {
			status, err := x.rig.Status(s.Context(), netns.Host(h))
			if err != nil {
				return err
			}
			used, err := want.judge(status.Tunnels)
			if err != nil {
				return fmt.Errorf("on %s: %w", h, err)
			}
			for id, g := range used {
				if i > 0 && want.ppk && all[id] != g {
					return fmt.Errorf("tunnel %s uses generation %d of its PPK at %s, and %d at %s", id, g, h, all[id], o.words[0])
				}
				all[id] = g
			}
		}
		if want.ppk {
			x.generations = all
		}
		out.Stdout = fmt.Sprintf("%s and %s after %s%s\n", want.ike, want.esp, time.Since(began).Round(10*time.Millisecond), describe(want.ppk, all))
		return nil
	})
	return out, err
}

func describe(ppk bool, generations map[string]uint64) string {
	if !ppk {
		return ""
	}
	var b strings.Builder
	for _, id := range slices.Sorted(maps.Keys(generations)) {
		fmt.Fprintf(&b, ", %s with PPK %d", id, generations[id])
	}
	return b.String()
}
