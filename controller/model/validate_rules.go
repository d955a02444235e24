package model

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"unicode"
)

// What a rule set can have. MaxRules leaves room above the 100,000 that the
// classifier is built for; the lists of a rule are those of Azure. Of what is
// wrong with a set, maxRuleIssues are told and the rest is counted.
const (
	MaxRules      = 200_000
	maxPriority   = 1_000_000
	maxRuleList   = 4_000
	maxRulePorts  = 4_000
	maxRuleIssues = 200
)

func (c *checker) ruleSet(k Key, s *SecurityRuleSetSpec) {
	enum(c, k, "spec.direction", s.Direction, Inbound, Outbound)
	const list = "spec.rules"
	switch n := len(s.Rules); {
	case n == 0:
		c.add(k, list, "", "is required: a set without rules decides nothing", "at least one rule")
	case n > MaxRules:
		c.add(k, list, strconv.Itoa(n), fmt.Sprintf("has more than the %d rules that a set can have", MaxRules), "several sets")
		return
	}
	names := make(map[string]int, len(s.Rules))
	priorities := make(map[int]int, len(s.Rules))
	before := len(c.problems)
	for i := range s.Rules {
		r := &s.Rules[i]
		field := func() string { return at(list, i) }
		if p, hint := ValidName(r.Name); p != "" {
			c.add(k, field()+".name", r.Name, p, hint)
		} else if first, taken := names[r.Name]; taken {
			c.add(k, field()+".name", r.Name, "is also the name of "+at(list, first), "a name of its own")
		} else {
			names[r.Name] = i
		}
		if r.Priority < 1 || r.Priority > maxPriority {
			c.between(k, field()+".priority", r.Priority, 1, maxPriority, "")
		} else if first, taken := priorities[r.Priority]; taken {
			c.add(k, field()+".priority", strconv.Itoa(r.Priority), "is the priority of "+at(list, first)+" as well: nothing says which of the two comes first", "a priority of its own")
		} else {
			priorities[r.Priority] = i
		}
		c.ruleMatch(k, field, r)
		c.ruleAction(k, field, r)
		if most := before + maxRuleIssues; len(c.problems) > most {
			c.problems[most-1].LeftOut += len(c.problems) - most
			c.problems = c.problems[:most]
		}
	}
}

// ruleMatch checks what a rule matches. Field makes the rule's path: most rules
// need none.
func (c *checker) ruleMatch(k Key, field func() string, r *SecurityRule) {
	number, known := r.Protocol.Number()
	if !known {
		c.add(k, field()+".protocol", string(r.Protocol), "is no protocol",
			oneOf([]RuleProtocol{RuleTCP, RuleUDP, RuleICMP, RuleICMPv6, RuleESP, RuleAH, RuleSCTP, RuleGRE, RuleAny})+`, or a number such as "89"`)
	}
	from := c.rulePrefixes(k, field, "sourceAddressPrefixes", r.SourceAddressPrefixes)
	to := c.rulePrefixes(k, field, "destinationAddressPrefixes", r.DestinationAddressPrefixes)
	if from != 0 && to != 0 && from&to == 0 && len(r.SourceSites) == 0 && len(r.DestinationSites) == 0 {
		c.add(k, field()+".destinationAddressPrefixes", r.DestinationAddressPrefixes[0].String(),
			"is of another IP version than sourceAddressPrefixes: no packet has such addresses", "prefixes of one version")
	}
	c.ruleSites(k, field, "sourceSites", r.SourceSites)
	c.ruleSites(k, field, "destinationSites", r.DestinationSites)
	hasPorts := number == protocolNumbers[RuleTCP] || number == protocolNumbers[RuleUDP] || number == protocolNumbers[RuleSCTP]
	for _, l := range []struct {
		name  string
		ports []PortRange
	}{{"sourcePortRanges", r.SourcePortRanges}, {"destinationPortRanges", r.DestinationPortRanges}} {
		switch {
		case len(l.ports) > maxRulePorts:
			c.add(k, field()+"."+l.name, strconv.Itoa(len(l.ports)), fmt.Sprintf("has more than the %d ranges that a rule can have", maxRulePorts), "several rules")
		case len(l.ports) > 0 && known && !hasPorts:
			c.add(k, field()+"."+l.name, l.ports[0].String(), "only tcp, udp and sctp have ports, and the rule's protocol is "+ruleProtocol(r), "protocol: tcp, udp or sctp, or leave the ports out")
		}
	}
	icmp := number == protocolNumbers[RuleICMP] || number == protocolNumbers[RuleICMPv6]
	c.ruleNumber(k, field, "icmpType", r.ICMPType, 255)
	c.ruleNumber(k, field, "icmpCode", r.ICMPCode, 255)
	c.ruleNumber(k, field, "dscp", r.DSCP, 63)
	switch {
	case r.ICMPType != nil && known && !icmp:
		c.add(k, field()+".icmpType", strconv.Itoa(*r.ICMPType), "only icmp and icmpv6 have types, and the rule's protocol is "+ruleProtocol(r), "protocol: icmp or icmpv6, or leave it out")
	case r.ICMPCode != nil && r.ICMPType == nil:
		c.add(k, field()+".icmpCode", strconv.Itoa(*r.ICMPCode), "a code means nothing without its icmpType", "icmpType beside it")
	}
	if number == protocolNumbers[RuleICMP] && (from|to)&ipv6 != 0 && (from|to)&ipv4 == 0 {
		c.add(k, field()+".protocol", string(r.Protocol), "is IPv4's; between IPv6 addresses it is icmpv6", string(RuleICMPv6))
	}
	if number == protocolNumbers[RuleICMPv6] && (from|to)&ipv4 != 0 && (from|to)&ipv6 == 0 {
		c.add(k, field()+".protocol", string(r.Protocol), "is IPv6's; between IPv4 addresses it is icmp", string(RuleICMP))
	}
	if r.TCPFlags != nil {
		if known && number != protocolNumbers[RuleTCP] {
			c.add(k, field()+".tcpFlags", "", "only tcp has these flags, and the rule's protocol is "+ruleProtocol(r), "protocol: tcp, or leave it out")
		}
		c.tcpFlags(k, field()+".tcpFlags", r.TCPFlags)
	}
}

