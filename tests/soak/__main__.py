"""`python -m tests.soak`: a soak of any length, its figures on standard output; status 1 if a promise was broken."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
from dataclasses import asdict
from pathlib import Path

from tests.soak.soak import Result, run


def main() -> int:
    """Run it as the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="for how long readers read (default 3)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1 << 31), help="of all choices")
    parser.add_argument("--report", type=Path, help="JSON file to write the figures to")
    options = parser.parse_args()
    print(f"seed {options.seed}; that workers die, as Ray will say, is part of it", flush=True)
    result = run(60 * options.minutes, options.seed)
    print(told(result))
    if options.report:
        figures = {"command": f"python -m tests.soak --minutes {options.minutes:g}", "seed": options.seed}
        options.report.write_text(json.dumps(figures | asdict(result), indent=1) + "\n")
    return 1 if result.problems else 0


LEGEND = """\
  (looks: stats and listings; stale: the version that a file was opened on had been replaced, and was not cached;
  absent: there was no object. Each of them was compared with what the store held at that moment.)"""


def told(result: Result) -> str:
    """A result in words."""
    lines = [f"{result.seconds:.0f} s of reading on every front, each byte compared", LEGEND]
    for report in result.readers:
        lines.append(
            f"  {report['name']:14} {report['opens']:6} opens {report['reads']:7} reads"
            f" {report['bytes'] / 2**30:6.2f} GiB {report['looks']:6} looks {report['stale']:5} stale"
            f" {report['absent']:5} absent; slowest {report['slowest_s']:.1f} s ({report['slowest']})"
        )
    for title, counts in (("changes", result.changes), ("blows", result.blows), ("store", result.store)):
        lines.append(f"  {title}: " + ", ".join(f"{count} {what}" for what, count in sorted(counts.items())))
    lines.append(f"  bytes from the store that have been counted by who fetched them: {result.counted_bytes}")
    memory = (
        f"{name} {before >> 20} -> {after >> 20} MiB" for name, (before, after) in result.memory.items()
    )
    lines.append("  memory, second and last quarter: " + (", ".join(memory) or "too short a run"))
    lines.append("  at last, {} bytes were fetched once for {} on three nodes".format(*result.fetched_once))
    lines += [f"PROBLEM {problem}" for problem in result.problems]
    reads = sum(report["reads"] for report in result.readers)
    size = sum(report["bytes"] for report in result.readers)
    if result.problems:
        lines.append(f"FAILED: {len(result.problems)} problems in {reads} reads")
    else:
        lines.append(
            f"PASSED: {reads} reads of {size / 2**30:.1f} GiB: no wrong byte, no failed read, no lease or process left"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
