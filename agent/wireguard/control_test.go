package wireguard

import (
	"bufio"
	"encoding/json"
	"strings"
	"testing"
)

func TestParseRequest(t *testing.T) {
	for _, tt := range []struct{ line, want string }{
		{`{"op":"hello"}`, ""},
		{`{"op":"list"}`, ""},
		{`{"op":"shutdown"}`, ""},
		{`{"op":"add","device":"cs-t-1","mtu":1380,"port":51820,"mark":1129512961}`, ""},
		{`{"op":"remove","device":"cs-t-65535"}`, ""},
		{`{"op":"hello","device":"cs-t-1"}`, "no other fields"},
		{`{"op":"remove","device":"cs-t-1","mtu":1}`, "device only"},
		{`{"op":"add","device":"cs-t-1","mtu":575,"port":1}`, "MTU 575"},
		{`{"op":"add","device":"cs-t-1","mtu":1380}`, "port"},
		{`{"op":"add","device":"cs-u-1","mtu":1380,"port":1}`, "not one of instance t"},
		{`{"op":"add","device":"cs-t-","mtu":1380,"port":1}`, "not one of"},
		{`{"op":"add","device":"cs-t-01","mtu":1380,"port":1}`, "not one of"},
		{`{"op":"add","device":"cs-t-65536","mtu":1380,"port":1}`, "not one of"},
		{`{"op":"add","device":"cs-t-1/../x","mtu":1380,"port":1}`, "not one of"},
		{`{"op":"remove"}`, "not one of"},
		{`{"op":"kill"}`, "unknown"},
		{`{"op":"hello","pid":1}`, "unknown field"},
		{`{"op":"hello"}{}`, "more than one"},
		{`[]`, "read request"},
		{``, "read request"},
	} {
		t.Run(tt.line, func(t *testing.T) {
			_, err := parseRequest([]byte(tt.line), "t")
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add([]byte(`{"op":"add","device":"cs-t-1","mtu":1380,"port":51820,"mark":1}`))
	f.Add([]byte(`{"op":"hello"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		q, err := parseRequest(line, "t")
		if err != nil {
			return
		}
		if q.Device != "" && !deviceOf("t", q.Device) {
			t.Errorf("accepted device %q", q.Device)
		}
		b, err := json.Marshal(q)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := parseRequest(b, "t"); err != nil || again != q {
			t.Errorf("%s parses as %+v, %v; want %+v", b, again, err, q)
		}
	})
}

func TestReadLine(t *testing.T) {
	r := bufio.NewReaderSize(strings.NewReader("short\n"+strings.Repeat("x", 100)+"\n"+strings.Repeat("y", 101)+"\n"), 16)
	for _, want := range []int{6, 101, 0} {
		line, err := readLine(r, 101)
		if len(line) != want || (err != nil) != (want == 0) {
			t.Errorf("line of %d bytes, %v; want %d", len(line), err, want)
		}
	}
	if _, err := readLine(bufio.NewReader(strings.NewReader("cut")), 10); err == nil {
		t.Error("a line without its end passes")
	}
}

func TestMemoryUse(t *testing.T) {
	resident, peak := memoryUse([]byte("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\nVmData:\nThreads:\t9\n"))
	if resident != 1<<20 || peak != 2<<20 {
		t.Errorf("resident %d, peak %d", resident, peak)
	}
}

func TestMemoryLimit(t *testing.T) {
	for text, want := range map[string]int64{"": defaultMemory, "64": 64 << 20, "15": 0, "x": 0, "-1": 0, "99999999999": 0} {
		got, err := memoryLimit(text)
		if got != want || (err != nil) != (want == 0) {
			t.Errorf("memoryLimit(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
}
