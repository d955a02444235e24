package session

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/circuitseal/circuitseal/controller/model"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

// probed reads a pipe until it is asked whether it is alive.
func probed(p *pipe) []byte {
	for m := range p.out {
		if m.GetProbe() != nil {
			return m.GetProbe()
		}
	}
	return nil
}

// Who gets the place of a session that is there, and after how long.
func TestWhoGetsThePlace(t *testing.T) {
	tests := []struct {
		name string
		// do is what happens once the older one was asked; its nonce is there.
		do func(older, newer *pipe, nonce []byte)
		// took is how long the newer one waits, moved whether it gets the place.
		took  time.Duration
		moved bool
	}{
		{"the older one is dead", func(*pipe, *pipe, []byte) {}, probeTimeout, true},
		{"the older one ends meanwhile", func(older, _ *pipe, _ []byte) { time.Sleep(time.Second); close(older.in) }, time.Second, true},
		{"the older one answers", func(older, _ *pipe, nonce []byte) {
			time.Sleep(time.Second)
			older.in <- &v1.SessionRequest{ProbeAnswer: nonce}
		}, time.Second, false},
		{"the older one answers at the last moment", func(older, _ *pipe, nonce []byte) {
			time.Sleep(probeTimeout - 1)
			older.in <- &v1.SessionRequest{ProbeAnswer: nonce}
		}, probeTimeout - 1, false},
		{"the older one answers with a status", func(older, _ *pipe, nonce []byte) {
			older.in <- &v1.SessionRequest{Status: &v1.NodeStatus{}, ProbeAnswer: nonce}
		}, 0, false},
		{"the older one says something else", func(older, _ *pipe, nonce []byte) {
			older.in <- &v1.SessionRequest{ProbeAnswer: append([]byte{1}, nonce...)}
			older.in <- hello()
		}, probeTimeout, true},
		{"the newer one knows what was asked", func(_, newer *pipe, nonce []byte) {
			newer.in <- &v1.SessionRequest{ProbeAnswer: nonce}
		}, 0, true},
		{"both know, the newer one first", func(older, newer *pipe, nonce []byte) {
			newer.in <- &v1.SessionRequest{ProbeAnswer: nonce}
		}, 0, true},
		{"the newer one guesses", func(older, newer *pipe, nonce []byte) {
			newer.in <- &v1.SessionRequest{ProbeAnswer: make([]byte, nonceSize)}
			newer.in <- hello()
			older.in <- &v1.SessionRequest{ProbeAnswer: nonce}
		}, 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := run(t)
				h.store.set(samples(t, 1, "1400"))
				older, olderDone := h.serve(t, "a")
				older.in <- hello()
				<-older.out
				began := time.Now()
				newer, newerDone := h.serve(t, "a")
				newer.in <- hello()
				nonce := probed(older)
				if len(nonce) != nonceSize {
					t.Errorf("the older one was asked %x", nonce)
				}
				tt.do(older, newer, nonce)
				var ended error
				select {
				case m := <-newer.out:
					if m.GetState() == nil {
						t.Errorf("the newer one got %v", m)
					}
					if !tt.moved {
						t.Error("the newer one got the place")
					}
				case ended = <-newerDone:
					if tt.moved {
						t.Errorf("the newer one was refused: %v", ended)
					} else if connect.CodeOf(ended) != connect.CodeAlreadyExists || strings.Contains(ended.Error(), "192.0.2.1") {
						t.Errorf("the newer one was told %v", ended)
					}
				}
				if took := time.Since(began); took != tt.took {
					t.Errorf("it took %s, want %s", took, tt.took)
				}
				p := h.hub.Presence("nva-1")
				if !p.Connected || p.Address != "192.0.2.1" || (p.Duplicate != nil) == tt.moved {
					t.Errorf("presence: %+v", p)
				}
				synctest.Wait()
				if tt.moved {
					if err := <-olderDone; err != nil && connect.CodeOf(err) != connect.CodeAborted {
						t.Errorf("the older one was told %v", err)
					}
				}
				h.stop()
				if tt.moved {
					ended = <-newerDone
				} else {
					ended = <-olderDone
				}
				if connect.CodeOf(ended) != connect.CodeUnavailable {
					t.Errorf("who had the place was told %v", ended)
				}
				if err := <-h.ran; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A node that is revoked while another one asks for its place gets neither.
func TestRevokedWhileProbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := run(t)
		h.store.set(samples(t, 1, "1400"))
		older, olderDone := h.serve(t, "a")
		older.in <- hello()
		<-older.out
		newer, newerDone := h.serve(t, "a")
		newer.in <- hello()
		probed(older)
		s := samples(t, 2, "1400")
		s.Revocations = map[model.Fingerprint]model.Revocation{"a": {Node: "nva-1", Reason: "stolen"}}
		h.store.set(s)
		for _, done := range []chan error{olderDone, newerDone} {
			if err := <-done; connect.CodeOf(err) != connect.CodePermissionDenied || !strings.Contains(err.Error(), "stolen") {
				t.Errorf("one of them was told %v", err)
			}
		}
		h.stop()
		if err := <-h.ran; err != nil {
			t.Error(err)
		}
	})
}

