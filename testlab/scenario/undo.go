package scenario

import (
	"fmt"
	"time"

	"rsc.io/script"

	"github.com/circuitseal/circuitseal/testlab/netns"
)

// undo does to an appliance what ip(8), nft(8) and the like cannot.
func (x *session) undo(s *script.State, args []string) error {
	if x.rig == nil {
		return errNoLab
	}
	if len(args) < 2 {
		return script.ErrUsage
	}
	h := netns.Host(args[0])
	x.acted = time.Now()
	switch {
	case args[1] == "peers" && len(args) == 2:
		return x.rig.ForgetPeers(h)
	case args[1] == "programs" && len(args) == 2:
		return x.rig.DetachPrograms(s.Context(), h)
	case args[1] == "map" && len(args) == 3:
		return x.rig.EmptyMap(h, args[2])
	}
	return script.ErrUsage
}

// repaired waits until an agent has counted more repairs of a kind than when the
// script last asked, and says how long after the last `on` or `undo` that was.
func (x *session) repaired(s *script.State, args []string) (output, error) {
	if x.rig == nil {
		return output{}, errNoLab
	}
	o, err := split(args, 2, "within=")
	if err != nil {
		return output{}, err
	}
	within, err := x.limit(o, "within", 15*time.Second)
	if err != nil {
		return output{}, err
	}
	h, kind := netns.Host(o.words[0]), o.words[1]
	var out output
	err = eventually(s.Context(), within, func() error {
		status, err := x.rig.Status(s.Context(), h)
		if err != nil {
			return err
		}
		for _, d := range status.Drift {
			if key := string(h) + " " + kind; d.What == kind && d.Count > x.repairs[key] && d.Last.After(x.acted) {
				out.Stdout = fmt.Sprintf("%s: %d repaired, the last after %s: %s\n", kind, d.Count-x.repairs[key], d.Last.Sub(x.acted).Round(time.Millisecond), d.Detail)
				if x.repairs == nil {
					x.repairs = map[string]uint64{}
				}
				x.repairs[key] = d.Count
				return nil
			}
		}
		return fmt.Errorf("the agent on %s has counted no new repair of %s but:\n%+v, problems %q", h, kind, status.Drift, status.Problems)
	})
	return out, err
}
