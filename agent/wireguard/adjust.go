package wireguard

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/circuitseal/circuitseal/agent/plan"
)

// Adjust lets other prefixes through tunnels that are there, and reads and writes
// nothing else: not other tunnels, not other settings, and no session is lost. A
// device of which more differs stays as it is, without an error, for Sync.
func (d *Driver) Adjust(_ context.Context, tunnels []plan.Tunnel) error {
	if len(tunnels) == 0 {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	wg, err := d.newClient()
	if err != nil {
		return err
	}
	s := &session{wg: wg}
	defer s.close()
	var errs []error
	for _, t := range tunnels {
		if err := d.adjust(s, t); err != nil {
			errs = append(errs, fmt.Errorf("tunnel %s: %w", t.ID, err))
		}
	}
	return errors.Join(errs...)
}

func (d *Driver) adjust(s *session, t plan.Tunnel) error {
	if !deviceOf(d.config.Instance, t.Device) {
		return fmt.Errorf("device %.32q is not one of instance %s", t.Device, d.config.Instance)
	}
	pair, err := d.config.Keys.pair(t.ID)
	if err != nil {
		return err
	}
	var w *wgtypes.Device
	err = d.guard(t.Device, func() (err error) {
		w, err = s.wg.Device(t.Device)
		return err
	})
	if err != nil {
		return err
	}
	x := want{Tunnel: t, public: pair.public, shared: d.pick(t, time.Now())}
	c := diffSettings(x, settingsFrom(w))
	if c.empty() || c.key || c.port != 0 || c.mark != nil || len(c.drop) > 0 || c.handshake() {
		return nil
	}
	d.config.Log.Debug("WireGuard", "tunnel", t.ID, "change", step{verb: configure, device: t.Device, setting: c}.String())
	return d.configure(s, x, c)
}
