package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// target is where calls go and as whom: what flags, environment and a context
// say together.
type target struct {
	place
	// context is the name of the one that gave something, or "".
	context string
	from    origins
}

// origins say where settings come from: the name of a flag, of a variable of the
// environment, or a context and its file.
type origins struct {
	Server   string `json:"server,omitempty"`
	Root     string `json:"root,omitempty"`
	Identity string `json:"identity,omitempty"`
	Key      string `json:"key,omitempty"`
}

// resolve joins what is said. What is nearer to the command wins: flags, then
// the context of --context, then SEALCTL_SERVER and its like, then the context
// of CIRCUITSEAL_CONTEXT or the current one.
func (o *options) resolve() (target, error) {
	t := target{place{Server: o.server, Root: o.root, RootPin: o.rootPin, Identity: o.identity, Key: o.key}, "",
		origins{"--server", cmp.Or(when(o.rootPin, "--root-pin"), "--root"), "--identity", "--key"}}
	if o.context == "" {
		env := place{
			Server: o.getenv("SEALCTL_SERVER"), Root: o.getenv("SEALCTL_ROOT"), RootPin: o.getenv("SEALCTL_ROOT_PIN"),
			Identity: o.getenv("SEALCTL_IDENTITY"), Key: o.getenv("SEALCTL_KEY"),
		}
		t = t.or(target{env, "", origins{"SEALCTL_SERVER", cmp.Or(when(env.RootPin, "SEALCTL_ROOT_PIN"), "SEALCTL_ROOT"), "SEALCTL_IDENTITY", "SEALCTL_KEY"}})
	}
	if o.context != "" || t.complete() != nil {
		found, name, err := o.findContext()
		if err != nil {
			return target{}, err
		}
		if name != "" {
			file, _, err := o.contextsFile()
			if err != nil {
				return target{}, err
			}
			origin := fmt.Sprintf("context %s (%s)", name, file)
			t = t.or(target{found, name, origins{origin, origin, origin, origin}})
			t.context = name
		}
	}
	return t.or(target{place: place{Server: defaultServer}, from: origins{Server: "default"}}), nil
}

// when is a name where its value is set.
func when(value, name string) string {
	if value == "" {
		return ""
	}
	return name
}

// or is place.or, with where everything comes from.
func (t target) or(q target) target {
	filled := target{t.place.or(q.place), cmp.Or(t.context, q.context), t.from}
	if t.Server == "" {
		filled.from.Server = q.from.Server
	}
	if t.Root == "" && t.RootPin == "" {
		filled.from.Root = q.from.Root
	}
	if t.Identity == "" {
		filled.from.Identity = q.from.Identity
		if t.Key == "" {
			filled.from.Key = q.from.Key
		}
	}
	return filled
}

// mixture says which setting comes from where when they come from several places,
// which may well not belong together; else it is "".
func (t target) mixture() string {
	class := func(origin string) string {
		word, _, _ := strings.Cut(origin, "_")
		if strings.HasPrefix(word, "--") {
			word = "--"
		}
		return word
	}
	if a := class(t.from.Server); a == class(t.from.Root) && a == class(t.from.Identity) {
		return ""
	}
	return fmt.Sprintf("the settings come from several places: the server from %s, the root from %s, the identity from %s; see that they belong to one controller (`sealctl context show`)",
		t.from.Server, t.from.Root, t.from.Identity)
}

// or fills what p leaves open. A root, and an identity with its key, are things
// as wholes.
func (p place) or(q place) place {
	if p.Root == "" && p.RootPin == "" {
		p.Root, p.RootPin = q.Root, q.RootPin
	}
	if p.Identity == "" {
		p.Identity, p.Key = q.Identity, cmp.Or(p.Key, q.Key)
	}
	p.Server = cmp.Or(p.Server, q.Server)
	return p
}

// findContext is the context that is named or current; none is no error where
// nobody has named one.
func (o *options) findContext() (place, string, error) {
	file, named, err := o.contextsFile()
	if err != nil {
		return place{}, "", err
	}
	c, err := readContexts(file)
	name := cmp.Or(o.context, o.getenv("CIRCUITSEAL_CONTEXT"))
	if errors.Is(err, fs.ErrNotExist) {
		switch {
		case name != "":
			return place{}, "", fmt.Errorf("there is no context %q: the file %s is not there; `sealctl context set` makes it", name, file)
		case named:
			return place{}, "", fmt.Errorf("there is no file of contexts %s; `sealctl context set` makes it", file)
		}
		return place{}, "", nil
	}
	if err != nil {
		return place{}, "", err
	}
	if name = cmp.Or(name, c.current); name == "" {
		return place{}, "", nil
	}
	p, err := c.place(name)
	return p, name, err
}

// contextsFile is the path of the file of contexts, and whether somebody has
// named it.
func (o *options) contextsFile() (path string, named bool, err error) {
	if path = cmp.Or(o.contexts, o.getenv("CIRCUITSEAL_CONTEXTS")); path != "" {
		path, err = filepath.Abs(path)
		return path, true, err
	}
	// The XDG base directory specification ignores what is not absolute.
	if dir := o.getenv("XDG_CONFIG_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "circuitseal", "contexts.yaml"), false, nil
	}
	home := o.getenv("HOME")
	if home == "" {
		if home, err = os.UserHomeDir(); err != nil {
			// A service has no home: the path is one that is not there.
			return filepath.Join(os.DevNull, "contexts.yaml"), false, nil //nolint:nilerr // no home, no contexts
		}
	}
	return filepath.Join(home, ".config", "circuitseal", "contexts.yaml"), false, nil
}

// readContexts reads a file of contexts; fs.ErrNotExist where there is none.
func readContexts(path string) (*contexts, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file", path)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return nil, withCode(exitIdentity, fmt.Errorf("%s can be changed by others (mode %#o), who could send you to a controller of theirs: see what is in it, and run `chmod go-w %s`", path, info.Mode().Perm(), path))
	}
	b, err := readAll(f, maxContextsFile)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return parseContexts(path, b)
}

// writeContexts replaces the file at once, readable by its owner only.
func writeContexts(path string, c *contexts) (err error) {
	b, err := c.encode()
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".contexts-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if _, err = f.Write(b); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
