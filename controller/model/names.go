package model

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxNameLength is the longest name, an RFC 1123 label.
const MaxNameLength = 63

// ValidName says what is wrong with the name of a document, a customer or a
// node, and what would be right; both are empty for a good one. A name is an
// RFC 1123 label that starts with a letter: it becomes part of file names,
// certificates, store keys and terminal output, so nothing else may be in it.
func ValidName(s string) (problem, hint string) {
	const want = "1 to 63 characters a-z, 0-9 and -, the first a letter, the last no -"
	switch {
	case s == "":
		return "is empty", "a name of " + want
	case len(s) > MaxNameLength:
		return fmt.Sprintf("is %d bytes long; names have at most %d", len(s), MaxNameLength), want
	}
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-':
		case r >= 'A' && r <= 'Z':
			hint = want
			if p, _ := ValidName(strings.ToLower(s)); p == "" {
				hint = strings.ToLower(s)
			}
			return fmt.Sprintf("has the capital letter %q", r), hint
		case unicode.IsPrint(r) && r != utf8.RuneError:
			return fmt.Sprintf("has the character %q", r), want
		default:
			return fmt.Sprintf("has the invisible or malformed character %U", r), want
		}
	}
	switch {
	case s[0] < 'a':
		return fmt.Sprintf("starts with %q", s[0]), "a letter first: " + want
	case s[len(s)-1] == '-':
		return "ends with '-'", strings.TrimRight(s, "-")
	}
	return "", ""
}

// validInterfaceName says what is wrong with a Linux interface name: see
// dev_valid_name in net/core/dev.c, which also bounds it by IFNAMSIZ.
func validInterfaceName(s string) (problem, hint string) {
	const want = "1 to 15 printable ASCII characters without space, '/', ':' and '%', such as eth1"
	switch {
	case s == "":
		return "is empty", want
	case len(s) > 15:
		return fmt.Sprintf("is %d bytes long; Linux takes at most 15", len(s)), want
	case s == "." || s == "..", s == "all" || s == "default":
		return "is a directory of /proc/sys/net and not an interface", want
	case s == "lo":
		return "is the loopback interface", "the interface that leads to the circuit, the LAN or management"
	case strings.HasPrefix(s, "cs-"):
		return `starts with "cs-", which agents give to their own devices`, "one of the host's own interfaces"
	}
	for _, r := range s {
		if r <= ' ' || r >= 0x7f || r == '/' || r == ':' || r == '%' {
			return fmt.Sprintf("has the character %q, which Linux refuses or misreads", r), want
		}
	}
	return "", ""
}

// maxShown is how many characters of a value a problem shows.
const maxShown = 64

// Shorten makes a foreign value fit to be shown: at most 64 characters, of
// which the last is "…" where something is left out; whatever is not printable
// (control characters, direction marks, bytes that are not UTF-8) is escaped as
// in Go. What Shorten returns, it returns unchanged.
func Shorten(s string) string {
	var b strings.Builder
	n := 0
	// at is where to cut when one more character than fits turns up.
	at := 0
	for i, r := range s {
		piece := string(r)
		if r == utf8.RuneError {
			if _, size := utf8.DecodeRuneInString(s[i:]); size == 1 {
				piece = fmt.Sprintf(`\x%02x`, s[i])
			}
		} else if !unicode.IsPrint(r) {
			piece = strings.Trim(strconv.QuoteRune(r), "'")
		}
		n += utf8.RuneCountInString(piece)
		if n > maxShown {
			return b.String()[:at] + "…"
		}
		b.WriteString(piece)
		if n < maxShown {
			at = b.Len()
		}
	}
	return b.String()
}

// quoted is Shorten in quotation marks, for use inside sentences.
func quoted(s string) string { return `"` + Shorten(s) + `"` }

// Nearest is the candidate that a writer of word most likely meant, or "" when
// none is near: at most a third of its letters differ, whatever their case.
func Nearest(word string, candidates []string) string {
	if len(word) > maxShown {
		return ""
	}
	word = strings.ToLower(word)
	best, bestDistance := "", -1
	for _, c := range candidates {
		if len(c) > maxShown {
			continue
		}
		most := max(1, len(c)/3)
		if diff := len(c) - len(word); diff > most || -diff > most {
			continue
		}
		if d := distance(word, strings.ToLower(c)); d <= most && (bestDistance < 0 || d < bestDistance) {
			best, bestDistance = c, d
		}
	}
	return best
}

// distance counts the bytes to insert, delete, replace or swap with the next
// (optimal string alignment).
func distance(a, b string) int {
	before, above, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before, above, row = above, row, before
		row[0] = i + 1
		for j := range len(b) {
			cost := above[j]
			if a[i] != b[j] {
				cost++
			}
			cost = min(cost, above[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				cost = min(cost, before[j-1]+1)
			}
			row[j+1] = cost
		}
	}
	return row[len(b)]
}

// oneOf lists words for a hint: "a, b or c".
func oneOf[T ~string](words []T) string {
	var b strings.Builder
	for i, w := range words {
		switch {
		case i == 0:
		case i == len(words)-1:
			b.WriteString(" or ")
		default:
			b.WriteString(", ")
		}
		b.WriteString(string(w))
	}
	return b.String()
}
