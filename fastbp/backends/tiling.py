"""How the compiled backends cut up their work: one rule for C and Numba.

C has these numbers from csrc/constants.h: after a change run `python tools/constants.py`.
"""

# A tile of rows passes through all layers at once. Networks with no layer wider than NARROW take
# tiles of TILE_ROWS: 64 x 128 float64 activations are 64 KB, of which a few layers fit the
# second-level cache. Others take larger ones: a product of fewer rows would not repay reading W.
NARROW = 128
TILE_ROWS, WIDE_TILE_ROWS = 64, 256

# A sum over rows runs lane-major (rows along the lanes of vectors) if no layer of the network is
# wider than LANE_MAJOR_WIDTH_FOR_FEW, for fewer than LANE_MAJOR_FEW_ROWS rows. With more rows, the
# widths are LANE_MAJOR_WIDTH_OF_DOUBLES in float64 and LANE_MAJOR_WIDTH in float32.
LANE_MAJOR_FEW_ROWS = 8
LANE_MAJOR_WIDTH_FOR_FEW, LANE_MAJOR_WIDTH_OF_DOUBLES, LANE_MAJOR_WIDTH = 4, 6, 8

# A lane-major computation uses vectors of this many bytes if all rows fit into one such vector.
LANE_MAJOR_SHORT_BYTES = 32

# Derivatives row by row: rows of deltas that pass through the layers together, and rows of the
# Jacobian that stay in the cache for the normal equations.
DELTA_ROWS, JACOBIAN_ROWS = 64, 128

# Rows of a matrix that Cholesky's method factors together.
FACTOR_ROWS = 32
