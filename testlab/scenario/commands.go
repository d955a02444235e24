package scenario

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"rsc.io/script"

	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/rig"
)

// output is what a command leaves for `stdout` and `stderr`.
type output = netns.Output

// command wraps a function that runs to its end.
func command(args, summary string, run func(*script.State, []string) (output, error)) script.Cmd {
	return script.Command(script.CmdUsage{Args: args, Summary: summary}, func(s *script.State, args ...string) (script.WaitFunc, error) {
		out, err := run(s, args)
		return func(*script.State) (string, string, error) { return out.Stdout, out.Stderr, err }, nil
	})
}

// quiet is a command without output.
func quiet(args, summary string, run func(*script.State, []string) error) script.Cmd {
	return command(args, summary, func(s *script.State, args []string) (output, error) { return output{}, run(s, args) })
}

// commands are a session's own and those of the script language that a
// scenario may need.
func (x *session) commands() map[string]script.Cmd {
	all := map[string]script.Cmd{
		"lab":         quiet("[control | ipv6]", "build the lab, as it is without agents, or with IPv6 outside", x.lab),
		"host":        quiet("name [node=prem-2] [address=10.1.0.10] [address6=...]", "add a machine: an appliance, or one that answers test traffic", x.host),
		"wire":        quiet("host:interface host:interface", "connect two machines by new interfaces", x.wire),
		"controller":  quiet("start|stop|restart|kill", "run the controller", x.controller),
		"enrol":       quiet("appliance...", "make tokens and enrol agents", x.enrol),
		"apply":       command("file...", "apply documents", x.apply),
		"agent":       quiet("start|ready|stop|kill|freeze|thaw|alive|ended appliance...", "run agents", x.agent),
		"wireguard":   quiet("kill|running appliance", "end what encrypts without a warning, or make sure that it is there", x.wireGuard),
		"charon":      quiet("kill|stop|freeze|thaw|running|ppk appliance", "end strongSwan's daemon, without a warning or with one, have it stand, wait until one runs, or give it other PPKs", x.charon),
		"strongswan":  command("start host directory [settings=file] [plugins=bypass-lan] [-circuit] | load|stop host | ctl host args...", "run strongSwan by swanctl's files, as an administrator would", x.strongSwan),
		"rekey":       quiet("appliance... [times=1] [within=20s]", "replace the keys of all SAs at several ends at the same moment", x.rekey),
		"sequence":    quiet("appliance to=number [-counted] | appliance by=number | appliance below=number [within=20s]", "have the kernel's SAs go on from other sequence numbers, or wait until all are below one", x.sequence),
		"replay":      quiet("host:interface [count=100]", "keep ESP packets that leave, and send them again", x.replay),
		"swanctl":     command("appliance args...", "run strongSwan's own command line against an appliance's daemon", x.swanctl),
		"tunnels":     quiet("appliance count [within=20s]", "wait until so many tunnels are up", x.tunnels),
		"negotiated":  command("appliance... ike= esp= [pfs=] [ppk=used|newer] [within=20s]", "wait until every tunnel is up by one SA of just that", x.negotiated),
		"reach":       command("from to [-6] [-udp] [within=10s]", "test that a host is reached", x.reach),
		"unreachable": quiet("from to [-6] [-udp] [for=1s] [within=0s]", "test that a host is not reached for a time, which begins within another", x.unreachable),
		"traffic":     command("start from to [-6] [flows=16] | run 6s | stop [lost<=n] [outage<=t] [gap<=t] [ended<=t] [received>=n]", "send numbered datagrams", x.datagrams),
		"streams":     command("from to [flows=4] [for=1s]", "send TCP at full speed", x.streams),
		"link":        quiet("cut|loss|delay|mtu|restore primary|secondary [silent|carrier|5%|40ms|1300]", "break a link", x.link),
		"icmp":        quiet("filter|restore host", "have a machine take and pass on no ICMP errors", x.icmp),
		"clock":       quiet("+10m|-1h|restore", "set the machine's clock forward or back", x.setClock),
		"processors":  quiet("1", "have everything run on one processor", x.oneProcessor),
		"forge":       quiet("from source:port to:port [as=wireguard|ike|esp|esp-in-udp]", "send with a forged source", x.forge),
		"inject":      quiet("host:interface source:port to:port mac= [tags=300.100] [link=] [-circuit]", "send WireGuard-like datagrams in frames of any kind, with a link's mark", x.inject),
		"tap":         quiet("watch host:interface label= addresses= tunnel= [vlan=] | start [wireguard] [ipsec] | = 0 | > 0 | saw label kind", "watch the links", x.watch),
		"fuzz":        quiet("from sender gateway= pool=address,prefix,... [seed=1] [count=500] [interface=eth0]", "send any packets from and to anywhere", x.fuzz),
		"tagfuzz":     command("host:interface sender mac= outer=flow,... others=flow,... pool=address,prefix,... [seed=] [count=500] [-circuit]", "send frames with any VLAN tags", x.tagFuzz),
		"witness":     quiet("start host... | host only=sender [least=1]", "note whose fuzz a host receives", x.witness),
		"dropped":     command("appliance [within=5s]", "wait until there is no tunnel's device, that long after the last sealctl", x.dropped),
		"sealctl":     command("args...", "run sealctl as the administrator", x.sealctl),
		"status":      quiet("says text", "wait until sealctl status says something", x.status),
		"keys":        quiet("says|lacks text [within=20s]", "wait until sealctl keys says something, or says it no more", x.keys),
		"secrets":     command("log | hidden", "log everything from now on; crash all and find no secret anywhere", x.secrets),
		"token":       command("appliance [args...]", "make a token; $TOKEN is its file", x.token),
		"enroll":      command("appliance token-file pin [args...]", "run circuitseal-agent enroll", x.enroll),
		"agentctl":    command("appliance command [args...]", "run circuitseal-agent to its end", x.agentctl),
		"serve":       command("args...", "run circuitseal-controller to its end, at most 10 s", x.serve),
		"on":          command("host program args...", "run a program on a host", x.on),
		"undo":        quiet("appliance peers|programs|map name", "take away what the agent has set up", x.undo),
		"repaired":    command("appliance kind [within=15s]", "wait until the agent has counted a repair", x.repaired),
		"says":        quiet("log text", "wait until a process's log holds text", x.says),
	}
	standard := script.DefaultCmds()
	for _, name := range []string{"cat", "cp", "echo", "env", "exec", "exists", "grep", "mkdir", "replace", "rm", "sleep", "stderr", "stdout", "stop"} {
		all[name] = standard[name]
	}
	return all
}

