// Package systemd_test checks the units that are shipped: systemd takes them,
// they fit into the boot of a host with cloud-init, and the programs take the
// flags that they name.
package systemd_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Those parts of Debian 12's units that decide the order: cloud-init, on every
// Azure image, lies between the network and sysinit.target.
var host = map[string]string{
	"cloud-init.service": `[Unit]
DefaultDependencies=no
Wants=cloud-init-local.service
After=cloud-init-local.service networking.service
Before=network-online.target sysinit.target
[Service]
Type=oneshot
ExecStart=/bin/true
[Install]
WantedBy=cloud-init.target
`,
	"cloud-init-local.service": `[Unit]
DefaultDependencies=no
Wants=network-pre.target
After=systemd-remount-fs.service
Before=network-pre.target shutdown.target sysinit.target
Conflicts=shutdown.target
[Service]
Type=oneshot
ExecStart=/bin/true
`,
	"networking.service": `[Unit]
DefaultDependencies=no
Requires=ifupdown-pre.service
Wants=network.target
After=local-fs.target network-pre.target apparmor.service systemd-sysctl.service systemd-modules-load.service ifupdown-pre.service
Before=network.target shutdown.target network-online.target
Conflicts=shutdown.target
[Service]
Type=oneshot
ExecStart=/bin/true
`,
	"ifupdown-pre.service": `[Unit]
DefaultDependencies=no
After=systemd-udev-trigger.service
Before=network.target
[Service]
Type=oneshot
ExecStart=/bin/true
`,
	"circuitseal-test.target": `[Unit]
Requires=sysinit.target cloud-init.service networking.service circuitseal-agent@main.service circuitseal-controller.service
`,
}

var execStart = regexp.MustCompile(`(?m)^ExecStart=/usr/bin/(\S+) (.*)$`)

func units(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("*.service")
	if err != nil || len(files) == 0 {
		t.Fatalf("no units: %v", err)
	}
	return files
}

func TestSystemdTakesThem(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range host {
		write(name, text)
	}
	for _, f := range units(t) {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		// The programs need not be installed where this runs.
		write(f, execStart.ReplaceAllString(string(b), "ExecStart=/bin/true $2"))
	}
	verify := func(unit string) string {
		t.Helper()
		c := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", filepath.Join(dir, unit))
		c.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
		// It fails for faults of this machine's own units, too: what it says counts.
		out, err := c.CombinedOutput()
		if _, failed := errors.AsType[*exec.ExitError](err); err != nil && !failed {
			t.Fatal(err)
		}
		return string(out)
	}
	for _, f := range units(t) {
		f = strings.Replace(f, "@.", "@main.", 1)
		if out := verify(f); strings.Contains(out, "circuitseal") {
			t.Errorf("verify %s:\n%s", f, out)
		}
	}
	if out := verify("circuitseal-test.target"); strings.Contains(out, "cycle") {
		t.Errorf("the boot of a host with cloud-init:\n%s", out)
	}

	// The check can fail: with the default dependencies there is a cycle.
	b, err := os.ReadFile("circuitseal-agent@.service")
	if err != nil {
		t.Fatal(err)
	}
	write("circuitseal-agent@.service", execStart.ReplaceAllString(
		strings.Replace(string(b), "DefaultDependencies=no\n", "", 1), "ExecStart=/bin/true $2"))
	if out := verify("circuitseal-test.target"); !strings.Contains(out, "cycle") {
		t.Errorf("with default dependencies no cycle is found:\n%s", out)
	}
}

func TestProgramsTakeTheirFlags(t *testing.T) {
	bin := os.Getenv("CIRCUITSEAL_BIN")
	if bin == "" {
		if os.Getenv("CI") == "true" {
			t.Fatal("CIRCUITSEAL_BIN is not set: make test sets it")
		}
		t.Skip("CIRCUITSEAL_BIN is not set: make test sets it")
	}
	for _, f := range units(t) {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		m := execStart.FindStringSubmatch(string(b))
		if m == nil {
			t.Errorf("%s starts no program of /usr/bin", f)
			continue
		}
		args := strings.Fields(strings.NewReplacer("%i", "main", "$OPTIONS", "").Replace(m[2]))
		if out, err := exec.CommandContext(t.Context(), filepath.Join(bin, m[1]), append(args, "--help")...).CombinedOutput(); err != nil {
			t.Errorf("%s: %s %s: %v\n%s", f, m[1], m[2], err, out)
		}
	}
}
