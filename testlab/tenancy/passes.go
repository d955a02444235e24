package tenancy

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/circuitseal/circuitseal/testlab/netns"
)

// entry is a line of an agent's log, as far as it is read here.
type entry struct {
	Time    time.Time     `json:"time"`
	Message string        `json:"msg"`
	Total   time.Duration `json:"total"`
	Tunnel  string        `json:"tunnel"`
	Puts    int           `json:"puts"`
	Removes int           `json:"removes"`
}

// log are the entries of an agent since then.
func (t *Tenants) log(h netns.Host, since time.Time) ([]entry, error) {
	f, err := os.Open(filepath.Join(t.dir, "agent-"+string(h)+".log"))
	if err != nil {
		return nil, fmt.Errorf("read the agent's log: %w", err)
	}
	defer func() { _ = f.Close() }()
	var all []entry
	s := bufio.NewScanner(f)
	s.Buffer(nil, 64<<20)
	for s.Scan() {
		var e entry
		if json.Unmarshal(s.Bytes(), &e) == nil && e.Time.After(since) {
			all = append(all, e)
		}
	}
	return all, s.Err()
}

// Idle is what a node does while nothing changes.
type Idle struct {
	Passes int `json:"passes"`
	// PassMS is the median duration of a pass that changes nothing; ProcessorMS
	// what the agent takes of a processor for each, with all that it does beside.
	PassMS      float64 `json:"passMs"`
	BestMS      float64 `json:"passBestMs"`
	ProcessorMS float64 `json:"processorMsPerPass"`
}

// Idle watches an agent for a time in which nothing changes.
func (t *Tenants) Idle(h netns.Host, during time.Duration) (Idle, error) {
	pid := t.Rig.Agent(h).PID()
	before, err := processor(pid)
	if err != nil {
		return Idle{}, err
	}
	start := time.Now()
	time.Sleep(during)
	after, err := processor(pid)
	if err != nil {
		return Idle{}, err
	}
	log, err := t.log(h, start)
	if err != nil {
		return Idle{}, err
	}
	var took []float64
	for _, e := range log {
		if e.Message == "pass" {
			took = append(took, milliseconds(e.Total))
		}
	}
	if len(took) == 0 {
		return Idle{}, errors.New("the agent made no pass")
	}
	return Idle{Passes: len(took), PassMS: median(took), BestMS: slices.Min(took), ProcessorMS: milliseconds(after-before) / float64(len(took))}, nil
}

// processor is the time that a process has had one (proc_pid_stat(5)).
func processor(pid int) (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read processor time: %w", err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every architecture that we build for
	var ticks int64
	for _, text := range f[11:13] {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * tick, nil
}

// Writes are what a node's drivers wrote for one change.
type Writes struct {
	// Tunnels are writes to tunnels' devices, Others those of them to other
	// customers'.
	Tunnels int `json:"tunnels"`
	Others  int `json:"ofOthers"`
	// Maps are entries of the classifier's maps, Rest all writes to circuits,
	// addresses, routes, slow paths and guard.
	Maps int `json:"classifierEntries"`
	Rest int `json:"linksRoutesGuard"`
	// Kernel counts what the kernel told of changed links, addresses, routes and
	// rules, in all namespaces of the node.
	Kernel int `json:"rtnetlinkMessages"`
}

// writes counts those in an agent's log since then: every driver tells each
// before it is made.
func (t *Tenants) writes(h netns.Host, c Customer, since time.Time) (Writes, error) {
	log, err := t.log(h, since)
	if err != nil {
		return Writes{}, err
	}
	var w Writes
	for _, e := range log {
		switch e.Message {
		case "WireGuard":
			w.Tunnels++
			if !strings.HasPrefix(e.Tunnel, c.Name()+"/") {
				w.Others++
			}
		case "change the classifier":
			w.Maps += e.Puts + e.Removes
		case "circuit namespace", "slow path", "change guard maps", "change nftables":
			w.Rest++
		}
	}
	return w, nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func mean(v []float64) (sum float64) {
	for _, x := range v {
		sum += x / float64(len(v))
	}
	return sum
}
