package powercut

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// inode is one file or directory for as long as the record lasts.
type inode int

const rootInode inode = 0

type kind uint8

const (
	created kind = iota
	removed
	renamed
	moded
	truncated
	written
	synced
)

// operation is one thing that was done. name is in the directory parent.
type operation struct {
	kind   kind
	inode  inode
	parent inode
	name   string
	// to and newName are where a rename leads.
	to      inode
	newName string
	mode    uint32
	dir     bool
	// offset is a write's, or the size of a truncation. A write without data makes
	// the file at least that long.
	offset int64
	data   []byte
}

// record is all operations, and the names as they are now.
type record struct {
	operations []operation
	names      map[inode]map[string]inode
	next       inode
}

func newRecord() record {
	return record{names: map[inode]map[string]inode{rootInode: {}}, next: rootInode + 1}
}

func (r *record) add(o operation) { r.operations = append(r.operations, o) }

func (r *record) create(parent inode, name string, mode uint32, dir bool) inode {
	made := r.next
	r.next++
	r.names[parent][name] = made
	if dir {
		r.names[made] = map[string]inode{}
	}
	r.add(operation{kind: created, inode: made, parent: parent, name: name, mode: mode, dir: dir})
	return made
}

func (r *record) remove(parent inode, name string) {
	gone := r.names[parent][name]
	delete(r.names[parent], name)
	r.add(operation{kind: removed, inode: gone, parent: parent, name: name})
}

func (r *record) rename(parent inode, name string, to inode, newName string) {
	moved := r.names[parent][name]
	delete(r.names[parent], name)
	r.names[to][newName] = moved
	r.add(operation{kind: renamed, inode: moved, parent: parent, name: name, to: to, newName: newName})
}

func (r *record) chmod(i inode, mode uint32) { r.add(operation{kind: moded, inode: i, mode: mode}) }

func (r *record) truncate(i inode, size int64) {
	r.add(operation{kind: truncated, inode: i, offset: size})
}

func (r *record) write(i inode, offset int64, data []byte) {
	r.add(operation{kind: written, inode: i, offset: offset, data: data})
}

func (r *record) sync(i inode) { r.add(operation{kind: synced, inode: i}) }

// Survival is which of the operations that nobody has synced survive the cut.
type Survival struct {
	// Names survive up to the last sync of a directory, or all: file systems with
	// a journal keep their order.
	Names bool
	// Data of a file survive up to its own last sync, or all.
	Data bool
	// Torn leaves half of the last write when it is the last operation, and
	// random ones of the others that nobody has synced, from this seed; 0 is off.
	Torn uint64
}

// Survivals are the extremes, and one in between.
func Survivals() map[string]Survival {
	return map[string]Survival{
		"nothing":    {},
		"names":      {Names: true},
		"data":       {Data: true},
		"everything": {Names: true, Data: true},
		"torn":       {Names: true, Data: true, Torn: 1},
	}
}

// layout replays what survives below dir.
func layout(operations []operation, s Survival, dir string) error {
	names, modes := replayNames(operations, s)
	lastSync := map[inode]int{}
	for n, o := range operations {
		if o.kind == synced {
			lastSync[o.inode] = n
		}
	}
	random := rand.New(rand.NewPCG(s.Torn, uint64(len(operations))))
	data := map[inode][]operation{}
	for n, o := range operations {
		if o.kind != written && o.kind != truncated {
			continue
		}
		last, ever := lastSync[o.inode]
		if durable := ever && n < last; !durable {
			if !s.Data || s.Torn != 0 && random.IntN(2) == 0 {
				continue
			}
			if s.Torn != 0 && n == len(operations)-1 {
				o.data = o.data[:len(o.data)/2]
			}
		}
		data[o.inode] = append(data[o.inode], o)
	}
	return write(dir, rootInode, names, modes, data)
}

// replayNames are the directories that survive, and all modes.
func replayNames(operations []operation, s Survival) (map[inode]map[string]inode, map[inode]operation) {
	names := map[inode]map[string]inode{rootInode: {}}
	durable := map[inode]map[string]inode{rootInode: {}}
	about := map[inode]operation{}
	for _, o := range operations {
		switch o.kind {
		case created:
			names[o.parent][o.name] = o.inode
			about[o.inode] = o
			if o.dir {
				names[o.inode] = map[string]inode{}
			}
		case removed:
			delete(names[o.parent], o.name)
		case renamed:
			delete(names[o.parent], o.name)
			names[o.to][o.newName] = o.inode
		case moded:
			a := about[o.inode]
			a.mode = o.mode
			about[o.inode] = a
		case synced:
			if names[o.inode] == nil {
				continue
			}
			durable = map[inode]map[string]inode{}
			for i, entries := range names {
				durable[i] = maps.Clone(entries)
			}
		case truncated, written:
		}
	}
	if s.Names {
		durable = names
	}
	return durable, about
}

func write(dir string, i inode, names map[inode]map[string]inode, about map[inode]operation, data map[inode][]operation) error {
	for name, child := range names[i] {
		path := filepath.Join(dir, name)
		mode := os.FileMode(about[child].mode & 0o777)
		if about[child].dir {
			if err := os.Mkdir(path, 0o700); err != nil {
				return err
			}
			if err := write(path, child, names, about, data); err != nil {
				return err
			}
			if err := os.Chmod(path, mode); err != nil {
				return err
			}
			continue
		}
		if err := writeFile(path, data[child]); err != nil {
			return fmt.Errorf("lay out %s: %w", path, err)
		}
		if err := os.Chmod(path, mode); err != nil {
			return err
		}
	}
	return nil
}

func writeFile(path string, data []operation) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	for _, o := range data {
		if o.kind == truncated {
			if err := f.Truncate(o.offset); err != nil {
				return err
			}
			continue
		}
		if len(o.data) > 0 {
			if _, err := f.WriteAt(o.data, o.offset); err != nil {
				return err
			}
			continue
		}
		if info, err := f.Stat(); err != nil {
			return err
		} else if info.Size() < o.offset {
			if err := f.Truncate(o.offset); err != nil {
				return err
			}
		}
	}
	return f.Close()
}
