package model_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/circuitseal/circuitseal/controller/model"
)

// Every reference of the samples, so that a new field that names a document is
// not forgotten: each name in them that is a document's is here or is none.
func TestReferencesOfSamples(t *testing.T) {
	set := decode(t, samples(t)+kinds(t))
	got := map[string][]string{}
	for k, d := range set {
		for r := range model.References(d) {
			if _, ok := set[r.To]; !ok {
				t.Errorf("%s %s leads to %s, which is not there", k, r.Field, r.To)
			}
			if r.Field != "metadata.customer" {
				got[k.String()] = append(got[k.String()], r.Field+" "+r.To.String())
			}
		}
	}
	want := map[string][]string{
		"Node/prem-1": {
			"spec.interfaces[0].link.customer Customer/contoso", "spec.interfaces[0].link.circuit Circuit/contoso/er-ams",
			"spec.interfaces[1].link.customer Customer/contoso", "spec.interfaces[1].link.circuit Circuit/contoso/er-ams",
			"spec.interfaces[2].customer Customer/contoso",
		},
		"Node/nva-1": {"spec.interfaces[1].customer Customer/contoso"},
		"Endpoint/contoso/hq": {
			"spec.site Site/contoso/hq", "spec.node Node/prem-1",
			"spec.underlay[0].circuit Circuit/contoso/er-ams", "spec.underlay[1].circuit Circuit/contoso/er-ams",
		},
		"Endpoint/contoso/vnet-weu":  {"spec.site Site/contoso/vnet-weu", "spec.node Node/nva-1"},
		"Endpoint/contoso/vpngw-uks": {"spec.site Site/contoso/vnet-uks"},
		"Connection/contoso/hq-weu": {
			"spec.encryptionPolicy EncryptionPolicy/contoso/standard",
			"spec.endpoints[0] Endpoint/contoso/hq", "spec.endpoints[1] Endpoint/contoso/vnet-weu", "spec.circuits[0] Circuit/contoso/er-ams",
		},
		"Connection/contoso/hq-lon": {"spec.encryptionPolicy EncryptionPolicy/contoso/in-udp", "spec.endpoints[0] Endpoint/contoso/hq", "spec.endpoints[1] Endpoint/contoso/gw-lon", "spec.circuits[0] Circuit/contoso/er-ams"},
		"Endpoint/contoso/gw-lon":   {"spec.site Site/contoso/dc-lon"},
		"Connection/contoso/hq-uks": {
			"spec.encryptionPolicy EncryptionPolicy/contoso/gateways",
			"spec.endpoints[0] Endpoint/contoso/hq", "spec.endpoints[1] Endpoint/contoso/vpngw-uks", "spec.circuits[0] Circuit/contoso/er-ams",
		},
		"EncryptionPolicy/contoso/strict-ipsec": {"spec.cryptoProfile CryptoProfile/contoso/strict"},
		"SecurityRuleSet/contoso/hq-outbound": {
			"spec.rules[0].destinationSites[0] Site/contoso/vnet-weu", "spec.rules[0].serviceChain ServiceChain/contoso/inspect",
			"spec.rules[2].destinationSites[0] Site/contoso/vnet-weu",
		},
		"Appliance/contoso/fw-1":       {"spec.node Node/prem-1"},
		"Appliance/contoso/fw-2":       {"spec.node Node/prem-1"},
		"ServiceChain/contoso/inspect": {"spec.hops[0].appliances[0] Appliance/contoso/fw-1", "spec.hops[0].appliances[1] Appliance/contoso/fw-2"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// texts calls f for every text of a spec.
func texts(v reflect.Value, f func(string)) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			texts(v.Elem(), f)
		}
	case reflect.Struct:
		if v.NumField() > 0 && v.Type().PkgPath() == "net/netip" {
			return
		}
		for _, field := range v.Fields() {
			texts(field, f)
		}
	case reflect.Slice:
		for i := range v.Len() {
			texts(v.Index(i), f)
		}
	case reflect.String:
		f(v.String())
	default:
	}
}

// A field of any kind that could name a document, of a spec in which every text
// is different, is a reference or is known not to be one.
func TestNoReferenceIsForgotten(t *testing.T) {
	// How many texts of each kind are no references: words, host names, ports.
	want := map[model.Kind]int{
		model.KindCustomer: 2, model.KindCircuit: 2, model.KindSite: 1, model.KindNode: 5, model.KindEndpoint: 14,
		model.KindEncryptionPolicy: 8, model.KindConnection: 0, model.KindSecurityRuleSet: 7, model.KindAppliance: 6,
		model.KindServiceChain: 2, model.KindExemption: 3, model.KindCryptoProfile: 10,
	}
	for _, kind := range model.Kinds() {
		n := 0
		spec := model.NewSpec(kind)
		number(reflect.ValueOf(spec).Elem(), &n)
		named := map[string]bool{}
		for r := range model.References(model.Document{Key: model.Key{Kind: kind, Name: "n"}, Spec: spec}) {
			named[r.To.Name] = true
		}
		var others []string
		texts(reflect.ValueOf(spec), func(s string) {
			if strings.HasPrefix(s, "text-") && !named[s] {
				others = append(others, s)
			}
		})
		if len(others) != want[kind] {
			t.Errorf("%s has %d texts that are no references, want %d: is a new field a reference? %v", kind, len(others), want[kind], others)
		}
	}
}

// number gives every text a value of its own, lists one element, and an
// interface the role that its link or customer counts in.
func number(v reflect.Value, n *int) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		number(v.Elem(), n)
	case reflect.Struct:
		if v.Type().PkgPath() == "net/netip" {
			return
		}
		for _, f := range v.Fields() {
			number(f, n)
		}
	case reflect.Slice:
		if v.Type() == reflect.TypeFor[[]model.InterfaceSpec]() {
			lan, circuit := model.InterfaceSpec{Role: model.RoleLAN, Customer: "text-lan"}, model.InterfaceSpec{Role: model.RoleCircuit, Name: "text-name"}
			circuit.Link = &model.LinkRef{Customer: "text-customer", Circuit: "text-circuit", Link: "text-link"}
			circuit.Links = []model.LinkRef{{Customer: "text-customers", Circuit: "text-circuits", Link: "text-links"}}
			v.Set(reflect.ValueOf([]model.InterfaceSpec{lan, circuit}))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		number(v.Index(0), n)
	case reflect.String:
		*n++
		v.SetString(fmt.Sprintf("text-%d", *n))
	default:
	}
}
