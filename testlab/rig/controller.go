package rig

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/circuitseal/circuitseal/testlab/netns"
)

const controllerPort = "8443"

// patience is how long a daemon may take to come up or to go.
const patience = 20 * time.Second

// ControllerURL is where nodes and operators find the controller.
func ControllerURL() string {
	return "https://" + net.JoinHostPort(netns.ControllerAddress.String(), controllerPort)
}

// DataDir is the controller's data directory, which goes with the lab.
func (r *Rig) DataDir() string { return filepath.Join(r.private, "controller") }

// ControllerSpec is how the controller is started.
func (r *Rig) ControllerSpec() netns.Spec {
	return r.program("circuitseal-controller", "controller", append(r.logLevel(),
		"--data-dir", r.DataDir(), "--listen", net.JoinHostPort(netns.ControllerAddress.String(), controllerPort),
		"--name", netns.ControllerAddress.String(), "--secret-key-file", r.SecretKeyFile())...)
}

func (r *Rig) logLevel() []string {
	if r.Debug {
		return []string{"--log-level", "debug"}
	}
	return nil
}

// SecretKeyFile is where the controller's secret key is, outside of its data
// directory.
func (r *Rig) SecretKeyFile() string { return filepath.Join(r.private, "keys", "controller") }

// makeSecretKey makes the controller's secret key, once, as an operator does.
func (r *Rig) makeSecretKey(ctx context.Context) error {
	if _, err := os.Stat(r.SecretKeyFile()); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	_, err := r.Lab.Run(ctx, netns.Ctl, r.program("circuitseal-controller", "secret-key", "secret-key", "generate", r.SecretKeyFile()))
	return err
}

// StartController starts the controller and waits until it answers.
func (r *Rig) StartController(ctx context.Context) error {
	if r.controller != nil && r.controller.Alive() {
		return errors.New("start the controller: it runs already")
	}
	if err := r.makeSecretKey(ctx); err != nil {
		return err
	}
	p, err := r.Lab.Start(netns.Ctl, r.ControllerSpec())
	if err != nil {
		return err
	}
	r.controller = p
	// A port that is open says little: the controller listens before it serves.
	return until(ctx, r.slow.Longer(patience), "the controller answers sealctl", func() error {
		if !p.Alive() {
			return stop(fmt.Errorf("it has ended: %s", tail(p.LogPath())))
		}
		_, err := r.Sealctl(ctx, "get", "customer")
		return err
	})
}

// KillController ends the controller with SIGKILL.
func (r *Rig) KillController() error {
	if r.controller == nil || !r.controller.Alive() {
		return errors.New("kill the controller: it does not run")
	}
	r.controller.Kill()
	return nil
}

// StopController ends it with SIGTERM.
func (r *Rig) StopController() error {
	if r.controller == nil {
		return errors.New("stop the controller: it does not run")
	}
	return r.controller.Stop(r.slow.Longer(patience))
}

// ControllerPID is the running controller's process.
func (r *Rig) ControllerPID() int { return r.controller.PID() }

// Sealctl runs sealctl as the administrator.
func (r *Rig) Sealctl(ctx context.Context, args ...string) (netns.Output, error) {
	all := append([]string{
		"--server", ControllerURL(),
		"--identity", filepath.Join(r.DataDir(), "admin", "identity.pem"),
		"--root", filepath.Join(r.DataDir(), "admin", "root.pem"),
	}, args...)
	return r.Lab.Run(ctx, netns.Ctl, r.program("sealctl", "sealctl", all...))
}

// Apply applies files.
func (r *Rig) Apply(ctx context.Context, files ...string) error {
	args := []string{"apply"}
	for _, f := range files {
		args = append(args, "-f", f)
	}
	_, err := r.Sealctl(ctx, args...)
	return err
}

// RootPin is the fingerprint of the controller's root, computed here from the
// certificate: a tool of its own would do no less.
func (r *Rig) RootPin() (string, error) {
	b, err := os.ReadFile(filepath.Join(r.DataDir(), "admin", "root.pem"))
	if err != nil {
		return "", fmt.Errorf("read the controller's root: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return "", errors.New("read the controller's root: it holds no PEM block")
	}
	sum := sha256.Sum256(block.Bytes)
	return "sha256:" + hex.EncodeToString(sum[:]), nil
}

// tail is the end of a log file, for error messages.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	const most = 1500
	return string(bytes.TrimSpace(b[max(0, len(b)-most):]))
}
