package tenancy

import (
	"bytes"
	"context"
	"sync"
	"time"

	"github.com/circuitseal/circuitseal/testlab/netns"
)

// monitor has the kernel tell of changes in one namespace.
type monitor struct {
	process *netns.Process
	mu      sync.Mutex
	out     bytes.Buffer
}

func (m *monitor) Write(b []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.out.Write(b)
}

// lines are the changes that were told of, one a line.
func (m *monitor) lines() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Count(m.out.Bytes(), []byte("\n"))
}

// Touched makes the change of AddPrefix and counts what each node's drivers, and
// its kernel, say was written for it.
func (t *Tenants) Touched(ctx context.Context, c Customer) (map[string]Writes, error) {
	nodes := map[string]netns.Host{"premises": Premises, "azure": Azure}
	monitors := map[string][]*monitor{}
	for name, h := range nodes {
		i := t.Rig.Lab.Instance(h)
		for _, namespace := range []string{t.Rig.Lab.Namespace(h), netns.CircuitNamespace(i), netns.SlowNamespace(i)} {
			m := &monitor{}
			var err error
			m.process, err = t.Rig.Lab.Start(netns.Ctl, netns.Spec{Name: "monitor-" + namespace, Path: "ip",
				Args: []string{"-o", "-n", namespace, "monitor", "link", "address", "route", "rule"}, Stdout: m})
			if err != nil {
				return nil, err
			}
			monitors[name] = append(monitors[name], m)
		}
	}
	time.Sleep(time.Second)
	start := time.Now()
	if _, err := t.AddPrefix(ctx, c); err != nil {
		return nil, err
	}
	// The whole pass that follows, and one more, must find nothing to write either.
	time.Sleep(3 * time.Second)
	all := map[string]Writes{}
	for name, h := range nodes {
		w, err := t.writes(h, c, start)
		if err != nil {
			return nil, err
		}
		for _, m := range monitors[name] {
			w.Kernel += m.lines()
			_ = m.process.Stop(5 * time.Second)
		}
		all[name] = w
	}
	return all, nil
}
