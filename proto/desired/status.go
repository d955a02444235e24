package desired

import (
	"fmt"
	"time"
)

// Phase is how far a tunnel has come.
type Phase uint8

// The phases. The zero value is invalid.
const (
	// PhasePending: a key of this node or of the peer is not there yet.
	PhasePending Phase = iota + 1
	// PhaseDown: configured, but the probe is not answered.
	PhaseDown
	// PhaseUp: the probe is answered.
	PhaseUp
)

// String is the word that status output uses.
func (p Phase) String() string {
	switch p {
	case PhasePending:
		return "pending"
	case PhaseDown:
		return "down"
	case PhaseUp:
		return "up"
	}
	return fmt.Sprintf("phase %d", uint8(p))
}

// MarshalText is String, so that JSON shows the word.
func (p Phase) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (p *Phase) UnmarshalText(b []byte) error {
	for q := PhasePending; q <= PhaseUp; q++ {
		if string(b) == q.String() {
			*p = q
			return nil
		}
	}
	return fmt.Errorf("phase %.64q is unknown to this version", b)
}

// Status is what a node's data plane has, not what it was asked for.
type Status struct {
	Version string `json:"version"`
	Kernel  string `json:"kernel"`
	// Capabilities are what this host can do that others cannot, sorted.
	Capabilities []string  `json:"capabilities,omitempty"`
	Time         time.Time `json:"time"`
	// Acknowledged is the newest state that was verified and kept; Applied the
	// newest that was applied in full.
	Acknowledged Position `json:"acknowledged"`
	Applied      Position `json:"applied"`
	// Rejection is set when the last state received was refused.
	Rejection *Rejection `json:"rejection,omitempty"`
	// Problems are sentences.
	Problems []string       `json:"problems,omitempty"`
	Tunnels  []TunnelStatus `json:"tunnels,omitempty"`
	Guards   []GuardStatus  `json:"guards,omitempty"`
	Counters []Counter      `json:"counters,omitempty"`
	// Drift is what had to be repaired since the agent started.
	Drift []Drift `json:"drift,omitempty"`
	// Charon is what the installed strongSwan can do; nil where there is none.
	Charon *CharonStatus `json:"charon,omitempty"`
	// IdentityKeys are those that this node made to prove its identities in IKE.
	IdentityKeys []IdentityKey `json:"identityKeys,omitempty"`
}

// Drift is what somebody else changed and the agent put right, of one kind.
type Drift struct {
	// What is a driver and what it keeps, such as link/route; a bounded set.
	What  string    `json:"what"`
	Count uint64    `json:"count"`
	Last  time.Time `json:"last"`
	// Detail is the last one, as the agent repaired it.
	Detail string `json:"detail"`
}

// Rejection says why a state was refused.
type Rejection struct {
	Position Position `json:"position"`
	Reason   string   `json:"reason"`
}

// TunnelStatus is one tunnel as the data plane sees it.
type TunnelStatus struct {
	ID       string   `json:"id"`
	Protocol Protocol `json:"protocol,omitempty"`
	Phase    Phase    `json:"phase"`
	// Backend is wireguard-kernel, wireguard-userspace, ipsec-kernel or
	// ipsec-libipsec.
	Backend string `json:"backend,omitempty"`
	// PublicKey is the public half of this node's key.
	PublicKey PublicKey `json:"-"`
	// LastHandshake is zero when there was none.
	LastHandshake time.Time `json:"lastHandshake,omitzero"`
	ReceivedBytes uint64    `json:"receivedBytes"`
	SentBytes     uint64    `json:"sentBytes"`
	ProbesSent    uint64    `json:"probesSent"`
	ProbesLost    uint64    `json:"probesLost"`
	// RoundTrip is of the last answered probe.
	RoundTrip time.Duration `json:"roundTripNanoseconds,omitempty"`
	// Problem is a sentence, empty when nothing is wrong.
	Problem string `json:"problem,omitempty"`
	// PresharedKeyGenerations are those that the node holds, in the order of
	// its state; PresharedKeyUsed is the one of the last completed handshake, 0
	// while that is not known.
	PresharedKeyGenerations []uint64 `json:"presharedKeyGenerations,omitempty"`
	PresharedKeyUsed        uint64   `json:"presharedKeyUsed,omitempty"`
	// Associations are what was negotiated, for each SA that carries the tunnel now,
	// the newest first.
	Associations []SecurityAssociation `json:"associations,omitempty"`
	// Retiring tells that the protocol is on its way out; see Group.Retiring. A
	// tunnel that changes its protocol has two entries.
	Retiring bool `json:"retiring,omitempty"`
}

// GuardStatus is one fail-closed layer on one circuit interface.
type GuardStatus struct {
	Interface string `json:"interface"`
	// Layer is namespace, ebpf or nftables.
	Layer string `json:"layer"`
	Alive bool   `json:"alive"`
}

// Counter is a count that the kernel keeps.
type Counter struct {
	Name      string `json:"name"`
	Interface string `json:"interface,omitempty"`
	Packets   uint64 `json:"packets"`
}
