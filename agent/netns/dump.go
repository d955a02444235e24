package netns

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// Dump lists by netlink, again when a change came between (NLM_F_DUMP_INTR,
// include/uapi/linux/netlink.h): such an answer may lack entries, or have some
// twice.
func Dump[T any](list func() ([]T, error)) (all []T, err error) {
	for range 10 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return nil, err
}
