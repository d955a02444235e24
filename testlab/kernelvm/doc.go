// Package kernelvm runs commands of this checkout under another kernel: one of
// Debian's, in a QEMU guest that sees the host's files read-only beneath a layer
// of memory. It fetches the kernel, boots it, carries an order of jobs in and
// their output and exit codes out. It knows QEMU, Debian's kernel packages and
// its guest's init (package guest), and refuses to know what the jobs are about.
//
// The guest has no network device, so nothing that runs in it reaches anything
// but itself. Where the processor is emulated, as it is unless Config.Accel says
// otherwise, time passes as outside and everything takes some ten times as long.
package kernelvm

import "time"

// Order is what the host asks of the guest. It travels as a file in the share.
type Order struct {
	Jobs []Job `json:"jobs"`
}

// Job is one program to run to its end.
type Job struct {
	// Name is for people and for Exit. With Announce it stands on a line of the
	// output before the job's own.
	Name     string `json:"name"`
	Announce bool   `json:"announce,omitempty"`
	// Dir and the program are paths of the host, which are the guest's too.
	Dir  string   `json:"dir"`
	Args []string `json:"args"`
	// Env is added to a small environment of the guest's own.
	Env []string `json:"env,omitempty"`
	// LimitSeconds ends a job that hangs; 0 is no limit but the guest's.
	LimitSeconds float64 `json:"limit_seconds,omitempty"`
}

// Exit is how a job ended.
type Exit struct {
	Name string `json:"name"`
	// Code is the program's exit code, -1 if a signal or the limit ended it or
	// it could not be started.
	Code int `json:"code"`
	// Problem says why Code is -1.
	Problem string  `json:"problem,omitempty"`
	Seconds float64 `json:"seconds"`
}

// The files of the share, by which host and guest talk.
const (
	// OrderFile holds an Order.
	OrderFile = "order.json"
	// ExitsFile holds an Exit a line, each written when its job has ended.
	ExitsFile = "exits.jsonl"
	// DoneFile is there when the guest has run the whole order.
	DoneFile = "done"
	// BeatFile is written every BeatPeriod by a guest that lives.
	BeatFile = "beat"
)

// BeatPeriod is how often a guest shows that it lives.
const BeatPeriod = 2 * time.Second

// What the guest's init is told on the kernel's command line.
const (
	ShareParam   = "circuitseal.share"
	ModulesParam = "circuitseal.modules"
)

// The 9p mount tags.
const (
	RootTag  = "rootfs"
	ShareTag = "share"
)

// ModuleList is the file of the initramfs that names the modules to load, in
// order, one a line.
const ModuleList = "modules"
