package rotate

import (
	"time"

	"github.com/circuitseal/circuitseal/controller/model"
)

// rotation is how the pre-shared keys of a connection's tunnels change.
type rotation struct {
	// interval is how old a key may become: what the encryption policy says, or the
	// default.
	interval time.Duration
	// asked tells that keys change only when an operator asks for it: a gateway
	// without our agent has to be told by hand.
	asked bool
	// gateway is customer/endpoint of that gateway, empty without one. Its tunnels have the
	// same key: charon finds a key by who is to have it (get_shared in
	// src/libstrongswan/credentials/credential_manager.c), and a gateway is one.
	gateway string
	// held tells that nothing is begun for now: the protocol of the tunnels changes.
	held bool
}

// rotates is how the keys of a connection's tunnels change; false where its tunnels
// have none: IPsec with certificates and without a PPK.
func rotates(s *model.Snapshot, k model.Key, tunnels []model.Tunnel) (rotation, bool) {
	want, retiring, ok := s.Protocols(k)
	if !ok || len(tunnels) == 0 {
		// What was made before goes on being what it was.
		want, retiring = &model.EncryptionPolicySpec{Protocol: model.ProtocolWireGuard}, nil
	}
	r := rotation{interval: want.RotatesPSK(), held: retiring != nil}
	needed := false
	for _, spec := range []*model.EncryptionPolicySpec{want, retiring} {
		if spec == nil {
			continue
		}
		if spec.Protocol != model.ProtocolIPsec {
			needed = true
			continue
		}
		endpoint, gateway := model.GatewayOf(s.Documents, k.Customer, tunnels[0])
		p, known := model.ProfileOf(s.Documents, k.Customer, spec, gateway)
		needed = needed || known && spec.PPK(p, gateway != nil)
		if gateway != nil && gateway.Authentication == model.AuthPSK {
			needed, r.asked, r.gateway = true, true, k.Customer+"/"+endpoint.Name
		}
	}
	return r, needed
}
