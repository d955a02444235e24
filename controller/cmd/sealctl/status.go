package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
)

// watchEvery is how often --watch asks.
const watchEvery = 2 * time.Second

func statusCommand(o *options) *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what nodes report and which connections are encrypted",
		Long: `Show what nodes report and which connections are encrypted. A tunnel is up when
both of its ends say so now.

With --watch it is shown every two seconds; -o json then prints one answer a line.`,
		Args: arguments(0, 0, "none"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.connect()
			if err != nil {
				return err
			}
			defer c.close()
			service := circuitsealv1connect.NewStatusServiceClient(c.client, c.server, limits())
			ask := func() (*v1.GetStatusResponse, error) {
				return call(cmd.Context(), o, service.GetStatus, &v1.GetStatusRequest{})
			}
			if watch {
				return watchStatus(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr(), o, ask)
			}
			answer, err := ask()
			if err != nil {
				return err
			}
			if o.json() {
				return printJSON(cmd.OutOrStdout(), answer)
			}
			return printStatus(cmd.OutOrStdout(), answer)
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on until interrupted")
	return cmd
}

// watchStatus prints status until ctx is done, which is no error. A controller
// that is away for a moment does not end it.
func watchStatus(ctx context.Context, w, stderr io.Writer, o *options, ask func() (*v1.GetStatusResponse, error)) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		answer, err := ask()
		if ctx.Err() != nil {
			return nil
		}
		if err := printWatched(w, stderr, o, answer, err); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func printWatched(w, stderr io.Writer, o *options, answer *v1.GetStatusResponse, failed error) error {
	if o.json() && failed == nil {
		return printJSONLine(w, answer)
	}
	if o.json() {
		_, err := fmt.Fprintf(stderr, "sealctl: %s\n", clean(explain(failed)))
		return err
	}
	if isTerminal(w) {
		// Home, and clear to the end (ECMA-48, sections 8.3.21 and 8.3.39).
		if _, err := io.WriteString(w, "\x1b[H\x1b[J"); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintln(w, time.Now().UTC().Format(time.RFC3339)); err != nil {
		return err
	}
	if failed != nil {
		_, err := fmt.Fprintln(w, clean(explain(failed)))
		return err
	}
	return printStatus(w, answer)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func printStatus(w io.Writer, s *v1.GetStatusResponse) error {
	nodes := newTable("NODE", "ENROLLED", "CONNECTED", "WANTED", "APPLIED", "TUNNELS UP", "GUARDS", "VERSION")
	var problems []string
	for _, n := range s.GetNodes() {
		st := n.GetStatus()
		up, alive := 0, 0
		for _, t := range st.GetTunnels() {
			if t.GetPhase() == v1.TunnelPhase_TUNNEL_PHASE_UP {
				up++
			}
		}
		for _, g := range st.GetGuards() {
			if g.GetAlive() {
				alive++
			} else {
				problems = append(problems, fmt.Sprintf("node %s: the %s guard of %s is not alive", n.GetNode(), g.GetLayer(), g.GetInterface()))
			}
		}
		nodes.add(n.GetNode(), yes(n.GetEnrolled()), yes(n.GetConnected()), position(n.GetWanted()), position(st.GetApplied()),
			of(up, len(st.GetTunnels())), of(alive, len(st.GetGuards())), st.GetVersion())
		if r := st.GetRejection(); r != nil {
			problems = append(problems, fmt.Sprintf("node %s refused state %s: %s", n.GetNode(), position(r.GetPosition()), r.GetReason()))
		}
		for _, p := range st.GetProblems() {
			problems = append(problems, fmt.Sprintf("node %s: %s", n.GetNode(), p))
		}
	}
	connections := newTable("CUSTOMER", "CONNECTION", "TUNNELS UP")
	for _, c := range s.GetConnections() {
		connections.add(c.GetCustomer(), c.GetConnection(), of(int(c.GetTunnelsUp()), int(c.GetTunnelsTotal())))
		for _, p := range c.GetProblems() {
			problems = append(problems, fmt.Sprintf("connection %s/%s: %s", c.GetCustomer(), c.GetConnection(), p))
		}
	}
	var b strings.Builder
	if err := nodes.print(&b); err != nil {
		return err
	}
	b.WriteByte('\n')
	if err := connections.print(&b); err != nil {
		return err
	}
	if len(problems) > 0 {
		b.WriteString("\nPROBLEMS\n")
	}
	for _, p := range problems {
		b.WriteString(line(p) + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func of(n, total int) string { return fmt.Sprintf("%d/%d", n, total) }

func position(p *v1.Position) string {
	if p == nil || (p.GetEpoch() == 0 && p.GetRevision() == 0) {
		return ""
	}
	return fmt.Sprintf("%d.%d", p.GetEpoch(), p.GetRevision())
}
