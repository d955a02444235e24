package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

// column is what a table of documents of one kind has beside customer and name.
type column struct {
	head string
	cell func(cells, *structpb.Struct) string
}

// cells are documents that a table's rows may have to be looked up in, and the
// customer of the row.
type cells struct {
	all      map[key]*structpb.Struct
	customer string
}

// spec is that of another document of the row's customer, or nil.
func (c cells) spec(kind, name string) *structpb.Struct { return c.all[key{kind, c.customer, name}] }

// at is the text of a field; path leads through groups.
func at(path ...string) func(cells, *structpb.Struct) string {
	return func(_ cells, s *structpb.Struct) string { return scalar(field(s, path...)) }
}

// field is a field of a spec, or nil.
func field(s *structpb.Struct, path ...string) *structpb.Value {
	v := s.GetFields()[path[0]]
	for _, p := range path[1:] {
		v = v.GetStructValue().GetFields()[p]
	}
	return v
}

// scalar is a value in words, a list of them up to some.
func scalar(v *structpb.Value) string {
	switch k := v.GetKind().(type) {
	case *structpb.Value_StringValue:
		return k.StringValue
	case *structpb.Value_NumberValue:
		return strconv.FormatFloat(k.NumberValue, 'f', -1, 64)
	case *structpb.Value_BoolValue:
		return yes(k.BoolValue)
	case *structpb.Value_ListValue:
		return list(texts(v))
	}
	return ""
}

// texts are the items of a list that are text or numbers.
func texts(v *structpb.Value) []string {
	var all []string
	for _, x := range v.GetListValue().GetValues() {
		all = append(all, scalar(x))
	}
	return all
}

// each joins what a function says of the groups of a list, each text once.
func each(name string, say func(*structpb.Struct) string) func(cells, *structpb.Struct) string {
	return func(_ cells, s *structpb.Struct) string {
		var all []string
		for _, x := range field(s, name).GetListValue().GetValues() {
			if text := say(x.GetStructValue()); text != "" && !slices.Contains(all, text) {
				all = append(all, text)
			}
		}
		return list(all)
	}
}

// columns are those of every kind.
var columns = map[string][]column{
	"Customer": {{"MODEL", at("model")}, {"DISPLAY NAME", at("displayName")}},
	"Circuit": {
		{"PEERING", at("peering")}, {"PRIMARY", circuitLink("primary")}, {"SECONDARY", circuitLink("secondary")},
		{"MBIT/S", at("bandwidthMbps")},
	},
	"Site": {{"TYPE", at("type")}, {"PREFIXES", at("prefixes")}},
	"Node": {
		{"OWNER", at("owner")}, {"CIRCUIT", interfaces("circuit")}, {"LAN", interfaces("lan")}, {"MGMT", interfaces("mgmt")},
		{"CUSTOMERS", each("interfaces", func(s *structpb.Struct) string { return scalar(field(s, "customer")) })},
	},
	"Endpoint": {
		{"SITE", at("site")}, {"NODE", endpointNode},
		{"UNDERLAY", each("underlay", func(s *structpb.Struct) string {
			text := scalar(field(s, "address"))
			if l := scalar(field(s, "link")); l != "" {
				text += " (" + l + ")"
			}
			return text
		})},
	},
	"EncryptionPolicy": {
		{"PROTOCOL", at("protocol")}, {"CRYPTO PROFILE", at("cryptoProfile")}, {"PATH MTU", at("pathMTU")},
		{"PSK ROTATION", at("pskRotation")}, {"MAX OFFLINE", at("maxOfflineAge")},
	},
	"Connection": {
		{"ENDPOINTS", at("endpoints")}, {"NODES", connectionNodes}, {"CIRCUITS", at("circuits")},
		{"POLICY", at("encryptionPolicy")}, {"PROTOCOL", connectionProtocol},
	},
	"SecurityRuleSet": {{"DIRECTION", at("direction")}, {"RULES", func(_ cells, s *structpb.Struct) string {
		return strconv.Itoa(len(field(s, "rules").GetListValue().GetValues()))
	}}},
	"Appliance": {
		{"NODE", at("node")}, {"NEXT HOP", at("nextHop", "address")}, {"INTERFACE", at("nextHop", "interface")},
		{"INSIDE", at("interfacePair", "inside")}, {"OUTSIDE", at("interfacePair", "outside")}, {"HEALTH CHECK", at("healthCheck", "protocol")},
	},
	"ServiceChain": {
		{"POSITION", at("position")},
		{"HOPS", each("hops", func(s *structpb.Struct) string { return strings.Join(texts(field(s, "appliances")), " or ") })},
		{"WHEN NONE HEALTHY", at("whenNoneHealthy")},
	},
	"Exemption": {
		{"TYPE", at("type")}, {"HOST", at("host")}, {"PROTOCOL", at("protocol")}, {"HOST PORT", at("hostPort")},
		{"NODE PORT", at("nodePort")}, {"REASON", at("reason")},
	},
	"CryptoProfile": {{"IKE", each("ike", proposal)}, {"ESP", each("esp", proposal)}},
}

