package api

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/circuitseal/circuitseal/controller/model"
)

func TestParseKind(t *testing.T) {
	tests := []struct {
		in   string
		want model.Kind
		says string
	}{
		{"Site", model.KindSite, ""},
		{"sites", model.KindSite, ""},
		{"SITES", model.KindSite, ""},
		{"encryptionpolicies", model.KindEncryptionPolicy, ""},
		{"EncryptionPolicy", model.KindEncryptionPolicy, ""},
		{"sitse", "", "did you mean Site?"},
		{"", "", "want one of"},
		{strings.Repeat("x", 64<<10), "", "want one of"},
		{"../sites", "", "there is no kind"},
	}
	for _, tt := range tests {
		t.Run(model.Shorten(tt.in), func(t *testing.T) {
			got, err := parseKind(tt.in)
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if tt.says == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), tt.says) || len(err.Error()) > 400 {
				t.Errorf("got %v, want one that says %q", err, tt.says)
			}
		})
	}
}

func TestFailuresHoldBackGuessing(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	f := newFailures(func() time.Time { return now })
	for i := range failureBurst {
		if w := f.wait("192.0.2.1"); w != 0 {
			t.Fatalf("failure %d has to wait %s", i, w)
		}
		f.add("192.0.2.1")
	}
	if w := f.wait("192.0.2.1"); w <= 0 || w > failureEvery {
		t.Errorf("after the burst the wait is %s", w)
	}
	if w := f.wait("192.0.2.2"); w != 0 {
		t.Errorf("another address has to wait %s", w)
	}
	now = now.Add(failureEvery)
	if w := f.wait("::ffff:192.0.2.1"); w != 0 {
		t.Errorf("later the wait is %s", w)
	}
	if network("2001:db8::1") != network("2001:db8::2") || network("2001:db8::1") == network("2001:db8:0:1::1") {
		t.Error("IPv6 addresses count by /64")
	}
}

func TestFailuresAreBounded(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	f := newFailures(func() time.Time { return now })
	for i := range 3 * maxAddresses {
		f.add(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String())
	}
	if len(f.until) > maxAddresses {
		t.Errorf("%d addresses are remembered", len(f.until))
	}
}
