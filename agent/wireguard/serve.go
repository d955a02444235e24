package wireguard

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/circuitseal/circuitseal/agent/instance"
	"github.com/circuitseal/circuitseal/agent/priority"
)

const (
	// MemoryEnv sets the memory limit of a WireGuard process without devices,
	// in MiB.
	MemoryEnv = "CIRCUITSEAL_WIREGUARD_MEMORY_MIB"

	defaultMemory = 256 << 20
	// maxClients bounds the control connections at a time.
	maxClients = 16
	// acceptPause follows a connection that could not be taken.
	acceptPause = time.Second
	// idle is how long a control connection may say nothing.
	idle = 30 * time.Second
)

// ErrRunning means that another process hosts the instance's devices.
var ErrRunning = errors.New("a WireGuard process of this instance runs already")

// Serve is the WireGuard process: it hosts the user-space devices of one
// instance until ctx ends or a client asks it to shut down, and then removes
// them. It must be all that its process does: it moves the whole process to
// the circuit namespace by executing the program again with the same
// arguments, sets the umask and the memory limit, and holds a lock that only
// one process of an instance gets (ErrRunning).
func Serve(ctx context.Context, inst instance.Instance, log *slog.Logger) error {
	unix.Umask(0o077)
	limit, err := memoryLimit(os.Getenv(MemoryEnv))
	if err != nil {
		return err
	}
	if err := enterNamespace(inst); err != nil {
		return err
	}
	if err := os.MkdirAll(inst.RunDir(), 0o700); err != nil {
		return fmt.Errorf("make run directory: %w", err)
	}
	lock, err := lockInstance(inst)
	if err != nil {
		return err
	}
	// What carries packets does not stand back as its agent does.
	if err := priority.Normal(); err != nil {
		log.Warn("scheduling policy stays that of the agent", "error", err)
	}
	defer func() { _ = lock.Close() }()

	// Executed by way of /proc/self/exe the process would be called "exe".
	if err := os.WriteFile("/proc/self/comm", []byte("cs-wireguard"), 0); err != nil {
		return fmt.Errorf("name the process: %w", err)
	}

	h := newHost(inst, limit, log)
	if err := h.sweep(); err != nil {
		return err
	}
	l, err := listenPrivate(inst.WireGuardSocket())
	if err != nil {
		return fmt.Errorf("listen for the agent: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	log.Info("WireGuard process is ready", "pid", os.Getpid(), "memory_limit", limit)

	s := &server{host: h, shutdown: cancel, log: log}
	s.accept(ctx, l)
	return h.close()
}

func memoryLimit(text string) (int64, error) {
	if text == "" {
		return defaultMemory, nil
	}
	mib, err := strconv.ParseInt(text, 10, 32)
	if err != nil || mib < 16 || mib > math.MaxInt32 {
		return 0, fmt.Errorf("%s=%.32q: want a number of MiB, at least 16", MemoryEnv, text)
	}
	return mib << 20, nil
}

// lockInstance holds the lock as long as the file is open. The socket cannot
// serve as one: a stale file and a live process look alike until connected.
func lockInstance(inst instance.Instance) (*os.File, error) {
	path := filepath.Join(inst.RunDir(), "wireguard.lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock instance %s: %w", inst, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrRunning
		}
		return nil, errors.Join(fmt.Errorf("lock instance %s: %w", inst, err), f.Close())
	}
	return f, nil
}

// Hold keeps WireGuard processes of an instance from starting until release.
// The error wraps ErrRunning when one runs.
func Hold(inst instance.Instance) (release func() error, err error) {
	lock, err := lockInstance(inst)
	if err != nil {
		return nil, err
	}
	return lock.Close, nil
}

type server struct {
	host     *host
	shutdown context.CancelFunc
	log      *slog.Logger
}

// accept returns when ctx is done and the last client is gone.
func (s *server) accept(ctx context.Context, l *net.UnixListener) {
	var clients sync.WaitGroup
	slots := make(chan struct{}, maxClients)
	for {
		c, err := l.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				_ = c.Close()
			}
			clients.Wait()
			return
		}
		if err != nil {
			// Of files or memory there may be too few for a moment; ending would
			// end every tunnel.
			s.log.Warn("accept control connection", "error", err)
			pause(ctx, acceptPause)
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			s.log.Warn("refuse control connection", "reason", "too many", "limit", maxClients)
			_ = c.Close()
			continue
		}
		clients.Go(func() {
			defer func() { <-slots }()
			stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Now()) })
			defer stop()
			defer func() { _ = c.Close() }()
			if err := fromRoot(c); err != nil {
				s.log.Warn("refuse control connection", "error", err)
				return
			}
			s.converse(ctx, c)
		})
	}
}

