package store

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/config"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3compactor"
	"go.etcd.io/etcd/server/v3/features"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/crypto/bcrypt"
)

const (
	memberName = "circuitseal"
	// peerURL names the only member. Nobody listens there and nobody dials it;
	// "localhost" is the one name that etcd does not ask DNS about.
	peerURL = "http://localhost:1"

	// maxRequestBytes bounds one transaction: twice what one apply may carry
	// as text.
	maxRequestBytes = 8 << 20
	// maxTxnOps is out of the way: maxRequestBytes is the limit that counts.
	maxTxnOps = 100_000
	// defaultQuota bounds the file that holds the data, which is mapped into
	// memory: address space, not resident memory.
	defaultQuota = 2 << 30
	// keptRevisions is how much history outlives the compaction that runs
	// every five minutes. Nothing here reads history.
	keptRevisions = 1000
	// segmentBytes is what etcd preallocates on disk for a log segment, of
	// which it always has two; it takes 64 MB where it is not told.
	segmentBytes = 16 << 20
)

// setSegmentSize is once a process, because etcd keeps it in a variable of a
// package that its goroutines read.
var setSegmentSize = sync.OnceFunc(func() { wal.SegmentSizeBytes = segmentBytes })

// death is how etcd's logger ends a part of etcd that cannot go on: where it
// would end the process, or panic in a goroutine of its own, that goroutine
// ends, and done is closed once err says why. Nothing waits for such an engine.
type death struct {
	once sync.Once
	done chan struct{}
	err  error
}

// OnWrite implements zapcore.CheckWriteHook.
func (d *death) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	d.once.Do(func() {
		enc := zapcore.NewMapObjectEncoder()
		for _, f := range fields {
			f.AddTo(enc)
		}
		text := []string{e.Message}
		for _, key := range slices.Sorted(maps.Keys(enc.Fields)) {
			text = append(text, fmt.Sprintf("%s: %v", key, enc.Fields[key]))
		}
		d.err = fmt.Errorf("%w: %s", ErrDamaged, strings.Join(text, ", "))
		close(d.done)
	})
	runtime.Goexit()
}

// startEngine starts an etcd server of one member and waits until it serves.
// embed.StartEtcd would listen for peers and clients (on a unix socket that
// turns into an abstract one without permissions), so the server is made
// without it: no listener of any kind exists.
func startEngine(ctx context.Context, c Config, dir string, quota int64, died *death) (*etcdserver.EtcdServer, *clientv3.Client, error) {
	setSegmentSize()
	urls, err := types.NewURLs([]string{peerURL})
	if err != nil {
		return nil, nil, fmt.Errorf("name the member of the store: %w", err)
	}
	lg := zap.New(slogCore{log: c.Log}, zap.WithPanicHook(died), zap.WithFatalHook(died))
	server, err := newServer(died, config.ServerConfig{
		Name:                memberName,
		PeerURLs:            urls,
		ClientURLs:          urls,
		InitialPeerURLsMap:  types.URLsMap{memberName: urls},
		InitialClusterToken: memberName,
		NewCluster:          true,
		DataDir:             dir,
		MaxSnapFiles:        2,
		MaxWALFiles:         2,
		// The log is replayed from the last snapshot at start.
		SnapshotCount: 1000,
		// There is no follower that could lag behind; entries kept for one
		// would stay in memory.
		SnapshotCatchUpEntries: 1,
		// A member that is alone elects itself after two ticks.
		TickMs:                            100,
		ElectionTicks:                     2,
		InitialElectionTickAdvance:        true,
		PreVote:                           true,
		StrictReconfigCheck:               true,
		AutoCompactionMode:                v3compactor.ModeRevision,
		AutoCompactionRetention:           keptRevisions,
		QuotaBackendBytes:                 quota,
		MaxTxnOps:                         maxTxnOps,
		MaxRequestBytes:                   maxRequestBytes,
		WarningApplyDuration:              time.Second,
		WarningUnaryRequestDuration:       time.Second,
		BootstrapDefragThresholdMegabytes: 64,
		// No user exists; a cost of 0 would be warned of.
		BcryptCost:        uint(bcrypt.DefaultCost),
		MaxLearners:       membership.DefaultMaxLearners,
		V2Deprecation:     config.V2DeprDefault,
		Metrics:           "basic",
		ServerFeatureGate: features.NewDefaultServerFeatureGate(memberName, lg),
		Logger:            lg,
	})
	if err != nil {
		return nil, nil, fmt.Errorf("start store in %s: %w", c.Dir, err)
	}
	server.Start()
	client := v3client.New(server)
	select {
	case <-server.ReadyNotify():
		return server, client, nil
	case <-died.done:
		return server, client, fmt.Errorf("start store in %s: %w", c.Dir, died.err)
	case <-server.StopNotify():
		return server, client, fmt.Errorf("start store in %s: it stopped by itself", c.Dir)
	case <-ctx.Done():
		return server, client, fmt.Errorf("start store in %s: %w", c.Dir, context.Cause(ctx))
	}
}

// newServer is etcdserver.NewServer, which does not return where etcd dies in it.
func newServer(died *death, c config.ServerConfig) (*etcdserver.EtcdServer, error) {
	type result struct {
		server *etcdserver.EtcdServer
		err    error
	}
	made := make(chan result, 1)
	go func() {
		defer func() {
			// Some damage etcd does not find and trips over.
			if p := recover(); p != nil {
				made <- result{err: fmt.Errorf("%w: etcd cannot read them: %v", ErrDamaged, p)}
			}
		}()
		server, err := etcdserver.NewServer(c)
		made <- result{server, err}
	}()
	select {
	case r := <-made:
		return r.server, r.err
	case <-died.done:
		return nil, died.err
	}
}

// reclaim takes a store that has reached its quota back into use: it drops all
// history, which nothing reads, and only then lifts the alarm that refuses
// writes. Without a listener there is no other way to do it.
func (s *Store) reclaim(ctx context.Context) error {
	alarms, err := s.client.AlarmList(ctx)
	if err != nil {
		return fmt.Errorf("read alarms of the store: %w", err)
	}
	for _, a := range alarms.Alarms {
		if a.Alarm != etcdserverpb.AlarmType_NOSPACE {
			return fmt.Errorf("%w: the store reports %s", ErrDamaged, a.Alarm)
		}
		r, err := s.client.Get(ctx, epochKey)
		if err != nil {
			return fmt.Errorf("make room in the store: %w", err)
		}
		if _, err := s.client.Compact(ctx, r.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
			return fmt.Errorf("make room in the store: drop history: %w", err)
		}
		// Not by the client: without gRPC's health service that one panics.
		if err := s.server.Backend().Defrag(); err != nil {
			return fmt.Errorf("make room in the store: %w", err)
		}
		if _, err := s.client.AlarmDisarm(ctx, (*clientv3.AlarmMember)(a)); err != nil {
			return fmt.Errorf("make room in the store: lift the alarm: %w", err)
		}
		s.log.Warn("store was full; its history was dropped")
	}
	return nil
}
