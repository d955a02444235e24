package gateway

import (
	"encoding/base64"
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
		{"authenticationType", map[bool]string{true: "PSK", false: "Certificate"}[v.external.Authentication == model.AuthPSK]},
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
	fmt.Fprintf(&b, "# Connection %s: set RG, GATEWAY and LOCATION, and run this as a file by bash. The\n"+
		"# gateway has private IP addresses (enablePrivateIpAddress), so that its tunnels run over\n"+
		"# the circuit. It has no extended sequence numbers (ESN), and mixes in no post-quantum\n"+
		"# pre-shared keys.\n%s%s"+
		"set -euo pipefail\n"+
		": \"${RG:?is the resource group of the gateway}\" \"${LOCATION:?is its region}\" \"${GATEWAY:?is its name}\"\n", v.key.Name, v.routes(), v.needs())
	if v.external.Authentication == model.AuthCertificate {
		settings = append(settings, v.inbound()...)
		b.WriteString(v.inboundFile())
	}
	for _, t := range v.tunnels {
		name := v.name(t)
		settings = append(settings, Setting{"localNetworkGateway.gatewayIpAddress of " + name, t.ours.String()})
		fmt.Fprintf(&b, `%[15]s
az network local-gateway create --resource-group "$RG" --location "$LOCATION" --name %[1]s \
    --gateway-ip-address %[2]s --local-address-prefixes %[3]s
%[16]saz network vpn-connection create --resource-group "$RG" --location "$LOCATION" --name %[1]s \
    --vnet-gateway1 "$GATEWAY" --local-gateway2 %[1]s %[4]s \
    --use-policy-based-traffic-selectors %[5]t
az network vpn-connection update --resource-group "$RG" --name %[1]s \
    --set connectionProtocol=IKEv2 useLocalAzureIpAddress=true dpdTimeoutSeconds=%[6]d
az network vpn-connection ipsec-policy add --resource-group "$RG" --connection-name %[1]s \
    --ike-encryption %[7]s --ike-integrity %[8]s --dh-group %[9]s \
    --ipsec-encryption %[10]s --ipsec-integrity %[11]s --pfs-group %[12]s \
    --sa-lifetime %[13]d --sa-max-size %[14]d
`, name, t.ours, join(v.ours, " "), v.proof(), selectors, int(dpd/time.Second),
			a.IKEEncryption, a.IKEIntegrity, a.DHGroup, a.IPsecEncryption, a.IPsecIntegrity, a.PFSGroup, a.SALifeTimeSeconds, a.SADataSizeKilobytes, v.ask(t), v.pipe())
	}
	if v.external.Authentication == model.AuthPSK {
		b.WriteString("\n# After `sealctl rotate psk`, in place of all that:\n")
		for _, t := range v.tunnels {
			b.WriteString(comment(fmt.Sprintf(`%s
%saz network vpn-connection shared-key update --resource-group "$RG" --connection-name %s --value @-
`, v.ask(t)[1:], v.pipe(), v.name(t))))
		}
	}
	return settings, b.String()
}

// name is that of a tunnel's connection in Azure, and of its local network gateway.
func (v view) name(t tunnel) string { return v.key.Customer + "-" + v.key.Name + "-" + t.link }

// routes is what sends packets through the gateway rather than past it, and what a
// second connection takes (MicrosoftDocs/azure-docs, site-to-site-high-bandwidth-tunnel.md
// and vpn-gateway-highlyavailable.md).
func (v view) routes() string {
	var b strings.Builder
	b.WriteString("# Azure sends to these prefixes IN CLEAR, past the gateway, if it learns them from the circuit,\n" +
		"# too: no router on the premises may announce them by BGP, nor a prefix inside of them, but\n" +
		"# only the tunnels' own addresses. `az network nic show-effective-route-table` says by which\n" +
		"# gateway they are reached.\n#   " + join(v.ours, " ") + "\n")
	if len(v.tunnels) > 1 {
		b.WriteString("# Microsoft documents several connections to the same prefixes with BGP only, and these have\n" +
			"# none: where Azure refuses the second, leave it out, and its link is no way to the gateway.\n")
	}
	return b.String()
}

// needs is what the commands need of the Azure CLI: its HISTORY.rst has the options since
// 2.83.0, and its issue 33520 tells of the shared key.
func (v view) needs() string {
	if v.external.Authentication == model.AuthPSK {
		return "# Keys go to az by its standard input (@-): others see its arguments. It takes az 2.83.0 or later.\n"
	}
	return "# It takes az 2.83.0 or later. Where `vpn-connection create` wants a --shared-key all the\n" +
		"# same (https://github.com/Azure/azure-cli/issues/33520), az is too old; Azure's portal and\n" +
		"# ARM (authenticationType, certificateAuthentication) do without it.\n"
}

// pipe hands the key to az, which takes any argument from its standard input for @-.
// printf is the shell's own: it has no arguments that others could see.
func (v view) pipe() string {
	if v.external.Authentication != model.AuthPSK {
		return ""
	}
	return `printf %s "$PSK" | `
}

// ask has the shell ask for a tunnel's pre-shared key, so that its history does not hold
// it.
func (v view) ask(t tunnel) string {
	if v.external.Authentication != model.AuthPSK {
		return ""
	}
	return fmt.Sprintf("\nread -rsp 'pre-shared key of tunnel %s (sealctl describe --reveal-psk): ' PSK\n: \"${PSK:?was not typed}\"", t.id)
}

// proof is how the two ends know each other, in the words of the Azure CLI.
func (v view) proof() string {
	if v.external.Authentication == model.AuthPSK {
		return `--authentication-type PSK --shared-key @-`
	}
	return "--authentication-type Certificate --certificate-authentication @" + inboundName
}

const inboundName = "circuitseal.json"

// inbound is what the gateway is to take for a proof of who our end is. Of our own chain
// Azure wants the root first, and of the certificate its common name.
func (v view) inbound() []Setting {
	return []Setting{
		{"certificateAuthentication.outboundAuthCertificate", "the URL of the gateway's certificate in Key Vault"},
		{"certificateAuthentication.inboundAuthCertificateSubjectName", v.tunnels[0].ourID},
		{"certificateAuthentication.inboundAuthCertificateChain", fmt.Sprintf("%d certificates, the root first", len(v.authorities))},
	}
}

func (v view) inboundFile() string {
	chain := make([]string, len(v.authorities))
	for i, der := range v.authorities {
		chain[len(chain)-1-i] = `"` + base64.StdEncoding.EncodeToString(der) + `"`
	}
	return fmt.Sprintf(`
# OUTBOUND is the URL of the gateway's own certificate in Key Vault, with its version; the
# gateway reads it by a user-assigned managed identity.
: "${OUTBOUND:?is a URL in Key Vault}"
cat >%s <<EOF
{
  "outboundAuthCertificate": "$OUTBOUND",
  "inboundAuthCertificateSubjectName": "%s",
  "inboundAuthCertificateChain": [
    %s
  ]
}
EOF
`, inboundName, v.tunnels[0].ourID, strings.Join(chain, ",\n    "))
}

// comment puts a mark before each line.
func comment(text string) string {
	var b strings.Builder
	for l := range strings.Lines(text) {
		b.WriteString("# " + l)
	}
	return b.String()
}
