package ipsec

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/strongswan/govici/vici"
)

// told is what a charon 5.9.8 has told.
func told() *vici.Message {
	child := section("name", "g1", "uniqueid", "12", "reqid", "1129512967", "state", "INSTALLED", "mode", "TUNNEL", "protocol", "ESP", "encap", "yes",
		"spi-in", "133f8608", "spi-out", "a20535db", "mark-out", "43530001", "if-id-in", "43530007", "if-id-out", "43530007",
		"encr-alg", "AES_GCM_16", "encr-keysize", "256", "dh-group", "ECP_384", "esn", "1",
		"bytes-in", "840", "packets-in", "10", "use-in", "1", "bytes-out", "18446744073709551615", "packets-out", "11",
		"rekey-time", "3300", "life-time", "3960", "install-time", "17",
		"local-ts", []string{"0.0.0.0/0", "::/0"}, "remote-ts", []string{"0.0.0.0/0", "::/0"})
	return section("cs-main.7.t.a.b", section("uniqueid", "3", "version", "2", "state", "ESTABLISHED",
		"local-host", "192.0.2.1", "local-port", "4500", "local-id", "a.example", "remote-host", "192.0.2.2", "remote-port", "4500", "remote-id", "b.example",
		"initiator", "yes", "initiator-spi", "0123456789abcdef", "responder-spi", "fedcba9876543210", "nat-remote", "yes",
		"encr-alg", "AES_GCM_16", "encr-keysize", "256", "prf-alg", "PRF_HMAC_SHA2_384", "dh-group", "ECP_384", "ke1-alg", "ML_KEM_768", "ppk", "yes",
		"established", "60", "rekey-time", "13000", "child-sas", section("g1-12", child)))
}

func TestParseSAs(t *testing.T) {
	got, err := parseSAs(inst, told())
	if err != nil {
		t.Fatal(err)
	}
	want := []namedSA{{connection: connectionName{7, "t", "a", "b"}, ikeSA: ikeSA{
		name: "cs-main.7.t.a.b", id: 3, state: "ESTABLISHED", initiator: true, spis: [2]string{"0123456789abcdef", "fedcba9876543210"},
		localID: "a.example", remoteID: "b.example", ppk: true, established: true, age: time.Minute,
		suite: suite{encryption: "aes256gcm16", prf: "prfsha384", exchanges: []string{"ecp384", "ke1_mlkem768"}},
		children: []childSA{{
			name: "g1", id: 12, state: "INSTALLED", mode: "TUNNEL", protocol: "ESP", encap: true, spiIn: 0x133f8608, spiOut: 0xa20535db,
			interfaceIn: 0x43530007, interfaceOut: 0x43530007, suite: suite{encryption: "aes256gcm16", exchanges: []string{"ecp384"}, esn: true},
			bytesIn: 840, packetsIn: 10, bytesOut: 1<<64 - 1, packetsOut: 11, age: 17 * time.Second,
		}},
	}}}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(namedSA{}, ikeSA{}, childSA{}, suite{}, connectionName{})); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	for key, value := range map[string]string{"uniqueid": "-1", "established": "yesterday"} {
		m := told()
		put(m.Get("cs-main.7.t.a.b").(*vici.Message), key, value)
		if _, err := parseSAs(inst, m); err == nil {
			t.Errorf("%s of %q is taken", key, value)
		}
	}
	m := told()
	put(m, "others", section("uniqueid", "no number", "state", "ESTABLISHED"))
	if got, err := parseSAs(inst, m); err != nil || len(got) != 1 {
		t.Errorf("beside what is not ours: %v, %v", got, err)
	}
	m = told()
	put(m.Get("cs-main.7.t.a.b").(*vici.Message), "established", "-5")
	if got, err := parseSAs(inst, m); err != nil || got[0].age != 0 {
		t.Errorf("with a clock that was set back: %v, %v", got, err)
	}
	m = told()
	put(m.Get("cs-main.7.t.a.b").(*vici.Message), "state", "REKEYING")
	if got, err := parseSAs(inst, m); err != nil || !got[0].up() {
		t.Errorf("an SA whose keys are replaced is up: %v, %v", got, err)
	}
}

