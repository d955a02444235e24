package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// asCommand in the environment makes this test's binary the command itself, which
// shells can call.
const asCommand = "CIRCUITSEAL_TEST_AS_SEALCTL"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// shell is a shell that has to be there in CI, with what else it needs.
func shell(t *testing.T, name string, files ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	for _, f := range files {
		if err == nil {
			_, err = os.Stat(f)
		}
	}
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatalf("%v; `make test` installs it", err)
	}
	if err != nil {
		t.Skip(err)
	}
	return path
}

// What completion prints works in the shells that it is for, with the words of a
// controller that runs.
func TestCompletionInShells(t *testing.T) {
	start(t)
	must(t, "", "apply", "-f", samples)
	bin := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(bin, "sealctl")); err != nil {
		t.Fatal(err)
	}
	t.Setenv(asCommand, "1")
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("HOME", t.TempDir())
	// lines are what is typed before the tabulator, and words that are offered.
	lines := []struct {
		typed string
		words []string
	}{
		{"sealctl encr", nil},
		{"sealctl desc", []string{"describe"}},
		{"sealctl get circ", []string{"circuit"}},
		{"sealctl get node ", []string{"nva-1", "prem-1"}},
		{"sealctl describe site/contoso/v", []string{"site/contoso/vnet-weu"}},
		{"sealctl get sites --customer c", []string{"contoso"}},
		{"sealctl explain site.spec.t", []string{"site.spec.type"}},
	}

	const extra = "/usr/share/bash-completion/bash_completion"
	t.Run("bash", func(t *testing.T) {
		path := shell(t, "bash", extra)
		for _, l := range lines {
			// As readline does: the words and the place of the cursor.
			script := fmt.Sprintf(`source %s; source <(sealctl completion bash)
line='%s'; read -ra COMP_WORDS <<<"$line"; [[ $line == *' ' ]] && COMP_WORDS+=('')
COMP_LINE=$line COMP_POINT=${#line} COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_TYPE=9
__start_sealctl; printf '%%s\n' "${COMPREPLY[@]%%%% *}"`, extra, l.typed)
			offers(t, l.typed, output(t, path, "--norc", "-c", script), l.words)
		}
	})
	t.Run("fish", func(t *testing.T) {
		path := shell(t, "fish")
		for _, l := range lines {
			got := output(t, path, "--no-config", "-c", fmt.Sprintf("sealctl completion fish | source; complete -C '%s'", l.typed))
			want := l.words
			if strings.HasPrefix(l.typed, "sealctl explain ") {
				// Two words keep fish from a space behind what may go on.
				want = []string{l.words[0], l.words[0] + "."}
			}
			offers(t, l.typed, got, want)
		}
	})
	t.Run("zsh", func(t *testing.T) {
		path := shell(t, "zsh")
		for _, l := range lines {
			if len(l.words) == 1 {
				// zsh puts the only word that fits into the line.
				at := strings.LastIndexByte(l.typed, ' ') + 1
				if got := zsh(t, path, l.typed); got != l.typed[:at]+l.words[0] {
					t.Errorf("%q becomes %q, want the word %q", l.typed, got, l.words[0])
				}
			}
		}
	})
}

// offers wants words, which may have a description behind them, and no others.
func offers(t *testing.T, typed, got string, want []string) {
	t.Helper()
	var words []string
	for l := range strings.Lines(got) {
		if w, _, _ := strings.Cut(strings.TrimSpace(l), "\t"); w != "" {
			words = append(words, w)
		}
	}
	if strings.Join(words, " ") != strings.Join(want, " ") {
		t.Errorf("%q is completed with %q, want %q", typed, words, want)
	}
}

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).Output()
	if failed := new(exec.ExitError); errors.As(err, &failed) && len(failed.Stderr) > 0 {
		t.Fatalf("%v: %s", err, failed.Stderr)
	}
	return string(out)
}

// zsh types a line and a tabulator into a zsh on a terminal; the result is what
// the line has become.
func zsh(t *testing.T, path, typed string) string {
	t.Helper()
	master, slave := terminal(t)
	// The line editor answers the tabulator, and then a key that prints the line.
	const setup = `autoload -U compinit; compinit -u -D
source <(sealctl completion zsh)
show() { print; print -r -- "LINE[$BUFFER]"; exit }
zle -N show; bindkey '^X' show; bindkey '^I' complete-word; PS1='READY'' >'
`
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, ".zshrc"), []byte(setup), 0o600); err != nil {
		t.Fatal(err)
	}
	// A shell that is killed is read to its end.
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c := exec.CommandContext(ctx, path, "-i")
	c.Env = append(os.Environ(), "ZDOTDIR="+dir, "TERM=dumb")
	c.Stdin, c.Stdout, c.Stderr = slave, slave, slave
	c.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if err := slave.Close(); err != nil {
		t.Fatal(err)
	}
	var seen strings.Builder
	until := func(what string) {
		b := make([]byte, 4096)
		for !strings.Contains(seen.String(), what) {
			n, err := master.Read(b)
			seen.Write(b[:n])
			if err != nil {
				t.Fatalf("%q does not come: %v\n%s", what, err, seen.String())
			}
		}
	}
	until("READY >")
	if _, err := io.WriteString(master, typed+"\t\x18"); err != nil {
		t.Fatal(err)
	}
	until("LINE[")
	until("]")
	_ = c.Wait()
	_, rest, _ := strings.Cut(seen.String(), "LINE[")
	line, _, _ := strings.Cut(rest, "]")
	return strings.TrimRight(line, " ")
}
