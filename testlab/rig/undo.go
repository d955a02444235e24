package rig

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/circuitseal/circuitseal/testlab/netns"
)

// ForgetPeers removes every peer from the WireGuard devices of an appliance.
func (r *Rig) ForgetPeers(h netns.Host) error {
	return r.Lab.Do(h, func() (err error) {
		c, err := wgctrl.New()
		if err != nil {
			return fmt.Errorf("open WireGuard control: %w", err)
		}
		defer func() { err = errors.Join(err, c.Close()) }()
		devices, err := c.Devices()
		if err != nil {
			return fmt.Errorf("list WireGuard devices: %w", err)
		}
		count := 0
		for _, d := range devices {
			// Files of user-space devices are the whole machine's.
			if !strings.HasPrefix(d.Name, "cs-"+r.Lab.Instance(h)+"-") {
				continue
			}
			count += len(d.Peers)
			if err := c.ConfigureDevice(d.Name, wgtypes.Config{ReplacePeers: true}); err != nil {
				return fmt.Errorf("remove the peers of %s: %w", d.Name, err)
			}
		}
		if count == 0 {
			return fmt.Errorf("there is no peer on %s", h)
		}
		return nil
	})
}

// EmptyMap deletes every entry of a pinned BPF map of an appliance's agent.
func (r *Rig) EmptyMap(h netns.Host, name string) error {
	count := 0
	err := r.pins(h, func(path string) error {
		if filepath.Base(path) != name {
			return nil
		}
		m, err := ebpf.LoadPinnedMap(path, nil)
		if err != nil {
			return err
		}
		defer func() { _ = m.Close() }()
		var keys [][]byte
		var key, value []byte
		for it := m.Iterate(); it.Next(&key, &value); {
			keys = append(keys, append([]byte(nil), key...))
		}
		for _, k := range keys {
			if err := m.Delete(k); err != nil {
				return fmt.Errorf("delete from %s: %w", path, err)
			}
		}
		count += len(keys)
		return nil
	})
	if err == nil && count == 0 {
		err = fmt.Errorf("on %s there is no map %q with entries", h, name)
	}
	return err
}

// DetachPrograms takes away whatever holds an appliance's programs on their hooks:
// pinned links, or with them none, the clsact qdisc of every interface.
func (r *Rig) DetachPrograms(ctx context.Context, h netns.Host) error {
	count := 0
	err := r.pins(h, func(path string) error {
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			return nil //nolint:nilerr // it is a map
		}
		count++
		return errors.Join(os.Remove(path), l.Close())
	})
	if err != nil || count > 0 {
		return err
	}
	const every = `for n in $(ip -o link | cut -d: -f2 | cut -d@ -f1); do tc qdisc del dev $n clsact 2>/dev/null && echo gone; done; true`
	for _, ns := range [][]string{nil, {"ip", "netns", "exec", "cs-" + r.Lab.Instance(h)}} {
		args := append(append([]string(nil), ns...), "sh", "-c", every)
		out, err := r.Lab.Run(ctx, h, netns.Spec{Path: args[0], Args: args[1:]})
		if err != nil {
			return err
		}
		count += strings.Count(out.Stdout, "gone")
	}
	if count == 0 {
		return fmt.Errorf("on %s no program is attached", h)
	}
	return nil
}

func (r *Rig) pins(h netns.Host, f func(path string) error) error {
	return filepath.WalkDir(filepath.Join(netns.RunDir(r.Lab.Instance(h)), "bpf"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return f(path)
	})
}
