package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/circuitseal/circuitseal/proto/chunk"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
)

// policyClient makes the calls of the policy service that take more than one
// message.
type policyClient struct {
	circuitsealv1connect.PolicyServiceClient
	c connection
	o *options
}

func newPolicyClient(c connection, o *options) policyClient {
	return policyClient{circuitsealv1connect.NewPolicyServiceClient(c.client, c.server, limits()), c, o}
}

// patient is the same client for calls that take long.
func (p policyClient) patient() policyClient {
	o, client := *p.o, *p.c.client
	o.timeout = max(o.timeout, longTimeout)
	client.Timeout = o.timeout
	return newPolicyClient(connection{&client, p.c.server}, &o)
}

const (
	// longText is from how many bytes on a text is sent apart, and maxAsked how
	// many parts are asked about at once.
	longText = 512 << 10
	maxAsked = 1024
	// longTimeout is how long the controller may take over a long text at least.
	longTimeout = 5 * time.Minute
)

// apply applies all sources.
func (p policyClient) apply(ctx context.Context, sources []*v1.Source, dryRun bool) (*v1.ApplyResponse, error) {
	sent, p, err := p.send(ctx, sources)
	if err != nil {
		return nil, err
	}
	return call(ctx, p.o, p.Apply, &v1.ApplyRequest{Sources: sent, DryRun: dryRun})
}

// plan asks what applying and deleting would change.
func (p policyClient) plan(ctx context.Context, q *v1.PlanRequest) (*v1.PlanResponse, error) {
	sent, p, err := p.send(ctx, q.GetSources())
	if err != nil {
		return nil, err
	}
	service := circuitsealv1connect.NewPlanServiceClient(p.c.client, p.c.server, limits())
	return call(ctx, p.o, service.Plan, &v1.PlanRequest{Sources: sent, Deletes: q.GetDeletes(), Full: q.GetFull()})
}

// send sends texts that are long in parts, of which only those that the
// controller lacks. The sources that it returns name these, and the client has
// the patience that long texts take.
func (p policyClient) send(ctx context.Context, sources []*v1.Source) ([]*v1.Source, policyClient, error) {
	sent := make([]*v1.Source, len(sources))
	parts := map[chunk.Sum][]byte{}
	var sums [][]byte
	for i, s := range sources {
		sent[i] = s
		if len(s.GetText()) < longText {
			continue
		}
		sent[i] = &v1.Source{Name: s.GetName()}
		for part := range chunk.Split([]byte(s.GetText())) {
			sum := chunk.Of(part)
			sent[i].Chunks = append(sent[i].Chunks, sum[:])
			if _, twice := parts[sum]; !twice {
				parts[sum], sums = part, append(sums, sum[:])
			}
		}
	}
	for asked := range slices.Chunk(sums, maxAsked) {
		answer, err := call(ctx, p.o, p.MissingChunks, &v1.MissingChunksRequest{Chunks: asked})
		if err != nil {
			return nil, p, err
		}
		for _, b := range answer.GetMissing() {
			if len(b) != len(chunk.Sum{}) {
				return nil, p, fmt.Errorf("%s asks for a part of a text by a name of %d bytes", p.o.server, len(b))
			}
			if _, err := call(ctx, p.o, p.PutChunk, &v1.PutChunkRequest{Data: parts[chunk.Sum(b)]}); err != nil {
				return nil, p, err
			}
		}
	}
	if len(sums) > 0 {
		p = p.patient()
	}
	return sent, p, nil
}

// get reads all pages of a list.
func (p policyClient) get(ctx context.Context, q *v1.GetRequest) (*v1.GetResponse, error) {
	all := &v1.GetResponse{}
	for {
		answer, err := call(ctx, p.o, p.Get, q)
		if err != nil {
			return nil, err
		}
		all.Revision = answer.GetRevision()
		all.Documents = append(all.Documents, answer.GetDocuments()...)
		if answer.GetNextPageToken() == "" {
			return all, nil
		}
		q = &v1.GetRequest{Kind: q.GetKind(), Customer: q.GetCustomer(), Name: q.GetName(), PageToken: answer.GetNextPageToken()}
	}
}

// fill fetches the specs of documents that were too long for a message.
func (p policyClient) fill(ctx context.Context, documents []*v1.Document) error {
	for _, d := range documents {
		if len(d.GetSpecChunks()) == 0 {
			continue
		}
		key := &v1.DocumentKey{Kind: d.GetKind(), Customer: d.GetCustomer(), Name: d.GetName(), Revision: d.GetRevision()}
		var text []byte
		for _, sum := range d.GetSpecChunks() {
			answer, err := call(ctx, p.o, p.GetChunk, &v1.GetChunkRequest{Document: key, Chunk: sum})
			if err != nil {
				return err
			}
			if got := chunk.Of(answer.GetData()); string(got[:]) != string(sum) {
				return fmt.Errorf("%s sent another part of %s than was asked for", p.o.server, name(d))
			}
			text = append(text, answer.GetData()...)
		}
		spec := &structpb.Struct{}
		if err := spec.UnmarshalJSON(text); err != nil {
			return fmt.Errorf("read %s: %w", name(d), err)
		}
		d.Spec, d.SpecChunks = spec, nil
	}
	return nil
}

// remove deletes documents in one transaction. With files, what is not there is
// no error.
func (p policyClient) remove(ctx context.Context, keys []*v1.DocumentKey, missingOK bool) (*v1.DeleteResponse, error) {
	q := &v1.DeleteRequest{Keys: keys, MissingOk: missingOK}
	if len(keys) == 1 {
		// What is wrong with the name is then told without an index.
		q.Kind, q.Customer, q.Name, q.Keys = keys[0].GetKind(), keys[0].GetCustomer(), keys[0].GetName(), nil
	}
	return call(ctx, p.o, p.Delete, q)
}

// usesOf is the detail of an error that refuses a delete, or nil.
func usesOf(err error) *v1.InUse { return detailOf[*v1.InUse](err, connect.CodeFailedPrecondition) }
