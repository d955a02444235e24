// Command circuitseal-agent runs on an appliance: it enrols it as a node,
// keeps its tunnels and guard as the controller says, and says what it has.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/circuitseal/circuitseal/agent"
	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/ipsec"
	"github.com/circuitseal/circuitseal/agent/wireguard"
)

var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the command with its streams; the result is the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	cmd := command()
	cmd.SetArgs(args)
	cmd.SetIn(stdin)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errUsage):
		_, _ = fmt.Fprintf(stderr, "circuitseal-agent: %v; --help lists what there is\n", err)
		return 2
	}
	_, _ = fmt.Fprintf(stderr, "circuitseal-agent: %v\n", err)
	return 1
}

// errUsage marks what is wrong with the command line itself.
var errUsage = errors.New("usage")

// options are what every subcommand takes.
type options struct {
	instance  string
	secretKey string
	logFormat string
	logLevel  string
}

func (o *options) parse() (instance.Instance, *slog.Logger, error) {
	i, err := instance.Parse(o.instance)
	if err != nil {
		return "", nil, fmt.Errorf("%w: --instance: %w", errUsage, err)
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return "", nil, fmt.Errorf("%w: --log-level %q: want debug, info, warn or error", errUsage, o.logLevel)
	}
	options := &slog.HandlerOptions{Level: level}
	switch o.logFormat {
	case "text":
		return i, slog.New(slog.NewTextHandler(os.Stderr, options)), nil
	case "json":
		return i, slog.New(slog.NewJSONHandler(os.Stderr, options)), nil
	}
	return "", nil, fmt.Errorf("%w: --log-format %q: want text or json", errUsage, o.logFormat)
}

func command() *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use:   "circuitseal-agent",
		Short: "Keeps one appliance's circuits encrypted",
		Long: `circuitseal-agent keeps an appliance's private circuits encrypted: nothing but
tunnels' outer packets crosses them from its first state on, whether the agent
runs or not.

A new node is enrolled once, with a token from ` + "`sealctl token create`" + `, and then
runs. Everything that belongs to one agent derives from --instance: state in
/var/lib/circuitseal/NAME, sockets and pins in /run/circuitseal/NAME, the circuit
namespace cs-NAME and tunnel devices cs-NAME-N.

Exit status: 0 ok, 1 refused or failed, 2 wrong usage.`,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noSubcommand,

		SuggestionsMinimumDistance: 2,

		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", errUsage, err) })
	f := root.PersistentFlags()
	f.StringVar(&o.instance, "instance", string(instance.Default), "name of this agent on this host: 1 to 6 characters a-z and 0-9, the first a letter")
	f.StringVar(&o.secretKey, "secret-key-file", "", "`file` with the key that encrypts secrets at rest, 0600, outside of the state directory (default: the credential \"secret-key\", else /etc/circuitseal/NAME.key, made by run when there is none)")
	f.StringVar(&o.logFormat, "log-format", "text", "text or json")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	root.AddCommand(enrollCommand(o), runCommand(o), statusCommand(o), planCommand(o), wireguardCommand(o), charonCommand(o), removeCommand(o), secretKeyCommand())
	for _, c := range root.Commands() {
		check := c.Args
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			return nil
		}
	}
	return root
}

// noSubcommand refuses words that are no command, with a guess.
func noSubcommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := ""
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		hint = fmt.Sprintf("; did you mean %q?", near[0])
	}
	return fmt.Errorf("%w: there is no command %q%s", errUsage, args[0], hint)
}

func runCommand(o *options) *cobra.Command {
	var (
		externalWireGuard, externalCharon bool
		metrics                           string
	)
	c := &cobra.Command{
		Use:   "run",
		Short: "Run the agent",
		Long: `Runs the agent in the foreground. It starts from the last good state, with or
without its controller. When it stops, tunnels and guard stay as they are.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			i, log, err := o.parse()
			if err != nil {
				return err
			}
			return agent.Run(c.Context(), agent.Config{
				Instance: i, Version: version, ExternalWireGuard: externalWireGuard, ExternalCharon: externalCharon, MetricsListen: metrics, Log: log,
				SecretKeyFile: o.secretKey,
				Ready: func() {
					if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
						log.Warn("tell the service manager that the agent is ready", "error", err)
					}
				},
			})
		},
	}
	c.Flags().BoolVar(&externalCharon, "external-charon", false, "a service manager runs strongSwan's charon for this agent; do not start it")
	c.Flags().BoolVar(&externalWireGuard, "external-wireguard", false, "a service manager runs the WireGuard process where one is needed; do not start it")
	c.Flags().StringVar(&metrics, "metrics-listen", "", "`address` at which Prometheus may scrape /metrics, such as 127.0.0.1:9468; anybody who reaches it may read it")
	return c
}

func wireguardCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "wireguard",
		Short: "Run the WireGuard process, for kernels without WireGuard",
		Long: `Runs the process that encrypts on kernels without WireGuard. The agent starts it
when it is needed; give it a unit of its own where a service manager ends all of
a unit's processes, so that it outlives the agent.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			i, log, err := o.parse()
			if err != nil {
				return err
			}
			if err := agent.RequireRoot(); err != nil {
				return err
			}
			return wireguard.Serve(c.Context(), i, log)
		},
	}
}

func charonCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "charon",
		Short: "Run strongSwan's charon, for tunnels by IPsec",
		Long: `Becomes the instance's charon, in its circuit namespace, with a configuration and a
/run of its own. The agent starts it when a tunnel needs it, and tells it everything;
give it a unit of its own where a service manager ends all of a unit's processes, so
that it outlives the agent.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			i, _, err := o.parse()
			if err != nil {
				return err
			}
			if err := agent.RequireRoot(); err != nil {
				return err
			}
			return ipsec.Serve(i)
		},
	}
}
