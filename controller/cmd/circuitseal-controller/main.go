// Command circuitseal-controller runs the controller: flags, a logger and
// signals, then controller.Run.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"github.com/circuitseal/circuitseal/controller"
)

// version is set by the linker.
var version = "unknown"

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// errUsage marks what is wrong with the command line itself.
var errUsage = errors.New("usage")

func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	cmd := command(stderr)
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if errors.Is(err, errUsage) {
		_, _ = fmt.Fprintf(stderr, "circuitseal-controller: %v; --help lists what there is\n", err)
		return 2
	}
	_, _ = fmt.Fprintf(stderr, "circuitseal-controller: %v\n", err)
	return 1
}

func command(stderr io.Writer) *cobra.Command {
	var (
		config        controller.Config
		format, level string
	)
	cmd := &cobra.Command{
		Use:   "circuitseal-controller",
		Short: "Holds the policy and gives every node its signed state",
		Long: `circuitseal-controller holds the policy of private circuits, compiles it and gives
every node its signed state. At its first start it makes its certificate
authority and writes the administrator's identity to admin/identity.pem in the
data directory; sealctl takes that file, and admin/root.pem beside it.

Secrets at rest are encrypted with a key that is made once, by
  circuitseal-controller secret-key generate /etc/circuitseal/controller.key
and lies outside of the data directory. As a systemd service the controller takes
it from the credential "secret-key".


Exit codes: 0 stopped by a signal, 1 could not start or had to stop, 2 usage.`,
		Version:       version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("%w: there are no arguments, got %q", errUsage, args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := logger(stderr, format, level)
			if err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			if err := config.Check(); err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			config.Log, config.Version = log, version
			config.Ready = func(net.Addr, string) {
				if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
					log.Warn("tell the service manager that the controller is ready", "error", err)
				}
			}
			log.Info("starting", "version", version, "data_dir", config.DataDir)
			return controller.Run(cmd.Context(), config)
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", errUsage, err) })
	f := cmd.Flags()
	f.StringVar(&config.DataDir, "data-dir", "/var/lib/circuitseal-controller", "`directory` that holds everything; made at the first start")
	f.StringVar(&config.SecretKeyFile, "secret-key-file", secretKeyFile(), "`file` with the key that encrypts secrets at rest, 0600, outside of the data directory")
	f.StringVar(&config.Listen, "listen", ":8443", "`address` to listen on")
	f.StringVar(&config.MetricsListen, "metrics-listen", "", "`address` at which Prometheus may scrape /metrics, such as 127.0.0.1:9467; anybody who reaches it may read it")
	f.StringArrayVar(&config.Names, "name", nil, "host `name` or address in the server's certificate, beside this host's own; repeatable")
	f.StringVar(&config.Advertise, "advertise", "", "`address` by which agents reach this controller, such as https://controller.example:8443, for the commands that sealctl prints; its host is one more --name (else the first --name with the port of --listen)")
	f.BoolVar(&config.Restored, "restored", false, "the data directory was restored from a backup: raise the epoch, so that nodes accept its states again, and void enrolment tokens")
	f.StringVar(&format, "log-format", "text", "text or json")
	f.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	cmd.AddCommand(secretKeyCommand())
	return cmd
}

func logger(w io.Writer, format, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q: want debug, info, warn or error", level)
	}
	options := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return nil, fmt.Errorf("--log-format %q: want text or json", format)
}
