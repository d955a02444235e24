package desired

import "regexp"

var tokenFormat = regexp.MustCompile(`^cst1\.[0-9a-f]{16}\.[A-Za-z0-9_-]{43}$`)

// IsToken reports whether a text has the form of an enrolment token. It says
// nothing of whether the token is good, and keeps what is none, some other
// secret perhaps, from being sent for one.
func IsToken(text string) bool { return tokenFormat.MatchString(text) }
