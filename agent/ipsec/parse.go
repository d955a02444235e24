package ipsec

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/strongswan/govici/vici"

	"github.com/circuitseal/circuitseal/agent/instance"
)

// ikeSA is one entry of list-sas: what charon has negotiated, and not what it was
// told to.
type ikeSA struct {
	name  string
	id    uint64
	state string
	// initiator tells that this end began it.
	initiator         bool
	spis              [2]string
	localID, remoteID string
	suite             suite
	ppk               bool
	// established tells that its ends have authenticated each other; while its keys are
	// replaced it still is, but charon does not tell its age then.
	established bool
	age         time.Duration
	children    []childSA
}

// up reports whether packets can go both ways.
func (s ikeSA) up() bool { return s.established && s.child() != nil }

// child is the youngest that carries packets.
func (s ikeSA) child() *childSA {
	var best *childSA
	for i, c := range s.children {
		if c.state == childInstalled && (best == nil || c.id > best.id) {
			best = &s.children[i]
		}
	}
	if best == nil {
		// While it is replaced the old one still carries.
		for i, c := range s.children {
			if (c.state == childRekeying || c.state == childRekeyed) && (best == nil || c.id > best.id) {
				best = &s.children[i]
			}
		}
	}
	return best
}

// carriers are the numbers of the ESP SAs that carry packets.
func (s ikeSA) carriers() (ids []uint64) {
	for _, c := range s.children {
		if c.state == childInstalled || c.state == childRekeying {
			ids = append(ids, c.id)
		}
	}
	return ids
}

// spare are the ESP SAs that carry packets, none of them about to be replaced, beside
// the youngest, which is best: when both ends replace one at the same time and one of
// them is told that there is none, it makes another, which nobody ends (process_i in
// src/libcharon/sa/ikev2/tasks/child_rekey.c), and the first may be gone at that end. charon
// tells ages in seconds, and numbers ESP SAs as they are begun.
func (s ikeSA) spare() (best childSA, ids []uint64) {
	var installed []childSA
	for _, c := range s.children {
		if c.state == childInstalled {
			installed = append(installed, c)
		}
	}
	slices.SortFunc(installed, func(a, b childSA) int {
		return cmp.Or(cmp.Compare(a.age, b.age), cmp.Compare(b.id, a.id))
	})
	for _, c := range installed[min(1, len(installed)):] {
		ids = append(ids, c.id)
	}
	if len(installed) > 0 {
		best = installed[0]
	}
	return best, ids
}

type childSA struct {
	name                      string
	id                        uint64
	state, mode, protocol     string
	encap                     bool
	spiIn, spiOut             uint32
	interfaceIn, interfaceOut uint32
	suite                     suite
	bytesIn, bytesOut         uint64
	packetsIn, packetsOut     uint64
	age                       time.Duration
}

// What charon calls states (ike_sa_state_names, child_sa_state_names).
const (
	ikeEstablished = "ESTABLISHED"
	ikeConnecting  = "CONNECTING"
	ikeCreated     = "CREATED"
	ikeDeleting    = "DELETING"
	ikeRekeying    = "REKEYING"
	ikeRekeyed     = "REKEYED"
	childInstalled = "INSTALLED"
	childRekeying  = "REKEYING"
	childRekeyed   = "REKEYED"
)

// fields reads a message, and keeps the first thing that it cannot.
type fields struct {
	m    *vici.Message
	errs []string
}

func (f *fields) text(key string) string {
	s, _ := f.m.Get(key).(string)
	return s
}

func (f *fields) yes(key string) bool { return f.text(key) == "yes" }

func (f *fields) number(key string, base, bits int) uint64 {
	s := f.text(key)
	if s == "" {
		return 0
	}
	n, err := strconv.ParseUint(s, base, bits)
	if err != nil {
		f.errs = append(f.errs, fmt.Sprintf("%s is %.40q", key, s))
	}
	return n
}

