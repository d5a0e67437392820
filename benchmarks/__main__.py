"""Run the measurements and write `benchmarks/results/<name>.json`: python -m benchmarks [NAME ...]"""

from __future__ import annotations

import importlib
import json
import sys

from benchmarks.harness import memory_kept, progress, write_result

ALL = ("placement", "flight", "reads")
MORE = (
    "fuse",
    "kills",
    "simulate",
    "locality",
    "broadcast",
)  # only when named: two need root, two take minutes (one matplotlib)


def _print(figures: object) -> None:
    print(json.dumps(figures, indent=2))


def main(names: list[str]) -> None:
    """Run the named measurements, or all that need no root."""
    for name in names or ALL:
        if name not in (*ALL, *MORE):
            sys.exit(f"no measurement {name!r}; there are: {', '.join((*ALL, *MORE))}")
        progress(f"== {name}")
        measurement = importlib.import_module(f"benchmarks.{name}")
        with memory_kept() as kept:
            figures = {"memory_kept": kept, **measurement.run()}
        getattr(measurement, "show", _print)(figures)
        progress(f"written to {write_result(name, figures)}")


if __name__ == "__main__":
    main(sys.argv[1:])
