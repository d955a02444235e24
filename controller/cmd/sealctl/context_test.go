package main

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// pinOf is the pin of a controller's root.
func pinOf(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile(dir + "/admin/root.pem")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	return fmt.Sprintf("sha256:%x", sha256.Sum256(block.Bytes))
}

// Two controllers with nothing in common, each reached by its context.
func TestContexts(t *testing.T) {
	one, two := start(t), filepath.Join(t.TempDir(), "two")
	first, second := os.Getenv("SEALCTL_SERVER"), "https://"+serve(t, two)
	if got := must(t, "", "context", "set", "one"); !strings.HasSuffix(got, "; it is the current one; as long as it is set, the environment goes before it: SEALCTL_SERVER, SEALCTL_IDENTITY, SEALCTL_ROOT\n") {
		t.Errorf("the first: %q", got)
	}
	for _, name := range []string{"SEALCTL_SERVER", "SEALCTL_ROOT", "SEALCTL_IDENTITY"} {
		t.Setenv(name, "")
	}
	if got := must(t, "", "context", "set", "two", "--server", second, "--root-pin", pinOf(t, two), "--identity", two+"/admin/identity.pem"); !strings.HasSuffix(got, "; the current one is still one\n") {
		t.Errorf("the second: %q", got)
	}
	file := os.Getenv("XDG_CONFIG_HOME") + "/circuitseal/contexts.yaml"
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file of contexts: %v, %v", info, err)
	}
	must(t, "apiVersion: circuitseal.io/v1\nkind: Customer\nmetadata: {name: first}\nspec: {model: connect-to}\n", "apply", "-f", "-")
	must(t, "apiVersion: circuitseal.io/v1\nkind: Customer\nmetadata: {name: second}\nspec: {model: connect-to}\n", "apply", "-f", "-", "--context", "two")
	customers := func(args ...string) string {
		return must(t, "", append([]string{"get", "customers", "-o", "name"}, args...)...)
	}
	if got := customers(); got != "customer/first\n" {
		t.Errorf("the current context has %q", got)
	}
	if got := customers("--context", "two"); got != "customer/second\n" {
		t.Errorf("the context two has %q", got)
	}
	t.Setenv("CIRCUITSEAL_CONTEXT", "two")
	if got := customers(); got != "customer/second\n" {
		t.Errorf("CIRCUITSEAL_CONTEXT has %q", got)
	}
	if got := customers("--context", "one"); got != "customer/first\n" {
		t.Errorf("--context against CIRCUITSEAL_CONTEXT has %q", got)
	}
	t.Setenv("CIRCUITSEAL_CONTEXT", "")
	must(t, "", "context", "use", "two")
	if got := customers(); got != "customer/second\n" {
		t.Errorf("after use: %q", got)
	}
	if got := must(t, "", "context", "list", "-o", "name"); got != "one\ntwo\n" {
		t.Errorf("listed: %q", got)
	}
	if got := must(t, "", "context", "list"); !strings.Contains(got, "*        two") || !strings.Contains(got, first) {
		t.Errorf("listed:\n%s", got)
	}
	if got := must(t, "", "context", "show", "-o", "yaml"); !strings.Contains(got, "context: two\nserver: "+second) || !strings.Contains(got, "expires: ") || strings.Contains(got, "PRIVATE") {
		t.Errorf("shown:\n%s", got)
	}
	// Environment is nearer than the current context, and flags are nearer still.
	t.Setenv("SEALCTL_SERVER", first)
	t.Setenv("SEALCTL_ROOT", one+"/admin/root.pem")
	t.Setenv("SEALCTL_IDENTITY", one+"/admin/identity.pem")
	if got := customers(); got != "customer/first\n" {
		t.Errorf("environment against the current context: %q", got)
	}
	if got := customers("--context", "two"); got != "customer/second\n" {
		t.Errorf("environment against --context: %q", got)
	}
	if got := customers("--server", second, "--root-pin", pinOf(t, two), "--identity", two+"/admin/identity.pem"); got != "customer/second\n" {
		t.Errorf("flags against environment: %q", got)
	}
	code, _, stderr := sealctl(t, "", "get", "all", "--context", "one", "--root-pin", pinOf(t, two))
	if code != exitIdentity || !strings.Contains(stderr, "does not belong to the root of --root-pin") {
		t.Errorf("a wrong pin: exit code %d: %s", code, stderr)
	}
	// Half of the environment and half of a context are no attack, and the error says
	// so first.
	t.Setenv("SEALCTL_ROOT", "")
	t.Setenv("SEALCTL_IDENTITY", "")
	code, _, stderr = sealctl(t, "", "get", "all")
	want := fmt.Sprintf("^sealctl: the settings come from several places: the server from SEALCTL_SERVER, the root from context two \\(%s\\), the identity from context two \\(%s\\); see that they belong", file, file)
	if code != exitIdentity || !regexp.MustCompile(want).MatchString(stderr) {
		t.Errorf("a mixture: exit code %d: %s", code, stderr)
	}
	code, stdout, stderr := sealctl(t, "", "context", "show")
	if code != exitOK || !regexp.MustCompile(`(?m)^server +https://\S+ +SEALCTL_SERVER$`).MatchString(stdout) || !strings.Contains(stdout, "context two ("+file+")") || !strings.HasPrefix(stderr, "the settings come from several places") {
		t.Errorf("a mixture shown: exit code %d: %s\n%s", code, stdout, stderr)
	}
	if got := must(t, "", "context", "show", "-o", "json"); !strings.Contains(got, `"server": "SEALCTL_SERVER"`) || !strings.Contains(got, `"root": "context two (`) {
		t.Errorf("a mixture as JSON:\n%s", got)
	}
	if code, _, stderr := sealctl(t, "", "get", "all", "--context", "two"); code != exitOK || strings.Contains(stderr, "several places") {
		t.Errorf("of one context: exit code %d: %s", code, stderr)
	}
	code, _, stderr = sealctl(t, "", "get", "all", "--context", "three")
	if code != exitFailed || !strings.Contains(stderr, `there is no context "three"; there are one, two`) {
		t.Errorf("no such context: exit code %d: %s", code, stderr)
	}
	if got := must(t, "", "context", "delete", "two"); !strings.Contains(got, "context use") {
		t.Errorf("deleted: %q", got)
	}
	if got := must(t, "", "context", "list", "-o", "json"); strings.Contains(got, "two") {
		t.Errorf("after delete:\n%s", got)
	}
}

