package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/circuitseal/circuitseal/agent"
	"github.com/circuitseal/circuitseal/agent/identity"
	"github.com/circuitseal/circuitseal/agent/uplink"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// maxToken bounds what is read as a token.
const maxToken = 4 << 10

func enrollCommand(o *options) *cobra.Command {
	var controller, tokenFile, pin, node string
	var force bool
	c := &cobra.Command{
		Use:   "enroll --controller URL --token-file FILE --root-pin sha256:…",
		Short: "Enrol this host as a node, once",
		Long: `Makes this node's key, checks that the controller's root is the pinned one, and
exchanges a one-time token for a certificate. The token is read from a file or
from standard input (-), never from the command line, where others could see it.
Repeating the command after a lost answer is safe.`,
		Example: `  sealctl token create prem-1 --out prem-1.token     # beside the controller; prints this:
  circuitseal-agent enroll --controller https://controller.example:8443 \
    --root-pin sha256:… --node prem-1 --token-file prem-1.token`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			i, _, err := o.parse()
			if err != nil {
				return err
			}
			for _, name := range []string{"controller", "token-file", "root-pin"} {
				if !c.Flags().Changed(name) {
					return fmt.Errorf("%w: --%s is required", errUsage, name)
				}
			}
			u, err := uplink.ParseController(controller)
			if err != nil {
				return fmt.Errorf("%w: --controller: %w", errUsage, err)
			}
			sum, err := identity.ParsePin(pin)
			if err != nil {
				return fmt.Errorf("%w: --root-pin: %w", errUsage, err)
			}
			if err := agent.RequireRoot(); err != nil {
				return err
			}
			dir := agent.IdentityDir(i)
			target, err := place(dir, force)
			if err != nil {
				return fmt.Errorf("instance %q: %w", i, err)
			}
			token, err := readToken(tokenFile, c.InOrStdin())
			if err != nil {
				return fmt.Errorf("--token-file %s: %w", tokenFile, err)
			}
			id, err := uplink.Enrol(c.Context(), target, u, sum, token, node)
			if err != nil {
				return err
			}
			if target != dir {
				if err := identity.Replace(dir, target); err != nil {
					return err
				}
			}
			leaf, err := id.Leaf()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "enrolled as node %s until %s; an agent that runs takes it up, else start `circuitseal-agent run --instance %s`\n", id.Node, leaf.NotAfter.Format(time.RFC3339), i)
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&controller, "controller", "", "the controller's address, such as https://controller.example:8443")
	f.StringVar(&tokenFile, "token-file", "", "file with the enrolment token, or - for standard input")
	f.StringVar(&pin, "root-pin", "", "SHA-256 of the controller's root, as 'sealctl token create' prints it")
	f.StringVar(&node, "node", "", "refuse a token that is for another node than this")
	f.BoolVar(&force, "force", false, "enrol anew over an existing identity")
	return c
}

// place is where a new identity goes. A host that is enrolled keeps that
// identity until it has another, with another key; one whose identity cannot be
// read may be enrolled none the less.
func place(dir string, force bool) (string, error) {
	old, err := identity.Describe(dir)
	switch {
	case errors.Is(err, identity.ErrNotEnrolled):
		return dir, nil
	case force:
		next := dir + ".next"
		return next, identity.Clear(dir, next)
	case err != nil:
		return "", fmt.Errorf("its identity is there and cannot be used: %w; mend it, or enrol anew with --force", err)
	}
	return "", fmt.Errorf("it is enrolled already, as node %s at %s; --force enrols it anew", old.Node, old.Controller)
}

func readToken(path string, stdin io.Reader) (string, error) {
	in := stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxToken+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxToken {
		return "", fmt.Errorf("more than %d bytes: this is no token", maxToken)
	}
	token := strings.TrimSpace(string(b))
	if token == "" {
		return "", errors.New("it is empty; make a token with `sealctl token create`")
	}
	if !desired.IsToken(token) {
		return "", errors.New("it holds no enrolment token, and was not sent; want what `sealctl token create` wrote")
	}
	return token, nil
}
