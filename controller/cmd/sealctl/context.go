package main

import (
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func contextCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "context",
		Short: "Keep several controllers apart, and change between them",
		Long: `Keep several controllers apart, and change between them. A context is a
controller's address, the root that it is known by, and who you are there. Contexts
are kept in circuitseal/contexts.yaml in your configuration ($XDG_CONFIG_HOME, else
~/.config), or in the file of --contexts or CIRCUITSEAL_CONTEXTS:

  current: weu
  contexts:
    weu:
      server: https://controller.example:8443
      root: weu/root.pem            # or rootPin: sha256:…
      identity: weu/identity.pem    # your certificate, and your key unless key: names it

Paths are those from the file's directory. Keys stay in their own files, which
nobody but you may be able to read.`,
		Example: `  sealctl context set weu --server https://controller.example:8443 --root root.pem --identity me.pem
  sealctl context use weu
  sealctl --context neu status`,
		Args: noSubcommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(contextListCommand(o), contextShowCommand(o), contextUseCommand(o), contextSetCommand(o), contextDeleteCommand(o))
	return cmd
}

func contextListCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the contexts; * is the current one",
		Example: "  sealctl context list -o name",
		Args:    arguments(0, 0, "none"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, c, err := o.editContexts()
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			switch {
			case o.structured():
				return o.printValue(w, map[string]any{"current": c.current, "contexts": c.all})
			case o.output == "name":
				for _, n := range c.names() {
					if _, err := fmt.Fprintln(w, n); err != nil {
						return err
					}
				}
				return nil
			}
			t := newTable("CURRENT", "NAME", "SERVER", "IDENTITY").paint(o.palette(w))
			now := cmp.Or(o.context, o.getenv("CIRCUITSEAL_CONTEXT"), c.current)
			for _, n := range c.names() {
				star := ""
				if n == now {
					star = "*"
				}
				t.add(star, n, c.all[n].Server, c.all[n].Identity)
				t.mark(0, toneGood)
			}
			return t.print(w)
		},
	}
	return formats(cmd, "json", "yaml", "name")
}

// shownContext is what context show prints.
type shownContext struct {
	Context string `json:"context"`
	place
	// From says where each comes from.
	From origins `json:"from"`
	// Subject and Expires are the certificate's.
	Subject string `json:"subject,omitempty"`
	Expires string `json:"expires,omitempty"`
}

func contextShowCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show [NAME]",
		Short: "Show a context, or what is used now: flags, environment and context together",
		Example: `  sealctl context show
  sealctl context show weu -o json`,
		Args: arguments(0, 1, "maybe the name of a context"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.context = args[0]
			}
			t, err := o.resolve()
			if err != nil {
				return err
			}
			s := shownContext{Context: t.context, place: t.place, From: t.from.of(t.place)}
			if b, _, err := readPEM(t.Identity); err == nil {
				s.Subject, s.Expires = certificateFacts(b)
			}
			w := cmd.OutOrStdout()
			if o.structured() {
				return o.printValue(w, s)
			}
			table := newTable("WHAT", "USED", "FROM").paint(o.palette(w))
			for _, row := range [][3]string{
				{"context", s.Context}, {"server", s.Server, s.From.Server}, {"root", s.Root, when(s.Root, s.From.Root)}, {"root pin", s.RootPin, when(s.RootPin, s.From.Root)},
				{"identity", s.Identity, s.From.Identity}, {"key", cmp.Or(s.Key, s.Identity), cmp.Or(s.From.Key, s.From.Identity)}, {"subject", s.Subject}, {"expires", s.Expires},
			} {
				table.add(row[:]...)
			}
			if err := table.print(w); err != nil {
				return err
			}
			if mixed := t.mixture(); mixed != "" && s.Identity != "" {
				_, err = fmt.Fprintf(cmd.ErrOrStderr(), "%s\n", line(mixed))
			}
			return err
		},
		ValidArgsFunction: completeContexts(o),
	}
	return formats(cmd, "json", "yaml")
}

// of leaves out where nothing comes from.
func (f origins) of(p place) origins {
	return origins{when(p.Server, f.Server), when(p.Root+p.RootPin, f.Root), when(p.Identity, f.Identity), when(p.Key, f.Key)}
}

// certificateFacts are of the first certificate of PEM, as far as there is one.
func certificateFacts(b []byte) (subject, expires string) {
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return "", ""
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return "", ""
		}
		subject = c.Subject.String()
		if len(c.URIs) > 0 {
			subject = c.URIs[0].String()
		}
		return subject, c.NotAfter.UTC().Format(time.RFC3339)
	}
}

func contextUseCommand(o *options) *cobra.Command {
	return formats(&cobra.Command{
		Use:     "use NAME",
		Short:   "Make a context the current one",
		Example: "  sealctl context use weu",
		Args:    arguments(1, 1, "the name of a context"),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, c, err := o.editContexts()
			if err != nil {
				return err
			}
			if _, err := c.place(args[0]); err != nil {
				return err
			}
			c.current = args[0]
			if err := writeContexts(path, c); err != nil {
				return fmt.Errorf("write contexts: %w", err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "context %s is the current one%s\n", args[0], o.before())
			return err
		},
		ValidArgsFunction: completeContexts(o),
	})
}

