package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/rig"
	"github.com/circuitseal/circuitseal/testlab/tap"
	"github.com/circuitseal/circuitseal/testlab/traffic"
)

// hqToVNet is the question most steps ask.
func hqToVNet(deadline time.Duration) rig.Probe {
	return rig.Probe{From: netns.HQ, To: netns.VNet, Deadline: deadline}
}

// control proves that the tap can fire.
func (s *story) control(ctx context.Context) (err error) {
	s.say("control run: no agents, circuit interfaces in the main namespace, kernel routes")
	r, err := rig.New(ctx, rig.Config{Log: s.config.Log, Bin: s.config.Bin, Dir: filepath.Join(s.config.Logs, "control"), Control: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	t, err := r.StartTap(nil)
	if err != nil {
		return err
	}
	if _, err := r.Reach(ctx, hqToVNet(5*time.Second)); err != nil {
		return err
	}
	// Paced: TCP that nobody encrypts outruns a tap that judges each frame.
	d, err := r.StartDatagrams(netns.HQ, netns.VNet, false, 32, 5*time.Millisecond)
	if err != nil {
		return err
	}
	time.Sleep(time.Second)
	if _, err := d.Stop(); err != nil {
		return err
	}
	sum, err := t.Stop(ctx)
	if err != nil {
		return err
	}
	for _, i := range sum.Interfaces {
		if i.Canaries == 0 {
			err = fmt.Errorf("at %s the tap saw %d frames and no canary: it cannot fire, so that its 0 would mean nothing", i.Label, i.Frames)
		}
	}
	if !s.check("control run: the tap fires", err, "%d frames in clear, %d with the canary", sum.InClear, sum.Canaries) {
		return ErrFailed
	}
	return nil
}

func (s *story) bringUp(ctx context.Context) error {
	s.say("real run: controller, two nodes")
	if err := s.rig.StartController(ctx); err != nil {
		return err
	}
	if err := s.rig.Apply(ctx, filepath.Join(s.config.Samples, "10-nodes.yaml")); err != nil {
		return err
	}
	s.check("node documents applied", nil, "")
	for _, h := range both {
		if err := s.rig.Enrol(ctx, h); err != nil {
			return err
		}
		if err := s.rig.StartAgent(h); err != nil {
			return err
		}
	}
	s.check("two nodes enrolled with one-time tokens", nil, "")
	if err := s.rig.Apply(ctx, filepath.Join(s.config.Samples, "20-contoso.yaml")); err != nil {
		return err
	}
	if err := s.settled(ctx); err != nil {
		return err
	}
	s.check("policy applied, tunnels over both links are up", nil, "")
	return nil
}

func (s *story) reach(ctx context.Context) error {
	for _, v6 := range []bool{false, true} {
		family := map[bool]string{false: "IPv4", true: "IPv6"}[v6]
		var errs []error
		for _, p := range []rig.Probe{{From: netns.HQ, To: netns.VNet}, {From: netns.VNet, To: netns.HQ}} {
			p.V6, p.Deadline = v6, 10*time.Second
			_, err := s.rig.Reach(ctx, p)
			errs = append(errs, err)
		}
		s.check("hosts reach each other, both ways, "+family, errors.Join(errs...), "")
	}
	return nil
}

// bothLinks counts bytes on each link from the provider's side.
func (s *story) bothLinks(ctx context.Context) error {
	before, err := s.tap.Report()
	if err != nil {
		return err
	}
	d, err := s.rig.StartDatagrams(netns.HQ, netns.VNet, false, 64, 10*time.Millisecond)
	if err != nil {
		return err
	}
	pause(ctx, 1500*time.Millisecond)
	count, err := d.Stop()
	if err != nil {
		return err
	}
	after, err := s.tap.Report()
	if err != nil {
		return err
	}
	first, second := grown(before, after, 0), grown(before, after, 1)
	share := 100 * float64(first) / max(1, float64(first+second))
	if share < 15 || share > 85 {
		err = fmt.Errorf("%.0f %% of the bytes were on the primary link", share)
	}
	s.check("64 flows use both links", err, "%.0f %% primary, %.0f %% secondary", share, 100-share)
	if count.Lost > 0 || count.FlowsAnswered != 64 {
		err = fmt.Errorf("%+v", count)
	}
	s.check("numbered datagrams all come back", err, "%d of %d", count.Received, count.Sent)
	return nil
}

// grown is how many bytes of tunnels an interface has seen between two reports.
func grown(before, after tap.Summary, i int) uint64 {
	return after.Interfaces[i].Bytes - before.Interfaces[i].Bytes
}

func (s *story) forged(ctx context.Context) error {
	before, err := s.tap.Report()
	if err != nil {
		return err
	}
	droppedBefore, err := s.droppedFromLANs(ctx)
	if err != nil {
		return err
	}
	attempts := []struct {
		from     netns.Host
		src, dst string
	}{
		{netns.HQ, "172.16.10.1:51820", "172.20.255.4:51820"},
		{netns.HQ, "172.16.10.5:51821", "172.20.255.5:51821"},
		{netns.VNet, "172.20.255.4:51820", "172.16.10.1:51820"},
	}
	for _, a := range attempts {
		for _, shaped := range []traffic.Shape{traffic.Text, traffic.WireGuard} {
			if err := s.rig.Forge(ctx, a.from, netip.MustParseAddrPort(a.src), netip.MustParseAddrPort(a.dst), shaped, 20); err != nil {
				return err
			}
		}
	}
	// That the link is clean shows little unless the appliances got the packets.
	dropped, err := s.droppedFromLANs(ctx)
	if err != nil {
		return err
	}
	after, err := s.tap.Report()
	if sent := uint64(len(attempts) * 40); err == nil && dropped-droppedBefore < sent {
		err = fmt.Errorf("appliances dropped only %d of %d forged packets", dropped-droppedBefore, sent)
	}
	if err == nil && after.InClear > before.InClear {
		err = errors.New(rig.Describe(after))
	}
	s.check("forged LAN host gets nothing onto the link", err, "%d forged packets sent, %d dropped by the appliances", len(attempts)*40, dropped-droppedBefore)
	return nil
}

// droppedFromLANs is what both appliances' classifiers dropped from their LANs.
func (s *story) droppedFromLANs(ctx context.Context) (n uint64, err error) {
	for _, h := range both {
		status, err := s.rig.Status(ctx, h)
		if err != nil {
			return 0, err
		}
		for _, c := range status.Counters {
			if strings.HasPrefix(c.Name, "classifier_lan_dropped") {
				n += c.Packets
			}
		}
	}
	return n, nil
}

// settled waits until both ends have both tunnels: what a step breaks must
// not be mixed up with what an earlier one did.
func (s *story) settled(ctx context.Context) error {
	for _, h := range both {
		if err := s.rig.TunnelsUp(ctx, h, 2, 20*time.Second); err != nil {
			return err
		}
	}
	return nil
}

func (s *story) controllerStopped(ctx context.Context) error {
	if err := s.settled(ctx); err != nil {
		return err
	}
	if err := s.rig.StopController(); err != nil {
		return err
	}
	d, err := s.rig.StartDatagrams(netns.HQ, netns.VNet, false, 16, 10*time.Millisecond)
	if err != nil {
		return err
	}
	pause(ctx, 1500*time.Millisecond)
	count, err := d.Stop()
	if err == nil && count.Lost > 0 {
		err = fmt.Errorf("%+v", count)
	}
	s.check("controller stopped: traffic goes on", err, "%d of %d came back", count.Received, count.Sent)
	return nil
}

func (s *story) agentKilled(ctx context.Context) error {
	d, err := s.rig.StartDatagrams(netns.HQ, netns.VNet, false, 16, 10*time.Millisecond)
	if err != nil {
		return err
	}
	pause(ctx, 200*time.Millisecond)
	err = s.rig.KillAgent(netns.Prem)
	pause(ctx, 4*time.Second)
	count, stopErr := d.Stop()
	if err = errors.Join(err, stopErr); err == nil && count.Lost > 0 {
		err = fmt.Errorf("%+v", count)
	}
	s.check("agent killed with -9: traffic goes on", err, "%d of %d came back", count.Received, count.Sent)
	return nil
}

func (s *story) linkCut(ctx context.Context) error {
	if err := s.settled(ctx); err != nil {
		return err
	}
	d, err := s.rig.StartDatagrams(netns.HQ, netns.VNet, false, 32, 10*time.Millisecond)
	if err != nil {
		return err
	}
	pause(ctx, 500*time.Millisecond)
	err = s.rig.Lab.CutLink(ctx, netns.Primary, netns.Silent)
	pause(ctx, 7*time.Second)
	count, stopErr := d.Stop()
	if err = errors.Join(err, stopErr); err != nil {
		return err
	}
	_, err = s.rig.Reach(ctx, hqToVNet(2*time.Second))
	if err == nil && count.OutageSeconds > 6 {
		err = fmt.Errorf("the longest outage of a flow was %.1f s", count.OutageSeconds)
	}
	s.check("one link cut: traffic returns", err, "longest outage of a flow %.1f s", count.OutageSeconds)
	s.figure("outage after a silent cut", count.OutageSeconds, "s", 0, "probe of 1 s, 3 lost")
	if err := s.rig.Lab.RestoreLink(ctx, netns.Primary); err != nil {
		return err
	}
	s.check("link restored: both carry again", s.rig.TunnelsUp(ctx, netns.Prem, 2, 30*time.Second), "")
	return nil
}