// A peer that reads nothing is out all the same, and soon: what it has said since
// is nobody's.
func TestRevokedPeerThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := run(t)
		h.store.set(samples(t, 1, "1400"))
		p, done := h.serve(t, "a")
		p.in <- hello()
		synctest.Wait()
		s := samples(t, 2, "1400")
		s.Revocations = map[model.Fingerprint]model.Revocation{"a": {Node: "nva-1", Reason: "stolen"}}
		began := time.Now()
		h.store.set(s)
		synctest.Wait()
		select {
		case p.in <- &v1.SessionRequest{Status: &v1.NodeStatus{Version: "later"}}:
		case err := <-done:
			done <- err
		}
		if err := <-done; connect.CodeOf(err) != connect.CodePermissionDenied {
			t.Errorf("it was told %v", err)
		}
		if took := time.Since(began); took > cutTimeout {
			t.Errorf("it was out after %s", took)
		}
		if _, _, status := h.hub.Report("nva-1"); status == nil || status.Version == "later" {
			t.Errorf("its last status is %+v", status)
		}
		h.stop()
		if err := <-h.ran; err != nil {
			t.Error(err)
		}
	})
}

func TestQuarantine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := run(t)
		s := samples(t, 1, "1400")
		k := model.Key{Kind: model.KindNode, Name: "nva-1"}
		d := s.Documents[k]
		spec := *d.Spec.(*model.NodeSpec)
		spec.OnDuplicateIdentity = model.DuplicateQuarantine
		d.Spec = &spec
		s.Documents[k] = d
		h.store.set(s)
		older, olderDone := h.serve(t, "a")
		older.in <- hello()
		<-older.out
		newer, newerDone := h.serve(t, "a")
		newer.in <- hello()
		older.in <- &v1.SessionRequest{ProbeAnswer: probed(older)}
		if r := <-h.store.revoked; r.By != "controller" || r.Node != "nva-1" {
			t.Errorf("revoked as %+v", r)
		}
		if err := <-newerDone; connect.CodeOf(err) != connect.CodePermissionDenied {
			t.Errorf("the newer one was told %v", err)
		}
		h.stop()
		if err := <-olderDone; connect.CodeOf(err) != connect.CodeUnavailable {
			t.Errorf("the older one was told %v", err)
		}
		if err := <-h.ran; err != nil {
			t.Error(err)
		}
	})
}

// FuzzSession feeds what a node may send to a session: whatever it is, the
// session ends or goes on, and nothing of it reaches another node's.
func FuzzSession(f *testing.F) {
	seed := func(m *v1.SessionRequest) {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, b)
	}
	seed(hello())
	seed(&v1.SessionRequest{ProbeAnswer: make([]byte, nonceSize)})
	seed(&v1.SessionRequest{Status: &v1.NodeStatus{Tunnels: []*v1.TunnelStatus{{Id: "contoso/hq-weu/er-ams/primary", Phase: 1, PublicKey: make([]byte, 32)}}}, ProbeAnswer: []byte{1}})
	f.Fuzz(func(t *testing.T, first, second []byte) {
		var a, b v1.SessionRequest
		if proto.Unmarshal(first, &a) != nil || proto.Unmarshal(second, &b) != nil {
			return
		}
		synctest.Test(t, func(t *testing.T) {
			h := run(t)
			h.store.set(samples(t, 1, "1400"))
			p, done := h.serve(t, "a")
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				for {
					select {
					case <-p.out:
					case <-ctx.Done():
						return
					}
				}
			}()
			over := false
			for _, m := range []*v1.SessionRequest{&a, &b} {
				select {
				case p.in <- m:
				case err := <-done:
					over = true
					if err == nil {
						t.Error("the session ended without a cause")
					}
				}
				if over {
					break
				}
			}
			synctest.Wait()
			if prem := h.hub.Presence("prem-1"); prem.Connected || prem.Address != "" || !prem.Seen.IsZero() {
				t.Errorf("another node has %+v", prem)
			}
			h.stop()
			if !over {
				if err := <-done; err == nil {
					t.Error("a session outlived its controller")
				}
			}
			if err := <-h.ran; err != nil {
				t.Error(err)
			}
			cancel()
		})
	})
}
