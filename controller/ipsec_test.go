package controller_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// ipsecNode is a node that does with states what an agent does: it makes the keys that
// they name, and reports tunnels as up when it has all that they need.
type ipsecNode struct {
	*agent
	keys  map[string][]byte
	state received
	// charon is what its strongSwan says of itself.
	charon *v1.CharonStatus
}

func (n *ipsecNode) turn(t *testing.T) {
	t.Helper()
	for more := true; more; {
		select {
		case n.state = <-n.states:
		case err := <-n.ended:
			n.ended <- err
			t.Fatalf("the session of %s ended: %v", n.node, err)
		default:
			more = false
		}
	}
	status := &v1.NodeStatus{Acknowledged: n.state.header.Position.ToWire(), Applied: n.state.header.Position.ToWire(), Charon: n.charon}
	for _, i := range n.state.state.Identities {
		for _, c := range i.Certificates {
			id := i.Name + string(rune(c.Generation))
			if n.keys[id] == nil {
				key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
				if err != nil {
					t.Fatal(err)
				}
				if n.keys[id], err = x509.MarshalPKIXPublicKey(&key.PublicKey); err != nil {
					t.Fatal(err)
				}
			}
			status.IdentityKeys = append(status.IdentityKeys, &v1.IdentityKey{Name: i.Name, Generation: c.Generation, PublicKey: n.keys[id]})
		}
	}
	for _, g := range n.groups() {
		for _, tunnel := range g.Tunnels {
			add := func(protocol desired.Protocol, up bool) {
				s := &v1.TunnelStatus{Id: tunnel.ID, Phase: v1.TunnelPhase_TUNNEL_PHASE_PENDING, Backend: protocol.String() + "-kernel", Retiring: g.Retiring == protocol}
				if up {
					s.Phase = v1.TunnelPhase_TUNNEL_PHASE_UP
				}
				if protocol == desired.ProtocolWireGuard {
					s.PublicKey = bytes.Repeat([]byte{byte(tunnel.Number), n.node[0]}, 16)
				}
				status.Tunnels = append(status.Tunnels, s)
			}
			if tunnel.WireGuard != nil {
				add(desired.ProtocolWireGuard, !tunnel.WireGuard.Pending())
			}
			if tunnel.IPsec != nil {
				add(desired.ProtocolIPsec, g.IPsecWaits(tunnel, n.state.state.Identities) == "")
			}
		}
	}
	n.report(status)
}

func (n *ipsecNode) groups() (all []desired.Group) {
	for _, x := range n.state.state.Sections {
		all = append(all, x.Groups...)
	}
	return all
}

// turns go on until something holds.
func turns(t *testing.T, what string, nodes map[string]*ipsecNode, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		for _, n := range nodes {
			n.turn(t)
		}
		if holds() {
			return
		}
	}
	for name, n := range nodes {
		t.Logf("%s has %+v", name, n.groups())
	}
	t.Fatalf("not in time: %s", what)
}

