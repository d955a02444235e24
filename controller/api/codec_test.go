package api

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

// Elements that take two bytes on the wire take two hundred in memory: they are
// counted before they are made.
func TestElementsAreBounded(t *testing.T) {
	status := func(n int) *v1.SessionRequest {
		s := &v1.NodeStatus{}
		for range n {
			s.Tunnels = append(s.Tunnels, &v1.TunnelStatus{Id: `a "tunnel", [{`})
		}
		return &v1.SessionRequest{Status: s}
	}
	for _, c := range []codec{{"proto"}, {"json"}} {
		t.Run(c.name, func(t *testing.T) {
			for _, n := range []int{0, 1, maxElements} {
				b, err := c.Marshal(status(n))
				if err != nil {
					t.Fatal(err)
				}
				got := &v1.SessionRequest{}
				if err := c.Unmarshal(b, got); err != nil || len(got.GetStatus().GetTunnels()) != n {
					t.Errorf("%d elements: %d came, error %v", n, len(got.GetStatus().GetTunnels()), err)
				}
			}
			b, err := c.Marshal(status(maxElements + 1))
			if err != nil {
				t.Fatal(err)
			}
			got := &v1.SessionRequest{}
			if err := c.Unmarshal(b, got); err == nil || !strings.Contains(err.Error(), "elements") || got.GetStatus() != nil {
				t.Errorf("%d elements: error %v, and %d were made", maxElements+1, err, len(got.GetStatus().GetTunnels()))
			}
		})
	}
}

// The reviewer's message: 1 MiB of empty tunnels, in one status or in several
// that are merged.
func TestElementBombs(t *testing.T) {
	bomb := bytes.Repeat([]byte{0x3a, 0}, 1<<19)
	many := bytes.Repeat([]byte{0x0a, 2, 0x3a, 0}, 1<<18)
	whole := append([]byte{0x0a, 0x80, 0x80, 0x40}, bomb...)
	for name, b := range map[string][]byte{
		"one status": whole, "many statuses": many,
		"JSON": []byte(`{"status":{"tunnels":[` + strings.Repeat("{},", 1<<18) + `{}]}}`),
	} {
		c := codec{"proto"}
		if name == "JSON" {
			c.name = "json"
		}
		if err := c.Unmarshal(b, &v1.SessionRequest{}); err == nil {
			t.Errorf("%s: %d bytes were taken", name, len(b))
		}
	}
}

// Counting changes nothing of what is taken and refused otherwise.
func FuzzCodec(f *testing.F) {
	b, err := proto.Marshal(&v1.SessionRequest{Status: &v1.NodeStatus{Problems: []string{"x"}, Tunnels: []*v1.TunnelStatus{{Id: "a"}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"status":{"problems":["x\"],[","y"]}}`))
	f.Add([]byte{0x0b, 0x0a, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		want, got := &v1.SessionRequest{}, &v1.SessionRequest{}
		wantErr, gotErr := proto.Unmarshal(b, want), codec{"proto"}.Unmarshal(b, got)
		if (wantErr == nil) != (gotErr == nil) || wantErr == nil && !proto.Equal(want, got) {
			t.Errorf("proto: %v and %v, want %v and %v", got, gotErr, want, wantErr)
		}
		want, got = &v1.SessionRequest{}, &v1.SessionRequest{}
		wantErr = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, want)
		gotErr = codec{"json"}.Unmarshal(b, got)
		if (wantErr == nil) != (gotErr == nil) || wantErr == nil && !proto.Equal(want, got) {
			t.Errorf("JSON: %v and %v, want %v and %v", got, gotErr, want, wantErr)
		}
	})
}

func TestSourcesAreBounded(t *testing.T) {
	q := &v1.ApplyRequest{Sources: make([]*v1.Source, maxSources+1)}
	_, err := newPolicy(t.Context(), nil, nil, newUploads(time.Now), slog.New(slog.DiscardHandler)).Apply(t.Context(), connect.NewRequest(q))
	if connect.CodeOf(err) != connect.CodeInvalidArgument || !strings.Contains(err.Error(), "sources") {
		t.Errorf("%d sources: %v", len(q.GetSources()), err)
	}
}

// A field that does not exist is refused: who wrote "dryrun" must not be taken to
// mean an apply for real.
func TestUnknownJSONIsRefused(t *testing.T) {
	for _, tt := range []struct {
		body    string
		message proto.Message
		want    string
	}{
		{`{"sources": [], "dry-run": true}`, &v1.ApplyRequest{}, `the body does not fit ApplyRequest: (line 1:17): unknown field "dry-run"; did you mean "dryRun"?`},
		{`{"kind": "Site", "customr": "contoso"}`, &v1.GetRequest{}, `the body does not fit GetRequest: (line 1:18): unknown field "customr"; did you mean "customer"?`},
		{`{"sources": [{"txt": ""}]}`, &v1.ApplyRequest{}, `the body does not fit ApplyRequest: (line 1:15): unknown field "txt"; did you mean "text"?`},
		{`{"moon": 1}`, &v1.GetRequest{}, `the body does not fit GetRequest: (line 1:2): unknown field "moon"; it has kind, customer, name, pageSize, pageToken`},
		{`{"moon": 1}`, &v1.GetStatusRequest{}, `the body does not fit GetStatusRequest: (line 1:2): unknown field "moon"; it has no fields`},
		{`{"kind": 3}`, &v1.GetRequest{}, `the body does not fit GetRequest: (line 1:10): invalid value for string field kind: 3`},
		{`{"kind": "Site", "page_size": 3}`, &v1.GetRequest{}, ""},
	} {
		err := codec{"json"}.Unmarshal([]byte(tt.body), tt.message)
		if got := fmt.Sprint(err); err == nil && tt.want != "" || err != nil && got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.body, got, tt.want)
		}
	}
}