// conditions are those of the script language, one for each facility that the
// kernel may have: `[!kernel-wireguard] wireguard kill prem`, and tcx.
func (x *session) conditions() map[string]script.Cond {
	all := script.DefaultConds()
	for _, p := range probes {
		all[p.name] = script.BoolCondition("the kernel has it", x.has(p.name))
	}
	all["tcx"] = script.OnceCondition("the kernel attaches programs by tcx, not by clsact", tcx)
	return all
}

// errNoLab means that the script asks for something that only a lab has.
var errNoLab = errors.New("there is no lab yet: begin with `lab`")

// options are the words of a command that are no names: flags such as -6, and
// settings such as within=10s.
type options struct {
	words    []string
	flags    []string
	settings map[string]string
}

// split sorts a command's words, and refuses flags and settings that the
// command does not know.
func split(args []string, words int, known ...string) (options, error) {
	o := options{settings: make(map[string]string)}
	for _, a := range args {
		key, value, isSetting := strings.Cut(a, "=")
		switch {
		case isSetting && slices.Contains(known, key+"="):
			o.settings[key] = value
		case strings.HasPrefix(a, "-") && slices.Contains(known, a):
			o.flags = append(o.flags, a)
		case strings.HasPrefix(a, "-") || isSetting:
			return o, fmt.Errorf("%s: want one of %q", a, known)
		default:
			o.words = append(o.words, a)
		}
	}
	if len(o.words) != words {
		return o, fmt.Errorf("%w: want %d names, got %q", script.ErrUsage, words, o.words)
	}
	return o, nil
}

func (o options) has(flag string) bool { return slices.Contains(o.flags, flag) }

func (o options) duration(key string, otherwise time.Duration) (time.Duration, error) {
	if o.settings[key] == "" {
		return otherwise, nil
	}
	return time.ParseDuration(o.settings[key])
}

// limit is a setting that the machine's slowness stretches.
func (x *session) limit(o options, key string, otherwise time.Duration) (time.Duration, error) {
	d, err := o.duration(key, otherwise)
	return x.config.Slow.Longer(d), err
}

func (o options) number(key string, otherwise int) (int, error) {
	if o.settings[key] == "" {
		return otherwise, nil
	}
	return strconv.Atoi(o.settings[key])
}

func (x *session) lab(s *script.State, args []string) error {
	if x.rig != nil {
		return errors.New("there is a lab already")
	}
	x.control = len(args) == 1 && args[0] == "control"
	ipv6 := len(args) == 1 && args[0] == "ipv6"
	if len(args) > 0 && !x.control && !ipv6 {
		return script.ErrUsage
	}
	c := rig.Config{Log: x.config.Log, Bin: x.config.Bin, Control: x.control, IPv6: ipv6, Slow: x.config.Slow}
	if x.config.Dir != "" {
		c.Dir = s.Path("logs")
	}
	r, err := rig.New(s.Context(), c)
	if err != nil {
		return err
	}
	x.rig = r
	for key, value := range map[string]string{
		"LOGS": r.Lab.Dir(), "DATA": r.DataDir(), "KEY": r.SecretKeyFile(), "CONTROLLER": rig.ControllerURL(),
		"PREM": r.Lab.Instance(netns.Prem), "NVA": r.Lab.Instance(netns.NVA),
	} {
		if err := s.Setenv(key, value); err != nil {
			return err
		}
	}
	return nil
}
