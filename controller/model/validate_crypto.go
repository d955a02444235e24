package model

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// algorithm is what a transform of IKEv2 or ESP is to this project.
type algorithm struct {
	// forbidden says why the floor refuses it; empty where it may be used.
	forbidden string
	// aead is set for ciphers that authenticate by themselves.
	aead bool
}

const (
	broken   = "can be broken"
	short    = "is too weak against what attackers have today"
	shortTag = "has an authentication tag that is too short"
)

// The algorithms by strongSwan's keywords (proposal_keywords_static.txt of
// 6.0.6). What is known and refused is here, too, so that it is refused for what
// it is: MUST NOT and SHOULD NOT of RFC 8221, sections 5 and 6, and RFC 8247,
// section 2; groups of less than 2048 bits and those with small subgroups.
var (
	ciphers = map[string]algorithm{
		"aes128": {}, "aes192": {}, "aes256": {}, "aes128ctr": {}, "aes192ctr": {}, "aes256ctr": {},
		"aes128gcm16": {aead: true}, "aes192gcm16": {aead: true}, "aes256gcm16": {aead: true},
		"aes128ccm16": {aead: true}, "aes192ccm16": {aead: true}, "aes256ccm16": {aead: true},
		"chacha20poly1305": {aead: true},
		"null":             {forbidden: "encrypts nothing"},
		"des":              {forbidden: broken}, "3des": {forbidden: broken}, "blowfish128": {forbidden: broken}, "cast128": {forbidden: broken},
		"aes128gcm8": {forbidden: shortTag}, "aes256gcm8": {forbidden: shortTag}, "aes128gcm12": {forbidden: shortTag}, "aes256gcm12": {forbidden: shortTag},
		"aes128ccm8": {forbidden: shortTag}, "aes256ccm8": {forbidden: shortTag}, "aes128ccm12": {forbidden: shortTag}, "aes256ccm12": {forbidden: shortTag},
	}
	integrities = map[string]algorithm{
		"sha256": {}, "sha384": {}, "sha512": {}, "aescmac": {},
		"md5": {forbidden: broken}, "sha1": {forbidden: short}, "sha256_96": {forbidden: shortTag},
	}
	prfs = map[string]algorithm{
		"prfsha256": {}, "prfsha384": {}, "prfsha512": {}, "prfaescmac": {},
		"prfmd5": {forbidden: broken}, "prfsha1": {forbidden: short},
	}
	groups = map[string]algorithm{
		"modp2048": {}, "modp3072": {}, "modp4096": {}, "modp6144": {}, "modp8192": {},
		"ecp256": {}, "ecp384": {}, "ecp521": {}, "ecp256bp": {}, "ecp384bp": {}, "ecp512bp": {},
		"x25519": {}, "x448": {},
		"modp768": {forbidden: broken}, "modp1024": {forbidden: short}, "modp1536": {forbidden: short}, "ecp192": {forbidden: short}, "ecp224": {forbidden: short},
		"modp1024s160": {forbidden: short}, "modp2048s224": {forbidden: "has a small subgroup (RFC 8247, section 2.4)"}, "modp2048s256": {forbidden: "has a small subgroup (RFC 8247, section 2.4)"},
	}
	kems = map[string]algorithm{"mlkem512": {}, "mlkem768": {}, "mlkem1024": {}}
)

// maxProposals is how many proposals a profile has for each of IKE and ESP.
const maxProposals = 16

func (c *checker) cryptoProfile(k Key, s *CryptoProfileSpec) {
	if slices.Contains(BuiltInProfiles(), k.Name) {
		c.add(k, "metadata.name", k.Name, "is the name of a profile that exists without a document", "another name")
	}
	if c.proposals(k, "spec.ike", len(s.IKE)) {
		for i, p := range s.IKE {
			field := at("spec.ike", i)
			c.cipher(k, field, p.Encryption, p.Integrity)
			c.pick(k, field+".prf", p.PRF, prfs)
			c.exchange(k, field, p.KeyExchange, p.AdditionalKeyExchange)
		}
	}
	if c.proposals(k, "spec.esp", len(s.ESP)) {
		for i, p := range s.ESP {
			field := at("spec.esp", i)
			c.cipher(k, field, p.Encryption, p.Integrity)
			c.exchange(k, field, p.KeyExchange, p.AdditionalKeyExchange)
			if p.ESN != "" {
				enum(c, k, field+".esn", p.ESN, ESNRequired, ESNOff)
			}
		}
	}
}

