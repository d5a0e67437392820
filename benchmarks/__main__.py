"""Run the measurements and write `benchmarks/results/<name>.json`: python -m benchmarks [NAME ...]"""

from __future__ import annotations

import importlib
import json
import sys

from benchmarks.harness import progress, write_result

ALL = ("placement", "flight", "reads")


def main(names: list[str]) -> None:
    """Run the named measurements, or all."""
    for name in names or ALL:
        if name not in ALL:
            sys.exit(f"no measurement {name!r}; there are: {', '.join(ALL)}")
        progress(f"== {name}")
        figures = importlib.import_module(f"benchmarks.{name}").run()
        print(json.dumps(figures, indent=2))
        progress(f"written to {write_result(name, figures)}")


if __name__ == "__main__":
    main(sys.argv[1:])
