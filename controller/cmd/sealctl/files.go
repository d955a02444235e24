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

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

const (
	// maxSource and maxSources are a little above what the controller takes,
	// so that its own error, which says more, is what is seen.
	maxSource  = 4 << 20
	maxSources = 1000
)

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
// *.json, sorted, not deeper) and "-" for stdin.
func readSources(names []string, stdin io.Reader) ([]*v1.Source, error) {
	if len(names) == 0 {
		return nil, fmt.Errorf("%w: name files, directories or - with -f", errUsage)
	}
	var (
		sources []*v1.Source
		errs    []error
		stdins  int
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
		paths, err := expand(name)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, p := range paths {
			b, err := readFile(p)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			s, err := source(p, b)
			sources, errs = append(sources, s), append(errs, err)
		}
		if len(sources) > maxSources {
			return nil, fmt.Errorf("more than %d files; apply them in several steps", maxSources)
		}
	}
	return sources, errors.Join(errs...)
}

// source is a text with its name. The wire carries UTF-8 only, so this is the
// one thing that is refused here and not by the controller.
func source(name string, b []byte) (*v1.Source, error) {
	if !utf8.Valid(b) {
		at := bytes.IndexRune(b, utf8.RuneError)
		return nil, fmt.Errorf("%s:%d: is no UTF-8; want text in UTF-8", name, 1+bytes.Count(b[:max(0, at)], []byte("\n")))
	}
	return &v1.Source{Name: name, Text: string(b)}, nil
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
func expand(name string) ([]string, error) {
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
	entries, err := os.ReadDir(name)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		ext := strings.ToLower(filepath.Ext(e.Name()))
		if !e.IsDir() && !strings.HasPrefix(e.Name(), ".") && slices.Contains([]string{".yaml", ".yml", ".json"}, ext) {
			paths = append(paths, filepath.Join(name, e.Name()))
		}
	}
	if paths == nil {
		return nil, fmt.Errorf("directory %s holds no *.yaml, *.yml or *.json", name)
	}
	return paths, nil
}
