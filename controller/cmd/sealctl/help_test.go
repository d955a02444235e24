package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Every command says what it does, with an example that is a command of sealctl
// whose flags exist.
func TestHelpIsComplete(t *testing.T) {
	root := command(func(string) string { return "" })
	commands := 0
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		commands++
		at := c.CommandPath()
		if c.Short == "" || strings.HasSuffix(c.Short, ".") || len(c.Short) > 90 {
			t.Errorf("%s: Short %q: want one phrase without a full stop", at, c.Short)
		}
		if !strings.Contains(c.Example, at+" ") && !strings.Contains(c.Example, at+"\n") && !strings.HasSuffix(c.Example, at) && c.HasParent() {
			t.Errorf("%s has no example of itself: %q", at, c.Example)
		}
		for l := range strings.Lines(c.Example) {
			example(t, root, strings.TrimSpace(l))
		}
		if c.RunE == nil || c.Args == nil && c.Name() != "help" {
			t.Errorf("%s does nothing by itself, or takes any arguments", at)
		}
		for l := range strings.Lines(c.Long) {
			if len([]rune(l)) > 122 {
				t.Errorf("%s: a line of its help is too long: %q", at, l)
			}
		}
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s --%s says nothing", at, f.Name)
			}
		})
		for _, sub := range c.Commands() {
			walk(sub)
		}
		if !c.HasParent() {
			return
		}
		var out bytes.Buffer
		code := run(t.Context(), append(strings.Fields(at)[1:], "--help"), strings.NewReader(""), &out, &out)
		if code != exitOK || !strings.Contains(out.String(), c.Short) && !strings.Contains(out.String(), c.Long) {
			t.Errorf("%s --help: exit code %d:\n%s", at, code, &out)
		}
	}
	walk(root)
	if commands < 17 {
		t.Errorf("only %d commands", commands)
	}
}

// example looks whether a line of an example is a command with flags that exist.
func example(t *testing.T, root *cobra.Command, l string) {
	t.Helper()
	words := strings.Fields(l)
	if len(words) == 0 || words[0] != "sealctl" {
		return
	}
	for i, w := range words {
		if strings.ContainsAny(w[:1], "|>#") {
			words = words[:i]
			break
		}
	}
	c, rest, err := root.Find(words[1:])
	if err != nil || c == root {
		t.Errorf("%q is no command: %v", l, err)
		return
	}
	if c.HasSubCommands() && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		t.Errorf("%q: %s has no command %s", l, c.CommandPath(), rest[0])
	}
	for _, w := range words {
		name, _, _ := strings.Cut(w, "=")
		switch {
		case strings.HasPrefix(name, "--"):
			if c.Flags().Lookup(name[2:]) == nil && c.InheritedFlags().Lookup(name[2:]) == nil {
				t.Errorf("%q: %s has no flag %s", l, c.CommandPath(), name)
			}
		case strings.HasPrefix(name, "-") && len(name) == 2:
			if c.Flags().ShorthandLookup(name[1:]) == nil && c.InheritedFlags().ShorthandLookup(name[1:]) == nil {
				t.Errorf("%q: %s has no flag %s", l, c.CommandPath(), name)
			}
		}
	}
}

// The exit codes of --help, the README and the constants are the same.
func TestExitCodesAreDocumented(t *testing.T) {
	if len(exitCodes) != exitNotYet+1 {
		t.Fatalf("%d meanings for %d codes", len(exitCodes), exitNotYet+1)
	}
	help := must(t, "", "--help")
	readme, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for code, meaning := range exitCodes {
		if l := fmt.Sprintf("\n  %d  %s\n", code, meaning); !strings.Contains(help, l) {
			t.Errorf("--help lacks %q", l)
		}
		if l := fmt.Sprintf("\n| %d | %s |\n", code, meaning); !strings.Contains(string(readme), l) {
			t.Errorf("the README lacks %q", l)
		}
	}
}

func TestExitCode(t *testing.T) {
	at := func(err error) error { return atServer{"https://x", "", err} }
	tests := []struct {
		err  error
		want int
	}{
		{nil, exitOK},
		{errors.New("x"), exitFailed},
		{fmt.Errorf("%w: x", errUsage), exitUsage},
		{withCode(exitRefused, errTold), exitRefused},
		{fmt.Errorf("more: %w", withCode(exitNotYet, errors.New("x"))), exitNotYet},
		{at(connect.NewError(connect.CodeNotFound, errors.New("x"))), exitFailed},
		{usage(at(connect.NewError(connect.CodeInvalidArgument, errors.New("x")))), exitUsage},
		{at(connect.NewError(connect.CodePermissionDenied, errors.New("x"))), exitIdentity},
		{at(connect.NewError(connect.CodeUnauthenticated, errors.New("x"))), exitIdentity},
		{at(connect.NewError(connect.CodeUnavailable, errors.New("x"))), exitUnreachable},
		{at(connect.NewError(connect.CodeDeadlineExceeded, errors.New("x"))), exitUnreachable},
		{at(pinError("sha256:0")), exitIdentity},
	}
	for _, tt := range tests {
		if got := exitCode(tt.err); got != tt.want {
			t.Errorf("%v: exit code %d, want %d", tt.err, got, tt.want)
		}
	}
}

// What the generator writes and what sealctl reads are of one shape.
func TestSchemaIsReadInFull(t *testing.T) {
	d := json.NewDecoder(bytes.NewReader(schemaJSON))
	d.DisallowUnknownFields()
	var s schema
	if err := d.Decode(&s); err != nil {
		t.Fatal(err)
	}
	if len(s.Kinds) < 7 {
		t.Errorf("only %d kinds", len(s.Kinds))
	}
}