// pause waits, unless ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// converse answers until the client goes, says nothing for idle, or says what
// cannot be understood.
func (s *server) converse(ctx context.Context, c *net.UnixConn) {
	files := &fileReader{conn: c}
	defer files.drop()
	r := bufio.NewReader(files)
	for ctx.Err() == nil {
		if err := c.SetDeadline(time.Now().Add(idle)); err != nil {
			return
		}
		line, err := readLine(r, requestLimit)
		if err != nil {
			return
		}
		q, err := parseRequest(line, s.host.instance)
		var a response
		if err != nil {
			a.Error = err.Error()
		} else {
			a = s.answer(q, files.take())
		}
		b, merr := json.Marshal(a)
		if merr != nil {
			s.log.Error("encode answer", "error", merr)
			return
		}
		if _, werr := c.Write(append(b, '\n')); werr != nil || err != nil {
			return
		}
		if q.Operation == opShutdown {
			s.log.Info("WireGuard process was told to end")
			s.shutdown()
			return
		}
	}
}

// answer owns tun, which may be nil.
func (s *server) answer(q request, tun *os.File) response {
	var err error
	if q.Operation != opAdd && tun != nil {
		_ = tun.Close()
	}
	switch q.Operation {
	case opHello:
		return response{Process: s.process()}
	case opList:
		return response{Devices: s.host.list()}
	case opAdd:
		err = s.host.add(q, tun)
	case opRemove:
		err = s.host.remove(q.Device)
	case opShutdown:
	}
	if err != nil {
		return response{Error: err.Error()}
	}
	return response{}
}

func (s *server) process() *Process {
	s.host.mu.Lock()
	p := &Process{
		Protocol: protocolVersion, Version: "(unknown)", PID: os.Getpid(),
		MemoryLimit: s.host.limit(), Devices: len(s.host.devices),
	}
	s.host.mu.Unlock()
	if info, ok := debug.ReadBuildInfo(); ok {
		p.Version = info.Main.Version
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		s.log.Warn("read own memory use", "error", err)
		return p
	}
	p.ResidentBytes, p.PeakBytes = memoryUse(status)
	return p
}

// memoryUse reads VmRSS and VmHWM, in KiB there, from proc_pid_status(5).
func memoryUse(status []byte) (resident, peak int64) {
	for line := range bytes.Lines(status) {
		f := bytes.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, err := strconv.ParseInt(string(f[1]), 10, 64)
		if err != nil {
			continue
		}
		switch string(f[0]) {
		case "VmRSS:":
			resident = n << 10
		case "VmHWM:":
			peak = n << 10
		}
	}
	return resident, peak
}

// fromRoot asks the kernel who is at the other end (unix(7), SO_PEERCRED).
func fromRoot(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var (
		who  *unix.Ucred
		werr error
	)
	if err := raw.Control(func(fd uintptr) { who, werr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if werr != nil {
		return fmt.Errorf("ask who connects: %w", werr)
	}
	if who.Uid != 0 && int(who.Uid) != os.Geteuid() {
		return fmt.Errorf("user %d is not root", who.Uid)
	}
	return nil
}
