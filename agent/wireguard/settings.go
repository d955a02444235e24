package wireguard

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/circuitseal/circuitseal/agent/netdev"
)

// parseSettings reads what the WireGuard process says of a device: lines of the
// cross-platform userspace configuration protocol
// (https://www.wireguard.com/xplatform/), of which unknown keys mean nothing to
// this agent. The device has no private key, only its public half.
func parseSettings(h hostedDevice) (*wgtypes.Device, error) {
	d := &wgtypes.Device{Name: h.Name, Type: wgtypes.Userspace, PublicKey: noKey}
	switch len(h.Public) {
	case 0:
	case len(d.PublicKey):
		copy(d.PublicKey[:], h.Public)
	default:
		return nil, fmt.Errorf("the WireGuard process tells a public key of %d bytes", len(h.Public))
	}
	for line := range strings.Lines(h.Settings) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			return nil, fmt.Errorf("the WireGuard process tells %.64q, want key=value", line)
		}
		err := parseOfDevice(d, key, value)
		if key == "public_key" || len(d.Peers) > 0 && err == nil {
			err = parseOfPeer(d, key, value)
		}
		if err != nil {
			return nil, fmt.Errorf("the WireGuard process tells %s: %w", key, err)
		}
	}
	return d, nil
}

func parseOfDevice(d *wgtypes.Device, key, value string) (err error) {
	switch key {
	case "listen_port":
		d.ListenPort, err = parseNumber[uint16](value)
	case "fwmark":
		d.FirewallMark, err = parseNumber[uint32](value)
	}
	return err
}

func parseOfPeer(d *wgtypes.Device, key, value string) (err error) {
	if key == "public_key" {
		d.Peers = append(d.Peers, wgtypes.Peer{})
	}
	p := &d.Peers[len(d.Peers)-1]
	switch key {
	case "public_key":
		p.PublicKey, err = parseKey(value)
	case "preshared_key":
		p.PresharedKey, err = parseKey(value)
	case "endpoint":
		var a netip.AddrPort
		a, err = netip.ParseAddrPort(value)
		p.Endpoint = net.UDPAddrFromAddrPort(a)
	case "allowed_ip":
		var a netip.Prefix
		if a, err = netip.ParsePrefix(value); err == nil {
			p.AllowedIPs = append(p.AllowedIPs, *netdev.NetOf(a))
		}
	case "persistent_keepalive_interval":
		var seconds int
		seconds, err = parseNumber[uint16](value)
		p.PersistentKeepaliveInterval = time.Duration(seconds) * time.Second
	case "last_handshake_time_sec", "last_handshake_time_nsec":
		var n int64
		if n, err = strconv.ParseInt(value, 10, 64); err != nil || n == 0 {
			return err
		}
		if key == "last_handshake_time_sec" {
			p.LastHandshakeTime = time.Unix(n, 0)
		} else {
			var seconds int64
			if !p.LastHandshakeTime.IsZero() {
				seconds = p.LastHandshakeTime.Unix()
			}
			p.LastHandshakeTime = time.Unix(seconds, n)
		}
	case "rx_bytes":
		p.ReceiveBytes, err = strconv.ParseInt(value, 10, 64)
	case "tx_bytes":
		p.TransmitBytes, err = strconv.ParseInt(value, 10, 64)
	}
	return err
}

func parseNumber[N uint16 | uint32](text string) (int, error) {
	bits := 32
	if _, small := any(N(0)).(uint16); small {
		bits = 16
	}
	n, err := strconv.ParseUint(text, 10, bits)
	return int(n), err
}

// parseKey never repeats the text in an error.
func parseKey(text string) (k wgtypes.Key, err error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(k) {
		return k, fmt.Errorf("a key of %d characters, want %d in hexadecimal", len(text), 2*len(k))
	}
	copy(k[:], b)
	return k, nil
}
