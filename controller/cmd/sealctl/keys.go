package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
)

func keysCommand(o *options) *cobra.Command {
	var customer string
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "List all keys and secrets with their ages, never their values",
		Long: `List all keys and secrets: what each is for, whose it is, where it lies, how old
it is and when it is to be replaced. No value is ever shown: the controller does
not send them to operators.`,
		Example: `  sealctl keys
  sealctl keys --customer contoso -o json`,
		Args: arguments(0, 0, "none"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.connect()
			if err != nil {
				return err
			}
			defer c.close()
			service := circuitsealv1connect.NewKeyServiceClient(c.client, c.server, limits())
			answer, err := call(cmd.Context(), o, service.ListKeys, &v1.ListKeysRequest{Customer: customer})
			if err != nil {
				return usage(err)
			}
			if o.json() {
				return printJSON(cmd.OutOrStdout(), answer)
			}
			return printKeys(cmd.OutOrStdout(), answer, time.Now())
		},
	}
	cmd.Flags().StringVar(&customer, "customer", "", "only this `customer`'s")
	return cmd
}

func printKeys(w io.Writer, answer *v1.ListKeysResponse, now time.Time) error {
	t := newTable("KEY", "OF", "ID", "PHASE", "WHERE", "AGE", "REPLACED IN")
	var problems []string
	for _, k := range answer.GetKeys() {
		kind := strings.ToLower(strings.TrimPrefix(k.GetKind().String(), "KEY_KIND_"))
		age, due := "", ""
		if k.GetAge() != nil {
			age = long(k.GetAge().AsDuration())
		}
		if k.GetDue() != nil {
			if due = long(k.GetDue().AsTime().Sub(now)); !k.GetDue().AsTime().After(now) {
				due = "due"
			}
		}
		t.add(strings.ReplaceAll(kind, "_", "-"), k.GetName(), k.GetId(), k.GetPhase(), strings.Join(k.GetPlaces(), ", "), age, due)
		if k.GetProblem() != "" {
			problems = append(problems, strings.TrimSpace(kind+" "+k.GetName())+": "+k.GetProblem())
		}
	}
	if err := t.print(w); err != nil {
		return err
	}
	for _, p := range problems {
		if _, err := io.WriteString(w, line(p)+"\n"); err != nil {
			return err
		}
	}
	return nil
}

// long is a duration as people say it: days from two on, else to the second.
func long(d time.Duration) string {
	const day = 24 * time.Hour
	if d >= 2*day {
		return fmt.Sprintf("%dd", d/day)
	}
	return d.Round(time.Second).String()
}
