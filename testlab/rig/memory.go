package rig

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Memory is what a process keeps in RAM.
type Memory struct {
	// MiB now, and at the highest.
	Now  float64 `json:"mib"`
	Peak float64 `json:"peakMiB"`
}

// ReadMemory reads VmRSS and VmHWM of proc(5).
func ReadMemory(pid int) (Memory, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Memory{}, fmt.Errorf("read memory of process %d: %w", pid, err)
	}
	defer func() { _ = f.Close() }()
	var m Memory
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 2 {
			continue
		}
		kib, err := strconv.ParseFloat(fields[1], 64)
		if err != nil {
			continue
		}
		switch fields[0] {
		case "VmRSS:":
			m.Now = kib / 1024
		case "VmHWM:":
			m.Peak = kib / 1024
		}
	}
	if m.Now == 0 {
		return m, fmt.Errorf("read memory of process %d: it has ended", pid)
	}
	return m, nil
}
