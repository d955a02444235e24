package wireguard

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/netns"
	"github.com/circuitseal/circuitseal/agent/plan"
)

// TestMain makes the test binary stand for the agent's: `wireguard --instance X`
// is the process that Spawn starts, `agent X` one that syncs and waits.
func TestMain(m *testing.M) {
	var err error
	switch {
	case len(os.Args) == 4 && os.Args[1] == "wireguard":
		ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
		defer stop()
		err = Serve(ctx, instance.Instance(os.Args[3]), slog.New(slog.NewTextHandler(os.Stderr, nil)))
	case len(os.Args) == 5 && os.Args[1] == "agent":
		err = agent(instance.Instance(os.Args[2]), os.Args[3], os.Args[4])
	default:
		os.Exit(m.Run())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// agent syncs the tunnels that it reads from stdin, says so on stdout, and waits
// to be killed.
func agent(inst instance.Instance, mainName, keyDir string) error {
	var tunnels []plan.Tunnel
	if err := json.NewDecoder(os.Stdin).Decode(&tunnels); err != nil {
		return err
	}
	for i := range tunnels {
		// Secrets do not survive JSON.
		tunnels[i].PresharedKeys = shared(tunnels[i].ID, 1)
	}
	main, err := netns.Open(mainName)
	if err != nil {
		return err
	}
	circuit, err := netns.Open(inst.Namespace())
	if err != nil {
		return err
	}
	keys, err := OpenKeys(keyDir, ring)
	if err != nil {
		return err
	}
	d := New(Config{Main: main, Circuit: circuit, Instance: inst, Keys: keys, Log: slog.New(slog.DiscardHandler)})
	d.backend = UserSpace // also where the kernel could
	ctx := context.Background()
	if err := d.Sync(ctx, tunnels, func([]string) error { return nil }); err != nil {
		return err
	}
	fmt.Println("synced")
	return d.Run(ctx, nil)
}
