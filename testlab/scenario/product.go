package scenario

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"rsc.io/script"

	"github.com/circuitseal/circuitseal/testlab/netns"
)

func (x *session) controller(s *script.State, args []string) error {
	if x.rig == nil {
		return errNoLab
	}
	if len(args) != 1 {
		return script.ErrUsage
	}
	switch args[0] {
	case "start":
		if err := x.rig.StartController(s.Context()); err != nil {
			return err
		}
		pin, err := x.rig.RootPin()
		if err != nil {
			return err
		}
		return s.Setenv("PIN", pin)
	case "stop":
		return x.rig.StopController()
	case "kill":
		return x.rig.KillController()
	case "restart":
		if err := x.rig.StopController(); err != nil {
			return err
		}
		return x.rig.StartController(s.Context())
	}
	return script.ErrUsage
}

func (x *session) enrol(s *script.State, args []string) error {
	if x.rig == nil {
		return errNoLab
	}
	for _, h := range args {
		if err := x.rig.Enrol(s.Context(), netns.Host(h)); err != nil {
			return err
		}
	}
	return nil
}

func (x *session) apply(s *script.State, args []string) (output, error) {
	all := []string{"apply"}
	for _, f := range args {
		all = append(all, "-f", s.Path(f))
	}
	return x.sealctl(s, all)
}

func (x *session) sealctl(s *script.State, args []string) (output, error) {
	if x.rig == nil {
		return output{}, errNoLab
	}
	x.asked = time.Now()
	return x.rig.Sealctl(s.Context(), args...)
}

func (x *session) agent(s *script.State, args []string) error {
	if x.rig == nil {
		return errNoLab
	}
	if len(args) < 2 {
		return script.ErrUsage
	}
	for _, a := range args[1:] {
		if err := x.oneAgent(s.Context(), args[0], netns.Host(a)); err != nil {
			return err
		}
	}
	return nil
}

func (x *session) oneAgent(ctx context.Context, verb string, h netns.Host) error {
	switch verb {
	case "start":
		return x.rig.StartAgent(h)
	case "stop":
		return x.rig.StopAgent(h)
	case "kill":
		return x.rig.KillAgent(h)
	case "freeze":
		return x.rig.FreezeAgent(h)
	case "thaw":
		return x.rig.ThawAgent(h)
	case "ready":
		return x.rig.AgentReady(h, x.config.Slow.Longer(30*time.Second))
	case "alive":
		if p := x.rig.Agent(h); p == nil || !p.Alive() {
			return fmt.Errorf("the agent on %s does not run", h)
		}
		return nil
	case "ended":
		p := x.rig.Agent(h)
		if p == nil {
			return nil
		}
		ctx, cancel := context.WithTimeout(ctx, x.config.Slow.Longer(10*time.Second))
		defer cancel()
		select {
		case <-p.Done():
			return nil
		case <-ctx.Done():
			return fmt.Errorf("the agent on %s still runs", h)
		}
	}
	return script.ErrUsage
}

func (x *session) wireGuard(s *script.State, args []string) error {
	if x.rig == nil {
		return errNoLab
	}
	if len(args) != 2 {
		return script.ErrUsage
	}
	h := netns.Host(args[1])
	switch args[0] {
	case "kill":
		return x.rig.KillWireGuard(s.Context(), h)
	case "running":
		return eventually(s.Context(), x.config.Slow.Longer(5*time.Second), func() error {
			devices, err := x.rig.WireGuardDevices(s.Context(), h)
			if err == nil && len(x.rig.WireGuardPIDs(h))+len(devices) == 0 {
				err = fmt.Errorf("on %s there is neither a WireGuard process nor a device of the kernel's", h)
			}
			return err
		})
	}
	return script.ErrUsage
}

func (x *session) tunnels(s *script.State, args []string) error {
	if x.rig == nil {
		return errNoLab
	}
	o, err := split(args, 2, "within=")
	if err != nil {
		return err
	}
	within, err := x.limit(o, "within", 20*time.Second)
	if err != nil {
		return err
	}
	var n int
	if _, err := fmt.Sscan(o.words[1], &n); err != nil {
		return script.ErrUsage
	}
	if err := x.rig.TunnelsUp(s.Context(), netns.Host(o.words[0]), n, within); err != nil {
		return err
	}
	x.noteBackends(s.Context())
	return nil
}

// dropped waits until an appliance has no tunnel's device, and says how long after
// the last `sealctl` or `apply` began that was.
func (x *session) dropped(s *script.State, args []string) (output, error) {
	if x.rig == nil {
		return output{}, errNoLab
	}
	o, err := split(args, 1, "within=")
	if err != nil {
		return output{}, err
	}
	within, err := x.limit(o, "within", 5*time.Second)
	if err != nil {
		return output{}, err
	}
	h := netns.Host(o.words[0])
	err = eventually(s.Context(), within-time.Since(x.asked), func() error {
		devices, err := x.rig.TunnelDevices(s.Context(), h)
		if err == nil && len(devices) > 0 {
			err = fmt.Errorf("on %s there are still %q", h, devices)
		}
		return err
	})
	took := time.Since(x.asked)
	if err == nil && took > within {
		err = fmt.Errorf("the tunnels on %s were there for %s, want %s at most", h, took.Round(time.Millisecond), within)
	}
	return output{Stdout: fmt.Sprintf("%s has no tunnel's device after %s\n", h, took.Round(time.Millisecond))}, err
}

