package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

func deleteCommand(o *options) *cobra.Command {
	var (
		files    fileFlags
		customer string
		yes      bool
	)
	cmd := &cobra.Command{
		Use:   "delete KIND CUSTOMER/NAME | KIND/CUSTOMER/NAME | -f FILE",
		Short: "Delete a document, or those of files",
		Long: `Delete a document that no other one names, or all documents of files in one
transaction: all of them or none. Those of the files may name each other; what is
gone already is no error with -f.

Where that changes something on the wire, it says what and asks; where there is no
terminal it needs --yes then.`,
		Example: `  sealctl delete connection contoso/hq-weu
  sealctl delete connection hq-weu --customer contoso --yes
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
			keys := []*v1.DocumentKey{}
			if len(files.names) == 0 {
				q, err := parseReference(args, customer)
				if err != nil {
					return err
				}
				keys = append(keys, &v1.DocumentKey{Kind: q.kind, Customer: q.customer, Name: q.name})
			} else {
				sources, err := files.read(cmd.InOrStdin())
				if err != nil {
					return err
				}
				if keys, err = identities(sources); err != nil {
					return err
				}
			}
			c, err := o.connect()
			if err != nil {
				return err
			}
			defer c.close()
			if !yes {
				cuts, err := deleteCuts(cmd, o, c, keys)
				if err == nil && len(cuts) > 0 {
					err = confirm(cmd, "this changes what is on the wire", cuts)
				}
				if err != nil {
					return err
				}
			}
			answer, err := newPolicyClient(c, o).remove(cmd.Context(), keys, len(files.names) > 0)
			if rpc := new(connect.Error); errors.As(err, &rpc) && strings.HasPrefix(rpc.Message(), "customer is required") {
				// The flag has the field's name.
				return fmt.Errorf("%w: --%s; or write %s CUSTOMER/%s", errUsage, rpc.Message(), keys[0].GetKind(), keys[0].GetName())
			}
			if uses := usesOf(err); len(uses.GetUses()) > 0 {
				return printUses(cmd, o, uses)
			}
			if err != nil {
				return usage(err)
			}
			return printDeleted(cmd, o, keys, answer)
		},
	}
	files.register(cmd)
	registerYes(cmd, &yes)
	cmd.Flags().StringVar(&customer, "customer", "", "the document's `customer`, unless its kind has none")
	return formats(cmd, "json", "yaml", "name")
}

// identities are the documents that sources name. The specs are of no interest,
// so they may be malformed.
func identities(sources []*v1.Source) ([]*v1.DocumentKey, error) {
	var keys []*v1.DocumentKey
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
			keys = append(keys, &v1.DocumentKey{
				Kind: document.Kind, Customer: document.Metadata.Customer, Name: document.Metadata.Name,
			})
		}
	}
	if keys == nil {
		return nil, fmt.Errorf("there is no document in %s", names(sources))
	}
	return keys, nil
}

// printUses prints what still names documents that were to be deleted.
func printUses(cmd *cobra.Command, o *options, uses *v1.InUse) error {
	if o.structured() {
		if err := o.print(cmd.OutOrStdout(), uses); err != nil {
			return err
		}
		return errTold
	}
	var b strings.Builder
	for _, u := range uses.GetUses() {
		fmt.Fprintf(&b, "%s is in use by %s (%s)\n", line(u.GetRefersTo()), line(u.GetDocument()), line(u.GetField()))
	}
	if n := uses.GetLeftOut(); n > 0 {
		fmt.Fprintf(&b, "and %d more references that are not shown\n", n)
	}
	b.WriteString("nothing was deleted; delete or change these first\n")
	if _, err := io.WriteString(cmd.ErrOrStderr(), b.String()); err != nil {
		return err
	}
	return errTold
}

func printDeleted(cmd *cobra.Command, o *options, asked []*v1.DocumentKey, answer *v1.DeleteResponse) error {
	if o.structured() {
		return o.print(cmd.OutOrStdout(), answer)
	}
	suffix := " deleted"
	if o.output == "name" {
		suffix = ""
	}
	gone := map[string]bool{}
	for _, k := range answer.GetDeleted() {
		gone[name(k)] = true
		if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s%s\n", line(name(k)), suffix); err != nil {
			return err
		}
	}
	for _, k := range asked {
		if gone[name(k)] || len(answer.GetDeleted()) == len(asked) {
			continue
		}
		if _, err := fmt.Fprintf(cmd.ErrOrStderr(), "%s is not there\n", line(name(k))); err != nil {
			return err
		}
	}
	return nil
}
