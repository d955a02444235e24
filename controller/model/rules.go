package model

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// SecurityRuleSetSpec is a list of rules like those of an Azure network security
// group, for one direction. It is kept and checked, and decides nothing as yet: no
// Site may name it until agents can enforce rules.
type SecurityRuleSetSpec struct {
	// Direction is inbound (to the site) or outbound (from it).
	Direction Direction `json:"direction"`
	// Rules are tried by priority, the smallest number first; the first that
	// matches decides.
	Rules []SecurityRule `json:"rules"`
}

// Direction is a way of packets as seen from the site.
type Direction string

// The directions.
const (
	Inbound  Direction = "inbound"
	Outbound Direction = "outbound"
)

// SecurityRule matches packets and says what becomes of them. What is left out
// matches everything. Its fields have the names of Azure's securityRules.
type SecurityRule struct {
	// Name is unique in the set; counters and traces show it.
	Name string `json:"name"`
	// Description is for people; at most 140 bytes, as in Azure.
	Description string `json:"description,omitempty"`
	// Priority is 1 to 1,000,000 and unique in the set.
	Priority int `json:"priority"`
	// Protocol is tcp, udp, icmp, icmpv6, esp, ah, sctp, gre, any, or a protocol's
	// number in quotation marks; any when left out.
	Protocol RuleProtocol `json:"protocol,omitempty"`
	// SourceAddressPrefixes are where packets come from: prefixes of addresses.
	SourceAddressPrefixes []netip.Prefix `json:"sourceAddressPrefixes,omitempty"`
	// SourceSites stand for the prefixes of sites of the same customer, beside
	// sourceAddressPrefixes.
	SourceSites []string `json:"sourceSites,omitempty"`
	// SourcePortRanges are ports or ranges such as 443 or 1024-65535; for tcp,
	// udp and sctp only.
	SourcePortRanges []PortRange `json:"sourcePortRanges,omitempty"`
	// DestinationAddressPrefixes are where packets go to.
	DestinationAddressPrefixes []netip.Prefix `json:"destinationAddressPrefixes,omitempty"`
	// DestinationSites stand for the prefixes of sites of the same customer,
	// beside destinationAddressPrefixes.
	DestinationSites []string `json:"destinationSites,omitempty"`
	// DestinationPortRanges are like sourcePortRanges.
	DestinationPortRanges []PortRange `json:"destinationPortRanges,omitempty"`
	// ICMPType is a message type, 0 to 255; for icmp and icmpv6 only.
	ICMPType *int `json:"icmpType,omitempty"`
	// ICMPCode is a code of icmpType, 0 to 255.
	ICMPCode *int `json:"icmpCode,omitempty"`
	// DSCP is a differentiated services code point, 0 to 63 (RFC 2474).
	DSCP *int `json:"dscp,omitempty"`
	// TCPFlags are flags that a packet must and must not have; for tcp only.
	TCPFlags *TCPFlags `json:"tcpFlags,omitempty"`
	// Action is encrypt (into the connection that the destination belongs to),
	// steer (through a service chain), forward (in clear, to the LAN side only),
	// drop, or reject (drop and tell the sender).
	Action RuleAction `json:"action"`
	// ServiceChain is what steer steers through; for steer only.
	ServiceChain string `json:"serviceChain,omitempty"`
	// Logging says whether matching flows are logged.
	Logging bool `json:"logging,omitempty"`
}

// RuleProtocol is an IP protocol by name or number.
type RuleProtocol string

// The protocols that rules name.
const (
	RuleAny    RuleProtocol = "any"
	RuleTCP    RuleProtocol = "tcp"
	RuleUDP    RuleProtocol = "udp"
	RuleICMP   RuleProtocol = "icmp"
	RuleICMPv6 RuleProtocol = "icmpv6"
	RuleESP    RuleProtocol = "esp"
	RuleAH     RuleProtocol = "ah"
	RuleSCTP   RuleProtocol = "sctp"
	RuleGRE    RuleProtocol = "gre"
)

// numbers are IANA's assigned Internet protocol numbers.
var protocolNumbers = map[RuleProtocol]int{
	RuleTCP: 6, RuleUDP: 17, RuleICMP: 1, RuleICMPv6: 58, RuleESP: 50, RuleAH: 51, RuleSCTP: 132, RuleGRE: 47,
}

// Number is the protocol's number, -1 for any; false where there is none.
func (p RuleProtocol) Number() (int, bool) {
	if p == "" || p == RuleAny {
		return -1, true
	}
	if n, ok := protocolNumbers[p]; ok {
		return n, true
	}
	n, err := strconv.ParseUint(string(p), 10, 8)
	if err != nil || strconv.FormatUint(n, 10) != string(p) {
		return 0, false
	}
	return int(n), true
}

// RuleAction is what becomes of a packet.
type RuleAction string

// The actions.
const (
	ActionEncrypt RuleAction = "encrypt"
	ActionSteer   RuleAction = "steer"
	ActionForward RuleAction = "forward"
	ActionDrop    RuleAction = "drop"
	ActionReject  RuleAction = "reject"
)

// TCPFlags match flags of TCP (RFC 9293, section 3.1): fin, syn, rst, psh, ack,
// urg, ece, cwr.
type TCPFlags struct {
	// Set are flags that must be set.
	Set []TCPFlag `json:"set,omitempty"`
	// Unset are flags that must not be set.
	Unset []TCPFlag `json:"unset,omitempty"`
}

// TCPFlag is a flag's name.
type TCPFlag string

// AllTCPFlags are all flags, the least significant bit first.
func AllTCPFlags() []TCPFlag {
	return []TCPFlag{"fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"}
}

// PortRange is a port, or the ports from one to another, both inclusive.
type PortRange struct{ From, To uint16 }

// String is 443, or 1024-65535.
func (r PortRange) String() string {
	if r.From == r.To {
		return strconv.Itoa(int(r.From))
	}
	return fmt.Sprintf("%d-%d", r.From, r.To)
}

// MarshalText implements encoding.TextMarshaler.
func (r PortRange) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what String writes, and nothing else. Its error is a
// sentence about the text.
func (r *PortRange) UnmarshalText(b []byte) error {
	low, high, isRange := strings.Cut(string(b), "-")
	if !isRange {
		high = low
	}
	from, err1 := strconv.ParseUint(low, 10, 16)
	to, err2 := strconv.ParseUint(high, 10, 16)
	switch {
	case err1 != nil || err2 != nil:
		return fmt.Errorf("is no port of 0 to 65535 and no range of ports")
	case from > to:
		return fmt.Errorf("is a range that ends before it begins")
	}
	made := PortRange{uint16(from), uint16(to)}
	if made.String() != string(b) {
		return fmt.Errorf("is a port or a range in another spelling than %s", made)
	}
	*r = made
	return nil
}

// Example is what documents' problems show as right.
func (PortRange) Example() string { return "443, or 1024-65535" }
