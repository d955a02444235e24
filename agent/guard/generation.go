package guard

import (
	"encoding/binary"
	"fmt"
	"reflect"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// settled is when the nftables layer was last read and found to be what it is to be.
type settled struct {
	generation uint32
	policy     policy
	at         time.Time
}

// settledFor is how long that is believed at most.
const settledFor = 10 * time.Second

// holds reports whether nothing has changed since.
func (s settled) holds(generation uint32, p policy, now time.Time) bool {
	return !s.at.IsZero() && s.generation == generation && now.Sub(s.at) < settledFor && reflect.DeepEqual(s.policy, p)
}

// asker asks for the number of a namespace's last nftables transaction, whoever's that was
// (nf_tables_commit in net/netfilter/nf_tables_api.c): a read of all that is there costs a
// hundred times as much, and would happen every second.
type asker struct{ conn *netlink.Conn }

func (a *asker) generation(namespace int) (uint32, error) {
	if a.conn == nil {
		c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: namespace})
		if err != nil {
			return 0, fmt.Errorf("open nftables socket: %w", err)
		}
		a.conn = c
	}
	answers, err := a.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: netlink.Request},
		Data:   make([]byte, nfgenmsgSize),
	})
	var n uint32
	if err == nil {
		n, err = generationOf(answers)
	}
	if err != nil {
		a.close()
		return 0, fmt.Errorf("ask for the generation of nftables: %w", err)
	}
	return n, nil
}

func (a *asker) close() {
	if a.conn != nil {
		_ = a.conn.Close()
		a.conn = nil
	}
}

// nfgenmsgSize is that of struct nfgenmsg (linux/netfilter/nfnetlink.h).
const nfgenmsgSize = 4

// generationOf reads NFT_MSG_NEWGEN.
func generationOf(answers []netlink.Message) (uint32, error) {
	for _, m := range answers {
		if len(m.Data) < nfgenmsgSize {
			continue
		}
		attributes, err := netlink.NewAttributeDecoder(m.Data[nfgenmsgSize:])
		if err != nil {
			return 0, err
		}
		attributes.ByteOrder = binary.BigEndian
		for attributes.Next() {
			if attributes.Type() == unix.NFTA_GEN_ID {
				return attributes.Uint32(), attributes.Err()
			}
		}
		if err := attributes.Err(); err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("%d messages have none", len(answers))
}
