package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/circuitseal/circuitseal/agent/offline"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// ageEach is how often it is looked at how long the controller has been away: a
// machine that slept finds out soon after.
const ageEach = time.Minute

// Contacted notes that the controller is there. It implements uplink.Node.
func (n *node) Contacted() {
	if err := n.contact.Heard(); err != nil {
		n.log.Error("time of the last contact is not kept", "error", err)
	}
	n.mu.Lock()
	waiting := len(n.overdue) > 0
	n.mu.Unlock()
	if waiting {
		n.look()
	}
}

// look has closed what is overdue by now, and opened what no longer is.
func (n *node) look() {
	select {
	case n.aged <- struct{}{}:
	default:
	}
}

// watchAge plans anew when groups become overdue, and when they no longer are.
func (n *node) watchAge(ctx context.Context) error {
	for {
		next := n.replan()
		if next == 0 || next > ageEach {
			next = ageEach
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-n.aged:
		case <-time.After(next):
		}
	}
}

// replan takes the state at hand again when other groups than those planned for
// are overdue. next is how long it takes until there are more, 0 for never.
func (n *node) replan() (next time.Duration) {
	n.making.Lock()
	defer n.making.Unlock()
	n.mu.Lock()
	h, state, before := n.header, n.state, n.overdue
	n.mu.Unlock()
	groups, next, _ := n.overdueGroups(state)
	same := slices.EqualFunc(groups, before, func(a, b desired.Group) bool { return a.ID == b.ID })
	if h.Node == "" || same {
		return next
	}
	for _, g := range groups {
		n.log.Warn("the controller has been silent for too long", "group", g.ID, "limit", g.MaxOffline, "action", g.OfflineAction.String())
	}
	if len(groups) == 0 {
		n.log.Info("no group is without its controller for too long any more")
	}
	n.bring(h, state)
	return next
}

func (n *node) overdueGroups(s desired.State) (groups []desired.Group, next, age time.Duration) {
	age, err := n.contact.Age()
	if err != nil {
		n.log.Error("time of the last contact is not kept", "error", err)
	}
	groups, next = offline.Overdue(s, age)
	return groups, next, age
}

// closedGroups are those to be planned closed, and why.
func closedGroups(overdue []desired.Group) map[string]string {
	closed := map[string]string{}
	for _, g := range overdue {
		// Whatever is not known to go on is closed.
		if g.OfflineAction != desired.OfflineContinue {
			closed[g.ID] = fmt.Sprintf("closed: nothing was heard of the controller for longer than the %s of its policy (maxOfflineAge)", g.MaxOffline)
		}
	}
	return closed
}

// offlineProblems are sentences about groups that are overdue.
func offlineProblems(overdue []desired.Group, age time.Duration) []string {
	var out []string
	for _, g := range overdue {
		does := "it goes on, as its policy says (offlineAction)"
		if g.OfflineAction != desired.OfflineContinue {
			does = "its tunnels are closed until the controller answers (offlineAction)"
		}
		out = append(out, fmt.Sprintf("connection %s: nothing was heard of the controller for %s, and its policy allows %s (maxOfflineAge): %s",
			g.ID, age.Round(time.Second), g.MaxOffline, does))
	}
	return out
}
