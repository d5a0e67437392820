"""What `get`, `describe` and `status` show, made of the catalog, the reconciler's view and the workers' usage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raycache.actors import tier_reports
from raycache.actors.assignment import Node, eligible
from raycache.actors.catalog import Entry
from raycache.actors.departures import Departures
from raycache.spec import CacheRuntime, ResolvedDataset, Secret

Usages = Mapping[str, Mapping[str, Any]]
"""Usage of each worker that answered, by node id (`EngineService.usage`)."""


def phase_of(
    dataset: ResolvedDataset, nodes: Sequence[Node], held_by: int, settled: bool, problems: Mapping[str, str]
) -> tuple[str, str]:
    """Phase of a dataset, and why it is not (fully) Bound.

    Args:
        dataset: the dataset.
        nodes: of the cluster.
        held_by: number of workers that hold it.
        settled: whether all that should hold it do, or have said why not.
        problems: why nodes do not, by node id.
    """
    least, _ = dataset.replica_bounds
    told = "; ".join(sorted({f"node {node[:12]}: {why}" for node, why in problems.items()}))
    fitting = len(eligible(dataset, nodes))
    if held_by >= least:
        return "Bound", f"not on {len(problems)} of {fitting} nodes: {told}" if problems else ""
    if not settled:
        return "Pending", told or "workers are taking it on"
    if not fitting:
        return "NotReady", f"no node has the labels {dataset.node_selector}"
    if held_by == 0 and problems:
        return "Failed", told
    return "NotReady", told or f"{held_by} nodes hold it and replicas asks for {least}"


def by_reason(dataset: str, what: str, problems: Mapping[str, str]) -> tuple[str, ...]:
    """Warnings that a dataset is not `what` on some nodes: one for each reason, however many nodes have it.

    Args:
        dataset: its name.
        what: `cached`, `mounted`.
        problems: reasons by node id.
    """
    nodes: dict[str, list[str]] = {}
    for node, problem in sorted(problems.items()):
        nodes.setdefault(problem, []).append(node)
    return tuple(
        f"dataset {dataset}: not {what} on {len(of)} node{'s' if len(of) > 1 else ''}, such as {of[0][:12]}: {problem}"
        for problem, of in nodes.items()
    )


def dataset_usage(name: str, usages: Usages) -> dict[str, int]:
    """Bytes and capacity of a dataset over all workers that answered."""
    held = [usage["datasets"][name] for usage in usages.values() if name in usage["datasets"]]
    return {
        "cached": sum(item["primary_bytes"] for item in held),
        "near_copies": sum(item["secondary_bytes"] for item in held),
        "cache_capacity": sum(tier["quota"] for item in held for tier in item["tiers"]),
        "hit": sum(item["hit_bytes"] for item in held),
        "missed": sum(item["missed_bytes"] for item in held),
    }


def dataset_row(
    dataset: ResolvedDataset, created: float, scan: Mapping[str, Any], usages: Usages, phase: tuple[str, str]
) -> dict[str, Any]:
    """A dataset as `raycache get datasets` shows it."""
    usage = dataset_usage(dataset.name, usages)
    total = scan["ufs_total_size"]
    known = total is not None and not scan["ufs_scanning"]
    read = usage["hit"] + usage["missed"]
    percentage = None
    if known and total:
        # Versions that were replaced in the store may still be cached, so it can be more than there is.
        percentage = min(100.0, 100.0 * usage["cached"] / total)
    return {
        "name": dataset.name,
        "namespace": dataset.namespace,
        "ufs": ",".join(mount.uri for mount in dataset.mounts),
        "ufs_total_size": total,
        "ufs_total_files": scan["ufs_total_files"],
        "ufs_scanning": scan["ufs_scanning"],
        "cached": usage["cached"],
        "cache_capacity": usage["cache_capacity"],
        "cached_percentage": percentage,
        "hit_ratio": usage["hit"] / read if read else None,
        "phase": phase[0],
        "created": created,
        "reason": phase[1] or scan["error"],
    }


def leaving(node_id: str, report: Mapping[str, Any] | None, departures: Departures) -> dict[str, Any]:
    """What of a worker's row tells how far it is with what it leaves; `leaving` is empty for most."""
    drain = departures.drains.get(node_id)
    known = dict(drain.datasets) if drain is not None else {}
    found = {**known, **(report["leaving"] if report else {})}
    row: dict[str, Any] = {"leaving": found}
    if drain is not None:
        row |= {"state": "drained" if drain.ended else "draining", "deadline": drain.deadline}
    return row


def runtime_row(name: str, entry: Entry) -> dict[str, Any]:
    """A runtime as `raycache get runtimes` shows it."""
    model = entry.model
    assert isinstance(model, CacheRuntime)
    public = model.public()["spec"]
    levels = (public.get("tieredstore") or {}).get("levels") or []
    return {
        "name": name,
        "namespace": model.metadata.namespace,
        "replicas": public.get("replicas", "all"),
        "tiers": [f"{level['mediumtype']}:{level['path']}:{level['quota']}" for level in levels],
        "created": entry.created,
    }


def secret_row(name: str, entry: Entry) -> dict[str, Any]:
    """A secret as `raycache get secrets` shows it: only which keys it has."""
    model = entry.model
    assert isinstance(model, Secret)
    return {
        "name": name,
        "namespace": model.metadata.namespace,
        "keys": sorted(model.values()),
        "created": entry.created,
    }


def worker_row(
    node: Node, report: Mapping[str, Any] | None, trouble: str, usage: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A worker as `raycache get workers` shows it; also for a node whose worker does not answer."""
    tiers = [tier for item in (usage or {"datasets": {}})["datasets"].values() for tier in item["tiers"]]

    def total(key: str, *media: str) -> int:
        return sum(tier[key] for tier in tiers if tier["medium"] in media)

    worker = report["worker"] if report else {}
    return {
        "id": worker.get("id", ""),
        "node_id": node.id,
        "address": worker.get("address", node.address),
        "state": worker.get("state", "starting" if not trouble else "down"),
        "pid": report["pid"] if report else None,
        "datasets": sorted(worker.get("weights", {})),
        "mem_used": total("used", "MEM"),
        "mem_quota": total("quota", "MEM"),
        "ssd_used": total("used", "SSD", "HDD"),
        "ssd_quota": total("quota", "SSD", "HDD"),
        "started": report["started"] if report else None,
        "reason": trouble,
        "metrics": dict((usage or {}).get("metrics", {})),
        "tiers": tier_reports.of_worker(usage),
    }
