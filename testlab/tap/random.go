package tap

// Content that was encrypted cannot be told from random bytes. The statistic
// is Pearson's chi-square over the 256 byte values: for random bytes its mean
// is 255 with a standard deviation of 22.6 (a little more for short windows).
const (
	// chiLimit is 15 standard deviations above the mean: chance does not reach
	// it in the life of this lab, while text (about 16 per byte), zeros (255
	// per byte) and packet headers exceed it in any window of minWindow bytes.
	chiLimit = 600
	// minWindow is the shortest content that is judged by itself; shorter
	// messages are judged together, per flow.
	minWindow = 64
	// flowWindow is how many bytes of a flow are judged together.
	flowWindow = 64 << 10
)

// histogram counts byte values.
type histogram struct {
	counts [256]uint32
	total  int
}

func (h *histogram) add(b []byte) {
	for _, v := range b {
		h.counts[v]++
	}
	h.total += len(b)
}

// chiSquare is 0 for an empty histogram.
func (h *histogram) chiSquare() float64 {
	if h.total == 0 {
		return 0
	}
	var squares uint64
	for _, c := range h.counts {
		squares += uint64(c) * uint64(c)
	}
	n := float64(h.total)
	return 256*float64(squares)/n - n
}

// predictable reports whether what was counted is not random; of less than
// minWindow bytes it says nothing.
func (h *histogram) predictable() bool { return h.total >= minWindow && h.chiSquare() > chiLimit }

// merge adds another histogram's counts.
func (h *histogram) merge(o *histogram) {
	for i, c := range o.counts {
		h.counts[i] += c
	}
	h.total += o.total
}

// flow judges one direction of one tunnel.
type flow struct {
	window histogram
}

// predictable reports whether content, or the flow up to it, is not random.
func (f *flow) predictable(content []byte) bool {
	var h histogram
	h.add(content)
	bad := h.predictable()
	f.window.merge(&h)
	if f.window.total >= flowWindow {
		bad = bad || f.window.predictable()
		f.window = histogram{}
	}
	return bad
}
