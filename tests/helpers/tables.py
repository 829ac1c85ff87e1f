"""CSV files that tests write and read."""

from __future__ import annotations

import csv

import pyarrow as pa

from fastbp.cli.tables.columns import Column
from fastbp.cli.tables.reading import open_table
from fastbp.cli.tables.text import Reading


def write(path, rows, **options):
    """A CSV file of these rows, the header first."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, **options).writerows(rows)
    return str(path)


def read(path, *columns, **reading):
    """The columns of the file, all of them by default, by name."""
    with open_table(path, Reading(**reading)) as table:
        columns = columns or [Column(name) for name in table.names]
        table.read(columns)
    return {column.name: column for column in columns}


def cells(values):
    """The values as the cells of a file of text, which `Column.extend` takes."""
    return pa.array([str(value) for value in values])
