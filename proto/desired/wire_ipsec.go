package desired

import v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"

func presharedToWire(k PresharedKey) *v1.PresharedKey {
	return &v1.PresharedKey{Generation: k.Generation, Key: k.Key[:]}
}

func readPreshared(r *reader, k *v1.PresharedKey) PresharedKey {
	secret, err := SecretFromBytes(k.GetKey())
	r.fail("key", err)
	return PresharedKey{Generation: k.GetGeneration(), Key: secret}
}

func policyToWire(p *IPsecPolicy) *v1.IPsecPolicy {
	if p == nil {
		return nil
	}
	return &v1.IPsecPolicy{
		Profile: p.Profile, LocalId: p.LocalID, RemoteId: p.RemoteID,
		Authentication:   v1.IKEAuthentication(p.Authentication),
		PeerCertificates: p.PeerCertificates, PeerAuthorities: p.PeerAuthorities,
		IkeProposals: p.IKEProposals, EspProposals: p.ESPProposals, PpkRequired: p.PPKRequired,
		IkeLifetime: durationToWire(p.IKELifetime), EspLifetime: durationToWire(p.ESPLifetime),
		EspBytes: p.ESPBytes, EspPackets: p.ESPPackets, DpdDelay: durationToWire(p.DPDDelay),
		UdpEncapsulation: p.UDPEncapsulation, External: p.External,
		LocalSelectors: texts(p.LocalSelectors), RemoteSelectors: texts(p.RemoteSelectors),
	}
}

func readPolicy(r *reader, w *v1.IPsecPolicy) *IPsecPolicy {
	if w == nil {
		return nil
	}
	outer := r.path
	defer func() { r.path = outer }()
	r.path += "ipsec."
	return &IPsecPolicy{
		Profile: w.GetProfile(), LocalID: w.GetLocalId(), RemoteID: w.GetRemoteId(),
		Authentication:   Authentication(narrow[uint8](r, "authentication", uint32(w.GetAuthentication()))),
		PeerCertificates: w.GetPeerCertificates(), PeerAuthorities: w.GetPeerAuthorities(),
		IKEProposals: w.GetIkeProposals(), ESPProposals: w.GetEspProposals(), PPKRequired: w.GetPpkRequired(),
		IKELifetime: durationFromWire(r, "ike_lifetime", w.GetIkeLifetime()), ESPLifetime: durationFromWire(r, "esp_lifetime", w.GetEspLifetime()),
		ESPBytes: w.GetEspBytes(), ESPPackets: w.GetEspPackets(), DPDDelay: durationFromWire(r, "dpd_delay", w.GetDpdDelay()),
		UDPEncapsulation: w.GetUdpEncapsulation(), External: w.GetExternal(),
		LocalSelectors: r.prefixes("local_selectors", w.GetLocalSelectors()), RemoteSelectors: r.prefixes("remote_selectors", w.GetRemoteSelectors()),
	}
}

func charonToWire(c *CharonStatus) *v1.CharonStatus {
	if c == nil {
		return nil
	}
	return &v1.CharonStatus{
		Version: clip(c.Version), Backend: clip(c.Backend), Problem: clip(c.Problem),
		Algorithms: convert(most(c.Algorithms, maxStatusAlgorithms), clip),
	}
}

func readCharon(r *reader, w *v1.CharonStatus) *CharonStatus {
	if w == nil {
		return nil
	}
	r.limit("charon.algorithms", len(w.GetAlgorithms()), maxStatusAlgorithms)
	return &CharonStatus{
		Version: r.text("charon.version", w.GetVersion()), Backend: r.text("charon.backend", w.GetBackend()),
		Problem: r.text("charon.problem", w.GetProblem()), Algorithms: r.list("charon.algorithms", w.GetAlgorithms()),
	}
}

func identityKeyToWire(k IdentityKey) *v1.IdentityKey {
	return &v1.IdentityKey{Name: clip(k.Name), Generation: k.Generation, PublicKey: k.PublicKey}
}

func readIdentityKey(r *reader, w *v1.IdentityKey) IdentityKey {
	r.limit("public_key", len(w.GetPublicKey()), maxStatusText)
	return IdentityKey{Name: r.text("name", w.GetName()), Generation: w.GetGeneration(), PublicKey: w.GetPublicKey()}
}

func associationToWire(a SecurityAssociation) *v1.SecurityAssociation {
	return &v1.SecurityAssociation{
		Ike: clip(a.IKE), Esp: clip(a.ESP), Pfs: clip(a.PFS), Esn: a.ESN, Ppk: a.PPK, UdpEncapsulated: a.UDPEncapsulated,
		LocalId: clip(a.LocalID), RemoteId: clip(a.RemoteID),
		PeerCertificates: convert(most(a.PeerCertificates, maxStatusGenerations), clip),
		IkeAge:           durationToWire(a.IKEAge), EspAge: durationToWire(a.ESPAge),
		ReceivedPackets: a.ReceivedPackets, SentPackets: a.SentPackets,
		Backend: clip(a.Backend), Weakness: clip(a.Weakness),
	}
}

func readAssociation(r *reader, w *v1.SecurityAssociation) SecurityAssociation {
	r.limit("peer_certificates", len(w.GetPeerCertificates()), maxStatusGenerations)
	return SecurityAssociation{
		IKE: r.text("ike", w.GetIke()), ESP: r.text("esp", w.GetEsp()), PFS: r.text("pfs", w.GetPfs()),
		ESN: w.GetEsn(), PPK: w.GetPpk(), UDPEncapsulated: w.GetUdpEncapsulated(),
		LocalID: r.text("local_id", w.GetLocalId()), RemoteID: r.text("remote_id", w.GetRemoteId()),
		PeerCertificates: r.list("peer_certificates", w.GetPeerCertificates()),
		IKEAge:           durationFromWire(r, "ike_age", w.GetIkeAge()), ESPAge: durationFromWire(r, "esp_age", w.GetEspAge()),
		ReceivedPackets: w.GetReceivedPackets(), SentPackets: w.GetSentPackets(),
		Backend: r.text("backend", w.GetBackend()), Weakness: r.text("weakness", w.GetWeakness()),
	}
}

// list is texts within their limit.
func (r *reader) list(field string, in []string) []string {
	for _, s := range in {
		r.text(field, s)
	}
	return in
}
