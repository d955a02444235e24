package main

import (
	"errors"
	"io"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// On a terminal who cuts traffic is told what, and asked; anything but yes is no.
func TestConfirm(t *testing.T) {
	dir := start(t)
	must(t, "", "apply", "-f", samples)
	enrol(t, dir, "prem-1")
	eventually(t, "prem-1  yes       yes", "status")
	for _, tt := range []struct {
		name, types string
		args        []string
		code        int
		says        []string
	}{
		{"no to a delete", "no\n", []string{"delete", "connection/contoso/hq-weu"}, exitFailed, []string{"this changes what is on the wire:", "node prem-1 loses ", "Go on? Type yes: ", "nothing was done"}},
		{"nothing to a revocation", "\n", []string{"node", "revoke", "prem-1"}, exitFailed, []string{
			"revoking node prem-1 ends its identity and cuts:\r\n  node prem-1: its agent is connected now\r\n  connection contoso/hq-weu to nva-1: 2 tunnels, of which 0 up now", "nothing was done"}},
		{"yes to a revocation", "yes\n", []string{"node", "revoke", "prem-1", "--reason", "lost"}, exitOK, []string{"Go on? Type yes: ", "node prem-1 is revoked since"}},
		{"yes to a delete", "yes\n", []string{"delete", "connection", "contoso/hq-weu"}, exitOK, []string{"connection/contoso/hq-weu deleted"}},
		{"nothing to be asked", "", []string{"delete", "customer", "contoso"}, exitFailed, []string{"is in use by"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			master, slave := terminal(t)
			if _, err := master.WriteString(tt.types); err != nil {
				t.Fatal(err)
			}
			if code := run(t.Context(), tt.args, slave, slave, slave); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if err := slave.Close(); err != nil {
				t.Fatal(err)
			}
			// What was written is read until EIO: nobody has the other end any more.
			b, err := io.ReadAll(master)
			if !errors.Is(err, unix.EIO) {
				t.Fatal(err)
			}
			for _, s := range tt.says {
				if !strings.Contains(string(b), s) {
					t.Errorf("it does not say %q but\n%s", s, b)
				}
			}
		})
	}
}
