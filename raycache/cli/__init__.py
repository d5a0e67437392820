"""The command line: parsing and printing only. `main` is the `raycache` program.

Nothing here is imported before `main` runs, and Ray, pydantic and pyarrow not before a command needs them:
`raycache --help` answers at once.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line on `sys.argv` and end the process with its status (see `raycache.cli.failures`)."""
    try:
        from raycache.cli.app import run

        run()
    except KeyboardInterrupt:  # before there was a command to be interrupted
        print("interrupted", file=sys.stderr)
        sys.exit(130)
