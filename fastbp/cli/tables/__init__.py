"""Networks for the columns of CSV files: what ``fastbp fit`` and ``fastbp predict`` do.

`reading` makes columns and matrices of a file, `model` has what a saved network knows of them,
`fitting` makes such a model, and `commands` is what the command line adds.
"""
