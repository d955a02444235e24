package ipsec

import (
	"maps"
	"slices"
	"strings"
)

// suite is what was negotiated, in the keywords of proposals, the same for each
// way to write one; empty for none.
type suite struct {
	encryption, integrity, prf string
	// exchanges are the key exchange, and additional ones (RFC 9370) as ke1_X.
	exchanges []string
	esn       bool
}

// String is the suite as a proposal.
func (s suite) String() string {
	words := append([]string{s.encryption, s.integrity, s.prf}, s.exchanges...)
	if s.esn {
		words = append(words, "esn")
	}
	return strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), "-")
}

// What strongSwan calls algorithms, and how proposals write them
// (proposal_keywords_static.txt, and *_names beside each kind in
// src/libstrongswan/crypto). Anything else keeps its name, in lower case, and so
// is in no proposal.
var (
	ciphers = map[string]struct {
		keyword string
		// sized ones have their key's length in the middle.
		sized bool
	}{
		"AES_CBC": {"", true}, "AES_CTR": {"ctr", true},
		"AES_CCM_8": {"ccm8", true}, "AES_CCM_12": {"ccm12", true}, "AES_CCM_16": {"ccm16", true},
		"AES_GCM_8": {"gcm8", true}, "AES_GCM_12": {"gcm12", true}, "AES_GCM_16": {"gcm16", true},
		"NULL_AES_GMAC": {"gmac", true}, "CHACHA20_POLY1305": {"chacha20poly1305", false},
		"NULL": {"null", false}, "3DES_CBC": {"3des", false}, "DES_CBC": {"des", false},
	}
	signers = map[string]string{
		"HMAC_SHA2_256_128": "sha256", "HMAC_SHA2_384_192": "sha384", "HMAC_SHA2_512_256": "sha512",
		"HMAC_SHA1_96": "sha1", "HMAC_MD5_96": "md5", "AES_XCBC_96": "aesxcbc", "AES_CMAC_96": "aescmac",
		"HMAC_SHA1_160": "sha1_160", "HMAC_MD5_128": "md5_128", "HMAC_SHA2_256_96": "sha256_96",
	}
	prfs = map[string]string{
		"PRF_HMAC_SHA2_256": "prfsha256", "PRF_HMAC_SHA2_384": "prfsha384", "PRF_HMAC_SHA2_512": "prfsha512",
		"PRF_HMAC_SHA1": "prfsha1", "PRF_HMAC_MD5": "prfmd5", "PRF_AES128_XCBC": "prfaesxcbc", "PRF_AES128_CMAC": "prfaescmac",
	}
	groups = map[string]string{
		"MODP_768": "modp768", "MODP_1024": "modp1024", "MODP_1536": "modp1536", "MODP_2048": "modp2048",
		"MODP_3072": "modp3072", "MODP_4096": "modp4096", "MODP_6144": "modp6144", "MODP_8192": "modp8192",
		"MODP_1024_160": "modp1024s160", "MODP_2048_224": "modp2048s224", "MODP_2048_256": "modp2048s256",
		"ECP_192": "ecp192", "ECP_224": "ecp224", "ECP_256": "ecp256", "ECP_384": "ecp384", "ECP_521": "ecp521",
		"ECP_224_BP": "ecp224bp", "ECP_256_BP": "ecp256bp", "ECP_384_BP": "ecp384bp", "ECP_512_BP": "ecp512bp",
		"CURVE_25519": "x25519", "CURVE_448": "x448",
		"ML_KEM_512": "mlkem512", "ML_KEM_768": "mlkem768", "ML_KEM_1024": "mlkem1024",
	}
	// same are other ways to write a keyword.
	same = map[string]string{
		"aes": "aes128", "sha": "sha1", "sha2_256": "sha256", "sha2_384": "sha384", "sha2_512": "sha512",
		"curve25519": "x25519", "curve448": "x448", "chacha20poly1305compat": "chacha20poly1305",
		"modpnone": "none",
	}
	// prfOf is the PRF that goes with an integrity algorithm where a proposal names
	// none (proposal_create_from_string).
	prfOf = map[string]string{
		"sha256": "prfsha256", "sha384": "prfsha384", "sha512": "prfsha512", "sha1": "prfsha1", "md5": "prfmd5",
		"aesxcbc": "prfaesxcbc", "aescmac": "prfaescmac",
	}
	keySizes = []string{"128", "192", "256"}
)

