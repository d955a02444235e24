package desired

import (
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

// ToWire converts without loss.
func (s State) ToWire() *v1.State {
	return &v1.State{
		Interfaces: convert(s.Interfaces, func(i Interface) *v1.Interface {
			return &v1.Interface{Name: i.Name, Role: v1.InterfaceRole(i.Role), Addresses: texts(i.Addresses), Customer: i.Customer}
		}),
		Links: convert(s.Links, func(l Link) *v1.Link {
			return &v1.Link{
				Id: l.ID, Number: uint32(l.Number), Interface: l.Interface, NextHop: l.NextHop.String(),
				Vlan: uint32(l.VLAN), OuterVlan: uint32(l.OuterVLAN), Addresses: texts(l.Addresses),
			}
		}),
		Sections: convert(s.Sections, func(s Section) *v1.Section {
			return &v1.Section{
				Customer: s.Customer, Tenant: s.Tenant,
				Locals: convert(s.Locals, func(l LocalPrefix) *v1.LocalPrefix {
					return &v1.LocalPrefix{Prefix: l.Prefix.String(), Interface: l.Interface}
				}),
				Groups: convert(s.Groups, func(g Group) *v1.Group {
					return &v1.Group{
						Id: g.ID, Number: g.Number, Remotes: texts(g.Remotes), Tunnels: convert(g.Tunnels, tunnelToWire),
						MaxOffline: durationToWire(g.MaxOffline), OfflineAction: v1.OfflineAction(g.OfflineAction),
						Ipsec: policyToWire(g.IPsec), Retiring: v1.TunnelProtocol(g.Retiring),
					}
				}),
			}
		}),
		Identities: convert(s.Identities, func(i Identity) *v1.Identity {
			return &v1.Identity{Name: i.Name, Certificates: convert(i.Certificates, func(c IdentityCertificate) *v1.IdentityCertificate {
				return &v1.IdentityCertificate{Generation: c.Generation, Certificate: c.Certificate}
			})}
		}),
		Authorities:  s.Authorities,
		CharonSocket: s.CharonSocket,
	}
}

func tunnelToWire(t Tunnel) *v1.Tunnel {
	w := &v1.Tunnel{
		Id: t.ID, Number: uint32(t.Number), Link: t.Link,
		Local: t.Local.String(), Remote: t.Remote.String(),
		LocalProbe: t.LocalProbe.String(), RemoteProbe: t.RemoteProbe.String(),
		Mtu: uint32(t.MTU),
	}
	if t.WireGuard != nil {
		wg := &v1.WireGuard{}
		if !t.WireGuard.PeerKey.IsZero() {
			wg.PeerPublicKey = t.WireGuard.PeerKey[:]
		}
		wg.PresharedKeys = convert(t.WireGuard.PresharedKeys, presharedToWire)
		w.Protocol = &v1.Tunnel_Wireguard{Wireguard: wg}
	}
	if t.IPsec != nil {
		w.Ipsec = &v1.IPsec{PresharedKeys: convert(t.IPsec.PresharedKeys, presharedToWire)}
	}
	return w
}

// StateFromWire reads what ToWire wrote. Errors name the field's path. The
// result is well-formed but not yet valid: see Validate.
func StateFromWire(w *v1.State) (State, error) {
	r := &reader{}
	s := State{
		Interfaces: read(r, "interfaces", w.GetInterfaces(), func(r *reader, i *v1.Interface) Interface {
			return Interface{
				Name: i.GetName(), Role: Role(narrow[uint8](r, "role", uint32(i.GetRole()))),
				Addresses: r.prefixes("addresses", i.GetAddresses()), Customer: i.GetCustomer(),
			}
		}),
		Links: read(r, "links", w.GetLinks(), func(r *reader, l *v1.Link) Link {
			return Link{
				ID: l.GetId(), Number: narrow[uint16](r, "number", l.GetNumber()),
				Interface: l.GetInterface(), NextHop: parse(r, "next_hop", l.GetNextHop(), netip.ParseAddr),
				VLAN: narrow[uint16](r, "vlan", l.GetVlan()), OuterVLAN: narrow[uint16](r, "outer_vlan", l.GetOuterVlan()),
				Addresses: r.prefixes("addresses", l.GetAddresses()),
			}
		}),
		Sections: read(r, "sections", w.GetSections(), readSection),
		Identities: read(r, "identities", w.GetIdentities(), func(r *reader, i *v1.Identity) Identity {
			return Identity{Name: i.GetName(), Certificates: read(r, "certificates", i.GetCertificates(), func(_ *reader, c *v1.IdentityCertificate) IdentityCertificate {
				return IdentityCertificate{Generation: c.GetGeneration(), Certificate: c.GetCertificate()}
			})}
		}),
		Authorities:  w.GetAuthorities(),
		CharonSocket: w.GetCharonSocket(),
	}
	return s, r.err
}

func readSection(r *reader, s *v1.Section) Section {
	return Section{
		Customer: s.GetCustomer(), Tenant: s.GetTenant(),
		Locals: read(r, "locals", s.GetLocals(), func(r *reader, l *v1.LocalPrefix) LocalPrefix {
			return LocalPrefix{Prefix: parse(r, "prefix", l.GetPrefix(), netip.ParsePrefix), Interface: l.GetInterface()}
		}),
		Groups: read(r, "groups", s.GetGroups(), func(r *reader, g *v1.Group) Group {
			return Group{
				ID: g.GetId(), Number: g.GetNumber(),
				Remotes: r.prefixes("remotes", g.GetRemotes()),
				Tunnels: read(r, "tunnels", g.GetTunnels(), readTunnel),

				MaxOffline:    durationFromWire(r, "max_offline", g.GetMaxOffline()),
				OfflineAction: OfflineAction(narrow[uint8](r, "offline_action", uint32(g.GetOfflineAction()))),

				IPsec:    readPolicy(r, g.GetIpsec()),
				Retiring: Protocol(narrow[uint8](r, "retiring", uint32(g.GetRetiring()))),
			}
		}),
	}
}

func readTunnel(r *reader, t *v1.Tunnel) Tunnel {
	out := Tunnel{
		ID: t.GetId(), Number: narrow[uint16](r, "number", t.GetNumber()), Link: t.GetLink(),
		Local:       parse(r, "local", t.GetLocal(), netip.ParseAddrPort),
		Remote:      parse(r, "remote", t.GetRemote(), netip.ParseAddrPort),
		LocalProbe:  parse(r, "local_probe", t.GetLocalProbe(), netip.ParseAddr),
		RemoteProbe: parse(r, "remote_probe", t.GetRemoteProbe(), netip.ParseAddr),
		MTU:         narrow[uint16](r, "mtu", t.GetMtu()),
	}
	switch p := t.GetProtocol().(type) {
	case *v1.Tunnel_Wireguard:
		key, err := PublicKeyFromBytes(p.Wireguard.GetPeerPublicKey())
		r.fail("wireguard.peer_public_key", err)
		out.WireGuard = &WireGuard{PeerKey: key, PresharedKeys: read(r, "wireguard.preshared_keys", p.Wireguard.GetPresharedKeys(), readPreshared)}
	default:
		if t.GetIpsec() == nil {
			r.fail("protocol", fmt.Errorf("is missing or unknown to this version"))
		}
	}
	if i := t.GetIpsec(); i != nil {
		out.IPsec = &IPsec{PresharedKeys: read(r, "ipsec.preshared_keys", i.GetPresharedKeys(), readPreshared)}
	}
	return out
}

func durationToWire(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

func durationFromWire(r *reader, field string, w *durationpb.Duration) time.Duration {
	if w == nil {
		return 0
	}
	r.fail(field, w.CheckValid())
	return w.AsDuration()
}

// reader keeps the first error and the path at which it stood.
type reader struct {
	path string
	err  error
}

func (r *reader) fail(field string, err error) {
	if err != nil && r.err == nil {
		r.err = fmt.Errorf("%s: %w", r.path+field, err)
	}
}

func (r *reader) prefixes(field string, in []string) []netip.Prefix {
	var out []netip.Prefix
	for i, s := range in {
		out = append(out, parse(r, fmt.Sprintf("%s[%d]", field, i), s, netip.ParsePrefix))
	}
	return out
}

func parse[T any](r *reader, field, s string, f func(string) (T, error)) T {
	v, err := f(s)
	r.fail(field, err)
	return v
}

func narrow[T uint8 | uint16](r *reader, field string, v uint32) T {
	if uint32(T(v)) != v {
		r.fail(field, fmt.Errorf("%d is out of range", v))
	}
	return T(v)
}

func read[W, T any](r *reader, field string, in []W, f func(*reader, W) T) []T {
	outer := r.path
	defer func() { r.path = outer }()
	var out []T
	for i, w := range in {
		r.path = fmt.Sprintf("%s%s[%d].", outer, field, i)
		out = append(out, f(r, w))
	}
	return out
}

func convert[T, W any](in []T, f func(T) W) []W {
	var out []W
	for _, v := range in {
		out = append(out, f(v))
	}
	return out
}

func texts[T fmt.Stringer](in []T) []string {
	return convert(in, func(v T) string { return v.String() })
}
