package api

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/circuitseal/circuitseal/controller/certify"
	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/controller/pki"
	"github.com/circuitseal/circuitseal/controller/rotate"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/sealed"
)

// Inventory lists the authority's own keys; pki.Authority has it.
type Inventory interface{ Inventory() ([]pki.Held, error) }

// Rotation says how far rotations are; rotate.Rotator has it.
type Rotation interface {
	Report(s *model.Snapshot) map[string]rotate.Report
}

// Certificates say how far the certificates of endpoints are; certify.Certifier has
// it.
type Certificates interface {
	Report(s *model.Snapshot) map[string]certify.Report
}

// keys is the KeyService.
type keys struct {
	store     Store
	inventory Inventory
	rotation  Rotation
	certs     Certificates
	secrets   *sealed.Ring
	log       *slog.Logger
	now       func() time.Time
}

// onController is where the controller's own keys are.
const onController = "controller"

// ListKeys implements circuitsealv1connect.KeyServiceHandler.
func (k *keys) ListKeys(ctx context.Context, q *connect.Request[v1.ListKeysRequest]) (*connect.Response[v1.ListKeysResponse], error) {
	customer := q.Msg.GetCustomer()
	if err := validNames(field{path: "customer", value: customer}); err != nil {
		return nil, err
	}
	now, err := k.store.Snapshot(ctx)
	if err != nil {
		return nil, storeError(err)
	}
	answer := &v1.ListKeysResponse{}
	if customer == "" {
		held, err := k.inventory.Inventory()
		if err != nil {
			k.log.Error("keys of the authority were not listed", "error", err)
			return nil, connect.NewError(connect.CodeInternal, err)
		}
		for _, h := range held {
			answer.Keys = append(answer.Keys, k.held(h))
		}
		for node, e := range now.Enrolments {
			answer.Keys = append(answer.Keys, k.aged(&v1.KeyReport{
				Kind: v1.KeyKind_KEY_KIND_NODE_SESSION, Name: node, Id: e.Serial, Places: []string{node},
				Due: timestamppb.New(e.Expires),
			}, e.Expires.Add(-pki.NodeLife)))
		}
		for i, secret := range k.secrets.Keys() {
			r := k.aged(&v1.KeyReport{
				Kind: v1.KeyKind_KEY_KIND_SECRET, Id: secret.ID().String(), Places: []string{onController}, Phase: "current",
			}, secret.Made())
			if i > 0 {
				r.Phase, r.Problem = "previous", "nothing is encrypted with it any more: take its line out of the secret key file"
			}
			answer.Keys = append(answer.Keys, r)
		}
	}
	for end, key := range now.Keys {
		if belongs(end.Tunnel, customer) {
			answer.Keys = append(answer.Keys, &v1.KeyReport{
				Kind: v1.KeyKind_KEY_KIND_TUNNEL, Name: end.Tunnel, Id: key.String(), Places: []string{end.Node},
			})
		}
	}
	for tunnel, r := range k.rotation.Report(now) {
		if belongs(tunnel, customer) {
			answer.Keys = append(answer.Keys, k.preshared(tunnel, now.PresharedKeys[tunnel], r)...)
		}
	}
	reports := k.certs.Report(now)
	for name, held := range now.Identities {
		if of, ok := model.EndpointOfIdentity(name); ok && (customer == "" || of.Customer == customer) {
			answer.Keys = append(answer.Keys, k.endpoint(name, held, reports[name])...)
		}
	}
	slices.SortFunc(answer.GetKeys(), func(a, b *v1.KeyReport) int {
		return cmp.Or(cmp.Compare(a.GetKind(), b.GetKind()), cmp.Compare(a.GetName(), b.GetName()),
			slices.Compare(a.GetPlaces(), b.GetPlaces()), cmp.Compare(a.GetPhase(), b.GetPhase()), cmp.Compare(a.GetId(), b.GetId()))
	})
	return connect.NewResponse(answer), nil
}

func belongs(tunnel, customer string) bool {
	return customer == "" || strings.HasPrefix(tunnel, customer+"/")
}

func (k *keys) held(h pki.Held) *v1.KeyReport {
	r := &v1.KeyReport{Id: h.Serial, Places: []string{onController}, Due: timestamppb.New(h.To)}
	switch h.Purpose {
	case pki.ForRoot:
		r.Kind = v1.KeyKind_KEY_KIND_ROOT
	case pki.ForIssuing:
		r.Kind = v1.KeyKind_KEY_KIND_INTERMEDIATE
	case pki.ForStates:
		r.Kind = v1.KeyKind_KEY_KIND_STATE_SIGNING
	case pki.ForServer:
		r.Kind = v1.KeyKind_KEY_KIND_SERVER
	}
	if h.Elsewhere {
		r.Places = []string{"elsewhere"}
	}
	return k.aged(r, h.From)
}

// aged sets when a key was made, and its age by the clock on the wall.
func (k *keys) aged(r *v1.KeyReport, made time.Time) *v1.KeyReport {
	r.Created = timestamppb.New(made)
	r.Age = durationpb.New(max(0, k.now().Sub(made)))
	return r
}

// endpoint is an endpoint's certificates for IKE. What holds their renewal up stands
// with the one in use.
func (k *keys) endpoint(name string, held model.IdentityCertificates, r certify.Report) []*v1.KeyReport {
	var all []*v1.KeyReport
	for i, g := range held.Certificates {
		report := &v1.KeyReport{Kind: v1.KeyKind_KEY_KIND_ENDPOINT, Name: name, Id: g.Serial, Places: []string{held.Node}, Phase: "current"}
		if len(g.Certificate) > 0 {
			report = k.aged(report, g.Issued)
			report.Due = timestamppb.New(g.Expires)
		}
		switch {
		case i == 0:
			report.Problem = r.Waits
		case held.Phase == model.IdentityPrepare:
			report.Phase = "next"
		default:
			report.Phase = "previous"
		}
		all = append(all, report)
	}
	return all
}

// places are where a generation of a tunnel's pre-shared key is known to be: a node
// that is to have it may not be enrolled yet.
func places(r rotate.Report, generation uint64) []string {
	all := []string{onController}
	for i, n := range r.Nodes {
		if n != "" && slices.Contains(r.Held[i], generation) {
			all = append(all, n)
		}
	}
	return all
}

// preshared is a tunnel's pre-shared keys. What holds their rotation up stands
// with the one in use.
func (k *keys) preshared(tunnel string, held model.PresharedKeys, r rotate.Report) []*v1.KeyReport {
	var all []*v1.KeyReport
	for i, g := range held.Keys {
		report := k.aged(&v1.KeyReport{
			Kind: v1.KeyKind_KEY_KIND_PRESHARED, Name: tunnel, Id: strconv.FormatUint(g.Generation, 10),
			Places: places(r, g.Generation), Phase: "current",
		}, g.Made)
		switch {
		case i == 0:
			report.Age, report.Problem = durationpb.New(r.Age), r.Waits
			if !r.Asked {
				report.Due = timestamppb.New(k.now().Add(r.Due))
			}
		case held.Phase == model.PresharedPrepare:
			report.Phase = "next"
		default:
			report.Phase = "previous"
		}
		all = append(all, report)
	}
	return all
}
