package main

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/circuitseal/circuitseal/testlab/traffic"
)

// fuzzFlags are those of `traffic fuzz` alone.
type fuzzFlags struct {
	sender, gateway, own, pool string
	seed                       uint64
}

func (z *fuzzFlags) add(f *flag.FlagSet) {
	f.StringVar(&z.sender, "sender", "", "whose packets these are")
	f.StringVar(&z.gateway, "gateway", "", "IPv4 address of the machine that gets fuzz packets")
	f.StringVar(&z.own, "own", "", "the host's addresses")
	f.StringVar(&z.pool, "pool", "", "addresses and prefixes to send to, and from")
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
	for text := range strings.SplitSeq(z.pool, ",") {
		p, err := netip.ParsePrefix(text)
		if a, errA := netip.ParseAddr(text); errA == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return fmt.Errorf("--pool: %w", err)
		}
		f.Pool = append(f.Pool, p)
	}
	packets, err := f.Packets()
	if err != nil {
		return err
	}
	return traffic.Send(ctx, out, gateway, packets, pace)
}