func contextSetCommand(o *options) *cobra.Command {
	var use bool
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "Make or change a context from --server, --root or --root-pin, --identity and --key",
		Long: `Make a context, or change what flags name of one that is there. What a new one
lacks is taken from SEALCTL_SERVER, SEALCTL_ROOT and so on. The files are read first:
a context that cannot work is not kept. The first context becomes the current one.`,
		Example: `  sealctl context set weu --server https://controller.example:8443 --root root.pem --identity me.pem
  sealctl context set neu --server https://neu.example:8443 --root-pin sha256:… --identity me.pem --key me.key --use`,
		Args: arguments(1, 1, "a name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			if err := validContextName(name); err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			path, c, err := o.editContexts()
			if err != nil {
				return err
			}
			p, err := o.newPlace(c.all[name])
			if err != nil {
				return err
			}
			_, there := c.all[name]
			c.all[name] = p
			if use || len(c.all) == 1 {
				c.current = name
			}
			if err := writeContexts(path, c); err != nil {
				return fmt.Errorf("write contexts: %w", err)
			}
			action := "created"
			if there {
				action = "changed"
			}
			note := "; it is the current one"
			switch {
			case c.current == "":
				note = "; none is the current one: `sealctl context use " + name + "` makes it so"
			case c.current != name:
				note = "; the current one is still " + c.current
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "context %s %s in %s%s%s\n", name, action, path, note, o.before())
			return err
		},
		ValidArgsFunction: completeContexts(o),
	}
	cmd.Flags().BoolVar(&use, "use", false, "make it the current one")
	return formats(cmd)
}

// before says which of the environment goes before the current context, for
// whoever has just chosen one.
func (o *options) before() string {
	var set []string
	for _, name := range []string{"SEALCTL_SERVER", "SEALCTL_IDENTITY", "SEALCTL_KEY", "SEALCTL_ROOT", "SEALCTL_ROOT_PIN", "CIRCUITSEAL_CONTEXT"} {
		if o.getenv(name) != "" {
			set = append(set, name)
		}
	}
	if set == nil {
		return ""
	}
	return "; as long as it is set, the environment goes before it: " + strings.Join(set, ", ")
}

// newPlace is what flags make of a context, checked.
func (o *options) newPlace(old place) (place, error) {
	p := place{Server: o.server, Root: o.root, RootPin: o.rootPin, Identity: o.identity, Key: o.key}.or(old)
	if old == (place{}) {
		p = p.or(place{
			Server: o.getenv("SEALCTL_SERVER"), Root: o.getenv("SEALCTL_ROOT"), RootPin: o.getenv("SEALCTL_ROOT_PIN"),
			Identity: o.getenv("SEALCTL_IDENTITY"), Key: o.getenv("SEALCTL_KEY"),
		})
	}
	if err := p.complete(); err != nil {
		return p, fmt.Errorf("%w: %w (--server, --root or --root-pin, --identity, --key)", errUsage, err)
	}
	var err error
	if p.Server, err = parseServer(p.Server); err != nil {
		return p, fmt.Errorf("%w: --server %w", errUsage, err)
	}
	for _, f := range []*string{&p.Root, &p.Identity, &p.Key} {
		if *f == "" {
			continue
		}
		if *f, err = filepath.Abs(*f); err != nil {
			return p, err
		}
	}
	if _, err := readIdentity(p.Identity, p.Key); err != nil {
		return p, withCode(exitIdentity, err)
	}
	_, err = trust(p)
	return p, err
}

func contextDeleteCommand(o *options) *cobra.Command {
	return formats(&cobra.Command{
		Use:     "delete NAME",
		Short:   "Forget a context; files that it names stay",
		Example: "  sealctl context delete weu",
		Args:    arguments(1, 1, "the name of a context"),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, c, err := o.editContexts()
			if err != nil {
				return err
			}
			if _, err := c.place(args[0]); err != nil {
				return err
			}
			delete(c.all, args[0])
			note := ""
			if c.current == args[0] {
				c.current, note = "", "; none is the current one now: `sealctl context use NAME` chooses"
			}
			if err := writeContexts(path, c); err != nil {
				return fmt.Errorf("write contexts: %w", err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "context %s deleted%s\n", args[0], note)
			return err
		},
		ValidArgsFunction: completeContexts(o),
	})
}

// editContexts is the file of contexts and what is in it: nothing where there
// is no file yet.
func (o *options) editContexts() (string, *contexts, error) {
	path, _, err := o.contextsFile()
	if err != nil {
		return "", nil, err
	}
	c, err := readContexts(path)
	if errors.Is(err, fs.ErrNotExist) {
		return path, &contexts{all: map[string]place{}}, nil
	}
	return path, c, err
}
