package rig

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/testlab/netns"
)

func (r *Rig) node(h netns.Host) (*node, error) {
	n, ok := r.nodes[h]
	if !ok {
		return nil, fmt.Errorf("%q is no appliance: want one of %v", string(h), slices.Sorted(maps.Keys(r.nodes)))
	}
	return n, nil
}

// AgentSpec is a call of circuitseal-agent on an appliance.
func (r *Rig) AgentSpec(h netns.Host, command string, args ...string) netns.Spec {
	all := append([]string{command, "--instance", r.Lab.Instance(h), "--secret-key-file", r.agentKeyFile(h)}, args...)
	return r.program("circuitseal-agent", "agent-"+string(h), all...)
}

// agentKeyFile is where an appliance's secret key is.
func (r *Rig) agentKeyFile(h netns.Host) string {
	return filepath.Join(r.private, "keys", string(h))
}

// CreateToken makes an enrolment token for an appliance's node and returns the
// file that holds it.
func (r *Rig) CreateToken(ctx context.Context, h netns.Host, args ...string) (string, error) {
	n, err := r.node(h)
	if err != nil {
		return "", err
	}
	file := filepath.Join(r.private, "token-"+n.name)
	// The file must be the newest token's alone.
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	_, err = r.Sealctl(ctx, append([]string{"token", "create", n.name, "--out", file}, args...)...)
	return file, err
}

// Enrol makes a token and enrols an appliance's agent with it.
func (r *Rig) Enrol(ctx context.Context, h netns.Host) error {
	file, err := r.CreateToken(ctx, h)
	if err != nil {
		return err
	}
	pin, err := r.RootPin()
	if err != nil {
		return err
	}
	_, err = r.EnrolWith(ctx, h, file, pin)
	return err
}

// EnrolWith enrols with a given token file and root pin.
func (r *Rig) EnrolWith(ctx context.Context, h netns.Host, tokenFile, pin string, args ...string) (netns.Output, error) {
	all := append([]string{"--controller", ControllerURL(), "--token-file", tokenFile, "--root-pin", pin}, args...)
	return r.Lab.Run(ctx, h, r.AgentSpec(h, "enroll", all...))
}

// StartAgent starts an appliance's agent. It does not wait for anything.
func (r *Rig) StartAgent(h netns.Host) error {
	n, err := r.node(h)
	if err != nil {
		return err
	}
	if n.agent != nil && n.agent.Alive() {
		return fmt.Errorf("start the agent on %s: it runs already", h)
	}
	spec := r.AgentSpec(h, "run", r.logLevel()...)
	if r.Debug {
		// What reads the steps wants them in JSON.
		spec.Args = append(spec.Args, "--log-format", "json")
	}
	if err := r.listen(h, n); err != nil {
		return err
	}
	spec.Env = append(spec.Env, "NOTIFY_SOCKET="+n.manager.LocalAddr().String())
	n.agent, err = r.Lab.Start(h, spec)
	return err
}

// listen stands in for the service manager of one agent (sd_notify(3)).
func (r *Rig) listen(h netns.Host, n *node) (err error) {
	if n.manager != nil {
		_ = n.manager.Close()
	}
	path := filepath.Join(r.private, "manager-"+string(h))
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	n.manager, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	return err
}

// AgentReady waits until the agent that was started last says that it is ready.
func (r *Rig) AgentReady(h netns.Host, within time.Duration) error {
	n, err := r.node(h)
	if err != nil {
		return err
	}
	if n.manager == nil {
		return fmt.Errorf("the agent on %s was never started", h)
	}
	if err := n.manager.SetReadDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	b := make([]byte, 256)
	size, err := n.manager.Read(b)
	if err != nil || string(b[:size]) != "READY=1" {
		return fmt.Errorf("the agent on %s is not ready within %s: it said %q (%w)", h, within, b[:size], err)
	}
	return nil
}

