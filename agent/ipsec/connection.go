package ipsec

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/strongswan/govici/vici"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/plan"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// connection is what charon is told about a tunnel. Its name tells all that was
// loaded, so that one that is there under that name needs no look, and an IKE SA
// of that name was made by it.
type connection struct {
	name    connectionName
	message *vici.Message
	// child is the section in message of its ESP SAs.
	child   *vici.Message
	secrets []secret
	// generation is that of the pre-shared key that a new IKE SA begins with; 0 for
	// none, or where the other end says.
	generation uint64
}

// Format prints the name for every verb: fmt does not ask the secrets, which are in
// an unexported field.
func (c connection) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "%+v", c.name) }

// connectionName is CharonPrefix, the tunnel's number, and three digests: of the tunnel,
// whose number another one may have had, of whom to trust, and of everything, which is
// empty where that cannot be told.
type connectionName struct {
	number               uint16
	tunnel, trust, whole string
}

func (n connectionName) in(inst instance.Instance) string {
	return fmt.Sprintf("%s%d.%s.%s.%s", inst.CharonPrefix(), n.number, n.tunnel, n.trust, n.whole)
}

// parseName tells whether a connection or an SA is ours, and of which tunnel.
func parseName(inst instance.Instance, name string) (n connectionName, ours bool) {
	rest, ok := strings.CutPrefix(name, inst.CharonPrefix())
	if !ok {
		return connectionName{}, false
	}
	parts := strings.Split(rest, ".")
	if len(parts) != 4 {
		return connectionName{}, false
	}
	number, err := strconv.ParseUint(parts[0], 10, 16)
	if err != nil {
		return connectionName{}, false
	}
	return connectionName{uint16(number), parts[1], parts[2], parts[3]}, true
}

// A CHILD_SA is called by the generation of the pre-shared key that its IKE SA
// began with, as far as this end says which: it is found there again without
// memory.
const childPrefix = "g"

func childName(generation uint64) string { return childPrefix + strconv.FormatUint(generation, 10) }

func generationOf(child string) uint64 {
	rest, _ := strings.CutPrefix(child, childPrefix)
	g, err := strconv.ParseUint(rest, 10, 64)
	if err != nil {
		return 0
	}
	return g
}

// secret is what load-shared gets.
type secret struct {
	id     string
	kind   string // ike or ppk
	owners []string
	key    desired.Secret
}

// data is what charon gets. A gateway's PSK is typed in by people, so that of
// every tunnel is what sealctl prints.
func (s secret) data() string {
	if s.kind == kindPSK {
		return s.key.Typed()
	}
	return string(s.key[:])
}

// Format prints the id for every verb.
func (s secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.id)) }

const (
	kindPSK = "ike"
	kindPPK = "ppk"
)

