package guard

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"

	"github.com/circuitseal/circuitseal/agent/drift"
)

// nftHave is what the kernel has of one table.
type nftHave struct {
	exists bool
	// dormant tables, or ones that belong to a process, have flags; ours none.
	flags    uint32
	chains   []*nftables.Chain
	rules    map[string][]*nftables.Rule
	sets     []*nftables.Set
	elements map[string]map[string]bool
}

// elementsPerMessage keeps a list of elements inside one netlink attribute of
// 64 KiB.
const elementsPerMessage = 256

// socketBuffer takes a transaction of maxFlows elements in each of three sets.
const socketBuffer = 16 << 20

func (g *Guard) nftConn() (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(g.namespace.FD()), nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetWriteBuffer(socketBuffer), c.SetReadBuffer(socketBuffer))
	}))
	if err != nil {
		return nil, fmt.Errorf("open nftables socket: %w", err)
	}
	return conn, nil
}

// readNFT reads our table of one family, without elements unless asked to.
func (g *Guard) readNFT(conn *nftables.Conn, family nftables.TableFamily, elements bool) (nftHave, error) {
	have := nftHave{rules: make(map[string][]*nftables.Rule), elements: make(map[string]map[string]bool)}
	tables, err := conn.ListTablesOfFamily(family)
	if err != nil {
		return have, fmt.Errorf("list nftables tables: %w", err)
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == g.table && t.Family == family })
	if i < 0 {
		return have, nil
	}
	have.exists, have.flags = true, tables[i].Flags
	chains, err := conn.ListChainsOfTableFamily(family)
	if err != nil {
		return have, fmt.Errorf("list nftables chains: %w", err)
	}
	for _, c := range chains {
		if c.Table.Name != g.table {
			continue
		}
		have.chains = append(have.chains, c)
		if have.rules[c.Name], err = conn.GetRules(tables[i], c); err != nil {
			return have, fmt.Errorf("list rules of nftables chain %s: %w", c.Name, err)
		}
	}
	if have.sets, err = conn.GetSets(tables[i]); err != nil {
		return have, fmt.Errorf("list nftables sets: %w", err)
	}
	if !elements {
		return have, nil
	}
	for _, s := range have.sets {
		list, err := conn.GetSetElements(s)
		if err != nil {
			return have, fmt.Errorf("list elements of nftables set %s: %w", s.Name, err)
		}
		have.elements[s.Name] = make(map[string]bool, len(list))
		for _, e := range list {
			have.elements[s.Name][string(e.Key)] = true
		}
	}
	return have, nil
}

// nftDiff is how one table gets from what the kernel has to what is wanted.
type nftDiff struct {
	table nftTable
	// rebuild makes the table anew, when it is missing or is not what this
	// package makes.
	rebuild bool
	rules   []nftChain
	add     map[string][]string
	drop    map[string][]string
}

func (d nftDiff) empty() bool {
	return !d.rebuild && len(d.rules)+len(d.add)+len(d.drop) == 0
}

// String says what is going to be done.
func (d nftDiff) String() string {
	if d.rebuild {
		return "make the table"
	}
	var parts []string
	for _, c := range d.rules {
		parts = append(parts, "replace rules of "+c.name)
	}
	for _, s := range d.table.sets {
		if n := len(d.add[s.name]); n > 0 {
			parts = append(parts, fmt.Sprintf("add %d to %s", n, s.name))
		}
		if n := len(d.drop[s.name]); n > 0 {
			parts = append(parts, fmt.Sprintf("drop %d from %s", n, s.name))
		}
	}
	return strings.Join(parts, ", ")
}

func diffNFT(want nftTable, have nftHave) nftDiff {
	d := nftDiff{table: want, add: make(map[string][]string), drop: make(map[string][]string)}
	if !have.exists || have.flags != 0 || !sameChains(want, have) || !sameSets(want, have) {
		d.rebuild = true
		return d
	}
	for _, c := range want.chains {
		if !sameRules(want.family, c.rules, have.rules[c.name]) {
			d.rules = append(d.rules, c)
		}
	}
	for _, s := range want.sets {
		if keys := missing(s.elements, have.elements[s.name]); len(keys) > 0 {
			d.add[s.name] = keys
		}
		if keys := missing(have.elements[s.name], s.elements); len(keys) > 0 {
			d.drop[s.name] = keys
		}
	}
	return d
}

// closing is d without what opens anything. A table that has to be made anew
// is empty then.
func (d nftDiff) closing() nftDiff {
	d.add = nil
	d.table.sets = slices.Clone(d.table.sets)
	for i := range d.table.sets {
		d.table.sets[i].elements = nil
	}
	return d
}

