package classifier

import (
	"maps"
	"net/netip"
	"slices"
	"testing"

	"github.com/circuitseal/circuitseal/agent/plan"
)

// contents are the maps of prefixes.
func (b *bed) contents() (map[bpfPrefixKey]bpfLocal, map[bpfPrefixKey]bpfRemote) {
	b.t.Helper()
	s, err := b.classifier.readState()
	if err != nil {
		b.t.Fatal(err)
	}
	return s.locals, s.remotes
}

// Adjust leaves what a Sync of the whole plan would.
func TestAdjustIsPartOfSync(t *testing.T) {
	b := newBed(t)
	more := plan.Classifier{
		Locals:  []plan.Local{{Tenant: 8, Prefix: netip.MustParsePrefix("10.77.0.0/16"), Interface: "lan8"}},
		Remotes: []plan.Remote{{Tenant: 7, Prefix: netip.MustParsePrefix("10.78.0.0/16"), Group: 1}},
	}
	locals, remotes := b.contents()
	if err := b.classifier.Adjust(t.Context(), more, true); err != nil {
		t.Fatal(err)
	}
	adjustedLocals, adjustedRemotes := b.contents()
	next := b.plan
	next.Locals, next.Remotes = slices.Concat(next.Locals, more.Locals), slices.Concat(next.Remotes, more.Remotes)
	b.sync(next, missing)
	syncedLocals, syncedRemotes := b.contents()
	if !maps.Equal(adjustedLocals, syncedLocals) || !maps.Equal(adjustedRemotes, syncedRemotes) || len(syncedLocals) != len(locals)+1 {
		t.Errorf("adjusted %v %v, synced %v %v", adjustedLocals, adjustedRemotes, syncedLocals, syncedRemotes)
	}
	if err := b.classifier.Adjust(t.Context(), more, false); err != nil {
		t.Fatal(err)
	}
	if l, r := b.contents(); !maps.Equal(l, locals) || !maps.Equal(r, remotes) {
		t.Errorf("adjusted back %v %v, had %v %v", l, r, locals, remotes)
	}
	if err := b.classifier.Adjust(t.Context(), more, false); err != nil {
		t.Errorf("remove again: %v", err)
	}
}

// What the kernel does not have as the same tenant's gets no prefix.
func TestAdjustKeepsTenantsApart(t *testing.T) {
	b := newBed(t)
	locals, remotes := b.contents()
	prefix := netip.MustParsePrefix("10.77.0.0/16")
	for name, c := range map[string]plan.Classifier{
		"another tenant's LAN":    {Locals: []plan.Local{{Tenant: 7, Prefix: prefix, Interface: "lan8"}}},
		"no LAN":                  {Locals: []plan.Local{{Tenant: 8, Prefix: prefix, Interface: "other"}}},
		"no interface":            {Locals: []plan.Local{{Tenant: 8, Prefix: prefix, Interface: "nowhere"}}},
		"a tunnel":                {Locals: []plan.Local{{Tenant: 7, Prefix: prefix, Interface: b.instance.DevicePrefix() + "1"}}},
		"another tenant's group":  {Remotes: []plan.Remote{{Tenant: 8, Prefix: prefix, Group: 1}}},
		"no group":                {Remotes: []plan.Remote{{Tenant: 7, Prefix: prefix, Group: 99}}},
		"a prefix with host bits": {Remotes: []plan.Remote{{Tenant: 7, Prefix: netip.MustParsePrefix("10.77.0.1/16"), Group: 1}}},
	} {
		if err := b.classifier.Adjust(t.Context(), c, true); err == nil {
			t.Errorf("%s got a prefix", name)
		}
	}
	if l, r := b.contents(); !maps.Equal(l, locals) || !maps.Equal(r, remotes) {
		t.Errorf("maps %v %v, had %v %v", l, r, locals, remotes)
	}
}
