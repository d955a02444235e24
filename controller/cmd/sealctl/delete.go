package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
)

func deleteCommand(o *options) *cobra.Command {
	var (
		files    fileFlags
		customer string
	)
	cmd := &cobra.Command{
		Use:   "delete KIND NAME | KIND/CUSTOMER/NAME | -f FILE",
		Short: "Delete a document, or those of files",
		Long: `Delete a document that no other one names, or all documents of files: the last
one first, and those that are named by others after these. Each is deleted by
itself; what is gone already is no error with -f.`,
		Example: `  sealctl delete connection hq-weu --customer contoso
  sealctl delete -f policies/`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(files.names) > 0 && (len(args) > 0 || customer != "") {
				return fmt.Errorf("%w: either -f, or a kind and a name", errUsage)
			}
			if len(files.names) > 0 {
				return nil
			}
			if q, err := parseReference(args, customer); err != nil || q.name == "" {
				return cmp.Or(err, fmt.Errorf("%w: got %d arguments, want a kind and a name, or -f", errUsage, len(args)))
			}
			return nil
		},
		ValidArgsFunction: completeDocuments(o, &customer),
		RunE: func(cmd *cobra.Command, args []string) error {
			requests := []*v1.DeleteRequest{}
			if len(files.names) == 0 {
				q, err := parseReference(args, customer)
				if err != nil {
					return err
				}
				requests = append(requests, &v1.DeleteRequest{Kind: q.kind, Customer: q.customer, Name: q.name})
			} else {
				sources, err := files.read(cmd.InOrStdin())
				if err != nil {
					return err
				}
				if requests, err = identities(sources); err != nil {
					return err
				}
			}
			c, err := o.connect()
			if err != nil {
				return err
			}
			defer c.close()
			service := circuitsealv1connect.NewPolicyServiceClient(c.client, c.server, limits())
			remove := func(ctx context.Context, q *v1.DeleteRequest) (*v1.DeleteResponse, error) {
				return call(ctx, o, service.Delete, q)
			}
			if len(files.names) > 0 {
				return deleteAll(cmd, o, requests, remove)
			}
			answer, err := remove(cmd.Context(), requests[0])
			if rpc := new(connect.Error); errors.As(err, &rpc) && strings.HasPrefix(rpc.Message(), "customer is required") {
				// The flag has the field's name.
				return fmt.Errorf("%w: --%s", errUsage, rpc.Message())
			}
			if err != nil {
				return usage(err)
			}
			return printDeleted(cmd.OutOrStdout(), o, requests[0], answer)
		},
	}
	files.register(cmd)
	cmd.Flags().StringVar(&customer, "customer", "", "the document's `customer`, unless its kind has none")
	return formats(cmd, "json", "yaml", "name")
}

// identities are the documents that sources name, the last first. The specs are
// of no interest, so they may be malformed.
func identities(sources []*v1.Source) ([]*v1.DeleteRequest, error) {
	var requests []*v1.DeleteRequest
	for _, s := range sources {
		d := yaml.NewDecoder(bytes.NewReader([]byte(s.GetText())))
		for {
			var document struct {
				Kind     string
				Metadata struct{ Customer, Name string }
			}
			err := d.Decode(&document)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.GetName(), err)
			}
			if document.Kind == "" && document.Metadata.Name == "" {
				continue
			}
			requests = append(requests, &v1.DeleteRequest{
				Kind: document.Kind, Customer: document.Metadata.Customer, Name: document.Metadata.Name,
			})
		}
	}
	if requests == nil {
		return nil, fmt.Errorf("there is no document in %s", names(sources))
	}
	slices.Reverse(requests)
	return requests, nil
}

// deleteAll deletes documents in turns: one that others name is tried again
// after these are gone, as long as anything goes.
func deleteAll(cmd *cobra.Command, o *options, requests []*v1.DeleteRequest, remove func(context.Context, *v1.DeleteRequest) (*v1.DeleteResponse, error)) error {
	for len(requests) > 0 {
		var named []*v1.DeleteRequest
		var errs []error
		for _, q := range requests {
			answer, err := remove(cmd.Context(), q)
			switch connect.CodeOf(err) {
			case connect.CodeFailedPrecondition:
				named, errs = append(named, q), append(errs, err)
				continue
			case connect.CodeNotFound:
				if _, err := fmt.Fprintf(cmd.ErrOrStderr(), "%s is not there\n", line(name(q))); err != nil {
					return err
				}
				continue
			default:
				if err != nil {
					return err
				}
			}
			if err := printDeleted(cmd.OutOrStdout(), o, q, answer); err != nil {
				return err
			}
		}
		if len(named) == len(requests) {
			return fmt.Errorf("%d documents are left: %w", len(named), errs[0])
		}
		requests = named
	}
	return nil
}

func printDeleted(w io.Writer, o *options, q *v1.DeleteRequest, answer *v1.DeleteResponse) error {
	if o.structured() {
		return o.print(w, answer)
	}
	text := line(name(q))
	if o.output != "name" {
		text += " deleted"
	}
	_, err := fmt.Fprintln(w, text)
	return err
}
