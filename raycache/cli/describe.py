"""`describe`: nested data as text, laid out as kubectl does it.

What a value is, is told by its key: sizes, times, and lists of alike things, which become tables.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raycache.cli.output import NONE, age, aligned, percentage, size, timestamp

_INDENT = "  "
_SIZES = re.compile(
    r"(?i)(^|_)(bytes|size|cached|capacity|quota|used|freed|weight)(_total|_cached)?$|^bytes_|(Size|Capacity)$"
)
_TIMES = re.compile(r"^(created|started|finished|time|updated|last_seen|since)(_at)?$")
_DURATIONS = re.compile(r"(?i)ttl$")
_PERCENTAGES = re.compile(r"percentage$")
_ACRONYMS = {
    "ufs": "UFS",
    "id": "ID",
    "pid": "PID",
    "ttl": "TTL",
    "uri": "URI",
    "url": "URL",
    "mem": "MEM",
    "ssd": "SSD",
}


_VERBATIM = frozenset(
    {"options", "labels", "annotations", "nodeSelector", "node_selector", "secret_options", "problems"}
)
"""Mappings whose keys are the user's own words, or what nodes are called."""


def description(data: Mapping[str, Any], indent: str = "") -> list[str]:
    """Lines that describe a thing; its events come last, as they do with kubectl."""
    ordered = {key: value for key, value in data.items() if key != "events"}
    if "events" in data:
        ordered["events"] = data["events"]
    return list(_mapping(ordered, indent))


def _mapping(data: Mapping[str, Any], indent: str, verbatim: bool = False) -> Iterator[str]:
    label = str if verbatim else title
    width = max((len(label(key)) + 1 for key, value in data.items() if not _nested(value)), default=0)
    for key, value in data.items():
        if not _nested(value):
            yield f"{indent}{label(key) + ':':<{width}}  {_scalar(key, value)}".rstrip()
            continue
        yield f"{indent}{label(key)}:"
        if isinstance(value, Mapping):
            yield from _mapping(value, indent + _INDENT, verbatim=key in _VERBATIM)
        elif _is_table(value):
            yield from _table(value, indent + _INDENT)
        else:
            yield from _items(value, indent + _INDENT)


def _nested(value: object) -> bool:
    """Whether a value takes lines of its own."""
    if isinstance(value, Mapping):
        return bool(value)
    return isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value)


def _is_table(rows: Sequence[Any]) -> bool:
    return all(isinstance(row, Mapping) and not any(_nested(value) for value in row.values()) for row in rows)


def _table(rows: Sequence[Mapping[str, Any]], indent: str) -> Iterator[str]:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[title(key).upper() for key in keys]]
    cells += [[_cell(key, row.get(key)) for key in keys] for row in rows]
    yield from aligned(cells, indent)


def _items(items: Sequence[Any], indent: str) -> Iterator[str]:
    for item in items:
        lines = list(_mapping(item, "")) if isinstance(item, Mapping) else [_scalar("", item)]
        for number, line in enumerate(lines):
            yield f"{indent}{'  ' if number else '- '}{line}"


def title(key: str) -> str:
    """`cachedPercentage`, `cached_percentage` -> `Cached Percentage`. What is no plain word stays as it is."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", key):
        return key
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", key).split("_")
    return " ".join(_ACRONYMS.get(word.lower(), word[:1].upper() + word[1:]) for word in words if word)


def _cell(key: str, value: Any) -> str:
    """A value in a table: as `_scalar`, with times as ages."""
    if _TIMES.search(key) and _is_number(value) and value:
        return age(value)
    return _scalar(key, value)


def _scalar(key: str, value: Any) -> str:
    if key == "path" and value == "":
        return "/"  # of the only mount of a dataset
    if value is None or value == "" or (isinstance(value, Mapping | list | tuple) and not value):
        return NONE
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(_scalar(key, item) for item in value)
    if _is_number(value):
        return _number(key, value)
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(value))


def _number(key: str, value: float) -> str:
    if _TIMES.search(key) and value > 0:
        return f"{timestamp(value)} ({age(value, time.time())} ago)"
    if _DURATIONS.search(key):
        return f"{value:g}s"
    if _PERCENTAGES.search(key):
        return percentage(value)
    if _SIZES.search(key):
        return size(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
