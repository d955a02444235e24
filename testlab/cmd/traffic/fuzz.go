package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/circuitseal/circuitseal/testlab/traffic"
)

// fuzzFlags are those of `traffic fuzz` and `traffic tagfuzz` alone.
type fuzzFlags struct {
	sender, gateway, own, pool string
	flows, others              string
	seed                       uint64
}

func (z *fuzzFlags) add(f *flag.FlagSet) {
	f.StringVar(&z.sender, "sender", "", "whose packets these are")
	f.StringVar(&z.gateway, "gateway", "", "IPv4 address of the machine that gets fuzz packets")
	f.StringVar(&z.own, "own", "", "the host's addresses")
	f.StringVar(&z.pool, "pool", "", "addresses and prefixes to send to, and from")
	f.StringVar(&z.flows, "outer", "", "what may pass, and is not sent: tags/source:port/to:port/link,…")
	f.StringVar(&z.others, "others", "", "what may pass elsewhere")
	f.Uint64Var(&z.seed, "seed", 1, "repeats the same packets")
}

func (z *fuzzFlags) send(ctx context.Context, out string, f traffic.Fuzz, pace time.Duration) error {
	gateway, err := netip.ParseAddr(z.gateway)
	if err != nil {
		return fmt.Errorf("--gateway: %w", err)
	}
	f.Sender, f.Seed = z.sender, z.seed
	for text := range strings.SplitSeq(z.own, ",") {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("--own: %w", err)
		}
		f.Own = append(f.Own, a)
	}
	if f.Pool, err = z.prefixes(); err != nil {
		return err
	}
	packets, err := f.Packets()
	if err != nil {
		return err
	}
	return traffic.Send(ctx, out, gateway, packets, pace)
}

func (z *fuzzFlags) prefixes() (pool []netip.Prefix, err error) {
	for text := range strings.SplitSeq(z.pool, ",") {
		p, err := netip.ParsePrefix(text)
		if a, errA := netip.ParseAddr(text); errA == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return nil, fmt.Errorf("--pool: %w", err)
		}
		pool = append(pool, p)
	}
	return pool, nil
}

// tags sends frames with any tags to a hardware address; mark is the upper half of
// the links' marks.
func (z *fuzzFlags) tags(out, mac string, mark int, f traffic.TagFuzz) (err error) {
	f.Sender, f.Seed = z.sender, z.seed
	if f.To, err = net.ParseMAC(mac); err != nil {
		return fmt.Errorf("--mac: %w", err)
	}
	if f.Flows, err = traffic.ParseOuterFlows(z.flows, mark); err != nil {
		return fmt.Errorf("--outer: %w", err)
	}
	if f.Others, err = traffic.ParseOuterFlows(z.others, mark); err != nil {
		return fmt.Errorf("--others: %w", err)
	}
	if f.Pool, err = z.prefixes(); err != nil {
		return err
	}
	i, err := net.InterfaceByName(out)
	if err != nil {
		return fmt.Errorf("find interface %s: %w", out, err)
	}
	f.From = i.HardwareAddr
	frames, err := f.Frames()
	if err != nil {
		return err
	}
	return traffic.SendFrames(out, frames)
}
