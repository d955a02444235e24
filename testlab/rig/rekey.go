package rig

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/strongswan/govici/vici"
	"golang.org/x/sync/errgroup"

	"github.com/circuitseal/circuitseal/testlab/netns"
)

// Rekey has the charons of several appliances replace the keys of all their SAs at
// the same moment, so many times, each within a limit. Every eighth time the IKE SAs are meant, else the
// ESP SAs. It waits each time until there is one SA of each again.
func (r *Rig) Rekey(ctx context.Context, times int, limit time.Duration, appliances ...netns.Host) error {
	const ikeEvery = 8
	sessions := make([]*vici.Session, 0, len(appliances))
	defer func() {
		for _, s := range sessions {
			_ = s.Close()
		}
	}()
	for _, h := range appliances {
		s, err := vici.NewSession(vici.WithAddr("unix", filepath.Join("/run/circuitseal", r.Lab.Instance(h), "charon.vici")))
		if err != nil {
			return fmt.Errorf("ask charon on %s: %w", h, err)
		}
		sessions = append(sessions, s)
	}
	for i := range times {
		before, err := settled(ctx, sessions, limit)
		if err != nil {
			return fmt.Errorf("before rekeying %d: %w", i+1, err)
		}
		kind := "child-id"
		if i%ikeEvery == ikeEvery-1 {
			kind = "ike-id"
		}
		g, asking := errgroup.WithContext(ctx)
		for j, s := range sessions {
			g.Go(func() error {
				for _, sa := range before[j] {
					id := sa.child
					if kind == "ike-id" {
						id = sa.ike
					}
					in := vici.NewMessage()
					if err := in.Set(kind, id); err != nil {
						return err
					}
					// The other end may have been faster.
					out, err := s.Call(asking, "rekey", in)
					if err == nil {
						err = out.Err()
					}
					if err != nil && !strings.Contains(err.Error(), "no matching") {
						return fmt.Errorf("rekey on %s: %w", appliances[j], err)
					}
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		err = until(ctx, limit, "all SAs are replaced", func() error {
			now, err := look(ctx, sessions)
			if err != nil {
				return err
			}
			for j := range now {
				for _, sa := range now[j] {
					if slices.ContainsFunc(before[j], func(was pair) bool {
						return kind == "child-id" && sa.child == was.child || kind == "ike-id" && sa.ike == was.ike
					}) {
						return fmt.Errorf("SA %+v on %s is as it was", sa, appliances[j])
					}
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("rekeying %d of %d: %w", i+1, times, err)
		}
	}
	return nil
}

// pair is an IKE SA and its only ESP SA, by charon's numbers, and the SPIs of that.
type pair struct{ ike, child, in, out string }

// settled lists the SAs of each session once every IKE SA has one ESP SA, nothing is
// under way, and the ends have the same ones. While one of them still waits for an answer
// the other has an SA by which nothing goes yet; to ask for new keys of that is to have
// it removed.
func settled(ctx context.Context, sessions []*vici.Session, limit time.Duration) (all [][]pair, err error) {
	err = until(ctx, limit, "SAs have settled", func() (err error) {
		all, err = look(ctx, sessions)
		if err == nil && len(sessions) > 1 {
			err = mirrored(slices.Concat(all...))
		}
		return err
	})
	return all, err
}

// mirrored reports an ESP SA that only one end has.
func mirrored(all []pair) error {
	for _, a := range all {
		if !slices.ContainsFunc(all, func(b pair) bool { return a.in == b.out && a.out == b.in }) {
			return fmt.Errorf("only one end has the ESP SA with the SPIs %s and %s", a.in, a.out)
		}
	}
	return nil
}

func look(ctx context.Context, sessions []*vici.Session) (all [][]pair, err error) {
	for _, s := range sessions {
		pairs, err := list(ctx, s)
		if err != nil {
			return nil, err
		}
		all = append(all, pairs)
	}
	return all, nil
}

// list asks for all SAs. A stream must be read to its end: what is left of it would
// be taken for the answer to the next question.
func list(ctx context.Context, s *vici.Session) ([]pair, error) {
	var out []pair
	var errs []error
	for m, err := range s.CallStreaming(ctx, "list-sas", "list-sa", nil) {
		if err != nil {
			return nil, err
		}
		for _, name := range m.Keys() {
			sa, ok := m.Get(name).(*vici.Message)
			if !ok {
				continue
			}
			state := text(sa, "state")
			if redundant(sa, state) {
				continue
			}
			if state != "ESTABLISHED" {
				errs = append(errs, fmt.Errorf("IKE SA %s is %s", name, state))
				continue
			}
			found, err := installed(sa)
			if err != nil {
				errs = append(errs, fmt.Errorf("IKE SA %s: %w", name, err))
			}
			found.ike = text(sa, "uniqueid")
			out = append(out, found)
		}
	}
	if len(out) == 0 {
		errs = append(errs, errors.New("there are no SAs"))
	}
	return out, errors.Join(errs...)
}

// redundant is an IKE SA that a collision has left over: charon waits half a minute for the
// far end to end it, or asks for the end again and again when the answer came before it had
// put the SA down (process_i in src/libcharon/sa/ikev2/tasks/ike_rekey.c sends first).
func redundant(sa *vici.Message, state string) bool {
	children, _ := sa.Get("child-sas").(*vici.Message)
	return (state == "DELETING" || state == "REKEYED") && (children == nil || len(children.Keys()) == 0)
}

// installed is the one ESP SA of an IKE SA. What was replaced is still there for some
// seconds, to take what is on its way.
func installed(sa *vici.Message) (found pair, err error) {
	children, _ := sa.Get("child-sas").(*vici.Message)
	if children == nil {
		return found, errors.New("it has no ESP SA")
	}
	for _, k := range children.Keys() {
		child, _ := children.Get(k).(*vici.Message)
		switch state := text(child, "state"); state {
		case "INSTALLED":
			if found.child != "" {
				return found, errors.New("it has two ESP SAs")
			}
			found = pair{child: text(child, "uniqueid"), in: text(child, "spi-in"), out: text(child, "spi-out")}
		case "REKEYED", "DELETED":
		default:
			return found, fmt.Errorf("an ESP SA is %s", state)
		}
	}
	if found.child == "" {
		return found, errors.New("it has no ESP SA")
	}
	return found, nil
}

func text(m *vici.Message, key string) string {
	s, _ := m.Get(key).(string)
	return s
}
