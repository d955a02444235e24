package api

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/circuitseal/circuitseal/controller/gateway"
	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/controller/profile"
	"github.com/circuitseal/circuitseal/controller/rotate"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// profiles is the ProfileService.
type profiles struct{ store Store }

// ListProfiles implements circuitsealv1connect.ProfileServiceHandler.
func (p *profiles) ListProfiles(ctx context.Context, q *connect.Request[v1.ListProfilesRequest]) (*connect.Response[v1.ListProfilesResponse], error) {
	customer, name := q.Msg.GetCustomer(), q.Msg.GetName()
	if err := validNames(field{path: "customer", value: customer}, field{path: "name", value: name}); err != nil {
		return nil, err
	}
	s, err := p.store.Snapshot(ctx)
	if err != nil {
		return nil, storeError(err)
	}
	if customer != "" {
		key := model.Key{Kind: model.KindCustomer, Name: customer}
		if _, ok := s.Documents[key]; !ok {
			return nil, notFound(s, key, false)
		}
	}
	answer := &v1.ListProfilesResponse{}
	for _, b := range profile.All() {
		if name == "" || name == b.Name {
			answer.Profiles = append(answer.Profiles, profileToWire("", b))
		}
	}
	for _, k := range selected(s.Documents, model.KindCryptoProfile, customer) {
		spec, ok := model.Lookup[*model.CryptoProfileSpec](s.Documents, k)
		if ok && (name == "" || name == k.Name) {
			answer.Profiles = append(answer.Profiles, profileToWire(k.Customer, spec.Profile(k.Name)))
		}
	}
	if name != "" && len(answer.Profiles) == 0 {
		names := profile.Names()
		for _, k := range selected(s.Documents, model.KindCryptoProfile, customer) {
			names = append(names, k.Name)
		}
		hint := "the built-in ones are " + strings.Join(profile.Names(), ", ")
		if near := model.Nearest(name, names); near != "" {
			hint = fmt.Sprintf("did you mean %q?", near)
		}
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("there is no crypto profile %q: %s", name, hint))
	}
	return connect.NewResponse(answer), nil
}

func profileToWire(customer string, p profile.Profile) *v1.Profile {
	source := func(s profile.Source) *v1.Provenance { return &v1.Provenance{Text: s.Text, Recalled: s.Recalled} }
	choices := func(list []profile.Choice) (all []*v1.Proposal) {
		for _, c := range list {
			all = append(all, &v1.Proposal{Proposal: c.String(), Source: source(c.Source)})
		}
		return all
	}
	bound := func(d time.Duration) *durationpb.Duration {
		if d == 0 {
			return nil
		}
		return durationpb.New(d)
	}
	return &v1.Profile{
		Name: p.Name, Customer: customer, Summary: p.Summary, Source: source(p.Source),
		Ike: choices(p.IKE), Esp: choices(p.ESP), MaxIke: bound(p.MaxIKE), MaxEsp: bound(p.MaxESP), Lifetimes: source(p.Lifetimes),
		DefaultIke: durationpb.New(p.LifetimeIKE()), DefaultEsp: durationpb.New(p.LifetimeESP()),
		Certificates: p.Certificates.String(), CertificatesSource: source(p.Certificates.Source),
		Wireguard: p.WireGuard != "", WireguardReason: p.WireGuard + p.NoWireGuard,
		PpkRequired: p.PPK, PostQuantum: p.PostQuantum(), Fips: p.FIPS, Default: customer == "" && p.Name == profile.Default,
	}
}

// gateways is the GatewayService.
type gateways struct {
	store Store
	log   *slog.Logger
	now   func() time.Time
}

// DescribeGateway implements circuitsealv1connect.GatewayServiceHandler.
func (g *gateways) DescribeGateway(ctx context.Context, q *connect.Request[v1.DescribeGatewayRequest]) (*connect.Response[v1.DescribeGatewayResponse], error) {
	customer, endpoint, reveal := q.Msg.GetCustomer(), q.Msg.GetEndpoint(), q.Msg.GetReveal()
	answer, err := g.describe(ctx, customer, endpoint, reveal)
	// Who asks for keys is on record, whatever comes of it.
	if reveal || err != nil {
		var shown []string
		for _, c := range answer.GetConnections() {
			for _, k := range c.GetKeys() {
				shown = append(shown, fmt.Sprintf("%s generation %d", k.GetTunnel(), k.GetGeneration()))
			}
		}
		audit(ctx, g.log, "describe gateway", err, "customer", model.Shorten(customer), "endpoint", model.Shorten(endpoint), "reveal", reveal, "shown", shown)
	}
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(answer), nil
}

