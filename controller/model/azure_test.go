package model

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/circuitseal/circuitseal/controller/profile"
)

// azureOracle says of one combination whether Azure takes it and whether it is good
// enough, from Azure's documentation, line by line, apart from the tables that it
// judges. forbidden are the values that Azure knows and nobody should use.
type azureOracle struct{}

func (azureOracle) forbidden(field, v string) bool {
	switch field {
	case "ike", "esp":
		// 56 bits, 112 bits with 64-bit blocks, and nothing.
		return v == "DES" || v == "DES3" || v == "None"
	case "integrity", "esp integrity":
		return v == "SHA1" || v == "MD5"
	case "dh", "pfs":
		// "DH Group 1" 768 bits, "2" 1024 bits, "24" 2048 bits with a subgroup of 256.
		return slices.Contains([]string{"DHGroup1", "DHGroup2", "DHGroup24", "PFS1", "PFS2", "PFS24", "None"}, v)
	}
	panic(field)
}

func (o azureOracle) good(p AzureIPsecPolicy) bool {
	for field, v := range map[string]string{
		"ike": p.IKEEncryption, "integrity": p.IKEIntegrity, "dh": p.DHGroup,
		"esp": p.IPsecEncryption, "esp integrity": p.IPsecIntegrity, "pfs": p.PFSGroup,
	} {
		if o.forbidden(field, v) {
			return false
		}
	}
	// "If GCMAES is used as for IPsec Encryption algorithm, you must select the same
	// GCMAES algorithm and key length for IPsec Integrity", and not otherwise.
	if strings.HasPrefix(p.IPsecEncryption, "GCM") || strings.HasPrefix(p.IPsecIntegrity, "GCM") {
		return p.IPsecEncryption == p.IPsecIntegrity
	}
	return true
}

// keywords are strongSwan's for a good combination, spelled by other rules than
// azureWords.
func (azureOracle) keywords(p AzureIPsecPolicy) (ike, esp string) {
	cipher := func(v string) string {
		if bits, ok := strings.CutPrefix(v, "GCMAES"); ok {
			return "aes" + bits + "gcm16"
		}
		return "aes" + strings.TrimPrefix(v, "AES")
	}
	group := func(v string) string {
		if curve, ok := strings.CutPrefix(v, "ECP"); ok {
			return "ecp" + curve
		}
		return "modp2048" // DHGroup14, DHGroup2048 and PFS2048 are one group.
	}
	hash := strings.ToLower(p.IKEIntegrity)
	if ike = cipher(p.IKEEncryption); !strings.Contains(ike, "gcm") {
		ike += "-" + hash
	}
	ike += "-prf" + hash + "-" + group(p.DHGroup)
	if esp = cipher(p.IPsecEncryption); !strings.Contains(esp, "gcm") {
		esp += "-" + strings.ToLower(p.IPsecIntegrity)
	}
	return ike, esp + "-" + group(p.PFSGroup)
}