func circuitLink(name string) func(cells, *structpb.Struct) string {
	return func(_ cells, s *structpb.Struct) string {
		l := field(s, "links", name).GetStructValue()
		text := scalar(field(l, "subnet"))
		outer, inner := scalar(field(l, "outerVlan")), scalar(field(l, "vlan"))
		switch {
		case outer != "":
			text += " vlan " + outer + "." + inner
		case inner != "":
			text += " vlan " + inner
		}
		return text
	}
}

// interfaces are the names of a node's interfaces of a role.
func interfaces(role string) func(cells, *structpb.Struct) string {
	return each("interfaces", func(s *structpb.Struct) string {
		if scalar(field(s, "role")) != role {
			return ""
		}
		return scalar(field(s, "name"))
	})
}

func endpointNode(_ cells, s *structpb.Struct) string {
	if kind := scalar(field(s, "external", "type")); kind != "" {
		return "external: " + kind
	}
	return scalar(field(s, "node"))
}

func connectionNodes(c cells, s *structpb.Struct) string {
	var all []string
	for _, name := range texts(field(s, "endpoints")) {
		all = append(all, endpointNode(c, c.spec("Endpoint", name)))
	}
	return list(all)
}

func connectionProtocol(c cells, s *structpb.Struct) string {
	return scalar(field(c.spec("EncryptionPolicy", scalar(field(s, "encryptionPolicy"))), "protocol"))
}

func proposal(s *structpb.Struct) string {
	var parts []string
	for _, f := range []string{"encryption", "integrity", "prf", "keyExchange", "additionalKeyExchange"} {
		if text := scalar(field(s, f)); text != "" {
			parts = append(parts, text)
		}
	}
	return strings.Join(parts, "-")
}

// documentTable is a table of documents of one kind; beside are others that rows
// may be looked up in.
func documentTable(kind string, documents, beside []*v1.Document, colours palette) *table {
	var head []string
	k, known := findKind(kind)
	ofCustomer := !known || k.Customer
	if ofCustomer {
		head = append(head, "CUSTOMER")
	}
	head = append(head, "NAME")
	more := columns[kind]
	if more == nil {
		more = []column{{"SPEC", nil}}
	}
	for _, c := range more {
		head = append(head, c.head)
	}
	t := newTable(append(head, "REVISION")...).paint(colours)
	all := map[key]*structpb.Struct{}
	for _, d := range slices.Concat(documents, beside) {
		all[keyOf(d)] = d.GetSpec()
	}
	for _, d := range documents {
		var row []string
		if ofCustomer {
			row = append(row, d.GetCustomer())
		}
		row = append(row, d.GetName())
		for i, c := range more {
			switch {
			case c.cell == nil || i == 0 && len(d.GetSpecChunks()) > 0:
				row = append(row, summary(d))
			case len(d.GetSpecChunks()) > 0:
				row = append(row, "")
			default:
				row = append(row, c.cell(cells{all, d.GetCustomer()}, d.GetSpec()))
			}
		}
		t.add(append(row, fmt.Sprint(d.GetRevision()))...)
	}
	return t
}
