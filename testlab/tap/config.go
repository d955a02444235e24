package tap

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
)

// Config says where to look and what may be seen there.
type Config struct {
	Interfaces []Interface `json:"interfaces"`
	// Canary is at least 16 bytes, in hexadecimal.
	Canary string `json:"canary"`
	// InnerMTU is the tunnels' MTU: WireGuard pads to 16 bytes, but not beyond
	// it (whitepaper, section 5.4.6), so that one length is not a multiple of 16.
	InnerMTU int `json:"innerMTU,omitempty"`
}

// Interface is one place to look at.
type Interface struct {
	// Namespace is a path such as /run/netns/x; empty for the tap's own.
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name"`
	// Label is what reports call it.
	Label string `json:"label"`
	Link
	// VLANs are the links of an interface that carries several; then it has none
	// of its own, and every frame has the tags of one of them.
	VLANs []VLAN `json:"vlans,omitempty"`
}

// Link is what may be seen of a link.
type Link struct {
	// Addresses are those of both ends of the link, which ARP and ND may name.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	Tunnels   []Tunnel     `json:"tunnels,omitempty"`
}

// Tunnel is a pair of outer addresses whose packets may cross the interface.
type Tunnel struct {
	Protocol Protocol   `json:"protocol"`
	A        netip.Addr `json:"a"`
	B        netip.Addr `json:"b"`
	// PortA and PortB are UDP ports, for WireGuard only. A port of 0 allows any
	// from 1024 on; the pair of addresses still counts.
	PortA uint16 `json:"portA,omitempty"`
	PortB uint16 `json:"portB,omitempty"`
}

// Protocol is what a tunnel speaks.
type Protocol string

// The protocols. IPsec allows ESP, ESP in UDP and IKE.
const (
	WireGuard Protocol = "wireguard"
	IPsec     Protocol = "ipsec"
)

// Of is a tunnel between two ends; of IPsec, ports say nothing.
func Of(p Protocol, a, b netip.AddrPort) Tunnel {
	t := Tunnel{Protocol: p, A: a.Addr(), B: b.Addr()}
	if p == WireGuard {
		t.PortA, t.PortB = a.Port(), b.Port()
	}
	return t
}

// MinCanary is the shortest canary in bytes: chance must not hit it.
const MinCanary = 16

// ReadConfig decodes and checks a configuration.
func ReadConfig(r io.Reader) (Config, error) {
	var c Config
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return Config{}, fmt.Errorf("decode the tap's configuration: %w", err)
	}
	return c, c.Validate()
}

// Validate reports everything that is wrong.
func (c Config) Validate() error {
	var errs []error
	if len(c.Interfaces) == 0 {
		errs = append(errs, errors.New("interfaces: want at least one"))
	}
	if b, err := hex.DecodeString(c.Canary); err != nil || len(b) < MinCanary {
		errs = append(errs, fmt.Errorf("canary: want at least %d bytes in hexadecimal", MinCanary))
	}
	for i, f := range c.Interfaces {
		if f.Name == "" {
			errs = append(errs, fmt.Errorf("interfaces[%d].name: is empty", i))
		}
		if len(f.VLANs) > 0 && len(f.Addresses)+len(f.Tunnels) > 0 {
			errs = append(errs, fmt.Errorf("interfaces[%d]: has a link of its own beside those with VLANs", i))
		}
		tunnels := slices.Clone(f.Tunnels)
		for _, v := range f.VLANs {
			if n := len(v.Tags); n < 1 || n > 2 {
				errs = append(errs, fmt.Errorf("interfaces[%d].vlans: %v are not one or two tags", i, v.Tags))
			}
			tunnels = append(tunnels, v.Tunnels...)
		}
		for j, t := range tunnels {
			if t.Protocol != WireGuard && t.Protocol != IPsec {
				errs = append(errs, fmt.Errorf("interfaces[%d].tunnels[%d].protocol: is %q, want %s or %s", i, j, t.Protocol, WireGuard, IPsec))
			}
			if !t.A.IsValid() || !t.B.IsValid() || t.A.Is4() != t.B.Is4() {
				errs = append(errs, fmt.Errorf("interfaces[%d].tunnels[%d]: want two addresses of one family", i, j))
			}
		}
	}
	return errors.Join(errs...)
}