// connect is the connection of a tunnel. certificate is this end's, DER, nil with
// a PSK; authorities are the peer's. preferred is which of the pre-shared keys
// comes first.
func connect(inst instance.Instance, backend Backend, t plan.IPsecTunnel, certificate []byte, authorities [][]byte, preferred int) connection {
	p := t.Policy
	c := connection{name: nameOf(t, authorities)}
	keys := t.PresharedKeys
	if preferred > 0 && preferred < len(keys) {
		keys = []desired.PresharedKey{keys[preferred], keys[0]}
	}
	local, remote := section("id", p.LocalID), trusted(p, authorities)
	ppkID := ""
	// The answering end is told its connection anew before another key may come into
	// use; see yield.
	var generations []string
	if !t.Initiates {
		for _, k := range keys {
			generations = append(generations, strconv.FormatUint(k.Generation, 10))
		}
		slices.Sort(generations)
	}
	switch p.Authentication {
	case desired.AuthenticationPSK:
		put(local, "auth", "psk")
		// Of several that fit the initiator takes the one loaded last (insert_first in
		// src/libstrongswan/credentials/sets/mem_cred.c). They are the gateway's alone: of
		// our own name there may be several tunnels, to other gateways.
		for i, k := range slices.Backward(keys) {
			c.secrets = append(c.secrets, secret{
				id:   fmt.Sprintf("%s%d.psk.%d.%d", inst.CharonPrefix(), t.Number, i, k.Generation),
				kind: kindPSK, owners: []string{p.RemoteID}, key: k.Key,
			})
		}
	default:
		put(local, "auth", "pubkey")
		put(local, "certs", []string{string(certificate)})
		if p.PPKRequired {
			for _, k := range keys {
				c.secrets = append(c.secrets, secret{
					id:   fmt.Sprintf("%s%d.ppk.%d", inst.CharonPrefix(), t.Number, k.Generation),
					kind: kindPPK, owners: []string{ppkName(t.ID, strconv.FormatUint(k.Generation, 10))}, key: k.Key,
				})
			}
			// The answering end takes any generation that it has, so that the other one
			// changes over alone.
			ppkID = ppkName(t.ID, "*")
			if t.Initiates && len(keys) > 0 {
				ppkID = ppkName(t.ID, strconv.FormatUint(keys[0].Generation, 10))
			}
		}
	}
	if t.Initiates && len(keys) > 0 {
		c.generation = keys[0].Generation
	}
	l := lifetimesOf(p)
	dpd := p.DPDDelay
	if dpd <= 0 {
		dpd = defaultDPD
	}
	whole := section(
		"version", "2",
		"local_addrs", []string{t.Local.String()},
		"remote_addrs", []string{t.Remote.String()},
		"proposals", p.IKEProposals,
		"mobike", "no",
		"fragmentation", "yes",
		"encap", yes(p.UDPEncapsulation || backend == Libipsec),
		"unique", "never",
		"send_cert", "always",
		"send_certreq", "yes",
		"dpd_delay", seconds(dpd),
		"rekey_time", seconds(l.ike),
		"over_time", seconds(l.ikeOver),
		"ppk_id", ppkID,
		"ppk_required", yes(ppkID != ""),
		// An end that answers does not try again.
		"keyingtries", map[bool]string{true: "0", false: "1"}[t.Initiates],
		"local", local,
		"remote", remote,
	)
	again, on := "clear", "none"
	if t.Initiates {
		// It comes back even when no agent runs.
		again, on = "restart", "start"
	}
	locals, remotes := selectors(p)
	child := section(
		"mode", "tunnel",
		"esp_proposals", p.ESPProposals,
		"local_ts", locals,
		"remote_ts", remotes,
		"reqid", strconv.FormatUint(uint64(t.InterfaceID), 10),
		"set_mark_out", fmt.Sprintf("%#x", t.Mark),
		"rekey_time", seconds(l.esp),
		"life_time", seconds(l.espLife),
		"rekey_bytes", number(l.bytes),
		"life_bytes", number(l.bytesLife),
		"rekey_packets", number(l.packets),
		"life_packets", number(l.packetsLife),
		"replay_window", strconv.Itoa(replayWindow),
		"start_action", "none",
		"dpd_action", again,
		"close_action", on,
		"copy_dscp", "out",
	)
	if backend != Libipsec {
		put(child, "if_id_in", fmt.Sprintf("%#x", t.InterfaceID))
		put(child, "if_id_out", fmt.Sprintf("%#x", t.InterfaceID))
	}
	put(whole, "children", section(childName(c.generation), child))
	c.name.whole = digest(section("whole", whole, "generations", generations))
	c.message, c.child = section(c.name.in(inst), whole), child
	return c
}

// trusted is whom an SA may be with.
func trusted(p desired.IPsecPolicy, authorities [][]byte) *vici.Message {
	if p.Authentication == desired.AuthenticationPSK {
		return section("id", p.RemoteID, "revocation", "relaxed", "auth", "psk")
	}
	return section("id", p.RemoteID, "revocation", "relaxed", "auth", "pubkey", "certs", texts(p.PeerCertificates), "cacerts", texts(authorities))
}

