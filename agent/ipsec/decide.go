package ipsec

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/circuitseal/circuitseal/agent/plan"
)

const (
	// settles is how long a new SA carries packets before the one that it replaces
	// goes: what the far end has sent by that is on its way.
	settles = 2 * time.Second
	// handover is how long an SA of a connection that was replaced may be what the
	// policy does not allow any more, while the ends take up the new one after
	// another.
	handover = 3 * time.Minute
	// childless is how long an IKE SA may be without an ESP SA.
	childless = 5 * time.Second
	// left is how long it may be when another one has.
	left = time.Second
	// connecting is how long an attempt may go on before it is begun anew: the far
	// end may have come back meanwhile, and charon asks every 5 s.
	connecting = time.Minute
)

// view is what there is to know of a tunnel when its next steps are decided.
type view struct {
	tunnel  plan.IPsecTunnel
	backend Backend
	// name is that of its connection as it is to be, without whole where that cannot be
	// made.
	name connectionName
	// sas are all of the tunnel, with the names of their connections.
	sas []namedSA
	// silent tells that nothing comes back through the tunnel of what was sent.
	silent bool
	// due tells that it is time for another attempt, which it never is for a tunnel with a
	// problem.
	due bool
}

type namedSA struct {
	ikeSA
	connection connectionName
	// seen is for how long it has been what it is now: of an old connection,
	// childless, or connecting.
	seen time.Duration
}

// verdict is what is to be done, and what to say.
type verdict struct {
	initiate  bool
	terminate []termination
	// up is the SA that counts, nil for none.
	up *ikeSA
	// weakness is in what up, or what was taken down, is weaker than the policy.
	weakness string
	// quiet tells that nothing is left to do.
	quiet bool
}

// termination ends an IKE SA with all that it has, or its ESP SAs first.
type termination struct {
	id uint64
	// children are the ESP SAs that end by themselves, none where all does. An end that
	// is asked to end an ESP SA has done so before it answers (build_r in
	// src/libcharon/sa/ikev2/tasks/child_delete.c), and thus sends by its successor
	// before the one who asks takes no more of the old; of an IKE SA it answers first. A
	// gateway of another make may begin it anew.
	children []uint64
	// force does not wait for the other end to say that it has heard of it.
	force bool
	why   string
}

// decide is pure. The end that initiates is the one that chooses among several
// SAs: the youngest stays, the others go once it has settled. Both ends doing so
// could each end the one that the other keeps, and what the answering end ends, the
// other one's charon begins anew (destroy_and_reestablish in
// src/libcharon/sa/ikev2/tasks/child_delete.c).
func decide(v view) verdict {
	var d verdict
	end := func(s namedSA, why string) { d.terminate = append(d.terminate, termination{id: s.id, why: why}) }
	cut := func(s namedSA, why string) {
		d.terminate = append(d.terminate, termination{id: s.id, force: true, why: why})
	}
	var up, bare []namedSA
	begun, double := false, false
	for _, s := range v.sas {
		current := s.connection == v.name
		distrusted := !v.name.trusts(s.connection)
		switch {
		case s.connection.tunnel != v.name.tunnel:
			cut(s, "its number is another tunnel's now")
		case s.state == ikeDeleting || s.state == ikeRekeyed:
		case s.up():
			weak := judge(v.tunnel, v.backend, s.ikeSA)
			switch {
			case weak != "" && current:
				d.weakness = weak
				cut(s, "it is weaker than its policy: "+weak)
			case (weak != "" || distrusted) && s.seen > handover:
				cut(s, fmt.Sprintf("the policy has changed %s ago, and it has not: %s", s.seen.Round(time.Second), cmp.Or(weak, "other identities or certificates are trusted now")))
			default:
				up = append(up, s)
			}
		case s.established:
			bare = append(bare, s)
			begun = begun || current && s.seen <= childless
		case !current && (v.name.whole != "" || distrusted):
			end(s, "its connection was replaced")
		case s.initiator && s.seen > connecting && v.due:
			end(s, "it does not get anywhere")
		default:
			begun = begun || s.initiator
		}
	}
	slices.SortFunc(up, func(a, b namedSA) int { return younger(v.name, a, b) })
	for i, s := range up {
		if i == 0 {
			d.up = &s.ikeSA
			continue
		}
		best := up[0]
		age := best.child().age
		settled := best.connection == v.name && age >= settles
		if settled && v.tunnel.Initiates {
			x := termination{id: s.id, why: fmt.Sprintf("IKE SA %d has taken over", best.id)}
			if !v.tunnel.Policy.External {
				x.children = s.carriers()
			}
			d.terminate = append(d.terminate, x)
		}
	}
	if len(up) > 0 && !v.tunnel.Policy.External {
		best, ids := up[0].spare()
		if len(ids) > 0 {
			double = true
			if best.age >= settles && v.tunnel.Initiates {
				d.terminate = append(d.terminate, termination{id: up[0].id, children: ids, why: "it has an ESP SA more than it needs"})
			}
		}
	}
	for _, s := range bare {
		if s.seen > childless || len(up) > 0 && s.seen > left {
			end(s, "it has no ESP SA")
		}
	}
	currentUp := len(up) > 0 && up[0].connection == v.name
	d.initiate = v.tunnel.Initiates && !begun && v.due && (!currentUp || v.silent)
	d.quiet = currentUp && len(up) == 1 && !double && len(bare) == 0 && len(d.terminate) == 0 && !v.silent
	if d.up != nil {
		d.weakness = judge(v.tunnel, v.backend, *d.up)
	}
	return d
}

// younger sorts the SA first that stays: one of the connection as it is to be,
// then that with the last ESP SA, by which the initiating end sends (charon names it in
// the kernel's policy, add_policy in kernel_netlink_ipsec.c), then the last one
// established, and by a number that both ends know among those of the same second.
func younger(name connectionName, a, b namedSA) int {
	rank := func(s namedSA) int {
		if s.connection == name {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.child().age, b.child().age), cmp.Compare(a.age, b.age), cmp.Compare(a.spis[0], b.spis[0]))
}