func (g *gateways) describe(ctx context.Context, customer, endpoint string, reveal bool) (*v1.DescribeGatewayResponse, error) {
	s, _, err := g.external(ctx, customer, endpoint)
	if err != nil {
		return nil, err
	}
	answer := &v1.DescribeGatewayResponse{}
	for _, c := range gateway.Describe(s, customer, endpoint, reveal) {
		w := &v1.GatewayConnection{Connection: c.Name, Type: string(c.Type), Text: c.Text}
		for _, x := range c.Settings {
			w.Settings = append(w.Settings, &v1.GatewaySetting{Name: x.Name, Value: x.Value})
		}
		for _, k := range c.Keys {
			w.Keys = append(w.Keys, &v1.GatewayKey{Tunnel: k.Tunnel, Generation: k.Generation, Phase: k.Phase, Value: k.Value})
		}
		answer.Connections = append(answer.Connections, w)
	}
	return answer, nil
}

// external is the endpoint, which has to be a gateway without our agent.
func (g *gateways) external(ctx context.Context, customer, endpoint string) (*model.Snapshot, *model.ExternalSpec, error) {
	if err := validNames(field{path: "customer", value: customer, required: true}, field{path: "endpoint", value: endpoint, required: true}); err != nil {
		return nil, nil, err
	}
	s, err := g.store.Snapshot(ctx)
	if err != nil {
		return nil, nil, storeError(err)
	}
	k := model.Key{Kind: model.KindEndpoint, Customer: customer, Name: endpoint}
	spec, ok := model.Lookup[*model.EndpointSpec](s.Documents, k)
	switch {
	case !ok:
		return nil, nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("there is no %s", k))
	case spec.External == nil:
		return nil, nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("%s is on node %q, which our agent looks after: nothing has to be set by hand", k, spec.Node))
	}
	return s, spec.External, nil
}

// RotateGatewayKey implements circuitsealv1connect.GatewayServiceHandler.
func (g *gateways) RotateGatewayKey(ctx context.Context, q *connect.Request[v1.RotateGatewayKeyRequest]) (*connect.Response[v1.RotateGatewayKeyResponse], error) {
	answer, err := g.rotate(ctx, q.Msg.GetCustomer(), q.Msg.GetEndpoint())
	audit(ctx, g.log, "rotate gateway key", err, "customer", model.Shorten(q.Msg.GetCustomer()), "endpoint", model.Shorten(q.Msg.GetEndpoint()), "keys", len(answer.GetKeys()))
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(answer), nil
}

// rotate begins what the Rotator goes on with: the next key stands second until our
// end has it.
func (g *gateways) rotate(ctx context.Context, customer, endpoint string) (*v1.RotateGatewayKeyResponse, error) {
	s, e, err := g.external(ctx, customer, endpoint)
	if err != nil {
		return nil, err
	}
	if e.Authentication != model.AuthPSK {
		return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("endpoint %s/%s has authentication %s: there is no pre-shared key", customer, endpoint, e.Authentication))
	}
	write := map[string]model.PresharedKeys{}
	answer := &v1.RotateGatewayKeyResponse{}
	// All of a gateway's tunnels have the same.
	fresh, err := desired.NewSecret()
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	for _, k := range selected(s.Documents, model.KindConnection, customer) {
		spec, ok := model.Lookup[*model.ConnectionSpec](s.Documents, k)
		if !ok || !slices.Contains(spec.Endpoints, endpoint) {
			continue
		}
		tunnels, _ := model.Tunnels(s.Documents, k)
		for _, t := range tunnels {
			have := s.PresharedKeys[t.ID]
			switch {
			case len(have.Keys) == 0:
				continue
			case have.Phase != model.PresharedSteady:
				return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("a rotation of tunnel %s is under way already: set its newest key at the gateway, which `sealctl describe endpoint %s/%s --reveal-psk` shows; it ends when a handshake has succeeded with that", t.ID, customer, endpoint))
			}
			next := rotate.Apply(have, rotate.Prepare, fresh, s.Revision, g.now())
			write[t.ID] = next
			answer.Keys = append(answer.Keys, &v1.GatewayKey{Tunnel: t.ID, Generation: next.Keys[1].Generation, Phase: "next"})
		}
	}
	if len(write) == 0 {
		return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("no connection of endpoint %s/%s has a pre-shared key yet", customer, endpoint))
	}
	if err := g.store.PutPreshared(ctx, write); err != nil {
		return nil, writeError(err)
	}
	return answer, nil
}
