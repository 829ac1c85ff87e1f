"""Commands on saved runs: ``python bench report RESULTS``, ``python bench compare RESULTS``."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {"report": "report.tables", "compare": "report.compare"}


def main() -> int:
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command not in COMMANDS:
        print(f"usage: python bench {{{','.join(COMMANDS)}}} ...", file=sys.stderr)
        return 2
    sys.argv[:2] = [f"python bench {command}"]  # as the command's own usage shows it
    return importlib.import_module(COMMANDS[command]).main()


if __name__ == "__main__":
    sys.exit(main())
