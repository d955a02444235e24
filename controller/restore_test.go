package controller_test

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/circuitseal/circuitseal/controller"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

// copyAll copies a directory as docs/security.md says.
func copyAll(t *testing.T, from, to string) error {
	t.Helper()
	return exec.CommandContext(t.Context(), "cp", "-a", from, to).Run()
}

// A controller from an old backup gives nodes states that are newer than those
// they have, and none of its old tokens is good.
func TestRestoredFromBackup(t *testing.T) {
	t.Parallel()
	dir, backup := t.TempDir()+"/data", t.TempDir()+"/backup"
	r := start(t, dir)
	r.operator().apply(t, samples(t)...)
	cert := r.enrol("nva-1")
	token := r.operator().token(t, "prem-1")
	if err := errors.Join(r.stop(), copyAll(t, dir, backup)); err != nil {
		t.Fatal(err)
	}

	// What happens after the backup is lost with the directory.
	r = start(t, dir)
	for _, name := range []string{"fabrikam", "tailspin", "woodgrove", "litware"} {
		r.operator().apply(t, &v1.Source{Name: "x", Text: "apiVersion: circuitseal.io/v1\nkind: Customer\nmetadata: {name: " + name + "}\nspec: {model: connect-to}\n"})
	}
	a := r.session(t, "nva-1", cert)
	a.report(&v1.NodeStatus{})
	ran := a.next().header.Position
	if err := errors.Join(r.stop(), os.RemoveAll(dir), copyAll(t, backup, dir)); err != nil {
		t.Fatal(err)
	}

	r = startWith(t, controller.Config{DataDir: dir, Restored: true})
	a = r.session(t, "nva-1", cert)
	a.report(&v1.NodeStatus{})
	if got := a.next().header.Position; got.Compare(ran) <= 0 || got.Epoch <= ran.Epoch {
		t.Errorf("the state after the restore is %s; the node ran %s and refuses it", got, ran)
	}
	_, request := newKey(t)
	_, err := r.agents(nil).Enrol(t.Context(), connect.NewRequest(&v1.EnrolRequest{Token: token, CertificateRequest: request}))
	if connect.CodeOf(err) != connect.CodeUnauthenticated || !strings.Contains(err.Error(), "restored from a backup") {
		t.Errorf("a token of the backup: %v", err)
	}
	if log := r.log.String(); !strings.Contains(log, "raised the epoch") || !strings.Contains(log, "voided_tokens=1") {
		t.Errorf("the log does not say what was done:\n%s", log)
	}
}