// nameOf is what of its connection's name a tunnel has by its policy alone, without a key
// of its own.
func nameOf(t plan.IPsecTunnel, authorities [][]byte) connectionName {
	return connectionName{
		number: t.Number, tunnel: tunnelDigest(t.ID),
		trust: trustOf(t.Policy, authorities),
	}
}

// trustOf is a digest of all but the pinned certificates, and then one of each.
func trustOf(p desired.IPsecPolicy, authorities [][]byte) string {
	pins := p.PeerCertificates
	p.PeerCertificates = nil
	all := []string{digest(section("remote", trusted(p, authorities), "ppk_required", yes(p.PPKRequired)))}
	for _, der := range pins {
		all = append(all, short(sha256.Sum256(der)))
	}
	slices.Sort(all[1:])
	return strings.Join(all, "-")
}

// trusts reports whether whoever another connection was with may be the peer of this one:
// it pinned no certificate that this one does not.
func (n connectionName) trusts(other connectionName) bool {
	now, then := strings.Split(n.trust, "-"), strings.Split(other.trust, "-")
	return now[0] == then[0] && (len(then) > 1) == (len(now) > 1) &&
		!slices.ContainsFunc(then[1:], func(pin string) bool { return !slices.Contains(now[1:], pin) })
}

func tunnelDigest(id string) string { return digest(section("id", id)) }

const (
	defaultDPD   = 10 * time.Second
	replayWindow = 1024
)

var everything = []string{"0.0.0.0/0", "::/0"}

// selectors are everything between agents and with gateways that route: which
// packets enter is decided by routes and the classifier, and a change of prefixes
// touches no SA. libipsec takes them because they hold 127.0.0.1 and ::1: of others
// it wants each to hold an address of its namespace (get_address_by_ts in
// src/libcharon/kernel/kernel_interface.c).
func selectors(p desired.IPsecPolicy) (local, remote []string) {
	if len(p.LocalSelectors) > 0 || len(p.RemoteSelectors) > 0 {
		return prefixes(p.LocalSelectors), prefixes(p.RemoteSelectors)
	}
	return everything, everything
}

func prefixes(list []netip.Prefix) []string {
	var out []string
	for _, p := range list {
		out = append(out, p.String())
	}
	return out
}

// ppkName is the PPK's identity in IKE (RFC 8784, section 5.1), an FQDN to
// strongSwan: by the tunnel's ID, which both ends know, and a generation, for which
// * stands for any.
func ppkName(tunnel, generation string) string {
	return generation + "." + short(sha256.Sum256([]byte(tunnel))) + ".ppk.circuitseal"
}

// digest covers every key, value and their nesting. There are no secrets in what
// it is taken of.
func digest(m *vici.Message) string {
	h := sha256.New()
	hash(h, m)
	return short([sha256.Size]byte(h.Sum(nil)))
}

func hash(w io.Writer, m *vici.Message) {
	for _, k := range m.Keys() {
		switch v := m.Get(k).(type) {
		case string:
			_, _ = fmt.Fprintf(w, "%q=%q;", k, v)
		case []string:
			_, _ = fmt.Fprintf(w, "%q=%q;", k, v)
		case *vici.Message:
			_, _ = fmt.Fprintf(w, "%q{", k)
			hash(w, v)
			_, _ = fmt.Fprint(w, "}")
		}
	}
}

func short(sum [sha256.Size]byte) string {
	return strings.ToLower(base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:10]))
}

func put(m *vici.Message, key string, value any) { _ = m.Set(key, value) }

func texts(ders [][]byte) []string {
	var out []string
	for _, d := range ders {
		out = append(out, string(d))
	}
	return out
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func seconds(d time.Duration) string { return strconv.FormatInt(int64(d/time.Second), 10) + "s" }

func number(n uint64) string { return strconv.FormatUint(n, 10) }
