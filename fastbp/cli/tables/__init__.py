"""Networks for the columns of tables: what ``fastbp fit`` and ``fastbp predict`` do.

`text` yields the records of a file of text, `reading` reads tables into `columns`, which understand
`cells` and are encoded as matrices; `model` has a network with its columns and classes, and
`fitting` fits one.
"""
