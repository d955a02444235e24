// Package tap is the lab's independent witness: it looks at every frame on the
// circuit's links from the provider's side, and counts each one that is
// outside promise 1's list. It knows frame formats, the addresses of the links
// and the outer addresses of the tunnels, as a person would read them from the
// order form of a circuit; it shares no code with the product, neither its
// guard nor its plan, and it is never told what the agents believe.
//
// What claims to be WireGuard, ESP or IKE must also look so: the right shape,
// content that cannot be told from random, and no IP packet in it. Of IKE that
// holds for what is encrypted, for public keys and for nonces; what a first
// message shows by design is judged by structure and length. Every frame is
// searched for the canary, a random text that all test traffic carries. Nothing
// is sampled before the verdict; a frame that the kernel could not hand over, or
// an interface that has gone, makes the result invalid rather than clean.
package tap
