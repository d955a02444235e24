package model

import (
	"iter"
	"slices"
)

// Reference is a field that names another document.
type Reference struct {
	// Field is the path of the field, such as spec.circuits[0].
	Field string
	// To is the document that it names. Its Name is empty where a field that has
	// to name one is not set.
	To Key
}

// References yields every reference of a document, in the order of its fields,
// the customer that it belongs to first. It is the only place that knows which
// fields refer to what: Validate reports those that lead nowhere, and nothing
// that another document refers to is deleted.
func References(d Document) iter.Seq[Reference] {
	return func(yield func(Reference) bool) {
		w := referrer{customer: d.Key.Customer, yield: yield}
		if d.Key.Kind.HasCustomer() {
			w.to("metadata.customer", Key{Kind: KindCustomer, Name: d.Key.Customer})
		}
		switch s := d.Spec.(type) {
		case *SiteSpec:
			w.site(s)
		case *NodeSpec:
			w.node(s)
		case *EndpointSpec:
			w.endpoint(s)
		case *EncryptionPolicySpec:
			if s.CryptoProfile != "" && !slices.Contains(BuiltInProfiles(), s.CryptoProfile) {
				w.own("spec.cryptoProfile", KindCryptoProfile, s.CryptoProfile)
			}
		case *ConnectionSpec:
			w.own("spec.encryptionPolicy", KindEncryptionPolicy, s.EncryptionPolicy)
			w.list("spec.endpoints", KindEndpoint, s.Endpoints)
			w.list("spec.circuits", KindCircuit, s.Circuits)
		case *SecurityRuleSetSpec:
			w.rules(s)
		case *ApplianceSpec:
			w.to("spec.node", Key{Kind: KindNode, Name: s.Node})
		case *ServiceChainSpec:
			for i, hop := range s.Hops {
				w.list(at("spec.hops", i)+".appliances", KindAppliance, hop.Appliances)
			}
		}
	}
}

// referrer yields the references of one document until its consumer stops.
type referrer struct {
	customer string
	yield    func(Reference) bool
	stopped  bool
}

func (w *referrer) to(field string, key Key) {
	w.stopped = w.stopped || !w.yield(Reference{Field: field, To: key})
}

// own is a reference to a document of the same customer.
func (w *referrer) own(field string, kind Kind, name string) {
	w.to(field, Key{Kind: kind, Customer: w.customer, Name: name})
}

func (w *referrer) list(field string, kind Kind, names []string) {
	for i, name := range names {
		if w.stopped {
			return
		}
		w.own(at(field, i), kind, name)
	}
}

func (w *referrer) site(s *SiteSpec) {
	if s.SecurityRules == nil {
		return
	}
	w.list("spec.securityRules.inbound", KindSecurityRuleSet, s.SecurityRules.Inbound)
	w.list("spec.securityRules.outbound", KindSecurityRuleSet, s.SecurityRules.Outbound)
}

func (w *referrer) node(s *NodeSpec) {
	if s.Owner != "" && s.Owner != OwnerProvider {
		w.to("spec.owner", Key{Kind: KindCustomer, Name: s.Owner})
	}
	for i, in := range s.Interfaces {
		if w.stopped {
			return
		}
		field := at("spec.interfaces", i)
		if in.Role == RoleLAN && in.Customer != "" {
			w.to(field+".customer", Key{Kind: KindCustomer, Name: in.Customer})
		}
		if in.Role != RoleCircuit {
			continue
		}
		if in.Link != nil {
			w.link(field+".link", *in.Link)
		}
		for j, l := range in.Links {
			if w.stopped {
				return
			}
			w.link(at(field+".links", j), l)
		}
	}
	for i, name := range s.Exemptions {
		w.to(at("spec.exemptions", i), Key{Kind: KindExemption, Name: name})
	}
}

func (w *referrer) link(field string, l LinkRef) {
	w.to(field+".customer", Key{Kind: KindCustomer, Name: l.Customer})
	w.to(field+".circuit", Key{Kind: KindCircuit, Customer: l.Customer, Name: l.Circuit})
}

func (w *referrer) endpoint(s *EndpointSpec) {
	w.own("spec.site", KindSite, s.Site)
	if s.External == nil || s.Node != "" {
		w.to("spec.node", Key{Kind: KindNode, Name: s.Node})
	}
	for i, u := range s.Underlay {
		if u.Circuit != "" {
			w.own(at("spec.underlay", i)+".circuit", KindCircuit, u.Circuit)
		}
	}
}

func (w *referrer) rules(s *SecurityRuleSetSpec) {
	for i := range s.Rules {
		r := &s.Rules[i]
		if w.stopped {
			return
		}
		if len(r.SourceSites) == 0 && len(r.DestinationSites) == 0 && r.ServiceChain == "" {
			continue
		}
		field := at("spec.rules", i)
		w.list(field+".sourceSites", KindSite, r.SourceSites)
		w.list(field+".destinationSites", KindSite, r.DestinationSites)
		if r.ServiceChain != "" {
			w.own(field+".serviceChain", KindServiceChain, r.ServiceChain)
		}
	}
}

// Use is a reference and the document that has it.
type Use struct {
	From Key
	Reference
}

// Uses are the references of documents of a set that lead to one of those in
// targets from outside of targets, in the order of the set's keys.
func Uses(docs map[Key]Document, targets map[Key]bool) []Use {
	var uses []Use
	for k, d := range docs {
		if targets[k] || d.Spec == nil {
			continue
		}
		for r := range References(d) {
			if targets[r.To] {
				uses = append(uses, Use{From: k, Reference: r})
			}
		}
	}
	slices.SortStableFunc(uses, func(a, b Use) int { return compareKeys(a.From, b.From) })
	return uses
}

// maxMissing is how many references of one document are told that lead nowhere.
const maxMissing = 100

// references reports what the references of a document lead to where nothing is.
func (c *checker) references(k Key) {
	missing := 0
	for r := range References(c.docs[k]) {
		switch {
		case r.Field == "metadata.customer":
			// Told with what is wrong with the name itself.
			continue
		case r.To.Customer != k.Customer && r.To.Name != "" && r.To.Kind.HasCustomer() && !c.has(Key{Kind: KindCustomer, Name: r.To.Customer}):
			// The customer has a field of its own.
			continue
		}
		if !c.exists(k, r.Field, r.To) {
			if missing++; missing == maxMissing {
				return
			}
		}
	}
}

// has reports whether a document exists, and tells nobody.
func (c *checker) has(k Key) bool {
	_, ok := c.docs[k]
	return ok
}
