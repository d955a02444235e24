package store

import (
	"bytes"
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/circuitseal/circuitseal/controller/model"
)

// Token is an enrolment token as it is kept: its secret only as a hash.
type Token struct {
	// ID finds the token; it is no secret. 8 to 64 characters a-z and 0-9.
	ID string
	// Hash is the SHA-256 of a secret of 256 random bits, which needs neither
	// salt nor stretching.
	Hash [32]byte
	// Node is the only node that the token enrols.
	Node    string
	Expires time.Time
}

// Redemption is one attempt to use a token.
type Redemption struct {
	ID   string
	Hash [32]byte
	// SPKI is the SHA-256 of the key (SubjectPublicKeyInfo) that wants a
	// certificate: who asks again with the same one gets the same answer.
	SPKI [32]byte
	// Node, when set, is the node that the token has to be for.
	Node string
	Now  time.Time
}

// expiredKept is how long an expired token is remembered, so that whoever
// brings it is told what is wrong with it.
const expiredKept = 24 * time.Hour

// collectEach is how many tokens are made for each time that all are looked at.
const collectEach = 64

var tokenID = regexp.MustCompile(`^[a-z0-9]{8,64}$`)

// tokenRecord is the stored form.
type tokenRecord struct {
	Node     string          `json:"node"`
	Hash     []byte          `json:"hash"`
	Expires  time.Time       `json:"expires"`
	Redeemed *redeemedRecord `json:"redeemed,omitempty"`
}

type redeemedRecord struct {
	SPKI []byte `json:"spki"`
}

// PutToken keeps a new token and voids the node's older unused one. Now and then
// it also forgets tokens whose time was over a day ago, and voided ones.
// ErrUnknownNode when there is no such node.
func (s *Store) PutToken(ctx context.Context, t Token) error {
	if err := checkNames("node", t.Node, 1); err != nil {
		return fmt.Errorf("write enrolment token: %w", err)
	}
	if !tokenID.MatchString(t.ID) {
		return fmt.Errorf("write enrolment token of node %s: malformed id", t.Node)
	}
	value, err := json.Marshal(tokenRecord{Node: t.Node, Hash: t.Hash[:], Expires: t.Expires.UTC()})
	if err != nil {
		return fmt.Errorf("write enrolment token of node %s: %w", t.Node, err)
	}
	r, err := s.txn(ctx,
		[]clientv3.Cmp{exists(nodeKey(t.Node)), absent(tokensRoot + t.ID)},
		[]clientv3.Op{
			clientv3.OpPut(tokensRoot+t.ID, string(value)),
			clientv3.OpPut(redeemRoot+t.Node, t.ID),
		},
		[]clientv3.Op{clientv3.OpGet(nodeKey(t.Node), clientv3.WithCountOnly())})
	switch {
	case err != nil:
		return fmt.Errorf("write enrolment token of node %s: %w", t.Node, err)
	case !r.Succeeded && r.Responses[0].GetResponseRange().Count == 0:
		return fmt.Errorf("write enrolment token of node %s: %w", t.Node, ErrUnknownNode)
	case !r.Succeeded:
		return fmt.Errorf("write enrolment token of node %s: id %s is taken", t.Node, t.ID)
	}
	if s.tokens.Add(1)%collectEach != 1 {
		return nil
	}
	if err := s.collect(ctx, time.Now()); err != nil {
		// The token is written and good; what was not collected is next time.
		s.log.Warn("old enrolment tokens were not removed", "error", err)
	}
	return nil
}

