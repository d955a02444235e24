package profile

import (
	"slices"
	"time"
)

// Default is the profile of a policy that names none. It has one cipher, one way
// to exchange keys and no weaker alternative that an attacker could lead to; its
// algorithms are in every other profile for governments but the post-quantum one,
// every strongSwan of today has them, and our certificates (P-384) fit.
const Default = "cnsa1"

// Azure is the profile that Azure VPN Gateways take part in.
const Azure = "azure-vpngw"

// BuiltIn is the built-in profile of a name, false where there is none.
func BuiltIn(name string) (Profile, bool) {
	i := slices.IndexFunc(builtIn, func(p Profile) bool { return p.Name == name })
	if i < 0 {
		return Profile{}, false
	}
	return builtIn[i], true
}

// All are the built-in profiles by name.
func All() []Profile { return slices.Clone(builtIn) }

// Names are those of All.
func Names() []string {
	names := make([]string, len(builtIn))
	for i, p := range builtIn {
		names[i] = p.Name
	}
	return names
}

func recalled(text string) Source { return Source{Text: text, Recalled: true} }

// ikeRFC and espRFC are what the RFCs want of algorithms; in brackets are sections.
func ikeRFC(levels string) Source { return recalled("RFC 8247: " + levels) }

func espRFC(levels, group string) Source {
	return recalled("RFC 8221: " + levels + "; RFC 8247, section 2.4: " + group)
}

// gcm is a proposal with AES in Galois/counter mode, whose tag has 16 bytes.
func gcm(cipher, prf, exchange string, s Source) Choice {
	return Choice{Proposal{Encryption: cipher, PRF: prf, KeyExchange: exchange}, s}
}

// cbc is a proposal with a cipher that needs an integrity algorithm beside it.
func cbc(cipher, integrity, prf, exchange string, s Source) Choice {
	return Choice{Proposal{Encryption: cipher, Integrity: integrity, PRF: prf, KeyExchange: exchange}, s}
}

// hybrid adds a second key exchange.
func (c Choice) hybrid(kem string) Choice {
	c.AdditionalKeyExchange = kem
	return c
}

// esn wants extended sequence numbers.
func (c Choice) esn() Choice {
	c.ESN = true
	return c
}

// FIPSModules is what a build for FIPS 140-3 would need, whatever the profile.
const FIPSModules = "The controller and agents would have to be built with GOFIPS140 set to a validated Go cryptographic module, and strongSwan would have to take all algorithms from OpenSSL's FIPS provider (openssl plugin with fips_mode, no other crypto plugins) and the kernel's ESP from a validated kernel; this build is not that, and nothing here claims FIPS validation."

const (
	fipsOnly = "All algorithms are ones that FIPS 140-3 modules may offer. " + FIPSModules
	fipsSome = "Only the proposals with AES and NIST curves or MODP groups could be kept. " + FIPSModules
)

const (
	noWireGuard = "WireGuard has X25519, ChaCha20-Poly1305 and BLAKE2s only, and "
	stig        = "DISA STIG JUSX-VN-000003 (IKE 24 h) and JUSX-VN-000002 (IPsec 8 h)"
)

var (
	rfc9206 = recalled("RFC 9206, sections 5 and 7")
	sp80077 = recalled("NIST SP 800-77r1, section 6")
	tr02102 = recalled("BSI TR-02102-3, sections 3.2 and 3.3")
	hybrids = Source{Text: "RFC 9370 and RFC 9242; strongSwan 6.0 NEWS and its test ikev2/rw-mlkem"}
	azure   = Source{Text: "MicrosoftDocs/azure-docs, vpn-gateway-faq-ipsecikepolicy-include.md"}
)

