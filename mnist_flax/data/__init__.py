"""Files and the network to arrays."""
