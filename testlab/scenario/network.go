package scenario

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"rsc.io/script"

	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/rig"
	"github.com/circuitseal/circuitseal/testlab/tap"
	"github.com/circuitseal/circuitseal/testlab/traffic"
)

func (x *session) reach(s *script.State, args []string) (output, error) {
	o, err := split(args, 2, "-6", "-udp", "within=")
	if err != nil {
		return output{}, err
	}
	within, err := x.limit(o, "within", 10*time.Second)
	if err != nil {
		return output{}, err
	}
	if x.rig == nil {
		return output{}, errNoLab
	}
	r, err := x.rig.Reach(s.Context(), rig.Probe{From: netns.Host(o.words[0]), To: netns.Host(o.words[1]),
		V6: o.has("-6"), UDP: o.has("-udp"), Deadline: within})
	return output{Stdout: r.String() + "\n"}, err
}

func (x *session) unreachable(s *script.State, args []string) error {
	o, err := split(args, 2, "-6", "-udp", "for=", "within=")
	if err != nil {
		return err
	}
	during, err := x.limit(o, "for", time.Second)
	if err != nil {
		return err
	}
	within, err := x.limit(o, "within", 0)
	if err != nil {
		return err
	}
	if x.rig == nil {
		return errNoLab
	}
	p := rig.Probe{From: netns.Host(o.words[0]), To: netns.Host(o.words[1]),
		V6: o.has("-6"), UDP: o.has("-udp"), Deadline: during, Attempt: min(during, x.config.Slow.Longer(300*time.Millisecond))}
	return eventually(s.Context(), within, func() error { return x.rig.Unreachable(s.Context(), p) })
}

func (x *session) datagrams(s *script.State, args []string) (output, error) {
	if x.rig == nil {
		return output{}, errNoLab
	}
	if len(args) == 0 {
		return output{}, script.ErrUsage
	}
	switch args[0] {
	case "start":
		o, err := split(args[1:], 2, "-6", "flows=")
		if err != nil {
			return output{}, err
		}
		flows, err := o.number("flows", 16)
		if err != nil {
			return output{}, err
		}
		if x.traffic != nil {
			return output{}, errors.New("traffic flows already, and there is one at a time: say `traffic stop` first")
		}
		x.traffic, err = x.rig.StartDatagrams(netns.Host(o.words[0]), netns.Host(o.words[1]), o.has("-6"), flows, x.config.Slow.Longer(10*time.Millisecond))
		return output{}, err
	case "run":
		if x.traffic == nil || len(args) != 2 {
			return output{}, errors.New("want traffic that flows, and a time: traffic run 6s")
		}
		d, err := time.ParseDuration(args[1])
		if err != nil {
			return output{}, err
		}
		select {
		case <-s.Context().Done():
			return output{}, s.Context().Err()
		case <-time.After(x.config.Slow.Longer(d)):
			return output{}, nil
		}
	case "stop":
		if x.traffic == nil {
			return output{}, errors.New("no traffic flows")
		}
		after := sinceAsked{flowed: time.Since(x.asked).Seconds()}
		r, err := x.traffic.Stop()
		x.traffic = nil
		if err != nil {
			return output{}, err
		}
		after.answered = r.LastAnswer.Sub(x.asked).Seconds()
		text := fmt.Sprintf("%d of %d answered, longest outage %.2f s", r.Received, r.Sent, r.OutageSeconds)
		if r.Received > 0 && !x.asked.IsZero() {
			text += fmt.Sprintf(", the last answer %.2f s after the last sealctl", after.answered)
		}
		return output{Stdout: text + "\n"}, check(r, after, args[1:], x.config.Slow)
	}
	return output{}, script.ErrUsage
}

// sinceAsked are seconds from when the script last began to ask something of the
// controller: to the last answer, and to the end of traffic.
type sinceAsked struct{ answered, flowed float64 }

// check holds a report against conditions such as lost<=0, outage<=4s and
// ended<=5s. On a slow machine an outage and an end may be as much later, and as
// much less is sent and received; a gap is an outage that may not, where no processor
// is what it waits for. An outage that may be as long as there was traffic
// is no condition; nor is an end that may be later than that of the traffic, or was
// before anything was asked.
func check(r traffic.DatagramReport, after sinceAsked, conditions []string, slow rig.Slow) error {
	var errs []error
	for _, c := range conditions {
		key, value, below := strings.Cut(c, "<=")
		if !below {
			var above bool
			if key, value, above = strings.Cut(c, ">="); !above {
				return fmt.Errorf("%s: want such as lost<=0, outage<=4s, received>=100", c)
			}
		}
		have, ok := map[string]float64{
			"lost": float64(r.Lost), "outage": r.OutageSeconds, "gap": r.OutageSeconds, "received": float64(r.Received), "reordered": float64(r.Reordered),
			"duplicates": float64(r.Duplicates), "foreign": float64(r.Foreign), "flows": float64(r.FlowsAnswered),
			"ended": after.answered,
		}[key]
		if !ok {
			return fmt.Errorf("%s: no such figure", key)
		}
		want, err := strconv.ParseFloat(strings.TrimSuffix(value, "s"), 64)
		if err != nil {
			return fmt.Errorf("%s: %w", c, err)
		}
		switch key {
		case "outage", "gap":
			if key == "outage" {
				want = slow.Times(want)
			}
			if want >= r.Seconds {
				return fmt.Errorf("%s: traffic ran for %.1f s, so this says nothing: let it run for longer than the %.1f s that it may be out", c, r.Seconds, want)
			}
		case "ended":
			if want = slow.Times(want); want >= after.flowed || have < 0 {
				return fmt.Errorf("%s: traffic ran for %.1f s after the last sealctl, the last answer came %.1f s after it, so this says nothing: let it run from before that, for longer than the %.1f s after which it may end", c, after.flowed, have, want)
			}
		case "received":
			want /= slow.Times(1)
		}
		if below && have > want || !below && have < want {
			errs = append(errs, fmt.Errorf("%s is %g, want %s: %+v", key, have, c, r))
		}
	}
	return errors.Join(errs...)
}

