// Package gateway says how a gateway without our agent is to be set for the tunnels
// that documents give it: by the names of its own documentation, and as something
// ready to use. It is pure. It knows the model and what Azure and strongSwan call
// things; it refuses to know who asks, and shows no key unless it is told to.
package gateway

import (
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/controller/profile"
)

// Connection is what the gateway needs for one connection.
type Connection struct {
	Name string
	Type model.GatewayType
	// Settings are by the names of the gateway's documentation, in its order.
	Settings []Setting
	// Text is the same, ready to use.
	Text string
	Keys []Key
}

// Setting is a name and a value.
type Setting struct{ Name, Value string }

// Key is a pre-shared key of a tunnel, without its value unless that was asked for.
type Key struct {
	Tunnel     string
	Generation uint64
	// Phase is current, next or previous.
	Phase string
	Value string
}

// Describe says how an external endpoint is to be set, for each of its connections,
// sorted by name. reveal shows the pre-shared keys; else the text has none.
func Describe(s *model.Snapshot, customer, endpoint string, reveal bool) []Connection {
	spec, ok := model.Lookup[*model.EndpointSpec](s.Documents, model.Key{Kind: model.KindEndpoint, Customer: customer, Name: endpoint})
	if !ok || spec.External == nil {
		return nil
	}
	var keys []model.Key
	for k, d := range s.Documents {
		if c, ok := d.Spec.(*model.ConnectionSpec); ok && k.Customer == customer && slices.Contains(c.Endpoints, endpoint) {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b model.Key) int { return strings.Compare(a.Name, b.Name) })
	var all []Connection
	for _, k := range keys {
		if v, ok := newView(s, k, endpoint, spec, reveal); ok {
			all = append(all, v.connection())
		}
	}
	return all
}

// view is one connection as the gateway sees it.
type view struct {
	key      model.Key
	external *model.ExternalSpec
	profile  profile.Profile
	policy   *model.EncryptionPolicySpec
	tunnels  []tunnel
	// ours and theirs are the protected prefixes of both sites.
	ours, theirs []netip.Prefix
	authorities  [][]byte
	keys         []Key
}

// tunnel is one of the connection's.
type tunnel struct {
	id string
	// link is the circuit and the link, joined by "-".
	link string
	// ours is as the gateway sees it, theirs its own.
	ours, theirs netip.Addr
	// ourID and theirID are identities in IKE.
	ourID, theirID string
	// number is the tunnel's own among all.
	number uint16
	// secret is the key to set, as swanctl takes it; none unless that was asked for.
	secret string
}

func newView(s *model.Snapshot, k model.Key, endpoint string, spec *model.EndpointSpec, reveal bool) (view, bool) {
	tunnels, _ := model.Tunnels(s.Documents, k)
	policy, _, ok := s.Protocols(k)
	if !ok || len(tunnels) == 0 {
		return view{}, false
	}
	p, ok := model.ProfileOf(s.Documents, k.Customer, policy, spec.External)
	if !ok {
		return view{}, false
	}
	end := slices.IndexFunc(tunnels[0].Ends[:], func(e model.End) bool { return e.Endpoint == endpoint })
	far := tunnels[0].Ends[1-end]
	v := view{key: k, external: spec.External, profile: p, policy: policy, authorities: s.Authorities,
		ours: prefixes(s, k.Customer, far.Endpoint), theirs: prefixes(s, k.Customer, endpoint)}
	ourID, theirID := model.Names(k.Customer, tunnels, 1-end, spec.External)
	for _, t := range tunnels {
		x := tunnel{
			id: t.ID, link: t.Circuit + "-" + string(t.Link), ours: t.Ends[1-end].Seen(), theirs: t.Ends[end].Address,
			ourID: ourID, theirID: theirID, number: s.Numbers.Tunnels[t.ID],
		}
		if x.ourID == "" {
			x.ourID = x.ours.String()
		}
		if x.theirID == "" {
			x.theirID = t.Ends[end].Seen().String()
		}
		if spec.External.Authentication == model.AuthPSK {
			v.addKeys(&x, s.PresharedKeys[t.ID], reveal)
		}
		v.tunnels = append(v.tunnels, x)
	}
	return v, true
}

// addKeys lists a tunnel's keys. The gateway is to have the newest: our end falls back
// to the one before.
func (v *view) addKeys(t *tunnel, held model.PresharedKeys, reveal bool) {
	newest := uint64(0)
	for i, g := range held.Keys {
		k := Key{Tunnel: t.id, Generation: g.Generation, Phase: "current"}
		switch {
		case i > 0 && held.Phase == model.PresharedPrepare:
			k.Phase = "next"
		case i > 0:
			k.Phase = "previous"
		}
		if reveal {
			k.Value = g.Key.Typed()
			if g.Generation > newest {
				newest = g.Generation
				// swanctl takes what begins with 0x or 0s for hexadecimal or base64.
				t.secret = "0s" + base64.StdEncoding.EncodeToString([]byte(k.Value))
			}
		}
		v.keys = append(v.keys, k)
	}
}

func prefixes(s *model.Snapshot, customer, endpoint string) []netip.Prefix {
	e, ok := model.Lookup[*model.EndpointSpec](s.Documents, model.Key{Kind: model.KindEndpoint, Customer: customer, Name: endpoint})
	if !ok {
		return nil
	}
	site, ok := model.Lookup[*model.SiteSpec](s.Documents, model.Key{Kind: model.KindSite, Customer: customer, Name: e.Site})
	if !ok {
		return nil
	}
	sorted := slices.Clone(site.Prefixes)
	slices.SortFunc(sorted, netip.Prefix.Compare)
	return sorted
}

func (v view) connection() Connection {
	c := Connection{Name: v.key.Name, Type: v.external.Type, Keys: v.keys}
	if v.external.Type == model.GatewayAzure {
		c.Settings, c.Text = v.azure()
	} else {
		c.Settings, c.Text = v.swanctl()
	}
	return c
}

// join is a list as text.
func join[T fmt.Stringer](list []T, by string) string {
	words := make([]string, len(list))
	for i, x := range list {
		words[i] = x.String()
	}
	return strings.Join(words, by)
}

// pems are certificates as text.
func pems(list [][]byte) string {
	var b strings.Builder
	for _, der := range list {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	return b.String()
}

func itoa(n int) string { return strconv.Itoa(n) }
