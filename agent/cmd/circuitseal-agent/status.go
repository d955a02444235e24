package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/circuitseal/circuitseal/agent"
	"github.com/circuitseal/circuitseal/agent/identity"
	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// printer is a command that prints something of an instance, as a table or JSON.
func printer(o *options, use, short string, run func(*cobra.Command, instance.Instance) (value any, table func(io.Writer) error, err error)) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs}
	output := c.Flags().StringP("output", "o", "table", "table or json")
	c.RunE = func(c *cobra.Command, _ []string) error {
		i, _, err := o.parse()
		if err != nil {
			return err
		}
		if *output != "table" && *output != "json" {
			return fmt.Errorf("%w: --output %q: want table or json", errUsage, *output)
		}
		value, table, err := run(c, i)
		if err != nil {
			return err
		}
		if *output == "json" {
			return writeJSON(c.OutOrStdout(), value)
		}
		return table(c.OutOrStdout())
	}
	return c
}

func statusCommand(o *options) *cobra.Command {
	return printer(o, "status", "Say what this node's data plane has",
		func(c *cobra.Command, i instance.Instance) (any, func(io.Writer) error, error) {
			s, err := agent.Status(c.Context(), i)
			if err != nil {
				return nil, nil, err
			}
			id, err := identity.Describe(agent.IdentityDir(i))
			if err != nil {
				return nil, nil, err
			}
			cert, err := id.Leaf()
			if err != nil {
				return nil, nil, err
			}
			own := certificate{Serial: cert.SerialNumber.Text(16), Issued: cert.NotBefore, Expires: cert.NotAfter}
			full, err := newReport(id.Node, own, s)
			return full, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "node %s, certificate %s good from %s to %s\n", id.Node, own.Serial,
					own.Issued.UTC().Format(time.RFC3339), own.Expires.UTC().Format(time.RFC3339))
				return errors.Join(err, writeStatus(w, s, time.Now()))
			}, err
		})
}

// report is a node in JSON. Its status is spelled as sealctl spells it.
type report struct {
	Node        string          `json:"node"`
	Certificate certificate     `json:"certificate"`
	Status      json.RawMessage `json:"status"`
}

func newReport(node string, c certificate, s desired.Status) (report, error) {
	b, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(s.ToWire())
	return report{node, c, b}, err
}

// certificate is the node's own, as it lies on disk.
type certificate struct {
	Serial  string    `json:"serial"`
	Issued  time.Time `json:"issued"`
	Expires time.Time `json:"expires"`
}

func planCommand(o *options) *cobra.Command {
	return printer(o, "plan", "Print what the last good state asks of this host; change nothing",
		func(_ *cobra.Command, i instance.Instance) (any, func(io.Writer) error, error) {
			h, p, err := agent.Plan(agent.Config{Instance: i, SecretKeyFile: o.secretKey})
			return p, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "node %s, state %s of %s\n%s", h.Node, h.Position, h.Issued.Format(time.RFC3339), p)
				return err
			}, err
		})
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
	line("capabilities\t%s", strings.Join(s.Capabilities, ", "))
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
	if len(s.Drift) > 0 {
		w = tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
		line("")
		line("REPAIRED\tTIMES\tLAST\tBY")
		for _, d := range s.Drift {
			line("%s\t%d\t%s ago\t%s", d.What, d.Count, now.Sub(d.Last).Round(time.Second), d.Detail)
		}
		if err := w.Flush(); err != nil {
			return err
		}
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
