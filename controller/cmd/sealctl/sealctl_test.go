package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestCommands(t *testing.T) {
	start(t)
	work := t.TempDir()
	token := filepath.Join(work, "token")
	steps := []struct {
		name, stdin string
		args        []string
		code        int
		out, err    string // regular expressions
	}{
		{"plan everything", "", []string{"plan", "-f", samples}, 6, `(?s)^Documents\n  \+ customer/contoso\n      spec.displayName: Contoso Ltd\n.*\nNodes\n  \+ nva-1\n      \+ interface circ0: guarded: only tunnels pass\n.*\nFlows that become blocked\n  nva-1 lan0 \(contoso\): any IPv4 but 10.2.0.0/16 -> any IPv4, was clear\n.*\nFlows that become unreachable\n.* for contoso/hq-weu, was clear; no key of (prem|nva)-1 is known\nPlan at revision \d+: 10 to create, 0 to change, 0 to delete; 2 nodes change; 8 flows become blocked; 4 flows become unreachable.\n$`, `^$`},
		{"plan changes nothing", "", []string{"get", "all"}, 0, `^$`, `^there are no such documents\n$`},
		{"dry run", "", []string{"apply", "-f", samples, "--dry-run"}, 0, `^customer/contoso created \(dry run\)\n`, `^$`},
		{"nothing yet", "", []string{"get", "all"}, 0, `^$`, `^there are no such documents\n$`},
		{"apply a directory", "", []string{"apply", "-f", samples}, 0, `(?s)^customer/contoso created\nnode/prem-1 created\n.*connection/contoso/hq-weu created\n$`, `^$`},
		{"plan nothing", "", []string{"plan", "-f", samples}, 0, `^No changes: everything is at revision \d+ as it was planned.\n$`, `^$`},
		{"plan a change", "apiVersion: circuitseal.io/v1\nkind: Site\nmetadata: {customer: contoso, name: hq}\nspec: {type: on-premises, prefixes: [10.1.0.0/17, 'fd00:c0:1::/48']}\n", []string{"plan", "-f", "-"}, 6,
			`(?s)^Documents\n  ~ site/contoso/hq\n      spec.prefixes:\n        - 10.1.0.0/16\n        \+ 10.1.0.0/17\nNodes\n  ~ nva-1\n      ~ connection contoso/hq-weu: changed\n          remotes:\n            - 10.1.0.0/16\n.*\nFlows that become blocked\n  nva-1 lan0 \(contoso\): 10.2.0.0/16 -> 10.1.128.0/17, was unreachable for contoso/hq-weu\n.*; 2 nodes change; 2 flows become blocked.\n$`, `^$`},
		{"plan what the wire does not show", "apiVersion: circuitseal.io/v1\nkind: Customer\nmetadata: {name: contoso}\nspec: {model: connect-to}\n", []string{"plan", "-f", "-"}, 6,
			`(?s)spec.displayName: Contoso Ltd -> nothing\n.*nothing changes on the wire.\n$`, `^$`},
		{"plan a delete", "", []string{"plan", "--delete", "connection/contoso/hq-weu", "-o", "json"}, 6, `"what": "ended"`, `^$`},
		{"plan a delete of what is in use", "", []string{"plan", "--delete", "site/contoso/hq"}, 3, `^$`, `(?s)^Endpoint/contoso/hq: spec.site: .*\d problems?; nothing was changed\n$`},
		{"plan a delete of what is not there", "", []string{"plan", "--delete", "node/moon"}, 1, `^$`, `there is no Node/moon`},
		{"plan a delete of no document", "", []string{"plan", "--delete", "hq"}, 2, `^$`, `want kind/customer/name`},
		{"plan without anything", "", []string{"plan"}, 2, `^$`, `--delete`},
		{"plan problems", "apiVersion: circuitseal.io/v1\nkind: Customer\nmetadata: {name: x}\nspec: {model: moon}\n", []string{"plan", "-f", "-"}, 3, `^$`, `^-:4: spec.model: must be`},
		{"apply it again, by file", "", []string{"apply", "-f", samples + "/10-nodes.yaml", "-f", samples + "/20-contoso.yaml"}, 0, `(?s)^customer/contoso unchanged\n.*connection/contoso/hq-weu unchanged\n$`, `^$`},
		{"apply stdin", "apiVersion: circuitseal.io/v1\nkind: Customer\nmetadata: {name: fabrikam}\nspec: {model: connect-to}\n", []string{"apply", "-f", "-"}, 0, `^customer/fabrikam created\n$`, `^$`},
		{"problems", "apiVersion: circuitseal.io/v1\nkind: Customer\nmetadata:\n  name: Fabrikam\nspec:\n  model: moon\n", []string{"apply", "-f", "-"}, 3, `^$`,
			`(?m)\A-:4: metadata.name: .* \(got "Fabrikam"\); .*\n-:6: spec.model: must be connect-through or connect-to \(got "moon"\)\n2 problems; nothing was changed\n\z`},
		{"problems as JSON", "kind: Customer\n", []string{"apply", "-f", "-", "-o", "json"}, 3, `"problems": \[`, `^$`},
		{"no such file", "", []string{"apply", "-f", "moon.yaml"}, 1, `^$`, `^sealctl: there is no file or directory moon.yaml\n$`},
		{"not UTF-8", "kind: Customer\n# \xff\n", []string{"apply", "-f", "-"}, 1, `^$`, `^sealctl: -:2: is no UTF-8`},
		{"an enrolment token", "cst1.6f03a5b1c2d3e4f5.YPJJ\n", []string{"apply", "-f", "-"}, 1, `^$`, `^sealctl: - holds an enrolment token and no documents; it was not sent\n$`},
		{"a private key", "", []string{"apply", "-f", os.Getenv("SEALCTL_IDENTITY")}, 1, `^$`, `^sealctl: \S+identity.pem holds a private key and no documents; it was not sent\n$`},
		{"a certificate", "", []string{"delete", "-f", os.Getenv("SEALCTL_ROOT")}, 1, `^$`, `^sealctl: \S+root.pem holds PEM and no documents; it was not sent\n$`},
		{"no document", "# nothing\n", []string{"apply", "-f", "-"}, 1, `^$`, `^sealctl: there is no document in -\n$`},
		{"nothing to delete", "# nothing\n", []string{"delete", "-f", "-"}, 1, `^$`, `^sealctl: there is no document in -\n$`},
		{"a hint once", "apiVersion: circuitseal.io/v1\nkind: Site\nmetadata: {customer: contoso, name: x}\nspec: {type: on-prem, prefixes: [10.200.0.0/24]}\n", []string{"apply", "-f", "-"}, 3, `^$`,
			`^-:4: spec.type: must be on-premises or azure-vnet \(got "on-prem"\)\n1 problem; `},
		{"no file", "", []string{"apply"}, 2, `^$`, `-f`},
		{"get", "", []string{"get", "Sites", "--customer", "contoso"}, 0, `^CUSTOMER +NAME +TYPE +PREFIXES +REVISION\ncontoso +hq +on-premises +10.1.0.0/16, fd00:c0:1::/48 +\d+\ncontoso +vnet-weu +azure-vnet `, `^$`},
		{"get nodes", "", []string{"get", "nodes"}, 0, `(?m)^prem-1 +provider +circ0, circ1 +lan0 +mgmt0 +contoso +\d+$`, `^$`},
		{"get connections", "", []string{"get", "connections"}, 0, `^CUSTOMER +NAME +ENDPOINTS +NODES +CIRCUITS +POLICY +PROTOCOL +REVISION\ncontoso +hq-weu +hq, vnet-weu +prem-1, nva-1 +er-ams +standard +wireguard +\d+\n$`, `^$`},
		{"get all kinds", "", []string{"get", "all"}, 0, `(?s)^Customers\nNAME .*\n\nCircuits\nCUSTOMER .*172.16.10.0/30 +172.16.10.4/30 +1000.*\n\nConnections\nCUSTOMER .*wireguard +\d+\n$`, `^$`},
		{"get one as JSON", "", []string{"get", "customer", "contoso", "-o", "json"}, 0, `"displayName": "Contoso Ltd"`, `^$`},
		{"get nothing", "", []string{"get", "site", "moon"}, 1, `^$`, `^sealctl: there is no Site/moon`},
		{"get no kind", "", []string{"get", "stie"}, 2, `^$`, `^sealctl: kind: there is no kind "stie"; did you mean Site\?`},
		{"get by reference", "", []string{"get", "site/contoso/hq", "-o", "name"}, 0, `^site/contoso/hq\n$`, `^$`},
		{"what is right is said once", "apiVersion: circuitseal.io/v1\nkind: Customer\nmetadata: {name: x}\nspec: []\n", []string{"apply", "-f", "-"}, 3, `^$`, `(?m)^-:4: spec: is a list, not a group of fields$`},
		{"server without a scheme", "", []string{"get", "customer", "contoso", "-o", "name", "--server", strings.TrimPrefix(os.Getenv("SEALCTL_SERVER"), "https://")}, 0, `^customer/contoso\n$`, `^$`},
		{"server without a port", "", []string{"get", "customers", "--server", "controller.example"}, 2, `^$`, `--server "controller.example": want an address such as https://localhost:8443`},
		{"list tokens", "", []string{"token", "list"}, 2, `^$`, "tokens are secrets and are not listed; `sealctl token create NODE` makes one"},
		{"get by customer and name", "", []string{"get", "site", "contoso/hq", "-o", "name"}, 0, `^site/contoso/hq\n$`, `^$`},
		{"get by too much", "", []string{"get", "site", "a/contoso/hq"}, 2, `^$`, `want KIND CUSTOMER/NAME such as site contoso/hq, or KIND NAME`},
		{"get without a customer", "", []string{"get", "site", "/hq"}, 2, `^$`, `the customer is empty`},
		{"get by a mixture", "", []string{"get", "site/contoso", "hq"}, 2, `^$`, `want KIND CUSTOMER/NAME`},
		{"describe by customer and name", "", []string{"describe", "site", "contoso/hq"}, 0, `^site/contoso/hq\n`, `^$`},
		{"plan a delete like any other", "", []string{"plan", "--delete", "connection contoso/hq-weu"}, 6, `1 to delete`, `^$`},
		{"get of two customers", "", []string{"get", "site/contoso/hq", "--customer", "fabrikam"}, 2, `^$`, `want one customer`},
		{"get wide", "", []string{"get", "node", "prem-1", "-o", "wide"}, 0, `\{.*mgmt0.*\}\n$`, `^$`},
		{"get as YAML", "", []string{"get", "customer", "contoso", "-o", "yaml"}, 0, `^apiVersion: circuitseal.io/v1\nkind: Customer\nmetadata:\n  name: contoso\nspec:\n  displayName: Contoso Ltd\n  model: connect-through\n$`, `^$`},
		{"describe nothing", "", []string{"describe", "site/contoso/moon"}, 1, `^$`, `there is no Site/contoso/moon`},
		{"describe without a name", "", []string{"describe", "site"}, 2, `^$`, `want a kind and a name`},
		{"describe no JSON", "", []string{"describe", "site/contoso/hq", "-o", "json"}, 2, `^$`, `is no gateway without our agent; sealctl get and sealctl status say`},
		{"describe a site", "", []string{"describe", "site/contoso/hq"}, 0, `(?s)^site/contoso/hq\nrevision \d+\n\nSPEC\n  type: on-premises\n.*NAMED BY +FIELD\nendpoint/contoso/hq  spec.site\n.*contoso +hq-weu +0/2\n.*PROBLEMS\nnode nva-1 is not enrolled`, `^$`},
		{"describe a node", "", []string{"describe", "node", "prem-1"}, 0, `(?s)endpoint/contoso/hq  spec.node\n.*circ0 +circuit +contoso/er-ams/primary.*lan0 +lan +contoso`, `^$`},
		{"describe a circuit", "", []string{"describe", "circuit/contoso/er-ams"}, 0, `node/prem-1 +spec.interfaces\[0\].link.circuit`, `^$`},
		{"get of no customer", "", []string{"get", "sites", "--customer", "contosso"}, 1, `^$`, `^sealctl: there is no Customer/contosso; did you mean "contoso"\?\n$`},
		{"token to a file", "", []string{"token", "create", "nva-1", "--out", token}, 0, `^$`, `Copy /.*/token there .*\n +circuitseal-agent enroll --controller https://CONTROLLER:\d+ --root-pin sha256:[0-9a-f]{64} --node nva-1 --token-file token\nCONTROLLER is the name`},
		{"token is not overwritten", "", []string{"token", "create", "nva-1", "--out", token}, 1, `^$`, `is not overwritten`},
		{"token to stdout", "", []string{"token", "create", "nva-1"}, 0, `^cst1\.\S+\n$`, `circuitseal-agent enroll`},
		{"token for nobody", "", []string{"token", "create", "nva-2", "--out", token + "2"}, 1, `^$`, `there is no node "nva-2"`},
		{"token that lives too long", "", []string{"token", "create", "nva-1", "--lifetime", "169h"}, 2, `^$`, `at most 168h`},
		{"status", "", []string{"status"}, 0, `(?s)^NODE .*nva-1 +no +no .*contoso +hq-weu +0/2\n.*PROBLEMS\n.*node nva-1 is not enrolled`, `^$`},
		{"status as JSON", "", []string{"status", "-o", "json"}, 0, `"tunnelsTotal": 2`, `^$`},
		{"status tells programs what is wrong and what to do", "", []string{"status", "-o", "json", "--node", "nva-1"}, 0,
			"(?s)\"problems\": \\[\n +\"node nva-1 is not enrolled\"\n.*\"what\": \"node nva-1 is not enrolled\",\n +\"next\": \"`sealctl token create nva-1`.*\"what\": \"connection contoso/hq-weu: tunnel contoso/hq-weu/er-ams/primary is pending.*\"next\": \"it goes on when its nodes", `^$`},
		{"status as YAML", "", []string{"status", "-o", "yaml"}, 0, `(?m)^    tunnelsTotal: 2$`, `^$`},
		{"status of a node", "", []string{"status", "--node", "nva-1"}, 0, `(?s)nva-1 .*contoso +hq-weu`, `^$`},
		{"status of no node", "", []string{"status", "--node", "moon"}, 1, `^$`, `there is no node "moon"`},
		{"status of a customer without connections", "", []string{"status", "--customer", "fabrikam"}, 0, `^NODE[^\n]*\n\nCUSTOMER[^\n]*\n$`, `^$`},
		{"status of no customer", "", []string{"status", "--customer", "moon"}, 1, `^$`, `there is no Customer/moon`},
		{"status is checked", "", []string{"status", "--check"}, 6, `PROBLEMS`, `^$`},
		{"nothing is wrong", "", []string{"status", "--customer", "fabrikam", "--check"}, 0, `NODE`, `^$`},
		{"wait for a dry run", "", []string{"apply", "-f", samples, "--wait", "--dry-run"}, 2, `^$`, `--wait and --dry-run`},
		{"wait for who is not enrolled", "", []string{"apply", "-f", samples, "--wait", "--wait-timeout", "1s"}, 6, `unchanged`,
			"^sealctl: after 1s: node nva-1 is not enrolled \\(`sealctl token create nva-1` prints how\\); node prem-1 is not enrolled .*; what was applied stays applied"},
		{"wait for nobody", "apiVersion: circuitseal.io/v1\nkind: Customer\nmetadata: {name: fabrikam}\nspec: {model: connect-to}\n", []string{"apply", "-f", "-", "--wait"}, 0, `unchanged`, `^it concerns no node: there is nothing to wait for\n$`},
		{"nodes", "", []string{"node", "list"}, 0, `(?m)^NODE +IDENTITY +CONNECTED .*\nnva-1 +not enrolled +no +-`, `^$`},
		{"nodes as JSON", "", []string{"node", "list", "-o", "json"}, 0, `"node": "prem-1"`, `^$`},
		{"revoke what is not enrolled", "", []string{"node", "revoke", "nva-1", "--reason", "lost", "-y"}, 0, `^node nva-1 was not enrolled; an unused token of it is void now\n$`, `^$`},
		{"revoke asks", "yes\n", []string{"node", "revoke", "nva-1"}, 2, `^$`, `^sealctl: usage: revoking node nva-1 ends its identity and cuts: node nva-1: it is not enrolled; connection contoso/hq-weu to prem-1: 2 tunnels, of which 0 up now; nobody can be asked here: --yes goes on all the same`},
		{"decommission asks", "", []string{"node", "decommission", "nva-1", "--with-endpoints"}, 2, `^$`, `decommissioning node nva-1 .* to prem-1: 2 tunnels, .*--yes goes on`},
		{"revoke nobody", "", []string{"node", "revoke", "nva-2"}, 1, `^$`, `^sealctl: there is no Node/nva-2; did you mean "nva-1"\?\n$`},
		{"revoke for a long reason", "", []string{"node", "revoke", "nva-1", "--yes", "--reason", strings.Repeat("x", 257)}, 2, `^$`, `at most 256 bytes`},
		{"revoke no name", "", []string{"node", "revoke", "../nva-1"}, 2, `^$`, `node `},
		{"decommission what is in use", "", []string{"node", "decommission", "nva-1", "--yes"}, 1, `^$`, `is in use by Endpoint/contoso/vnet-weu \(spec.node\)`},
		{"decommission", "", []string{"node", "decommission", "nva-1", "--yes", "--with-endpoints"}, 0,
			`^Node/nva-1 deleted\nEndpoint/contoso/vnet-weu deleted\nConnection/contoso/hq-weu deleted\nnode nva-1 is decommissioned; `, `^$`},
		{"decommission it again", "", []string{"node", "decommission", "nva-1"}, 1, `^$`, `there is no Node/nva-1`},
		{"and back", "", []string{"apply", "-f", samples}, 0, `node/nva-1 created`, `^$`},
		{"keys", "", []string{"keys"}, 0, `(?s)^KEY +OF +ID +PHASE +WHERE +AGE +REPLACED IN\nroot +- +[0-9a-f]+ +- +controller +\d+s +7[23]\d\dd\n.*preshared +contoso/hq-weu/er-ams/primary +\d+ +current +controller +[0-9].*secret +- +[0-9a-f]{16} +current +controller `, `^$`},
		{"keys of a customer as JSON", "", []string{"keys", "--customer", "contoso", "-o", "json"}, 0, `^\{\n  "keys": \[`, `^$`},
		{"delete without a customer", "", []string{"delete", "site", "hq"}, 2, `^$`, `^sealctl: usage: --customer is required: documents of kind Site belong to a customer`},
		{"delete what is in use", "", []string{"delete", "site", "hq", "--customer", "contoso"}, 1, `^$`, `is in use by Endpoint/contoso/hq \(spec.site\)`},
		{"delete asks", "", []string{"delete", "connection", "contoso/hq-weu"}, 2, `^$`, `this changes what is on the wire: node nva-1 loses .*; \d+ flows become blocked; nobody can be asked here: --yes goes on`},
		{"delete files asks", "", []string{"delete", "-f", samples}, 2, `^$`, `--yes goes on`},
		{"delete what changes nothing on the wire", "", []string{"delete", "securityruleset", "contoso/idle"}, 1, `^$`, `there is no SecurityRuleSet/contoso/idle`},
		{"delete by customer and name", "", []string{"delete", "connection", "contoso/hq-weu", "-y"}, 0, `^connection/contoso/hq-weu deleted\n$`, `^$`},
		{"delete files", "", []string{"delete", "-f", samples, "--yes"}, 0, `(?s)endpoint/contoso/vnet-weu deleted\n.*customer/contoso deleted\n$`, `^connection/contoso/hq-weu is not there\n$`},
		{"all is gone", "", []string{"get", "all"}, 0, `^NAME +MODEL +DISPLAY NAME +REVISION\nfabrikam +connect-to +- +\d+\n$`, `^$`},
		{"version", "", []string{"version", "-o", "json"}, 0, `"version": "unknown"`, `^$`},
		{"no command", "", []string{"aply"}, 2, `^$`, `did you mean "apply"`},
		{"no command with help", "", []string{"expose", "--help"}, 2, `^$`, `there is no command "expose"`},
		{"no subcommand with help", "", []string{"token", "list", "-h"}, 2, `^$`, `there is no command "list"`},
		{"help on no command", "", []string{"help", "expose"}, 2, `^$`, `there is no command "expose"`},
		{"help on a command", "", []string{"help", "token", "create"}, 0, `--lifetime`, `^$`},
		{"help of a group", "", []string{"token", "--help"}, 0, `create`, `^$`},
		{"no flag", "", []string{"get", "sites", "--moon"}, 2, `^$`, `unknown flag`},
		{"no output", "", []string{"get", "sites", "-o", "xml"}, 2, `^$`, `want table, wide, json, yaml or name`},
		{"help", "", []string{"--help"}, 0, `Exit codes:\n  0  done\n`, `^$`},
		{"completion", "", []string{"completion", "bash"}, 0, `sealctl`, `^$`},
	}
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) {
			if s.name == "keys" {
				// Pre-shared keys are made behind an apply, not in it.
				eventually(t, "preshared", "keys")
			}
			code, stdout, stderr := sealctl(t, s.stdin, s.args...)
			if code != s.code || !regexp.MustCompile(s.out).MatchString(stdout) || !regexp.MustCompile(s.err).MatchString(stderr) {
				t.Errorf("exit code %d, want %d\nstdout: %s\nwant:   %s\nstderr: %s\nwant:   %s", code, s.code, stdout, s.out, stderr, s.err)
			}
		})
	}
	info, err := os.Stat(token)
	if err != nil || info.Mode().Perm() != 0o600 || info.Size() < 40 {
		t.Errorf("the token's file: %v, %v", info, err)
	}
	if _, err := os.Stat(token + "2"); err == nil {
		t.Error("a refused token left a file behind")
	}
}

