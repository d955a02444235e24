package gateway

import (
	"fmt"
	"strings"
	"time"

	"github.com/circuitseal/circuitseal/controller/model"
)

// dpdTimeout is Azure's where a document says nothing.
const dpdTimeout = 45 * time.Second

// azure is a connection in the words of ARM's virtual network gateway connections,
// and as commands of the Azure CLI. Each of our addresses is a local network gateway
// of its own, with a connection to it.
func (v view) azure() ([]Setting, string) {
	a := v.external.Azure()
	dpd := dpdTimeout
	if d, ok := v.external.DPDTimeout.Parse(); ok {
		dpd = d
	}
	selectors := v.external.Selectors() == model.PolicyBased
	settings := []Setting{
		{"connectionType", "IPsec"},
		{"connectionProtocol", "IKEv2"},
		{"useLocalAzureIpAddress", "true"},
		{"usePolicyBasedTrafficSelectors", fmt.Sprint(selectors)},
		{"dpdTimeoutSeconds", itoa(int(dpd / time.Second))},
		{"ipsecPolicies.ikeEncryption", a.IKEEncryption},
		{"ipsecPolicies.ikeIntegrity", a.IKEIntegrity},
		{"ipsecPolicies.dhGroup", a.DHGroup},
		{"ipsecPolicies.ipsecEncryption", a.IPsecEncryption},
		{"ipsecPolicies.ipsecIntegrity", a.IPsecIntegrity},
		{"ipsecPolicies.pfsGroup", a.PFSGroup},
		{"ipsecPolicies.saLifeTimeSeconds", itoa(a.SALifeTimeSeconds)},
		{"ipsecPolicies.saDataSizeKilobytes", itoa(a.SADataSizeKilobytes)},
		{"localNetworkGateway.localNetworkAddressSpace.addressPrefixes", join(v.ours, " ")},
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Connection %s: set RG, GATEWAY and LOCATION. The gateway has private IP addresses\n"+
		"# (enablePrivateIpAddress), so that its tunnels run over the circuit.\n", v.key.Name)
	for _, t := range v.tunnels {
		name := v.key.Customer + "-" + v.key.Name + "-" + t.link
		settings = append(settings, Setting{"localNetworkGateway.gatewayIpAddress of " + name, t.ours.String()})
		fmt.Fprintf(&b, `
az network local-gateway create --resource-group "$RG" --location "$LOCATION" --name %[1]s \
    --gateway-ip-address %[2]s --local-address-prefixes %[3]s
az network vpn-connection create --resource-group "$RG" --location "$LOCATION" --name %[1]s \
    --vnet-gateway1 "$GATEWAY" --local-gateway2 %[1]s%[4]s \
    --use-policy-based-traffic-selectors %[5]t
az network vpn-connection update --resource-group "$RG" --name %[1]s \
    --set connectionProtocol=IKEv2 useLocalAzureIpAddress=true dpdTimeoutSeconds=%[6]d
az network vpn-connection ipsec-policy add --resource-group "$RG" --connection-name %[1]s \
    --ike-encryption %[7]s --ike-integrity %[8]s --dh-group %[9]s \
    --ipsec-encryption %[10]s --ipsec-integrity %[11]s --pfs-group %[12]s \
    --sa-lifetime %[13]d --sa-max-size %[14]d
`, name, t.ours, join(v.ours, " "), v.sharedKey(t), selectors, int(dpd/time.Second),
			a.IKEEncryption, a.IKEIntegrity, a.DHGroup, a.IPsecEncryption, a.IPsecIntegrity, a.PFSGroup, a.SALifeTimeSeconds, a.SADataSizeKilobytes)
	}
	if v.external.Authentication == model.AuthCertificate {
		b.WriteString("\n# Authentication by certificates: the gateway trusts these, and our end is\n")
		for _, t := range v.tunnels {
			fmt.Fprintf(&b, "# %s at %s\n", t.ourID, t.ours)
		}
		b.WriteString(comment(pems(v.authorities)))
	}
	return settings, b.String()
}

func (v view) sharedKey(t tunnel) string {
	if v.external.Authentication != model.AuthPSK {
		return ""
	}
	return fmt.Sprintf(" --shared-key '%s'", t.secret)
}

// comment puts a mark before each line.
func comment(text string) string {
	var b strings.Builder
	for l := range strings.Lines(text) {
		b.WriteString("# " + l)
	}
	return b.String()
}
