package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
)

func profilesCommand(o *options) *cobra.Command {
	var customer string
	cmd := &cobra.Command{
		Use:   "profiles [[CUSTOMER/]NAME]",
		Short: "Show the crypto profiles and where their choices come from",
		Long: `Show the crypto profiles that an EncryptionPolicy may name: the built-in ones, and
customers' own (CryptoProfile documents). -o wide adds what each is for and its best
proposals. With a name, each proposal is shown with its source, and what a FIPS build would need. A source
that is marked as recalled was not compared with the text itself: do that before claiming
to conform.`,
		Example: `  sealctl profiles
  sealctl profiles cnsa1
  sealctl profiles contoso/strict
  sealctl profiles --customer contoso -o json`,
		Args: arguments(0, 1, "at most the name of a profile, such as cnsa1 or contoso/strict"),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := &v1.ListProfilesRequest{Customer: customer}
			if len(args) > 0 {
				r, err := parseReference([]string{"cryptoprofile", args[0]}, customer)
				if err != nil {
					return err
				}
				q.Customer, q.Name = r.customer, r.name
			}
			c, err := o.connect()
			if err != nil {
				return err
			}
			defer c.close()
			service := circuitsealv1connect.NewProfileServiceClient(c.client, c.server, limits())
			answer, err := call(cmd.Context(), o, service.ListProfiles, q)
			if err != nil {
				return usage(err)
			}
			switch {
			case o.structured():
				return o.print(cmd.OutOrStdout(), answer)
			case len(args) > 0:
				return printProfiles(cmd.OutOrStdout(), o, answer.GetProfiles())
			}
			return profileTable(answer.GetProfiles(), o.wide(), o.palette(cmd.OutOrStdout())).print(cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&customer, "customer", "", "the built-in ones and this `customer`'s only")
	return formats(cmd, "wide", "json", "yaml")
}

func profileTable(profiles []*v1.Profile, wide bool, colours palette) *table {
	head := []string{"PROFILE", "OF", "WIREGUARD", "PPK", "POST-QUANTUM"}
	if wide {
		head = append(head, "FOR", "IKE", "ESP")
	}
	t := newTable(head...).paint(colours)
	for _, p := range profiles {
		of := p.GetCustomer()
		if of == "" {
			of = "built-in"
		}
		if p.GetDefault() {
			of += ", default"
		}
		row := []string{p.GetName(), of, yes(p.GetWireguard()), yes(p.GetPpkRequired()), yes(p.GetPostQuantum())}
		if wide {
			row = append(row, p.GetSummary(), first(p.GetIke()), first(p.GetEsp()))
		}
		t.add(row...)
	}
	return t
}

// first is the best of some proposals, and how many more there are.
func first(proposals []*v1.Proposal) string {
	switch n := len(proposals); n {
	case 0:
		return ""
	case 1:
		return proposals[0].GetProposal()
	default:
		return fmt.Sprintf("%s and %d more", proposals[0].GetProposal(), n-1)
	}
}

// printProfiles prints profiles whole.
func printProfiles(w io.Writer, o *options, profiles []*v1.Profile) error {
	colours := o.palette(w)
	var b strings.Builder
	for i, p := range profiles {
		if i > 0 {
			b.WriteByte('\n')
		}
		name := "cryptoprofile " + p.GetName()
		if p.GetCustomer() != "" {
			name = "cryptoprofile " + p.GetCustomer() + "/" + p.GetName()
		}
		b.WriteString(colours.paint(toneHead, line(name)) + "\n")
		facts := newTable("WHAT", "VALUE", "SOURCE").paint(colours)
		facts.add("for", p.GetSummary(), provenance(p.GetSource()))
		for _, x := range p.GetIke() {
			facts.add("IKE", x.GetProposal(), provenance(x.GetSource()))
		}
		for _, x := range p.GetEsp() {
			facts.add("ESP", x.GetProposal(), provenance(x.GetSource()))
		}
		if p.GetMaxIke() != nil || p.GetMaxEsp() != nil {
			facts.add("lives at most", fmt.Sprintf("IKE %s, ESP %s", p.GetMaxIke().AsDuration(), p.GetMaxEsp().AsDuration()), provenance(p.GetLifetimes()))
		}
		facts.add("lives", fmt.Sprintf("IKE %s, ESP %s where a policy says nothing", p.GetDefaultIke().AsDuration(), p.GetDefaultEsp().AsDuration()), "")
		facts.add("certificates", p.GetCertificates(), provenance(p.GetCertificatesSource()))
		facts.add("PPK (RFC 8784)", map[bool]string{true: "required", false: "as the policy says"}[p.GetPpkRequired()], "")
		if err := facts.print(&b); err != nil {
			return err
		}
		for _, x := range []struct{ what, text string }{
			{"WIREGUARD", map[bool]string{true: "may stand in: ", false: "is refused: "}[p.GetWireguard()] + p.GetWireguardReason()}, {"FIPS", p.GetFips()},
		} {
			b.WriteString("\n" + colours.paint(toneHead, x.what) + "\n")
			paragraph(&b, "  ", line(x.text))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func provenance(s *v1.Provenance) string {
	if s.GetRecalled() {
		return s.GetText() + " (recalled)"
	}
	return s.GetText()
}

// associationTable is the evidence of IPsec tunnels: what was negotiated, one row for
// each SA.
type associationTable struct{ *table }

func newAssociationTable(p palette) associationTable {
	return associationTable{newTable("TUNNEL", "NODE", "BACKEND", "IKE", "ESP", "PFS", "ESN", "PPK", "UDP", "PEER", "CERTIFICATES", "AGE IKE/ESP", "PACKETS IN/OUT", "WEAKNESS").paint(p)}
}

func (t associationTable) add(n *v1.NodeReport, s *v1.TunnelStatus) {
	for _, a := range s.GetAssociations() {
		pfs := a.GetPfs()
		if pfs == "" {
			// RFC 7296, section 1.2: the first ESP SA's keys are the IKE SA's.
			pfs = "of IKE"
		}
		var certificates []string
		for _, c := range a.GetPeerCertificates() {
			certificates = append(certificates, c[:min(16, len(c))])
		}
		age := func(d time.Duration) string { return d.Round(time.Second).String() }
		t.table.add(s.GetId(), n.GetNode(), a.GetBackend(), a.GetIke(), a.GetEsp(), pfs, yes(a.GetEsn()), yes(a.GetPpk()), yes(a.GetUdpEncapsulated()),
			a.GetRemoteId(), strings.Join(certificates, " "), age(a.GetIkeAge().AsDuration())+"/"+age(a.GetEspAge().AsDuration()),
			fmt.Sprintf("%d/%d", a.GetReceivedPackets(), a.GetSentPackets()), a.GetWeakness())
		t.mark(13, toneBad)
	}
}

// charonTable is what a node's strongSwan says of itself; empty where there is none.
func charonTable(n *v1.NodeReport, colours palette) *table {
	t := newTable("STRONGSWAN", "BACKEND", "ALGORITHMS", "PROBLEM").paint(colours)
	if c := n.GetStatus().GetCharon(); c != nil {
		t.add(c.GetVersion(), c.GetBackend(), strings.Join(c.GetAlgorithms(), " "), c.GetProblem())
		t.mark(3, toneBad)
	}
	return t
}
