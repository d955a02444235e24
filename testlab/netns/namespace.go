package netns

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// namedDir is where iproute2 keeps namespaces by name.
const namedDir = "/run/netns"

// Path is the file that stands for a named namespace.
func Path(namespace string) string { return filepath.Join(namedDir, namespace) }

// Do runs f on a thread of its own inside the named namespace, as
// `nsenter --net` would: mounts stay those of the caller. Processes that f
// starts begin in that namespace. f must not start goroutines that rely on it.
func Do(namespace string, f func() error) error {
	there, err := unix.Open(Path(namespace), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", namespace, err)
	}
	defer func() { _ = unix.Close(there) }()
	result := make(chan error, 1)
	go func() {
		// The thread is left locked when it cannot come back: the runtime then
		// ends it instead of handing it to other goroutines.
		runtime.LockOSThread()
		here, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			result <- fmt.Errorf("open the thread's namespace: %w", err)
			return
		}
		defer func() { _ = unix.Close(here) }()
		if err := unix.Setns(there, unix.CLONE_NEWNET); err != nil {
			result <- fmt.Errorf("enter namespace %s: %w", namespace, err)
			return
		}
		err = f()
		if back := unix.Setns(here, unix.CLONE_NEWNET); back != nil {
			result <- errors.Join(err, fmt.Errorf("leave namespace %s: %w", namespace, back))
			return
		}
		runtime.UnlockOSThread()
		result <- err
	}()
	return <-result
}

// setSysctls writes keys such as ipv4/ip_forward below /proc/sys/net, which
// shows the thread's namespace.
func setSysctls(namespace string, values ...[2]string) error {
	return Do(namespace, func() error {
		for _, kv := range values {
			if err := os.WriteFile("/proc/sys/net/"+kv[0], []byte(kv[1]), 0o644); err != nil {
				return fmt.Errorf("set net/%s to %s in %s: %w", kv[0], kv[1], namespace, err)
			}
		}
		return nil
	})
}

// batch feeds lines to one `ip -batch`, in the named namespace, or in the
// caller's when namespace is empty.
func batch(ctx context.Context, namespace string, lines ...string) error {
	args := []string{"-batch", "-"}
	if namespace != "" {
		args = append([]string{"-n", namespace}, args...)
	}
	cmd := exec.CommandContext(ctx, "ip", args...)
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("configure %s with ip -batch: %w: %s", namespace, err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}

// nft loads a ruleset in the named namespace.
func nft(ctx context.Context, namespace, rules string) error {
	return Do(namespace, func() error {
		cmd := exec.CommandContext(ctx, "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("load nftables rules in %s: %w: %s", namespace, err, bytes.TrimSpace(out))
		}
		return nil
	})
}

// remove unmounts and unlinks a named namespace; one that is not there is fine.
func remove(namespace string) error {
	path := Path(namespace)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove namespace: %w", err)
	}
	return nil
}
