package rig

import (
	"fmt"
	"os"
	"path/filepath"
)

// Bin is the directory with the binaries: the one given, else that of BinEnv,
// else where the running program lies.
func Bin(given string) (string, error) {
	dir := given
	if dir == "" {
		dir = os.Getenv(BinEnv)
	}
	if dir == "" {
		self, err := os.Executable()
		if err != nil {
			return "", fmt.Errorf("find the binaries: %w", err)
		}
		dir = filepath.Dir(self)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find the binaries: %w", err)
	}
	return abs, nil
}
