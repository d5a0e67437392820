"""Ray Data reads with local tasks: a sub-dataset for each node that holds bytes, and their union.

Ray Data's read tasks carry no scheduling of their own: a read has one label selector for all of its tasks. So the
files are dealt out to the nodes that hold them (or, if nobody does, will hold them), each node's are a read of their
own with a selector for that node, and the union of these is one dataset.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raycache import arrow_filesystem  # as anybody would: fronts know nothing of each other
from raycache.api import connect
from raycache.blocks import MiB
from raycache.data.footers import footer_actors
from raycache.data.prefetching import Prefetch
from raycache.errors import ObjectNotFoundError, SpecError
from raycache.locality import (
    FileHome,
    Group,
    Node,
    by_node,
    files_of,
    homes_of,
    in_order,
    live_nodes,
    node_options,
)

log = logging.getLogger(__name__)

Urls = str | Sequence[str]

MAX_GROUPS = 64
"""Sub-datasets of one read at most: each costs the driver about a tenth of a second (docs/ray-data.md)."""

MIN_TASK = MiB
"""Bytes that a task of Ray Data reads at least, where it splits files (`DataContext.target_min_block_size`)."""

FUSING = ("num_cpus", "num_gpus", "memory", "resources", "label_selector", "fallback_strategy")
"""Options in which two steps that run in the same tasks must agree (ray/data/_internal/logical/rules/
operator_fusion.py, Ray 2.60)."""


def read_parquet(paths: Urls, **options: Any) -> Any:
    """`ray.data.read_parquet`, local. See `read`."""
    return read("read_parquet", paths, **options)


def read_images(paths: Urls, **options: Any) -> Any:
    """`ray.data.read_images`, local. See `read`."""
    return read("read_images", paths, **options)


def read_binary_files(paths: Urls, **options: Any) -> Any:
    """`ray.data.read_binary_files`, local. See `read`."""
    return read("read_binary_files", paths, **options)


def read_text(paths: Urls, **options: Any) -> Any:
    """`ray.data.read_text`, local. See `read`."""
    return read("read_text", paths, **options)


def read_csv(paths: Urls, **options: Any) -> Any:
    """`ray.data.read_csv`, local. See `read`."""
    return read("read_csv", paths, **options)


def read_json(paths: Urls, **options: Any) -> Any:
    """`ray.data.read_json`, local. See `read`."""
    return read("read_json", paths, **options)


def read(
    reader: str | Callable[..., Any],
    paths: Urls,
    *,
    each: Callable[[Any, dict[str, Any]], Any] | None = None,
    max_groups: int = MAX_GROUPS,
    prefetch: bool = False,
    **options: Any,
) -> Any:
    """A dataset that is read where its files are.

    Each node's files are read by tasks on that node, as many at a time as it has CPUs. They take none of its CPUs in
    Ray's accounting, unless `num_cpus` says so: with a CPU each they would go elsewhere whenever the node's are taken,
    by the step after them for example. Should the node be gone when they start, they run in its zone, or anywhere.
    Rows come in the order of the files if `DataContext.execution_options.preserve_order` is set; then groups are runs
    of neighbouring files, and as local as `max_groups` of them can be.

    Args:
        reader: the function of `ray.data`, or its name. It takes paths, `filesystem=` and the options below.
        paths: `raycache://dataset/path` of files and directories, patterns of them, or `dataset/path`.
        each: what to do next with each node's part, before the union: it gets the part, and options with which a step
            runs in the read's own tasks, as in `lambda part, near: part.map_batches(decode, **near)`.
        max_groups: sub-datasets at most.
        prefetch: have the owners fetch what is not cached, in the order of the files and ahead of the tasks (see
            `prefetch`): whole files, also those of which only some columns are read.
        options: of the reader. `override_num_blocks` and `concurrency` are for the whole and are divided among the
            nodes; `label_selector` is required besides the node, and `fallback_strategy` comes after raycache's own.

    Returns:
        A `ray.data.Dataset`.

    Raises:
        ClusterUnavailableError: no Ray cluster, or no raycache on it.
        SpecError, PathError: paths that are not raycache's; an option that cannot be had.
        DatasetNotFoundError, ObjectNotFoundError: there is nothing of that name.
        AccessDeniedError, UnderStoreError: it cannot be listed.
        And what the reader raises.
    """
    import ray.data

    function = getattr(ray.data, reader) if isinstance(reader, str) else reader
    if "filesystem" in options:
        raise SpecError("raycache brings its own filesystem", where="filesystem", hint="leave it out")
    nodes = live_nodes()
    client = connect()
    files = files_of(client, paths, hidden=False)
    if not files:
        raise ObjectNotFoundError(
            "there are no files", where=", ".join([paths] if isinstance(paths, str) else paths)
        )
    ordered = bool(ray.data.DataContext.get_current().execution_options.preserve_order)
    homes = homes_of(client, files)
    groups = plan(homes, nodes, ordered=ordered, limit=max_groups)
    if prefetch:
        Prefetch(client, files)
    filesystem = arrow_filesystem()
    parts = []
    for group, own in zip(groups, divided(options, groups, homes, nodes), strict=True):
        names = [f"{files[index].dataset}/{files[index].path}" for index in group.files]
        with footer_actors(len(groups), len(names)):
            part = function(names, filesystem=filesystem, **own)
        parts.append(part if each is None else each(part, near(own)))
    return parts[0].union(*parts[1:]) if len(parts) > 1 else parts[0]


def near(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of a part's options those that the step after it must have, too, so that Ray Data fuses the two."""
    from ray.data import TaskPoolStrategy

    kept = {name: options[name] for name in FUSING if options.get(name) is not None}
    if options.get("concurrency") is not None:
        kept["compute"] = TaskPoolStrategy(size=options["concurrency"])
    return kept


def plan(homes: Sequence[FileHome], nodes: Mapping[str, Node], *, ordered: bool, limit: int) -> list[Group]:
    """Which files are read together, and on which of the nodes that are alive."""
    shares = [
        {node: count for node, count in home.by_node().items() if count and node in nodes} for home in homes
    ]
    sizes = [home.version.size for home in homes]
    return (in_order if ordered else by_node)(shares, sizes, max(1, limit))


def divided(
    options: Mapping[str, Any], groups: Sequence[Group], homes: Sequence[FileHome], nodes: Mapping[str, Node]
) -> list[dict[str, Any]]:
    """The options of each group's read."""
    sizes = [sum(homes[index].version.size for index in group.files) for group in groups]
    total = sum(sizes)
    shares = [size / total if total else 1 / len(groups) for size in sizes]
    per_node = [sum(other.node == group.node for other in groups) for group in groups]
    result = []
    for group, size, share, siblings in zip(groups, sizes, shares, per_node, strict=True):
        own = dict(options)
        for name in ("override_num_blocks", "concurrency", "parallelism"):
            if isinstance(own.get(name), int) and own[name] > 0:
                own[name] = max(1, round(own[name] * share))
        if group.node is not None:
            if own.get("num_cpus") is None and not own.get("num_gpus"):
                own["num_cpus"] = 0
                if own.get("concurrency") is None:
                    tasks = max(len(group.files), size // MIN_TASK)  # Ray Data warns of more than there are
                    own["concurrency"] = min(tasks, math.ceil(nodes[group.node].cpus / siblings))
            placing = node_options(group.node, nodes, own.get("label_selector"))
            placing["fallback_strategy"] += own.get("fallback_strategy") or []
            own |= placing
        result.append(own)
    return result
