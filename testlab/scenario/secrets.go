package scenario

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"rsc.io/script"

	"github.com/circuitseal/circuitseal/testlab/netns"
)

// minSecrets are those of a lab with two tunnels: the authority's, operators' and
// nodes' private keys, seven, each in two forms, three secret keys, four tunnel
// keys and two pre-shared ones, two tokens. With fewer something was not found.
const minSecrets = 25

// secrets looks for secrets where none may be: in logs with everything in them
// and the stacks of a crash, in what commands print, in arguments, environments,
// files that others can read, and data and state directories.
func (x *session) secrets(s *script.State, args []string) (output, error) {
	if x.rig == nil {
		return output{}, errNoLab
	}
	if len(args) != 1 || args[0] != "log" && args[0] != "hidden" {
		return output{}, script.ErrUsage
	}
	if args[0] == "log" {
		x.rig.Debug = true
		return output{}, nil
	}
	secrets, err := x.rig.Secrets()
	if err != nil {
		return output{}, err
	}
	if len(secrets) < minSecrets {
		return output{}, fmt.Errorf("only %d secrets are known, want %d: there are more", len(secrets), minSecrets)
	}
	printed := map[string]string{}
	for _, call := range [][]string{{"status", "-o", "json"}, {"keys", "-o", "json"}, {"get", "all", "-o", "json"}} {
		out, err := x.rig.Sealctl(s.Context(), call...)
		if err != nil {
			return output{}, err
		}
		printed["sealctl "+call[0]] = out.Stdout + out.Stderr
	}
	for _, h := range []netns.Host{netns.Prem, netns.NVA} {
		for _, command := range [][]string{{"status", "-o", "json"}, {"plan"}} {
			out, err := x.rig.Lab.Run(s.Context(), h, x.rig.AgentSpec(h, command[0], command[1:]...))
			if err != nil {
				return output{}, err
			}
			printed["agent "+command[0]+" on "+string(h)] = out.Stdout + out.Stderr
		}
	}
	// What is no secret and is in the controller's log must be found there.
	pin, err := x.rig.RootPin()
	if err != nil {
		return output{}, err
	}
	known, err := hex.DecodeString(strings.TrimPrefix(pin, "sha256:"))
	if err != nil {
		return output{}, err
	}
	if _, found := x.rig.Find(map[string][]byte{"control": known}, nil); found == nil || !strings.Contains(found.Error(), "control is in ") {
		return output{}, errors.New("the root's pin is in the controller's log and was not found: this would find no secret")
	}
	// Arguments and environments, while they live; then what is left of them.
	_, alive := x.rig.Find(secrets, printed)
	if err := errors.Join(alive, x.rig.Crash()); err != nil {
		return output{}, err
	}
	places, err := x.rig.Find(secrets, printed)
	return output{Stdout: fmt.Sprintf("%d secrets are in none of %d places\n", len(secrets), places)}, err
}