// Every combination of Azure's parameters: what is accepted is what Azure takes and
// the floor allows, each refusal of what Azure knows says both, and what is accepted
// becomes the proposal that Azure means.
func TestAllOfAzuresCombinations(t *testing.T) {
	lists := [6][]string{
		{"GCMAES256", "GCMAES128", "AES256", "AES192", "AES128", "DES3", "DES"},
		{"SHA384", "SHA256", "SHA1", "MD5"},
		{"DHGroup24", "ECP384", "ECP256", "DHGroup14", "DHGroup2048", "DHGroup2", "DHGroup1", "None"},
		{"GCMAES256", "GCMAES192", "GCMAES128", "AES256", "AES192", "AES128", "DES3", "DES", "None"},
		{"GCMAES256", "GCMAES192", "GCMAES128", "SHA256", "SHA1", "MD5"},
		{"PFS24", "ECP384", "ECP256", "PFS2048", "PFS2", "PFS1", "None"},
	}
	var oracle azureOracle
	all, accepted := 0, 0
	var pick func(chosen []string)
	pick = func(chosen []string) {
		if len(chosen) < len(lists) {
			for _, v := range lists[len(chosen)] {
				pick(append(slices.Clone(chosen), v))
			}
			return
		}
		all++
		p := AzureIPsecPolicy{chosen[0], chosen[1], chosen[2], chosen[3], chosen[4], chosen[5], 27_000, 102_400_000}
		c := &checker{}
		c.azurePolicy(Key{Kind: KindEndpoint, Customer: "c", Name: "e"}, "spec", &p)
		if got, want := len(c.problems) == 0, oracle.good(p); got != want {
			t.Fatalf("%v: accepted %t, want %t: %+v", chosen, got, want, c.problems)
		}
		for _, problem := range c.problems {
			both := strings.Contains(problem.Message, "known to Azure and refused by this project's floor")
			if combination := strings.Contains(problem.Message, "Azure wants the same GCM"); both == combination {
				t.Fatalf("%v: %s", chosen, problem.Message)
			}
		}
		if len(c.problems) > 0 {
			return
		}
		accepted++
		ike, esp := oracle.keywords(p)
		if a, b := p.ike(profile.Source{}).String(), p.esp(profile.Source{}).String(); a != ike || b != esp {
			t.Fatalf("%v: %s and %s, want %s and %s", chosen, a, b, ike, esp)
		}
		for _, problem := range belowFloor(profile.Profile{IKE: []profile.Choice{p.ike(profile.Source{})}, ESP: []profile.Choice{p.esp(profile.Source{})}}) {
			t.Fatalf("%v: %s", chosen, problem)
		}
	}
	pick(nil)
	// 5 ciphers, 2 hashes and 4 groups for IKE; 3 GCM and 3 CBC suites and 3 groups for ESP.
	if want := 5 * 2 * 4 * (3 + 3) * 3; accepted != want || all != 7*4*8*9*6*7 {
		t.Errorf("%d of %d combinations are accepted, want %d", accepted, all, want)
	}
	c := &checker{}
	c.azurePolicy(Key{}, "spec", &AzureIPsecPolicy{IKEEncryption: "CHACHA20"})
	if len(c.problems) == 0 || !strings.Contains(fmt.Sprint(c.problems), "nothing that Azure takes here") {
		t.Errorf("an unknown word: %+v", c.problems)
	}
}

// belowFloor says what of a profile's algorithms validation would refuse in a
// document.
func belowFloor(p profile.Profile) []string {
	spec := &CryptoProfileSpec{}
	for _, i := range p.IKE {
		spec.IKE = append(spec.IKE, IKEProposal{i.Encryption, i.Integrity, i.PRF, i.KeyExchange, i.AdditionalKeyExchange})
	}
	for _, e := range p.ESP {
		spec.ESP = append(spec.ESP, ESPProposal{e.Encryption, e.Integrity, e.KeyExchange, e.AdditionalKeyExchange, ESNRequired})
	}
	c := &checker{}
	c.cryptoProfile(Key{Kind: KindCryptoProfile, Customer: "c", Name: "own"}, spec)
	var all []string
	for _, problem := range c.problems {
		all = append(all, problem.Field+" "+problem.Value+" "+problem.Message)
	}
	return all
}

func TestBuiltInProfilesKeepTheFloor(t *testing.T) {
	for _, p := range profile.All() {
		for _, problem := range belowFloor(p) {
			t.Errorf("%s: %s", p.Name, problem)
		}
	}
	if weak := belowFloor(profile.Profile{IKE: []profile.Choice{{Proposal: profile.Proposal{Encryption: "3des", Integrity: "sha1", PRF: "prfsha1", KeyExchange: "modp1024"}}}, ESP: []profile.Choice{{}}}); len(weak) != 5 {
		t.Errorf("the floor lets pass what it must not: %v", weak)
	}
}