// collect forgets what can no longer be redeemed.
func (s *Store) collect(ctx context.Context, now time.Time) error {
	r, err := s.txn(ctx, nil, []clientv3.Op{
		clientv3.OpGet(tokensRoot, clientv3.WithPrefix()),
		clientv3.OpGet(redeemRoot, clientv3.WithPrefix()),
	}, nil)
	if err != nil {
		return err
	}
	live := map[string]bool{}
	for _, kv := range r.Responses[1].GetResponseRange().Kvs {
		live[string(kv.Value)] = true
	}
	var errs []error
	for _, kv := range r.Responses[0].GetResponseRange().Kvs {
		var t tokenRecord
		if err := json.Unmarshal(kv.Value, &t); err != nil {
			errs = append(errs, fmt.Errorf("decode store key %q: %w", kv.Key, err))
			continue
		}
		id := strings.TrimPrefix(string(kv.Key), tokensRoot)
		voided := t.Redeemed == nil && !live[id]
		if !voided && now.Before(t.Expires.Add(expiredKept)) {
			continue
		}
		pointer := redeemRoot + t.Node
		_, err := s.txn(ctx,
			[]clientv3.Cmp{unchanged(string(kv.Key), kv.ModRevision)},
			[]clientv3.Op{
				clientv3.OpDelete(string(kv.Key)),
				clientv3.OpTxn(
					[]clientv3.Cmp{clientv3.Compare(clientv3.Value(pointer), "=", id)},
					[]clientv3.Op{clientv3.OpDelete(pointer)}, nil),
			}, nil)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Redeem exchanges a token for what issue makes for the token's node, and keeps
// the enrolment, in one transaction: of all keys that try at the same moment
// exactly one wins, the others get ErrTokenUsed. The winner's key may ask again
// while the token lives (its answer may have been lost) and gets the newest
// certificate over that key. Else ErrTokenUnknown, ErrTokenExpired, ErrRevoked for a
// key that was revoked, or ErrOtherNode, with which comes the node that the token
// is for; none of these uses the token up. issue is called only once the token was
// found good; what it returns is worth nothing unless Redeem returns it.
func (s *Store) Redeem(ctx context.Context, q Redemption, issue func(node string) (Issued, error)) (node string, _ Issued, err error) {
	if !tokenID.MatchString(q.ID) {
		return "", Issued{}, fmt.Errorf("redeem enrolment token: %w", ErrTokenUnknown)
	}
	for {
		node, got, done, err := s.tryRedeem(ctx, q, issue)
		if err != nil {
			return node, Issued{}, fmt.Errorf("redeem enrolment token %s: %w", q.ID, err)
		}
		if done {
			return node, got, nil
		}
		// The token changed between look and leap; look again.
	}
}

// counts reports whether an unused token is the one of its node that counts. It
// is false without an error where the token has changed since the revision.
func (s *Store) counts(ctx context.Context, node, id string, revision int64) (bool, error) {
	r, err := s.txn(ctx, nil, []clientv3.Op{clientv3.OpGet(redeemRoot + node), clientv3.OpGet(tokensRoot+id, clientv3.WithKeysOnly())}, nil)
	if err != nil {
		return false, err
	}
	pointer, token := r.Responses[0].GetResponseRange().Kvs, r.Responses[1].GetResponseRange().Kvs
	switch {
	case len(pointer) == 1 && string(pointer[0].Value) == id:
		return true, nil
	case len(token) == 1 && token[0].ModRevision == revision:
		return false, ErrTokenUnknown
	}
	return false, nil
}

func (s *Store) tryRedeem(ctx context.Context, q Redemption, issue func(string) (Issued, error)) (string, Issued, bool, error) {
	var none Issued
	key := tokensRoot + q.ID
	r, err := s.get(ctx, key)
	if err != nil {
		return "", none, false, err
	}
	if len(r.Kvs) == 0 {
		return "", none, false, ErrTokenUnknown
	}
	var t tokenRecord
	if err := json.Unmarshal(r.Kvs[0].Value, &t); err != nil {
		return "", none, false, fmt.Errorf("decode: %w", err)
	}
	switch {
	case subtle.ConstantTimeCompare(t.Hash, q.Hash[:]) != 1:
		return "", none, false, ErrTokenUnknown
	case t.Redeemed != nil && !bytes.Equal(t.Redeemed.SPKI, q.SPKI[:]):
		return "", none, false, ErrTokenUsed
	case !q.Now.Before(t.Expires):
		return "", none, false, ErrTokenExpired
	case q.Node != "" && q.Node != t.Node:
		return t.Node, none, false, ErrOtherNode
	case t.Redeemed != nil:
		got, err := s.repeat(ctx, t)
		return t.Node, got, err == nil, err
	}
	counts, err := s.counts(ctx, t.Node, q.ID, r.Kvs[0].ModRevision)
	if err != nil || !counts {
		return "", none, false, err
	}
	got, err := issue(t.Node)
	if err != nil {
		return "", none, false, fmt.Errorf("issue certificate of node %s: %w", t.Node, err)
	}
	got.Key = model.FingerprintOf(q.SPKI)
	t.Redeemed = &redeemedRecord{SPKI: q.SPKI[:]}
	token, err := json.Marshal(t)
	if err != nil {
		return "", none, false, fmt.Errorf("encode: %w", err)
	}
	enrolment, err := json.Marshal(got)
	if err != nil {
		return "", none, false, fmt.Errorf("encode: %w", err)
	}
	pointer, revoked := redeemRoot+t.Node, revokedRoot+string(got.Key)
	done, err := s.txn(ctx,
		[]clientv3.Cmp{
			unchanged(key, r.Kvs[0].ModRevision),
			clientv3.Compare(clientv3.Value(pointer), "=", q.ID),
			exists(nodeKey(t.Node)),
			absent(revoked),
		},
		[]clientv3.Op{
			clientv3.OpPut(key, string(token)),
			clientv3.OpDelete(pointer),
			clientv3.OpPut(enrolmentRoot+t.Node, string(enrolment)),
			clientv3.OpPut(changedKey, ""),
		},
		[]clientv3.Op{
			clientv3.OpGet(key, clientv3.WithKeysOnly()),
			clientv3.OpGet(pointer),
			clientv3.OpGet(revoked, clientv3.WithCountOnly()),
		})
	if err != nil {
		return "", none, false, err
	}
	if done.Succeeded {
		return t.Node, got, true, nil
	}
	if kvs := done.Responses[0].GetResponseRange().Kvs; len(kvs) == 1 && kvs[0].ModRevision == r.Kvs[0].ModRevision {
		counts := done.Responses[1].GetResponseRange().Kvs
		if len(counts) == 1 && string(counts[0].Value) == q.ID && done.Responses[2].GetResponseRange().Count > 0 {
			return "", none, false, ErrRevoked
		}
		// The token is as it was, so it is not the one that counts, or its
		// node is gone.
		return "", none, false, ErrTokenUnknown
	}
	return "", none, false, nil
}

// repeat is the answer to the winner's repeated question, as long as the node
// still has that key.
func (s *Store) repeat(ctx context.Context, t tokenRecord) (Issued, error) {
	now, err := s.identity(ctx, t.Node, model.FingerprintOf([32]byte(t.Redeemed.SPKI)))
	if errors.Is(err, ErrNotEnrolled) || errors.Is(err, ErrUnknownNode) || errors.Is(err, ErrRevoked) {
		err = ErrTokenUsed
	}
	return now.issued, err
}