// Agent is the agent's process, running or ended; nil when it was never started.
func (r *Rig) Agent(h netns.Host) *netns.Process {
	if n, ok := r.nodes[h]; ok {
		return n.agent
	}
	return nil
}

// StopAgent ends an agent with SIGTERM.
func (r *Rig) StopAgent(h netns.Host) error {
	p := r.Agent(h)
	if p == nil {
		return fmt.Errorf("stop the agent on %s: it does not run", h)
	}
	return p.Stop(r.slow.Longer(patience))
}

// KillAgent ends an agent with SIGKILL; its WireGuard process lives on.
func (r *Rig) KillAgent(h netns.Host) error {
	p := r.Agent(h)
	if p == nil || !p.Alive() {
		return fmt.Errorf("kill the agent on %s: it does not run", h)
	}
	p.Kill()
	return nil
}

// FreezeAgent has an agent do nothing, not even end; ThawAgent has it go on.
func (r *Rig) FreezeAgent(h netns.Host) error { return r.signalAgent(h, (*netns.Process).Freeze) }

// ThawAgent has an agent go on.
func (r *Rig) ThawAgent(h netns.Host) error { return r.signalAgent(h, (*netns.Process).Thaw) }

func (r *Rig) signalAgent(h netns.Host, send func(*netns.Process) error) error {
	p := r.Agent(h)
	if p == nil || !p.Alive() {
		return fmt.Errorf("the agent on %s does not run", h)
	}
	return send(p)
}

// TunnelDevices are the devices of an agent's tunnels on an appliance, whatever
// encrypts.
func (r *Rig) TunnelDevices(ctx context.Context, h netns.Host) ([]string, error) {
	return r.devices(ctx, h, func(name string) bool {
		rest, ok := strings.CutPrefix(name, "cs-"+r.Lab.Instance(h))
		if !ok || rest == "" || rest[0] != '-' && rest[0] != '~' {
			return false
		}
		_, err := strconv.ParseUint(rest[1:], 10, 32)
		return err == nil
	})
}

// WireGuardPIDs are the WireGuard processes of an appliance: those that live
// there beside the agent and were started as `circuitseal-agent wireguard`.
func (r *Rig) WireGuardPIDs(h netns.Host) []int {
	var found []int
	for _, pid := range r.Lab.Residents(h) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			continue
		}
		// The first argument may be any name of the program.
		if args := strings.Split(string(b), "\x00"); len(args) > 1 && args[1] == "wireguard" && slices.Contains(args, r.Lab.Instance(h)) {
			found = append(found, pid)
		}
	}
	return found
}

// WireGuardDevices are the devices of the kernel's WireGuard on an appliance,
// where the kernel has it.
func (r *Rig) WireGuardDevices(ctx context.Context, h netns.Host) ([]string, error) {
	return r.devices(ctx, h, func(string) bool { return true }, "type", "wireguard")
}

// devices are those of the main namespace that `ip link show` lists and are chosen.
func (r *Rig) devices(ctx context.Context, h netns.Host, chosen func(name string) bool, args ...string) ([]string, error) {
	out, err := r.Lab.Run(ctx, h, netns.Spec{Path: "ip", Args: append([]string{"-json", "link", "show"}, args...)})
	if err != nil {
		return nil, err
	}
	var links []struct {
		Name string `json:"ifname"`
	}
	if err := json.Unmarshal([]byte(out.Stdout), &links); err != nil {
		return nil, fmt.Errorf("list the devices of %s: %w", h, err)
	}
	var names []string
	for _, l := range links {
		if l.Name != "" && chosen(l.Name) {
			names = append(names, l.Name)
		}
	}
	return names, nil
}

