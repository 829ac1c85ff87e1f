"""Networks for the columns of CSV files: what ``fastbp fit`` and ``fastbp predict`` do.

`reading` reads columns and encodes them as matrices, `model` has a network with its columns and
classes, and `fitting` fits one.
"""
