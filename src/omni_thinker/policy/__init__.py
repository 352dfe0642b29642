"""Who learns: the Policy protocol and the torch policy."""
