package tenancy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/rig"
)

// Report is build/bench/tenancy.json.
type Report struct {
	Customers int `json:"customers"`
	Tunnels   int `json:"tunnels"`
	// UpSeconds is from the start of `sealctl apply` until every tunnel is up at
	// both ends; asked: at most 20.
	UpSeconds float64         `json:"upSeconds"`
	Idle      map[string]Idle `json:"idle"`
	// Memory is of each node's agent and WireGuard process.
	Memory map[string]rig.Memory `json:"memory"`
	// One and Many are how long a change takes with one customer and with many, in
	// turns; Alone is with one before the others were there. The ratios are those
	// of the medians of Many and One, until both nodes have written it and until a
	// packet passes by it.
	Alone        Durations `json:"changeAlone"`
	One          Durations `json:"changeOne"`
	Many         Durations `json:"changeMany"`
	WrittenRatio float64   `json:"changeWrittenRatio"`
	CarriedRatio float64   `json:"changeCarriedRatio"`
	// Writes are what one change made both nodes write.
	Writes    map[string]Writes `json:"writes"`
	Crossings Crossings         `json:"crossings"`
	// Load is how many tasks wanted one of so many processors when it began and
	// when it ended: other work on the machine is in all figures.
	Load       [2]float64 `json:"load"`
	Processors int        `json:"processors"`
}

// Durations are those of changes, in the order in which they were made.
type Durations struct {
	Applied   []float64 `json:"appliedMs"`
	Written   []float64 `json:"writtenMs"`
	Carried   []float64 `json:"carriedMs"`
	Processor []float64 `json:"processorMs"`
}

func (d *Durations) add(c Change) {
	d.Applied = append(d.Applied, milliseconds(c.Applied))
	d.Written = append(d.Written, milliseconds(c.Written))
	d.Carried = append(d.Carried, milliseconds(c.Carried))
	d.Processor = append(d.Processor, milliseconds(c.Processor))
}

// String has the medians.
func (d Durations) String() string {
	return fmt.Sprintf("applied %.0f, written %.0f, carries %.0f ms, in which daemons had %.0f ms of processors",
		median(d.Applied), median(d.Written), median(d.Carried), mean(d.Processor))
}

// Measure stands many customers beside one and compares.
func Measure(ctx context.Context, c Config, changes, fuzz int, out io.Writer) (r Report, err error) {
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(out, format+"\n", args...) }
	r = Report{Customers: c.Customers, Tunnels: 2 * c.Customers, Processors: processors(), Memory: map[string]rig.Memory{}, Idle: map[string]Idle{}}
	r.Load[0] = load()
	single := c
	single.Customers, single.Sample, single.Logs = 1, 1, filepath.Join(c.Logs, "one")
	one, err := New(ctx, single)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, one.Close()) }()
	if _, err := one.Connect(ctx, 60*time.Second); err != nil {
		return r, err
	}
	change := func(t *Tenants, into *Durations) error {
		took, err := t.AddPrefix(ctx, t.Sample[0])
		into.add(took)
		// What follows the change is not part of the next one.
		time.Sleep(time.Second)
		return err
	}
	for range changes {
		if err := change(one, &r.Alone); err != nil {
			return r, err
		}
	}
	say("one customer: a change is %s", r.Alone)

	c.Logs = filepath.Join(c.Logs, "many")
	start := time.Now()
	many, err := New(ctx, c)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, many.Close()) }()
	say("%d customers: both nodes guard their circuits after %.1f s", c.Customers, time.Since(start).Seconds())
	up, err := many.Connect(ctx, 600*time.Second)
	if err != nil {
		return r, err
	}
	r.UpSeconds = up.Seconds()
	say("%d tunnels up at both ends after %.1f s", r.Tunnels, r.UpSeconds)
	time.Sleep(10 * time.Second)
	for name, h := range map[string]netns.Host{"premises": Premises, "azure": Azure} {
		if r.Idle[name], err = many.Idle(h, 10*time.Second); err != nil {
			return r, err
		}
		if err := many.memory(h, name, r.Memory); err != nil {
			return r, err
		}
	}
	for range changes {
		if err := errors.Join(change(one, &r.One), change(many, &r.Many)); err != nil {
			return r, err
		}
	}
	r.WrittenRatio = median(r.Many.Written) / median(r.One.Written)
	r.CarriedRatio = median(r.Many.Carried) / median(r.One.Carried)
	if r.Writes, err = many.Touched(ctx, many.Sample[0]); err != nil {
		return r, err
	}
	if r.Crossings, err = many.Fuzz(ctx, 1, fuzz); err != nil {
		return r, err
	}
	r.Load[1] = load()
	return r, many.Apart(ctx, many.Sample[len(many.Sample)-1])
}

func (t *Tenants) memory(h netns.Host, name string, into map[string]rig.Memory) (err error) {
	if into[name+" agent"], err = rig.ReadMemory(t.Rig.Agent(h).PID()); err != nil {
		return err
	}
	for _, pid := range t.Rig.WireGuardPIDs(h) {
		if into[name+" wireguard"], err = rig.ReadMemory(pid); err != nil {
			return err
		}
	}
	return nil
}

// load is the load average of the last minute (proc_loadavg(5)).
func load() (l float64) {
	b, err := os.ReadFile("/proc/loadavg")
	if err == nil {
		_, _ = fmt.Sscan(string(b), &l)
	}
	return l
}

func processors() int {
	b, _ := os.ReadFile("/proc/cpuinfo")
	return strings.Count(string(b), "processor\t:")
}

// Print writes the table.
func (r Report) Print(out io.Writer) error {
	var b strings.Builder
	row := func(what, format string, args ...any) {
		_, _ = fmt.Fprintf(&b, "%-46s %s\n", what, fmt.Sprintf(format, args...))
	}
	b.WriteString("\n")
	row("customers, tunnels", "%d, %d", r.Customers, r.Tunnels)
	row("apply to all tunnels up, both ends", "%.1f s (asked: at most 20)", r.UpSeconds)
	for _, name := range []string{"premises", "azure"} {
		i := r.Idle[name]
		row("pass that changes nothing, "+name, "median %.0f ms, best %.0f ms, %.0f ms of a processor (asked: at most 200)", i.PassMS, i.BestMS, i.ProcessorMS)
	}
	for _, name := range []string{"premises", "azure"} {
		row("memory, "+name, "agent %.0f MiB, WireGuard process %.0f MiB", r.Memory[name+" agent"].Now, r.Memory[name+" wireguard"].Now)
	}
	row("a change, one customer, before the others came", "%s", r.Alone)
	row("a change, one customer", "%s", r.One)
	row("the same change, beside all others", "%s", r.Many)
	row("ratio", "%.2f written, %.2f carries (asked: at most 1.3)", r.WrittenRatio, r.CarriedRatio)
	for _, name := range []string{"premises", "azure"} {
		w := r.Writes[name]
		row("its writes, "+name, "%d to tunnels, %d of these other customers', %d map entries, %d else; %d told by the kernel",
			w.Tunnels, w.Others, w.Maps, w.Rest, w.Kernel)
	}
	row("fuzz", "%d customers sent %d packets; %d received, %d by another customer", r.Crossings.Customers, r.Crossings.Sent, r.Crossings.Received, r.Crossings.Crossed)
	row("load of the machine", "%.1f to %.1f on %d processors", r.Load[0], r.Load[1], r.Processors)
	_, err := io.WriteString(out, b.String())
	return err
}
