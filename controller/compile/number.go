package compile

import (
	"fmt"
	"math"
	"slices"

	"github.com/circuitseal/circuitseal/controller/model"
)

// basePort is added to a tunnel's number for its UDP port, at both ends: the
// first tunnel has 51820, WireGuard's customary port.
const basePort = 51819

// maxTunnels is the largest number whose port still is one.
const maxTunnels = math.MaxUint16 - basePort

// Number gives a number to every customer, link, connection and tunnel of docs:
// the one that old has for the name, else the smallest that is free, in the
// order of names. Numbers of names that are gone are free again. It changes
// neither argument; the error says which class has run out of numbers.
func Number(docs map[model.Key]model.Document, old model.Numbers) (model.Numbers, error) {
	var tenants, links, groups, tunnels []string
	for k := range docs {
		switch k.Kind {
		case model.KindCustomer:
			tenants = append(tenants, k.Name)
		case model.KindCircuit:
			for _, link := range model.LinkNames() {
				links = append(links, model.LinkID(k.Customer, k.Name, link))
			}
		case model.KindConnection:
			groups = append(groups, model.GroupID(k.Customer, k.Name))
			s, ok := model.Lookup[*model.ConnectionSpec](docs, k)
			if !ok {
				continue
			}
			for _, circuit := range s.Circuits {
				for _, link := range model.LinkNames() {
					tunnels = append(tunnels, model.TunnelID(k.Customer, k.Name, circuit, link))
				}
			}
		case model.KindSite, model.KindNode, model.KindEndpoint, model.KindEncryptionPolicy,
			model.KindSecurityRuleSet, model.KindAppliance, model.KindServiceChain, model.KindExemption, model.KindCryptoProfile:
		}
	}
	var n model.Numbers
	var err error
	if n.Tenants, err = number("customers", tenants, old.Tenants, math.MaxUint32); err != nil {
		return model.Numbers{}, err
	}
	if n.Links, err = number("links", links, old.Links, math.MaxUint16); err != nil {
		return model.Numbers{}, err
	}
	if n.Groups, err = number("connections", groups, old.Groups, math.MaxUint32); err != nil {
		return model.Numbers{}, err
	}
	if n.Tunnels, err = number("tunnels", tunnels, old.Tunnels, maxTunnels); err != nil {
		return model.Numbers{}, err
	}
	return n, nil
}

// number keeps old numbers that are in range and given once, and fills gaps.
func number[N uint16 | uint32](class string, names []string, old map[string]N, most uint64) (map[string]N, error) {
	slices.Sort(names)
	names = slices.Compact(names)
	if uint64(len(names)) > most {
		return nil, fmt.Errorf("number %d %s: there are numbers for %d only", len(names), class, most)
	}
	numbers := make(map[string]N, len(names))
	taken := make(map[N]bool, len(names))
	for _, name := range names {
		if n := old[name]; n != 0 && uint64(n) <= most && !taken[n] {
			numbers[name] = n
			taken[n] = true
		}
	}
	next := N(1)
	for _, name := range names {
		if _, kept := numbers[name]; kept {
			continue
		}
		for taken[next] {
			next++
		}
		numbers[name] = next
		taken[next] = true
	}
	return numbers, nil
}
