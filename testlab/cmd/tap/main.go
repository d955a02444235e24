// Tap watches the links of a circuit from the provider's side and counts what
// crosses in clear.
//
// It reads its configuration (see testlab/tap) from a file, says
// {"ready":true} on standard output, and then answers each line on standard
// input with a line of JSON: what it has seen so far. At the end of standard
// input, or at SIGTERM, it reports once more and exits: with 0 when nothing
// crossed in clear, with 1 when something did or when frames were lost, with 2
// when it could not look.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/circuitseal/circuitseal/testlab/tap"
)

func main() {
	config := flag.String("config", "", "file with the configuration")
	selfTest := flag.Bool("self-test", false, "judge crafted frames, allowed and in clear, and exit")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code, err := run(ctx, *config, *selfTest, os.Stdin, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "tap:", err)
	}
	os.Exit(code)
}

// Exit codes.
const (
	exitClean   = 0
	exitInClear = 1
	exitBlind   = 2
)

func run(ctx context.Context, config string, selfTest bool, in io.Reader, out io.Writer) (int, error) {
	if err := tap.SelfTest(); err != nil {
		return exitBlind, fmt.Errorf("self-test: %w", err)
	}
	if selfTest {
		_, err := fmt.Fprintln(out, "self-test passed: crafted frames in clear are found, tunnel frames are not")
		return exitClean, err
	}
	f, err := os.Open(config)
	if err != nil {
		return exitBlind, fmt.Errorf("read configuration: %w", err)
	}
	c, err := tap.ReadConfig(f)
	_ = f.Close()
	if err != nil {
		return exitBlind, err
	}
	t, err := tap.Open(c)
	if err != nil {
		return exitBlind, err
	}
	return watch(ctx, t, in, out)
}

// watch answers requests until in or ctx ends.
func watch(ctx context.Context, t *tap.Tap, in io.Reader, out io.Writer) (int, error) {
	running, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { t.Run(running) })
	defer func() {
		stop()
		wg.Wait()
		t.Close()
	}()
	requests := make(chan struct{})
	go func() {
		defer close(requests)
		for s := bufio.NewScanner(in); s.Scan(); {
			requests <- struct{}{}
		}
	}()
	e := json.NewEncoder(out)
	if err := e.Encode(map[string]bool{"ready": true}); err != nil {
		return exitBlind, err
	}
	for {
		more := false
		select {
		case _, more = <-requests:
		case <-ctx.Done():
		}
		s := t.Report(context.WithoutCancel(ctx))
		if err := e.Encode(s); err != nil {
			return exitBlind, err
		}
		if more {
			continue
		}
		if s.InClear > 0 || !s.Valid {
			return exitInClear, nil
		}
		return exitClean, nil
	}
}
