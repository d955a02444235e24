package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

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
		{"pass", `[{"scenario":"a","result":"pass","backends":["wireguard-kernel"]}]`, kernelvm.Exit{}, scenario.Pass, ""},
		{"fail", `[{"scenario":"a","result":"fail","reason":"lost is 3"}]`, kernelvm.Exit{Code: 1}, scenario.Fail, "lost is 3"},
		{"pass and a bad exit", `[{"scenario":"a","result":"pass"}]`, kernelvm.Exit{Code: 1}, scenario.Fail, "exit code 1"},
		{"skip", `[{"scenario":"a","result":"skip","reason":"this kernel has no vrf"}]`, kernelvm.Exit{}, scenario.Fail, "no vrf"},
		{"nothing", ``, kernelvm.Exit{Code: -1, Problem: "did not end within 5 s"}, scenario.Fail, "did not end within 5 s"},
		{"nothing and a good exit", ``, kernelvm.Exit{}, scenario.Fail, "host.json"},
		{"none", `[]`, kernelvm.Exit{}, scenario.Fail, "0 results"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			share := t.TempDir()
			if tt.json != "" {
				write(t, filepath.Join(share, "a", "host.json"), tt.json)
			}
			r := outcome(share, k, scenario.Scenario{Name: "a"}, tt.exit)
			if r.Result != tt.want || !strings.Contains(r.Reason, tt.reason) || r.Scenario != "a" {
				t.Errorf("outcome = %+v, want %s with %q", r, tt.want, tt.reason)
			}
		})
	}
}

// A guest that dies in its second scenario fails that one alone: what it had run
// counts, and another runs the third.
func TestAGuestThatDiesTakesOneScenarioWithIt(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "qemu-system-x86_64"), `#!/bin/sh
ran() {
	mkdir -p "$1/$2"
	echo '[{"scenario":"'$2'","result":"pass","backends":[]}]' >"$1/$2/host.json"
	echo '{"name":"'$2'","code":0,"seconds":1}' >>"$1/exits.jsonl"
}
if [ ! -e "$FAKE/booted" ]; then
	touch "$FAKE/booted"
	ran "$FAKE/out/kernel-6.12" a
	echo 'Kernel panic - not syncing: made up' >"$FAKE/out/kernel-6.12/console.log"
else
	ran "$FAKE/out/kernel-6.12-boot2" c
	touch "$FAKE/out/kernel-6.12-boot2/done"
fi
`)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("FAKE", dir)
	write(t, filepath.Join(dir, "vminit"), "")
	modules := filepath.Join(dir, "modules", "6.12.1")
	write(t, filepath.Join(modules, "modules.dep"), "")
	write(t, filepath.Join(modules, "modules.builtin"), "virtio_pci.ko\n9pnet_virtio.ko\n9p.ko\noverlay.ko\n")
	var said strings.Builder
	o := &options{accel: "tcg", out: filepath.Join(dir, "out"), bin: dir, limit: 1 << 40, slow: 1, root: dir, say: &said}
	k := kernelvm.Kernel{Line: "6.12", Release: "6.12.1", Image: "bzImage", Modules: filepath.Dir(modules)}
	results, err := o.labUnder(t.Context(), k, []scenario.Scenario{{Name: "a"}, {Name: "b"}, {Name: "c"}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range results {
		got = append(got, r.Scenario+" "+r.Result)
	}
	if want := "a pass, b fail, c pass"; strings.Join(got, ", ") != want {
		t.Fatalf("results are %q, want %s", got, want)
	}
	if !strings.Contains(results[1].Reason, "made up") || !strings.Contains(said.String(), "made up") {
		t.Errorf("the panic is not told: %q, %q", results[1].Reason, said.String())
	}
}
