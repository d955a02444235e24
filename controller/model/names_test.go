package model

import (
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestValidName(t *testing.T) {
	for _, tt := range []struct {
		name, give, problem, hint string
	}{
		{"plain", "contoso-2", "", ""},
		{"one letter", "a", "", ""},
		{"longest", strings.Repeat("a", 63), "", ""},
		{"empty", "", "is empty", "1 to 63"},
		{"too long", strings.Repeat("a", 64), "64 bytes", "1 to 63"},
		{"huge", strings.Repeat("a", 1<<16), "65536 bytes", "1 to 63"},
		{"traversal", "../etc", `character '.'`, "1 to 63"},
		{"slash", "a/b", `character '/'`, "1 to 63"},
		{"NUL", "a\x00b", "U+0000", "1 to 63"},
		{"right to left", "a\u200fb", "U+200F", "1 to 63"},
		{"override", "a\u202eb", "U+202E", "1 to 63"},
		{"not UTF-8", "a\xffb", "U+FFFD", "1 to 63"},
		{"capital", "Contoso", `capital letter 'C'`, "contoso"},
		{"umlaut", "münchen", `character 'ü'`, "1 to 63"},
		{"look-alike", "сontoso", "character", "1 to 63"},
		{"digit first", "9a", "starts with '9'", "letter first"},
		{"dash first", "-a", "starts with '-'", "letter first"},
		{"dash last", "a-", "ends with '-'", "a"},
		{"line break", "a\n", "U+000A", "1 to 63"},
		{"space", "a b", `character ' '`, "1 to 63"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			problem, hint := ValidName(tt.give)
			if !strings.Contains(problem, tt.problem) || (problem == "") != (tt.problem == "") {
				t.Errorf("problem = %q, want it to contain %q", problem, tt.problem)
			}
			if !strings.Contains(hint, tt.hint) {
				t.Errorf("hint = %q, want it to contain %q", hint, tt.hint)
			}
		})
	}
}

func TestValidInterfaceName(t *testing.T) {
	for name, good := range map[string]bool{
		"eth0": true, "enp3s0f1": true, "eth0.100": true, "a23456789012345": true,
		"": false, "a234567890123456": false, ".": false, "..": false, "a/b": false, "a b": false, "a\tb": false,
		"lo": false, "all": false, "default": false, "eth0:1": false, "eth%d": false, "ü": false, "a\x00": false, "cs-main-1": false,
	} {
		if problem, _ := validInterfaceName(name); (problem == "") != good {
			t.Errorf("validInterfaceName(%q) = %q, want good %v", name, problem, good)
		}
	}
}

func TestShorten(t *testing.T) {
	for give, want := range map[string]string{
		"":                       "",
		"plain ü text":           "plain ü text",
		"a\x00b\u200f\xffc\n":    `a\x00b\u200f\xffc\n`,
		strings.Repeat("a", 64):  strings.Repeat("a", 64),
		strings.Repeat("a", 65):  strings.Repeat("a", 63) + "…",
		strings.Repeat("ü", 100): strings.Repeat("ü", 63) + "…",
	} {
		if got := Shorten(give); got != want {
			t.Errorf("Shorten(%.80q) = %q, want %q", give, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		s := string(rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "s"))
		got := Shorten(s)
		if n := utf8.RuneCountInString(got); n > maxShown || !utf8.ValidString(got) {
			t.Fatalf("Shorten(%q) = %q has %d characters", s, got, n)
		}
		if again := Shorten(got); again != got {
			t.Fatalf("Shorten(%q) = %q, and again %q", s, got, again)
		}
	})
}

func TestNearest(t *testing.T) {
	candidates := []string{"primary", "secondary", "spec"}
	for word, want := range map[string]string{
		"primry": "primary", "Secondary": "secondary", "spec": "spec", "sepc": "spec", "spce": "spec", "sec": "spec", "ps": "", "spe": "spec",
		"tertiary": "", "": "", strings.Repeat("a", 1000): "",
	} {
		if got := Nearest(word, candidates); got != want {
			t.Errorf("Nearest(%.20q) = %q, want %q", word, got, want)
		}
	}
}

func TestInnerMTU(t *testing.T) {
	for six, wants := range map[bool]map[int]int{
		false: {0: 1328, 1400: 1328, 1340: 1280, 1339: 1264, 1500: 1440, 9000: 8928},
		true:  {0: 1312, 1400: 1312, 1360: 1280, 1359: 1264, 1500: 1408, 9000: 8912},
	} {
		for outer, want := range wants {
			if got := (&EncryptionPolicySpec{PathMTU: outer}).InnerMTU(six); got != want {
				t.Errorf("InnerMTU of %d with IPv6 outside %t = %d, want %d", outer, six, got, want)
			}
			if outer > 0 && want+wireGuardOverhead(six) > outer {
				t.Errorf("%d bytes inside do not fit into %d", want, outer)
			}
		}
	}
}
