"""The figures of `benchmarks.fuse` as one table."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

PEERS = ("JuiceFS", "rclone", "s3fs")

_READS = (
    # section, figures, what, bar, unit
    ("cold", "obstore", "cold sequential read", "cold", "GB/s"),
    ("cold", "peers", "the same, beside the others", "", "GB/s"),
    ("warm", "sequential", "warm sequential read", "sequential", "GB/s"),
    ("warm", "sequential_peers", "the same, beside the others", "", "GB/s"),
    ("warm", "sequential_dropped", "the same, page cache dropped", "", "GB/s"),
    ("warm", "random_1", "warm 4 KiB random reads, 1 job", "random", "/s"),
    ("warm", "random_1_dropped", "the same, page cache dropped first", "", "/s"),
    ("warm", "random_4", "warm 4 KiB random reads, 4 jobs", "random", "/s"),
    ("warm", "random_4_dropped", "the same, page cache dropped first", "", "/s"),
)


def show(found: Mapping[str, Any]) -> None:
    """Print the table on standard output."""
    table = Table(title=f"One file of {found['size_bytes'] >> 20} MiB, and a directory of many")
    table.add_column("what")
    for column in ("without FUSE", "raycache", "ratio", "bar", *PEERS, "over the best of them"):
        table.add_column(column, justify="right")
    for section, key, what, bar, unit in _READS:
        if key in found[section]:
            table.add_row(*_reads(found[section][key], what, str(found["bars"].get(bar, "")), unit))
    table.add_section()
    for row in _directory(found["directory"]):
        table.add_row(*row)
    table.add_section()
    bar = f"< {found['bars']['memory_mib']}"
    table.add_row(*_memory(found["peak_memory_mib"], "peak resident memory, reads, MiB", bar))
    table.add_row(*_memory(found["directory"]["peak_memory_mib"], "the same, the directory, MiB", ""))
    Console(width=None if sys.stdout.isatty() else 170).print(table)
    for name, why in found["skipped"].items():
        print(f"skipped: {name}: {why}")


def _reads(row: Mapping[str, Any], what: str, bar: str, unit: str) -> list[str]:
    medians = row["median"]
    against = row.get("against", {})
    base = medians.get(against.get("name"))
    cells = [_figure(medians.get(name), unit) for name in PEERS]
    best = row.get("best_peer")
    return [
        f"{what}, {unit}",
        _figure(base, unit) if base else "",
        _figure(medians["raycache"], unit),
        f"{against['ratio']:.2f}" if against else "",
        bar,
        *cells,
        f"{best['factor']:.1f} x {best['name']}" if best else "",
    ]


def _memory(peak: Mapping[str, float], what: str, bar: str) -> list[str]:
    cells = [f"{peak[name]:,.0f}" if name in peak else "-" for name in PEERS]
    return [what, "", f"{peak['raycache']:,.0f}", "", bar, *cells, ""]


def _figure(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if unit == "GB/s" else f"{value:,.0f}"


def _directory(found: Mapping[str, Any]) -> list[list[str]]:
    juice = found.get("JuiceFS", {})
    mine = found["raycache"]
    rows = []
    for key, what in (
        ("ls_f_first_s", "ls -f, first"),
        ("ls_f_again_s", "ls -f, again"),
        ("find_first_s", "find -printf %s, first"),
        ("find_again_s", "find -printf %s, again"),
    ):
        ours = _seconds(mine[key])
        theirs = _seconds(juice[key]) if juice else None
        factor = f"{theirs / ours:.1f} x JuiceFS" if theirs else ""
        cells = [f"{theirs:.2f}" if theirs else "-", "-", "-"]
        rows.append([f"{found['files']:,} files: {what}, s", "", f"{ours:.2f}", "", "", *cells, factor])
    of = mine["bytes_per_entry"]
    told = juice["bytes_per_entry"]["and_looked_up"] if juice else "-"
    rows.append(["memory per entry, bytes", "", str(of["and_looked_up"]), "", "", str(told), "-", "-", ""])
    return rows


def _seconds(value: float | list[float]) -> float:
    return min(value) if isinstance(value, list) else value
