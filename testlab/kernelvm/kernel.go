package kernelvm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Lines are the kernel lines there are, the newest first.
var Lines = []string{"6.12", "6.1"}

// Kernel is an unpacked kernel package.
type Kernel struct {
	// Line is one of Lines, Release what `uname -r` says.
	Line, Release string
	// Image is the bzImage, Modules the directory that holds Release.
	Image, Modules string
}

// packages matches the packages of a line: neither the cloud flavour, which has
// no 9p, nor the real-time one, nor debug symbols.
func packages(line string) *regexp.Regexp {
	return regexp.MustCompile(`^linux-image-(` + regexp.QuoteMeta(line) + `\.\d+(?:-\d+|\+deb\d+)-amd64)-unsigned$`)
}

// fresh is how long the newest kernel in the cache is taken for the newest that
// there is.
const fresh = 24 * time.Hour

// Fetch finds the newest kernel of a line, downloads its package when the cache
// does not have it, and unpacks it there. apt checks what it downloads against
// the archive's signed checksums; nothing is installed. Without a network it
// makes do with what the cache has. say gets lines for people.
func Fetch(ctx context.Context, line, cache string, say func(string)) (Kernel, error) {
	if !slices.Contains(Lines, line) {
		return Kernel{}, fmt.Errorf("there is no kernel line %q; there are: %s", line, strings.Join(Lines, ", "))
	}
	if runtime.GOARCH != "amd64" {
		return Kernel{}, fmt.Errorf("the lab's kernels are for amd64, and this checkout builds for %s", runtime.GOARCH)
	}
	dir := filepath.Join(cache, line)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Kernel{}, fmt.Errorf("make the kernel cache: %w", err)
	}
	cached, age, err := inCache(dir)
	if err != nil {
		return Kernel{}, err
	}
	if cached != "" && age < fresh {
		return open(line, filepath.Join(dir, cached))
	}
	name, err := bring(ctx, line, dir, cached, say)
	switch {
	case err != nil && cached == "":
		return Kernel{}, err
	case err != nil:
		say(fmt.Sprintf("keep to %s, which is in the cache: %v", cached, err))
		return open(line, filepath.Join(dir, cached))
	}
	if err := prune(dir, name); err != nil {
		return Kernel{}, err
	}
	return open(line, filepath.Join(dir, name))
}

// bring has the newest kernel in the cache, where cached is the newest so far,
// and names it.
func bring(ctx context.Context, line, dir, cached string, say func(string)) (string, error) {
	// An old list may name what is not there any more. Whoever may not renew it
	// makes do with it.
	if out, err := exec.CommandContext(ctx, "apt-get", "update", "-qq").CombinedOutput(); err != nil {
		say(fmt.Sprintf("apt's lists stay as they are: %v: %s", err, bytes.TrimSpace(out)))
	}
	name, err := search(ctx, line)
	switch {
	case err != nil:
		return "", err
	case name == "":
		return "", fmt.Errorf("apt knows no linux-image-%s.*-amd64-unsigned: the kernels come from Debian 12 and its security updates", line)
	case cached != "" && compareVersions(cached, name) >= 0:
		return cached, nil
	}
	say("fetch " + name)
	return name, download(ctx, dir, name)
}

// stamp is touched when a package is known to be the newest.
const stamp = ".newest"

// inCache is the newest whole package in the cache, and how long ago it was the
// newest in the archive.
func inCache(dir string) (name string, age time.Duration, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", 0, fmt.Errorf("read the kernel cache: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "linux-image-") {
			names = append(names, e.Name())
		}
	}
	if len(names) == 0 {
		return "", 0, nil
	}
	name = slices.MaxFunc(names, compareVersions)
	info, err := os.Stat(filepath.Join(dir, name, stamp))
	if errors.Is(err, os.ErrNotExist) {
		return name, fresh, nil
	}
	if err != nil {
		return "", 0, fmt.Errorf("read the kernel cache: %w", err)
	}
	return name, time.Since(info.ModTime()), nil
}

