package demo

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/rig"
)

// The asked figures.
const (
	askedApply      = 2   // seconds from apply to first packet
	askedStart      = 1   // seconds from agent start to first packet
	askedAgent      = 40  // MiB
	askedController = 120 // MiB
)

// firstPacket asks with datagrams in quick succession: what a stream's
// retransmission timer would add is not the product's.
func firstPacket(deadline time.Duration) rig.Probe {
	return rig.Probe{From: netns.HQ, To: netns.VNet, UDP: true, Deadline: deadline, Attempt: 25 * time.Millisecond}
}

// timed runs begin while it asks for the first packet, and says how long after
// begin started that came back.
func (s *story) timed(ctx context.Context, begin func() error) (float64, error) {
	done := make(chan error, 1)
	start := time.Now()
	go func() { done <- begin() }()
	_, err := s.rig.Reach(ctx, firstPacket(20*time.Second))
	took := time.Since(start).Seconds()
	if beginErr := <-done; beginErr != nil {
		return 0, beginErr
	}
	return took, err
}

// blockedWithin is how long traffic may go on after it was forbidden.
const blockedWithin = 5 * time.Second

// blocked waits until nothing comes through any more.
func (s *story) blocked(ctx context.Context) error {
	p := firstPacket(200 * time.Millisecond)
	p.Attempt = 100 * time.Millisecond
	for start := time.Now(); ; {
		err := s.rig.Unreachable(ctx, p)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if time.Since(start) > blockedWithin {
			return fmt.Errorf("traffic is not blocked after %s: %w", blockedWithin, err)
		}
		pause(ctx, 10*time.Millisecond)
	}
}

// applyTimes deletes the connection and applies it again, several times.
func (s *story) applyTimes(ctx context.Context) error {
	file, err := s.connectionFile()
	if err != nil {
		return err
	}
	var took []float64
	for range s.config.Repeats {
		if _, err := s.rig.Sealctl(ctx, "delete", "connection", "contoso/hq-weu", "--yes"); err != nil {
			return err
		}
		if err := s.blocked(ctx); err != nil {
			return err
		}
		t, err := s.timed(ctx, func() error { return s.rig.Apply(ctx, file) })
		if err != nil {
			return err
		}
		took = append(took, t)
	}
	s.check("connection deleted: traffic stops; applied again: it returns", nil, "%d times", len(took))
	s.figure("apply to first packet, median", median(took), "s", askedApply, "%d runs, %.2f to %.2f s", len(took), slices.Min(took), slices.Max(took))
	return nil
}

// connectionFile holds the sample's Connection alone.
func (s *story) connectionFile() (string, error) {
	b, err := os.ReadFile(filepath.Join(s.config.Samples, "20-contoso.yaml"))
	if err != nil {
		return "", fmt.Errorf("read the sample: %w", err)
	}
	for doc := range strings.SplitSeq(string(b), "\n---\n") {
		if strings.Contains(doc, "\nkind: Connection\n") {
			path := filepath.Join(s.rig.Lab.Dir(), "connection.yaml")
			if err := os.WriteFile(path, []byte(doc), 0o600); err != nil {
				return "", fmt.Errorf("write the connection: %w", err)
			}
			return path, nil
		}
	}
	return "", fmt.Errorf("%s holds no Connection", s.config.Samples)
}

// startTimes starts an agent from its last good state, without a controller:
// with its WireGuard process still running, and without.
func (s *story) startTimes(ctx context.Context) error {
	if p := s.rig.Agent(netns.Prem); p != nil && p.Alive() {
		if err := s.rig.StopAgent(netns.Prem); err != nil {
			return err
		}
	}
	start := func() error { return s.rig.StartAgent(netns.Prem) }
	took, err := s.timed(ctx, start)
	if err == nil {
		err = s.rig.TunnelsUp(ctx, netns.Prem, 2, 20*time.Second)
	}
	if !s.check("agent restarts from its last good state, controller stopped", err, "") {
		return ErrFailed
	}
	s.figure("agent start to first packet, WireGuard process alive", took, "s", askedStart, "packets passed all the while: its tunnels outlive the agent")
	var times []float64
	for range max(1, s.config.Repeats/3) {
		if err := s.rig.StopAgent(netns.Prem); err != nil {
			return err
		}
		if err := s.rig.KillWireGuard(ctx, netns.Prem); err != nil {
			return err
		}
		if err := s.blocked(ctx); err != nil {
			return err
		}
		t, err := s.timed(ctx, start)
		if err != nil {
			return err
		}
		times = append(times, t)
	}
	s.check("agent starts without its WireGuard process, as after a reboot", nil, "%d times", len(times))
	s.figure("agent start to first packet, no WireGuard process", median(times), "s", askedStart, "median of %d, %.2f to %.2f s", len(times), slices.Min(times), slices.Max(times))
	return nil
}

func (s *story) idleMemory(context.Context) error { return s.memory("idle") }

// load runs TCP for ten seconds.
func (s *story) load(ctx context.Context) error {
	r, err := s.rig.Streams(ctx, netns.HQ, netns.VNet, 4, 10*time.Second, false)
	if err != nil {
		return err
	}
	s.check("TCP carries for 10 s", nil, "%.2f Gb/s in 4 streams", r.Gbps)
	s.figure("TCP rate, 4 streams, tap and both ends on one machine", r.Gbps, "Gb/s", 0, "")
	return s.memory("after a 10 s transfer")
}

// memory measures the product's processes.
func (s *story) memory(when string) error {
	type process struct {
		name   string
		pid    int
		atMost float64
	}
	processes := []process{{"controller", s.rig.ControllerPID(), askedController}}
	for _, h := range both {
		processes = append(processes, process{"agent on " + string(h), s.rig.Agent(h).PID(), askedAgent})
		for _, pid := range s.rig.WireGuardPIDs(h) {
			processes = append(processes, process{"WireGuard process on " + string(h), pid, 0})
		}
	}
	for _, p := range processes {
		m, err := rig.ReadMemory(p.pid)
		if err != nil {
			return err
		}
		s.figure(fmt.Sprintf("memory of %s, %s", p.name, when), m.Now, "MiB", p.atMost, "peak %.1f MiB", m.Peak)
	}
	return nil
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	if n == 0 {
		return 0
	}
	return (v[(n-1)/2] + v[n/2]) / 2
}
