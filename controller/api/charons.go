package api

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/controller/profile"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// userSpaceESP is what a node's strongSwan does where its kernel has no ESP.
const userSpaceESP = "its ESP is in user space (libipsec, a backend for tests): "

// charons judges what documents want of each node's strongSwan. A node that has not
// said what it has is not judged: nobody knows, and it says so itself when it is.
type charons struct {
	sessions Sessions
	seen     map[string]*desired.CharonStatus
}

func newCharons(s Sessions) *charons {
	return &charons{sessions: s, seen: map[string]*desired.CharonStatus{}}
}

// of is what a node has said of its strongSwan, nil for nothing.
func (c *charons) of(node string) *desired.CharonStatus {
	if s, ok := c.seen[node]; ok {
		return s
	}
	_, _, last := c.sessions.Report(node)
	var s *desired.CharonStatus
	if last != nil {
		s = last.Charon
	}
	c.seen[node] = s
	return s
}

// judge says what the nodes of connections by IPsec cannot do, at the documents that
// want it of them.
func (c *charons) judge(docs map[model.Key]model.Document) []model.Problem {
	var problems []model.Problem
	userSpace := map[string][]model.Key{}
	for _, k := range selected(docs, model.KindConnection, "") {
		spec, ok := model.Lookup[*model.ConnectionSpec](docs, k)
		if !ok {
			continue
		}
		policy, ok := model.Lookup[*model.EncryptionPolicySpec](docs, model.Key{Kind: model.KindEncryptionPolicy, Customer: k.Customer, Name: spec.EncryptionPolicy})
		if !ok || policy.Protocol != model.ProtocolIPsec {
			continue
		}
		tunnels, _ := model.Tunnels(docs, k)
		if len(tunnels) == 0 {
			continue
		}
		gateway, external := model.GatewayOf(docs, k.Customer, tunnels[0])
		p, ok := model.ProfileOf(docs, k.Customer, policy, external)
		if !ok {
			continue
		}
		ppk := policy.PPK(p, external != nil)
		whose, hint := "profile "+strconv.Quote(model.Shorten(p.Name)), "a policy with another crypto profile, or another strongSwan on the node"
		if external != nil && external.Type == model.GatewayAzure {
			whose = "gateway " + strconv.Quote(model.Shorten(gateway.Name))
			hint = "spec.external.ipsecPolicy of " + gateway.String() + " with what the node can do, or another strongSwan on the node"
		}
		for _, e := range tunnels[0].Ends {
			if e.External() {
				continue
			}
			charon := c.of(e.Node)
			if charon == nil {
				continue
			}
			if why := lacks(e.Node, *charon, p, ppk, whose); why != "" {
				problems = append(problems, model.Problem{
					Document: k.String(), Field: "spec.encryptionPolicy", Value: model.Shorten(spec.EncryptionPolicy), Message: why, Hint: hint,
				})
				continue
			}
			if charon.Backend == desired.BackendLibipsec {
				if external != nil && external.Selectors() == model.PolicyBased {
					problems = append(problems, model.Problem{
						Document: k.String(), Field: "spec.endpoints", Value: model.Shorten(e.Node),
						Message: fmt.Sprintf("node %s runs strongSwan %s, and %sit cannot keep to the selectors of a policy-based gateway", e.Node, charon.Version, userSpaceESP),
						Hint:    "a kernel with ESP and XFRM interfaces on the node, or a gateway with trafficSelectors: route-based",
					})
					continue
				}
				userSpace[e.Node] = append(userSpace[e.Node], k)
			}
		}
	}
	for _, node := range slices.Sorted(maps.Keys(userSpace)) {
		problems = append(problems, limits(node, *c.of(node), userSpace[node])...)
	}
	return problems
}

// incapable says what a change wants of nodes' strongSwans that they cannot do. What
// they could not do before, either, holds no other change up: it is in the status.
func incapable(sessions Sessions, before, after map[model.Key]model.Document) []model.Problem {
	c := newCharons(sessions)
	problems := c.judge(after)
	if len(problems) == 0 {
		return nil
	}
	return newProblems(c.judge(before), problems)
}

// lacks says what a node's strongSwan cannot do of what a profile wants, "" for
// nothing; whose says in words where the profile's proposals are from.
func lacks(node string, c desired.CharonStatus, p profile.Profile, ppk bool, whose string) string {
	runs := fmt.Sprintf("node %s runs strongSwan %s", node, c.Version)
	switch {
	case c.Version == "" && c.Problem != "":
		return fmt.Sprintf("node %s has no strongSwan that works: %s", node, c.Problem)
	case c.Version == "":
		return fmt.Sprintf("node %s has no strongSwan", node)
	case ppk && !slices.Contains(c.Algorithms, "ppk"):
		return runs + ", which cannot mix in post-quantum pre-shared keys (RFC 8784)"
	}
	for _, choice := range slices.Concat(p.IKE, p.ESP) {
		for _, a := range choice.Algorithms() {
			if slices.Contains(c.Algorithms, a) {
				continue
			}
			if a == "esn" && c.Backend == desired.BackendLibipsec {
				return fmt.Sprintf("%s, and %sit has no extended sequence numbers (esn), which proposal %s of %s wants; a profile whose ESP proposals have esn: off does not",
					runs, userSpaceESP, choice, whose)
			}
			return fmt.Sprintf("%s, which has no %s: proposal %s of %s wants it", runs, a, choice, whose)
		}
	}
	return ""
}

// limits says what a node whose ESP is in user space cannot carry: it has one device
// for all SAs, and so one tunnel.
func limits(node string, c desired.CharonStatus, connections []model.Key) []model.Problem {
	var problems []model.Problem
	for _, k := range connections[1:] {
		// No customer learns from an error what another one has.
		other := "a connection of another customer"
		if connections[0].Customer == k.Customer {
			other = connections[0].String()
		}
		problems = append(problems, model.Problem{
			Document: k.String(), Field: "spec.endpoints", Value: model.Shorten(node),
			Message: fmt.Sprintf("node %s runs strongSwan %s, and %sit carries one tunnel, which %s has", node, c.Version, userSpaceESP, other),
			Hint:    "a kernel with ESP and XFRM interfaces on the node, or protocol: wireguard",
		})
	}
	return problems
}
