package agent

import (
	"errors"
	"path/filepath"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/ipsec"
	"github.com/circuitseal/circuitseal/agent/wireguard"
	"github.com/circuitseal/circuitseal/proto/desired"
	"github.com/circuitseal/circuitseal/proto/sealed"
)

// Directories of private keys in a state directory: of tunnels by WireGuard, and of
// what the node proves to be in IKE.
const (
	wireguardKeys = "wireguard"
	ipsecKeys     = "ipsec"
)

func keyDir(i instance.Instance) string { return filepath.Join(i.StateDir(), wireguardKeys) }

func ipsecKeyDir(i instance.Instance) string { return filepath.Join(i.StateDir(), ipsecKeys) }

// keys are the private keys that this node made. They never leave it.
type keys struct {
	wireguard *wireguard.Keys
	ipsec     *ipsec.Keys
}

func openKeys(i instance.Instance, secrets *sealed.Ring) (k keys, err error) {
	if k.wireguard, err = wireguard.OpenKeys(keyDir(i), secrets); err != nil {
		return k, err
	}
	k.ipsec, err = ipsec.OpenKeys(ipsecKeyDir(i), secrets)
	return k, err
}

// publicKeys are the public halves of what a state needs.
type publicKeys struct {
	tunnels    map[string]desired.PublicKey
	identities []desired.IdentityKey
}

// make has the keys that a state needs, and forgets all others.
func (k keys) make(s desired.State) (p publicKeys, err error) {
	var ids []string
	for _, x := range s.Sections {
		for _, g := range x.Groups {
			for _, t := range g.Tunnels {
				if t.WireGuard != nil {
					ids = append(ids, t.ID)
				}
			}
		}
	}
	var errs [4]error
	p.tunnels, errs[0] = k.wireguard.Ensure(ids)
	errs[1] = k.wireguard.Forget(ids)
	p.identities, errs[2] = k.ipsec.Ensure(s.Identities)
	errs[3] = k.ipsec.Forget(s.Identities)
	return p, errors.Join(errs[:]...)
}
