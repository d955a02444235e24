package controller_test

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/circuitseal/circuitseal/controller"
	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
	"github.com/circuitseal/circuitseal/proto/circuitseal/v1/circuitsealv1connect"
)

// scrape reads a controller's metrics as Prometheus does.
func (r *running) scrape() string {
	r.t.Helper()
	url := regexp.MustCompile(`url=(http://\S+)`).FindStringSubmatch(r.log.String())
	if url == nil {
		r.t.Fatal("the log does not say where metrics are")
	}
	a, err := http.Get(url[1])
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = a.Body.Close() }()
	b, err := io.ReadAll(a.Body)
	if err != nil || a.StatusCode != http.StatusOK {
		r.t.Fatalf("scrape: %s, %v: %.500s", a.Status, err, b)
	}
	return string(b)
}

func TestMetrics(t *testing.T) {
	r := startWith(t, controller.Config{DataDir: t.TempDir() + "/data", MetricsListen: "127.0.0.1:0", Version: "v7"})
	o := r.operator()
	o.apply(t, samples(t)...)
	token := o.token(t, "prem-1")
	if _, err := o.policy.Apply(t.Context(), connect.NewRequest(&v1.ApplyRequest{Sources: []*v1.Source{{Name: "x", Text: "nonsense"}}})); err == nil {
		t.Fatal("nonsense was applied")
	}
	stranger := circuitsealv1connect.NewPolicyServiceClient(r.client(nil), r.url)
	if _, err := stranger.Get(t.Context(), connect.NewRequest(&v1.GetRequest{Kind: "all"})); err == nil {
		t.Fatal("a stranger has read the policy")
	}

	eventually(t, "states are compiled", func() bool {
		return strings.Contains(r.scrape(), `circuitseal_controller_node_state_epoch{node="prem-1",stage="wanted"} 1`)
	})
	text := r.scrape()
	root := regexp.MustCompile(`url=(http://\S+)/metrics`).FindStringSubmatch(r.log.String())
	if a, err := http.Get(root[1] + "/"); err != nil || a.StatusCode != http.StatusOK {
		t.Errorf("at /: %v, %v", a, err)
	} else if b, err := io.ReadAll(a.Body); err != nil || !strings.Contains(string(b), `href="/metrics"`) {
		t.Errorf("at /: %s, %v", b, err)
	}
	for _, want := range []string{
		`circuitseal_controller_info{version="v7"} 1`,
		`circuitseal_controller_calls_total{code="ok",procedure="/circuitseal.v1.PolicyService/Apply"} 1`,
		`circuitseal_controller_calls_total{code="invalid_argument",procedure="/circuitseal.v1.PolicyService/Apply"} 1`,
		`circuitseal_controller_call_duration_seconds_count{procedure="/circuitseal.v1.PolicyService/Apply"} 2`,
		`circuitseal_controller_refused_calls_total{code="unauthenticated"} 1`,
		`circuitseal_controller_node_enrolled{node="prem-1"} 0`,
		`circuitseal_controller_node_connected{node="prem-1"} 0`,
		`circuitseal_controller_node_state_epoch{node="prem-1",stage="wanted"} 1`,
		`circuitseal_controller_connection_tunnels{connection="hq-weu",customer="contoso"} 2`,
		`circuitseal_controller_connection_tunnels_up{connection="hq-weu",customer="contoso"} 0`,
		`circuitseal_controller_changed_states_total 2`,
		"go_goroutines", "process_resident_memory_bytes",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing in\n%s", want, grepped(text, "circuitseal_"))
		}
	}
	// Pre-shared keys follow the documents, in a snapshot of their own or not.
	if !regexp.MustCompile(`(?m)^circuitseal_controller_compiled_nodes_total [24]$`).MatchString(text) {
		t.Errorf("other nodes were compiled than those two, once or twice:\n%s", grepped(text, "circuitseal_controller_compiled"))
	}
	if strings.Contains(text, token) {
		t.Error("a token is in the metrics")
	}
	page, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (circuitseal_\S+)`).FindAllStringSubmatch(text, -1) {
		if !strings.Contains(string(page), "`"+m[1]+"`") {
			t.Errorf("docs/operations.md does not know %s", m[1])
		}
	}
	problems, err := promlint.New(bytes.NewBufferString(text)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("conventions: %v, %v", problems, err)
	}
}

func grepped(text, what string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, what) {
			b.WriteString(line)
		}
	}
	return b.String()
}
