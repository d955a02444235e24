package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// engineDir is the engine's part of the data directory.
const engineDir = "etcd"

// firstStart returns the directory of the engine's files and makes it where
// there is none. The engine cannot finish a first start of its own that was cut
// short: it would wait for ever for members that nobody has written down. So it
// makes its files under another name, and they get the right one when they are
// whole. Nothing was promised to anybody before that, and what is left of a
// first start that was cut is thrown away.
func firstStart(ctx context.Context, c Config, quota int64) (string, error) {
	dir := filepath.Join(c.Dir, engineDir)
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return dir, err
	}
	unfinished := dir + ".unfinished"
	if err := os.RemoveAll(unfinished); err != nil {
		return "", fmt.Errorf("start store in %s: throw away a first start that was cut short: %w", c.Dir, err)
	}
	first := &Store{log: c.Log, secrets: c.Secrets, dir: c.Dir, died: &death{done: make(chan struct{})}}
	err := first.start(ctx, c, unfinished, quota)
	first.stop()
	if err != nil {
		return "", err
	}
	if err := errors.Join(syncTree(unfinished), os.Rename(unfinished, dir), syncFile(c.Dir)); err != nil {
		return "", fmt.Errorf("start store in %s: %w", c.Dir, err)
	}
	return dir, nil
}

// syncTree makes everything below dir durable, names included.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return syncFile(path)
	})
}

// syncFile makes a file or the names in a directory durable.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