// A connection goes from WireGuard to IPsec: its nodes get certificates that name their
// endpoints, each other's pinned, tunnels have both protocols until both ends say that
// the new one works, and then the old one goes.
func TestFromWireGuardToIPsec(t *testing.T) {
	t.Parallel()
	r := start(t, t.TempDir()+"/data")
	o := r.operator()
	o.apply(t, samples(t)...)
	nodes := map[string]*ipsecNode{}
	for _, name := range []string{"prem-1", "nva-1"} {
		nodes[name] = &ipsecNode{agent: r.session(t, name, r.enrol(name)), keys: map[string][]byte{}}
		nodes[name].alive.Store(true)
		nodes[name].report(&v1.NodeStatus{})
		nodes[name].state = nodes[name].next()
	}
	every := func(holds func(g desired.Group, tunnel desired.Tunnel) bool) func() bool {
		return func() bool {
			for _, n := range nodes {
				if len(n.groups()) == 0 {
					return false
				}
				for _, g := range n.groups() {
					for _, tunnel := range g.Tunnels {
						if !holds(g, tunnel) {
							return false
						}
					}
				}
			}
			return true
		}
	}
	turns(t, "WireGuard", nodes, every(func(_ desired.Group, x desired.Tunnel) bool { return x.WireGuard != nil && !x.WireGuard.Pending() }))

	ipsec := &v1.Source{Name: "x", Text: "apiVersion: circuitseal.io/v1\nkind: EncryptionPolicy\nmetadata: {customer: contoso, name: standard}\nspec: {protocol: ipsec, postQuantum: required}\n"}
	both := false
	o.apply(t, ipsec)
	turns(t, "IPsec alone", nodes, every(func(g desired.Group, x desired.Tunnel) bool {
		if g.Retiring == desired.ProtocolWireGuard && x.WireGuard != nil && !x.WireGuard.Pending() && x.IPsec != nil {
			both = true
		}
		if x.WireGuard == nil && x.IPsec == nil {
			t.Fatal("a tunnel has no protocol")
		}
		return g.Retiring == 0 && x.WireGuard == nil && x.IPsec != nil
	}))
	if !both {
		t.Error("tunnels never had both protocols")
	}
	prem, nva := nodes["prem-1"].groups()[0].IPsec, nodes["nva-1"].groups()[0].IPsec
	if prem.LocalID != "hq.contoso.circuitseal.internal" || prem.LocalID != nva.RemoteID || !prem.PPKRequired || len(nodes["prem-1"].groups()[0].Tunnels[0].IPsec.PresharedKeys) == 0 {
		t.Errorf("prem-1 has %+v", prem)
	}
	own := nodes["prem-1"].state.state.Identities[0].Certificates[0].Certificate
	if len(nva.PeerCertificates) != 1 || !bytes.Equal(nva.PeerCertificates[0], own) {
		t.Error("nva-1 does not take what prem-1 shows")
	}
	cert, err := x509.ParseCertificate(own)
	if err != nil {
		t.Fatal(err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(r.root)
	for _, der := range nodes["nva-1"].state.state.Authorities {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		between.AddCert(c)
	}
	if _, err := cert.Verify(x509.VerifyOptions{DNSName: prem.LocalID, Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		t.Errorf("the certificate of prem-1: %v", err)
	}
	listed, err := o.keys.ListKeys(t.Context(), connect.NewRequest(&v1.ListKeysRequest{Customer: "contoso"}))
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, k := range listed.Msg.GetKeys() {
		if k.GetKind() == v1.KeyKind_KEY_KIND_ENDPOINT && strings.HasSuffix(k.GetName(), ".contoso.circuitseal.internal") && k.GetDue() != nil && k.GetProblem() == "" {
			found++
		}
	}
	if found != 2 {
		t.Errorf("%d certificates of endpoints are listed, want 2: %v", found, listed.Msg.GetKeys())
	}

	// What a node's strongSwan cannot do is refused before anything changes.
	nodes["nva-1"].charon = &v1.CharonStatus{Version: "5.9.8", Backend: "kernel", Algorithms: []string{"aes256gcm16", "ecp384", "esn", "modp3072", "modp4096", "ppk", "prfsha384", "prfsha512"}}
	nodes["nva-1"].turn(t)
	mlkem := &v1.Source{Name: "x", Text: strings.Replace(ipsec.GetText(), "postQuantum: required", "cryptoProfile: pq-hybrid-commercial", 1)}
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		_, err := o.policy.Apply(t.Context(), connect.NewRequest(&v1.ApplyRequest{Sources: []*v1.Source{mlkem}, DryRun: true}))
		if err == nil && time.Now().Before(end) {
			continue
		}
		if told := problems(t, err); len(told) != 1 || !strings.HasPrefix(told[0].GetMessage(), "node nva-1 runs strongSwan 5.9.8, which has no mlkem768") {
			t.Errorf("ML-KEM is refused as %v", told)
		}
		break
	}

	// Of one that said only later what it has, the status says the same.
	nodes["nva-1"].charon = &v1.CharonStatus{Version: "5.9.8", Backend: "kernel", Algorithms: []string{"aes256gcm16", "esn", "ppk", "prfsha384"}}
	nodes["nva-1"].turn(t)
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		told := o.getStatus(t).GetConnections()[0].GetProblems()
		if len(told) > 0 && strings.HasPrefix(told[0], "node nva-1 runs strongSwan 5.9.8, which has no ecp384") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the status says of the connection %q", told)
		}
	}

	// A revoked node's certificates are pinned nowhere.
	if _, err := o.nodes.Revoke(t.Context(), connect.NewRequest(&v1.RevokeRequest{Node: "nva-1", Reason: "stolen"})); err != nil {
		t.Fatal(err)
	}
	delete(nodes, "nva-1")
	turns(t, "nothing of the revoked node", nodes, func() bool { return len(nodes["prem-1"].groups()) == 0 })
}
