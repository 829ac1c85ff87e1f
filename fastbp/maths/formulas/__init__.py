"""Vector formulas, each written once: the Numba backend compiles them, C is generated from them."""