// KillWireGuard ends what encrypts, without a warning: the WireGuard process
// with SIGKILL, or the kernel's devices.
func (r *Rig) KillWireGuard(ctx context.Context, h netns.Host) error {
	pids := r.WireGuardPIDs(h)
	devices, err := r.WireGuardDevices(ctx, h)
	if err != nil {
		return err
	}
	for _, d := range devices {
		if _, err := r.Lab.Run(ctx, h, netns.Spec{Path: "ip", Args: []string{"link", "delete", d}}); err != nil {
			return err
		}
	}
	if len(pids)+len(devices) == 0 {
		return fmt.Errorf("kill WireGuard on %s: there is neither a process nor a device of the kernel's", h)
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			return fmt.Errorf("kill process %d: %w", pid, err)
		}
	}
	return until(context.Background(), r.slow.Longer(5*time.Second), "the WireGuard process is gone", func() error {
		for _, pid := range r.WireGuardPIDs(h) {
			if slices.Contains(pids, pid) {
				return errors.New("it is still there")
			}
		}
		return nil
	})
}

// TunnelStatus is what an agent says of a tunnel.
type TunnelStatus struct {
	ID            string `json:"id"`
	Phase         string `json:"phase"`
	Backend       string `json:"backend"`
	ReceivedBytes uint64 `json:"receivedBytes,string"`
	SentBytes     uint64 `json:"sentBytes,string"`
	Problem       string `json:"problem"`
	Retiring      bool   `json:"retiring"`
	// PresharedKeyUsed is a generation, 0 while it is not known.
	PresharedKeyUsed uint64 `json:"presharedKeyUsed,string"`
	// Associations are the SAs that carry an IPsec tunnel, as negotiated.
	Associations []struct {
		IKE      string `json:"ike"`
		ESP      string `json:"esp"`
		PFS      string `json:"pfs"`
		PPK      bool   `json:"ppk"`
		Weakness string `json:"weakness"`
	} `json:"associations"`
}

// Up reports whether the tunnel's probe is answered.
func (t TunnelStatus) Up() bool { return t.Phase == "TUNNEL_PHASE_UP" }

// AgentStatus is the status that `circuitseal-agent status -o json` prints, as
// far as the lab reads it.
type AgentStatus struct {
	Tunnels  []TunnelStatus `json:"tunnels"`
	Problems []string       `json:"problems"`
	Drift    []struct {
		What   string    `json:"what"`
		Count  uint64    `json:"count,string"`
		Last   time.Time `json:"last"`
		Detail string    `json:"detail"`
	} `json:"drift"`
	Counters []struct {
		Name    string `json:"name"`
		Packets uint64 `json:"packets,string"`
	} `json:"counters"`
	Guards []struct {
		Interface string `json:"interface"`
		Layer     string `json:"layer"`
		Alive     bool   `json:"alive"`
	} `json:"guards"`
}

// Status asks an agent.
func (r *Rig) Status(ctx context.Context, h netns.Host) (AgentStatus, error) {
	out, err := r.Lab.Run(ctx, h, r.AgentSpec(h, "status", "-o", "json"))
	if err != nil {
		return AgentStatus{}, err
	}
	var s struct {
		Status AgentStatus `json:"status"`
	}
	if err := json.Unmarshal([]byte(out.Stdout), &s); err != nil {
		return AgentStatus{}, fmt.Errorf("decode the status of %s: %w", h, err)
	}
	return s.Status, nil
}

// TunnelsUp waits until n tunnels are up at an appliance.
func (r *Rig) TunnelsUp(ctx context.Context, h netns.Host, n int, limit time.Duration) error {
	return until(ctx, limit, fmt.Sprintf("%d tunnels are up on %s", n, h), func() error {
		if p := r.Agent(h); p == nil || !p.Alive() {
			return stop(fmt.Errorf("no agent runs: %s", tail(r.file("agent-"+string(h)+".log"))))
		}
		s, err := r.Status(ctx, h)
		if err != nil {
			return err
		}
		up := 0
		for _, t := range s.Tunnels {
			if t.Up() {
				up++
			}
		}
		if up != n {
			return fmt.Errorf("%d are up; tunnels %+v, problems %q", up, s.Tunnels, s.Problems)
		}
		return nil
	})
}
