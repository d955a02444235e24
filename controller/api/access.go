package api

import (
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"github.com/circuitseal/circuitseal/controller/pki"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
	"github.com/circuitseal/circuitseal/proto/desired"
)

// Access says who may call a procedure. The zero value is nobody.
type Access uint8

// Who may call.
const (
	// AccessToken: anybody; the procedure itself wants a one-time token.
	AccessToken Access = iota + 1
	// AccessNode: an enrolled node.
	AccessNode
	// AccessRenewal: an enrolled node, also for a time after its certificate has
	// ended.
	AccessRenewal
	// AccessAdmin: the provider's administrator.
	AccessAdmin
)

// rule is what the gate knows of a procedure.
type rule struct {
	access Access
	// most is the largest message in bytes.
	most int
	// stream is set where messages come as long as the connection lives.
	stream bool
	// quantumSafe wants a key exchange that stands against a later quantum
	// attacker: what the agents' channel carries stays secret for years.
	quantumSafe bool
}

const (
	maxOperatorMessage = 5 << 20
	// maxChunkMessage has room for a chunk in base64.
	maxChunkMessage   = 1 << 20
	maxEnrolMessage   = 64 << 10
	maxSessionMessage = desired.MaxStatus + framing
)

// rules is every procedure that exists for callers. What is not here is
// refused, and a test fails for a procedure of the wire that is not here.
var rules = map[string]rule{
	circuitsealv1connect.AgentServiceEnrolProcedure:              {access: AccessToken, most: maxEnrolMessage, quantumSafe: true},
	circuitsealv1connect.AgentServiceRenewProcedure:              {access: AccessRenewal, most: maxEnrolMessage, quantumSafe: true},
	circuitsealv1connect.AgentServiceSessionProcedure:            {access: AccessNode, most: maxSessionMessage, stream: true, quantumSafe: true},
	circuitsealv1connect.PolicyServiceApplyProcedure:             {access: AccessAdmin, most: maxOperatorMessage},
	circuitsealv1connect.PolicyServiceGetProcedure:               {access: AccessAdmin, most: maxOperatorMessage},
	circuitsealv1connect.PolicyServiceDeleteProcedure:            {access: AccessAdmin, most: maxOperatorMessage},
	circuitsealv1connect.PolicyServiceWatchProcedure:             {access: AccessAdmin, most: maxOperatorMessage, stream: true},
	circuitsealv1connect.PolicyServiceMissingChunksProcedure:     {access: AccessAdmin, most: maxOperatorMessage},
	circuitsealv1connect.PolicyServicePutChunkProcedure:          {access: AccessAdmin, most: maxChunkMessage},
	circuitsealv1connect.PolicyServiceGetChunkProcedure:          {access: AccessAdmin, most: maxOperatorMessage},
	circuitsealv1connect.PlanServicePlanProcedure:                {access: AccessAdmin, most: maxOperatorMessage},
	circuitsealv1connect.NodeServiceCreateTokenProcedure:         {access: AccessAdmin, most: maxOperatorMessage},
	circuitsealv1connect.NodeServiceListNodesProcedure:           {access: AccessAdmin, most: maxOperatorMessage},
	circuitsealv1connect.NodeServiceRevokeProcedure:              {access: AccessAdmin, most: maxOperatorMessage},
	circuitsealv1connect.NodeServiceDecommissionProcedure:        {access: AccessAdmin, most: maxOperatorMessage},
	circuitsealv1connect.KeyServiceListKeysProcedure:             {access: AccessAdmin, most: maxOperatorMessage},
	circuitsealv1connect.ProfileServiceListProfilesProcedure:     {access: AccessAdmin, most: maxOperatorMessage},
	circuitsealv1connect.GatewayServiceDescribeGatewayProcedure:  {access: AccessAdmin, most: maxOperatorMessage},
	circuitsealv1connect.GatewayServiceRotateGatewayKeyProcedure: {access: AccessAdmin, most: maxOperatorMessage},
	circuitsealv1connect.StatusServiceGetStatusProcedure:         {access: AccessAdmin, most: maxOperatorMessage},
}

// permit says whether a caller may call; the error is connect's.
func (a Access) permit(c pki.Identity) error {
	switch a {
	case AccessToken:
		return nil
	case AccessNode, AccessRenewal:
		switch c.Kind {
		case pki.KindNode:
			return nil
		case pki.KindAdmin:
			return connect.NewError(connect.CodePermissionDenied, errors.New("this procedure is for nodes; an administrator's certificate does not reach it"))
		}
		return connect.NewError(connect.CodeUnauthenticated, errors.New("no client certificate came: present the one that the node got when it enrolled"))
	case AccessAdmin:
		switch c.Kind {
		case pki.KindAdmin:
			return nil
		case pki.KindNode:
			return connect.NewError(connect.CodePermissionDenied, fmt.Errorf("the certificate of node %q reaches the agent service only; present an administrator's", c.Name))
		}
		return connect.NewError(connect.CodeUnauthenticated, errors.New("no client certificate came: present the administrator's, which the controller wrote at its first start"))
	}
	return connect.NewError(connect.CodePermissionDenied, errors.New("nobody may call this procedure"))
}
