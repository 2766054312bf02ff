"""The command line for tests, in this process."""

from __future__ import annotations

import sys

from talaria.cli import main


def talaria(*arguments: object) -> int:
    """Run the command line in this process; return its exit code."""
    old = sys.argv
    sys.argv = ["talaria", *map(str, arguments)]
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = old
    return 0
