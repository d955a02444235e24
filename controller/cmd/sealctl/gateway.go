package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
)

func rotateCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "rotate",
		Short:   "Change what changes only when somebody asks for it",
		Example: `  sealctl rotate psk contoso/vpngw-uks`,
		Args:    noSubcommand,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(rotatePSKCommand(o))
	return cmd
}

func rotatePSKCommand(o *options) *cobra.Command {
	return formats(&cobra.Command{
		Use:   "psk CUSTOMER/ENDPOINT",
		Short: "Make the next pre-shared key of each tunnel to a gateway without our agent",
		Long: `Make the next pre-shared key of each tunnel to a gateway without our agent. Nothing
is cut: our end tries the new key first and falls back to the one before until the
gateway has the new one, which sealctl describe endpoint --reveal-psk shows. The old one
goes when a handshake has succeeded with the new. Keys between our own nodes change by
themselves.`,
		Example: `  sealctl rotate psk contoso/vpngw-uks
  sealctl describe endpoint contoso/vpngw-uks --reveal-psk
  sealctl keys --customer contoso`,
		Args: arguments(1, 1, "an endpoint such as contoso/vpngw-uks"),
		RunE: func(cmd *cobra.Command, args []string) error {
			customer, endpoint, ok := strings.Cut(args[0], "/")
			if !ok || customer == "" || endpoint == "" || strings.Contains(endpoint, "/") {
				return fmt.Errorf("%w: %q: want CUSTOMER/ENDPOINT such as contoso/vpngw-uks", errUsage, args[0])
			}
			c, err := o.connect()
			if err != nil {
				return err
			}
			defer c.close()
			service := circuitsealv1connect.NewGatewayServiceClient(c.client, c.server, limits())
			answer, err := call(cmd.Context(), o, service.RotateGatewayKey, &v1.RotateGatewayKeyRequest{Customer: customer, Endpoint: endpoint})
			if err != nil {
				return usage(err)
			}
			if o.structured() {
				return o.print(cmd.OutOrStdout(), answer)
			}
			t := newTable("TUNNEL", "GENERATION", "PHASE").paint(o.palette(cmd.OutOrStdout()))
			for _, k := range answer.GetKeys() {
				t.add(k.GetTunnel(), strconv.FormatUint(k.GetGeneration(), 10), k.GetPhase())
			}
			if err := t.print(cmd.OutOrStdout()); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.ErrOrStderr(), "now set them at the gateway: `sealctl describe endpoint %s --reveal-psk` shows them\n", line(args[0]))
			return err
		},
	}, "json", "yaml")
}

// askGateway gets how a gateway without our agent is to be set; nil for documents
// that are none.
func askGateway(ctx context.Context, o *options, c connection, d *v1.Document, reveal bool) (*v1.DescribeGatewayResponse, error) {
	external := d.GetSpec().GetFields()["external"].GetStructValue() != nil
	if d.GetKind() != "Endpoint" || !external {
		if reveal {
			return nil, fmt.Errorf("%w: --reveal-psk: %s is no gateway without our agent", errUsage, name(d))
		}
		return nil, nil
	}
	service := circuitsealv1connect.NewGatewayServiceClient(c.client, c.server, limits())
	answer, err := call(ctx, o, service.DescribeGateway, &v1.DescribeGatewayRequest{Customer: d.GetCustomer(), Endpoint: d.GetName(), Reveal: reveal})
	return answer, usage(err)
}

// writeGateway says how the other side is to be set.
func writeGateway(b *strings.Builder, colours palette, g *v1.DescribeGatewayResponse) error {
	if g != nil && len(g.GetConnections()) == 0 {
		b.WriteString("\nno connection leads to this gateway yet: apply one, and its settings are here\n")
	}
	for _, c := range g.GetConnections() {
		b.WriteString("\n" + colours.paint(toneHead, line("THE GATEWAY'S SETTINGS FOR CONNECTION "+c.GetConnection())) + "\n")
		settings := newTable("SETTING", "VALUE").paint(colours)
		for _, s := range c.GetSettings() {
			settings.add(s.GetName(), s.GetValue())
		}
		if err := settings.print(b); err != nil {
			return err
		}
		if len(c.GetKeys()) > 0 {
			b.WriteByte('\n')
			keys := newTable("PRE-SHARED KEY OF", "GENERATION", "PHASE", "VALUE").paint(colours)
			for _, k := range c.GetKeys() {
				value := k.GetValue()
				if value == "" {
					value = "(--reveal-psk shows it, and is logged)"
				}
				keys.add(k.GetTunnel(), strconv.FormatUint(k.GetGeneration(), 10), k.GetPhase(), value)
			}
			if err := keys.print(b); err != nil {
				return err
			}
		}
		b.WriteByte('\n')
		for l := range strings.Lines(c.GetText()) {
			if _, err := io.WriteString(b, line(strings.TrimSuffix(l, "\n"))+"\n"); err != nil {
				return err
			}
		}
	}
	return nil
}
