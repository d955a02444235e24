package scenario

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/circuitseal/circuitseal/testlab/rig"
)

func TestNegotiationJudges(t *testing.T) {
	const ok = `{"id":"t","phase":"TUNNEL_PHASE_UP","presharedKeyUsed":"7",
		"associations":[{"ike":"i","esp":"e","pfs":"ecp384","ppk":true}]}`
	want := negotiation{ike: "i", esp: "e", pfs: "ecp384", ppk: true, since: map[string]uint64{"t": 6}}
	tests := []struct {
		name, old, new, says string
	}{
		{"as wanted", "", "", ""},
		{"down", "PHASE_UP", "PHASE_DOWN", "is TUNNEL_PHASE_DOWN"},
		{"on its way out", `"id"`, `"retiring":true,"id"`, "retiring true"},
		{"with a problem", `"id"`, `"problem":"no","id"`, "no"},
		{"without an SA", `{"ike":"i","esp":"e","pfs":"ecp384","ppk":true}`, "", "has 0 SAs"},
		{"with two SAs", `"associations":[`, `"associations":[{"ike":"i"},`, "has 2 SAs"},
		{"another IKE suite", `"ike":"i"`, `"ike":"j"`, "has negotiated j and e"},
		{"another ESP suite", `"esp":"e"`, `"esp":"f"`, "has negotiated i and f"},
		{"not rekeyed", `"pfs":"ecp384",`, "", `has PFS ""`},
		{"rekeyed by another group", "ecp384", "ecp256", `has PFS "ecp256"`},
		{"without a PPK", `"ppk":true`, `"ppk":false`, "has a PPK mixed in: false"},
		{"weak", `"ppk"`, `"weakness":"bad","ppk"`, "is weak: bad"},
		{"an unknown generation", `"presharedKeyUsed":"7",`, "", "does not say which generation"},
		{"the same generation", `"7"`, `"6"`, "uses generation 6"},
	}
	for _, tt := range tests {
		var s rig.TunnelStatus
		if err := json.Unmarshal([]byte(strings.Replace(ok, tt.old, tt.new, 1)), &s); err != nil {
			t.Fatal(err)
		}
		used, err := want.judge([]rig.TunnelStatus{s})
		if tt.says == "" {
			if err != nil || used["t"] != 7 {
				t.Errorf("%s: %v, generations %v", tt.name, err, used)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: error %v, want %q in it", tt.name, err, tt.says)
		}
	}
	first := negotiation{ike: "i", esp: "e", pfs: "none"}
	var s rig.TunnelStatus
	if err := json.Unmarshal([]byte(`{"phase":"TUNNEL_PHASE_UP","associations":[{"ike":"i","esp":"e"}]}`), &s); err != nil {
		t.Fatal(err)
	}
	if _, err := first.judge([]rig.TunnelStatus{s}); err != nil {
		t.Errorf("a first ESP SA: %v", err)
	}
	if _, err := first.judge(nil); err == nil {
		t.Error("an appliance without tunnels has negotiated all that is wanted")
	}
}
