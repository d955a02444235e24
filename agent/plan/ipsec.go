package plan

import (
	"net/netip"

	"github.com/circuitseal/circuitseal/proto/desired"
)

// IPsec is what charon should have, whole: what is of this instance and not here
// has to go.
type IPsec struct {
	// Socket is of a charon that somebody else runs in the circuit namespace; empty
	// for the instance's own.
	Socket string
	// Identities are what this node proves to be.
	Identities []desired.Identity
	// Authorities, DER, are those of peers whose policy names none.
	Authorities [][]byte
	Tunnels     []IPsecTunnel
}

// IPsecTunnel is a tunnel that has all it needs: a device in the main namespace
// and one CHILD_SA, alone in its IKE SA.
type IPsecTunnel struct {
	ID, Device string
	// Retiring tells that WireGuard takes over from it.
	Retiring bool
	// Number is the tunnel's; InterfaceID is what its SAs and policies carry, and
	// Mark its ESP packets.
	Number            uint16
	InterfaceID, Mark uint32
	MTU               int
	// Local and Remote are the outer addresses.
	Local, Remote netip.Addr
	// Initiates tells which of two agents begins. With a gateway it is always this
	// one.
	Initiates bool
	Policy    desired.IPsecPolicy
	// PresharedKeys are the one to use and what the peer may still use, as PPK or
	// PSK; see desired.IPsec.
	PresharedKeys []desired.PresharedKey
	// LocalProbe and RemoteProbe are not valid where the far end answers none.
	LocalProbe, RemoteProbe netip.Addr
	// Locals and Remotes are the protected prefixes of both ends, without probes.
	Locals, Remotes []netip.Prefix
}