func (c *checker) proposals(k Key, field string, n int) bool {
	switch {
	case n == 0:
		c.add(k, field, "", "is required: nothing could be negotiated", "at least one proposal")
	case n > maxProposals:
		c.add(k, field, strconv.Itoa(n), fmt.Sprintf("has more than the %d proposals that a profile can have", maxProposals), "fewer proposals")
		return false
	}
	return true
}

func (c *checker) cipher(k Key, field, encryption, integrity string) {
	if !c.pick(k, field+".encryption", encryption, ciphers) {
		return
	}
	switch aead := ciphers[encryption].aead; {
	case aead && integrity != "":
		c.add(k, field+".integrity", integrity, "stands beside "+encryption+", which authenticates by itself (RFC 8247, section 2.1)", "leave it out")
	case !aead:
		c.pick(k, field+".integrity", integrity, integrities)
	}
}

// maxProfilesShown is how many of a customer's own profiles a hint lists.
const maxProfilesShown = 16

// ownProfiles says in a hint which profiles a customer has.
func (c *checker) ownProfiles(customer string) string {
	names := c.names[Key{Kind: KindCryptoProfile, Customer: customer}]
	switch n := len(names); {
	case n == 0:
		return "a CryptoProfile of the customer, who has none"
	case n > maxProfilesShown:
		return fmt.Sprintf("one of the customer's %d, such as %s", n, Shorten(names[0]))
	}
	shown := make([]string, len(names))
	for i, name := range names {
		shown[i] = Shorten(name)
	}
	return "the customer's " + oneOf(shown)
}

// additionalMark begins additional key exchanges in strongSwan's proposals; here their
// field says what they are.
const additionalMark = "ke1_"

func (c *checker) exchange(k Key, field, first, additional string) {
	const needs = "; it needs strongSwan 6.0 at both ends"
	second := strings.TrimPrefix(first[strings.LastIndexByte(first, '-')+1:], additionalMark)
	if _, kem := kems[second]; kem {
		c.add(k, field+".keyExchange", first, "names a second key exchange, which stands beside one that is not post-quantum, in a field of its own (RFC 9370)",
			"keyExchange: ecp384, additionalKeyExchange: "+second+needs)
		return
	}
	c.pick(k, field+".keyExchange", first, groups)
	bare, marked := strings.CutPrefix(additional, additionalMark)
	if _, kem := kems[bare]; kem && marked {
		c.add(k, field+".additionalKeyExchange", additional, "has strongSwan's mark of additional key exchanges, which the field's name says already", bare+needs)
	} else if additional != "" {
		c.pick(k, field+".additionalKeyExchange", additional, kems)
	}
}

// pick reports an algorithm that does not exist or that the floor forbids.
func (c *checker) pick(k Key, field, word string, from map[string]algorithm) bool {
	return c.pickOf(k, field, word, from, "is known and refused: it ", "is no algorithm that this field takes")
}

// pickAzure reports a word that Azure does not know, or knows and the floor forbids.
func (c *checker) pickAzure(k Key, field, word string, from map[string]algorithm) bool {
	return c.pickOf(k, field, word, from, "is known to Azure and refused by this project's floor: it ", "is nothing that Azure takes here")
}

func (c *checker) pickOf(k Key, field, word string, from map[string]algorithm, refused, unknown string) bool {
	if a, ok := from[word]; ok && a.forbidden == "" {
		return true
	}
	var good []string
	for name, a := range from {
		if a.forbidden == "" {
			good = append(good, name)
		}
	}
	slices.Sort(good)
	switch a, known := from[word]; {
	case word == "":
		c.add(k, field, "", "is required", oneOf(good))
	case known:
		c.add(k, field, word, refused+a.forbidden, oneOf(good))
	default:
		hint := oneOf(good)
		if near := Nearest(word, good); near != "" {
			hint = "did you mean " + quoted(near) + "?"
		}
		c.add(k, field, word, unknown, hint)
	}
	return false
}

