"""How the compiled backends cut up their work: one rule for C and Numba.

C has these numbers from csrc/constants.h: after a change run `python tools/constants.py`.
"""

# A tile of rows passes through all layers at once. Networks with no layer wider than NARROW take
# tiles of TILE_ROWS: 64 x 128 float64 activations are 64 KB, of which a few layers fit the
# second-level cache. Others take larger ones: a product of fewer rows would not repay reading W.
NARROW = 128
TILE_ROWS, WIDE_TILE_ROWS = 64, 256

# The widest layer with which a network counts as slim, so that rows lie along vectors: with fewer
# than SLIM_FEW_ROWS rows, in float64 with more of them, in float32.
SLIM_FEW_ROWS = 8
SLIM_WIDTH_FOR_FEW, SLIM_WIDTH_OF_DOUBLES, SLIM_WIDTH = 4, 6, 8

# Rows of a slim network that fit in so many bytes take vectors of this size.
SLIM_SHORT_BYTES = 32

# Derivatives row by row: rows of deltas that pass through the layers together, and rows of the
# Jacobian that stay in the cache for the normal equations.
DELTA_ROWS, JACOBIAN_ROWS = 64, 128

# Rows of a matrix that Cholesky's method factors together.
FACTOR_ROWS = 32
