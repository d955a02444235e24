package rotate

import (
	"time"

	"github.com/circuitseal/circuitseal/controller/model"
)

// rotating is an encryption policy that says how often keys change.
type rotating interface{ RotatesPSK() time.Duration }

// interval is how old the key of a connection's tunnels may become: what its
// encryption policy says, else an hour.
func interval(docs map[model.Key]model.Document, customer, policy string) time.Duration {
	k := model.Key{Kind: model.KindEncryptionPolicy, Customer: customer, Name: policy}
	if p, ok := docs[k].Spec.(rotating); ok {
		return p.RotatesPSK()
	}
	return time.Hour
}