func TestFailuresSayWhatToDo(t *testing.T) {
	dir := start(t)
	open := filepath.Join(t.TempDir(), "open.pem")
	b, err := os.ReadFile(dir + "/admin/identity.pem")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(open, b, 0o644); err != nil { //nolint:gosec // that others can read it is the point
		t.Fatal(err)
	}
	prose := filepath.Join(t.TempDir(), "prose")
	if err := os.WriteFile(prose, []byte("root:x:0:0:root:/root:/bin/bash\n"), 0o644); err != nil { //nolint:gosec // that others can read it is the point
		t.Fatal(err)
	}
	keyless := filepath.Join(t.TempDir(), "keyless.pem")
	block, _ := pem.Decode(b)
	if err := os.WriteFile(keyless, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(start2(t), "admin/root.pem")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := "https://" + l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		args []string
		code int
		says string
	}{
		{"refused", []string{"--server", free}, 4, "nothing listens at " + free + ": is the controller running"},
		{"no TLS address", []string{"--server", "http://localhost"}, 2, "want an address such as"},
		{"no host", []string{"--server", "https://:18443"}, 2, "want an address such as"},
		{"fragment", []string{"--server", "https://localhost:18443#x"}, 2, "want an address such as"},
		{"identity without a key", []string{"--identity", keyless}, 5, "holds a certificate and no PRIVATE KEY"},
		{"other root", []string{"--root", other}, 5, "does not belong to the root"},
		{"root is no certificate", []string{"--root", samples + "/10-nodes.yaml"}, 5, "holds no certificate"},
		{"another controller's identity", []string{"--identity", filepath.Join(filepath.Dir(other), "identity.pem")}, 5, "belongs to another controller, or the controller has a new certificate authority"},
		{"identity is something else", []string{"--identity", prose}, 5, "holds neither a certificate nor a PRIVATE KEY"},
		{"identity that others can read", []string{"--identity", open}, 5, "chmod 600"},
		{"identity is not there", []string{"--identity", "moon.pem"}, 5, "moon.pem"},
		{"no time", []string{"--timeout", "1ns"}, 4, "--timeout"},
		{"negative time", []string{"--timeout", "-1s"}, 2, "--timeout"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, _, stderr := sealctl(t, "", append([]string{"get", "all"}, tt.args...)...)
			if code != tt.code || !strings.Contains(stderr, tt.says) || strings.Count(stderr, "\n") != 1 {
				t.Errorf("exit code %d: %q, want %d and %q", code, stderr, tt.code, tt.says)
			}
		})
	}
}