func search(ctx context.Context, line string) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-cache", "search", "--names-only", "^linux-image-"+regexp.QuoteMeta(line)).Output()
	if err != nil {
		return "", fmt.Errorf("ask for the newest kernel %s: apt-cache search: %w", line, err)
	}
	return pick(line, out), nil
}

// pick chooses the newest package of a line among the lines of apt-cache.
func pick(line string, list []byte) string {
	want := packages(line)
	var names []string
	for scan := bufio.NewScanner(bytes.NewReader(list)); scan.Scan(); {
		name, _, _ := strings.Cut(scan.Text(), " ")
		if want.MatchString(name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return slices.MaxFunc(names, compareVersions)
}

var digits = regexp.MustCompile(`\d+`)

// compareVersions compares the numbers in two names, one after another.
func compareVersions(a, b string) int {
	number := func(s string) int {
		n, _ := strconv.Atoi(s) // more digits than fit are no kernel's
		return n
	}
	return slices.CompareFunc(digits.FindAllString(a, -1), digits.FindAllString(b, -1), func(x, y string) int {
		return number(x) - number(y)
	})
}

// download brings a whole package into the cache or nothing.
func download(ctx context.Context, dir, name string) error {
	work, err := os.MkdirTemp(dir, ".fetch-")
	if err != nil {
		return fmt.Errorf("fetch %s: %w", name, err)
	}
	defer func() { _ = os.RemoveAll(work) }()
	tree := filepath.Join(work, "tree")
	run := func(args ...string) error {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Dir = work
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("fetch %s: %s: %w: %s", name, args[0], err, bytes.TrimSpace(out))
		}
		return nil
	}
	if err := run("apt-get", "download", "-qq", name); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("fetch %s: apt-get left %d packages", name, len(debs))
	}
	if err := run("dpkg-deb", "-x", debs[0], tree); err != nil {
		return err
	}
	release := packages(lineOf(dir)).FindStringSubmatch(name)
	if len(release) != 2 {
		return fmt.Errorf("fetch %s: the name has no release", name)
	}
	// The guest's modprobe needs the index.
	if err := run("depmod", "-b", tree, release[1]); err != nil {
		return err
	}
	// Somebody else may have been as quick.
	if err := os.Rename(tree, filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("fetch %s: %w", name, err)
	}
	return nil
}

func lineOf(dir string) string { return filepath.Base(dir) }

// unused is how long an older kernel stays: a guest may run with it.
const unused = 7 * 24 * time.Hour

// prune stamps the newest package, and removes the others some time after they
// were that.
func prune(dir, newest string) error {
	if err := os.WriteFile(filepath.Join(dir, newest, stamp), nil, 0o644); err != nil {
		return fmt.Errorf("stamp the kernel cache: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read the kernel cache: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "linux-image-") || e.Name() == newest {
			continue
		}
		tree := filepath.Join(dir, e.Name())
		if info, err := os.Stat(filepath.Join(tree, stamp)); err != nil || time.Since(info.ModTime()) > unused {
			errs = append(errs, os.RemoveAll(tree))
		}
	}
	return errors.Join(errs...)
}

// open finds the parts of an unpacked package.
func open(line, tree string) (Kernel, error) {
	images, err := filepath.Glob(filepath.Join(tree, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return Kernel{}, fmt.Errorf("%s has %d kernels, want 1: remove it and try again", tree, len(images))
	}
	k := Kernel{Line: line, Image: images[0], Modules: filepath.Join(tree, "lib", "modules")}
	k.Release = strings.TrimPrefix(filepath.Base(k.Image), "vmlinuz-")
	if _, err := os.Stat(filepath.Join(k.Modules, k.Release, "modules.dep")); err != nil {
		return Kernel{}, fmt.Errorf("%s has no index of modules: remove it and try again: %w", tree, err)
	}
	return k, nil
}
