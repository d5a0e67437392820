"""The kinds of things a user can name, and the columns in which each is listed."""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raycache.cli.output import Column, age, duration, percentage, size
from raycache.errors import SpecError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of thing.

    Args:
        plural: its name for `Admin`.
        singular: what one of them is called.
        document: kind of the YAML document that describes one; "" if none does.
        short: other names for it, lower case, without their plural forms.
        columns: what `get` shows of it.
    """

    plural: str
    singular: str
    document: str
    short: tuple[str, ...]
    columns: tuple[Column, ...]


def _text(*keys: str) -> Any:
    def value(row: Row) -> str:
        found = next((row[key] for key in keys if row.get(key) is not None), None)
        if isinstance(found, list | tuple):
            return ",".join(str(item) for item in found)
        return "" if found is None else str(found)

    return value


def _size(key: str) -> Any:
    return lambda row: size(row.get(key))


def _ufs_size(row: Row) -> str:
    known = size(row.get("ufs_total_size"))
    if not row.get("ufs_scanning"):
        return known or "<unknown>"
    return f"{known}+" if row.get("ufs_total_size") else "[Calculating]"


def _ufs_files(row: Row) -> str:
    files = row.get("ufs_total_files")
    if files is None:
        return "[Calculating]" if row.get("ufs_scanning") else "<unknown>"
    return f"{files}+" if row.get("ufs_scanning") else str(files)


def _hit_ratio(row: Row) -> str:
    ratio = row.get("hit_ratio")
    return "" if ratio is None else percentage(ratio * 100)


def load_duration(row: Row) -> str:
    """How long a load took, or has been running."""
    started, finished = row.get("started"), row.get("finished")
    return duration((finished or time.time()) - started) if started else ""


def load_progress(row: Row) -> str:
    """How much of a load is done: `1.00GiB/4.00GiB`."""
    total = row.get("bytes_total")
    return f"{size(row.get('bytes_cached') or 0)}/{size(total)}" if total is not None else ""


def _used_of(medium: str) -> Any:
    def value(row: Row) -> str:
        quota = row.get(f"{medium}_quota")
        return f"{size(row.get(f'{medium}_used') or 0)}/{size(quota)}" if quota else ""

    return value


def _short_node(row: Row) -> str:
    return str(row.get("node_id") or "")[:12]


def _mounts(row: Row) -> str:
    told = [(item["path"], item["state"]) for item in row.get("mounts") or ()]
    return ",".join(path if state == "mounted" else f"{path} ({state})" for path, state in told)


def _leaving(row: Row) -> str:
    """How far a worker is with each dataset that it moves to others: `imagenet 1.00GiB/4.00GiB`."""
    told = []
    for dataset, progress in sorted((row.get("leaving") or {}).items()):
        done = progress["bytes_moved"] + progress["bytes_elsewhere"]
        told.append(f"{dataset} {size(done)}/{size(progress['bytes_total'])}")
    return ", ".join(told)


def _tiers(row: Row) -> str:
    """`healthy`, or which are not and why."""
    tiers = row.get("tiers") or ()
    sick = [tier for tier in tiers if tier.get("state", "healthy") != "healthy"]
    told = [f"{tier['medium']} of {tier['dataset']} {tier['state']} ({tier['error']})" for tier in sick]
    return ", ".join(told) or ("healthy" if tiers else "")


_NAME = Column("NAME", _text("name"))
_AGE = Column("AGE", lambda row: age(row.get("created")))
_NAMESPACE = Column("NAMESPACE", _text("namespace"), wide=True)

KINDS = (
    Kind(
        "datasets", "dataset", "Dataset", ("ds",),
        (
            _NAME,
            Column("UFS TOTAL SIZE", _ufs_size),
            Column("CACHED", _size("cached")),
            Column("CACHE CAPACITY", _size("cache_capacity")),
            Column("CACHED PERCENTAGE", lambda row: percentage(row.get("cached_percentage"))),
            Column("PHASE", _text("phase")),
            _AGE,
            Column("TOTAL FILES", _ufs_files, wide=True),
            Column("CACHE HIT RATIO", _hit_ratio, wide=True),
            _NAMESPACE,
            Column("UFS", _text("ufs"), wide=True),
        ),
    ),
    Kind(
        "loads", "dataload", "DataLoad", ("load", "dl"),
        (
            _NAME,
            Column("DATASET", _text("dataset")),
            Column("PHASE", _text("phase")),
            _AGE,
            Column("DURATION", load_duration),
            Column("PROGRESS", load_progress, wide=True),
            Column("FILES", _text("files_total", "files"), wide=True),
            Column("REASON", _text("reason", "message"), wide=True),
        ),
    ),
    Kind(
        "runtimes", "runtime", "CacheRuntime", ("cacheruntime", "rt"),
        (
            _NAME,
            Column("REPLICAS", _text("replicas")),
            Column("TIERS", _text("tiers")),
            _AGE,
            _NAMESPACE,
        ),
    ),
    Kind(
        "workers", "worker", "", ("wk",),
        (
            Column("NAME", lambda row: str(row.get("id") or row.get("name") or "")),
            Column("STATE", _text("state")),
            Column("NODE", _short_node),
            Column("DATASETS", _text("datasets")),
            Column("MEM", _used_of("mem")),
            Column("SSD", _used_of("ssd")),
            Column("AGE", lambda row: age(row.get("started"))),
            Column("ADDRESS", _text("address"), wide=True),
            Column("PID", _text("pid"), wide=True),
            Column("NODE ID", _text("node_id"), wide=True),
            Column("LEAVING", _leaving, wide=True),
            Column("MOUNTS", _mounts, wide=True),
            Column("TIERS", _tiers, wide=True),
        ),
    ),
    Kind("secrets", "secret", "Secret", (), (_NAME, Column("KEYS", _text("keys")), _AGE, _NAMESPACE)),
)  # fmt: skip

_BY_WORD = {
    form: kind for kind in KINDS for word in (kind.singular, *kind.short) for form in (word, word + "s")
}


def find_kind(word: str) -> Kind:
    """The kind that a user means: `dataset`, `datasets`, `Dataset`, `ds`.

    Raises:
        SpecError: there is no such kind; names the nearest.
    """
    folded = word.lower()
    kind = _BY_WORD.get(folded)
    if kind is not None:
        return kind
    near = difflib.get_close_matches(folded, _BY_WORD, n=1, cutoff=0.7)
    if near:
        hint = f"did you mean {_BY_WORD[near[0]].plural}?"
    else:
        hint = "kinds are " + ", ".join(kind.plural for kind in KINDS)
    raise SpecError(f"there is no kind {word!r}", hint=hint)


def kind_of_document(document_kind: str) -> Kind:
    """The kind of a YAML document: `Dataset`, `CacheRuntime`."""
    return next(kind for kind in KINDS if kind.document == document_kind)


def show_name(kind: Kind, name: str) -> str:
    """`dataset/imagenet`."""
    return f"{kind.singular}/{name}"
