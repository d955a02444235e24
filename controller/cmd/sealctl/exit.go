package main

import (
	"errors"
	"fmt"
	"strings"
)

// The exit codes. They are part of what scripts rely on: a number never gets
// another meaning.
const (
	exitOK = iota
	exitFailed
	exitUsage
	exitRefused
	exitUnreachable
	exitIdentity
	exitNotYet
)

// exitCodes says what each one means, in their order.
var exitCodes = []string{
	exitOK:          "done",
	exitFailed:      "failed: refused by the controller, or a file cannot be read",
	exitUsage:       "wrong usage: nothing was asked of the controller, or it cannot make sense of the question",
	exitRefused:     "documents are refused: 1,000 problems at most are printed, the rest is counted, and nothing was changed",
	exitUnreachable: "the controller cannot be reached, or did not answer in time",
	exitIdentity:    "no trust: your identity is missing, expired, unsafe or may not do this, or it is another controller",
	exitNotYet:      "not as it should be (yet): apply --wait ran out of time, status --check found problems, or plan found changes",
}

// exitHelp is the table of exit codes for --help.
func exitHelp() string {
	var b strings.Builder
	b.WriteString("Exit codes:\n")
	for code, meaning := range exitCodes {
		fmt.Fprintf(&b, "  %d  %s\n", code, meaning)
	}
	return strings.TrimRight(b.String(), "\n")
}

// coded is an error with an exit code of its own.
type coded struct {
	code int
	err  error
}

func (c coded) Error() string { return c.err.Error() }
func (c coded) Unwrap() error { return c.err }

// withCode gives an error an exit code; nil stays nil.
func withCode(code int, err error) error {
	if err == nil {
		return nil
	}
	return coded{code, err}
}

// exitCode is the exit code that an error ends sealctl with.
func exitCode(err error) int {
	own := coded{}
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &own):
		return own.code
	case errors.Is(err, errUsage):
		return exitUsage
	}
	_, code := diagnose(err)
	return code
}