func cipherKeyword(name, size string) string {
	c, ok := ciphers[name]
	switch {
	case !ok:
		return other(name + size)
	case c.sized:
		return "aes" + size + c.keyword
	}
	return c.keyword
}

func keyword(names map[string]string, name string) string {
	if k, ok := names[name]; ok || name == "" {
		return k
	}
	return other(name)
}

// other is never a keyword.
func other(name string) string { return "?" + strings.ToLower(name) }

// accepted is what one proposal allows.
type accepted struct {
	encryption, integrity, prfs, exchanges map[string]bool
	esn, noesn                             bool
}

var (
	isSigner = values(signers)
	isPRF    = values(prfs)
	isGroup  = values(groups)
)

func values(m map[string]string) map[string]bool {
	out := map[string]bool{}
	for v := range maps.Values(m) {
		out[v] = true
	}
	return out
}

// parseProposal reads a proposal. What is no keyword of the other kinds counts as
// a cipher.
func parseProposal(text string) accepted {
	a := accepted{map[string]bool{}, map[string]bool{}, map[string]bool{}, map[string]bool{}, false, false}
	for w := range strings.SplitSeq(text, "-") {
		for _, short := range []string{"gcm", "ccm"} {
			// aes256gcm and aes256gcm128 are aes256gcm16.
			for _, bits := range [][2]string{{"64", "8"}, {"96", "12"}, {"128", "16"}, {"", "16"}} {
				if strings.HasPrefix(w, "aes") && strings.HasSuffix(w, short+bits[0]) {
					w = strings.TrimSuffix(w, bits[0]) + bits[1]
					break
				}
			}
		}
		if s, ok := same[w]; ok {
			w = s
		}
		_, additional, isAdditional := strings.Cut(w, "_")
		switch {
		case w == "esn":
			a.esn = true
		case w == "noesn":
			a.noesn = true
		case w == "none":
			a.exchanges[""] = true
		case isSigner[w]:
			a.integrity[w] = true
		case isPRF[w]:
			a.prfs[w] = true
		case isGroup[w], isAdditional && strings.HasPrefix(w, "ke") && isGroup[additional]:
			a.exchanges[w] = true
		case w != "":
			a.encryption[w] = true
		}
	}
	if len(a.prfs) == 0 {
		for i := range a.integrity {
			a.prfs[prfOf[i]] = true
		}
	}
	if !a.esn {
		a.noesn = true
	}
	return a
}

func authenticates(cipher string) bool {
	return strings.Contains(cipher, "gcm") || strings.Contains(cipher, "ccm") || cipher == "chacha20poly1305"
}

func (a accepted) ciphers(s suite) bool {
	if !a.encryption[s.encryption] {
		return false
	}
	if authenticates(s.encryption) {
		return s.integrity == ""
	}
	return a.integrity[s.integrity]
}

func (a accepted) exchange(s suite) bool {
	wants := 0
	for e := range a.exchanges {
		if strings.HasPrefix(e, "ke") {
			wants++
		}
	}
	if len(s.exchanges) == 0 || len(s.exchanges)-1 < min(wants, 1) {
		return false
	}
	for _, e := range s.exchanges {
		if !a.exchanges[e] {
			return false
		}
	}
	return true
}

// ike reports whether an IKE SA of the suite is one that the proposal allows.
func (a accepted) ike(s suite) bool { return a.ciphers(s) && a.prfs[s.prf] && a.exchange(s) }

// esp does so of an ESP SA. One whose keys come from the IKE SA has no exchange of
// its own; first tells that it may be such.
func (a accepted) esp(s suite, first bool) bool {
	if !a.ciphers(s) || s.esn && !a.esn || !s.esn && !a.noesn {
		return false
	}
	if len(s.exchanges) == 0 {
		return first || len(a.exchanges) == 0 || a.exchanges[""]
	}
	return a.exchange(s)
}