// Whoever has named nothing is told what to name.
func TestNothingIsNamed(t *testing.T) {
	for name, says := range map[string]string{"SEALCTL_ROOT": "admin/root.pem", "SEALCTL_IDENTITY": "admin/identity.pem"} {
		t.Run(name, func(t *testing.T) {
			dir := start2(t)
			noConfiguration(t)
			t.Setenv("SEALCTL_ROOT", dir+"/admin/root.pem")
			t.Setenv("SEALCTL_IDENTITY", dir+"/admin/identity.pem")
			t.Setenv(name, "")
			code, _, stderr := sealctl(t, "", "get", "all")
			if code != exitIdentity || !strings.Contains(stderr, says) || !strings.Contains(stderr, name) || !strings.Contains(stderr, "context set") {
				t.Errorf("exit code %d: %s", code, stderr)
			}
		})
	}
}

// Nobody knows what became of an apply that was not answered.
func TestApplyInVain(t *testing.T) {
	start(t)
	code, _, stderr := sealctl(t, "", "apply", "-f", samples, "--timeout", "1ns")
	if code != exitUnreachable || !strings.Contains(stderr, "did not answer in time") || !strings.Contains(stderr, "repeating it is safe") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	if _, _, stderr = sealctl(t, "", "apply", "-f", samples, "--timeout", "1ns", "--dry-run"); strings.Contains(stderr, "repeating") {
		t.Errorf("of a dry run: %s", stderr)
	}
}

