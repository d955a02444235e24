package rotate

import (
	"time"

	"github.com/circuitseal/circuitseal/controller/model"
)

// interval is how old the key of a connection's tunnels may become.
func interval(map[model.Key]model.Document, string, string) time.Duration { return time.Hour }
