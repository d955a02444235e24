package store

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/circuitseal/circuitseal/controller/model"
)

const hqIdentity = "hq.contoso.circuitseal.internal"

// Certificates are written over what they were decided on, survive a restart, and go
// with their endpoint.
func TestIdentities(t *testing.T) {
	dir := dataDir(t)
	s := start(t, dir)
	endpoint := model.Document{Key: model.Key{Kind: model.KindEndpoint, Customer: "contoso", Name: "hq"}, Spec: &model.EndpointSpec{Site: "hq", Node: "prem-1"}}
	first := model.IdentityCertificates{Phase: model.IdentitySteady, Node: "prem-1", Enrolment: "sha256:a", Certificates: []model.IdentityGeneration{
		{Generation: 4, Certificate: []byte{1, 2}, Key: "sha256:b", Serial: "c", Issued: time.Unix(1, 0).UTC(), Expires: time.Unix(2, 0).UTC()},
	}}
	put := func(c model.IdentityCertificates) error {
		return s.PutIdentities(t.Context(), map[string]model.IdentityCertificates{hqIdentity: c})
	}
	if err := put(first); !errors.Is(err, ErrConflict) {
		t.Errorf("without its endpoint: %v, want ErrConflict", err)
	}
	write(t, s, Change{Put: []model.Document{endpoint, node("prem-1")}})
	if err := put(first); err != nil {
		t.Fatal(err)
	}
	if err := put(first); !errors.Is(err, ErrConflict) {
		t.Errorf("over what it was not decided on: %v, want ErrConflict", err)
	}
	got := snapshot(t, s).Identities[hqIdentity]
	first.Revision = got.Revision
	if d := cmp.Diff(first, got); d != "" || got.Revision == 0 {
		t.Errorf("(-want +got)\n%s", d)
	}
	next := got
	next.Phase, next.Certificates = model.IdentityPrepare, append(next.Certificates, model.IdentityGeneration{Generation: 5})
	if err := put(next); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]model.IdentityCertificates{
		"nothing": {}, "phase": {Phase: model.IdentityActivate, Certificates: first.Certificates},
	} {
		if err := put(bad); err == nil || errors.Is(err, ErrConflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.PutIdentities(t.Context(), map[string]model.IdentityCertificates{"gw.example.net": first}); err == nil {
		t.Error("a name of nobody here was taken")
	}
	if err := s.PutAuthorities(t.Context(), [][]byte{{1}, {2}}); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, s)
	if err := s.PutAuthorities(t.Context(), [][]byte{{1}, {2}}); err != nil || snapshot(t, s) != before {
		t.Errorf("what is there already was written again: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = start(t, dir)
	after := snapshot(t, s)
	if d := cmp.Diff(before.Identities, after.Identities); d != "" {
		t.Errorf("after a restart (-want +got)\n%s", d)
	}
	if d := cmp.Diff([][]byte{{1}, {2}}, after.Authorities); d != "" {
		t.Errorf("after a restart (-want +got)\n%s", d)
	}
	write(t, s, Change{Delete: []model.Key{endpoint.Key}})
	if left := snapshot(t, s).Identities; len(left) != 0 {
		t.Errorf("without the endpoint there is still %v", left)
	}
}

// What is settled changes with documents, or over what it was decided on while these
// are as they were seen; either way the other one is told of it.
func TestSettled(t *testing.T) {
	s := start(t, dataDir(t))
	const group = "contoso/hq-weu"
	policy := model.Document{Key: model.Key{Kind: model.KindEncryptionPolicy, Customer: "contoso", Name: "p"}, Spec: &model.EncryptionPolicySpec{Protocol: model.ProtocolIPsec}}
	wireguard := model.Settled{Policy: model.EncryptionPolicySpec{Protocol: model.ProtocolWireGuard, PSKRotation: "2h"}}
	write(t, s, Change{Put: []model.Document{policy}, Settled: map[string]model.Settled{group: wireguard}})
	before := snapshot(t, s)
	was := before.Settled[group]
	if was.Revision == 0 || was.Policy != wireguard.Policy {
		t.Fatalf("settled is %+v", was)
	}
	// Documents that leave it alone, and such as say the same.
	write(t, s, Change{Put: []model.Document{node("prem-1")}})
	revision := snapshot(t, s).Revision
	if got, err := s.Write(t.Context(), revision, Change{Settled: map[string]model.Settled{group: wireguard}}); err != nil || got != revision {
		t.Errorf("the same again is revision %d, %v, want %d", got, err, revision)
	}
	now := snapshot(t, s)
	was.Policy.Protocol = model.ProtocolIPsec
	settle := func(seen uint64) error {
		return s.PutSettled(t.Context(), map[string]model.Settled{group: was}, []model.Document{{Key: policy.Key, Revision: seen}})
	}
	if err := settle(now.Documents[policy.Key].Revision - 1); !errors.Is(err, ErrConflict) {
		t.Errorf("of a policy that is another one by now: %v, want ErrConflict", err)
	}
	if err := settle(now.Documents[policy.Key].Revision); err != nil {
		t.Fatal(err)
	}
	if err := settle(now.Documents[policy.Key].Revision); !errors.Is(err, ErrConflict) {
		t.Errorf("over what it was not decided on: %v, want ErrConflict", err)
	}
	if got := snapshot(t, s).Settled[group].Policy.Protocol; got != model.ProtocolIPsec {
		t.Errorf("settled is %s", got)
	}
	// A change of documents that was judged before has to be judged again.
	if _, err := s.Write(t.Context(), now.Revision, Change{Settled: map[string]model.Settled{group: wireguard}}); !errors.Is(err, ErrConflict) {
		t.Errorf("a change that knows nothing of it: %v, want ErrConflict", err)
	}
	write(t, s, Change{Settled: map[string]model.Settled{}})
	if left := snapshot(t, s).Settled; len(left) != 0 {
		t.Errorf("there is still %v", left)
	}
}
