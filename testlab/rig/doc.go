// Package rig runs the product's real binaries in a lab: controller, agents
// and sealctl, with the lab's own tap and traffic beside them. Scenarios,
// benchmarks and the demo are written in its terms. It knows command lines,
// files and output of the product as an operator does, and imports none of
// its code.
package rig
