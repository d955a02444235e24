package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/testlab/kernelvm"
)

// mount is a file system and where it goes.
type mount struct {
	source, target, kind string
	flags                uintptr
	data                 string
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return fmt.Errorf("mount %s: %w", m.target, err)
	}
	if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s at %s: %w", m.source, m.target, err)
	}
	return nil
}

func mountKernelFiles() error {
	return errors.Join(
		mount{"proc", "/proc", "proc", 0, ""}.do(),
		mount{"sys", "/sys", "sysfs", 0, ""}.do(),
		mount{"dev", "/dev", "devtmpfs", 0, ""}.do(),
	)
}

// loadModules loads what the initramfs brought, in its order.
func loadModules() error {
	b, err := os.ReadFile("/" + kernelvm.ModuleList)
	if err != nil {
		return fmt.Errorf("read the list of modules: %w", err)
	}
	for name := range strings.FieldsSeq(string(b)) {
		f, err := os.Open("/" + name)
		if err != nil {
			return fmt.Errorf("load module %s: %w", name, err)
		}
		flags := 0
		if !strings.HasSuffix(name, ".ko") {
			flags = unix.MODULE_INIT_COMPRESSED_FILE
		}
		err = unix.FinitModule(int(f.Fd()), "", flags)
		if err := errors.Join(err, f.Close()); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load module %s: %w", name, err)
		}
	}
	return nil
}

// ninep are the options of a 9p mount over virtio.
const ninep = "trans=virtio,version=9p2000.L,msize=524288"

// makeRoot puts memory over the host's files, so that everything can be
// written and nothing reaches the host but what is written into the share.
func makeRoot(share, modules string) error {
	root := "/root"
	steps := []mount{
		{kernelvm.RootTag, "/host", "9p", unix.MS_RDONLY, ninep + ",cache=loose"},
		{"memory", "/memory", "tmpfs", 0, "mode=0755"},
	}
	for _, m := range steps {
		if err := m.do(); err != nil {
			return err
		}
	}
	for _, d := range []string{"/memory/upper", "/memory/work"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return fmt.Errorf("make the root: %w", err)
		}
	}
	steps = []mount{
		{"overlay", root, "overlay", 0, "lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work"},
		{"proc", root + "/proc", "proc", 0, ""},
		{"sys", root + "/sys", "sysfs", 0, ""},
		{"cgroup2", root + "/sys/fs/cgroup", "cgroup2", 0, ""},
		{"bpf", root + "/sys/fs/bpf", "bpf", 0, ""},
		{"dev", root + "/dev", "devtmpfs", 0, ""},
		{"devpts", root + "/dev/pts", "devpts", 0, ""},
		{"run", root + "/run", "tmpfs", 0, "mode=0755"},
		{"shm", root + "/dev/shm", "tmpfs", 0, "mode=1777"},
		{kernelvm.ShareTag, root + share, "9p", 0, ninep},
	}
	for _, m := range steps {
		if err := m.do(); err != nil {
			return err
		}
	}
	if err := linkModules(root, modules); err != nil {
		return err
	}
	if err := makeTUN(root + "/dev/net"); err != nil {
		return err
	}
	// Processes of the kernel's that look for modprobe share this root.
	if err := errors.Join(unix.Chdir(root), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), unix.Chdir("/")); err != nil {
		return fmt.Errorf("enter the root: %w", err)
	}
	return nil
}

// makeTUN makes the node by which the kernel loads its module, as a service
// manager does (kmod static-nodes).
func makeTUN(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make %s/tun: %w", dir, err)
	}
	if err := unix.Mknod(dir+"/tun", unix.S_IFCHR|0o600, int(unix.Mkdev(10, 200))); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make %s/tun: %w", dir, err)
	}
	return nil
}

// linkModules shows the kernel's modules where modprobe looks.
func linkModules(root, modules string) error {
	lib := filepath.Join(root, "usr/lib/modules")
	if err := os.MkdirAll(lib, 0o755); err != nil {
		return fmt.Errorf("show the kernel's modules: %w", err)
	}
	if err := unix.Mount("/host"+modules, lib, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("show the kernel's modules: %w", err)
	}
	return nil
}
