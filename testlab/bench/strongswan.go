package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/circuitseal/circuitseal/testlab/netns"
	"github.com/circuitseal/circuitseal/testlab/rig"
)

// swanctl is a tunnel-mode connection as an administrator writes it.
const swanctl = `connections {
	hand {
		version = 2
		local_addrs = %[1]s
		remote_addrs = %[2]s
		encap = %[3]s
		mobike = no
		proposals = aes256gcm16-prfsha384-ecp384
		local {
			auth = psk
			id = %[1]s
		}
		remote {
			auth = psk
			id = %[2]s
		}
		children {
			hand {
				local_ts = %[4]s
				remote_ts = %[5]s
				esp_proposals = aes256gcm16-ecp384%[6]s
				replay_window = 1024%[8]s
			}
		}
	}
}
secrets {
	ike-hand {
		secret = %[7]s
	}
}
`

// ipsecClamp is the largest segment that fits the product's default: outer packets
// of 1,400 bytes, over AES-GCM in UDP.
const ipsecClamp = `table inet byhand {
	chain forward {
		type filter hook forward priority 0; policy accept;
		tcp flags syn tcp option maxseg size set 1298
	}
}
`

// xfrm is the device of a kernel's tunnel, and more of a connection by it. ESP with
// AES-GCM leaves so much of 1,400 bytes.
const (
	xfrm       = "link add byhand0 mtu 1346 type xfrm dev lo if_id 1"
	xfrmDevice = `
				if_id_in = 1
				if_id_out = 1`
)

// ipsecByHand sets strongSwan up in a lab by its own files, in the main
// namespace, with kernel routes and forwarding. One tunnel, over the primary link.
func ipsecByHand(ctx context.Context, r *rig.Rig, c Config) error {
	encap, esn, device, clamping := "yes", "", "", ipsecClamp
	if c.KernelESP {
		encap, esn, device, clamping = "no", "-esn", xfrmDevice, clamp
	}
	var started *rig.StrongSwan
	for _, s := range []struct {
		host          netns.Host
		local, remote string
		near, far     string
	}{
		{netns.NVA, netns.NVAFirst.String(), netns.PremPrimary.String(), "10.2.0.0/16", "10.1.0.0/16"},
		{netns.Prem, netns.PremPrimary.String(), netns.NVAFirst.String(), "10.1.0.0/16", "10.2.0.0/16"},
	} {
		dir := filepath.Join(r.Lab.Dir(), "swanctl-"+string(s.host))
		text := fmt.Sprintf(swanctl, s.local, s.remote, encap, s.near, s.far, esn, r.Canary.Hex(), device)
		if err := errors.Join(
			r.Lab.IP(ctx, s.host, circuits[s.host]...),
			r.Lab.NFT(ctx, s.host, clamping),
			os.MkdirAll(dir, 0o700),
			os.WriteFile(filepath.Join(dir, "swanctl.conf"), []byte(text), 0o600),
		); err != nil {
			return fmt.Errorf("set up strongSwan by hand on %s: %w", s.host, err)
		}
		if c.KernelESP {
			if err := r.Lab.IP(ctx, s.host, xfrm, "link set byhand0 up", "route add "+s.far+" dev byhand0"); err != nil {
				return err
			}
		}
		var err error
		if started, err = r.StartStrongSwan(ctx, rig.StrongSwanConfig{Host: s.host, Dir: dir, Libipsec: !c.KernelESP}); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, c.Slow.Longer(10*time.Second))
	defer cancel()
	_, err := started.Control(ctx, "--initiate", "--child", "hand")
	return err
}
