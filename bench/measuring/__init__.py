"""How contestants are measured: in turns, in loops in C, at a lower level of the C backend."""
