package api

import (
	"slices"
	"testing"

	"github.com/circuitseal/circuitseal/controller/rotate"
)

func TestPlacesOfPresharedKeys(t *testing.T) {
	for _, tt := range []struct {
		name string
		r    rotate.Report
		want []string
	}{
		{"no node was enrolled", rotate.Report{Nodes: [2]string{"prem-1", "nva-1"}}, []string{"controller"}},
		{"one has it", rotate.Report{Nodes: [2]string{"prem-1", "nva-1"}, Held: [2][]uint64{{6}, {6, 7}}}, []string{"controller", "nva-1"}},
		{"both have it", rotate.Report{Nodes: [2]string{"prem-1", "nva-1"}, Held: [2][]uint64{{7}, {7}}}, []string{"controller", "prem-1", "nva-1"}},
		{"the other end is a gateway's", rotate.Report{Nodes: [2]string{"", "nva-1"}, Held: [2][]uint64{nil, {7}}}, []string{"controller", "nva-1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := places(tt.r, 7); !slices.Equal(got, tt.want) {
				t.Errorf("at %v, want %v", got, tt.want)
			}
		})
	}
}
