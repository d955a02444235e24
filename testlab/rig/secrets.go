package rig

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/sealed"
	"github.com/circuitseal/circuitseal/testlab/netns"
)

// Crash ends the controller, all agents and all WireGuard processes so that
// each writes the stacks of all that it was doing to its log, as a crash does.
func (r *Rig) Crash() error {
	var pids []int
	if r.controller != nil && r.controller.Alive() {
		pids = append(pids, r.controller.PID())
	}
	for h, n := range r.nodes {
		if n.agent != nil && n.agent.Alive() {
			pids = append(pids, n.agent.PID())
		}
		pids = append(pids, r.WireGuardPIDs(h)...)
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGQUIT); err != nil {
			return fmt.Errorf("crash process %d: %w", pid, err)
		}
	}
	return until(context.Background(), r.slow.Longer(patience), "what was crashed has ended", func() error {
		for _, pid := range pids {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			// The state comes after the name's closing parenthesis (proc(5)).
			if i := bytes.LastIndexByte(b, ')'); err == nil && i+2 < len(b) && b[i+2] != 'Z' {
				return fmt.Errorf("process %d lives", pid)
			}
		}
		return nil
	})
}

// Secrets are all that the product keeps secret in this lab, by what each is:
// read from where they lie, with the keys that open them.
func (r *Rig) Secrets() (map[string][]byte, error) {
	found := map[string][]byte{}
	add := func(what string, secret []byte) error {
		if len(secret) < 16 {
			return fmt.Errorf("%s has %d bytes: too few to look for", what, len(secret))
		}
		found[what] = secret
		return nil
	}
	errs := []error{
		pemSecrets(r.DataDir(), r.SecretKeyFile(), add), r.keyLines(r.SecretKeyFile(), add),
	}
	for h, n := range r.nodes {
		if n.agent == nil {
			continue
		}
		state := netns.StateDir(r.Lab.Instance(h))
		errs = append(errs, pemSecrets(state, r.agentKeyFile(h), add), r.keyLines(r.agentKeyFile(h), add), r.nodeSecrets(h, n.name, state, add))
	}
	tokens, err := filepath.Glob(filepath.Join(r.private, "token-*"))
	errs = append(errs, err)
	for _, path := range tokens {
		b, err := os.ReadFile(path)
		errs = append(errs, err, add("enrolment token of "+filepath.Base(path), bytes.TrimSpace(b)))
	}
	return found, errors.Join(errs...)
}

type adder func(what string, secret []byte) error

// pemSecrets are the private keys in a directory, encrypted or not: the private
// scalar of each, and the line of its text that is most of that. It wants some of them.
func pemSecrets(dir, secretKeyFile string, add adder) error {
	ring, err := sealed.Load(secretKeyFile, dir)
	if err != nil {
		return err
	}
	n := 0
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, place := range []string{"key of the authority\x00" + d.Name(), "session key of a node"} {
			if plain, _, err := ring.Open(place, b); err == nil {
				b = plain
				n++
			}
		}
		for rest := b; ; {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				return nil
			}
			if strings.Contains(block.Type, "PRIVATE KEY") {
				// PKCS #8 of P-384: the private scalar stands after 35 bytes of
				// structure (RFC 5915).
				if len(block.Bytes) < 35+48 {
					return fmt.Errorf("%s: a key of %d bytes", path, len(block.Bytes))
				}
				text := bytes.Split(pem.EncodeToMemory(block), []byte("\n"))
				if err := errors.Join(add("private key in "+path, block.Bytes[35:35+48]), add("text of the private key in "+path, text[2])); err != nil {
					return err
				}
			}
		}
	})
	if err == nil && n == 0 {
		err = fmt.Errorf("none of the keys in %s is encrypted", dir)
	}
	return err
}

// keyLines are the keys of a secret key file, as text and as bytes.
func (r *Rig) keyLines(path string, add adder) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") || line == "" {
			continue
		}
		raw, err := base64.RawURLEncoding.DecodeString(line[strings.LastIndexByte(line, '.')+1:])
		if err := errors.Join(err, add("secret key of "+path, raw)); err != nil {
			return err
		}
	}
	return nil
}

