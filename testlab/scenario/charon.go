package scenario

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"rsc.io/script"

	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/rig"
)

// charon ends strongSwan's daemon on an appliance, has it do nothing for a while, waits
// for a new one, or alters what it has.
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
	case "freeze":
		_, err := x.rig.SignalCharon(h, unix.SIGSTOP)
		return err
	case "thaw":
		_, err := x.rig.SignalCharon(h, unix.SIGCONT)
		return err
	case "ppk":
		return x.rig.AlterPPKs(s.Context(), h)
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

// rekey has several appliances replace the keys of all SAs at the same moment.
func (x *session) rekey(s *script.State, args []string) error {
	if x.rig == nil {
		return errNoLab
	}
	var hosts []netns.Host
	settings := options{settings: map[string]string{}}
	for _, a := range args {
		if key, value, ok := strings.Cut(a, "="); ok {
			settings.settings[key] = value
			continue
		}
		hosts = append(hosts, netns.Host(a))
	}
	times, err := settings.number("times", 1)
	if err != nil {
		return err
	}
	within, err := x.limit(settings, "within", 20*time.Second)
	if err != nil {
		return err
	}
	if len(hosts) == 0 || len(settings.settings) > 2 {
		return script.ErrUsage
	}
	return x.rig.Rekey(s.Context(), times, within, hosts...)
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

// sequence has the kernel's SAs of an appliance go on from other sequence numbers, or
// waits until all have sent fewer, as new ones have.
func (x *session) sequence(s *script.State, args []string) error {
	if x.rig == nil {
		return errNoLab
	}
	o, err := split(args, 1, "to=", "by=", "-counted", "below=", "within=")
	if err != nil {
		return err
	}
	if len(o.settings["to"]+o.settings["by"]+o.settings["below"]) == 0 {
		return fmt.Errorf("%w: want one of to=, by= and below=", script.ErrUsage)
	}
	h := netns.Host(o.words[0])
	if by, err := o.number("by", 0); err != nil || by != 0 {
		return errors.Join(err, x.rig.MoveSent(h, by))
	}
	if o.settings["to"] != "" {
		to, err := strconv.ParseUint(o.settings["to"], 10, 32)
		if err != nil {
			return err
		}
		return x.rig.SetSent(h, uint32(to), o.has("-counted"))
	}
	below, err := strconv.ParseUint(o.settings["below"], 10, 32)
	if err != nil {
		return err
	}
	within, err := x.limit(o, "within", 20*time.Second)
	if err != nil {
		return err
	}
	return eventually(s.Context(), within, func() error {
		sent, err := x.rig.Sent(h)
		if err == nil && (len(sent) == 0 || uint64(slices.Max(sent)) >= below) {
			err = fmt.Errorf("the SAs of %s have sent %d packets, want fewer than %d", h, sent, below)
		}
		return err
	})
}

// replay sends again what has left an interface.
func (x *session) replay(s *script.State, args []string) error {
	if x.rig == nil {
		return errNoLab
	}
	o, err := split(args, 1, "count=")
	if err != nil {
		return err
	}
	count, err := o.number("count", 100)
	if err != nil {
		return err
	}
	h, name, err := end(o.words[0])
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(s.Context(), x.config.Slow.Longer(30*time.Second))
	defer cancel()
	return x.rig.Replay(ctx, h, name, count)
}

// startStrongSwan has $STRONGSWAN_SOCKET name where it answers.
func (x *session) startStrongSwan(s *script.State, h netns.Host, args []string) error {
	o, err := split(args, 1, "settings=", "plugins=", "-circuit")
	if err != nil {
		return err
	}
	c := rig.StrongSwanConfig{
		Host: h, Dir: s.Path(o.words[0]), Plugins: strings.ReplaceAll(o.settings["plugins"], ",", " "),
		Circuit: o.has("-circuit"), Libipsec: !x.has("kernel-esp"),
	}
	if file := o.settings["settings"]; file != "" {
		b, err := os.ReadFile(s.Path(file))
		if err != nil {
			return err
		}
		c.Settings = string(b)
	}
	started, err := x.rig.StartStrongSwan(s.Context(), c)
	if err != nil {
		return err
	}
	x.plain[h] = started
	return s.Setenv("STRONGSWAN_SOCKET", started.Socket())
}

// strongSwan runs strongSwan without an agent, as an administrator would.
func (x *session) strongSwan(s *script.State, args []string) (output, error) {
	if x.rig == nil {
		return output{}, errNoLab
	}
	if len(args) < 2 {
		return output{}, script.ErrUsage
	}
	h := netns.Host(args[1])
	running := x.plain[h]
	switch {
	case args[0] == "start" && running == nil:
		return output{}, x.startStrongSwan(s, h, args[2:])
	case running == nil:
		return output{}, fmt.Errorf("no strongSwan runs on %s: say `strongswan start %s DIRECTORY`", h, h)
	case args[0] == "stop" && len(args) == 2:
		delete(x.plain, h)
		return output{}, running.Stop()
	case args[0] == "load" && len(args) == 2:
		return output{}, running.Load(s.Context())
	case args[0] == "ctl" && len(args) > 2:
		ctx, cancel := context.WithTimeout(s.Context(), x.config.Slow.Longer(30*time.Second))
		defer cancel()
		return running.Control(ctx, args[2:]...)
	}
	return output{}, script.ErrUsage
}
