// Command sealctl is the operators' command line. It speaks the public API,
// circuitseal.v1, and nothing else: it reads files and prints answers, and
// leaves every judgement to the controller. One file per noun.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the linker.
var version = "unknown"

// errUsage marks what is wrong with the command line itself.
var errUsage = errors.New("usage")

// errTold ends a command whose failure has been printed in full.
var errTold = errors.New("told already")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is sealctl with its streams; the result is the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	cmd := command(os.Getenv)
	cmd.SetArgs(args)
	cmd.SetIn(stdin)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	// --help comes before the arguments are looked at.
	var unknown error
	help := cmd.HelpFunc()
	cmd.SetHelpFunc(func(c *cobra.Command, args []string) {
		if c.HasAvailableSubCommands() {
			unknown = noSubcommand(c, c.Flags().Args())
		}
		if unknown == nil {
			help(c, args)
		}
	})
	err := cmd.ExecuteContext(ctx)
	err = cmp.Or(err, unknown)
	code := exitCode(err)
	switch {
	case code == exitOK, errors.Is(err, errTold):
	case code == exitUsage:
		_, _ = fmt.Fprintf(stderr, "sealctl: %s; --help says more\n", clean(explain(err)))
	default:
		_, _ = fmt.Fprintf(stderr, "sealctl: %s\n", clean(explain(err)))
	}
	return code
}

// command is the tree of commands. getenv gives defaults to global flags.
func command(getenv func(string) string) *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use:   "sealctl",
		Short: "Look after private circuits that are kept encrypted",
		Long: `sealctl tells a circuitseal controller what must be encrypted, and shows what is.

The controller writes the administrator's identity at its first start:
admin/identity.pem in its data directory, and admin/root.pem beside it, by which
sealctl knows the controller. Contexts keep these for several controllers:
see sealctl context --help.

What is nearer to the command wins: flags, then the context of --context, then
SEALCTL_SERVER, SEALCTL_IDENTITY, SEALCTL_KEY, SEALCTL_ROOT and SEALCTL_ROOT_PIN,
then the context of CIRCUITSEAL_CONTEXT, or else the current one.

` + exitHelp(),
		Example: `  export SEALCTL_IDENTITY=/var/lib/circuitseal-controller/admin/identity.pem
  export SEALCTL_ROOT=/var/lib/circuitseal-controller/admin/root.pem
  sealctl apply -f policies/
  sealctl token create nva-1 --out nva-1.token
  sealctl status`,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noSubcommand,

		SuggestionsMinimumDistance: 2,

		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	o.register(root, getenv)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", errUsage, err) })
	root.SetHelpCommand(helpCommand())
	root.AddCommand(
		planCommand(o), applyCommand(o), getCommand(o), describeCommand(o), explainCommand(o), deleteCommand(o),
		statusCommand(o), watchCommand(o), nodeCommand(o), keysCommand(o), profilesCommand(o), rotateCommand(o), tokenCommand(o), contextCommand(o), completionCommand(), versionCommand(o),
	)
	root.CompletionOptions.DisableDefaultCmd = true
	completeFlags(root, o)
	return root
}

// helpCommand is cobra's, except that what is no command is an error.
func helpCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Show what a command does",
		Example: `  sealctl help apply
  sealctl help token create`,
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			if found.HasAvailableSubCommands() {
				if err := noSubcommand(found, rest); err != nil {
					return err
				}
			}
			return found.Help()
		},
	}
}

// noSubcommand refuses words that are no command, with a guess.
func noSubcommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = fmt.Sprintf("; did you mean %q?", near[0])
	}
	return fmt.Errorf("%w: there is no command %q%s", errUsage, args[0], hint)
}

// arguments wants so many, named in an error.
func arguments(least, most int, want string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return fmt.Errorf("%w: got %d arguments, want %s", errUsage, len(args), want)
		}
		return nil
	}
}
