// Traffic makes the lab's test traffic; see testlab/traffic. All of it carries
// the canary in CIRCUITSEAL_CANARY. Reports are lines of JSON on standard output.
//
//	traffic serve --listen ADDR
//	traffic probe --to ADDR [--udp] [--deadline 5s]
//	traffic datagrams --to ADDR [--flows 8] [--interval 5ms] [--duration 0]
//	traffic streams --to ADDR [--flows 1] [--duration 3s] [--reverse]
//	traffic forge --from ADDR --to ADDR [--as text|wireguard|ike|esp|esp-in-udp] [--count 10]
//	traffic inject --interface IF --mac MAC --from ADDR --to ADDR [--tags 300.100] [--mark N] [--count 10]
//	traffic replay --interface IF [--count 10]
//	traffic witness
//	traffic fuzz --sender NAME --interface IF --gateway ADDR --own ADDR,… --pool ADDR,PREFIX,… [--seed 1] [--count 10]
//	traffic tagfuzz --sender NAME --interface IF --mac MAC --mark N --outer FLOW,… --others FLOW,… --pool ADDR,PREFIX,… [--seed 1] [--count 10]
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/circuitseal/circuitseal/testlab/traffic"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "traffic:", err)
		os.Exit(1)
	}
}

var errNotReached = errors.New("not reached")

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("want serve, probe, datagrams, streams, forge, inject, replay, witness, fuzz or tagfuzz")
	}
	canary, err := traffic.CanaryFromEnv()
	if err != nil {
		return err
	}
	f := flag.NewFlagSet("traffic "+args[0], flag.ContinueOnError)
	to := f.String("to", "", "address and port to send to")
	flows := f.Int("flows", 1, "number of source ports")
	duration := f.Duration("duration", 0, "how long to send; 0 for until SIGTERM")
	size := f.Int("size", 256, "bytes of a datagram")
	interval := f.Duration("interval", 5*time.Millisecond, "between two datagrams of a flow")
	listen := f.String("listen", fmt.Sprintf(":%d", traffic.Port), "where to serve")
	udp := f.Bool("udp", false, "probe with datagrams")
	deadline := f.Duration("deadline", 5*time.Second, "when a probe gives up")
	attempt := f.Duration("attempt", time.Second, "when an attempt of a probe gives up")
	reverse := f.Bool("reverse", false, "let the server send")
	from := f.String("from", "", "forged source address and port")
	shape := f.String("as", "text", "what forged packets look like: text, wireguard, ike, esp or esp-in-udp")
	count := f.Int("count", 10, "number of forged datagrams, of fuzz packets, or of packets to send again")
	iface := f.String("interface", "eth0", "where injected frames, fuzz packets and those that are sent again go out")
	mac := f.String("mac", "", "to whom injected frames go")
	tags := f.String("tags", "", "VLAN tags of injected frames, the outer one first, such as 300.100 or ad300.100")
	mark := f.Int("mark", 0, "mark of injected frames, and the upper half of those of fuzzed tags")
	var z fuzzFlags
	z.add(f)
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	var report any
	switch args[0] {
	case "serve":
		return traffic.Serve(ctx, *listen, canary, func() { fmt.Println("ready") })
	case "probe":
		r := traffic.Probe(ctx, traffic.ProbeOptions{To: *to, Canary: canary, UDP: *udp, Deadline: *deadline, Attempt: *attempt})
		report = r
		if !r.Reached {
			err = fmt.Errorf("%w %s within %s: %s", errNotReached, *to, *deadline, r.Problem)
		}
	case "datagrams":
		report, err = traffic.Datagrams(ctx, traffic.DatagramOptions{To: *to, Canary: canary, Flows: *flows, Interval: *interval,
			Duration: *duration, Size: *size, Linger: time.Second})
	case "streams":
		report, err = traffic.Streams(ctx, traffic.StreamOptions{To: *to, Canary: canary, Flows: *flows, Duration: *duration, Reverse: *reverse})
	case "forge":
		return forge(*from, *to, traffic.ForgeOptions{Canary: canary, Count: *count, Interval: *interval, Shape: traffic.Shape(*shape), Size: *size})
	case "inject":
		return inject(*from, *to, *mac, *tags, traffic.InjectOptions{Interface: *iface, Mark: *mark,
			ForgeOptions: traffic.ForgeOptions{Canary: canary, Count: *count, Shape: traffic.WireGuard, Size: *size}})
	case "replay":
		return traffic.Replay(ctx, traffic.ReplayOptions{Interface: *iface, Count: *count})
	case "fuzz":
		return z.send(ctx, *iface, traffic.Fuzz{Canary: canary, Count: *count}, *interval)
	case "tagfuzz":
		return z.tags(*iface, *mac, *mark, traffic.TagFuzz{Canary: canary, Count: *count})
	case "witness":
		report, err = traffic.Witness(ctx, canary, func() { fmt.Println("ready") })
	default:
		return fmt.Errorf("%q: want serve, probe, datagrams, streams, forge, inject, replay, witness, fuzz or tagfuzz", args[0])
	}
	return errors.Join(json.NewEncoder(os.Stdout).Encode(report), err)
}

func forge(from, to string, o traffic.ForgeOptions) error {
	if err := datagram(from, to, &o); err != nil {
		return err
	}
	return traffic.Forge(o)
}

func inject(from, to, mac, tags string, o traffic.InjectOptions) (err error) {
	if err := datagram(from, to, &o.ForgeOptions); err != nil {
		return err
	}
	if o.MAC, err = net.ParseMAC(mac); err != nil {
		return fmt.Errorf("--mac: %w", err)
	}
	if o.Tags, err = traffic.ParseTags(tags); err != nil {
		return fmt.Errorf("--tags: %w", err)
	}
	return traffic.Inject(o)
}

func datagram(from, to string, o *traffic.ForgeOptions) (err error) {
	if o.From, err = netip.ParseAddrPort(from); err != nil {
		return fmt.Errorf("--from: %w", err)
	}
	if o.To, err = netip.ParseAddrPort(to); err != nil {
		return fmt.Errorf("--to: %w", err)
	}
	return nil
}
