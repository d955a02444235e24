package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

// completionTimeout is how long a shell's user waits for words of a controller.
const completionTimeout = 2 * time.Second

func completionCommand() *cobra.Command {
	return formats(&cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print what makes a shell complete sealctl's words",
		Long: `Print what makes a shell complete commands, flags, kinds, fields, contexts, and,
where a controller answers within two seconds, customers, nodes and names. Bash needs
the package bash-completion for it, zsh 'autoload -U compinit; compinit' before.`,
		Example: `  source <(sealctl completion bash)
  sealctl completion zsh > "${fpath[1]}/_sealctl"
  sealctl completion fish > ~/.config/fish/completions/sealctl.fish`,
		Args:      arguments(1, 1, "bash, zsh or fish"),
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: func(cmd *cobra.Command, args []string) error {
			w := cmd.OutOrStdout()
			switch args[0] {
			case "bash":
				return cmd.Root().GenBashCompletionV2(w, true)
			case "zsh":
				return cmd.Root().GenZshCompletion(w)
			case "fish":
				return cmd.Root().GenFishCompletion(w, true)
			}
			return fmt.Errorf("%w: there is no completion for %q; want bash, zsh or fish", errUsage, args[0])
		},
	})
}

// starting are the words that begin so.
func starting(with string, words []string) []string {
	var some []string
	for _, w := range words {
		if strings.HasPrefix(w, with) {
			some = append(some, w)
		}
	}
	return some
}

// completeFlags completes the values of flags, everywhere.
func completeFlags(root *cobra.Command, o *options) {
	words := func(c *cobra.Command, flag string, f func(*cobra.Command) []string) {
		// An error means a second registration, which a test would show.
		_ = c.RegisterFlagCompletionFunc(flag, func(c *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
			return starting(word, f(c)), cobra.ShellCompDirectiveNoFileComp
		})
	}
	words(root, "output", outputs)
	words(root, "color", func(*cobra.Command) []string { return colourModes })
	words(root, "context", func(*cobra.Command) []string { return o.contextNames() })
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		for flag, kind := range map[string]string{"customer": "Customer", "node": "Node"} {
			if c.Flags().Lookup(flag) != nil {
				words(c, flag, func(c *cobra.Command) []string { return o.names(c.Context(), kind, "") })
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	for _, c := range root.Commands() {
		if c.Name() == "plan" {
			_ = c.RegisterFlagCompletionFunc("delete", func(c *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
				none := ""
				words, directive := completeDocuments(o, &none)(c, nil, word)
				return words, directive | cobra.ShellCompDirectiveNoSpace
			})
		}
	}
}

// completeDocuments completes a kind and then a name, or kind/customer/name;
// customer is the flag.
func completeDocuments(o *options, customer *string) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		const plain = cobra.ShellCompDirectiveNoFileComp
		kind, _, whole := strings.Cut(word, "/")
		switch {
		case len(args) == 0 && whole:
			return starting(word, o.references(c.Context(), kind, *customer, kind+"/")), plain
		case len(args) == 0:
			var kinds []string
			for _, k := range kindNames() {
				kinds = append(kinds, strings.ToLower(k))
			}
			if c.Name() == "get" {
				kinds = append(kinds, "all")
			}
			return starting(word, kinds), plain
		case len(args) > 1:
			return nil, plain
		}
		// A delete wants to know whose it is.
		if k, ok := findKind(args[0]); whole || ok && k.Customer && c.Name() == "delete" && *customer == "" {
			return starting(word, o.references(c.Context(), args[0], *customer, "")), plain
		}
		return starting(word, o.names(c.Context(), args[0], *customer)), plain
	}
}

// completeNodes completes the name of a node.
func completeNodes(o *options) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return starting(word, o.names(c.Context(), "Node", "")), cobra.ShellCompDirectiveNoFileComp
	}
}

func completeContexts(o *options) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return starting(word, o.contextNames()), cobra.ShellCompDirectiveNoFileComp
	}
}

func (o *options) contextNames() []string {
	_, c, err := o.editContexts()
	if err != nil {
		return nil
	}
	return c.names()
}

// names are the names of documents of a kind.
func (o *options) names(ctx context.Context, kind, customer string) []string {
	seen := map[string]bool{}
	var names []string
	for _, d := range o.documents(ctx, kind, customer) {
		if n := line(d.GetName()); !seen[n] {
			seen[n] = true
			names = append(names, n)
		}
	}
	return names
}

// references are documents of a kind as customer/name, or name where the kind has
// no customer, after a prefix.
func (o *options) references(ctx context.Context, kind, customer, prefix string) []string {
	var all []string
	for _, d := range o.documents(ctx, kind, customer) {
		_, rest, _ := strings.Cut(name(d), "/")
		all = append(all, prefix+line(rest))
	}
	return all
}

// documents are those of a kind. What goes wrong is not said: nobody has asked for
// anything yet.
func (o *options) documents(ctx context.Context, kind, customer string) []*v1.Document {
	short := *o
	short.timeout = min(completionTimeout, max(o.timeout, time.Millisecond))
	c, err := short.connect()
	if err != nil {
		return nil
	}
	defer c.close()
	if ctx == nil {
		ctx = context.Background()
	}
	answer, err := newPolicyClient(c, &short).get(ctx, &v1.GetRequest{Kind: kind, Customer: customer})
	if err != nil {
		return nil
	}
	return answer.GetDocuments()
}