// firstLine calls a function when the first line is written to it.
type firstLine struct {
	bytes.Buffer
	then func()
}

func (f *firstLine) Write(p []byte) (int, error) {
	n, err := f.Buffer.Write(p)
	if bytes.Contains(p, []byte("\n")) {
		f.then()
	}
	return n, err
}

func TestWatch(t *testing.T) {
	start(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := firstLine{then: cancel}
	var e bytes.Buffer
	if code := run(ctx, []string{"status", "--watch", "-o", "json"}, strings.NewReader(""), &out, &e); code != 0 {
		t.Fatalf("exit code %d: %s", code, &e)
	}
	var status struct{ Revision string }
	if err := json.Unmarshal(out.Bytes(), &status); err != nil || status.Revision == "" {
		t.Errorf("got %q, %v", &out, err)
	}
	// What is empty is written, as without --watch.
	_, once, stderr := sealctl(t, "", "status", "-o", "json")
	var compact bytes.Buffer
	if err := json.Compact(&compact, []byte(once)); err != nil {
		t.Fatalf("%v: %s", err, stderr)
	}
	if got := strings.TrimSpace(out.String()); got != compact.String() || !strings.Contains(got, `"nodes":[]`) {
		t.Errorf("watched %s\nand else %s", got, &compact)
	}
}

// What a node says of itself must not move the operator's cursor.
func TestTablesAreClean(t *testing.T) {
	table := newTable("A", "B")
	table.add("\x1b[2J\u202eevil", "x\ny")
	table.add("", "é")
	var b bytes.Buffer
	if err := table.print(&b); err != nil {
		t.Fatal(err)
	}
	want := "A                      B\n\\u001b[2J\\u202eevil  x\\ny\n-                      é\n"
	want = strings.ReplaceAll(want, "A                      B", "A"+strings.Repeat(" ", len(`\u001b[2J\u202eevil`)+1)+"B")
	want = strings.ReplaceAll(want, "-                      é", "-"+strings.Repeat(" ", len(`\u001b[2J\u202eevil`)+1)+"é")
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}
