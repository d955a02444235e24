package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

const (
	// maxSource and maxSources are a little above what the controller takes,
	// so that its own error, which says more, is what is seen.
	maxSource  = 64<<20 + 1<<20
	maxSources = 1000
	// maxTotal is the most that the controller takes at once, in bytes.
	maxTotal = 64 << 20
	// maxDepth is how deep -R looks.
	maxDepth = 32
)

// fileFlags are -f and -R.
type fileFlags struct {
	names     []string
	recursive bool
}

func (f *fileFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringArrayVarP(&f.names, "file", "f", nil, "`file`, directory (its *.yaml, *.yml and *.json, sorted) or - for stdin; repeatable")
	cmd.Flags().BoolVarP(&f.recursive, "recursive", "R", false, "look into directories of directories, too")
	_ = cmd.MarkFlagFilename("file", "yaml", "yml", "json")
}

// read reads what the flags name.
func (f *fileFlags) read(stdin io.Reader) ([]*v1.Source, error) {
	return readSources(f.names, f.recursive, stdin)
}

// readAll reads a file to its end, up to a number of bytes.
func readAll(r io.Reader, most int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > most {
		return nil, fmt.Errorf("has more than %d bytes", most)
	}
	return b, nil
}

// readSources reads what -f names: files, directories (their *.yaml, *.yml and
// *.json, sorted, deeper ones where recursive is set) and "-" for stdin.
func readSources(names []string, recursive bool, stdin io.Reader) ([]*v1.Source, error) {
	if len(names) == 0 {
		return nil, fmt.Errorf("%w: name files, directories or - with -f", errUsage)
	}
	var (
		sources []*v1.Source
		errs    []error
		stdins  int
		total   int
	)
	for _, name := range names {
		if name == "-" {
			if stdins++; stdins > 1 {
				return nil, fmt.Errorf("%w: -f - is there twice", errUsage)
			}
			b, err := readAll(stdin, maxSource)
			if err != nil {
				return nil, fmt.Errorf("read stdin: %w", err)
			}
			s, err := source(name, b)
			sources, errs = append(sources, s), append(errs, err)
			continue
		}
		paths, err := expand(name, recursive)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if len(sources)+len(paths) > maxSources {
			return nil, fmt.Errorf("more than %d files; apply them in several steps", maxSources)
		}
		for _, p := range paths {
			b, err := readFile(p)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			if total += len(b); total > maxTotal {
				return nil, fmt.Errorf("the files up to %s have more than %d bytes together; apply them in several steps", p, maxTotal)
			}
			s, err := source(p, b)
			sources, errs = append(sources, s), append(errs, err)
		}
	}
	return sources, errors.Join(errs...)
}

// maxNamed is how many files a sentence names.
const maxNamed = 8

// names names sources.
func names(sources []*v1.Source) string {
	var all []string
	for _, s := range sources[:min(len(sources), maxNamed)] {
		all = append(all, s.GetName())
	}
	text := strings.Join(all, ", ")
	if n := len(sources) - maxNamed; n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	return text
}

// source is a text with its name. Two things are refused here and not by the
// controller: what is no UTF-8, which the wire does not carry, and secrets, which
// must not leave this host because somebody mistyped a file's name.
func source(name string, b []byte) (*v1.Source, error) {
	if what := secretIn(b); what != "" {
		return nil, fmt.Errorf("%s holds %s and no documents; it was not sent", name, what)
	}
	if !utf8.Valid(b) {
		at := bytes.IndexRune(b, utf8.RuneError)
		return nil, fmt.Errorf("%s:%d: is no UTF-8; want text in UTF-8", name, 1+bytes.Count(b[:max(0, at)], []byte("\n")))
	}
	return &v1.Source{Name: name, Text: string(b)}, nil
}

// tokenPrefix begins every enrolment token.
const tokenPrefix = "cst1."

// secretKeyPrefix begins every key in a secret key file.
const secretKeyPrefix = "cskey1."

// secretIn says what secret a file is, if it is one. No line of a document begins
// so, but for a gateway's certificates, which stand indented in one.
func secretIn(b []byte) string {
	found := ""
	for whole := range bytes.Lines(b) {
		l := bytes.TrimSpace(whole)
		switch {
		case bytes.HasPrefix(l, []byte(tokenPrefix)):
			return "an enrolment token"
		case bytes.HasPrefix(l, []byte(secretKeyPrefix)):
			return "a secret key"
		case !bytes.HasPrefix(l, []byte("-----BEGIN ")):
		case bytes.Contains(l, []byte("PRIVATE KEY-----")):
			return "a private key"
		case bytes.HasPrefix(l, []byte("-----BEGIN CERTIFICATE-----")) && len(whole) > 0 && whole[0] == ' ':
		default:
			found = "PEM"
		}
	}
	return found
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	b, err := readAll(f, maxSource)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return b, nil
}

// expand is the files that a name stands for.
func expand(name string, recursive bool) ([]string, error) {
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no file or directory %s", name)
	}
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{name}, nil
	}
	depth := 0
	if recursive {
		depth = maxDepth
	}
	paths, err := walk(name, depth, nil)
	if err != nil {
		return nil, err
	}
	if paths == nil {
		hint := ""
		if !recursive {
			hint = "; -R looks deeper"
		}
		return nil, fmt.Errorf("directory %s holds no *.yaml, *.yml or *.json%s", name, hint)
	}
	return paths, nil
}

// walk adds the documents of a directory and of those in it, in the order of
// their paths, without what is hidden.
func walk(dir string, depth int, paths []string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		ext := strings.ToLower(filepath.Ext(e.Name()))
		switch {
		case strings.HasPrefix(e.Name(), "."):
		case e.IsDir() && depth > 0:
			if paths, err = walk(path, depth-1, paths); err != nil {
				return nil, err
			}
		case e.IsDir() || !slices.Contains([]string{".yaml", ".yml", ".json"}, ext):
		case len(paths) > maxSources:
			return paths, nil
		default:
			// A link may lead to a directory, or to what never ends.
			if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
				continue
			}
			paths = append(paths, path)
		}
	}
	return paths, nil
}
