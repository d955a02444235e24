package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
)

func applyCommand(o *options) *cobra.Command {
	var (
		files  []string
		dryRun bool
	)
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Create or replace documents: all of them or none",
		Long: `Create or replace documents in one transaction: all of them or none.

What is wrong with them is printed in full, one problem a line:

  file:line: field: what is wrong (got "value"); what would be right`,
		Args: arguments(0, 0, "files with -f"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			sources, err := readSources(files, cmd.InOrStdin())
			if err != nil {
				return err
			}
			c, err := o.connect()
			if err != nil {
				return err
			}
			defer c.close()
			service := circuitsealv1connect.NewPolicyServiceClient(c.client, c.server, limits())
			answer, err := call(cmd.Context(), o, service.Apply, &v1.ApplyRequest{Sources: sources, DryRun: dryRun})
			if problems := problemsOf(err); problems != nil {
				return printProblems(cmd, o, problems)
			}
			if err != nil && timedOut(err) && !dryRun {
				return fmt.Errorf("%s; the documents may have been applied all the same: repeating it is safe", explain(err))
			}
			if err != nil {
				return err
			}
			if o.json() {
				return printJSON(cmd.OutOrStdout(), answer)
			}
			return printChanges(cmd.OutOrStdout(), answer.GetChanges(), dryRun)
		},
	}
	cmd.Flags().StringArrayVarP(&files, "file", "f", nil, "`file`, directory or - for stdin; repeatable")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would change and change nothing")
	return cmd
}

func printChanges(w io.Writer, changes []*v1.Change, dryRun bool) error {
	suffix := ""
	if dryRun {
		suffix = " (dry run)"
	}
	for _, c := range changes {
		action := strings.ToLower(strings.TrimPrefix(c.GetAction().String(), "CHANGE_ACTION_"))
		if _, err := fmt.Fprintf(w, "%s %s%s\n", line(name(c)), action, suffix); err != nil {
			return err
		}
	}
	return nil
}

// named is a document on the wire, or what names one.
type named interface {
	GetKind() string
	GetCustomer() string
	GetName() string
}

// name is kind/customer/name, the kind in small letters.
func name(d named) string {
	parts := []string{strings.ToLower(d.GetKind())}
	if d.GetCustomer() != "" {
		parts = append(parts, d.GetCustomer())
	}
	return strings.Join(append(parts, d.GetName()), "/")
}

// problemsOf is the detail of an error that refuses documents, or nil.
func problemsOf(err error) *v1.InvalidDocuments {
	rpc := new(connect.Error)
	if !errors.As(err, &rpc) || rpc.Code() != connect.CodeInvalidArgument {
		return nil
	}
	for _, d := range rpc.Details() {
		if m, err := d.Value(); err == nil {
			if p, ok := m.(*v1.InvalidDocuments); ok && len(p.GetProblems()) > 0 {
				return p
			}
		}
	}
	return nil
}

// printProblems prints all problems, on stdout as JSON where that is asked for
// and else on stderr, by file and line.
func printProblems(cmd *cobra.Command, o *options, p *v1.InvalidDocuments) error {
	slices.SortStableFunc(p.Problems, func(a, b *v1.Problem) int {
		return cmp.Or(cmp.Compare(a.GetSource(), b.GetSource()), cmp.Compare(a.GetLine(), b.GetLine()))
	})
	if o.json() {
		if err := printJSON(cmd.OutOrStdout(), p); err != nil {
			return err
		}
		return errTold
	}
	var b strings.Builder
	for _, x := range p.GetProblems() {
		b.WriteString(line(problem(x)) + "\n")
	}
	noun := "problems"
	if len(p.GetProblems()) == 1 {
		noun = "problem"
	}
	fmt.Fprintf(&b, "%d %s; nothing was changed\n", len(p.GetProblems()), noun)
	if _, err := io.WriteString(cmd.ErrOrStderr(), b.String()); err != nil {
		return err
	}
	return errTold
}

// problem is file:line: field: message (got "value"); hint. What has no file is
// about a document that is stored already.
func problem(p *v1.Problem) string {
	where := p.GetSource()
	if where == "" {
		where = p.GetDocument()
	}
	if p.GetLine() > 0 {
		where = fmt.Sprintf("%s:%d", where, p.GetLine())
	}
	s := p.GetMessage()
	if p.GetField() != "" {
		s = p.GetField() + ": " + s
	}
	if where != "" {
		s = where + ": " + s
	}
	if p.GetValue() != "" {
		s += fmt.Sprintf(` (got "%s")`, p.GetValue())
	}
	// Some messages say already what would be right.
	if h := p.GetHint(); h != "" && p.GetMessage() != "must be "+h && !strings.HasPrefix(p.GetMessage(), "is not "+h) {
		s += "; " + p.GetHint()
	}
	return s
}
