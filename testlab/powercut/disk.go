// Package powercut is a disk that loses power: a FUSE file system that records
// everything that is done to it, and can lay out what a power cut after any
// operation would have left. It can also be full, read-only or broken. It knows
// files and directories, and nothing of what is kept in them.
package powercut

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// Disk is a mounted file system and the record of what was done to it. Who maps
// its files into memory has to be another process than the disk's: a page fault
// holds up the Go scheduler until the disk has answered.
type Disk struct {
	// Path is where it is mounted, Backing where its files are.
	Path, Backing string

	server *fuse.Server
	fuse.RawFileSystem

	mu     sync.Mutex
	record record
	// nodes are the file system's own numbers.
	nodes map[uint64]inode
	fault func(Operation) syscall.Errno
}

// Operation is what can be made to fail.
type Operation uint8

// The operations. Change is everything that alters names, sizes or modes.
const (
	Write Operation = iota
	Sync
	Change
)

// Mount mounts a disk, empty, at path; backing is a directory of another file
// system, empty too, that holds its files. Both must exist. It needs root and
// /dev/fuse.
func Mount(path, backing string) (*Disk, error) {
	root, err := fs.NewLoopbackRoot(backing)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", path, err)
	}
	d := &Disk{
		Path: path, Backing: backing, RawFileSystem: fs.NewNodeFS(root, &fs.Options{}),
		record: newRecord(), nodes: map[uint64]inode{fuse.FUSE_ROOT_ID: rootInode},
	}
	d.server, err = fuse.NewServer(d, path, &fuse.MountOptions{
		DirectMountStrict: true, FsName: "powercut", Name: "powercut", DisableXAttrs: true, DisableSplice: true, DisableReadDirPlus: true,
	})
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", path, err)
	}
	go d.server.Serve()
	if err := d.server.WaitMount(); err != nil {
		return nil, fmt.Errorf("mount %s: %w", path, err)
	}
	return d, nil
}

// Unmount ends the disk. Nobody may have a file of it open; it waits until the kernel is
// through with closing those of a process that has just ended, some seconds at most.
func (d *Disk) Unmount() error {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if err := d.server.Unmount(); !errors.Is(err, syscall.EBUSY) || time.Now().After(end) {
			return err
		}
	}
}

// Fail makes operations fail with what f returns for them; 0 lets them through.
// nil heals the disk.
func (d *Disk) Fail(f func(Operation) syscall.Errno) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = f
}

// Mark returns how many operations there were so far: a cut at that number, or
// later, comes after what the caller has just been told.
func (d *Disk) Mark() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.record.operations)
}

// do runs an operation and records it when it was done.
func (d *Disk) do(o Operation, run func() fuse.Status, done func()) fuse.Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fault != nil {
		if e := d.fault(o); e != 0 {
			return fuse.Status(e)
		}
	}
	s := run()
	if s.Ok() {
		done()
	}
	return s
}

// Init implements fuse.RawFileSystem. The file system below is not told of the
// server, by which it would let the kernel write past the record
// (FOPEN_PASSTHROUGH).
func (d *Disk) Init(*fuse.Server) {}

// Lookup implements fuse.RawFileSystem.
func (d *Disk) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.RawFileSystem.Lookup(cancel, h, name, out)
	if s.Ok() && out.NodeId != 0 {
		if child, ok := d.record.names[d.nodes[h.NodeId]][name]; ok {
			d.nodes[out.NodeId] = child
		}
	}
	return s
}

// Create implements fuse.RawFileSystem.
func (d *Disk) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	return d.do(Change, func() fuse.Status { return d.RawFileSystem.Create(cancel, in, name, out) }, func() {
		parent := d.nodes[in.NodeId]
		if child, ok := d.record.names[parent][name]; ok {
			d.nodes[out.NodeId] = child
			if in.Flags&syscall.O_TRUNC != 0 {
				d.record.truncate(child, 0)
			}
			return
		}
		d.nodes[out.NodeId] = d.record.create(parent, name, in.Mode&0o7777&^in.Umask, false)
	})
}

// Mkdir implements fuse.RawFileSystem.
func (d *Disk) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return d.do(Change, func() fuse.Status { return d.RawFileSystem.Mkdir(cancel, in, name, out) }, func() {
		d.nodes[out.NodeId] = d.record.create(d.nodes[in.NodeId], name, in.Mode&0o7777&^in.Umask, true)
	})
}

// Unlink implements fuse.RawFileSystem.
func (d *Disk) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return d.do(Change, func() fuse.Status { return d.RawFileSystem.Unlink(cancel, h, name) }, func() {
		d.record.remove(d.nodes[h.NodeId], name)
	})
}

