package schema

import (
	"os"
	"path/filepath"
)

// Files are the files that hold the schema, by their paths from dir, which is
// the directory of this package.
func Files(dir string) (map[string][]byte, error) {
	paths, err := filepath.Glob(filepath.Join(dir, "../../deploy/samples/*.yaml"))
	if err != nil {
		return nil, err
	}
	var samples []string
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		samples = append(samples, string(b))
	}
	s, err := Build(filepath.Join(dir, "../model"), samples)
	if err != nil {
		return nil, err
	}
	j, err := s.JSON()
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		filepath.Join(dir, "../cmd/sealctl/schema.json"): j,
		filepath.Join(dir, "../../docs/documents.md"):    s.Markdown(),
	}, nil
}
