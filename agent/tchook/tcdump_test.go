package tchook

import (
	"encoding/binary"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func message(kind string, chain uint32, options ...*nl.RtAttr) []byte {
	m := (&nl.TcMsg{Ifindex: 5, Handle: 0x800, Info: 1<<16 | uint32(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL)))}).Serialize()
	m = append([]byte(nil), m...)
	m = append(m, nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated(kind)).Serialize()...)
	m = append(m, nl.NewRtAttr(nl.TCA_CHAIN, nl.Uint32Attr(chain)).Serialize()...)
	if options == nil {
		return m
	}
	o := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	for _, x := range options {
		o.AddRtAttr(int(x.Type), x.Data)
	}
	return append(m, o.Serialize()...)
}

// A filter that we cannot read in full is met by packets all the same.
func TestParseFilter(t *testing.T) {
	garbage := nl.NewRtAttr(nl.TCA_U32_SEL, []byte{1})
	for name, test := range map[string]struct {
		message []byte
		met     bool
	}{
		"u32 with a selector we cannot read":    {message("u32", 0, garbage), true},
		"a kind nobody knows":                   {message("xyzzy", 0, garbage), true},
		"flower with keys we cannot read":       {message("flower", 0, garbage), true},
		"another chain":                         {message("flower", 3, garbage), false},
		"a preference":                          {message("flower", 0), false},
		"a hash table of u32, without selector": {message("u32", 0, nl.NewRtAttr(nl.TCA_U32_DIVISOR, nl.Uint32Attr(1))), false},
	} {
		f, met, err := parseFilter(test.message)
		if err != nil || met != test.met {
			t.Errorf("%s: met %t with error %v, want %t", name, met, err, test.met)
		}
		if met && (f.ifindex != 5 || f.filter != filter{1, unix.ETH_P_ALL, 0x800}) {
			t.Errorf("%s: read as %+v", name, f)
		}
	}
	if _, _, err := parseFilter(make([]byte, 7)); err == nil {
		t.Error("half a message: no error")
	}
}

func FuzzParseFilter(f *testing.F) {
	f.Add(message("bpf", 0, nl.NewRtAttr(nl.TCA_BPF_NAME, nl.ZeroTerminated("x/y")), nl.NewRtAttr(nl.TCA_BPF_FLAGS, nl.Uint32Attr(1))))
	f.Add(message("u32", 0, nl.NewRtAttr(nl.TCA_U32_SEL, []byte{1})))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, m []byte) {
		if _, met, err := parseFilter(m); met && err != nil {
			t.Errorf("met, and an error: %v", err)
		}
	})
}
