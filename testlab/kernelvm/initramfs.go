package kernelvm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cavaliergopher/cpio"
)

// wantModules are what the guest needs before it has the host's files; kernels
// that have one built in have none to load. The rest is loaded by name, by the
// kernel's own modprobe.
var wantModules = []string{"virtio_pci", "9pnet_virtio", "9p", "overlay"}

// initramfs writes an archive with the guest's init and the modules that it
// needs to reach the host's files.
func initramfs(to, init string, k Kernel) error {
	modules, err := loadOrder(k, wantModules)
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	w := cpio.NewWriter(&archive)
	errs := []error{addFile(w, "init", init, 0o755)}
	var list strings.Builder
	for _, m := range modules {
		name := path.Base(m)
		fmt.Fprintln(&list, name)
		errs = append(errs, addFile(w, name, filepath.Join(k.Modules, k.Release, m), 0o644))
	}
	errs = append(errs, add(w, ModuleList, []byte(list.String()), 0o644), w.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("build the initramfs: %w", err)
	}
	if err := os.WriteFile(to, archive.Bytes(), 0o644); err != nil {
		return fmt.Errorf("build the initramfs: %w", err)
	}
	return nil
}

func addFile(w *cpio.Writer, name, from string, mode cpio.FileMode) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return add(w, name, b, mode)
}

func add(w *cpio.Writer, name string, content []byte, mode cpio.FileMode) error {
	if err := w.WriteHeader(&cpio.Header{Name: name, Mode: cpio.TypeReg | mode, Size: int64(len(content))}); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

// loadOrder reads depmod's index: the wanted modules' files with what they
// depend on before them.
func loadOrder(k Kernel, wanted []string) ([]string, error) {
	dir := filepath.Join(k.Modules, k.Release)
	index, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, fmt.Errorf("read the index of modules: %w", err)
	}
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("read the list of built-in modules: %w", err)
	}
	return orderModules(string(index), string(builtin), wanted)
}

// orderModules is loadOrder on the text of modules.dep, "FILE: FILE...", where
// what comes later on a line is to be loaded first, and modules.builtin.
func orderModules(index, builtin string, wanted []string) ([]string, error) {
	name := func(file string) string {
		base, _, _ := strings.Cut(path.Base(file), ".ko")
		return strings.ReplaceAll(base, "-", "_")
	}
	files := map[string][]string{}
	for line := range strings.Lines(index) {
		file, needs, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		all := append([]string{file}, strings.Fields(needs)...)
		slices.Reverse(all)
		files[name(file)] = all
	}
	for line := range strings.Lines(builtin) {
		n := name(strings.TrimSpace(line))
		if _, ok := files[n]; !ok {
			files[n] = nil
		}
	}
	var order []string
	for _, w := range wanted {
		all, ok := files[w]
		if !ok {
			return nil, fmt.Errorf("the kernel has no module %s", w)
		}
		for _, f := range all {
			if !slices.Contains(order, f) {
				order = append(order, f)
			}
		}
	}
	return order, nil
}