// Rmdir implements fuse.RawFileSystem.
func (d *Disk) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return d.do(Change, func() fuse.Status { return d.RawFileSystem.Rmdir(cancel, h, name) }, func() {
		d.record.remove(d.nodes[h.NodeId], name)
	})
}

// Rename implements fuse.RawFileSystem. Flags of renameat2 are not modelled.
func (d *Disk) Rename(cancel <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	if in.Flags != 0 {
		return fuse.EINVAL
	}
	return d.do(Change, func() fuse.Status { return d.RawFileSystem.Rename(cancel, in, from, to) }, func() {
		d.record.rename(d.nodes[in.NodeId], from, d.nodes[in.Newdir], to)
	})
}

// SetAttr implements fuse.RawFileSystem.
func (d *Disk) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	return d.do(Change, func() fuse.Status { return d.RawFileSystem.SetAttr(cancel, in, out) }, func() {
		if mode, ok := in.GetMode(); ok {
			d.record.chmod(d.nodes[in.NodeId], mode)
		}
		if size, ok := in.GetSize(); ok {
			d.record.truncate(d.nodes[in.NodeId], int64(size))
		}
	})
}

// Open implements fuse.RawFileSystem.
func (d *Disk) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if in.Flags&syscall.O_TRUNC == 0 {
		return d.RawFileSystem.Open(cancel, in, out)
	}
	return d.do(Change, func() fuse.Status { return d.RawFileSystem.Open(cancel, in, out) }, func() {
		d.record.truncate(d.nodes[in.NodeId], 0)
	})
}

// Write implements fuse.RawFileSystem.
func (d *Disk) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (n uint32, s fuse.Status) {
	s = d.do(Write, func() (s fuse.Status) {
		n, s = d.RawFileSystem.Write(cancel, in, data)
		return s
	}, func() { d.record.write(d.nodes[in.NodeId], int64(in.Offset), bytes.Clone(data[:n])) })
	return n, s
}

// Writev implements fuse.RawFileSystem.
func (d *Disk) Writev(cancel <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	return d.Write(cancel, in, bytes.Join(data, nil))
}

// Fallocate implements fuse.RawFileSystem: zeros that make the file longer.
func (d *Disk) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if in.Mode != 0 {
		return fuse.Status(syscall.EOPNOTSUPP)
	}
	return d.do(Write, func() fuse.Status { return d.RawFileSystem.Fallocate(cancel, in) }, func() {
		d.record.write(d.nodes[in.NodeId], int64(in.Offset+in.Length), nil)
	})
}

// Fsync implements fuse.RawFileSystem.
func (d *Disk) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	// What lies below may be as fast as it likes: durable is what the record says.
	return d.do(Sync, func() fuse.Status { return fuse.OK }, func() { d.record.sync(d.nodes[in.NodeId]) })
}

// FsyncDir implements fuse.RawFileSystem.
func (d *Disk) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return d.Fsync(cancel, in)
}

// What is not modelled must not happen unseen.

// Mknod implements fuse.RawFileSystem.
func (d *Disk) Mknod(<-chan struct{}, *fuse.MknodIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.Status(syscall.EOPNOTSUPP)
}

// Link implements fuse.RawFileSystem.
func (d *Disk) Link(<-chan struct{}, *fuse.LinkIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.Status(syscall.EOPNOTSUPP)
}

// Symlink implements fuse.RawFileSystem.
func (d *Disk) Symlink(<-chan struct{}, *fuse.InHeader, string, string, *fuse.EntryOut) fuse.Status {
	return fuse.Status(syscall.EOPNOTSUPP)
}

// Tmpfile implements fuse.RawFileSystem.
func (d *Disk) Tmpfile(<-chan struct{}, *fuse.CreateIn, *fuse.CreateOut) fuse.Status {
	return fuse.Status(syscall.EOPNOTSUPP)
}

// CopyFileRange implements fuse.RawFileSystem: who calls it writes instead.
func (d *Disk) CopyFileRange(<-chan struct{}, *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	return 0, fuse.ENOSYS
}

// Layout writes what is left of a disk that lost power after the given number of
// operations into a directory that must not exist.
func (d *Disk) Layout(after int, s Survival, dir string) error {
	d.mu.Lock()
	r := d.record.operations[:after:after]
	d.mu.Unlock()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	return layout(r, s, dir)
}

// Full is a disk without room: names can still be removed.
func Full(o Operation) syscall.Errno {
	if o == Write {
		return syscall.ENOSPC
	}
	return 0
}

// ReadOnly is a disk that was mounted anew after an error.
func ReadOnly(Operation) syscall.Errno { return syscall.EROFS }

// Broken is a disk that takes writes and cannot keep them.
func Broken(o Operation) syscall.Errno {
	if o == Sync {
		return syscall.EIO
	}
	return 0
}
