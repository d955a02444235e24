package scenario

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"rsc.io/script"

	"github.com/circuitseal/circuitseal/testlab/netns"
)

func (x *session) link(s *script.State, args []string) error {
	if x.rig == nil {
		return errNoLab
	}
	if len(args) < 2 || len(args) > 3 {
		return script.ErrUsage
	}
	lab, l, value := x.rig.Lab, netns.Link(args[1]), ""
	if len(args) == 3 {
		value = args[2]
	}
	switch args[0] {
	case "restore":
		if value != "" {
			return script.ErrUsage
		}
		return lab.RestoreLink(s.Context(), l)
	case "cut":
		if value == "" {
			value = string(netns.Silent)
		}
		return lab.CutLink(s.Context(), l, netns.Cut(value))
	case "loss":
		percent, err := strconv.ParseFloat(strings.TrimSuffix(value, "%"), 64)
		if err != nil || !strings.HasSuffix(value, "%") {
			return fmt.Errorf("%q: want a percentage such as 5%%", value)
		}
		return lab.LoseOnLink(s.Context(), l, percent)
	case "delay":
		by, err := time.ParseDuration(value)
		if err != nil {
			return fmt.Errorf("%q: want a time such as 40ms", value)
		}
		return lab.DelayLink(s.Context(), l, by)
	case "mtu":
		bytes, err := strconv.Atoi(value)
		if err != nil {
			return fmt.Errorf("%q: want bytes such as 1300", value)
		}
		return lab.NarrowLink(s.Context(), l, bytes)
	}
	return script.ErrUsage
}

func (x *session) icmp(s *script.State, args []string) error {
	if x.rig == nil {
		return errNoLab
	}
	if len(args) != 2 {
		return script.ErrUsage
	}
	switch args[0] {
	case "filter":
		return x.rig.Lab.FilterICMP(s.Context(), netns.Host(args[1]))
	case "restore":
		return x.rig.Lab.RestoreICMP(s.Context(), netns.Host(args[1]))
	}
	return script.ErrUsage
}

// setClock moves the clock of the whole machine, all of whose nodes share it.
// The session's end moves it back.
func (x *session) setClock(_ *script.State, args []string) error {
	if !x.has("clock") {
		return errors.New("the clock is this machine's own: say `needs: clock`")
	}
	if len(args) != 1 {
		return script.ErrUsage
	}
	if args[0] == "restore" {
		return x.moveClock(-x.moved)
	}
	by, err := time.ParseDuration(args[0])
	if err != nil || !strings.ContainsAny(args[0][:1], "+-") {
		return fmt.Errorf("%q: want a time with a sign, such as +10m or -1h", args[0])
	}
	return x.moveClock(by)
}

func (x *session) moveClock(by time.Duration) error {
	if by == 0 {
		return nil
	}
	t := unix.NsecToTimespec(time.Now().Add(by).UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &t); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	x.moved += by
	return nil
}
