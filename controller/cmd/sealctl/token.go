package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
)

func tokenCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "token",
		Short:   "Make one-time tokens with which nodes enrol",
		Example: `  sealctl token create nva-1 --out nva-1.token`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && args[0] == "list" {
				return fmt.Errorf("%w: there is no command %q: tokens are secrets and are not listed; `sealctl token create NODE` makes one, which voids an older one, and `sealctl node list` says which nodes are enrolled", errUsage, args[0])
			}
			return noSubcommand(cmd, args)
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(tokenCreateCommand(o))
	return cmd
}

func tokenCreateCommand(o *options) *cobra.Command {
	var (
		lifetime time.Duration
		out      string
	)
	cmd := &cobra.Command{
		Use:   "create NODE",
		Short: "Make a one-time token with which a host enrols as a node",
		Long: `Make a one-time token with which a host enrols as a node. An older token of the
node that is not used yet is void then.

The token is a secret: with --out it goes to a file that only you can read, and
not to the terminal.`,
		Example: `  sealctl token create nva-1 --out nva-1.token
  sealctl token create nva-1 --lifetime 24h | ssh nva-1 'umask 077; cat > token'`,
		Args:              arguments(1, 1, "the name of a node"),
		ValidArgsFunction: completeNodes(o),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if lifetime <= 0 {
				return fmt.Errorf("%w: --lifetime %s: want more than 0", errUsage, lifetime)
			}
			c, err := o.connect()
			if err != nil {
				return err
			}
			defer c.close()
			var file *os.File
			if out != "" {
				// Before the call: a token that cannot be kept is not made.
				if file, err = createSecret(out); err != nil {
					return err
				}
				defer func() {
					err = errors.Join(err, file.Close())
					if err != nil {
						err = errors.Join(err, os.Remove(out))
					}
				}()
			}
			service := circuitsealv1connect.NewNodeServiceClient(c.client, c.server, limits())
			answer, err := call(cmd.Context(), o, service.CreateToken, &v1.CreateTokenRequest{Node: args[0], Lifetime: durationpb.New(lifetime)})
			if err != nil {
				return usage(err)
			}
			return deliver(cmd, o, answer, file, c.server)
		},
	}
	cmd.Flags().DurationVar(&lifetime, "lifetime", time.Hour, "how long the token is good, at most 168h")
	cmd.Flags().StringVar(&out, "out", "", "write the token to this new `file`, readable by you only")
	return cmd
}

// createSecret makes a file that nobody else can read and that was not there.
func createSecret(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("%s is there already and is not overwritten: remove it, or name another file with --out", path)
	}
	return f, err
}

// deliver hands the token over: to the file, or to stdout when there is none.
// How to use it goes to stderr, so that stdout can be piped.
func deliver(cmd *cobra.Command, o *options, answer *v1.CreateTokenResponse, file *os.File, server string) error {
	stdout, source := cmd.OutOrStdout(), "FILE"
	how := "Put it into a file there that only root can read, FILE here, and run:"
	if file != nil {
		source = filepath.Base(file.Name())
		how = fmt.Sprintf("Copy %s there by a way that keeps it secret, such as scp, and run:", line(file.Name()))
		if _, err := fmt.Fprintln(file, answer.GetToken()); err != nil {
			return fmt.Errorf("write token: %w", err)
		}
		answer.Token = ""
	}
	switch {
	case o.json():
		if err := printJSON(stdout, answer); err != nil {
			return err
		}
	case file == nil:
		if _, err := fmt.Fprintln(stdout, clean(answer.GetToken())); err != nil {
			return err
		}
	}
	address, note := agentsAddress(answer.GetController(), server)
	_, err := fmt.Fprintf(cmd.ErrOrStderr(), `The token is good once, until %s, for the host that is to be %s.
%s
  circuitseal-agent enroll --controller %s --root-pin %s --node %s --token-file %s
%s`, answer.GetExpires().AsTime().UTC().Format(time.RFC3339), line(answer.GetNode()), how,
		line(address), line(answer.GetRootPin()), line(answer.GetNode()), line(source), note)
	return err
}

// agentsAddress is the address by which agents reach the controller: the one that
// it says, else the one by which sealctl does, unless that works on one host only.
func agentsAddress(advertised, server string) (address, note string) {
	u, err := url.Parse(server)
	if advertised != "" || err != nil {
		return advertised, ""
	}
	host := u.Hostname()
	if ip, err := netip.ParseAddr(host); host == "localhost" || err == nil && ip.Unmap().IsLoopback() {
		u.Host = net.JoinHostPort("CONTROLLER", u.Port())
		return u.String(), "CONTROLLER is the name or address by which that host reaches the controller; with --advertise or --name\nthe controller knows it, and this command prints it.\n"
	}
	return server, ""
}
