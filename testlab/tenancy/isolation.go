package tenancy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/rig"
)

// pool is where a customer that keeps to no rules sends to: the prefixes and
// hosts that all have in common, everybody's underlay and probe addresses, and
// what is nobody's.
func (t *Tenants) pool() string {
	p := []string{premisesPrefix, azurePrefix, premisesHost, premisesHost, azureHost, azureHost, premisesRouter, azureRouter,
		extraPrefix(0).String(), extraRouter, nvaFirst, nvaSecond, nvaGateway, "192.0.2.1", "192.0.2.41", "8.8.8.8",
		"255.255.255.255", "224.0.0.5", "fdc5:5ea1:7d10::1:1", "fdc5:5ea1:7d10::1:2", "fe80::1", "ff02::1", "2001:db8::/32"}
	for _, c := range t.Sample {
		_, ours, theirs := c.link(0)
		p = append(p, ours.String(), theirs.String())
	}
	return strings.Join(p, ",")
}

// Crossings is what a fuzz from all sampled customers' hosts came to.
type Crossings struct {
	Customers int `json:"customers"`
	// Sent and Received count packets; Crossed those that another customer's host
	// received.
	Sent     int `json:"sent"`
	Received int `json:"received"`
	Crossed  int `json:"crossed"`
}

// Fuzz sends count packets from every host of every sampled customer, and counts
// who receives whose. That a customer's hosts received nothing of their own is
// an error: then the fuzz says nothing.
func (t *Tenants) Fuzz(ctx context.Context, seed uint64, count int) (Crossings, error) {
	r := Crossings{Customers: len(t.Sample)}
	witnesses := map[netns.Host]*rig.Witness{}
	for _, c := range t.Sample {
		for _, h := range []netns.Host{c.HQ(), c.VNet()} {
			w, err := t.Rig.StartWitness(ctx, h)
			if err != nil {
				return r, err
			}
			witnesses[h] = w
		}
	}
	for _, c := range t.Sample {
		for h, gateway := range map[netns.Host]string{c.HQ(): premisesRouter, c.VNet(): azureRouter} {
			seed++
			err := t.Rig.SendFuzz(ctx, rig.Fuzz{From: h, Sender: c.Name(), Interface: "eth0", Gateway: gateway,
				Pool: t.pool(), Seed: seed, Count: count, Pace: 200 * time.Microsecond})
			if err != nil {
				return r, err
			}
			r.Sent += count
		}
	}
	var errs []error
	for _, c := range t.Sample {
		for _, h := range []netns.Host{c.HQ(), c.VNet()} {
			seen, err := witnesses[h].Stop()
			if err != nil {
				return r, err
			}
			for sender, n := range seen {
				r.Received += n
				if sender != c.Name() {
					r.Crossed += n
					errs = append(errs, fmt.Errorf("%s received %d packets of %s (seeds up to %d)", h, n, sender, seed))
				}
			}
			if seen[c.Name()] == 0 {
				errs = append(errs, fmt.Errorf("%s received nothing of its own", h))
			}
		}
	}
	return r, errors.Join(errs...)
}

// Apart makes sure that a sampled customer reaches its own far side and, that
// gone, nobody else's, though all have the same addresses.
func (t *Tenants) Apart(ctx context.Context, c Customer) error {
	far := netip.MustParseAddr(azureHost)
	if err := t.Rig.ReachAddress(ctx, c.HQ(), far, 10*time.Second, time.Second); err != nil {
		return err
	}
	if err := t.Rig.Lab.IP(ctx, c.VNet(), "link set eth0 down"); err != nil {
		return err
	}
	if err := t.Rig.ReachAddress(ctx, c.HQ(), far, 1500*time.Millisecond, 500*time.Millisecond); err == nil {
		return fmt.Errorf("%s reaches %s while its own host there is down", c.HQ(), far)
	}
	return t.Rig.Lab.IP(ctx, c.VNet(), "link set eth0 up", "route replace default via "+azureRouter)
}
