package store

import (
	"fmt"
	"strconv"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/circuitseal/circuitseal/controller/model"
)

// The layout. Names are RFC 1123 labels (model.ValidName), so that neither "/"
// nor "-" alone can come from one:
//
//	documents/<kind>/<customer or ->/<name>           canonical JSON of the spec, or a root (see chunks.go)
//	chunks/<SHA-256 in hexadecimal>                   a part of a long spec
//	numbers/<class>/<name>...                         decimal
//	keys/<node>/<customer>/<connection>/<circuit>/<link>   the 32 bytes
//	enrolments/<node>                                 JSON, with the newest certificate
//	revocations/<fingerprint>                         JSON; kept for ever
//	preshared/<customer>/<connection>/<circuit>/<link>     JSON, the keys sealed
//	certificates/<customer>/<endpoint>                JSON: an endpoint's certificates in IKE
//	authorities                                       JSON: the certificates that issue them
//	settled/<customer>/<connection>                   JSON: the policy that it is known to work by
//	sealed                                            a constant, sealed: tells whose secret key it is
//	tokens/<id>                                       JSON, the secret as a hash
//	redeemable/<node>                                 the id of the only token that may still be redeemed
//	epoch                                             decimal
//	changed    written at every start and with every change of what a snapshot shows: its
//	           revision is the snapshot's
//	written    written with every change of documents and numbers: it fences
const (
	root          = "/circuitseal/v1/"
	documentsRoot = root + "documents/"
	chunksRoot    = root + "chunks/"
	numbersRoot   = root + "numbers/"
	keysRoot      = root + "keys/"
	presharedRoot = root + "preshared/"
	sealKey       = root + "sealed"
	enrolmentRoot = root + "enrolments/"
	revokedRoot   = root + "revocations/"
	tokensRoot    = root + "tokens/"
	settledRoot   = root + "settled/"

	certificatesRoot = root + "certificates/"
	authoritiesKey   = root + "authorities"
	redeemRoot       = root + "redeemable/"
	epochKey         = root + "epoch"
	changedKey       = root + "changed"
	writtenKey       = root + "written"

	// noCustomer stands for the provider; no name is a lone "-".
	noCustomer = "-"
)

// The classes of numbers.
const (
	tenantClass = "tenants"
	linkClass   = "links"
	groupClass  = "groups"
	tunnelClass = "tunnels"
)

// classes says how many names make up one of each class, and how many bits its
// numbers have.
var classes = map[string]struct{ names, bits int }{
	tenantClass: {1, 32},
	linkClass:   {3, 16},
	groupClass:  {2, 32},
	tunnelClass: {4, 16},
}

// checkNames refuses everything that is not count names joined by "/": nothing
// else ever becomes part of a key.
func checkNames(what, s string, count int) error {
	parts := strings.SplitN(s, "/", count+1)
	if len(parts) != count {
		return fmt.Errorf("%s %q: want %d names joined by \"/\"", what, model.Shorten(s), count)
	}
	for _, p := range parts {
		if problem, hint := model.ValidName(p); problem != "" {
			return fmt.Errorf("%s %q: %q %s; want %s", what, model.Shorten(s), model.Shorten(p), problem, hint)
		}
	}
	return nil
}

func documentKey(k model.Key) (string, error) {
	if model.NewSpec(k.Kind) == nil {
		return "", fmt.Errorf("document kind %q does not exist", model.Shorten(string(k.Kind)))
	}
	customer := noCustomer
	if k.Kind.HasCustomer() {
		customer = k.Customer
		if err := checkNames("customer", customer, 1); err != nil {
			return "", err
		}
	} else if k.Customer != "" {
		return "", fmt.Errorf("a %s has no customer, this one has %q", k.Kind, model.Shorten(k.Customer))
	}
	if err := checkNames("name", k.Name, 1); err != nil {
		return "", err
	}
	return documentsRoot + string(k.Kind) + "/" + customer + "/" + k.Name, nil
}

// nodeKey is the document of a node whose name was checked.
func nodeKey(node string) string {
	return documentsRoot + string(model.KindNode) + "/" + noCustomer + "/" + node
}

// parseDocumentKey reads a key that documentKey has written.
func parseDocumentKey(key string) (model.Key, error) {
	parts := strings.Split(strings.TrimPrefix(key, documentsRoot), "/")
	if len(parts) != 3 {
		return model.Key{}, fmt.Errorf("store key %q is no document's", key)
	}
	k := model.Key{Kind: model.Kind(parts[0]), Customer: parts[1], Name: parts[2]}
	if k.Customer == noCustomer {
		k.Customer = ""
	}
	back, err := documentKey(k)
	if err != nil || back != key {
		return model.Key{}, fmt.Errorf("store key %q is no document's; was it written by a newer version?", key)
	}
	return k, nil
}

func numberKey(class, name string) (string, error) {
	if err := checkNames(class, name, classes[class].names); err != nil {
		return "", err
	}
	return numbersRoot + class + "/" + name, nil
}

func tunnelKey(node, tunnel string) string { return keysRoot + node + "/" + tunnel }

func parseNumber(s string, bits int) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, bits)
	if err != nil {
		return 0, fmt.Errorf("stored number: %w", err)
	}
	if n == 0 {
		return 0, fmt.Errorf("stored number is 0")
	}
	return n, nil
}

func exists(key string) clientv3.Cmp { return clientv3.Compare(clientv3.CreateRevision(key), ">", 0) }

func absent(key string) clientv3.Cmp { return clientv3.Compare(clientv3.CreateRevision(key), "=", 0) }

func unchanged(key string, revision int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(key), "=", revision)
}