func TestContextsAreRefused(t *testing.T) {
	dir := start(t)
	work := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		p := filepath.Join(work, name)
		if err := os.WriteFile(p, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	b, err := os.ReadFile(dir + "/admin/identity.pem")
	if err != nil {
		t.Fatal(err)
	}
	var certificates, key []byte
	for rest := b; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type == "CERTIFICATE" {
			certificates = append(certificates, pem.EncodeToMemory(block)...)
		} else {
			key = pem.EncodeToMemory(block)
		}
	}
	chain, open, safe := write("chain.pem", string(certificates), 0o644), write("open.key", string(key), 0o644), write("safe.key", string(key), 0o600)
	if got := must(t, "", "status", "--identity", chain, "--key", safe); got == "" {
		t.Error("a key in a file of its own says nothing")
	}
	tests := []struct {
		name string
		args []string
		code int
		says string
	}{
		{"a key that others can read", []string{"context", "set", "x", "--identity", chain, "--key", open}, exitIdentity, "chmod 600 " + open},
		{"a key that is not there", []string{"context", "set", "x", "--identity", chain, "--key", work + "/moon"}, exitIdentity, "read key"},
		{"a key that is none", []string{"context", "set", "x", "--identity", chain, "--key", chain}, exitIdentity, "a certificate and no PRIVATE KEY"},
		{"a name", []string{"context", "set", "../x"}, exitUsage, "want 1 to 63 letters"},
		{"a server", []string{"context", "set", "x", "--server", "localhost"}, exitUsage, "want an address such as"},
		{"a pin", []string{"get", "all", "--root-pin", "sha256:00"}, exitUsage, "want sha256: and 64 hexadecimal digits"},
		{"root and pin", []string{"get", "all", "--root", "a", "--root-pin", "b"}, exitUsage, "want one of them"},
		{"use nothing", []string{"context", "use", "x"}, exitFailed, "`sealctl context set` makes one"},
		{"delete nothing", []string{"context", "delete", "x"}, exitFailed, "there is none yet"},
		{"a context without a file", []string{"get", "all", "--context", "x"}, exitFailed, "contexts.yaml is not there"},
		{"a file that others can change", []string{"get", "all", "--context", "x", "--contexts", write("w.yaml", "", 0o666)}, exitIdentity, "can be changed by others"},
		{"an unknown field", []string{"get", "all", "--context", "x", "--contexts", write("u.yaml", "contexts:\n  x:\n    servr: https://a\n", 0o600)}, exitFailed, `u.yaml:3: there is no field "servr"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, _, stderr := sealctl(t, "", tt.args...)
			if code != tt.code || !strings.Contains(stderr, tt.says) || strings.Count(stderr, "\n") != 1 {
				t.Errorf("exit code %d, want %d: %q, want %q", code, tt.code, stderr, tt.says)
			}
		})
	}
}

const goodContexts = `current: weu
contexts:
  weu:
    server: https://a:8443
    root: weu/root.pem
    identity: /me.pem
  neu:
    server: https://b
    rootPin: sha256:0000000000000000000000000000000000000000000000000000000000000000
    identity: me.pem
    key: me.key
`

func TestParseContexts(t *testing.T) {
	got, err := parseContexts("/etc/c.yaml", []byte(goodContexts))
	if err != nil {
		t.Fatal(err)
	}
	want := &contexts{current: "weu", all: map[string]place{
		"weu": {Server: "https://a:8443", Root: "/etc/weu/root.pem", Identity: "/me.pem"},
		"neu": {Server: "https://b", RootPin: pinPrefix + strings.Repeat("0", 64), Identity: "/etc/me.pem", Key: "/etc/me.key"},
	}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(contexts{})); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	bad := []struct{ text, says string }{
		{"contexts: [", "line 1"},
		{"[]", "c.yaml:1: the file: want a group of fields"},
		{"context: x\n", `c.yaml:1: there is no field "context"; want current, contexts`},
		{"current: x\n", `current: there is no context "x"`},
		{"contexts:\n  a: 1\n", "c.yaml:2: contexts.a: want a group"},
		{"contexts:\n  a/b: {}\n", "c.yaml:2: context \"a/b\": want"},
		{"contexts:\n  a: {server: https://a, root: r}\n", "c.yaml:2: contexts.a: identity is missing"},
		{"contexts:\n  a: {server: https://a, identity: r}\n", "root or rootPin is missing"},
		{"contexts:\n  a: {root: r, identity: r}\n", "server is missing"},
		{"contexts:\n  a: {server: http://a, root: r, identity: r}\n", "c.yaml:2: contexts.a.server: "},
		{"contexts:\n  a: {server: https://a, root: r, rootPin: x, identity: r}\n", "contexts.a.rootPin: "},
		{"contexts:\n  a: {server: 1}\n", "contexts.a.server: want text"},
		{"contexts: {}\ncontexts: {}\n", `"contexts" is there twice`},
		{"contexts: &x {}\ncurrent: *x\n", "current: want text"},
		{"contexts: {}\n---\ncontexts: {}\n", "want one document"},
	}
	for _, tt := range bad {
		if _, err := parseContexts("c.yaml", []byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%q: got %v, want %q", tt.text, err, tt.says)
		}
	}
}

// What is read is written so that the same is read again.
func FuzzContexts(f *testing.F) {
	f.Add([]byte(goodContexts))
	f.Add([]byte("contexts:\n  \"1\": {server: https://a, root: \"~\", identity: \"no\"}\n"))
	f.Add([]byte("contexts: {a: &a {server: x}, b: *a}"))
	f.Add([]byte("contexts: {<<: {}}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseContexts("/etc/c.yaml", b)
		if err != nil {
			return
		}
		text, err := c.encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseContexts("/etc/c.yaml", text)
		if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		if diff := cmp.Diff(c, again, cmp.AllowUnexported(contexts{})); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	})
}

func FuzzPin(f *testing.F) {
	f.Add(pinPrefix + strings.Repeat("a", 64))
	f.Add("sha256:")
	f.Fuzz(func(t *testing.T, s string) {
		if pin, err := parsePin(s); err == nil && !strings.EqualFold(s, fmt.Sprintf("%s%x", pinPrefix, pin)) {
			t.Errorf("%q is %x", s, pin)
		}
	})
}

// A chain that does not hold the pinned root, or not in the place of a root, is
// nobody's.
func TestPinnedRoot(t *testing.T) {
	one, two := start2(t), start2(t)
	read := func(dir string) *x509.Certificate {
		b, err := os.ReadFile(dir + "/admin/root.pem")
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(b)
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a, b := read(one), read(two)
	pin := sha256.Sum256(a.Raw)
	if err := verifyPinned([]*x509.Certificate{b, a}, "x", pin); err == nil {
		t.Error("another's certificate beside the pinned root is trusted")
	}
	if err := verifyPinned([]*x509.Certificate{a}, "x", pin); err == nil {
		t.Error("the root itself is taken for a server")
	}
}
