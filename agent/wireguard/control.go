package wireguard

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/circuitseal/circuitseal/agent/instance"
)

// The control protocol between agent and WireGuard process is one JSON object
// a line, a request and its answer in turn, over a unix socket that only root
// reaches. Private keys do not pass here: they go over the UAPI sockets, as all
// settings do that the agent writes. It reads them here, since one answer for all devices takes as
// long as one socket. With add comes the open TUN (unix(7), SCM_RIGHTS): the agent
// makes it, since the process cannot reach the namespace where it belongs.

// protocolVersion changes when an agent and a process of different builds would
// misunderstand each other.
const protocolVersion = 2

const (
	requestLimit  = 4 << 10
	responseLimit = 64 << 20
	// maxDevices bounds a process; instance numbers are 16 bits.
	maxDevices = 4096
)

type operation string

const (
	opHello    operation = "hello"
	opAdd      operation = "add"
	opRemove   operation = "remove"
	opList     operation = "list"
	opShutdown operation = "shutdown"
)

type request struct {
	Operation operation `json:"op"`
	Device    string    `json:"device,omitempty"`
	// MTU, Port and Mark come with add, and a TUN unless the device is there, which
	// takes a new MTU only; port and mark of a running one change over UAPI.
	MTU  int    `json:"mtu,omitempty"`
	Port uint16 `json:"port,omitempty"`
	Mark uint32 `json:"mark,omitempty"`
}

type response struct {
	Error   string         `json:"error,omitempty"`
	Process *Process       `json:"process,omitempty"`
	Devices []hostedDevice `json:"devices,omitempty"`
}

// Process is what a WireGuard process says of itself.
type Process struct {
	Protocol int    `json:"protocol"`
	Version  string `json:"version"`
	PID      int    `json:"pid"`
	// MemoryLimit, ResidentBytes and PeakBytes are in bytes; the peak is the
	// kernel's VmHWM (proc_pid_status(5)).
	MemoryLimit   int64 `json:"memoryLimitBytes"`
	ResidentBytes int64 `json:"residentBytes"`
	PeakBytes     int64 `json:"peakBytes"`
	Devices       int   `json:"devices"`
}

// hostedDevice is a device in an answer to list. A process of an older build
// tells name and MTU only.
type hostedDevice struct {
	Name string `json:"name"`
	MTU  int    `json:"mtu"`
	// Public is the public half of the device's key, nothing without one.
	Public []byte `json:"public,omitempty"`
	// Settings are those of the configuration protocol, as it writes them, but for
	// the private key.
	Settings string `json:"settings,omitempty"`
}

// parseRequest reads one line from an agent of the instance. It refuses
// unknown fields and any device that is not the instance's.
func parseRequest(line []byte, inst instance.Instance) (request, error) {
	var r request
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return request{}, fmt.Errorf("read request: %w", err)
	}
	if d.More() {
		return request{}, errors.New("read request: more than one object on a line")
	}
	switch r.Operation {
	case opHello, opList, opShutdown:
		if (r != request{Operation: r.Operation}) {
			return request{}, fmt.Errorf("request %s takes no other fields", r.Operation)
		}
		return r, nil
	case opAdd:
		// 576 is the least that an IPv4 host accepts (RFC 791, section 3.1).
		if r.MTU < 576 || r.MTU > 65535 {
			return request{}, fmt.Errorf("MTU %d: want 576 to 65535", r.MTU)
		}
		if r.Port == 0 {
			return request{}, errors.New("request add needs a port")
		}
	case opRemove:
		if (r != request{Operation: r.Operation, Device: r.Device}) {
			return request{}, errors.New("request remove takes a device only")
		}
	default:
		return request{}, fmt.Errorf("request %.32q is unknown", r.Operation)
	}
	if !deviceOf(inst, r.Device) {
		return request{}, fmt.Errorf("device %.32q is not one of instance %s", r.Device, inst)
	}
	return r, nil
}

// deviceOf reports whether name is Instance.Device of some number.
func deviceOf(inst instance.Instance, name string) bool {
	number, ok := strings.CutPrefix(name, inst.DevicePrefix())
	if !ok || number == "" || len(number) > 5 || number[0] == '0' {
		return false
	}
	n := 0
	for _, c := range []byte(number) {
		if c < '0' || c > '9' {
			return false
		}
		n = n*10 + int(c-'0')
	}
	return n <= 0xffff
}

// readLine reads up to a newline, at most limit bytes.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > limit {
			return nil, fmt.Errorf("line of more than %d bytes", limit)
		}
		line = append(line, part...)
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			if errors.Is(err, io.EOF) && len(line) > 0 {
				return nil, io.ErrUnexpectedEOF
			}
			return nil, err
		}
		return line, nil
	}
}