// builtIn is sorted by name.
var builtIn = []Profile{
	{
		Name: Azure, Summary: "the strongest suite that an Azure VPN Gateway takes by a custom IPsec/IKE policy",
		Source:    azure,
		IKE:       []Choice{gcm("aes256gcm16", "prfsha384", "ecp384", azure)},
		ESP:       []Choice{gcm("aes256gcm16", "", "ecp384", azure)},
		MaxIKE:    28_800 * time.Second,
		MaxESP:    27_000 * time.Second,
		Lifetimes: azure,
		Certificates: Certificates{
			Curves: []string{"P-256", "P-384"}, RSA: 2048, Source: recalled("Azure's documentation of certificate authentication"),
		},
		NoWireGuard: noWireGuard + "an Azure VPN Gateway knows IPsec only for sites",
		FIPS:        fipsOnly,
	},
	{
		Name: "bsi-tr-02102-3", Summary: "the German Federal Office for Information Security's recommendations for IPsec",
		Source: recalled("BSI TR-02102-3; compare with the edition in force"),
		IKE: []Choice{
			gcm("aes256gcm16", "prfsha384", "ecp384bp", tr02102),
			gcm("aes256gcm16", "prfsha384", "ecp384", tr02102),
			gcm("aes128gcm16", "prfsha256", "ecp256bp", tr02102),
			gcm("aes256gcm16", "prfsha512", "ecp512bp", tr02102),
			gcm("aes256gcm16", "prfsha384", "modp3072", tr02102),
		},
		ESP: []Choice{
			gcm("aes256gcm16", "", "ecp384bp", tr02102).esn(),
			gcm("aes256gcm16", "", "ecp384", tr02102).esn(),
		},
		MaxIKE: 24 * time.Hour, MaxESP: 4 * time.Hour, Lifetimes: recalled("BSI TR-02102-3: 24 h and 4 h"),
		Certificates: Certificates{Curves: []string{"P-256", "P-384", "P-521"}, RSA: 3000, Source: tr02102},
		NoWireGuard:  noWireGuard + "TR-02102-3 is about IPsec and lists none of them",
		FIPS:         "FIPS 140-3 has no Brainpool curves: the proposals with ecp256bp, ecp384bp and ecp512bp would have to go. " + FIPSModules,
	},
	{
		Name: "cnsa1", Summary: "the NSA's Commercial National Security Algorithm Suite 1.0 for IPsec; the default",
		Source: rfc9206,
		IKE: []Choice{
			gcm("aes256gcm16", "prfsha384", "ecp384", rfc9206),
			gcm("aes256gcm16", "prfsha512", "ecp384", rfc9206),
			gcm("aes256gcm16", "prfsha384", "modp3072", rfc9206),
			gcm("aes256gcm16", "prfsha384", "modp4096", rfc9206),
		},
		ESP:    []Choice{gcm("aes256gcm16", "", "ecp384", rfc9206).esn()},
		MaxIKE: 24 * time.Hour, MaxESP: 8 * time.Hour, Lifetimes: Source{Text: stig},
		Certificates: Certificates{Curves: []string{"P-384"}, RSA: 3072, Source: rfc9206},
		NoWireGuard:  noWireGuard + "CNSA 1.0 has none of them",
		FIPS:         fipsOnly,
	},
	{
		Name: "nist-800-77r1", Summary: "NIST's guide to IPsec VPNs",
		Source: sp80077,
		IKE: []Choice{
			gcm("aes256gcm16", "prfsha384", "ecp384", sp80077),
			gcm("aes128gcm16", "prfsha256", "ecp256", sp80077),
			cbc("aes256", "sha384", "prfsha384", "modp3072", sp80077),
		},
		ESP: []Choice{
			gcm("aes256gcm16", "", "ecp384", sp80077).esn(),
			gcm("aes128gcm16", "", "ecp256", sp80077).esn(),
		},
		MaxIKE: 24 * time.Hour, MaxESP: 8 * time.Hour, Lifetimes: Source{Text: "DISA STIG SV-214670 and SV-214669"},
		Certificates: Certificates{Curves: []string{"P-256", "P-384"}, RSA: 2048, Source: recalled("NIST SP 800-77r1; RSA below 3072 bits until 2030 (SP 800-57)")},
		NoWireGuard:  noWireGuard + "neither is approved by NIST",
		FIPS:         fipsOnly,
	},
	{
		Name: "pq-hybrid-commercial", Summary: "classical and ML-KEM key exchanges together, and a post-quantum pre-shared key on top",
		Source: hybrids,
		IKE: []Choice{
			gcm("aes256gcm16", "prfsha384", "ecp384", hybrids).hybrid("mlkem768"),
			gcm("aes256gcm16", "prfsha384", "x25519", hybrids).hybrid("mlkem768"),
		},
		ESP:    []Choice{gcm("aes256gcm16", "", "x25519", hybrids).hybrid("mlkem768").esn()},
		MaxIKE: DefaultIKE, MaxESP: DefaultESP, Lifetimes: Source{Text: "this project's choice: as short as its defaults"},
		Certificates: Certificates{Curves: []string{"P-256", "P-384", "P-521"}, RSA: 3072, Source: Source{Text: "this project's choice; signatures that stand against quantum attackers are not in strongSwan yet"}},
		WireGuard:    "with its pre-shared key, which is mixed in as RFC 8784's is and changes every hour",
		PPK:          true,
		FIPS:         "ML-KEM (FIPS 203) and X25519 beside it need a module whose validation covers them. " + FIPSModules,
	},
	{
		Name: "rfc8221-8247", Summary: "what the IETF asks of every IPsec implementation; for gateways of any make",
		// RFC 9395 updates both: it deprecates IKEv1 and algorithms that are not here.
		Source: recalled("RFC 8221, sections 5 and 6; RFC 8247, sections 2.1 to 2.4; both as updated by RFC 9395"),
		// Both have more that is not here: CCM with a tag of 8 bytes and XCBC, SHOULD for
		// the Internet of things, HMAC-SHA1, MUST-, and 3DES in IKE, MAY.
		IKE: []Choice{
			gcm("aes256gcm16", "prfsha512", "ecp256", ikeRFC("AES-GCM-16 SHOULD (2.1), SHA2-512 SHOULD+ (2.2), 256-bit ECP SHOULD (2.4)")),
			gcm("aes256gcm16", "prfsha256", "ecp256", ikeRFC("AES-GCM-16 SHOULD (2.1), SHA2-256 MUST (2.2), 256-bit ECP SHOULD (2.4)")),
			gcm("aes128gcm16", "prfsha256", "ecp256", ikeRFC("AES-GCM-16 SHOULD (2.1), SHA2-256 MUST (2.2), 256-bit ECP SHOULD (2.4)")),
			gcm("chacha20poly1305", "prfsha512", "ecp256", ikeRFC("ChaCha20-Poly1305 SHOULD (2.1), SHA2-512 SHOULD+ (2.2), 256-bit ECP SHOULD (2.4)")),
			gcm("chacha20poly1305", "prfsha256", "ecp256", ikeRFC("ChaCha20-Poly1305 SHOULD (2.1), SHA2-256 MUST (2.2), 256-bit ECP SHOULD (2.4)")),
			cbc("aes256", "sha512", "prfsha512", "ecp256", ikeRFC("AES-CBC MUST (2.1), SHA2-512 SHOULD+ (2.2) and SHOULD (2.3), 256-bit ECP SHOULD (2.4)")),
			cbc("aes256", "sha256", "prfsha256", "ecp256", ikeRFC("AES-CBC MUST (2.1), SHA2-256 MUST (2.2, 2.3), 256-bit ECP SHOULD (2.4)")),
			cbc("aes128", "sha256", "prfsha256", "ecp256", ikeRFC("AES-CBC MUST (2.1), SHA2-256 MUST (2.2, 2.3), 256-bit ECP SHOULD (2.4)")),
			gcm("aes256gcm16", "prfsha512", "modp2048", ikeRFC("AES-GCM-16 SHOULD (2.1), SHA2-512 SHOULD+ (2.2), MODP-2048 MUST (2.4)")),
			gcm("aes256gcm16", "prfsha256", "modp2048", ikeRFC("AES-GCM-16 SHOULD (2.1), SHA2-256 MUST (2.2), MODP-2048 MUST (2.4)")),
			gcm("aes128gcm16", "prfsha256", "modp2048", ikeRFC("AES-GCM-16 SHOULD (2.1), SHA2-256 MUST (2.2), MODP-2048 MUST (2.4)")),
			gcm("chacha20poly1305", "prfsha256", "modp2048", ikeRFC("ChaCha20-Poly1305 SHOULD (2.1), SHA2-256 MUST (2.2), MODP-2048 MUST (2.4)")),
			cbc("aes256", "sha512", "prfsha512", "modp2048", ikeRFC("AES-CBC MUST (2.1), SHA2-512 SHOULD+ (2.2) and SHOULD (2.3), MODP-2048 MUST (2.4)")),
			cbc("aes256", "sha256", "prfsha256", "modp2048", ikeRFC("AES-CBC MUST (2.1), SHA2-256 MUST (2.2, 2.3), MODP-2048 MUST (2.4)")),
			cbc("aes128", "sha256", "prfsha256", "modp2048", ikeRFC("AES-CBC MUST (2.1), SHA2-256 MUST (2.2, 2.3), MODP-2048 MUST (2.4)")),
		},
		// Extended sequence numbers SHOULD be implemented (RFC 4303, section 2.2.1),
		// so that an implementation without them conforms, too. They come first.
		ESP: func() []Choice {
			plain := []Choice{
				gcm("aes256gcm16", "", "ecp256", espRFC("AES-GCM-16 MUST (5)", "256-bit ECP SHOULD")),
				gcm("aes128gcm16", "", "ecp256", espRFC("AES-GCM-16 MUST (5)", "256-bit ECP SHOULD")),
				gcm("chacha20poly1305", "", "ecp256", espRFC("ChaCha20-Poly1305 SHOULD (5)", "256-bit ECP SHOULD")),
				gcm("aes256gcm16", "", "modp2048", espRFC("AES-GCM-16 MUST (5)", "MODP-2048 MUST")),
				gcm("aes128gcm16", "", "modp2048", espRFC("AES-GCM-16 MUST (5)", "MODP-2048 MUST")),
				cbc("aes256", "sha512", "", "modp2048", espRFC("AES-CBC MUST (5), SHA2-512 SHOULD (6)", "MODP-2048 MUST")),
				cbc("aes256", "sha256", "", "modp2048", espRFC("AES-CBC MUST (5), SHA2-256 MUST (6)", "MODP-2048 MUST")),
				cbc("aes128", "sha256", "", "modp2048", espRFC("AES-CBC MUST (5), SHA2-256 MUST (6)", "MODP-2048 MUST")),
			}
			var all []Choice
			for _, c := range plain {
				all = append(all, c.esn())
			}
			return append(all, plain...)
		}(),
		Certificates: Certificates{Curves: []string{"P-256", "P-384", "P-521"}, RSA: 2048, Source: recalled("RFC 8247, section 3")},
		NoWireGuard:  noWireGuard + "these RFCs are about IPsec",
		FIPS:         fipsSome,
	},
}
