package ipsec

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// held is what charon has of ours.
type held struct {
	connections, secrets, keys []string
}

// wanted is what it is to have.
type wanted struct {
	connections map[uint16]connection
	// initiates are the tunnels that this end begins.
	initiates map[uint16]bool
	keys      map[string]identityKey
}

type loadVerb uint8

// The verbs, in an order in which nothing refers to what is not there.
const (
	loadKey loadVerb = iota
	loadSecret
	loadConnection
	initiate
	unloadConnection
	unloadSecret
	unloadKey
)

// load is one request to charon.
type load struct {
	verb   loadVerb
	number uint16
	// name is that of the connection, or the id of the secret or key.
	name   string
	secret secret
}

// Format prints String for every verb.
func (l load) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(l.String())) }

// String is for people and logs.
func (l load) String() string {
	switch l.verb {
	case loadKey:
		return "load private key " + l.name
	case loadSecret:
		return "load pre-shared key " + l.name
	case loadConnection:
		return "load connection " + l.name
	case initiate:
		return "initiate connection " + l.name
	case unloadConnection:
		return "unload connection " + l.name
	case unloadSecret:
		return "unload pre-shared key " + l.name
	case unloadKey:
		return "unload private key " + l.name
	}
	return fmt.Sprintf("verb %d", uint8(l.verb))
}

// diffLoads leads from have to want. loaded are the secrets that charon has from
// us: by its ids alone one cannot see whether it has the right ones. A changed
// connection takes the place of the old one at once, so that there is only one of
// a tunnel and the answering end has no choice; SAs of the old one go on. What
// belongs to no wanted tunnel is for later.
func diffLoads(inst instance.Instance, want wanted, have held, loaded map[string]desired.Secret) (now, later []load) {
	connections, secrets, keys := asSet(have.connections), asSet(have.secrets), asSet(have.keys)
	for _, id := range slices.Sorted(maps.Keys(want.keys)) {
		if !keys[id] {
			now = append(now, load{verb: loadKey, name: id})
		}
	}
	needed := map[string]bool{}
	current := map[uint16]string{}
	for _, n := range slices.Sorted(maps.Keys(want.connections)) {
		c := want.connections[n]
		name := c.name.in(inst)
		current[n] = name
		again := false
		for _, s := range c.secrets {
			needed[s.id] = true
			if was, ok := loaded[s.id]; again || !secrets[s.id] || !ok || !was.Equal(s.key) {
				now = append(now, load{verb: loadSecret, number: n, name: s.id, secret: s})
				again = s.kind == kindPSK
			}
		}
		if !connections[name] {
			now = append(now, load{verb: loadConnection, number: n, name: name})
			if want.initiates[n] {
				now = append(now, load{verb: initiate, number: n, name: name})
			}
		}
	}
	for _, name := range slices.Sorted(slices.Values(have.connections)) {
		n, ours := parseName(inst, name)
		if !ours {
			continue
		}
		x := load{verb: unloadConnection, number: n.number, name: name}
		switch c, ok := current[n.number]; {
		case !ok:
			later = append(later, x)
		case c != name:
			now = append(now, x)
		}
	}
	for _, id := range slices.Sorted(slices.Values(have.secrets)) {
		if n, ours := secretOf(inst, id); ours && !needed[id] {
			x := load{verb: unloadSecret, number: n, name: id}
			if _, ok := current[n]; ok {
				now = append(now, x)
			} else {
				later = append(later, x)
			}
		}
	}
	slices.SortStableFunc(now, func(a, b load) int { return cmp.Compare(order(a.verb), order(b.verb)) })
	return now, later
}

// order puts the unloading of what a tunnel had between loading what it is to have and
// initiating that.
func order(v loadVerb) int {
	return slices.Index([]loadVerb{loadKey, loadSecret, loadConnection, unloadConnection, unloadSecret, initiate, unloadKey}, v)
}

// secretOf tells whose a secret in charon is by its id.
func secretOf(inst instance.Instance, id string) (number uint16, ours bool) {
	rest, ok := strings.CutPrefix(id, inst.CharonPrefix())
	if !ok {
		return 0, false
	}
	if _, err := fmt.Sscanf(rest, "%d.", &number); err != nil {
		return 0, false
	}
	return number, true
}

func asSet(list []string) map[string]bool {
	m := make(map[string]bool, len(list))
	for _, x := range list {
		m[x] = true
	}
	return m
}
