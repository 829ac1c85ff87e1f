"""CSV files that tests write and read."""

from __future__ import annotations

import csv

from fastbp.cli.tables.reading import Column, open_table


def write(path, rows, **options):
    """A CSV file of these rows, the header first."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, **options).writerows(rows)
    return str(path)


def read(path, *columns, delimiter=","):
    """The columns of the file, all of them by default, by name."""
    with open_table(path, delimiter) as table:
        columns = columns or [Column(name) for name in table.names]
        table.read(columns)
    return {column.name: column for column in columns}
