package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

func applyCommand(o *options) *cobra.Command {
	var (
		files   fileFlags
		dryRun  bool
		wait    bool
		patient time.Duration
	)
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Create or replace documents: all of them or none",
		Long: `Create or replace documents in one transaction: all of them or none.

What is wrong with them is printed, one problem a line, and the exit code is 3;
of more than 1,000 problems the rest is counted:

  file:line: field: what is wrong (got "value"); what would be right

With --wait it ends when every node that the documents concern has applied what was
compiled from them: those that carry something of a customer whose documents are
among them, and nodes that are among them or name one. After --wait-timeout it says
which have not, such as nodes that are not enrolled or not connected; the exit code
is 6 then. What was applied stays applied.`,
		Example: `  sealctl apply -f policies/ --dry-run
  sealctl apply -R -f policies/ --wait
  sealctl get site hq --customer contoso -o yaml | sed s/10.1./10.9./ | sealctl apply -f -`,
		Args: arguments(0, 0, "files with -f"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if wait && dryRun {
				return fmt.Errorf("%w: --wait and --dry-run: nothing is there to be waited for", errUsage)
			}
			if patient <= 0 {
				return fmt.Errorf("%w: --wait-timeout %s: want more than 0", errUsage, patient)
			}
			sources, err := files.read(cmd.InOrStdin())
			if err != nil {
				return err
			}
			c, err := o.connect()
			if err != nil {
				return err
			}
			defer c.close()
			answer, err := applySources(cmd, o, c, sources, dryRun)
			if problems := problemsOf(err); problems != nil {
				return printProblems(cmd, o, problems)
			}
			if err != nil && timedOut(err) && !dryRun {
				return withCode(exitUnreachable, fmt.Errorf("%s; the documents may have been applied all the same: repeating it is safe", explain(err)))
			}
			if err != nil {
				return err
			}
			if o.structured() {
				err = o.print(cmd.OutOrStdout(), answer)
			} else {
				err = printChanges(cmd.OutOrStdout(), o, answer.GetChanges(), dryRun)
			}
			if err != nil || !wait {
				return err
			}
			return waitApplied(cmd, o, c, answer.GetChanges(), patient)
		},
	}
	files.register(cmd)
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "say what would change and change nothing")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the nodes that it concerns have applied it")
	cmd.Flags().DurationVar(&patient, "wait-timeout", 2*time.Minute, "how long --wait waits")
	return formats(cmd, "json", "yaml", "name")
}

func applySources(cmd *cobra.Command, o *options, c connection, sources []*v1.Source, dryRun bool) (*v1.ApplyResponse, error) {
	p := startProgress(cmd.ErrOrStderr(), fmt.Sprintf("applying %d files", len(sources)))
	defer p.end()
	return newPolicyClient(c, o).apply(cmd.Context(), sources, dryRun)
}

func printChanges(w io.Writer, o *options, changes []*v1.Change, dryRun bool) error {
	suffix := ""
	if dryRun {
		suffix = " (dry run)"
	}
	colours := o.palette(w)
	for _, c := range changes {
		action := strings.ToLower(strings.TrimPrefix(c.GetAction().String(), "CHANGE_ACTION_"))
		text := line(name(c))
		if o.output != "name" {
			t := toneGood
			if c.GetAction() == v1.ChangeAction_CHANGE_ACTION_UNCHANGED {
				t = toneNone
			}
			text += " " + colours.paint(t, action) + suffix
		}
		if _, err := fmt.Fprintln(w, text); err != nil {
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
	for _, code := range []connect.Code{connect.CodeInvalidArgument, connect.CodeAborted} {
		if p := detailOf[*v1.InvalidDocuments](err, code); len(p.GetProblems()) > 0 {
			return p
		}
	}
	return nil
}

// detailOf is the first detail of a type that an error of a code has, or the
// type's zero value.
func detailOf[M proto.Message](err error, code connect.Code) (none M) {
	rpc := new(connect.Error)
	if !errors.As(err, &rpc) || rpc.Code() != code {
		return none
	}
	for _, d := range rpc.Details() {
		if m, err := d.Value(); err == nil {
			if p, ok := m.(M); ok {
				return p
			}
		}
	}
	return none
}

// printProblems prints all problems, on stdout as JSON where that is asked for
// and else on stderr, by file and line.
func printProblems(cmd *cobra.Command, o *options, p *v1.InvalidDocuments) error {
	slices.SortStableFunc(p.Problems, func(a, b *v1.Problem) int {
		return cmp.Or(cmp.Compare(a.GetSource(), b.GetSource()), cmp.Compare(a.GetLine(), b.GetLine()))
	})
	if o.structured() {
		return withCode(exitRefused, cmp.Or(o.print(cmd.OutOrStdout(), p), errTold))
	}
	var b strings.Builder
	for _, x := range p.GetProblems() {
		b.WriteString(line(problem(x)) + "\n")
	}
	told := len(p.GetProblems())
	b.WriteString(count(told+int(p.GetLeftOut()), "problem", "problems"))
	if p.GetLeftOut() > 0 {
		fmt.Fprintf(&b, ", of which %d are shown and %d are not", told, p.GetLeftOut())
	}
	b.WriteString("; nothing was changed\n")
	_, err := io.WriteString(cmd.ErrOrStderr(), b.String())
	return withCode(exitRefused, cmp.Or(err, errTold))
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
	said := p.GetMessage()
	if h := p.GetHint(); h != "" && said != "must be "+h && !strings.HasPrefix(said, "is not "+h) && !strings.HasSuffix(said, ", not "+h) {
		s += "; " + p.GetHint()
	}
	return s
}
