"""What the workers tell of their tiers' devices: which are sick, since when, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from raycache.store import TierUsage

HEALTHY = "healthy"


def sick(usages: Mapping[str, Sequence[TierUsage]]) -> list[dict[str, Any]]:
    """The tiers that are not healthy, each with its dataset, for a worker's report.

    Args:
        usages: of every dataset that the worker holds, by name.
    """
    return [
        {"dataset": name, **asdict(tier)}
        for name, tiers in sorted(usages.items())
        for tier in tiers
        if tier.state != HEALTHY
    ]


def of_worker(usage: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """All tiers of a worker (`EngineService.usage`; None: it does not answer), for `get workers` and `describe`."""
    datasets = (usage or {}).get("datasets", {})
    return [{"dataset": name, **tier} for name, held in sorted(datasets.items()) for tier in held["tiers"]]


def problem(report: Mapping[str, Any] | None) -> str:
    """What ails the tiers of a worker, in a sentence for `status`; "" if nothing does, or it does not answer."""
    return "; ".join(
        f"tier {tier['medium']} of dataset {tier['dataset']} is {tier['state']}: {tier['error']} ({tier['path']})"
        for tier in (report or {}).get("sick_tiers", ())
    )
