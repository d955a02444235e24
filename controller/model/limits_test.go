package model

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// Lists that are far too long are told once and cost no more than their length.
func TestLongLists(t *testing.T) {
	docs := map[Key]Document{}
	put := func(kind Kind, customer, name string, spec Spec) {
		docs[Key{Kind: kind, Customer: customer, Name: name}] = Document{Spec: spec}
	}
	put(KindCustomer, "", "c", &CustomerSpec{Model: ConnectTo})
	const many = 50_000
	node := &NodeSpec{Owner: "c", Interfaces: make([]InterfaceSpec, many)}
	wide := &NodeSpec{Owner: "c", Interfaces: []InterfaceSpec{{Name: "eth0", Role: RoleCircuit, Addresses: make([]netip.Prefix, many)}}}
	port := &NodeSpec{Owner: "c", Interfaces: []InterfaceSpec{{Name: "eth0", Role: RoleCircuit, Links: make([]LinkRef, many)}}}
	endpoint := &EndpointSpec{Site: "s", Node: "n", Underlay: make([]UnderlaySpec, many)}
	connection := &ConnectionSpec{Endpoints: []string{"e", "f"}, Circuits: make([]string, many)}
	for i := range many {
		connection.Circuits[i] = fmt.Sprint("er-", i)
	}
	put(KindNode, "", "n", node)
	put(KindNode, "", "wide", wide)
	put(KindNode, "", "port", port)
	put(KindEndpoint, "c", "e", endpoint)
	put(KindEndpoint, "c", "f", endpoint)
	put(KindConnection, "c", "k", connection)
	for i := range 2_000 {
		put(KindEndpoint, "c", fmt.Sprint("x", i), &EndpointSpec{Site: "s", Node: "n", Underlay: []UnderlaySpec{{Address: netip.MustParseAddr("10.0.0.1")}}})
		put(KindConnection, "c", fmt.Sprint("y", i), &ConnectionSpec{Endpoints: []string{"e", "f"}, Circuits: []string{"er"}})
	}
	start := time.Now()
	told := map[string]int{}
	for _, p := range Validate(docs) {
		if strings.Contains(p.Message, "has more than the") {
			told[p.Document+" "+p.Field]++
		}
	}
	// Generous: quadratic work would take minutes.
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("Validate took %s", took)
	}
	for _, want := range []string{
		"Node/n spec.interfaces", "Node/wide spec.interfaces[0].addresses", "Node/port spec.interfaces", "Endpoint/c/e spec.underlay", "Endpoint/c/f spec.underlay", "Connection/c/k spec.circuits",
	} {
		if told[want] != 1 {
			t.Errorf("%s is told %d times, want once", want, told[want])
		}
	}
}

func TestTunnels(t *testing.T) {
	addr := netip.MustParseAddr
	docs := map[Key]Document{}
	put := func(kind Kind, name string, spec Spec) {
		docs[Key{Kind: kind, Customer: "c", Name: name}] = Document{Spec: spec}
	}
	put(KindCircuit, "er", &CircuitSpec{})
	put(KindEndpoint, "hq", &EndpointSpec{Node: "prem", Underlay: []UnderlaySpec{
		{Address: addr("10.0.0.5"), Circuit: "er", Link: Secondary}, {Address: addr("10.0.0.1"), Circuit: "er", Link: Primary},
	}})
	put(KindEndpoint, "azure", &EndpointSpec{Node: "nva", Underlay: []UnderlaySpec{{Address: addr("10.9.0.4")}, {Address: addr("10.9.0.5")}}})
	put(KindConnection, "k", &ConnectionSpec{Endpoints: []string{"hq", "azure"}, Circuits: []string{"er"}})
	got, problems := Tunnels(docs, Key{Kind: KindConnection, Customer: "c", Name: "k"})
	if len(problems) > 0 {
		t.Fatalf("problems: %+v", problems)
	}
	want := []Tunnel{
		{ID: "c/k/er/primary", Circuit: "er", Link: Primary, Ends: [2]End{{"azure", "nva", addr("10.9.0.4"), false, netip.Addr{}}, {"hq", "prem", addr("10.0.0.1"), true, netip.Addr{}}}},
		{ID: "c/k/er/secondary", Circuit: "er", Link: Secondary, Ends: [2]End{{"azure", "nva", addr("10.9.0.5"), false, netip.Addr{}}, {"hq", "prem", addr("10.0.0.5"), true, netip.Addr{}}}},
	}
	if len(got) != len(want) || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
