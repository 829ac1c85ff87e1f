"""How many evaluations fmincg and SciPy's CG need: ``python bench/count_evaluations.py``.

The problems and the counting are those of the tests, which hold the share of rows that fmincg wins.
Counts depend on rounding, and so a little on the machine; rows that SciPy wins are marked.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from helpers.evaluations import collection, compare, gallery

    for title, cases in (("Moré, Garbow, Hillstrom", collection()), ("Gallery", gallery())):
        print(f"{title:36}{'value':>12}{'fmincg':>8}{'SciPy CG':>10}")
        rows = [compare(case) for case in cases]
        for row in rows:
            mark = "" if row.won else "  <"
            print(f"{row.name:36}{row.goal:12.5g}{row.fmincg:8}{row.scipy:10}{mark}")
        print(f"fmincg needs no more in {sum(row.won for row in rows)} of {len(rows)}\n")


if __name__ == "__main__":
    main()
