package netns

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CircuitNamespace is the namespace that an agent makes for its circuit
// interfaces.
func CircuitNamespace(instance string) string { return "cs-" + instance }

// SlowNamespace is the namespace that an agent makes for what is too big for
// its tunnel.
func SlowNamespace(instance string) string { return CircuitNamespace(instance) + "-slow" }

// StateDir is where an agent keeps what survives a reboot.
func StateDir(instance string) string { return filepath.Join("/var/lib/circuitseal", instance) }

// RunDir is where an agent keeps sockets and its bpffs.
func RunDir(instance string) string { return filepath.Join("/run/circuitseal", instance) }

// clean removes everything in the record. Repeats are free; one failure does
// not keep the rest.
func (r *record) clean() error {
	var errs []error
	all := slices.Clone(r.Namespaces)
	for _, i := range r.Instances {
		all = append(all, CircuitNamespace(i), SlowNamespace(i))
	}
	errs = append(errs, r.killProcesses(all))
	for _, i := range r.Instances {
		errs = append(errs, cleanInstance(i))
	}
	for _, n := range all {
		errs = append(errs, remove(n))
	}
	for _, d := range r.Dirs {
		errs = append(errs, os.RemoveAll(d))
	}
	return errors.Join(errs...)
}

// killProcesses ends what the lab started and whatever lives in its
// namespaces: nothing else can, since the lab made them. That finds the
// agent's WireGuard process, which outlives the agent by design.
func (r *record) killProcesses(namespaces []string) error {
	for _, p := range r.Processes {
		if start, ok := startTime(p.PID); ok && start == p.Start {
			_ = unix.Kill(p.PID, unix.SIGKILL)
		}
	}
	deadline := time.Now().Add(5 * time.Second)
	for {
		left := residents(namespaces)
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v do not end", left)
		}
		for _, pid := range left {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// residents lists the processes that have a thread in one of the namespaces,
// but never this one.
func residents(namespaces []string) []int {
	inodes := make(map[uint64]bool)
	for _, n := range namespaces {
		var st unix.Stat_t
		if unix.Stat(Path(n), &st) == nil {
			inodes[st.Ino] = true
		}
	}
	var found []int
	tasks, _ := filepath.Glob("/proc/[0-9]*/task/[0-9]*/ns/net")
	for _, t := range tasks {
		var st unix.Stat_t
		// A process may end while it is looked at.
		if unix.Stat(t, &st) != nil || !inodes[st.Ino] {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(t, "/")[2])
		if err == nil && pid != os.Getpid() && !slices.Contains(found, pid) && !dead(pid) {
			found = append(found, pid)
		}
	}
	return found
}

// cleanInstance removes mounts, sockets and files of an agent instance.
func cleanInstance(instance string) error {
	errs := []error{unmountBelow(RunDir(instance))}
	sockets, _ := filepath.Glob("/run/wireguard/" + CircuitNamespace(instance) + "-*.sock")
	for _, s := range sockets {
		errs = append(errs, removeIfThere(s))
	}
	return errors.Join(append(errs, os.RemoveAll(RunDir(instance)), os.RemoveAll(StateDir(instance)))...)
}

// unmountBelow detaches every mount at or below dir, the deepest first.
func unmountBelow(dir string) error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	defer func() { _ = f.Close() }()
	var points []string
	for s := bufio.NewScanner(f); s.Scan(); {
		// proc(5): the fifth field is the mount point.
		fields := strings.Fields(s.Text())
		if len(fields) > 4 && (fields[4] == dir || strings.HasPrefix(fields[4], dir+"/")) {
			points = append(points, fields[4])
		}
	}
	slices.Reverse(points)
	var errs []error
	for _, p := range points {
		if err := unix.Unmount(p, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

// startTime reads when a process began; ok is false when there is none.
func startTime(pid int) (start uint64, ok bool) {
	fields := stat(pid)
	if len(fields) < 20 {
		return 0, false
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	return start, err == nil
}

// dead reports whether a process is a zombie or gone.
func dead(pid int) bool {
	fields := stat(pid)
	return len(fields) == 0 || fields[0] == "Z" || fields[0] == "X"
}

// stat is /proc/PID/stat from the third field on: the second may hold spaces.
func stat(pid int) []string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	i := strings.LastIndexByte(string(b), ')')
	if i < 0 {
		return nil
	}
	return strings.Fields(string(b[i+1:]))
}
