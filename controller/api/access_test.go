package api

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// A procedure of the wire that nobody has decided about must not be reachable,
// and must not go unnoticed either.
func TestEveryProcedureHasARule(t *testing.T) {
	found := map[string]bool{}
	protoregistry.GlobalFiles.RangeFilesByPackage("circuitseal.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				procedure := "/" + string(s.FullName()) + "/" + string(m.Name())
				found[procedure] = true
				r, ok := rules[procedure]
				if !ok {
					t.Errorf("%s has no entry in rules: decide who may call it", procedure)
					continue
				}
				if r.access == 0 || r.most <= 0 {
					t.Errorf("%s: its rule says nobody or no size: %+v", procedure, r)
				}
				if stream := m.IsStreamingClient() || m.IsStreamingServer(); r.stream != stream {
					t.Errorf("%s: its rule says stream %v, the wire %v", procedure, r.stream, stream)
				}
				agents := strings.HasPrefix(procedure, "/circuitseal.v1.AgentService/")
				if agents != r.quantumSafe {
					t.Errorf("%s: the agents' service, and it alone, wants a quantum-safe key exchange", procedure)
				}
				if agents == (r.access == AccessAdmin) {
					t.Errorf("%s: nodes reach the agents' service, and it alone", procedure)
				}
			}
		}
		return true
	})
	if len(found) < 7 {
		t.Fatalf("the registry has %d procedures", len(found))
	}
	for procedure := range rules {
		if !found[procedure] {
			t.Errorf("rules has %s, which the wire does not", procedure)
		}
	}
}
