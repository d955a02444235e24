package nlmsg

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/netns/netnstest"
)

func message(kind uint16, payload []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+len(payload)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(append(b, make([]byte, 10)...), payload...)
	return append(b, make([]byte, align(len(b))-len(b))...)
}

func attribute(kind uint16, value string) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofRtAttr+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, align(len(b))-len(b))...)
}

func TestWalks(t *testing.T) {
	both := append(message(16, []byte("abcde")), message(17, nil)...)
	var kinds []uint16
	see := func(kind uint16, _ uint32, payload []byte) {
		kinds = append(kinds, kind)
		if kind == 16 && string(payload) != "abcde" {
			t.Errorf("payload %q", payload)
		}
	}
	if !Messages(both, see) || len(kinds) != 2 {
		t.Errorf("saw %v", kinds)
	}
	if Messages(both[:len(both)-1], see) {
		t.Error("a message that is cut off was whole")
	}
	list := append(attribute(1, "x"), attribute(2|unix.NLA_F_NESTED, "yz")...)
	got := map[uint16]string{}
	err := Attributes(list, func(kind uint16, value []byte) error {
		got[kind] = string(value)
		return nil
	})
	if err != nil || got[1] != "x" || got[2] != "yz" {
		t.Errorf("attributes %v, %v", got, err)
	}
	binary.NativeEndian.PutUint16(list, 200)
	if err := Attributes(list, func(uint16, []byte) error { return nil }); !errors.Is(err, unix.EINVAL) {
		t.Errorf("an attribute that is cut off: %v", err)
	}
	boom := errors.New("boom")
	if err := Attributes(attribute(1, ""), func(uint16, []byte) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("an error of the caller's: %v", err)
	}
}

func TestFollow(t *testing.T) {
	netnstest.RequireRoot(t)
	_, n := netnstest.New(t)
	socket, err := Subscribe(n, unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		t.Fatal(err)
	}
	h, err := n.Netlink()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	ctx, stop := context.WithCancel(t.Context())
	var seen atomic.Int32
	changed, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		ended <- Follow(ctx, socket, func(b []byte) bool {
			defer seen.Add(1)
			return bytes.Contains(b, []byte("wanted"))
		}, changed)
	}()
	for _, name := range []string{"other", "wanted"} {
		if err := h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name[:3] + "-b"}); err != nil {
			t.Fatal(err)
		}
		for name == "other" && seen.Load() == 0 {
			runtime.Gosched()
		}
		if name == "other" && len(changed) > 0 {
			t.Error("what does not matter is told")
		}
	}
	select {
	case <-changed:
	case <-time.After(time.Minute):
		t.Fatal("a change is not told")
	}
	stop()
	if err := socket.Close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
}

func FuzzWalks(f *testing.F) {
	f.Add(append(message(16, attribute(1, "x")), 0, 1, 2))
	f.Fuzz(func(_ *testing.T, b []byte) {
		Messages(b, func(_ uint16, _ uint32, payload []byte) {
			_ = Attributes(payload, func(uint16, []byte) error { return nil })
		})
		_ = Attributes(b, func(uint16, []byte) error { return nil })
	})
}
