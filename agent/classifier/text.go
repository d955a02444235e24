package classifier

import (
	"fmt"
	"net/netip"
	"strings"
)

// keyText is a map key in words.
func keyText(k any) string {
	switch k := k.(type) {
	case bpfPrefixKey:
		return fmt.Sprintf("tenant %d %s", k.Tenant, netip.PrefixFrom(address(k.Family, k.Addr), int(k.Prefixlen)-64))
	case bpfHostKey:
		return fmt.Sprintf("%d %s", k.Ifindex, address(k.Family, k.Addr))
	}
	return fmt.Sprint(k)
}

// mapLine is a change of a map in words.
type mapLine struct {
	what, table string
	key         any
}

func (l mapLine) String() string { return l.what + " " + l.table + " " + keyText(l.key) }

// valueText is a map value in words.
func valueText(v any) string {
	switch v := v.(type) {
	case bpfPort:
		switch v.Kind {
		case bpfPortKindPORT_LAN:
			return fmt.Sprintf("lan tenant %d slot %d shared %d slow %d", v.Tenant, v.Slot, v.Shared, v.Partner)
		case bpfPortKindPORT_SLOW:
			return fmt.Sprintf("slow tenant %d slot %d lan %d", v.Tenant, v.Slot, v.Partner)
		case bpfPortKindPORT_TUNNEL:
		}
		return fmt.Sprintf("tunnel tenant %d group %d mtu %d slot %d header %d probe %s %s", v.Tenant, v.Group, v.Mtu,
			v.Slot, v.Header, address(6, v.LocalProbe), address(6, v.RemoteProbe))
	case bpfLocal:
		return fmt.Sprintf("interface %d", v.Ifindex)
	case bpfRemote:
		return fmt.Sprintf("group %d", v.Group)
	case bpfGroup:
		var b strings.Builder
		fmt.Fprintf(&b, "tenant %d alive %b", v.Tenant, v.Alive)
		for _, m := range v.Members[:v.Count] {
			fmt.Fprintf(&b, " [%d interface %d mtu %d]", m.Number, m.Ifindex, m.Mtu)
		}
		return b.String()
	}
	return fmt.Sprint(v)
}

func address(family uint32, b [16]uint8) netip.Addr {
	if family == 4 {
		return netip.AddrFrom4([4]byte(b[:4]))
	}
	return netip.AddrFrom16(b)
}
