package gateway

import (
	"fmt"
	"strings"
	"time"

	"github.com/circuitseal/circuitseal/controller/model"
	"github.com/circuitseal/circuitseal/controller/profile"
)

// swanctl is a connection in the words of strongSwan's swanctl.conf, which others'
// words are not far from, and as such a file. Our end begins and replaces keys first:
// the gateway's lifetimes are a little longer.
func (v view) swanctl() ([]Setting, string) {
	ike, esp, _, _ := v.policy.LifetimesUnder(v.profile)
	longer := func(d time.Duration) string { return fmt.Sprintf("%ds", int(d.Seconds()*11/10)) }
	proposals, espProposals := strings.Join(profile.Strings(v.profile.IKE), ", "), strings.Join(profile.Strings(v.profile.ESP), ", ")
	localTS, remoteTS := "0.0.0.0/0, ::/0", "0.0.0.0/0, ::/0"
	start, after := "none", "clear"
	if v.external.Selectors() == model.PolicyBased {
		localTS, remoteTS = join(v.theirs, ", "), join(v.ours, ", ")
		// Without a trap a gateway sends in clear what it has no SA for.
		start, after = "trap", "trap"
	}
	auth := "psk"
	if v.external.Authentication == model.AuthCertificate {
		auth = "pubkey"
	}
	settings := []Setting{
		{"version", "2"}, {"proposals", proposals}, {"esp_proposals", espProposals}, {"auth", auth},
		{"local_ts", localTS}, {"remote_ts", remoteTS}, {"rekey_time (IKE)", longer(ike)}, {"rekey_time (ESP)", longer(esp)},
	}
	var b, secrets strings.Builder
	fmt.Fprintf(&b, "# swanctl.conf of the gateway for connection %s.\n%s%s\nconnections {\n", v.key.Name, patience, v.byRoute())
	for _, t := range v.tunnels {
		name := v.key.Customer + "-" + v.key.Name + "-" + t.link
		settings = append(settings,
			Setting{"local_addrs of " + name, t.theirs.String()}, Setting{"remote_addrs of " + name, t.ours.String()},
			Setting{"local.id of " + name, t.theirID}, Setting{"remote.id of " + name, t.ourID})
		fmt.Fprintf(&b, `    %s {
        version = 2
        local_addrs = %s
        remote_addrs = %s
        proposals = %s
        encap = %s
        mobike = no
        fragmentation = yes
        dpd_delay = 10s
        rekey_time = %s
        local {
            auth = %s
            id = %s
        }
        remote {
            auth = %s
            id = %s
%s        }
        children {
            net {
                mode = tunnel
                local_ts = %s
                remote_ts = %s
                esp_proposals = %s
                rekey_time = %s
                replay_window = 1024
                start_action = %s
                dpd_action = %s
                close_action = %s
%s            }
        }
    }
`, name, t.theirs, t.ours, proposals, encap(v.policy), longer(ike), auth, t.theirID, auth, t.ourID, v.cacerts(), localTS, remoteTS, espProposals, longer(esp), start, after, start, v.device(t))
		fmt.Fprintf(&secrets, `    ike-%s {
        id-local = %s
        id-remote = %s
        secret = "%s"
    }
`, name, t.theirID, t.ourID, t.secret)
	}
	b.WriteString("}\n")
	switch {
	case auth == "psk" && v.tunnels[0].secret == "":
		// Any text here would be a key, and everybody's.
		b.WriteString("\n# The pre-shared keys are left out: sealctl describe endpoint --reveal-psk has them.\n")
	case auth == "psk":
		b.WriteString("\nsecrets {\n" + secrets.String() + "}\n")
	default:
		b.WriteString("\n# The gateway's own certificate goes into /etc/swanctl/x509, its key into private.\n")
		for i, der := range v.authorities {
			fmt.Fprintf(&b, "# /etc/swanctl/x509ca/%s is\n%s", authority(i), comment(pems([][]byte{der})))
		}
	}
	return settings, b.String()
}

// patience is what both ends have, so that the other tunnel takes over at both: where two
// have the same selectors, strongSwan sends by one of them while it has an IKE SA.
const patience = `# In strongswan.conf, so that a dead link is found out in 45 seconds, not in three minutes,
# and the other tunnel is used:
# charon {
#     retransmit_tries = 8
#     retransmit_timeout = 1.0
#     retransmit_base = 1.4
#     retransmit_limit = 5
# }
`

// byRoute are the devices and routes of a gateway whose selectors leave the choice to
// them. Without devices strongSwan would take all that leaves the gateway.
func (v view) byRoute() string {
	var b strings.Builder
	if v.external.Selectors() == model.PolicyBased {
		fmt.Fprintf(&b, "# Its policies go when strongSwan does, and then packets leave in clear. Drop them by nft(8):\n"+
			"# table inet %s {\n#     chain out {\n#         type filter hook postrouting priority 0\n", v.key.Customer+"-"+v.key.Name)
		for _, p := range v.ours {
			family := map[bool]string{true: "ip", false: "ip6"}[p.Addr().Is4()]
			fmt.Fprintf(&b, "#         %s daddr %s rt ipsec missing drop\n", family, p)
		}
		b.WriteString("#     }\n# }\n")
		return b.String()
	}
	b.WriteString("# Each tunnel is a device, and routes choose: before this is loaded, and after each boot,\n")
	for i, t := range v.tunnels {
		fmt.Fprintf(&b, "# ip link add cs%[1]d type xfrm dev lo if_id %[1]d && ip link set cs%[1]d up\n", t.number)
		for _, p := range v.ours {
			fmt.Fprintf(&b, "# ip route add %s dev cs%d metric %d\n", p, t.number, 100*(i+1))
		}
	}
	for _, p := range v.ours {
		fmt.Fprintf(&b, "# ip route add unreachable %s metric 4000\n", p)
	}
	b.WriteString("# Without the last of them packets leave in clear where a device is missing. No route goes\n" +
		"# away with its tunnel: unless something of yours sees to that, have trafficSelectors: policy-based.\n")
	return b.String()
}

// device ties a tunnel's ESP SAs to its device.
func (v view) device(t tunnel) string {
	if v.external.Selectors() == model.PolicyBased {
		return ""
	}
	return fmt.Sprintf("                if_id_in = %[1]d\n                if_id_out = %[1]d\n", t.number)
}

// cacerts keeps every other authority that the gateway knows from vouching for us.
func (v view) cacerts() string {
	if v.external.Authentication != model.AuthCertificate {
		return ""
	}
	var files []string
	for i := range v.authorities {
		files = append(files, authority(i))
	}
	return "            cacerts = " + strings.Join(files, ", ") + "\n"
}

// authority is a file of its own for each: of several certificates in one, swanctl
// takes the first.
func authority(i int) string { return fmt.Sprintf("circuitseal-%d.pem", i+1) }

func encap(s *model.EncryptionPolicySpec) string {
	if s.UDPEncapsulation == model.UDPAlways {
		return "yes"
	}
	return "no"
}