func ruleProtocol(r *SecurityRule) string {
	if r.Protocol == "" {
		return string(RuleAny)
	}
	return Shorten(string(r.Protocol))
}

// The IP versions of a list of prefixes.
const (
	ipv4 = 1 << iota
	ipv6
)

func (c *checker) rulePrefixes(k Key, field func() string, name string, prefixes []netip.Prefix) (versions int) {
	if n := len(prefixes); n > maxRuleList {
		c.add(k, field()+"."+name, strconv.Itoa(n), fmt.Sprintf("has more than the %d prefixes that a rule can have", maxRuleList), "several rules, or a site with these prefixes")
		return 0
	}
	for i, p := range prefixes {
		if !p.IsValid() || p.Addr().Is4In6() || p != p.Masked() {
			path := at(field()+"."+name, i)
			_ = c.prefix(k, path, p, "a prefix such as 10.1.0.0/16") && c.masked(k, path, p)
			continue
		}
		if p.Addr().Is4() {
			versions |= ipv4
		} else {
			versions |= ipv6
		}
	}
	return versions
}

func (c *checker) ruleSites(k Key, field func() string, name string, sites []string) {
	if n := len(sites); n > maxRuleList {
		c.add(k, field()+"."+name, strconv.Itoa(n), fmt.Sprintf("has more than the %d sites that a rule can have", maxRuleList), "several rules")
	}
}

func (c *checker) ruleNumber(k Key, field func() string, name string, v *int, most int) {
	if v != nil && (*v < 0 || *v > most) {
		c.between(k, field()+"."+name, *v, 0, most, "")
	}
}

func (c *checker) tcpFlags(k Key, field string, f *TCPFlags) {
	if len(f.Set) == 0 && len(f.Unset) == 0 {
		c.add(k, field, "", "names no flag", "set, unset or both, such as {set: [syn], unset: [ack]}")
	}
	all := AllTCPFlags()
	if n := len(f.Set) + len(f.Unset); n > len(all) {
		c.add(k, field, strconv.Itoa(n), fmt.Sprintf("names more than the %d flags that there are", len(all)), "each flag once")
		return
	}
	for i, flag := range f.Set {
		enum(c, k, at(field+".set", i), flag, all...)
	}
	for i, flag := range f.Unset {
		if enum(c, k, at(field+".unset", i), flag, all...) && slices.Contains(f.Set, flag) {
			c.add(k, at(field+".unset", i), string(flag), "stands in set as well: no packet matches", "one of the two")
		}
	}
}

func (c *checker) ruleAction(k Key, field func() string, r *SecurityRule) {
	switch r.Action {
	case ActionSteer:
		if r.ServiceChain == "" {
			c.add(k, field()+".serviceChain", "", "is required by action steer", "the name of a ServiceChain")
		}
	case ActionEncrypt, ActionForward, ActionDrop, ActionReject:
	default:
		enum(c, k, field()+".action", r.Action, ActionEncrypt, ActionSteer, ActionForward, ActionDrop, ActionReject)
		return
	}
	if r.Action != ActionSteer && r.ServiceChain != "" {
		c.add(k, field()+".serviceChain", r.ServiceChain, "is for action steer only", "action: steer, or leave it out")
	}
	if r.Description != "" {
		c.text(k, field()+".description", r.Description, 140)
	}
}

// text reports what is too long or not fit to be shown.
func (c *checker) text(k Key, field, s string, most int) {
	if len(s) > most {
		c.add(k, field, s, fmt.Sprintf("is %d bytes long", len(s)), fmt.Sprintf("at most %d bytes", most))
		return
	}
	for _, r := range s {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			c.add(k, field, s, fmt.Sprintf("has the invisible or malformed character %U", r), "letters, digits, punctuation and spaces")
			return
		}
	}
}

// siteRules checks what a site puts in force.
func (c *checker) siteRules(k Key, s *SiteRules) {
	const field = "spec.securityRules"
	c.notYet(k, field, true, "agents of this version cannot enforce security rules yet")
	for _, l := range []struct {
		direction Direction
		names     []string
	}{{Inbound, s.Inbound}, {Outbound, s.Outbound}} {
		list := field + "." + string(l.direction)
		if n := len(l.names); n > maxSiteSets {
			c.add(k, list, strconv.Itoa(n), fmt.Sprintf("has more than the %d rule sets that a site can have for a direction", maxSiteSets), "fewer, longer sets")
			continue
		}
		for i, name := range l.names {
			if first := slices.Index(l.names, name); first < i && name != "" {
				c.add(k, at(list, i), name, "stands in "+at(list, first)+" as well", "each set once")
			}
			set, ok := Lookup[*SecurityRuleSetSpec](c.docs, Key{Kind: KindSecurityRuleSet, Customer: k.Customer, Name: name})
			if ok && set.Direction != l.direction && set.Direction != "" {
				c.add(k, at(list, i), name, "is a rule set with direction "+Shorten(string(set.Direction)), "a rule set with direction "+string(l.direction))
			}
		}
	}
}

// maxSiteSets is how many rule sets a site has for a direction.
const maxSiteSets = 64
