package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/circuitseal/circuitseal/testlab/kernelvm"
)

// each runs jobs under one kernel and calls ended for every one, in their
// order, when its guest is gone. A guest that dies takes only the job with it that
// ran: another, with a share of its own, is booted for the others. jobs makes
// the jobs for a share; dirs are made in it.
func (o *options) each(ctx context.Context, k kernelvm.Kernel, share string, jobs func(share string) []kernelvm.Job, dirs []string,
	ended func(share string, e kernelvm.Exit) error) error {
	if err := removeShares(share); err != nil {
		return err
	}
	limit := time.Now().Add(o.limit)
	barren := false
	here := share
	for boot, done, all := 1, 0, len(jobs(share)); done < all; boot++ {
		if boot > 1 {
			here = fmt.Sprintf("%s-boot%d", share, boot)
		}
		left := jobs(here)[done:]
		exits, err := o.boot(ctx, k, here, time.Until(limit), left, dirs)
		guest, died := errors.AsType[*kernelvm.GuestError](err)
		if died && len(exits) < len(left) {
			_, _ = fmt.Fprintf(o.say, "%s: %v\n", left[len(exits)].Name, guest)
			exits = append(exits, kernelvm.Exit{Name: left[len(exits)].Name, Code: -1, Problem: guest.Error()})
		}
		for _, e := range exits {
			if err := ended(here, e); err != nil {
				return err
			}
		}
		done += len(exits)
		switch {
		case ctx.Err() != nil:
			return errors.Join(ctx.Err(), unrun(here, left[len(exits):], "interrupted", ended))
		case !died && err != nil:
			return err
		case done == all:
			return err
		case barren && len(exits) == 1, time.Now().After(limit):
			// Nothing is to be had from this kernel; what did not run is no pass.
			err := fmt.Errorf("give up: the virtual machine %s", guest.Reason)
			return errors.Join(err, unrun(here, left[len(exits):], "the virtual machine "+guest.Reason+" before it", ended))
		}
		barren = len(exits) == 1
	}
	return nil
}

// unrun says of jobs that they did not run to their ends.
func unrun(share string, jobs []kernelvm.Job, why string, ended func(share string, e kernelvm.Exit) error) error {
	var errs []error
	for _, j := range jobs {
		errs = append(errs, ended(share, kernelvm.Exit{Name: j.Name, Code: -1, Problem: "was not run to its end: " + why}))
	}
	return errors.Join(errs...)
}

// removeShares removes what earlier runs left, so that nobody takes it for this
// one's.
func removeShares(share string) error {
	old, err := filepath.Glob(share + "-boot*")
	if err != nil {
		return fmt.Errorf("remove old results: %w", err)
	}
	var errs []error
	for _, path := range append(old, share) {
		errs = append(errs, os.RemoveAll(path))
	}
	return errors.Join(errs...)
}