// validIdentity reports a DNS name without a pattern, or an address.
func validIdentity(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > MaxNameLength || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.ContainsFunc(label, func(r rune) bool {
				return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-'
			}) {
			return false
		}
	}
	return true
}

// What Azure knows (MicrosoftDocs/azure-docs, vpn-gateway-faq-ipsecikepolicy-include.md);
// what the floor forbids says why.
var (
	azureIKECiphers = map[string]algorithm{
		"GCMAES256": {aead: true}, "GCMAES128": {aead: true}, "AES256": {}, "AES192": {}, "AES128": {},
		"DES3": {forbidden: broken}, "DES": {forbidden: broken},
	}
	azureIKEIntegrities = map[string]algorithm{
		"SHA384": {}, "SHA256": {}, "SHA1": {forbidden: short}, "MD5": {forbidden: broken},
	}
	azureGroups = map[string]algorithm{
		"ECP384": {}, "ECP256": {}, "DHGroup14": {}, "DHGroup2048": {},
		"DHGroup24": {forbidden: "has a small subgroup (RFC 8247, section 2.4)"}, "DHGroup2": {forbidden: short}, "DHGroup1": {forbidden: broken}, "None": {forbidden: "exchanges no key"},
	}
	azureCiphers = map[string]algorithm{
		"GCMAES256": {aead: true}, "GCMAES192": {aead: true}, "GCMAES128": {aead: true}, "AES256": {}, "AES192": {}, "AES128": {},
		"DES3": {forbidden: broken}, "DES": {forbidden: broken}, "None": {forbidden: "encrypts nothing"},
	}
	azureIntegrities = map[string]algorithm{
		"GCMAES256": {}, "GCMAES192": {}, "GCMAES128": {}, "SHA256": {}, "SHA1": {forbidden: short}, "MD5": {forbidden: broken},
	}
	azurePFS = map[string]algorithm{
		"ECP384": {}, "ECP256": {}, "PFS2048": {},
		"PFS24": {forbidden: "has a small subgroup (RFC 8247, section 2.4)"}, "PFS2": {forbidden: short}, "PFS1": {forbidden: broken}, "None": {forbidden: "gives no forward secrecy"},
	}
)

func (c *checker) azurePolicy(k Key, field string, p *AzureIPsecPolicy) {
	c.pickAzure(k, field+".ikeEncryption", p.IKEEncryption, azureIKECiphers)
	c.pickAzure(k, field+".ikeIntegrity", p.IKEIntegrity, azureIKEIntegrities)
	c.pickAzure(k, field+".dhGroup", p.DHGroup, azureGroups)
	cipher := c.pickAzure(k, field+".ipsecEncryption", p.IPsecEncryption, azureCiphers)
	integrity := c.pickAzure(k, field+".ipsecIntegrity", p.IPsecIntegrity, azureIntegrities)
	c.pickAzure(k, field+".pfsGroup", p.PFSGroup, azurePFS)
	if gcm := strings.HasPrefix(p.IPsecIntegrity, "GCM"); cipher && integrity && (gcm || azureCiphers[p.IPsecEncryption].aead) && p.IPsecEncryption != p.IPsecIntegrity {
		c.add(k, field+".ipsecIntegrity", p.IPsecIntegrity, "is not "+p.IPsecEncryption+": Azure wants the same GCM algorithm and key length in both", "the same in ipsecEncryption and ipsecIntegrity, or AES with SHA256")
	}
	c.required(k, field+".saLifeTimeSeconds", p.SALifeTimeSeconds, 300, 172_799, " seconds")
	c.required(k, field+".saDataSizeKilobytes", p.SADataSizeKilobytes, 1024, 1<<31-1, " KB")
}
