package compile_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"sync"
	"time"

	"pgregory.net/rapid"

	"github.com/circuitseal/circuitseal/controller/model"
)

var (
	certificatesMu sync.Mutex
	certificates   = map[string][]byte{}
)

// certificateOf is a certificate that has a name in it; the same for the same name.
func certificateOf(name string) []byte {
	certificatesMu.Lock()
	defer certificatesMu.Unlock()
	if der, ok := certificates[name]; ok {
		return der
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	certificates[name] = der
	return der
}

// nameIn is the name in a certificate of certificateOf.
func nameIn(der []byte) string {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return err.Error()
	}
	return c.Subject.CommonName
}

// identityOf is an endpoint's certificates in the middle of a renewal.
func identityOf(s *model.Snapshot, name, node string, phase model.IdentityPhase) model.IdentityCertificates {
	made := func(g uint64) model.IdentityGeneration {
		return model.IdentityGeneration{Generation: g, Certificate: certificateOf(fmt.Sprintf("%s %d", name, g))}
	}
	c := model.IdentityCertificates{Phase: phase, Node: node, Enrolment: s.Enrolments[node].Key, Revision: s.Revision}
	switch phase {
	case model.IdentitySteady:
		c.Certificates = []model.IdentityGeneration{made(3)}
	case model.IdentityPrepare:
		c.Certificates = []model.IdentityGeneration{made(3), {Generation: 4}}
	case model.IdentityActivate:
		c.Certificates = []model.IdentityGeneration{made(4), made(3)}
	}
	return c
}

// certify draws certificates for endpoints, or takes some away.
func certify(t *rapid.T, s *model.Snapshot) {
	if s.Identities == nil {
		s.Identities = map[string]model.IdentityCertificates{}
	}
	keys := slices.SortedFunc(maps.Keys(s.Documents), func(a, b model.Key) int {
		return slices.Compare([]string{string(a.Kind), a.Customer, a.Name}, []string{string(b.Kind), b.Customer, b.Name})
	})
	for _, k := range keys {
		e, ok := model.Lookup[*model.EndpointSpec](s.Documents, k)
		if !ok {
			continue
		}
		name := model.IdentityName(k.Customer, k.Name)
		switch rapid.IntRange(0, 4).Draw(t, "identity of "+name) {
		case 0:
			s.Identities[name] = identityOf(s, name, e.Node, model.IdentitySteady)
		case 1:
			s.Identities[name] = identityOf(s, name, e.Node, model.IdentityPrepare)
		case 2:
			s.Identities[name] = identityOf(s, name, e.Node, model.IdentityActivate)
		case 3:
			delete(s.Identities, name)
		}
	}
	s.Authorities = [][]byte{certificateOf(fmt.Sprint("authority ", rapid.IntRange(0, 1).Draw(t, "authority")))}
}

// unsettle draws which connections still have another protocol beside their own.
func unsettle(t *rapid.T, s *model.Snapshot) {
	s.Settled = map[string]model.Settled{}
	for _, c := range connections(s.Documents) {
		protocol := rapid.SampledFrom([]model.Protocol{"", model.ProtocolWireGuard, model.ProtocolIPsec}).Draw(t, "settled")
		if protocol != "" {
			s.Settled[model.GroupID(c.Customer, c.Name)] = model.Settled{Policy: model.EncryptionPolicySpec{Protocol: protocol}, Revision: s.Revision}
		}
	}
}
