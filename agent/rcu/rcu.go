// Package rcu has the kernel hurry its grace periods while many things are
// changed that wait for one each, and sees that it does so no longer than that.
// It knows /sys/kernel/rcu_expedited (kernel/ksysfs.c; what it does is told with
// rcupdate.rcu_expedited in Documentation/admin-guide/kernel-parameters.txt) and
// refuses to know what is changed.
//
// An ordinary grace period takes some 10 ms, of which an idle kernel has plenty;
// under the lock of all network configuration they add up to seconds in which
// nobody else configures anything. A hurried one takes 20 µs and interrupts every
// processor. A host whose administrator wants none of that says so with
// rcupdate.rcu_normal, which overrides this.
package rcu

import (
	"bytes"
	"errors"
	"fmt"
	"os"
)

// knob is a variable for tests.
var knob = "/sys/kernel/rcu_expedited"

// Hurry is a time in which grace periods are hurried. It is for one goroutine.
type Hurry struct {
	marker string
	mine   bool
}

// Begin starts one. marker is a file that is there as long as the setting is this
// owner's, in a directory that goes with a reboot, as the setting does. What
// cannot be set stays, and everything takes longer.
func Begin(marker string) *Hurry {
	h := &Hurry{marker: marker}
	h.Again()
	return h
}

// Again renews it: another owner on this host may have ended its own, and both
// have one setting. It is cheap.
func (h *Hurry) Again() {
	b, err := os.ReadFile(knob)
	if err != nil || !bytes.Equal(bytes.TrimSpace(b), []byte("0")) {
		return
	}
	// Who dies between the two lines leaves a marker too many, not one too few.
	if os.WriteFile(h.marker, nil, 0o600) != nil {
		return
	}
	if os.WriteFile(knob, []byte("1"), 0) == nil {
		h.mine = true
	} else if !h.mine {
		_ = os.Remove(h.marker)
	}
}

// End puts the setting back, if it was not as wanted already.
func (h *Hurry) End() error {
	if !h.mine {
		return nil
	}
	h.mine = false
	return Recover(h.marker)
}

// Recover puts the setting back where an owner of that marker ended without. What
// an administrator has set since is lost with it.
func Recover(marker string) error {
	if _, err := os.Stat(marker); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := os.WriteFile(knob, []byte("0"), 0); err != nil {
		return fmt.Errorf("have grace periods take their time again: %w", err)
	}
	if err := os.Remove(marker); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("have grace periods take their time again: %w", err)
	}
	return nil
}
