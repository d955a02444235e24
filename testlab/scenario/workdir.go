package scenario

import (
	"fmt"
	"os"
	"path/filepath"
)

// workDir is a fresh directory for a scenario; remove takes it away when it is
// a temporary one.
func workDir(base, name string) (dir string, remove func(), err error) {
	if base == "" {
		dir, err := os.MkdirTemp("", "circuitseal-scenario-")
		if err != nil {
			return "", nil, fmt.Errorf("make a directory for the scenario: %w", err)
		}
		return dir, func() { _ = os.RemoveAll(dir) }, nil
	}
	dir, err = filepath.Abs(filepath.Join(base, name))
	if err == nil {
		err = os.RemoveAll(dir)
	}
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err != nil {
		return "", nil, fmt.Errorf("make a directory for the scenario: %w", err)
	}
	return dir, func() {}, nil
}
