// Package bpfmap reads whole eBPF maps. It knows how kernels list entries and
// nothing of what is in them.
package bpfmap

import (
	"errors"
	"fmt"
	"maps"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// chunk is how many entries are asked for at once. The kernel gives whole buckets
// of a hash table, and refuses where one does not fit.
const chunk = 1024

// ReadAll adds all entries of a map to into, in chunks, which every kernel that
// has what the programs need takes (Linux 5.6 for hash tables, 5.13 for LPM
// tries). Entries that come and go meanwhile may be in it or not. Keys and values have no pointers and
// the layout of the map's. On an error into is as it was.
func ReadAll[K comparable, V any](m *ebpf.Map, into map[K]V) error {
	all := make(map[K]V, len(into))
	if err := readChunks(m, all); err != nil {
		return fmt.Errorf("read map %s: %w", m, err)
	}
	maps.Copy(into, all)
	return nil
}

func readChunks[K comparable, V any](m *ebpf.Map, into map[K]V) error {
	keys, values := make([]K, chunk), make([]V, chunk)
	for cursor := new(ebpf.MapBatchCursor); ; {
		n, err := m.BatchLookup(cursor, keys, values, nil)
		if errors.Is(err, unix.ENOSPC) && len(keys) < int(m.MaxEntries()) {
			// The cursor stays where it was.
			keys, values = make([]K, 2*len(keys)), make([]V, 2*len(values))
			continue
		}
		last := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !last {
			return err
		}
		for i := range n {
			into[keys[i]] = values[i]
		}
		if last {
			return nil
		}
	}
}
