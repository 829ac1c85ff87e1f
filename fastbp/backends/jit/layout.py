"""The integers that a plan is for compiled code, and with them the layout of the workspace."""

from ..contract import LAYER_COLUMNS

# First come the number of layers, the rows of a tile and where the parts of the workspace begin;
# from how many rows on these lie along lanes (see lane_major.py), up to how many vectors are short,
# and the functions for these and the others. They are followed by the layers' columns.
(
    N_LAYERS, TILE, TAPE, DELTA, NEXT_DELTA, TRANSPOSED, GRADIENT, PART_GRADIENT, X_ROWS,
    TARGET_ROWS, LABEL_ROWS, WEIGHT_ROWS, NORMS, LANE_MAJOR_X, LANE_MAJOR_Y, LANE_MAJOR_D,
    LANE_MAJOR_SUMS, DELTAS, SPARE_ROW, R_TAPE, R_DELTA, NEXT_R_DELTA, SPARE, R_TRANSPOSED,
    LANE_MAJOR_ROWS, SHORT_ROWS, LANE_MAJOR_SHORT, LANE_MAJOR_LONG, HEADER,
) = range(29)  # fmt: skip

# Columns of a layer beside those of `Plan.layers`: the addresses of its activation's function and
# of the user's own functions, and with dropout the first column of its factors in the tape of a
# tile (else -1), behind which stands the output times the factors. Then how many parameters before
# the layer's, of its weights and of its biases are free, and where in the plan their places are:
# for each one its row and column in W (-1 if all parameters are free). Last, how far apart the rows
# of Y are, and of Z: in the tape of a tile there is room for whole vectors, since what is written
# in part can be read again only after a while. Single columns and the last layer have no gaps.
(
    FUNCTION, USER_FUNCTION, FACTORS, FREE_BEFORE, FREE_WEIGHTS, FREE_BIASES, PLACES, LEADING,
    COLUMNS,
) = range(LAYER_COLUMNS, LAYER_COLUMNS + 9)  # fmt: skip
