package scenario

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	"rsc.io/script"

	"github.com/circuitseal/circuitseal/testlab/netns"
)

// charon ends strongSwan's daemon on an appliance, or waits for a new one.
func (x *session) charon(s *script.State, args []string) error {
	if x.rig == nil {
		return errNoLab
	}
	if len(args) != 2 {
		return script.ErrUsage
	}
	h := netns.Host(args[1])
	switch args[0] {
	case "kill":
		return x.rig.EndCharon(s.Context(), h, unix.SIGKILL)
	case "stop":
		return x.rig.EndCharon(s.Context(), h, unix.SIGTERM)
	case "running":
		return eventually(s.Context(), x.config.Slow.Longer(10*time.Second), func() error {
			switch n := len(x.rig.CharonPIDs(h)); n {
			case 1:
				return nil
			default:
				return fmt.Errorf("on %s there are %d charons, want one", h, n)
			}
		})
	}
	return script.ErrUsage
}

// swanctl runs strongSwan's own command line against an appliance's charon.
func (x *session) swanctl(s *script.State, args []string) (output, error) {
	if x.rig == nil {
		return output{}, errNoLab
	}
	if len(args) < 2 {
		return output{}, errors.New("want an appliance and what to run, such as: swanctl prem --list-sas")
	}
	ctx, cancel := context.WithTimeout(s.Context(), x.config.Slow.Longer(30*time.Second))
	defer cancel()
	return x.rig.Swanctl(ctx, netns.Host(args[0]), args[1:]...)
}
