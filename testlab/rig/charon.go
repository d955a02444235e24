package rig

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/testlab/netns"
)

// CharonPIDs are the processes of strongSwan's daemon on an appliance.
func (r *Rig) CharonPIDs(h netns.Host) []int {
	var found []int
	for _, pid := range r.Lab.Residents(h) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err == nil && strings.HasPrefix(string(b), "charon") {
			found = append(found, pid)
		}
	}
	return found
}

// EndCharon ends strongSwan's daemon on an appliance by a signal, and waits until
// it is gone.
func (r *Rig) EndCharon(ctx context.Context, h netns.Host, by unix.Signal) error {
	pids, err := r.SignalCharon(h, by)
	if err != nil {
		return err
	}
	return until(ctx, r.slow.Longer(10*time.Second), "charon is gone", func() error {
		for _, pid := range r.CharonPIDs(h) {
			if slices.Contains(pids, pid) {
				return errors.New("it is still there")
			}
		}
		return nil
	})
}

// SignalCharon gives strongSwan's daemon on an appliance a signal, which may have it stand
// (SIGSTOP) or go on (SIGCONT), and names its processes.
func (r *Rig) SignalCharon(h netns.Host, by unix.Signal) ([]int, error) {
	pids := r.CharonPIDs(h)
	if len(pids) == 0 {
		return nil, fmt.Errorf("signal charon on %s: it does not run", h)
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, by); err != nil {
			return nil, fmt.Errorf("signal process %d: %w", pid, err)
		}
	}
	return pids, nil
}

// keepCharonLog copies what strongSwan's daemon on an appliance has logged to the logs
// that outlive the lab, and beside it for which reasons the kernel has refused packets
// (Documentation/networking/xfrm_proc.rst).
func (r *Rig) keepCharonLog(h netns.Host) error {
	b, err := os.ReadFile(filepath.Join("/run/circuitseal", r.Lab.Instance(h), "charon.log"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = os.WriteFile(r.file("charon-"+string(h)+".log"), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("keep the log of charon on %s: %w", h, err)
	}
	err = netns.Do(r.CircuitNamespace(h), func() error {
		b, err := os.ReadFile("/proc/thread-self/net/xfrm_stat")
		if err != nil {
			return err
		}
		return os.WriteFile(r.file("xfrm-"+string(h)+".log"), b, 0o600)
	})
	// The namespace may have been taken away.
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("keep the counters of XFRM on %s: %w", h, err)
	}
	return nil
}

// Swanctl runs strongSwan's own command line against the charon of an appliance.
func (r *Rig) Swanctl(ctx context.Context, h netns.Host, args ...string) (netns.Output, error) {
	socket := filepath.Join("/run/circuitseal", r.Lab.Instance(h), "charon.vici")
	return r.Lab.Run(ctx, h, netns.Spec{Path: "swanctl", Args: append(slices.Clone(args), "--uri", "unix://"+socket)})
}