// nodeSecrets are what a node keeps sealed: the private keys of its tunnels, and
// the pre-shared keys of its state.
func (r *Rig) nodeSecrets(h netns.Host, node, state string, add adder) error {
	ring, err := sealed.Load(r.agentKeyFile(h), state)
	if err != nil {
		return err
	}
	status, err := r.Status(context.Background(), h)
	if err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(state, "wireguard", "*.key"))
	if err != nil || len(files) != len(status.Tunnels) {
		return fmt.Errorf("%d keys of %d tunnels on %s: %w", len(files), len(status.Tunnels), h, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		opened := false
		for _, t := range status.Tunnels {
			plain, _, err := ring.Open("wireguard private key\x00"+t.ID, b)
			if err != nil {
				continue
			}
			var key struct {
				Key []byte `json:"key"`
			}
			opened = true
			if err := errors.Join(json.Unmarshal(plain, &key), add("private key of tunnel "+t.ID+" on "+string(h), key.Key)); err != nil {
				return err
			}
		}
		if !opened {
			return fmt.Errorf("%s opens as no tunnel's key", f)
		}
	}
	b, err := os.ReadFile(filepath.Join(state, "last-good-state"))
	if err != nil {
		return err
	}
	plain, _, err := ring.Open("last good state\x00"+node, b)
	if err != nil {
		return err
	}
	var envelope v1.Envelope
	var signed v1.SignedState
	var desired v1.State
	if err := errors.Join(proto.Unmarshal(plain, &envelope), proto.Unmarshal(envelope.GetSigned(), &signed), proto.Unmarshal(signed.GetState(), &desired)); err != nil {
		return err
	}
	for _, s := range desired.GetSections() {
		for _, g := range s.GetGroups() {
			for _, t := range g.GetTunnels() {
				for _, k := range t.GetWireguard().GetPresharedKeys() {
					if err := add(fmt.Sprintf("pre-shared key %d of tunnel %s", k.GetGeneration(), t.GetId()), k.GetKey()); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// forms are how a secret may have been written, whole or in its first half.
func forms(secret []byte) map[string][]byte {
	half := secret[:len(secret)/2]
	words := strings.Trim(fmt.Sprintf("%d", half), "[]")
	var stack []string
	for _, b := range half[:8] {
		stack = append(stack, fmt.Sprintf("%#x", b))
	}
	return map[string][]byte{
		"bytes":   half,
		"hex":     []byte(hex.EncodeToString(half)),
		"HEX":     []byte(strings.ToUpper(hex.EncodeToString(half))),
		"base64":  []byte(base64.RawStdEncoding.EncodeToString(secret)[:len(half)]),
		"url":     []byte(base64.RawURLEncoding.EncodeToString(secret)[:len(half)]),
		"numbers": []byte(words),
		"stack":   []byte(strings.Join(stack, ", ")),
	}
}

// Find looks for secrets where none may be: in what was printed, in logs, in the
// arguments and environments of the lab's processes, in files of the product that
// others than their owner may read, and in whatever lies in the controller's data
// directory and the nodes' state directories. It returns where it looked.
func (r *Rig) Find(secrets map[string][]byte, printed map[string]string) (places int, err error) {
	look := map[string][]byte{}
	for what, text := range printed {
		look[what] = []byte(text)
	}
	var errs []error
	read := func(path string) {
		b, err := os.ReadFile(path)
		// Processes end, and some of their files with them.
		if err == nil {
			look[path] = b
		} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, err)
		}
	}
	walk := func(dir string, wanted func(path string, mode fs.FileMode) bool) {
		errs = append(errs, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err == nil && info.Mode().IsRegular() && wanted(path, info.Mode()) {
				read(path)
			}
			return err
		}))
	}
	walk(r.Lab.Dir(), func(path string, _ fs.FileMode) bool { return strings.HasSuffix(path, ".log") })
	logs := len(look)
	open := func(_ string, mode fs.FileMode) bool { return mode.Perm()&0o077 != 0 }
	walk(r.private, open)
	// What is kept beside policy and state is sealed, but for the administrator's
	// identity, which is for sealctl.
	all := func(path string, _ fs.FileMode) bool {
		return path != filepath.Join(r.DataDir(), "admin", "identity.pem")
	}
	walk(r.DataDir(), all)
	for h, n := range r.nodes {
		if n.agent == nil {
			continue
		}
		for dir, wanted := range map[string]func(string, fs.FileMode) bool{netns.StateDir(r.Lab.Instance(h)): all, netns.RunDir(r.Lab.Instance(h)): open} {
			if _, err := os.Stat(dir); err == nil {
				walk(dir, wanted)
			}
		}
	}
	for _, h := range slices.Concat([]netns.Host{netns.Ctl}, slices.Collect(maps.Keys(r.nodes))) {
		for _, pid := range r.Lab.Residents(h) {
			read(fmt.Sprintf("/proc/%d/cmdline", pid))
			read(fmt.Sprintf("/proc/%d/environ", pid))
		}
	}
	if logs == len(printed) {
		errs = append(errs, errors.New("there is no log: this would find nothing"))
	}
	for what, secret := range secrets {
		for form, needle := range forms(secret) {
			for place, text := range look {
				if bytes.Contains(text, needle) {
					errs = append(errs, fmt.Errorf("%s is in %s as %s", what, place, form))
				}
			}
		}
	}
	return len(look), errors.Join(errs...)
}
