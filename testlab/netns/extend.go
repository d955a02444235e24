package netns

import (
	"context"
	"errors"
	"fmt"
	"regexp"
)

// hostName keeps names of namespaces short and plain.
var hostName = regexp.MustCompile(`^[a-z][a-z0-9]{0,11}$`)

// AddHost adds a machine that forwards nothing and has no wire yet.
func (l *Lab) AddHost(ctx context.Context, h Host) error {
	if !hostName.MatchString(string(h)) {
		return fmt.Errorf("add host %q: want up to 12 small letters and digits, a letter first", string(h))
	}
	l.mu.Lock()
	for _, ns := range l.record.Namespaces {
		if ns == l.Namespace(h) {
			l.mu.Unlock()
			return fmt.Errorf("add host %s: there is one already", h)
		}
	}
	l.record.Namespaces = append(l.record.Namespaces, l.Namespace(h))
	err := l.record.save(l.id)
	l.mu.Unlock()
	if err != nil {
		return err
	}
	return errors.Join(
		batch(ctx, "", "netns add "+l.Namespace(h)),
		setSysctls(l.Namespace(h), setup{}.sysctls(false)...),
		batch(ctx, l.Namespace(h), "link set lo up"),
	)
}

// Wire connects two machines by a pair of new interfaces, both up.
func (l *Lab) Wire(ctx context.Context, a Host, nameA string, b Host, nameB string) error {
	return errors.Join(
		batch(ctx, "", fmt.Sprintf("link add %s netns %s type veth peer name %s netns %s", nameA, l.Namespace(a), nameB, l.Namespace(b))),
		batch(ctx, l.Namespace(a), fmt.Sprintf("link set %s up", nameA)),
		batch(ctx, l.Namespace(b), fmt.Sprintf("link set %s up", nameB)),
	)
}
