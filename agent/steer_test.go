package agent

import (
	"maps"
	"testing"

	"github.com/circuitseal/circuitseal/agent/liveness"
	"github.com/circuitseal/circuitseal/agent/plan"
)

// What is on its way out carries packets until its successor does, and again
// when that dies.
func TestAlive(t *testing.T) {
	old, fresh := plan.Member{Tunnel: "t", Number: 1, Retiring: true}, plan.Member{Tunnel: "t", Number: 1 | 1<<15}
	other := plan.Member{Tunnel: "u", Number: 2}
	up, down := liveness.Health{Known: true, Up: true}, liveness.Health{Known: true}
	for _, tt := range []struct {
		name    string
		members []plan.Member
		health  map[string]liveness.Health
		want    map[uint16]bool
	}{
		{"nothing is known", []plan.Member{other}, nil, map[uint16]bool{}},
		{"one is down", []plan.Member{other, {Tunnel: "v", Number: 3}}, map[string]liveness.Health{"u": down, "v": up}, map[uint16]bool{2: false, 3: true}},
		{"the successor is not up yet", []plan.Member{old, fresh}, map[string]liveness.Health{"t": up}, map[uint16]bool{1: true}},
		{"the successor is up", []plan.Member{old, fresh}, map[string]liveness.Health{"t": up, "t/ipsec": up}, map[uint16]bool{1: false, 1 | 1<<15: true}},
		{"the successor died", []plan.Member{old, fresh}, map[string]liveness.Health{"t": up, "t/ipsec": down}, map[uint16]bool{1: true, 1 | 1<<15: false}},
		{"the old one is unknown after a restart", []plan.Member{old, fresh}, map[string]liveness.Health{"t/ipsec": up}, map[uint16]bool{1: false, 1 | 1<<15: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := alive(plan.Group{Members: tt.members}, tt.health); !maps.Equal(got, tt.want) {
				t.Errorf("alive are %v, want %v", got, tt.want)
			}
		})
	}
}
