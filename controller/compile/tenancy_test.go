package compile_test

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/circuitseal/circuitseal/controller/compile"
	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// What a node of a customer's is told names that customer alone: neither a
// section nor an interface, link, tunnel or key of another's is in it. A
// provider's node has the sections of those with an endpoint there, no others.
func TestStatesOfCustomersKeepApart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		docs := world(t)
		numbers, err := compile.Number(docs, model.Numbers{})
		if err != nil {
			t.Fatal(err)
		}
		snapshot := &model.Snapshot{Documents: docs, Numbers: numbers, Keys: map[model.TunnelEnd]desired.PublicKey{}, PresharedKeys: map[string]model.PresharedKeys{}}
		owners, secrets := map[desired.PublicKey]string{}, map[desired.Secret]string{}
		for _, k := range connections(docs) {
			tunnels, _ := model.Tunnels(docs, k)
			for _, x := range tunnels {
				shared := sharedFor(x.ID)
				snapshot.PresharedKeys[x.ID] = shared
				for _, secret := range shared.Keys {
					secrets[secret.Key] = k.Customer
				}
				for _, end := range x.Ends {
					key := desired.PublicKey{byte(len(owners)), byte(len(owners) >> 8), 1}
					owners[key] = k.Customer
					snapshot.Keys[model.TunnelEnd{Tunnel: x.ID, Node: end.Node}] = key
				}
			}
		}
		certify(t, snapshot)
		unsettle(t, snapshot)
		for name, state := range compile.Compile(snapshot) {
			node, _ := model.Lookup[*model.NodeSpec](docs, model.Key{Kind: model.KindNode, Name: name})
			served := map[string]bool{node.Owner: node.Owner != model.OwnerProvider}
			for k := range docs {
				if e, ok := docs[k].Spec.(*model.EndpointSpec); ok && e.Node == name {
					served[k.Customer] = true
				}
			}
			text := fmt.Sprintf("%+v", state)
			for k := range docs {
				if k.Kind == model.KindCustomer && !served[k.Name] && strings.Contains(text, k.Name) {
					t.Fatalf("node %s of %s, which does not serve %s, is told of it: %s", name, node.Owner, k.Name, text)
				}
			}
			for _, i := range state.Identities {
				if k, ok := model.EndpointOfIdentity(i.Name); !ok || !served[k.Customer] || !strings.HasPrefix(nameIn(i.Certificates[0].Certificate), i.Name) {
					t.Fatalf("node %s, which does not serve it, is to be %s", name, i.Name)
				}
			}
			for _, s := range state.Sections {
				for _, g := range s.Groups {
					if g.IPsec != nil {
						for _, pin := range g.IPsec.PeerCertificates {
							if !strings.Contains(nameIn(pin), "."+s.Customer+"."+model.IdentityDomain+" ") {
								t.Fatalf("node %s, section of %s: takes the certificate of %s", name, s.Customer, nameIn(pin))
							}
						}
					}
					for _, x := range g.Tunnels {
						if x.IPsec != nil {
							for _, secret := range x.IPsec.PresharedKeys {
								if owner := secrets[secret.Key]; owner != s.Customer {
									t.Fatalf("node %s, section of %s: tunnel %s has a pre-shared key of %q", name, s.Customer, x.ID, owner)
								}
							}
						}
						if x.WireGuard == nil {
							continue
						}
						if owner, ok := owners[x.WireGuard.PeerKey]; !ok || owner != s.Customer {
							t.Fatalf("node %s, section of %s: tunnel %s has a key of %q", name, s.Customer, x.ID, owner)
						}
						for _, secret := range x.WireGuard.PresharedKeys {
							if owner := secrets[secret.Key]; owner != s.Customer {
								t.Fatalf("node %s, section of %s: tunnel %s has a pre-shared key of %q", name, s.Customer, x.ID, owner)
							}
						}
					}
				}
			}
			if node.Owner != model.OwnerProvider && len(state.Sections) > 1 {
				t.Fatalf("node %s of %s has %d sections", name, node.Owner, len(state.Sections))
			}
		}
	})
}
