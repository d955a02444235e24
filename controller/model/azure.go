package model

import (
	"slices"
	"strings"

	"github.com/circuitseal/circuitseal/controller/profile"
)

// azureWords are strongSwan's keywords for Azure's.
var azureWords = map[string]string{
	"GCMAES256": "aes256gcm16", "GCMAES192": "aes192gcm16", "GCMAES128": "aes128gcm16",
	"AES256": "aes256", "AES192": "aes192", "AES128": "aes128",
	"SHA384": "sha384", "SHA256": "sha256",
	"ECP384": "ecp384", "ECP256": "ecp256", "DHGroup14": "modp2048", "DHGroup2048": "modp2048", "PFS2048": "modp2048",
}

func (a AzureIPsecPolicy) ike(s profile.Source) profile.Choice {
	p := profile.Proposal{Encryption: azureWords[a.IKEEncryption], PRF: "prf" + azureWords[a.IKEIntegrity], KeyExchange: azureWords[a.DHGroup]}
	if !azureIKECiphers[a.IKEEncryption].aead {
		p.Integrity = azureWords[a.IKEIntegrity]
	}
	return profile.Choice{Proposal: p, Source: s}
}

func (a AzureIPsecPolicy) esp(s profile.Source) profile.Choice {
	p := profile.Proposal{Encryption: azureWords[a.IPsecEncryption], KeyExchange: azureWords[a.PFSGroup]}
	if !azureCiphers[a.IPsecEncryption].aead {
		p.Integrity = azureWords[a.IPsecIntegrity]
	}
	return profile.Choice{Proposal: p, Source: s}
}

// azureSuite is what an ipsecPolicy can say of IKE or ESP, in Azure's words and ours.
type azureSuite struct {
	words string
	profile.Proposal
}

// azureIKESuites are all that the floor allows, the strongest first.
func azureIKESuites() (all []azureSuite) {
	for _, e := range allowed(azureIKECiphers) {
		for _, i := range allowed(azureIKEIntegrities) {
			for _, g := range allowed(azureGroups) {
				a := AzureIPsecPolicy{IKEEncryption: e, IKEIntegrity: i, DHGroup: g}
				all = append(all, azureSuite{"ikeEncryption: " + e + ", ikeIntegrity: " + i + ", dhGroup: " + g, a.ike(profile.Source{}).Proposal})
			}
		}
	}
	return all
}

// azureESPSuites are all that the floor allows, the strongest first.
func azureESPSuites() (all []azureSuite) {
	for _, e := range allowed(azureCiphers) {
		for _, i := range allowed(azureIntegrities) {
			if aead := strings.HasPrefix(i, "GCM"); aead != azureCiphers[e].aead || aead && i != e {
				continue
			}
			for _, g := range allowed(azurePFS) {
				a := AzureIPsecPolicy{IPsecEncryption: e, IPsecIntegrity: i, PFSGroup: g}
				all = append(all, azureSuite{"ipsecEncryption: " + e + ", ipsecIntegrity: " + i + ", pfsGroup: " + g, a.esp(profile.Source{}).Proposal})
			}
		}
	}
	return all
}

// allowed are the names that the floor does not forbid: elliptic curves first, then GCM
// and longer keys, whose names come later in the alphabet.
func allowed(from map[string]algorithm) []string {
	var names []string
	for name, a := range from {
		// DHGroup2048 is another name of DHGroup14.
		if a.forbidden == "" && name != "DHGroup2048" {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		if ac, bc := strings.HasPrefix(a, "ECP"), strings.HasPrefix(b, "ECP"); ac != bc {
			return map[bool]int{true: -1, false: 1}[ac]
		}
		return strings.Compare(b, a)
	})
	return names
}
