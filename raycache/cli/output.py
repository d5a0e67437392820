"""Tables, JSON, YAML, and how sizes, ages and times are written.

A table is plain text: columns aligned with spaces, nothing cut, no colour, so that it can be read by programs. On
a terminal, phases are coloured.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

GAP = "   "
"""What stands between two columns."""

NONE = "<none>"
"""A value that is not there, as kubectl writes it."""


class Format(StrEnum):
    """`-o`: how `get` prints."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        title: its header.
        value: the cell's text, from a row.
        wide: shown by `-o wide` only.
    """

    title: str
    value: Callable[[Mapping[str, Any]], str]
    wide: bool = False


def table(rows: Sequence[Mapping[str, Any]], columns: Iterable[Column], *, wide: bool = False) -> list[str]:
    """Lines of a table, header first."""
    shown = [column for column in columns if wide or not column.wide]
    cells = [[column.title for column in shown]]
    cells += [[_one_line(column.value(row)) or NONE for column in shown] for row in rows]
    return aligned(cells)


def aligned(cells: Sequence[Sequence[str]], indent: str = "") -> list[str]:
    """Rows of cells as lines, each column as wide as its widest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(*cells, strict=True)]
    return [
        (indent + GAP.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
        for row in cells
    ]


def _one_line(text: str) -> str:
    """Text that stays in its cell: control characters, also those of an object's name, are escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


_COLOURS = {
    "green": ("Bound", "Complete", "up", "ready", "running", "healthy"),
    "yellow": ("Pending", "Executing", "NotReady", "draining", "starting", "unstable"),
    "red": ("Failed", "down", "dead"),
}
_PHASES = re.compile(
    r"(?<=\s)(" + "|".join(word for words in _COLOURS.values() for word in words) + r")(?=\s|$)"
)
_COLOUR_OF = {word: colour for colour, words in _COLOURS.items() for word in words}


def print_lines(lines: Iterable[str]) -> None:
    """Print lines on standard output; phases in colour if it is a terminal."""
    if not sys.stdout.isatty():
        for line in lines:
            print(line)
        sys.stdout.flush()
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for line in lines:
        text = Text(line)
        for match in _PHASES.finditer(line):
            text.stylize(_COLOUR_OF[match[1]], *match.span())
        console.print(text)


def print_json(data: object) -> None:
    """Print data as JSON, indented."""
    print(json.dumps(data, indent=2, default=str, ensure_ascii=False), flush=True)


def print_yaml(data: object) -> None:
    """Print data as YAML."""
    import yaml

    plain = json.loads(json.dumps(data, default=str))
    print(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=10**6), end="", flush=True)


def print_data(data: object, form: Format) -> None:
    """Print data as JSON or YAML."""
    (print_json if form is Format.JSON else print_yaml)(data)


def size(value: object) -> str:
    """Bytes for people: `2.00GiB`; "" if unknown."""
    from raycache.spec.quantities import humanize_size

    return humanize_size(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def percentage(value: object) -> str:
    """`41.7%`; "" if unknown. Only what is whole is shown as 100.0%."""
    if not isinstance(value, int | float):
        return ""
    shown = min(value, 99.9) if value < 100 else value
    return f"{shown:.1f}%"


def duration(seconds: float) -> str:
    """A time span as kubectl shows ages: two units where the first is small (`5m3s`, `3h12m`), else one (`12d`)."""
    whole = max(0, int(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if whole < 120:
        return f"{whole}s"
    if minutes < 10:
        return _two(minutes, "m", whole % 60, "s")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return _two(days, "d", hours % 24, "h")
    if days < 730:
        return f"{days}d"
    return _two(days // 365, "y", days % 365, "d")


def _two(first: int, first_unit: str, second: int, second_unit: str) -> str:
    return f"{first}{first_unit}" + (f"{second}{second_unit}" if second else "")


def age(created: object, now: float | None = None) -> str:
    """Time since `created` (seconds since the epoch); "" if unknown."""
    if not isinstance(created, int | float) or not created:
        return ""
    return duration((time.time() if now is None else now) - created)


def timestamp(seconds: float) -> str:
    """A moment (seconds since the epoch) in UTC: `2026-11-03T14:05:09Z`."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
