package api

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	v1 "github.com/circuitseal/circuitseal/proto/circuitseal/v1"
)

// callMetrics count the calls that the gate has let in, and those that it has
// not. Labels are procedures and codes: nothing that a caller makes up.
type callMetrics struct {
	answered *prometheus.CounterVec
	took     *prometheus.HistogramVec
	refused  *prometheus.CounterVec
	streams  *prometheus.GaugeVec
}

// newCallMetrics makes them and registers them, where there is a registry.
func newCallMetrics(r prometheus.Registerer) *callMetrics {
	made := promauto.With(r)
	return &callMetrics{
		answered: made.NewCounterVec(prometheus.CounterOpts{
			Name: "circuitseal_controller_calls_total", Help: "Calls that have ended, by procedure and code.",
		}, []string{"procedure", "code"}),
		took: made.NewHistogramVec(prometheus.HistogramOpts{
			Name: "circuitseal_controller_call_duration_seconds", Help: "How long calls took; streams are not among them.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}, []string{"procedure"}),
		refused: made.NewCounterVec(prometheus.CounterOpts{
			Name: "circuitseal_controller_refused_calls_total", Help: "Calls that were refused because of who called or how, by code.",
		}, []string{"code"}),
		streams: made.NewGaugeVec(prometheus.GaugeOpts{
			Name: "circuitseal_controller_open_streams", Help: "Streams that are open, by procedure.",
		}, []string{"procedure"}),
	}
}

func code(err error) string {
	if err == nil {
		return "ok"
	}
	return connect.CodeOf(err).String()
}

// WrapUnary implements connect.Interceptor.
func (m *callMetrics) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		began := time.Now()
		answer, err := next(ctx, r)
		m.answered.WithLabelValues(r.Spec().Procedure, code(err)).Inc()
		m.took.WithLabelValues(r.Spec().Procedure).Observe(time.Since(began).Seconds())
		return answer, err
	}
}

// WrapStreamingHandler implements connect.Interceptor.
func (m *callMetrics) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, c connect.StreamingHandlerConn) error {
		open := m.streams.WithLabelValues(c.Spec().Procedure)
		open.Inc()
		defer open.Dec()
		err := next(ctx, c)
		m.answered.WithLabelValues(c.Spec().Procedure, code(err)).Inc()
		return err
	}
}

// WrapStreamingClient implements connect.Interceptor; there are no clients here.
func (m *callMetrics) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// statusMetrics is what GetStatus says, as metrics. A scrape reads the store.
// Labels are bounded by the documents.
type statusMetrics struct {
	status *status
}

// scrapeTimeout bounds what a scrape may take of the store.
const scrapeTimeout = 10 * time.Second

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("circuitseal_controller_"+name, help, labels, nil)
}

var (
	storeRevisionDesc   = describe("store_revision", "Revision of the newest snapshot of the documents.")
	nodeEnrolledDesc    = describe("node_enrolled", "1 while the node has an identity.", "node")
	nodeConnectedDesc   = describe("node_connected", "1 while the node has a session.", "node")
	nodeEpochDesc       = describe("node_state_epoch", "Epoch of a node's state: wanted of it, acknowledged or applied in full by it.", "node", "stage")
	nodeRevisionDesc    = describe("node_state_revision", "Revision of a node's state: wanted of it, acknowledged or applied in full by it.", "node", "stage")
	nodeReportedDesc    = describe("node_last_report_timestamp_seconds", "When the node's last status was made, by its own clock.", "node")
	nodeProblemsDesc    = describe("node_problems", "How many things are wrong with the node: what sealctl status lists.", "node")
	connectionUpDesc    = describe("connection_tunnels_up", "Tunnels of the connection that both ends say are up.", "customer", "connection")
	connectionTotalDesc = describe("connection_tunnels", "Tunnels that the connection should have.", "customer", "connection")
)

// Describe implements prometheus.Collector.
func (m statusMetrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		storeRevisionDesc, nodeEnrolledDesc, nodeConnectedDesc, nodeEpochDesc, nodeRevisionDesc, nodeReportedDesc,
		nodeProblemsDesc, connectionUpDesc, connectionTotalDesc,
	} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (m statusMetrics) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	answer, err := m.status.GetStatus(ctx, connect.NewRequest(&v1.GetStatusRequest{}))
	if err != nil {
		out <- prometheus.NewInvalidMetric(storeRevisionDesc, err)
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(storeRevisionDesc, float64(answer.Msg.GetRevision()))
	for _, n := range answer.Msg.GetNodes() {
		gauge(nodeEnrolledDesc, truth(n.GetEnrolled()), n.GetNode())
		gauge(nodeConnectedDesc, truth(n.GetConnected()), n.GetNode())
		stages := map[string]*v1.Position{"wanted": n.GetWanted()}
		if s := n.GetStatus(); s != nil {
			stages["acknowledged"], stages["applied"] = s.GetAcknowledged(), s.GetApplied()
			gauge(nodeReportedDesc, float64(s.GetTime().AsTime().UnixMilli())/1e3, n.GetNode())
		}
		gauge(nodeProblemsDesc, float64(len(n.GetFindings())), n.GetNode())
		for stage, p := range stages {
			gauge(nodeEpochDesc, float64(p.GetEpoch()), n.GetNode(), stage)
			gauge(nodeRevisionDesc, float64(p.GetRevision()), n.GetNode(), stage)
		}
	}
	for _, c := range answer.Msg.GetConnections() {
		gauge(connectionUpDesc, float64(c.GetTunnelsUp()), c.GetCustomer(), c.GetConnection())
		gauge(connectionTotalDesc, float64(c.GetTunnelsTotal()), c.GetCustomer(), c.GetConnection())
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
