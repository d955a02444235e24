package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// DatagramOptions are numbered datagrams to send to a server of Serve.
type DatagramOptions struct {
	To     string
	Canary Canary
	// Flows differ in their source port.
	Flows int
	// Interval is between two datagrams of one flow.
	Interval time.Duration
	// Duration ends the sending; 0 for until ctx ends.
	Duration time.Duration
	// Size of each payload; at least 32 bytes and the canary.
	Size int
	// Linger is how long to wait for the last answers, and for more while any come: a
	// server that waits to run has some that it has not answered yet.
	Linger time.Duration
}

// DatagramReport counts datagrams that went there and came back.
type DatagramReport struct {
	Sent     uint64 `json:"sent"`
	Received uint64 `json:"received"`
	Lost     uint64 `json:"lost"`
	// Reordered came after a later one of their flow; duplicates came twice.
	Reordered  uint64 `json:"reordered"`
	Duplicates uint64 `json:"duplicates"`
	// Foreign are answers without this lab's canary.
	Foreign uint64 `json:"foreign"`
	// Unsent could not be handed to the kernel, such as for want of a route;
	// they count as sent and lost.
	Unsent uint64 `json:"unsent"`
	// OutageSeconds is the longest time without an answer in any flow, from the
	// sending of the first to the end.
	OutageSeconds float64 `json:"outageSeconds"`
	// LastAnswer is when the last answer came; zero if none did.
	LastAnswer time.Time `json:"lastAnswer,omitzero"`
	// Flows that got at least one answer.
	FlowsAnswered int     `json:"flowsAnswered"`
	Seconds       float64 `json:"seconds"`
}

// LingerLimit bounds the wait for answers that keep coming.
const LingerLimit = 2 * time.Minute

// header is flow, sequence number and a fixed word.
const (
	headerSize = 20
	headerWord = 0x6c616274 // "labt"
)

// Datagrams sends until its duration or ctx ends, and counts what comes back.
func Datagrams(ctx context.Context, o DatagramOptions) (DatagramReport, error) {
	if o.Size < headerSize+len(o.Canary) {
		o.Size = headerSize + len(o.Canary)
	}
	if o.Duration > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, o.Duration)
		defer stop()
	}
	flows := make([]*flow, max(1, o.Flows))
	for i := range flows {
		c, err := net.Dial("udp", o.To)
		if err != nil {
			return DatagramReport{}, fmt.Errorf("open flow %d: %w", i, err)
		}
		defer func() { _ = c.Close() }()
		if u, ok := c.(*net.UDPConn); ok {
			roomForBursts(u)
		}
		flows[i] = &flow{id: uint32(i), conn: c, canary: o.Canary}
	}
	start := time.Now()
	var wg, receivers sync.WaitGroup
	for _, f := range flows {
		receivers.Go(f.receive)
		wg.Go(func() { f.send(ctx, o) })
	}
	wg.Wait()
	end := time.Now()
	for until := end.Add(o.Linger); time.Now().Before(until) && time.Since(end) < LingerLimit; {
		time.Sleep(time.Until(until))
		for _, f := range flows {
			if at := f.lastAnswer().Add(o.Linger); at.After(until) {
				until = at
			}
		}
	}
	for _, f := range flows {
		_ = f.conn.Close()
	}
	receivers.Wait()
	report := DatagramReport{Seconds: end.Sub(start).Seconds()}
	for _, f := range flows {
		f.add(&report, end)
	}
	return report, nil
}

// flow is one source port. Its sender and its receiver share what mu guards.
type flow struct {
	id     uint32
	conn   net.Conn
	canary Canary

	mu     sync.Mutex
	sent   uint64
	unsent uint64
	// got has a bit for every sequence number.
	got        []uint64
	received   uint64
	reordered  uint64
	duplicates uint64
	foreign    uint64
	highest    uint64
	last       time.Time
	outage     time.Duration
}

func (f *flow) send(ctx context.Context, o DatagramOptions) {
	b := f.canary.Fill(make([]byte, o.Size))
	binary.BigEndian.PutUint32(b, headerWord)
	binary.BigEndian.PutUint32(b[4:], f.id)
	// The canary must stand whole behind the header.
	f.canary.Fill(b[headerSize:])
	tick := time.NewTicker(o.Interval)
	defer tick.Stop()
	for seq := uint64(1); ctx.Err() == nil; seq++ {
		binary.BigEndian.PutUint64(b[8:], seq)
		f.mu.Lock()
		f.sent = seq
		if f.last.IsZero() {
			f.last = time.Now()
		}
		f.mu.Unlock()
		if _, err := f.conn.Write(b); err != nil {
			f.mu.Lock()
			f.unsent++
			f.mu.Unlock()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

func (f *flow) receive() {
	b := make([]byte, 64<<10)
	for {
		n, err := f.conn.Read(b)
		if err != nil {
			// An ICMP error shows up here; only a closed socket ends it.
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		f.take(b[:n], time.Now())
	}
}

func (f *flow) lastAnswer() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.last
}

// take counts one answer.
func (f *flow) take(b []byte, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(b) < headerSize || binary.BigEndian.Uint32(b) != headerWord || binary.BigEndian.Uint32(b[4:]) != f.id || !f.canary.in(b) {
		f.foreign++
		return
	}
	seq := binary.BigEndian.Uint64(b[8:])
	if seq == 0 || seq > f.sent {
		f.foreign++
		return
	}
	word, bit := seq/64, uint64(1)<<(seq%64)
	for uint64(len(f.got)) <= word {
		f.got = append(f.got, 0)
	}
	if f.got[word]&bit != 0 {
		f.duplicates++
		return
	}
	f.got[word] |= bit
	f.received++
	if seq < f.highest {
		f.reordered++
	}
	f.highest = max(f.highest, seq)
	f.outage = max(f.outage, now.Sub(f.last))
	f.last = now
}

// add adds the flow to a report; sending ended at end.
func (f *flow) add(r *DatagramReport, end time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r.Sent += f.sent
	r.Unsent += f.unsent
	r.Received += f.received
	r.Lost += f.sent - f.received
	r.Reordered += f.reordered
	r.Duplicates += f.duplicates
	r.Foreign += f.foreign
	r.OutageSeconds = max(r.OutageSeconds, f.outage.Seconds(), end.Sub(f.last).Seconds())
	if f.received > 0 {
		r.FlowsAnswered++
		if f.last.After(r.LastAnswer) {
			r.LastAnswer = f.last
		}
	}
}
