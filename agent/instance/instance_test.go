package instance

import (
	"math"
	"strings"
	"testing"
)

// Devices of tunnels and of slow paths are told apart by how their names begin,
// among all instances.
func TestSlowDevices(t *testing.T) {
	for lan, want := range map[uint32]string{1: "cs-abcdef_1", 36: "cs-abcdef_10", 60_466_175: "cs-abcdef_zzzzz"} {
		if got, ok := Instance("abcdef").SlowDevice(lan); got != want || !ok {
			t.Errorf("slow path of interface %d is %s, %t; want %s", lan, got, ok, want)
		}
	}
	for _, lan := range []uint32{0, 60_466_176, math.MaxInt32} {
		if got, ok := Instance("abcdef").SlowDevice(lan); ok {
			t.Errorf("slow path of interface %d is %s, want none", lan, got)
		}
	}
	a, b := Instance("a"), Instance("ab")
	tunnel, slow := a.Device(1), a.SlowDevicePrefix()
	if strings.HasPrefix(tunnel, slow) || strings.HasPrefix(slow, a.DevicePrefix()) || strings.HasPrefix(b.SlowDevicePrefix(), slow) {
		t.Errorf("%s, %s and %s begin alike", tunnel, slow, b.SlowDevicePrefix())
	}
}

// VLAN devices are one instance's, and neither tunnels nor slow paths, however
// long the names are.
func TestVLANDevices(t *testing.T) {
	long := Instance("abcdef")
	for _, name := range []string{long.VLANDevice(math.MaxUint16), long.OuterVLANDevice(math.MaxUint16)} {
		if !long.IsVLANDevice(name) || len(name) > maxDevice || Instance("abcde").IsVLANDevice(name) {
			t.Errorf("%q is no VLAN device's name, another instance's, or too long", name)
		}
	}
	slow, _ := long.SlowDevice(1)
	for _, name := range []string{"", "eth0.5", long.Namespace(), long.Device(1), slow, Instance("b").VLANDevice(1)} {
		if long.IsVLANDevice(name) {
			t.Errorf("%q is taken for a VLAN device", name)
		}
	}
}

// Marks of instances differ from each other and from those of outer packets.
func TestInnerMark(t *testing.T) {
	seen := map[uint32]string{0: "none", Mark(0): "outer packets"}
	for _, name := range []string{"main", "a", "b", "lab1", "lab2", "prem", "nva"} {
		i, err := Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		base := i.InnerMark()
		if base&math.MaxUint16 != 0 {
			t.Errorf("mark of %s is %#x, want its lower half to be the group's", i, base)
		}
		if was, twice := seen[base]; twice {
			t.Errorf("%s has the mark %#x of %s", i, base, was)
		}
		seen[base] = name
	}
}
