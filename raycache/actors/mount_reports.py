"""What the workers tell of `mountPath`: where datasets are mounted, where not, and why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raycache.actors.events import Events
from raycache.actors.seat import Seat
from raycache.spec import ResolvedDataset


def _reports(seat: Seat) -> dict[str, dict[str, Any]]:
    """`NodeMounts.report` of a node's worker; of one that does not answer, nothing."""
    return dict(seat.report.get("mounts") or {}) if seat.report else {}


def problems(dataset: str, seats: Sequence[Seat]) -> dict[str, str]:
    """Why nodes have not mounted a dataset that they should have, by node id."""
    found = {seat.node.id: _reports(seat).get(dataset, {}) for seat in seats}
    return {node: str(told["problem"]) for node, told in found.items() if told.get("state") == "failed"}


def decided(name: str, plan: Mapping[str, Mapping[str, ResolvedDataset]], seats: Sequence[Seat]) -> bool:
    """Whether every worker that answers has mounted a dataset, in its latest generation, or has said why not."""
    for seat in seats:
        planned = plan[seat.node.id].get(name)
        if planned is None or planned.mount_path is None or seat.report is None:
            continue
        told = _reports(seat).get(name, {})
        if told.get("generation") != planned.generation or told.get("state") == "pending":
            return False
    return True


def summary(dataset: ResolvedDataset, seats: Sequence[Seat]) -> dict[str, Any]:
    """For `describe dataset`: where it is to be mounted, on how many nodes it is, how many hold it, and problems."""
    told = [_reports(seat).get(dataset.name, {}) for seat in seats]
    return {
        "path": dataset.mount_path,
        "mounted_on": sum(one.get("state") == "mounted" for one in told),
        "nodes": sum(dataset.name in seat.generations for seat in seats),
        "problems": problems(dataset.name, seats),
    }


def of_worker(seat: Seat) -> list[dict[str, Any]]:
    """The mounts of one node, for `get workers` and `describe`."""
    keys = ("path", "state", "served", "problem")
    return [{"dataset": n, **{k: told.get(k) for k in keys}} for n, told in sorted(_reports(seat).items())]


class MountEvents:
    """Notes when a node fails to mount a dataset, and when it has got over that.

    Args:
        events: gets what happens to datasets.
    """

    def __init__(self, events: Events) -> None:
        self._events = events
        self._known: dict[tuple[str, str], str] = {}

    def look(self, seats: Sequence[Seat]) -> None:
        """Compare with what was told the last time. Nodes whose worker does not answer are left as they were."""
        for seat in seats:
            for name, told in _reports(seat).items():
                if told.get("state") != "pending":
                    self._note(name, seat.node.id, str(told.get("path")), str(told.get("problem") or ""))
        there = {seat.node.id for seat in seats}
        self._known = {key: why for key, why in self._known.items() if key[1] in there}

    def _note(self, name: str, node: str, path: str, problem: str) -> None:
        before = self._known.get((name, node), "")
        self._known[name, node] = problem
        if problem == before:
            return
        where = f"node {node[:12]}: "
        if problem:
            self._events.add("Dataset", name, "NotMounted", where + problem, type="Warning")
        else:
            self._events.add("Dataset", name, "Mounted", f"{where}at {path}")