func missing(from, in map[string]bool) []string {
	var out []string
	for k := range from {
		if !in[k] {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}

func sameChains(want nftTable, have nftHave) bool {
	if len(want.chains) != len(have.chains) {
		return false
	}
	for _, w := range want.chains {
		if !slices.ContainsFunc(have.chains, func(h *nftables.Chain) bool {
			return h.Name == w.name && h.Type == nftables.ChainTypeFilter &&
				h.Hooknum != nil && *h.Hooknum == w.hook &&
				h.Priority != nil && *h.Priority == w.priority &&
				h.Policy != nil && *h.Policy == nftables.ChainPolicyDrop
		}) {
			return false
		}
	}
	return true
}

func sameSets(want nftTable, have nftHave) bool {
	if len(want.sets) != len(have.sets) {
		return false
	}
	for _, w := range want.sets {
		if !slices.ContainsFunc(have.sets, func(h *nftables.Set) bool {
			return h.Name == w.name && h.KeyType.Bytes == w.key.Bytes && h.KeyType.GetNFTMagic() == w.key.GetNFTMagic() &&
				!h.IsMap && !h.Interval && !h.Constant && !h.Anonymous && !h.HasTimeout && !h.Dynamic
		}) {
			return false
		}
	}
	return true
}

func sameRules(family nftables.TableFamily, want [][]expr.Any, have []*nftables.Rule) bool {
	return slices.EqualFunc(want, have, func(w []expr.Any, h *nftables.Rule) bool {
		return slices.EqualFunc(w, h.Exprs, func(a, b expr.Any) bool {
			x, errX := expr.Marshal(byte(family), bare(a))
			y, errY := expr.Marshal(byte(family), bare(b))
			return errX == nil && errY == nil && bytes.Equal(x, y)
		})
	})
}

// bare is an expression without what the kernel adds or counts.
func bare(e expr.Any) expr.Any {
	switch e := e.(type) {
	case *expr.Counter:
		return &expr.Counter{}
	case *expr.Lookup:
		out := *e
		out.SetID = 0
		return &out
	}
	return e
}

// syncNFT brings the layer to p in one transaction, or does nothing when it is
// there. It only closes unless open is set.
func (g *Guard) syncNFT(p policy, open bool) error {
	// What changes while it is read has another generation than this.
	generation, err := g.asker.generation(g.namespace.FD())
	if err != nil {
		return err
	}
	now := time.Now()
	if g.settled.holds(generation, p, now) {
		return nil
	}
	g.settled = settled{}
	conn, err := g.nftConn()
	if err != nil {
		return err
	}
	var changed []fmt.Stringer
	same := true
	for _, want := range renderNFT(p) {
		have, err := g.readNFT(conn, want.family, true)
		if err != nil {
			return err
		}
		d := diffNFT(want, have)
		same = same && d.empty()
		if !open {
			d = d.closing()
		}
		if d.empty() {
			continue
		}
		changed = append(changed, drift.Text("table "+familyName(want.family)+" "+g.table+": "+d.String()))
		g.log.Info("change nftables", "table", g.table, "family", familyName(want.family), "change", d.String())
		if err := d.queue(conn, g.table); err != nil {
			return err
		}
	}
	if same {
		g.settled = settled{generation, p, now}
	}
	if len(changed) == 0 {
		return nil
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("change nftables table %s: %w", g.table, err)
	}
	for _, line := range changed {
		g.drift.Note(drift.GuardNFTables, line)
	}
	return nil
}

// queue puts the difference into the connection's transaction.
func (d nftDiff) queue(conn *nftables.Conn, name string) error {
	t := &nftables.Table{Name: name, Family: d.table.family}
	sets := make(map[string]*nftables.Set, len(d.table.sets))
	for _, s := range d.table.sets {
		sets[s.name] = &nftables.Set{Table: t, Name: s.name, KeyType: s.key}
	}
	if d.rebuild {
		// A table that is added first can be deleted whether it was there or not.
		conn.AddTable(t)
		conn.DelTable(t)
		conn.AddTable(t)
		d.rules, d.add = d.table.chains, make(map[string][]string)
		for _, s := range d.table.sets {
			if err := conn.AddSet(sets[s.name], nil); err != nil {
				return fmt.Errorf("make nftables set %s: %w", s.name, err)
			}
			d.add[s.name] = missing(s.elements, nil)
		}
		for _, c := range d.table.chains {
			policy := nftables.ChainPolicyDrop
			conn.AddChain(&nftables.Chain{Table: t, Name: c.name, Type: nftables.ChainTypeFilter, Hooknum: &c.hook, Priority: &c.priority, Policy: &policy})
		}
	}
	for _, c := range d.rules {
		chain := &nftables.Chain{Table: t, Name: c.name}
		conn.FlushChain(chain)
		for _, exprs := range c.rules {
			conn.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: exprs})
		}
	}
	for _, s := range d.table.sets {
		for keys := range slices.Chunk(d.add[s.name], elementsPerMessage) {
			if err := conn.SetAddElements(sets[s.name], elementsOf(keys)); err != nil {
				return fmt.Errorf("add to nftables set %s: %w", s.name, err)
			}
		}
		for keys := range slices.Chunk(d.drop[s.name], elementsPerMessage) {
			if err := conn.SetDeleteElements(sets[s.name], elementsOf(keys)); err != nil {
				return fmt.Errorf("drop from nftables set %s: %w", s.name, err)
			}
		}
	}
	return nil
}

func elementsOf(keys []string) []nftables.SetElement {
	out := make([]nftables.SetElement, 0, len(keys))
	for _, k := range keys {
		out = append(out, nftables.SetElement{Key: []byte(k)})
	}
	return out
}

// removeNFT deletes our tables.
func (g *Guard) removeNFT() error {
	conn, err := g.nftConn()
	if err != nil {
		return err
	}
	for _, t := range renderNFT(policy{}) {
		table := &nftables.Table{Name: g.table, Family: t.family}
		conn.AddTable(table)
		conn.DelTable(table)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("delete nftables table %s: %w", g.table, err)
	}
	return nil
}

func familyName(f nftables.TableFamily) string {
	if f == nftables.TableFamilyARP {
		return "arp"
	}
	return "inet"
}