// since is an age in seconds. A clock that was set back makes it negative: then it
// is nothing.
func (f *fields) since(key string) time.Duration {
	s := f.text(key)
	if s == "" {
		return 0
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		f.errs = append(f.errs, fmt.Sprintf("%s is %.40q", key, s))
	}
	return time.Duration(max(0, min(n, int64(1)<<32))) * time.Second
}

func (f *fields) suite() suite {
	s := suite{esn: f.text("esn") == "1"}
	if e := f.text("encr-alg"); e != "" {
		s.encryption = cipherKeyword(e, f.text("encr-keysize"))
	}
	s.integrity = keyword(signers, f.text("integ-alg"))
	s.prf = keyword(prfs, f.text("prf-alg"))
	if g := f.text("dh-group"); g != "" {
		s.exchanges = append(s.exchanges, keyword(groups, g))
	}
	for i := 1; i <= 7; i++ {
		if g := f.text(fmt.Sprintf("ke%d-alg", i)); g != "" {
			s.exchanges = append(s.exchanges, fmt.Sprintf("ke%d_%s", i, keyword(groups, g)))
		}
	}
	return s
}

// parseSAs reads an event of list-sas: sections by the name of the connection. What is not
// ours is not looked at: a charon of somebody else's may have what nobody here can read.
func parseSAs(inst instance.Instance, m *vici.Message) ([]namedSA, error) {
	var all []namedSA
	for _, name := range m.Keys() {
		connection, ours := parseName(inst, name)
		body, ok := m.Get(name).(*vici.Message)
		if !ours || !ok {
			continue
		}
		s, err := parseIKE(name, body)
		if err != nil {
			return nil, err
		}
		all = append(all, namedSA{ikeSA: s, connection: connection})
	}
	return all, nil
}

func parseIKE(name string, m *vici.Message) (ikeSA, error) {
	f := &fields{m: m}
	s := ikeSA{
		name: name, id: f.number("uniqueid", 10, 32), state: f.text("state"), initiator: f.yes("initiator"),
		spis:    [2]string{f.text("initiator-spi"), f.text("responder-spi")},
		localID: f.text("local-id"), remoteID: f.text("remote-id"),
		suite: f.suite(), ppk: f.yes("ppk"), age: f.since("established"),
	}
	s.established = s.state == ikeEstablished || s.state == ikeRekeying
	if children, ok := m.Get("child-sas").(*vici.Message); ok {
		for _, k := range children.Keys() {
			if body, ok := children.Get(k).(*vici.Message); ok {
				c := &fields{m: body}
				s.children = append(s.children, parseChild(c))
				f.errs = append(f.errs, c.errs...)
			}
		}
	}
	if len(f.errs) > 0 {
		return ikeSA{}, fmt.Errorf("read the SA of connection %.64q: %s", name, strings.Join(f.errs, ", "))
	}
	return s, nil
}

func parseChild(f *fields) childSA {
	return childSA{
		name: f.text("name"), id: f.number("uniqueid", 10, 32), state: f.text("state"), mode: f.text("mode"),
		protocol: f.text("protocol"), encap: f.yes("encap"),
		spiIn: uint32(f.number("spi-in", 16, 32)), spiOut: uint32(f.number("spi-out", 16, 32)),
		interfaceIn: uint32(f.number("if-id-in", 16, 32)), interfaceOut: uint32(f.number("if-id-out", 16, 32)),
		suite:   f.suite(),
		bytesIn: f.number("bytes-in", 10, 64), bytesOut: f.number("bytes-out", 10, 64),
		packetsIn: f.number("packets-in", 10, 64), packetsOut: f.number("packets-out", 10, 64),
		age: f.since("install-time"),
	}
}

// stringsOf reads a list.
func stringsOf(m *vici.Message, key string) []string {
	list, _ := m.Get(key).([]string)
	return list
}
