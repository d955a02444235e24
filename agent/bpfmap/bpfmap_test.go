package bpfmap

import (
	"maps"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/circuitseal/circuitseal/agent/netns/netnstest"
)

type prefix struct {
	Bits uint32
	Data [8]byte
}

func TestReadAll(t *testing.T) {
	netnstest.RequireRoot(t)
	for _, entries := range []int{0, 1, chunk - 1, chunk, chunk + 1, 5*chunk + 3} {
		hash, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: 8 * chunk})
		if err != nil {
			t.Fatal(err)
		}
		trie, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LPMTrie, KeySize: 12, ValueSize: 8, MaxEntries: 8 * chunk, Flags: 1})
		if err != nil {
			t.Fatal(err)
		}
		numbers, prefixes := map[uint32]uint64{}, map[prefix]uint64{}
		for i := range uint32(entries) {
			numbers[i*7919] = uint64(i)
			p := prefix{Bits: 24 + i%9, Data: [8]byte{byte(i >> 8), byte(i), 1, byte(i % 9 << 4)}}
			prefixes[p] = uint64(i)
			if err := hash.Put(i*7919, uint64(i)); err != nil {
				t.Fatal(err)
			}
			if err := trie.Put(&p, uint64(i)); err != nil {
				t.Fatal(err)
			}
		}
		for name, read := range map[string]func() (bool, error){
			"hash": func() (bool, error) {
				got := map[uint32]uint64{}
				err := ReadAll(hash, got)
				return maps.Equal(got, numbers), err
			},
			"trie": func() (bool, error) {
				got := map[prefix]uint64{}
				err := ReadAll(trie, got)
				return maps.Equal(got, prefixes), err
			},
		} {
			if same, err := read(); err != nil || !same {
				t.Errorf("%s of %d entries: the same %v, %v", name, entries, same, err)
			}
		}
		if err := hash.Close(); err != nil {
			t.Error(err)
		}
		if err := trie.Close(); err != nil {
			t.Error(err)
		}
	}
}

// readEach is the peer: two system calls an entry.
func readEach[K comparable, V any](m *ebpf.Map, into map[K]V) error {
	var (
		k K
		v V
	)
	it := m.Iterate()
	for it.Next(&k, &v) {
		into[k] = v
	}
	return it.Err()
}

func BenchmarkReadAll(b *testing.B) {
	netnstest.RequireRoot(b)
	hash, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: 16384})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = hash.Close() }()
	for i := range uint32(2000) {
		if err := hash.Put(i, uint64(i)); err != nil {
			b.Fatal(err)
		}
	}
	for name, read := range map[string]func(*ebpf.Map, map[uint32]uint64) error{"chunks": ReadAll[uint32, uint64], "each": readEach[uint32, uint64]} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := read(hash, map[uint32]uint64{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
