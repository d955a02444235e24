// Package bench measures the product against what the same kernel and the same
// WireGuard do without it. It knows how such a comparison is made fair (both
// sides up at the same time, measured in turns) and how sure its result is; it
// decides nothing.
package bench

import (
	"math/rand/v2"
	"slices"
)

// Comparison is a line of build/bench/tunnel.json.
type Comparison struct {
	Backend string `json:"backend"`
	// Ratio is the median of ours over the median by hand.
	Ratio  float64 `json:"ratio"`
	Ours   float64 `json:"ours_gbps"`
	ByHand float64 `json:"byhand_gbps"`
	Pairs  int     `json:"pairs"`
	// Interval holds the ratio with 95 % confidence.
	Interval [2]float64 `json:"interval"`
	// All that was measured, in order.
	OursAll   []float64 `json:"ours_all"`
	ByHandAll []float64 `json:"byhand_all"`
}

// resamples of the bootstrap: enough for two digits of the interval.
const resamples = 10_000

// Compare takes pairs measured in turns. The interval is a percentile
// bootstrap over whole pairs, since neighbours in time share their disturbance.
func Compare(backend string, ours, byHand []float64) Comparison {
	n := min(len(ours), len(byHand))
	c := Comparison{Backend: backend, Pairs: n, OursAll: ours[:n], ByHandAll: byHand[:n]}
	if n == 0 {
		return c
	}
	c.Ours, c.ByHand = median(ours[:n]), median(byHand[:n])
	c.Ratio = c.Ours / c.ByHand
	// The same measurements give the same interval.
	r := rand.New(rand.NewPCG(1, 2))
	ratios := make([]float64, resamples)
	a, b := make([]float64, n), make([]float64, n)
	for i := range ratios {
		for j := range n {
			k := r.IntN(n)
			a[j], b[j] = ours[k], byHand[k]
		}
		ratios[i] = median(a) / median(b)
	}
	slices.Sort(ratios)
	c.Interval = [2]float64{ratios[resamples*25/1000], ratios[resamples*975/1000]}
	return c
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}
