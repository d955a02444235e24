package netns

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Cut says how a link fails.
type Cut string

// The ways in which a link fails.
const (
	// Silent drops everything at Microsoft's edge; both ends keep their
	// carrier. It is what a fault inside the provider looks like.
	Silent Cut = "silent"
	// Carrier takes the edge's interface down, which the appliance sees.
	Carrier Cut = "carrier"
)

// sides are an edge's interfaces, one for each direction of its link.
var sides = []string{EdgeInterface, "gw0"}

// mtu is what the lab's interfaces begin with.
const mtu = 1500

// The tables that hold faults, each on the machine that it befalls.
const (
	cutTable  = "inet labcut"
	lossTable = "inet labloss"
	icmpTable = "inet labicmp"
)

// CutLink makes a link fail until RestoreLink.
func (l *Lab) CutLink(ctx context.Context, link Link, how Cut) error {
	edge, err := link.edge()
	if err != nil {
		return err
	}
	switch how {
	case Silent:
		return l.table(ctx, edge, cutTable,
			"chain forward { type filter hook forward priority -10; policy drop; }",
			"chain input { type filter hook input priority -10; policy drop; }")
	case Carrier:
		return batch(ctx, l.Namespace(edge), "link set "+EdgeInterface+" down")
	}
	return fmt.Errorf("cut %q: want %s or %s", string(how), Silent, Carrier)
}

// LoseOnLink drops each packet of a link, both ways, with a probability in
// percent, until RestoreLink.
func (l *Lab) LoseOnLink(ctx context.Context, link Link, percent float64) error {
	edge, err := link.edge()
	if err != nil {
		return err
	}
	if percent <= 0 || percent > 100 {
		return fmt.Errorf("lose %g %% on link %s: want more than 0 and at most 100", percent, link)
	}
	return l.table(ctx, edge, lossTable, fmt.Sprintf(
		"chain forward { type filter hook forward priority -10; numgen random mod 10000 < %d drop; }", int(percent*100)))
}

// DelayLink holds every packet of a link up, in each direction, until
// RestoreLink. It needs the kernel's netem.
func (l *Lab) DelayLink(ctx context.Context, link Link, by time.Duration) error {
	edge, err := link.edge()
	if err != nil {
		return err
	}
	var errs []error
	for _, i := range sides {
		errs = append(errs, l.tc(ctx, edge, "qdisc", "replace", "dev", i, "root", "netem", "delay", fmt.Sprintf("%dus", by.Microseconds())))
	}
	return errors.Join(errs...)
}

// NarrowLink gives a link an MTU, in bytes, until RestoreLink. The provider's
// routers tell nobody: see silence.
func (l *Lab) NarrowLink(ctx context.Context, link Link, bytes int) error {
	edge, err := link.edge()
	if err != nil {
		return err
	}
	return l.setMTU(ctx, edge, bytes)
}

// RestoreLink ends all faults of a link. Routes through the interface that a
// control run had on the edge do not come back after a Carrier cut.
func (l *Lab) RestoreLink(ctx context.Context, link Link) error {
	edge, err := link.edge()
	if err != nil {
		return err
	}
	errs := []error{
		l.untable(ctx, edge, cutTable), l.untable(ctx, edge, lossTable),
		batch(ctx, l.Namespace(edge), "link set "+EdgeInterface+" up"),
		l.setMTU(ctx, edge, mtu),
	}
	out, err := l.Run(ctx, edge, Spec{Path: "tc", Args: []string{"qdisc", "show"}})
	errs = append(errs, err)
	for line := range strings.Lines(out.Stdout) {
		if f := strings.Fields(line); len(f) > 4 && f[1] == "netem" {
			errs = append(errs, l.tc(ctx, edge, "qdisc", "delete", "dev", f[4], "root"))
		}
	}
	return errors.Join(errs...)
}

// FilterICMP makes a machine take and pass on no ICMP errors, as a firewall of
// somebody's does that knows no path MTU discovery, until RestoreICMP.
func (l *Lab) FilterICMP(ctx context.Context, h Host) error {
	var chains []string
	for _, hook := range []string{"input", "forward", "output"} {
		chains = append(chains, fmt.Sprintf(`chain %s { type filter hook %s priority -10
			icmp type { destination-unreachable, time-exceeded, parameter-problem } drop
			icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem } drop
		}`, hook, hook))
	}
	return l.table(ctx, h, icmpTable, chains...)
}

// RestoreICMP ends FilterICMP.
func (l *Lab) RestoreICMP(ctx context.Context, h Host) error { return l.untable(ctx, h, icmpTable) }

func (l *Lab) setMTU(ctx context.Context, h Host, bytes int) error {
	var lines []string
	for _, i := range sides {
		lines = append(lines, fmt.Sprintf("link set %s mtu %d", i, bytes))
	}
	return batch(ctx, l.Namespace(h), lines...)
}

func (l *Lab) tc(ctx context.Context, h Host, args ...string) error {
	_, err := l.Run(ctx, h, Spec{Path: "tc", Args: args})
	return err
}

// table puts an nftables table in the place of one of the same name.
func (l *Lab) table(ctx context.Context, h Host, name string, chains ...string) error {
	return nft(ctx, l.Namespace(h), fmt.Sprintf("table %s\ndelete table %s\ntable %s {\n%s\n}\n", name, name, name, strings.Join(chains, "\n")))
}

func (l *Lab) untable(ctx context.Context, h Host, name string) error {
	return nft(ctx, l.Namespace(h), fmt.Sprintf("table %s\ndelete table %s\n", name, name))
}
