package netns

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
)

// hostName keeps names of namespaces short and plain.
var hostName = regexp.MustCompile(`^[a-z][a-z0-9]{0,11}$`)

// AddHost adds a machine that forwards nothing and has no wire yet, and gives it
// an agent instance if it is to be an appliance.
func (l *Lab) AddHost(ctx context.Context, h Host, appliance bool) error {
	if !hostName.MatchString(string(h)) {
		return fmt.Errorf("add host %q: want up to 12 small letters and digits, a letter first", string(h))
	}
	if err := l.admit(h, appliance); err != nil {
		return err
	}
	return errors.Join(
		batch(ctx, "", "netns add "+l.Namespace(h)),
		setSysctls(l.Namespace(h), setup{}.sysctls(Config{})...),
		batch(ctx, l.Namespace(h), "link set lo up"),
	)
}

// admit puts a machine into the record before it is made.
func (l *Lab) admit(h Host, appliance bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if slices.Contains(l.record.Namespaces, l.Namespace(h)) {
		return fmt.Errorf("add host %s: there is one already", h)
	}
	l.record.Namespaces = append(l.record.Namespaces, l.Namespace(h))
	if appliance {
		// Letters that the first two do not have.
		letter := string("abcdefghijklm"[min(len(l.instances)-2, 12)])
		if slices.Contains(l.record.Instances, letter+l.id) {
			return fmt.Errorf("add host %s: a lab has at most 15 appliances", h)
		}
		l.instances[h] = letter + l.id
		l.record.Instances = append(l.record.Instances, letter+l.id)
	}
	return l.record.save(l.id)
}

// Wire connects two machines by a pair of new interfaces, which stay down: one
// that comes up sends frames by itself.
func (l *Lab) Wire(ctx context.Context, a Host, nameA string, b Host, nameB string) error {
	return l.Wires(ctx, []Wire{{a, nameA, b, nameB}})
}

// Wire is a pair of interfaces, one on each of two machines.
type Wire struct {
	A     Host
	NameA string
	B     Host
	NameB string
}

// Wires is Wire for many at once, which takes one process.
func (l *Lab) Wires(ctx context.Context, wires []Wire) error {
	lines := make([]string, 0, len(wires))
	for _, w := range wires {
		lines = append(lines, fmt.Sprintf("link add %s netns %s type veth peer name %s netns %s", w.NameA, l.Namespace(w.A), w.NameB, l.Namespace(w.B)))
	}
	return batch(ctx, "", lines...)
}
