package desired

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// A canary in every place where a state is ever printed, by every way of
// printing it.
func TestSecretsNeverPrint(t *testing.T) {
	canary := Secret([]byte("canary-of-thirty-two-bytes-long!"))
	state := validState()
	state.Sections[0].Groups[0].Tunnels[0].WireGuard.PresharedKeys[0].Key = canary
	key := PresharedKey{Generation: 7, Key: canary}
	var logged bytes.Buffer
	for _, h := range []slog.Handler{
		slog.NewTextHandler(&logged, nil), slog.NewJSONHandler(&logged, nil),
	} {
		log := slog.New(h)
		log.Info("x", "secret", canary, "key", key, "keys", []PresharedKey{key}, "pointer", &key, "state", state)
	}
	encoded, err := json.Marshal([]any{canary, key, &key, state, map[Secret]int{canary: 1}})
	if err != nil {
		t.Fatal(err)
	}
	printed := logged.String() + string(encoded)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%c"} {
		for _, value := range []any{canary, &canary, key, &key, []PresharedKey{key}, *state.Sections[0].Groups[0].Tunnels[0].WireGuard, state} {
			printed += fmt.Sprintf(verb, value) + "\n"
		}
	}
	for _, form := range []string{
		string(canary[:]), hex.EncodeToString(canary[:]), strings.ToUpper(hex.EncodeToString(canary[:])),
		base64.StdEncoding.EncodeToString(canary[:]), "99 97 110 97 114 121", "0x63, 0x61, 0x6e",
	} {
		if strings.Contains(printed, form) {
			t.Errorf("a secret was printed as %q in %s", form, printed)
		}
	}
	if !strings.Contains(printed, "generation 7") {
		t.Error("what is printed of a key does not say which it is")
	}
}

func TestSecretFromBytes(t *testing.T) {
	for _, b := range [][]byte{nil, make([]byte, 31), make([]byte, 33), make([]byte, 32)} {
		if _, err := SecretFromBytes(b); err == nil {
			t.Errorf("%d bytes %v are a secret", len(b), b)
		}
	}
	a, err := NewSecret()
	if err != nil {
		t.Fatal(err)
	}
	b, err := SecretFromBytes(a[:])
	if err != nil || !a.Equal(b) || a.Equal(Secret{}) {
		t.Errorf("a drawn secret does not survive: %v", err)
	}
}
