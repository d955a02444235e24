package scenario

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Choose picks scenarios by name, separated by commas, all if names is empty,
// and of these only those that are as fast as least says.
func Choose(all []Scenario, names string, least Fast) ([]Scenario, error) {
	var there []string
	for _, s := range all {
		there = append(there, s.Name)
	}
	var wanted []string
	for name := range strings.SplitSeq(names, ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		if !slices.Contains(there, name) {
			return nil, fmt.Errorf("there is no scenario %q; there are: %s", name, strings.Join(there, ", "))
		}
		wanted = append(wanted, name)
	}
	var chosen []Scenario
	for _, s := range all {
		if (len(wanted) == 0 || slices.Contains(wanted, s.Name)) && s.Fast >= least {
			if s.wrong != nil {
				return nil, s.wrong
			}
			chosen = append(chosen, s)
		}
	}
	if len(chosen) == 0 {
		return nil, errors.New("none of the named scenarios is marked fast here")
	}
	return chosen, nil
}

// WriteResults writes results as build/lab/host.json has them.
func WriteResults(path string, results []Result) error {
	if results == nil {
		results = []Result{}
	}
	b, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return fmt.Errorf("encode results: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}

// ReadResults reads what WriteResults wrote.
func ReadResults(path string) ([]Result, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read results: %w", err)
	}
	var results []Result
	if err := json.Unmarshal(b, &results); err != nil {
		return nil, fmt.Errorf("read results: %s: %w", path, err)
	}
	return results, nil
}
