// Package netns builds the lab of network namespaces in which the product's
// real binaries run: two sites, an appliance at each, Microsoft's two edges
// and the ExpressRoute gateway between them, and a controller. It knows
// namespaces, interfaces, routes and processes, and how to clean all of that
// up exactly, also after a run that was killed. It knows nothing of the
// product's state, policy or wire format, and shares no code with the agent,
// so that a mistake there cannot blind the lab here.
//
//	hq ── prem ══ edge1 ── ergw ── nva ── vnet
//	         ╚═══ edge2 ──╝
//	ctl ── management network ── prem, nva
package netns
