package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/circuitseal/circuitseal/agent"
	"github.com/circuitseal/circuitseal/proto/desired"
)

func outputFlag(c *cobra.Command) *string {
	return c.Flags().StringP("output", "o", "table", "table or json")
}

func checkOutput(o string) error {
	if o != "table" && o != "json" {
		return fmt.Errorf("--output %q: want table or json", o)
	}
	return nil
}

func statusCommand(o *options) *cobra.Command {
	c := &cobra.Command{
		Use:   "status",
		Short: "Say what this node's data plane has",
		Args:  cobra.NoArgs,
	}
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		i, _, err := o.parse()
		if err != nil {
			return err
		}
		if err := checkOutput(*output); err != nil {
			return err
		}
		s, err := agent.Status(c.Context(), i)
		if err != nil {
			return err
		}
		if *output == "json" {
			return writeJSON(c.OutOrStdout(), s)
		}
		return writeStatus(c.OutOrStdout(), s, time.Now())
	}
	return c
}

func planCommand(o *options) *cobra.Command {
	c := &cobra.Command{
		Use:   "plan",
		Short: "Print what the last good state asks of this host; change nothing",
		Args:  cobra.NoArgs,
	}
	output := outputFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		i, _, err := o.parse()
		if err != nil {
			return err
		}
		if err := checkOutput(*output); err != nil {
			return err
		}
		h, p, err := agent.Plan(i)
		if err != nil {
			return err
		}
		if *output == "json" {
			return writeJSON(c.OutOrStdout(), p)
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "node %s, state %s of %s\n%s", h.Node, h.Position, h.Issued.Format(time.RFC3339), p)
		return err
	}
	return c
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func writeStatus(out io.Writer, s desired.Status, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	line := func(format string, a ...any) { _, _ = fmt.Fprintf(w, format+"\n", a...) }
	line("state\tacknowledged %s, applied %s", s.Acknowledged, s.Applied)
	line("version\t%s on Linux %s", s.Version, s.Kernel)
	if s.Rejection != nil {
		line("refused\tstate %s: %s", s.Rejection.Position, s.Rejection.Reason)
	}
	for _, p := range s.Problems {
		line("problem\t%s", p)
	}
	line("")
	line("TUNNEL\tPHASE\tBACKEND\tHANDSHAKE\tRECEIVED\tSENT\tPROBES LOST\tROUND TRIP\tPROBLEM")
	for _, t := range s.Tunnels {
		age := "never"
		if !t.LastHandshake.IsZero() {
			age = now.Sub(t.LastHandshake).Round(time.Second).String() + " ago"
		}
		line("%s\t%s\t%s\t%s\t%d\t%d\t%d of %d\t%s\t%s", t.ID, t.Phase, t.Backend, age, t.ReceivedBytes, t.SentBytes,
			t.ProbesLost, t.ProbesSent, t.RoundTrip.Round(10*time.Microsecond), t.Problem)
	}
	line("")
	line("CIRCUIT INTERFACE\tLAYER\tSTATE")
	for _, g := range s.Guards {
		state := "alive"
		if !g.Alive {
			state = "MISSING"
		}
		line("%s\t%s\t%s", g.Interface, g.Layer, state)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	// A table of its own: names here are long and would widen the others.
	w = tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	line("")
	line("COUNTER\tINTERFACE\tPACKETS")
	for _, c := range s.Counters {
		if c.Packets > 0 {
			line("%s\t%s\t%d", c.Name, c.Interface, c.Packets)
		}
	}
	return w.Flush()
}
