package scenario

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"rsc.io/script"

	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/rig"
)

// Config is the same for all scenarios of a run.
type Config struct {
	Log *slog.Logger
	// Bin holds the binaries; Samples is deploy/samples.
	Bin, Samples string
	// Dir takes what a scenario leaves: its processes' logs, in a directory by
	// its name; empty for none.
	Dir string
	// Have are the kernel's facilities.
	Have []string
	// Slow is of this machine: it stretches all times that commands set, but
	// for `sleep`.
	Slow rig.Slow
}

// The results.
const (
	Pass = "pass"
	Fail = "fail"
	Skip = "skip"
)

// Result is a line of build/lab/host.json.
type Result struct {
	Scenario string  `json:"scenario"`
	Result   string  `json:"result"`
	Seconds  float64 `json:"seconds"`
	// FramesInClear is what the taps counted, null when none watched to the end;
	// in a control run it must not be 0.
	FramesInClear *uint64  `json:"frames_in_clear"`
	Kernel        string   `json:"kernel"`
	Backends      []string `json:"backends"`
	// Reason says why it failed or was skipped.
	Reason string `json:"reason,omitempty"`
	// Lacks are the facilities for want of which it was skipped.
	Lacks []string `json:"lacks,omitempty"`
}

// RekeysEnv is how often the scenario of colliding rekeyings asks for new keys: 50 times
// unless it is set.
const RekeysEnv = "CIRCUITSEAL_REKEYS"

// limit ends a scenario that hangs, unless it says that it takes longer; see
// Config.Slow.
const limit = 4 * time.Minute

// Run runs one scenario and writes its transcript to log.
func Run(ctx context.Context, c Config, s Scenario, log io.Writer) Result {
	start := time.Now()
	result := Result{Scenario: s.Name, Result: Pass, Kernel: kernel(), Backends: []string{}}
	if lacks := missing(s.Needs, c.Have); len(lacks) > 0 {
		result.Result, result.Lacks = Skip, lacks
		result.Reason = "this kernel has no " + strings.Join(lacks, ", ")
		return result
	}
	ctx, cancel := context.WithTimeout(ctx, c.Slow.Longer(s.Limit))
	defer cancel()
	session := &session{config: c, name: s.Name, witnesses: map[netns.Host]*rig.Witness{}, plain: map[netns.Host]*rig.StrongSwan{}}
	err := session.run(ctx, s, log)
	result.FramesInClear = session.inClear
	result.Backends = slices.Sorted(slices.Values(session.backends))
	if result.Backends == nil {
		result.Backends = []string{}
	}
	result.Seconds = time.Since(start).Seconds()
	if err != nil {
		result.Result, result.Reason = Fail, err.Error()
	}
	return result
}

// session is one scenario that runs.
type session struct {
	config  Config
	name    string
	control bool
	rig     *rig.Rig
	tap     *rig.Tap
	traffic *rig.Datagrams
	// witnesses look until they are asked.
	witnesses map[netns.Host]*rig.Witness
	// plain are strongSwans without an agent.
	plain map[netns.Host]*rig.StrongSwan
	// inClear and backends are for the result.
	inClear *uint64
	// moved is how far the clock was set.
	moved time.Duration
	// processors are those that the lab had before it was bound to one of them.
	processors unix.CPUSet
	backends   []string
	// acted is when the script last did something to a machine, repairs what agents
	// had counted when it last asked.
	acted   time.Time
	repairs map[string]uint64
	// generations are those of the PPKs that tunnels used when the script last asked.
	generations map[string]uint64
	// asked is when the script last began to ask something of the controller.
	asked time.Time
}

func (x *session) run(ctx context.Context, s Scenario, log io.Writer) (err error) {
	work, remove, err := workDir(x.config.Dir, s.Name)
	if err != nil {
		return err
	}
	defer remove()
	state, err := script.NewState(ctx, work, []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
		"SAMPLES=" + x.config.Samples,
		"BIN=" + x.config.Bin,
		"WORK=" + work,
		"REKEYS=" + cmp.Or(os.Getenv(RekeysEnv), "50"),
	})
	if err != nil {
		return fmt.Errorf("prepare the script: %w", err)
	}
	if err := state.ExtractFiles(s.archive); err != nil {
		return fmt.Errorf("extract the script's files: %w", err)
	}
	engine := &script.Engine{Cmds: x.commands(), Conds: x.conditions()}
	err = engine.Execute(state, s.Name+".txtar", bufio.NewReader(bytes.NewReader(s.archive.Comment)), log)
	err = errors.Join(err, state.CloseAndWait(log))
	return errors.Join(err, x.finish())
}

// finish takes the tap's last word and ends the lab. It has a time of its own,
// so that an interrupted scenario is cleaned up too.
func (x *session) finish() error {
	ctx, cancel := context.WithTimeout(context.Background(), x.config.Slow.Longer(time.Minute))
	defer cancel()
	errs := []error{x.moveClock(-x.moved), x.allProcessors()}
	if x.rig == nil {
		return errors.Join(errs...)
	}
	x.noteBackends(ctx)
	if x.tap != nil {
		s, err := x.tap.Stop(ctx)
		if err == nil {
			x.inClear = &s.InClear
		}
		if err == nil && s.InClear > 0 && !x.control {
			err = fmt.Errorf("the tap counted at the end: %s", rig.Describe(s))
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, x.rig.Close())...)
}

// has tells whether the kernel has a facility.
func (x *session) has(facility string) bool { return slices.Contains(x.config.Have, facility) }

// noteBackends adds what the agents say that encrypts.
func (x *session) noteBackends(ctx context.Context) {
	for _, h := range []netns.Host{netns.Prem, netns.NVA} {
		if p := x.rig.Agent(h); p == nil || !p.Alive() {
			continue
		}
		// An agent that does not answer is the script's business, not this one's.
		s, err := x.rig.Status(ctx, h)
		if err != nil {
			continue
		}
		for _, t := range s.Tunnels {
			if t.Backend != "" && !slices.Contains(x.backends, t.Backend) {
				x.backends = append(x.backends, t.Backend)
			}
		}
	}
}

func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}
