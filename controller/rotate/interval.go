package rotate

import (
	"time"

	"github.com/circuitseal/circuitseal/controller/model"
)

// interval is how old the key of a connection's tunnels may become: what its
// encryption policy says, or the default.
func interval(docs map[model.Key]model.Document, customer, policy string) time.Duration {
	spec, ok := model.Lookup[*model.EncryptionPolicySpec](docs, model.Key{Kind: model.KindEncryptionPolicy, Customer: customer, Name: policy})
	if !ok {
		spec = &model.EncryptionPolicySpec{}
	}
	return spec.RotatesPSK()
}