func TestUntangle(t *testing.T) {
	child := func(ids ...uint64) (list []childSA) {
		for _, id := range ids {
			list = append(list, childSA{id: id})
		}
		return list
	}
	sas := untangle([]namedSA{
		{ikeSA: ikeSA{id: 4, state: "CONNECTING"}}, {ikeSA: ikeSA{id: 1, children: child(1, 2)}}, {ikeSA: ikeSA{id: 2}},
		{ikeSA: ikeSA{id: 2, children: child(3, 2)}}, {ikeSA: ikeSA{id: 3}}, {ikeSA: ikeSA{id: 4, state: "ESTABLISHED", children: child(5)}},
	})
	want := []namedSA{{ikeSA: ikeSA{id: 1, children: child(1)}}, {ikeSA: ikeSA{id: 2, children: child(3, 2)}}, {ikeSA: ikeSA{id: 3}}, {ikeSA: ikeSA{id: 4, state: "ESTABLISHED", children: child(5)}}}
	if d := cmp.Diff(want, sas, cmp.AllowUnexported(namedSA{}, ikeSA{}, childSA{}, suite{}, connectionName{})); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestLost is of lists that charon made up while ESP SAs went from an IKE SA to its
// successor.
func TestLost(t *testing.T) {
	_, up := good()
	with := func(s ikeSA) []namedSA { return []namedSA{{ikeSA: s}} }
	bare := up
	bare.state, bare.established, bare.children = ikeRekeyed, false, nil
	tests := []struct {
		name    string
		carried map[uint16]bool
		sas     map[uint16][]namedSA
		want    bool
	}{
		{name: "nothing was, nothing is"},
		{name: "it comes", sas: map[uint16][]namedSA{7: with(up)}},
		{name: "it stays", carried: map[uint16]bool{7: true}, sas: map[uint16][]namedSA{7: with(up)}},
		{name: "its ESP SAs are elsewhere", carried: map[uint16]bool{7: true}, sas: map[uint16][]namedSA{7: with(bare)}, want: true},
		{name: "it is gone", carried: map[uint16]bool{7: true}, sas: map[uint16][]namedSA{8: with(up)}, want: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := lost(tt.carried, tt.sas); got != tt.want {
				t.Errorf("lost is %t, want %t", got, tt.want)
			}
		})
	}
}

// wire is a message as charon sends it, an event of the kind that streams.
func wire(m *vici.Message, name string) []byte {
	var body func(*vici.Message) []byte
	body = func(m *vici.Message) []byte {
		var b []byte
		word := func(s string) []byte { return append([]byte{byte(len(s))}, s...) }
		long := func(s string) []byte { return append(binary.BigEndian.AppendUint16(nil, uint16(len(s))), s...) }
		for _, k := range m.Keys() {
			switch v := m.Get(k).(type) {
			case string:
				b = append(append(append(b, 3), word(k)...), long(v)...)
			case []string:
				b = append(append(b, 4), word(k)...)
				for _, x := range v {
					b = append(append(b, 5), long(x)...)
				}
				b = append(b, 6)
			case *vici.Message:
				b = append(append(append(append(b, 1), word(k)...), body(v)...), 2)
			}
		}
		return b
	}
	packet := append([]byte{packetEvent, byte(len(name))}, name...)
	packet = append(packet, body(m)...)
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(packet))), packet...)
}

// decode has govici read bytes that came from charon.
func decode(t testing.TB, b []byte) []*vici.Message {
	here, there := net.Pipe()
	asked := make(chan struct{}, 8)
	go func() {
		defer close(asked)
		for {
			var length [lengthSize]byte
			if _, err := io.ReadFull(there, length[:]); err != nil {
				return
			}
			if _, err := io.CopyN(io.Discard, there, int64(binary.BigEndian.Uint32(length[:]))); err != nil {
				return
			}
			asked <- struct{}{}
		}
	}()
	go func() {
		// To register the event, to the request, and to unregister.
		for _, answer := range [][]byte{{0, 0, 0, 1, 5}, append(bytes.Clone(b), 0, 0, 0, 1, 1), {0, 0, 0, 1, 5}} {
			if _, ok := <-asked; !ok {
				return
			}
			if _, err := there.Write(answer); err != nil {
				return
			}
		}
		_ = there.Close()
	}()
	conn := newPacedConn(here)
	c := &client{conn: conn}
	var err error
	if c.session, err = vici.NewSession(dialed(conn)); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	var all []*vici.Message
	_ = c.stream(t.Context(), "list-sas", "list-sa", nil, func(m *vici.Message) error {
		all = append(all, m)
		return nil
	})
	return all
}

// govici drops what nobody has taken of more than 128 messages; see stream.
func TestStreamDropsNothing(t *testing.T) {
	const n = 5000
	var b bytes.Buffer
	for i := range n {
		b.Write(wire(section(fmt.Sprint(i), section("uniqueid", fmt.Sprint(i))), "list-sa"))
	}
	all := decode(t, b.Bytes())
	if len(all) != n {
		t.Fatalf("%d messages of %d came", len(all), n)
	}
	for i, m := range all {
		if m.Keys()[0] != fmt.Sprint(i) {
			t.Fatalf("message %d is %v", i, m.Keys())
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(wire(told(), "list-sa")[lengthSize:])
	f.Add(wire(section("ikesa-name", "cs-main.7.t.a.b", "ikesa-uniqueid", "1", "msg", "using PPK for PPK_ID '2.x'"), "list-sa")[lengthSize:])
	f.Add([]byte{packetEvent, 7})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 || b[0] != packetEvent {
			t.Skip()
		}
		for _, m := range decode(t, append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)) {
			if sas, err := parseSAs(inst, m); err == nil {
				p, _ := good()
				for _, s := range sas {
					_, _ = judge(p, Kernel, s.ikeSA), evidence(p, Kernel, s.ikeSA)
					decide(view{tunnel: p, backend: Kernel, sas: []namedSA{s}})
				}
			}
			if n, ok := parseNoise(m); ok {
				_, _ = n.reason(true)
				_, _ = n.generation()
			}
			_ = algorithms(m)
			for _, k := range m.Keys() {
				_, _ = parseName(inst, k)
				_, _ = secretOf(inst, k)
				_ = parseProposal(k)
			}
		}
	})
}
