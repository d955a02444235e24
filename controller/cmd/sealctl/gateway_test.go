package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

func TestProfiles(t *testing.T) {
	start(t)
	must(t, "", "apply", "-f", samples)
	must(t, "", "apply", "-f", samples+"/kinds")
	all := must(t, "", "profiles")
	for _, want := range []string{"cnsa1 ", "built-in, default", "strict ", "contoso "} {
		if !strings.Contains(all, want) {
			t.Errorf("profiles lacks %q:\n%s", want, all)
		}
	}
	for l := range strings.Lines(all) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(l, "\n")); n > 80 {
			t.Errorf("a line has %d columns: %s", n, l)
		}
	}
	if wide := must(t, "", "profiles", "-o", "wide"); !strings.Contains(wide, "aes256gcm16-prfsha384-ecp384-ke1_mlkem768 and 1 more") {
		t.Errorf("wide:\n%s", wide)
	}
	if own := must(t, "", "profiles", "contoso/strict"); !strings.HasPrefix(own, "cryptoprofile contoso/strict\n") || !strings.Contains(own, "ke1_mlkem1024") {
		t.Errorf("a customer's own:\n%s", own)
	}
	one := must(t, "", "profiles", "bsi-tr-02102-3")
	for _, want := range []string{"cryptoprofile bsi-tr-02102-3\n", "aes256gcm16-ecp384bp-esn", "(recalled)", "GOFIPS140", "is refused: WireGuard has", "IKE 24h0m0s, ESP 4h0m0s"} {
		if !strings.Contains(one, want) {
			t.Errorf("one profile lacks %q:\n%s", want, one)
		}
	}
	var answer struct {
		Profiles []struct{ Name, Customer string }
	}
	if err := json.Unmarshal([]byte(must(t, "", "profiles", "--customer", "contoso", "-o", "json")), &answer); err != nil || len(answer.Profiles) != 7 {
		t.Errorf("as JSON: %v, %+v", err, answer)
	}
	for args, want := range map[string]string{
		"--customer=nope": "there is no Customer/nope", "contosso/strict": `there is no Customer/contosso; did you mean "contoso"?`, "contoso/strikt": `did you mean "strict"?`,
		"contoso/": "the name is empty", "/strict": "the customer is empty", "contoso/strict/more": "want KIND CUSTOMER/NAME",
	} {
		if code, _, stderr := sealctl(t, "", "profiles", args); code == exitOK || !strings.Contains(stderr, want) {
			t.Errorf("profiles %s: %d, %s", args, code, stderr)
		}
	}
	if code, _, stderr := sealctl(t, "", "profiles", "cnsa"); code == exitOK || !strings.Contains(stderr, `did you mean "cnsa1"?`) {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// A gateway's settings come with its endpoint, and its keys only when they are asked
// for.
func TestDescribeGateway(t *testing.T) {
	start(t)
	must(t, "", "apply", "-f", samples)
	must(t, "", "apply", "-f", samples+"/kinds")
	eventually(t, "contoso/hq-uks/er-ams/primary", "keys")
	must(t, `
apiVersion: circuitseal.io/v1
kind: Site
metadata: {name: lone, customer: contoso}
spec: {type: azure-vnet, prefixes: [10.240.0.0/16]}
---
apiVersion: circuitseal.io/v1
kind: Endpoint
metadata: {name: lone, customer: contoso}
spec: {site: lone, external: {type: ikev2, authentication: psk}, underlay: [{address: 172.20.240.4}]}
`, "apply", "-f", "-")
	if lone := must(t, "", "describe", "endpoint", "contoso/lone"); !strings.Contains(lone, "no connection leads to this gateway yet") {
		t.Errorf("without a connection:\n%s", lone)
	}
	plain := must(t, "", "describe", "endpoint", "contoso/vpngw-uks")
	for _, want := range []string{"THE GATEWAY'S SETTINGS FOR CONNECTION hq-uks", "ipsecPolicies.ikeEncryption", "az network vpn-connection ipsec-policy add", "--reveal-psk shows it, and is logged"} {
		if !strings.Contains(plain, want) {
			t.Errorf("lacks %q:\n%s", want, plain)
		}
	}
	revealed := must(t, "", "describe", "endpoint", "contoso/vpngw-uks", "--reveal-psk")
	key := ""
	for l := range strings.Lines(revealed) {
		if f := strings.Fields(l); len(f) == 4 && f[0] == "contoso/hq-uks/er-ams/primary" && f[2] == "current" {
			key = f[3]
		}
	}
	if len(key) != 44 || strings.Contains(plain, key) || strings.Count(revealed, key) != 2 || !strings.Contains(revealed, `--shared-key @-`) {
		t.Errorf("the key is %q:\n%s", key, revealed)
	}
	var told struct {
		Connections []struct {
			Settings []struct{ Name, Value string }
			Keys     []struct{ Tunnel, Value string }
		}
	}
	if err := json.Unmarshal([]byte(must(t, "", "describe", "endpoint", "contoso/vpngw-uks", "-o", "json")), &told); err != nil || len(told.Connections) != 1 ||
		len(told.Connections[0].Settings) < 10 || len(told.Connections[0].Keys) != 2 || told.Connections[0].Keys[0].Value != "" {
		t.Errorf("as JSON: %v, %+v", err, told)
	}
	if code, _, stderr := sealctl(t, "", "describe", "site", "contoso/hq", "-o", "json"); code != exitUsage || !strings.Contains(stderr, "sealctl get and sealctl status say") {
		t.Errorf("a site as JSON: %d, %s", code, stderr)
	}
	code, _, stderr := sealctl(t, "", "describe", "site", "contoso/hq", "--reveal-psk")
	if code != exitUsage || !strings.Contains(stderr, "is no gateway") {
		t.Errorf("of a site: %d, %s", code, stderr)
	}
	made := must(t, "", "rotate", "psk", "contoso/vpngw-uks")
	if strings.Count(made, "next") != 2 || strings.Contains(made, key) {
		t.Errorf("rotated: %s", made)
	}
	// Our end does not run: it goes no further, and the gateway is to get the next one.
	again := must(t, "", "describe", "endpoint", "contoso/vpngw-uks", "--reveal-psk")
	if !strings.Contains(again, " next ") || !strings.Contains(again, "shared-key update") {
		t.Errorf("after a rotation:\n%s", again)
	}
	// Both tunnels have the same: a gateway is found by one name.
	next := map[string]bool{}
	for l := range strings.Lines(again) {
		if f := strings.Fields(l); len(f) == 4 && f[2] == "next" {
			next[f[3]] = true
		}
	}
	if len(next) != 1 || next[key] {
		t.Errorf("%d next keys, want one:\n%s", len(next), again)
	}
	for args, want := range map[string]string{
		"contoso/vpngw-uks": "under way already", "contoso/hq": "which our agent looks after", "contoso/nobody": "there is no Endpoint/contoso/nobody", "contoso": "want CUSTOMER/ENDPOINT",
	} {
		if code, _, stderr := sealctl(t, "", "rotate", "psk", args); code == exitOK || !strings.Contains(stderr, want) {
			t.Errorf("rotate psk %s: %d, %s", args, code, stderr)
		}
	}
}

// What was negotiated is shown as it was reported, and a weakness is told.
func TestEvidence(t *testing.T) {
	dir := start(t)
	must(t, "", "apply", "-f", samples)
	policy, err := os.ReadFile(samples + "/20-contoso.yaml")
	if err != nil {
		t.Fatal(err)
	}
	must(t, strings.Replace(string(policy), "protocol: wireguard", "protocol: ipsec", 1), "apply", "-f", "-")
	n := enrol(t, dir, "prem-1")
	p := n.next()
	n.report(func(s *v1.NodeStatus) {
		s.Applied, s.Acknowledged = p, p
		s.Charon = &v1.CharonStatus{Version: "5.9.8", Backend: "kernel", Algorithms: []string{"aes256gcm16", "esn"}}
		s.Tunnels = []*v1.TunnelStatus{
			{Id: "contoso/hq-weu/er-ams/primary", Phase: v1.TunnelPhase_TUNNEL_PHASE_UP, Backend: "ipsec-kernel", Associations: []*v1.SecurityAssociation{{
				Ike: "aes256gcm16-prfsha384-ecp384", Esp: "aes256gcm16-ecp384-esn", Pfs: "ecp384", Esn: true, Ppk: true, RemoteId: "vnet-weu.contoso.circuitseal.internal",
				PeerCertificates: []string{"0123456789abcdef0123456789abcdef"}, IkeAge: durationpb.New(90e9), EspAge: durationpb.New(30e9), ReceivedPackets: 7, SentPackets: 9, Backend: "kernel",
			}}},
			{Id: "contoso/hq-weu/er-ams/primary", Phase: v1.TunnelPhase_TUNNEL_PHASE_UP, Backend: "wireguard-kernel", Retiring: true},
			{Id: "contoso/hq-weu/er-ams/secondary", Phase: v1.TunnelPhase_TUNNEL_PHASE_DOWN, Backend: "ipsec-kernel", Associations: []*v1.SecurityAssociation{{Esp: "aes128", Weakness: "its cipher is not in the profile"}}},
		}
	})
	eventually(t, "ipsec-kernel", "status", "-o", "wide")
	for _, args := range [][]string{{"status", "-o", "wide"}, {"describe", "connection/contoso/hq-weu"}, {"describe", "node/prem-1"}} {
		got := must(t, "", args...)
		for _, want := range []string{"aes256gcm16-prfsha384-ecp384", "aes256gcm16-ecp384-esn", "vnet-weu.contoso.circuitseal.internal", "0123456789abcdef ", "1m30s/30s", "7/9", "of IKE", "its cipher is not in the profile", "up (retiring)"} {
			if !strings.Contains(got, want) {
				t.Errorf("%v lacks %q:\n%s", args, want, got)
			}
		}
	}
	if got := must(t, "", "describe", "node/prem-1"); !strings.Contains(got, "5.9.8       kernel   aes256gcm16 esn") {
		t.Errorf("strongSwan is not described:\n%s", got)
	}
	if got := must(t, "", "status", "-o", "json"); !strings.Contains(got, `"pfs": "ecp384"`) {
		t.Errorf("as JSON:\n%s", got)
	}
	if got := must(t, "", "status"); !strings.Contains(got, "tunnels change from wireguard to ipsec and have both") {
		t.Errorf("status:\n%s", got)
	}
}

// A gateway's certificates are part of documents, and a key never is.
func TestCertificatesInDocuments(t *testing.T) {
	const document = "apiVersion: circuitseal.io/v1\nkind: Endpoint\nspec:\n  external:\n    authorities: |\n      -----BEGIN CERTIFICATE-----\n      AAAA\n      -----END CERTIFICATE-----\n"
	for text, want := range map[string]string{
		document: "",
		strings.ReplaceAll(document, "CERTIFICATE", "EC PRIVATE KEY"):             "a private key",
		document + "-----BEGIN CERTIFICATE-----\nAAAA\n":                          "PEM",
		strings.ReplaceAll(document, "CERTIFICATE", "ENCRYPTED PRIVATE KEY"):      "a private key",
		strings.ReplaceAll(document, "-----BEGIN CERTIFICATE", "-----BEGIN DATA"): "PEM",
	} {
		if got := secretIn([]byte(text)); got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
}