func (x *session) status(s *script.State, args []string) error {
	if x.rig == nil {
		return errNoLab
	}
	if len(args) < 2 || args[0] != "says" {
		return script.ErrUsage
	}
	want := strings.Join(args[1:], " ")
	return eventually(s.Context(), x.config.Slow.Longer(15*time.Second), func() error {
		out, err := x.rig.Sealctl(s.Context(), "status")
		if err == nil && !strings.Contains(out.Stdout, want) {
			err = fmt.Errorf("status does not say %q but:\n%s", want, out.Stdout)
		}
		return err
	})
}

func (x *session) keys(s *script.State, args []string) error {
	if x.rig == nil {
		return errNoLab
	}
	o, err := split(args, 2, "within=")
	if err != nil {
		return err
	}
	within, err := o.duration("within", 20*time.Second)
	if err != nil {
		return err
	}
	if o.words[0] != "says" && o.words[0] != "lacks" {
		return script.ErrUsage
	}
	want := o.words[1]
	return eventually(s.Context(), x.config.Slow.Longer(within), func() error {
		out, err := x.rig.Sealctl(s.Context(), "keys")
		if err == nil && strings.Contains(out.Stdout, want) != (o.words[0] == "says") {
			err = fmt.Errorf("want that `sealctl keys` %s %q; it says:\n%s", o.words[0], want, out.Stdout)
		}
		return err
	})
}

func (x *session) token(s *script.State, args []string) (output, error) {
	if x.rig == nil {
		return output{}, errNoLab
	}
	if len(args) < 1 {
		return output{}, script.ErrUsage
	}
	file, err := x.rig.CreateToken(s.Context(), netns.Host(args[0]), args[1:]...)
	if err != nil {
		return output{}, err
	}
	return output{}, s.Setenv("TOKEN", file)
}

func (x *session) enroll(s *script.State, args []string) (output, error) {
	if x.rig == nil {
		return output{}, errNoLab
	}
	if len(args) < 3 {
		return output{}, script.ErrUsage
	}
	return x.rig.EnrolWith(s.Context(), netns.Host(args[0]), s.Path(args[1]), args[2], args[3:]...)
}

func (x *session) agentctl(s *script.State, args []string) (output, error) {
	if x.rig == nil {
		return output{}, errNoLab
	}
	if len(args) < 2 {
		return output{}, script.ErrUsage
	}
	ctx, cancel := context.WithTimeout(s.Context(), x.config.Slow.Longer(10*time.Second))
	defer cancel()
	h := netns.Host(args[0])
	return x.rig.Lab.Run(ctx, h, x.rig.AgentSpec(h, args[1], args[2:]...))
}

// serve runs a controller that is expected not to come up.
func (x *session) serve(s *script.State, args []string) (output, error) {
	if x.rig == nil {
		return output{}, errNoLab
	}
	ctx, cancel := context.WithTimeout(s.Context(), x.config.Slow.Longer(10*time.Second))
	defer cancel()
	spec := x.rig.ControllerSpec()
	spec.Args = args
	return x.rig.Lab.Run(ctx, netns.Ctl, spec)
}

func (x *session) on(s *script.State, args []string) (output, error) {
	if x.rig == nil {
		return output{}, errNoLab
	}
	if len(args) < 2 {
		return output{}, script.ErrUsage
	}
	ctx, cancel := context.WithTimeout(s.Context(), x.config.Slow.Longer(30*time.Second))
	defer cancel()
	x.acted = time.Now()
	return x.rig.Lab.Run(ctx, netns.Host(args[0]), netns.Spec{Path: args[1], Args: args[2:]})
}

func (x *session) says(s *script.State, args []string) error {
	if x.rig == nil {
		return errNoLab
	}
	if len(args) < 2 {
		return script.ErrUsage
	}
	path, want := x.rig.Lab.Dir()+"/"+args[0]+".log", strings.Join(args[1:], " ")
	return eventually(s.Context(), x.config.Slow.Longer(15*time.Second), func() error {
		b, err := os.ReadFile(path)
		if err == nil && !strings.Contains(string(b), want) {
			err = fmt.Errorf("the log of %s does not say %q; its end:\n%s", args[0], want, b[max(0, len(b)-2000):])
		}
		return err
	})
}

// eventually tries f until it succeeds or the time is over.
func eventually(ctx context.Context, limit time.Duration, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := f()
		if err == nil || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}
