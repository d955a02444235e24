// Vminit is the first process of the lab's virtual machine; see
// testlab/kernelvm/guest.
package main

import "github.com/circuitseal/circuitseal/testlab/kernelvm/guest"

func main() { guest.Main() }
