package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/circuitseal/circuitseal/testlab/kernelvm"
	"github.com/circuitseal/circuitseal/testlab/scenario"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestOutcomeIsAPassOnlyWhereTheGuestSaysSo(t *testing.T) {
	k := kernelvm.Kernel{Line: "6.1", Release: "6.1.0-56-amd64"}
	tests := []struct {
		name, json   string
		exit         kernelvm.Exit
		want, reason string
	}{
		{"pass", `[{"scenario":"a","result":"pass","kernel":"6.1.0-56-amd64","backends":["wireguard-kernel"]}]`, kernelvm.Exit{}, scenario.Pass, ""},
		{"fail", `[{"scenario":"a","result":"fail","kernel":"6.1.0-56-amd64","reason":"lost is 3"}]`, kernelvm.Exit{Code: 1}, scenario.Fail, "lost is 3"},
		{"pass and a bad exit", `[{"scenario":"a","result":"pass","kernel":"6.1.0-56-amd64"}]`, kernelvm.Exit{Code: 1}, scenario.Fail, "exit code 1"},
		{"skip", `[{"scenario":"a","result":"skip","kernel":"6.1.0-56-amd64","reason":"this kernel has no vrf"}]`, kernelvm.Exit{}, scenario.Fail, "no vrf"},
		{"nothing", ``, kernelvm.Exit{Code: -1, Problem: "did not end within 5 s"}, scenario.Fail, "did not end within 5 s"},
		{"nothing and a good exit", ``, kernelvm.Exit{}, scenario.Fail, "host.json"},
		{"none", `[]`, kernelvm.Exit{}, scenario.Fail, "no result of a"},
		{"another's", `[{"scenario":"b","result":"pass","kernel":"6.1.0-56-amd64"}]`, kernelvm.Exit{}, scenario.Fail, "no result of a"},
		{"another kernel's", `[{"scenario":"a","result":"pass","kernel":"6.18.44"}]`, kernelvm.Exit{}, scenario.Fail, "no result of a"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			share := t.TempDir()
			if tt.json != "" {
				write(t, filepath.Join(share, "a", "host.json"), tt.json)
			}
			tt.exit.Name = "a"
			r := outcome(share, k, tt.exit)
			if r.Result != tt.want || !strings.Contains(r.Reason, tt.reason) || r.Scenario != "a" {
				t.Errorf("outcome = %+v, want %s with %q", r, tt.want, tt.reason)
			}
		})
	}
}

// fakeGuests has a shell script stand for QEMU: it gets the share as $1 and the
// names of its jobs as $JOBS.
func fakeGuests(t *testing.T, script string) (*options, kernelvm.Kernel, *strings.Builder) {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "qemu-system-x86_64"), `#!/bin/sh
for a in "$@"; do case $a in *circuitseal.share=*) share=${a#*circuitseal.share=} share=${share%% *};; esac; done
JOBS=$(sed -n 's/^ *"name": "\(.*\)",*$/\1/p' "$share/order.json" | tr '\n' ' ')
ran() { echo '{"name":"'$1'","code":0,"seconds":1}' >>"$share/exits.jsonl"; }
die() { echo "Kernel panic - not syncing: $1" >"$share/console.log"; exit; }
`+script)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	write(t, filepath.Join(dir, "vminit"), "")
	modules := filepath.Join(dir, "modules", "6.12.1")
	write(t, filepath.Join(modules, "modules.dep"), "")
	write(t, filepath.Join(modules, "modules.builtin"), "virtio_pci.ko\n9pnet_virtio.ko\n9p.ko\noverlay.ko\n")
	var said strings.Builder
	o := &options{accel: "tcg", out: filepath.Join(dir, "out"), bin: dir, limit: time.Minute, slow: 1, root: dir, say: &said, banner: &said}
	return o, kernelvm.Kernel{Line: "6.12", Release: "6.12.1", Image: "bzImage", Modules: filepath.Dir(modules)}, &said
}

func TestAGuestThatDiesTakesOneJobWithIt(t *testing.T) {
	tests := []struct{ name, script, want, err string }{
		{"none dies", `for j in $JOBS; do ran $j; done; touch $share/done`, "a+ b+ c+ d+", ""},
		{"in the second", `case $JOBS in "a "*) ran a; die b;; esac; for j in $JOBS; do ran $j; done; touch $share/done`, "a+ b- c+ d+", ""},
		{"in the last", `ran a; ran b; ran c; die d`, "a+ b+ c+ d-", "panicked"},
		{"in each", `for j in $JOBS; do die $j; done`, "a- b- c- d-", "give up"},
		{"in two that are not its first", `case $JOBS in "a "*) ran a; die b;; "c "*) ran c; die d;; esac`, "a+ b- c+ d-", "panicked"},
		{"done too early", `ran a; touch $share/done`, "a+", "did not say how b ended"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o, k, said := fakeGuests(t, tt.script)
			share := o.share("6.12")
			write(t, filepath.Join(share+"-boot7", "a", "host.json"), "of an earlier run")
			var got []string
			jobs := func(string) (all []kernelvm.Job) {
				for _, n := range []string{"a", "b", "c", "d"} {
					all = append(all, kernelvm.Job{Name: n, Dir: "/", Args: []string{"true"}})
				}
				return all
			}
			err := o.each(t.Context(), k, share, jobs, nil, func(_ string, e kernelvm.Exit) error {
				mark := "+"
				if failure(e) != nil {
					mark = "-"
				}
				got = append(got, e.Name+mark)
				return nil
			})
			if strings.Join(got, " ") != tt.want {
				t.Errorf("jobs ended %q, want %q", got, tt.want)
			}
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("each = %v, want %q", err, tt.err)
			}
			if strings.Contains(tt.want, "b-") && !strings.Contains(said.String(), "Kernel panic") {
				t.Errorf("the panic is not told: %q", said.String())
			}
			if _, err := os.Stat(share + "-boot7"); err == nil {
				t.Error("what an earlier run left is still there")
			}
		})
	}
}

func TestAnInterruptedRunSaysWhatItDidNotFinish(t *testing.T) {
	o, k, _ := fakeGuests(t, `ran a; exec sleep 60`)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(500*time.Millisecond, cancel)
	found := results{path: filepath.Join(o.out, "kernel.json")}
	jobs := func(string) []kernelvm.Job { return []kernelvm.Job{{Name: "a"}, {Name: "b"}, {Name: "c"}} }
	err := o.each(ctx, k, o.share("6.12"), jobs, nil, func(share string, e kernelvm.Exit) error {
		return found.add(outcome(share, k, e))
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("each = %v, want the context's error", err)
	}
	written, err := scenario.ReadResults(found.path)
	if err != nil || len(written) != 3 {
		t.Fatalf("results are %+v, %v; want 3", written, err)
	}
	for _, r := range written[1:] {
		if r.Result != scenario.Fail || !strings.Contains(r.Reason, "interrupted") {
			t.Errorf("result is %+v, want a failure that says interrupted", r)
		}
	}
}

// A scenario that says how long it takes has that long in a guest, too.
func TestScenarioLimits(t *testing.T) {
	o := &options{slow: 4}
	jobs := o.scenarioJobs("share", []scenario.Scenario{{Name: "short", Limit: time.Minute}, {Name: "long", Limit: time.Hour}})
	if len(jobs) != 2 || jobs[0].LimitSeconds != 12*60 || jobs[1].LimitSeconds != 248*60 {
		t.Errorf("jobs %+v", jobs)
	}
}
