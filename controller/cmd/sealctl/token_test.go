package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/circuitseal/circuitseal/controller"
)

// What is printed works on another host: an address that agents reach.
func TestAgentsAddress(t *testing.T) {
	for _, tt := range []struct{ advertised, server, want string }{
		{"", "https://seal.example:8443", "https://seal.example:8443"},
		{"https://a.example:1", "https://seal.example:8443", "https://a.example:1"},
		{"https://a.example:1", "https://localhost:8443", "https://a.example:1"},
		{"", "https://localhost:8443", "https://CONTROLLER:8443"},
		{"", "https://127.0.0.2:8443", "https://CONTROLLER:8443"},
		{"", "https://[::1]:8443", "https://CONTROLLER:8443"},
	} {
		got, note := agentsAddress(tt.advertised, tt.server)
		if got != tt.want || (note != "") != strings.Contains(got, "CONTROLLER") {
			t.Errorf("%q at %q: got %q and %q, want %q", tt.advertised, tt.server, got, note, tt.want)
		}
	}
}

// A controller that was told says where agents reach it, and serves by that name.
func TestTokenSaysTheControllersAddress(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	address := serve(t, dir, func(c *controller.Config) { c.Advertise = "https://seal.example:443" })
	t.Setenv("SEALCTL_SERVER", "https://"+address)
	t.Setenv("SEALCTL_IDENTITY", dir+"/admin/identity.pem")
	t.Setenv("SEALCTL_ROOT", dir+"/admin/root.pem")
	noConfiguration(t)
	must(t, "", "apply", "-f", samples)
	_, _, stderr := sealctl(t, "", "token", "create", "prem-1")
	if !strings.Contains(stderr, "circuitseal-agent enroll --controller https://seal.example:443 --root-pin sha256:") {
		t.Errorf("it prints\n%s", stderr)
	}
	if got := must(t, "", "token", "create", "prem-1", "-o", "json"); !strings.Contains(got, `"controller": "https://seal.example:443"`) {
		t.Errorf("as JSON\n%s", got)
	}
}
