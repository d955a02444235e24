package controller

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"

	"github.com/circuitseal/circuitseal/controller/pki"
)

// advertisedHost is the host of an address that agents are to be given.
func advertisedHost(address string) (string, error) {
	wrong := fmt.Errorf("--advertise %q: want the address by which agents reach this controller, such as https://controller.example:8443", address)
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.User != nil || u.Path != "" || strings.ContainsAny(address, "?#") {
		return "", wrong
	}
	if err := pki.CheckNames([]string{u.Hostname()}); err != nil {
		return "", fmt.Errorf("%w: %w", wrong, err)
	}
	return u.Hostname(), nil
}

// advertise is by which names and at which address others reach a controller that
// was checked and listens.
func advertise(c Config, listens net.Addr) (names []string, address string) {
	if host, err := advertisedHost(c.Advertise); err == nil {
		return append(slices.Clone(c.Names), host), c.Advertise
	}
	_, port, err := net.SplitHostPort(listens.String())
	if err != nil || len(c.Names) == 0 {
		return c.Names, ""
	}
	return c.Names, "https://" + net.JoinHostPort(c.Names[0], port)
}
