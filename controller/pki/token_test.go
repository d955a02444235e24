package pki

import (
	"errors"
	"strings"
	"testing"

	"github.com/circuitseal/circuitseal/proto/desired"
)

func TestToken(t *testing.T) {
	a, b := NewToken(), NewToken()
	if a.ID() == b.ID() || a.Hash() == b.Hash() {
		t.Error("two tokens are alike")
	}
	text := a.Reveal()
	got, err := ParseToken(text)
	if err != nil || got.Reveal() != text || got.ID() != a.ID() || got.Hash() != a.Hash() {
		t.Errorf("ParseToken: %v, %v", got, err)
	}
	// Agents send nothing else for one.
	if !desired.IsToken(text) {
		t.Error("agents would not take it for a token")
	}
	for name, bad := range map[string]string{
		"empty": "", "shorter": text[:len(text)-1], "longer": text + "A", "line end": text + "\n",
		"line end inside": text[:40] + "\n" + text[41:],
		"other version":   "cst2" + text[4:], "capital id": "cst1." + strings.ToUpper(strings.Repeat("a", 16)) + text[21:],
		"padding": text[:len(text)-1] + "=", "other alphabet": text[:30] + "+" + text[31:], "64 KiB": strings.Repeat("a", 64<<10),
		"dots": strings.Repeat(".", tokenLength), "not canonical": text[:len(text)-1] + "B",
	} {
		_, err := ParseToken(bad)
		if !errors.Is(err, ErrToken) {
			t.Errorf("%s: %v, want ErrToken", name, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(NewToken().Reveal())
	f.Add("cst1.0123456789abcdef." + strings.Repeat("A", 43))
	f.Add("cst1..")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if err != nil {
			if !errors.Is(err, ErrToken) {
				t.Errorf("an error of another kind: %v", err)
			}
			return
		}
		if token.Reveal() != text {
			t.Errorf("%q reads as %q", text, token.Reveal())
		}
	})
}
