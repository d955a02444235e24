package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

func getCommand(o *options) *cobra.Command {
	var (
		customer  string
		revisions bool
	)
	cmd := &cobra.Command{
		Use:   "get KIND [[CUSTOMER/]NAME] | KIND/CUSTOMER/NAME",
		Short: "Show documents of a kind, or of all",
		Long: `Show documents of a kind (any case, singular or plural), or of all kinds.

sealctl explain lists the kinds, and sealctl explain KIND says what is in one.

There is a table for each kind, with columns of its own. -o yaml prints documents as
sealctl apply takes them, -o json the controller's answer with revisions, -o wide
one table with whole specs, and -o name what sealctl get, describe
and delete take in place of a kind and a name.`,
		Example: `  sealctl get all
  sealctl get connections --customer contoso
  sealctl get site contoso/hq
  sealctl get site/contoso/hq -o json
  sealctl get site/contoso/hq -o yaml --revisions | sed s/10.1./10.9./ | sealctl apply -f -
  sealctl get all -o yaml > backup.yaml`,
		Args: arguments(1, 2, "a kind (or all) and maybe a name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			q, err := parseReference(args, customer)
			if err != nil {
				return err
			}
			c, err := o.connect()
			if err != nil {
				return err
			}
			defer c.close()
			service := newPolicyClient(c, o)
			answer, err := service.get(cmd.Context(), &v1.GetRequest{Kind: q.kind, Customer: q.customer, Name: q.name})
			if err != nil {
				return usage(err)
			}
			if o.structured() || o.wide() {
				if err := service.fill(cmd.Context(), answer.GetDocuments()); err != nil {
					return err
				}
			}
			if o.output != "table" {
				return printDocuments(cmd.OutOrStdout(), o, answer, revisions)
			}
			beside, err := service.beside(cmd.Context(), q, answer.GetDocuments())
			if err != nil {
				return err
			}
			if len(answer.GetDocuments()) == 0 {
				_, err := fmt.Fprintln(cmd.ErrOrStderr(), "there are no such documents")
				return err
			}
			return printTables(cmd.OutOrStdout(), o, answer.GetDocuments(), beside)
		},
		ValidArgsFunction: completeDocuments(o, &customer),
	}
	cmd.Flags().StringVar(&customer, "customer", "", "documents of this `customer` only")
	cmd.Flags().BoolVar(&revisions, "revisions", false, "with -o yaml, print metadata.revision too: sealctl apply then refuses what was changed meanwhile")
	return formats(cmd, "wide", "json", "yaml", "name")
}

func printDocuments(w io.Writer, o *options, answer *v1.GetResponse, revisions bool) error {
	switch o.output {
	case "json":
		return printJSON(w, answer)
	case "yaml":
		return printManifests(w, answer.GetDocuments(), revisions)
	case "name":
		for _, d := range answer.GetDocuments() {
			if _, err := fmt.Fprintln(w, line(name(d))); err != nil {
				return err
			}
		}
		return nil
	}
	t := newTable("KIND", "CUSTOMER", "NAME", "REVISION", "SPEC").paint(o.palette(w))
	for _, d := range answer.GetDocuments() {
		t.add(d.GetKind(), d.GetCustomer(), d.GetName(), fmt.Sprint(d.GetRevision()), summary(d))
	}
	return t.print(w)
}

// printTables prints a table for each kind, with its name where there are several.
func printTables(w io.Writer, o *options, documents, beside []*v1.Document) error {
	colours := o.palette(w)
	several := slices.ContainsFunc(documents, func(d *v1.Document) bool { return d.GetKind() != documents[0].GetKind() })
	var b strings.Builder
	for len(documents) > 0 {
		kind := documents[0].GetKind()
		n := slices.IndexFunc(documents, func(d *v1.Document) bool { return d.GetKind() != kind })
		if n < 0 {
			n = len(documents)
		}
		if several {
			if b.Len() > 0 {
				b.WriteByte('\n')
			}
			b.WriteString(colours.paint(toneHead, line(plural(kind))) + "\n")
		}
		if err := documentTable(kind, documents[:n], beside, colours).print(&b); err != nil {
			return err
		}
		documents = documents[n:]
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// beside gets the documents of which a table of others shows something.
func (p policyClient) beside(ctx context.Context, q reference, documents []*v1.Document) ([]*v1.Document, error) {
	if !slices.ContainsFunc(documents, func(d *v1.Document) bool { return d.GetKind() == "Connection" }) {
		return nil, nil
	}
	var all []*v1.Document
	for _, kind := range []string{"Endpoint", "EncryptionPolicy"} {
		answer, err := p.get(ctx, &v1.GetRequest{Kind: kind, Customer: q.customer})
		if err != nil {
			return nil, err
		}
		all = append(all, answer.GetDocuments()...)
	}
	return all, nil
}

// summary is a document's spec on one line.
func summary(d *v1.Document) string {
	if n := len(d.GetSpecChunks()); n > 0 {
		return fmt.Sprintf("(long: %d parts; -o wide, yaml or json shows all of it)", n)
	}
	b, err := protojson.MarshalOptions{}.Marshal(d.GetSpec())
	if err != nil {
		return ""
	}
	return string(b)
}

// reference is what arguments say of documents.
type reference struct{ kind, customer, name string }

// parseReference reads KIND, KIND NAME, KIND CUSTOMER/NAME, or, with a slash in
// place of the space, what -o name prints; customer is the flag. What is a kind is
// the controller's to say.
func parseReference(args []string, customer string) (reference, error) {
	q := reference{customer: customer}
	if len(args) < 1 || len(args) > 2 {
		return q, fmt.Errorf("%w: got %d arguments, want a kind and maybe a name", errUsage, len(args))
	}
	said := strings.Join(args, " ")
	parts := strings.Split(strings.Join(args, "/"), "/")
	q.kind = parts[0]
	switch len(parts) {
	case 1:
		return q, nil
	case 2:
		q.name = parts[1]
	case 3:
		if customer != "" && customer != parts[1] {
			return q, fmt.Errorf("%w: %s and --customer %s: want one customer", errUsage, said, customer)
		}
		q.customer, q.name = parts[1], parts[2]
	default:
		return q, fmt.Errorf("%w: %q: want KIND CUSTOMER/NAME such as site contoso/hq, or KIND NAME such as node nva-1", errUsage, said)
	}
	switch {
	case q.name == "":
		return q, fmt.Errorf("%w: %q: the name is empty", errUsage, said)
	case len(parts) == 3 && q.customer == "":
		return q, fmt.Errorf("%w: %q: the customer is empty", errUsage, said)
	case strings.Contains(args[0], "/") && len(args) == 2:
		return q, fmt.Errorf("%w: %q: want KIND CUSTOMER/NAME such as site contoso/hq", errUsage, said)
	}
	return q, nil
}