func TestExplain(t *testing.T) {
	tests := []struct {
		name string
		args []string
		code int
		says []string
	}{
		{"kinds", nil, 0, []string{"KIND", "EncryptionPolicy  a customer", "Node              the provider"}},
		{"a kind", []string{"sites"}, 0, []string{"Site  circuitseal.io/v1, belongs to a customer", "  prefixes  <list of prefixes>  required\n", "EXAMPLE\n  apiVersion: "}},
		{"a field", []string{"encryptionpolicy.spec.pathMTU"}, 0, []string{"EncryptionPolicy.spec.pathMTU  <whole number>", "Bounds: 1280 to 9000. Default: 1400."}},
		{"without spec, in any case", []string{"Site.TYPE"}, 0, []string{"Site.spec.type", "One of: on-premises, azure-vnet."}},
		{"what is inert as yet", []string{}, 0, []string{"a node's own sockets that may cross a circuit in clear; of no effect as yet\n", "Node is a host with our agent\n"}},
		{"what is refused as yet", []string{"node.exemptions"}, 0, []string{"Refused as\nyet: agents", "The name of an Exemption."}},
		{"a duration", []string{"encryptionpolicy.pskRotation"}, 0, []string{"(RFC 8784), 5m to 24h; 1h when left out.\nBounds: 5m to 24h. Default: 1h."}},
		{"a deep field", []string{"node.spec.interfaces[0].link.circuit"}, 0, []string{"Node.spec.interfaces.link.circuit", "The name of a Circuit."}},
		{"a group", []string{"node.interfaces.link"}, 0, []string{"FIELDS\n  customer  <text>  required"}},
		{"all", []string{"circuit", "--recursive"}, 0, []string{"          subnet  <prefix>  required\n"}},
		{"as JSON", []string{"site.type", "-o", "json"}, 0, []string{`"name": "type"`, `"azure-vnet"`}},
		{"as YAML", []string{"-o", "yaml"}, 0, []string{"- kind: Customer\n"}},
		{"no kind", []string{"moon"}, 2, []string{`there is no kind "moon"; the kinds are Customer, `}},
		{"no field", []string{"site.spec.prefix"}, 2, []string{`Site.spec has no field "prefix"; it has type`}},
		{"no deeper", []string{"site.type.x"}, 2, []string{`Site.spec.type has no field "x"; it has no fields`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := sealctl(t, "", append([]string{"explain"}, tt.args...)...)
			for _, s := range tt.says {
				if !strings.Contains(stdout+stderr, s) {
					t.Errorf("does not say %q:\n%s%s", s, stdout, stderr)
				}
			}
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
		})
	}
	// Every kind and every field has an explanation.
	for _, k := range kindNames() {
		must(t, "", "explain", k, "--recursive")
	}
}

func TestCompletion(t *testing.T) {
	dir := start(t)
	must(t, "", "apply", "-f", samples)
	must(t, "", "context", "set", "weu")
	words := func(args ...string) string {
		t.Helper()
		code, stdout, _ := sealctl(t, "", append([]string{"__complete"}, args...)...)
		if code != exitOK {
			t.Errorf("%v: exit code %d", args, code)
		}
		list, _, _ := strings.Cut(stdout, ":")
		return strings.Join(strings.Fields(list), " ")
	}
	tests := []struct {
		args []string
		want string
	}{
		{[]string{"get", "circ"}, "circuit"},
		{[]string{"get", "node", ""}, "nva-1 prem-1"},
		{[]string{"describe", "sites", ""}, "hq vnet-weu"},
		{[]string{"describe", "sites", "v"}, "vnet-weu"},
		{[]string{"delete", "connection", "--customer", "contoso", ""}, "hq-weu"},
		{[]string{"get", "site/"}, "site/contoso/hq site/contoso/vnet-weu"},
		{[]string{"get", "Sites/contoso/v"}, "Sites/contoso/vnet-weu"},
		{[]string{"describe", "node/n"}, "node/nva-1"},
		{[]string{"describe", "site", "contoso/"}, "contoso/hq contoso/vnet-weu"},
		{[]string{"delete", "site", ""}, "contoso/hq contoso/vnet-weu"},
		{[]string{"delete", "node", ""}, "nva-1 prem-1"},
		{[]string{"plan", "--delete", "connection/"}, "connection/contoso/hq-weu"},
		{[]string{"node", "revoke", ""}, "nva-1 prem-1"},
		{[]string{"get", "sites", "--customer", ""}, "contoso"},
		{[]string{"status", "--node", "n"}, "nva-1"},
		{[]string{"token", "create", ""}, "nva-1 prem-1"},
		{[]string{"context", "use", ""}, "weu"},
		{[]string{"get", "--context", ""}, "weu"},
		{[]string{"get", "sites", "-o", ""}, "table wide json yaml name"},
		{[]string{"explain", "site.spec.t"}, "site.spec.type"},
		{[]string{"explain", "enc"}, "encryptionpolicy"},
		{[]string{"completion", ""}, "bash zsh fish"},
	}
	for _, tt := range tests {
		if got := words(tt.args...); got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.args, got, tt.want)
		}
	}
	// Without a controller there are no names, and no noise.
	t.Setenv("SEALCTL_ROOT", start2(t)+"/admin/root.pem")
	if got := words("get", "node", ""); got != "" {
		t.Errorf("of a foreign controller: %q", got)
	}
	t.Setenv("SEALCTL_ROOT", dir+"/admin/root.pem")
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if got := must(t, "", "completion", shell); !strings.Contains(got, "sealctl") || !strings.Contains(got, "__complete") {
			t.Errorf("%s: %.100s", shell, got)
		}
	}
	if code, _, stderr := sealctl(t, "", "completion", "tcsh"); code != exitUsage || !strings.Contains(stderr, "want bash, zsh or fish") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
