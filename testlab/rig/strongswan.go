package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/circuitseal/circuitseal/testlab/netns"
)

// StrongSwan is strongSwan as an administrator sets it up, with swanctl's files
// and without any agent of ours.
type StrongSwan struct {
	rig     *Rig
	host    netns.Host
	dir     string
	process *netns.Process
}

// plainPlugins is what charon loads: libipsec encrypts where the kernel cannot,
// and has to come before what speaks to the kernel.
const plainPlugins = "random nonce openssl aesni x509 revocation constraints pubkey pkcs1 pkcs8 pem gcm hmac sha2 kdf curve25519 chapoly %s kernel-netlink socket-default vici"

const plainConf = `charon-systemd {
	load = %s
	install_routes = no
	retransmit_tries = 3
	plugins {
		vici {
			socket = unix://%s
		}
	}
	journal {
		default = -1
	}
	filelog {
		stderr {
			default = 1
			ike = 2
			cfg = 2
		}
	}
}
`

// StrongSwanConfig is how an administrator sets strongSwan up.
type StrongSwanConfig struct {
	Host netns.Host
	// Dir is laid out as /etc/swanctl: swanctl.conf, x509, x509ca, private.
	Dir string
	// Settings are more of strongswan.conf, which take the place of the lab's own.
	Settings string
	// Plugins are loaded besides.
	Plugins string
	// Circuit has it run in the circuit namespace of the machine's agent.
	Circuit bool
	// Libipsec encrypts where the kernel has no ESP.
	Libipsec bool
}

// StartStrongSwan starts charon and loads what there is.
func (r *Rig) StartStrongSwan(ctx context.Context, c StrongSwanConfig) (*StrongSwan, error) {
	h := c.Host
	s := &StrongSwan{rig: r, host: h, dir: c.Dir}
	encrypts := c.Plugins
	if c.Libipsec {
		encrypts += " kernel-libipsec"
	}
	conf := s.path("strongswan.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, plainConf+c.Settings, fmt.Sprintf(plainPlugins, encrypts), s.Socket()), 0o600); err != nil {
		return nil, fmt.Errorf("write strongSwan's settings: %w", err)
	}
	var err error
	// Its process file is in /run, which it must not share with others.
	s.process, err = r.Lab.Start(h, r.inCircuit(h, c.Circuit, netns.Spec{
		Name: "strongswan-" + string(h), Path: "unshare",
		Args: []string{"--mount", "sh", "-ec", "mount -t tmpfs none /run; exec charon-systemd"},
		Env:  []string{"STRONGSWAN_CONF=" + conf},
	}))
	if err != nil {
		return nil, err
	}
	err = until(ctx, r.slow.Longer(10*time.Second), "strongSwan on "+string(h)+" answers", func() error {
		if !s.process.Alive() {
			return stop(fmt.Errorf("it has ended: %s", tail(s.process.LogPath())))
		}
		_, err := s.Control(ctx, "--version", "--daemon")
		return err
	})
	if err == nil {
		err = s.Load(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// path is in the lab's private directory: a socket's name must be short.
func (s *StrongSwan) path(name string) string {
	return filepath.Join(s.rig.private, "ss-"+string(s.host)+"-"+name)
}

// Socket is where it answers (VICI).
func (s *StrongSwan) Socket() string { return s.path("vici") }

// Load reads the files again.
func (s *StrongSwan) Load(ctx context.Context) error {
	_, err := s.Control(ctx, "--load-all", "--noprompt")
	return err
}

// Control runs swanctl.
func (s *StrongSwan) Control(ctx context.Context, args ...string) (netns.Output, error) {
	return s.rig.Lab.Run(ctx, s.host, netns.Spec{
		Path: "swanctl", Args: append(args, "--uri", "unix://"+s.path("vici")), Env: []string{"SWANCTL_DIR=" + s.dir},
	})
}

// Stop ends it, and with it its SAs.
func (s *StrongSwan) Stop() error { return s.process.Stop(10 * time.Second) }
