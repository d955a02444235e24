package controller

import (
	"net"
	"slices"
	"testing"
)

func TestAdvertise(t *testing.T) {
	listens := &net.TCPAddr{IP: net.IPv6unspecified, Port: 9443}
	for _, tt := range []struct {
		name    string
		config  Config
		names   []string
		address string
	}{
		{"nothing is known", Config{}, nil, ""},
		{"a name", Config{Names: []string{"seal.example", "10.0.0.1"}}, []string{"seal.example", "10.0.0.1"}, "https://seal.example:9443"},
		{"an IPv6 address", Config{Names: []string{"fd00::1"}}, []string{"fd00::1"}, "https://[fd00::1]:9443"},
		{"behind another port", Config{Names: []string{"a"}, Advertise: "https://seal.example:443"}, []string{"a", "seal.example"}, "https://seal.example:443"},
		{"without a port", Config{Advertise: "https://seal.example"}, []string{"seal.example"}, "https://seal.example"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.config.DataDir, tt.config.SecretKeyFile, tt.config.Listen = "d", "k", ":9443"
			if err := tt.config.Check(); err != nil {
				t.Fatal(err)
			}
			names, address := advertise(tt.config, listens)
			if !slices.Equal(names, tt.names) || address != tt.address {
				t.Errorf("got %v and %q, want %v and %q", names, address, tt.names, tt.address)
			}
		})
	}
}