func (x *session) streams(s *script.State, args []string) (output, error) {
	o, err := split(args, 2, "flows=", "for=")
	if err != nil {
		return output{}, err
	}
	flows, err := o.number("flows", 4)
	if err != nil {
		return output{}, err
	}
	during, err := o.duration("for", time.Second)
	if err != nil {
		return output{}, err
	}
	if x.rig == nil {
		return output{}, errNoLab
	}
	r, err := x.rig.Streams(s.Context(), netns.Host(o.words[0]), netns.Host(o.words[1]), flows, during, false)
	return output{Stdout: fmt.Sprintf("%.3f Gb/s\n", r.Gbps)}, err
}

func (x *session) forge(s *script.State, args []string) error {
	o, err := split(args, 3, "as=")
	if err != nil {
		return err
	}
	source, err := netip.ParseAddrPort(o.words[1])
	if err != nil {
		return err
	}
	to, err := netip.ParseAddrPort(o.words[2])
	if err != nil {
		return err
	}
	if x.rig == nil {
		return errNoLab
	}
	as := traffic.Shape(o.settings["as"])
	if as == "" {
		as = traffic.Text
	}
	return x.rig.Forge(s.Context(), netns.Host(o.words[0]), source, to, as, 20)
}

// inject sends from an appliance's circuit namespace with -circuit.
func (x *session) inject(s *script.State, args []string) error {
	o, err := split(args, 3, "mac=", "tags=", "link=", "-circuit")
	if err != nil {
		return err
	}
	if x.rig == nil {
		return errNoLab
	}
	h, name, err := end(o.words[0])
	if err != nil {
		return err
	}
	link, err := o.number("link", 0)
	if err != nil {
		return err
	}
	return x.rig.Inject(s.Context(), rig.Injection{From: h, Interface: name, Circuit: o.has("-circuit"), Source: o.words[1], To: o.words[2],
		MAC: o.settings["mac"], Tags: o.settings["tags"], Link: link, Count: 20})
}

func (x *session) watch(_ *script.State, args []string) error {
	if x.rig == nil {
		return errNoLab
	}
	if len(args) > 0 && args[0] == "start" {
		if x.tap != nil {
			return errors.New("the tap runs already")
		}
		var protocols []tap.Protocol
		seen := map[netip.Addr]netip.Addr{}
		for _, word := range args[1:] {
			inside, outside, ok := strings.Cut(word, "=")
			if !ok {
				protocols = append(protocols, tap.Protocol(word))
				continue
			}
			from, err := netip.ParseAddr(inside)
			if err != nil {
				return err
			}
			if seen[from], err = netip.ParseAddr(outside); err != nil {
				return err
			}
		}
		t, err := x.rig.StartTap(seen, protocols...)
		x.tap = t
		return err
	}
	if len(args) > 1 && args[0] == "watch" {
		if x.tap != nil {
			return errors.New("the tap runs already: say `tap watch` before `tap start`")
		}
		return x.addWatch(args[1:])
	}
	if !slices.Contains([]string{"=", ">", "saw"}, strings.Join(args[:min(1, len(args))], "")) {
		return script.ErrUsage
	}
	if x.tap == nil {
		return errors.New("no tap runs: begin with `tap start`")
	}
	s, err := x.tap.Report()
	if err != nil {
		return err
	}
	switch strings.Join(args, " ") {
	case "= 0":
		if s.InClear != 0 {
			return errors.New(rig.Describe(s))
		}
		return nil
	case "> 0":
		if s.InClear == 0 || s.Canaries == 0 {
			return fmt.Errorf("the tap did not fire: %s", rig.Describe(s))
		}
		return nil
	}
	if len(args) == 3 && args[0] == "saw" {
		return saw(s, args[1], tap.Kind(args[2]))
	}
	return script.ErrUsage
}

// saw wants frames of a kind at a place, so that a silent link is not taken
// for a tight one.
func saw(s tap.Summary, label string, k tap.Kind) error {
	for _, i := range s.Interfaces {
		if i.Label == label && i.Allowed[k] > 0 {
			return nil
		}
	}
	return fmt.Errorf("the tap saw no %s at %s", k, label)
}
