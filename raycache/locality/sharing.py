"""Dealing files, workers and bundles out to the nodes that have their bytes. Pure: numbers in, names out."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

Shares = Sequence[Mapping[str, int]]
"""For each file, in order: bytes by node."""


@dataclass(frozen=True)
class Group:
    """Files that are to be read together.

    Args:
        node: where; None: anywhere, because no node has any of their bytes.
        files: their places in what was given, ascending.
    """

    node: str | None
    files: tuple[int, ...]


def by_node(shares: Shares, sizes: Sequence[int], limit: int) -> list[Group]:
    """One group for each node: every file is in that of the node that has most of it.

    Where several nodes have equally much of a file (copies), it goes to the one with fewest bytes to read so far.

    Args:
        shares: bytes of each file by node.
        sizes: bytes of each file.
        limit: most groups; the files of the nodes with least to read then become one group without a node.

    Returns:
        The groups, in the order of their first files.
    """
    load: dict[str, int] = defaultdict(int)
    members: dict[str | None, list[int]] = defaultdict(list)
    for index, (share, size) in enumerate(zip(shares, sizes, strict=True)):
        most = max(share.values(), default=0)
        node = min((n for n in share if share[n] == most), key=lambda n: (load[n], n)) if most else None
        members[node].append(index)
        if node is not None:
            load[node] += size
    if len(members) > limit:
        kept = sorted(load, key=lambda node: (-load[node], node))[: limit - 1]
        rest = [index for node, files in members.items() if node not in kept for index in files]
        members = defaultdict(list, {node: members[node] for node in kept} | {None: sorted(rest)})
    groups = [Group(node, tuple(files)) for node, files in members.items()]
    return sorted(groups, key=lambda group: group.files[0])


def in_order(shares: Shares, sizes: Sequence[int], limit: int) -> list[Group]:
    """Runs of neighbouring files, so that reading the groups one after the other keeps the order of the files.

    Begins with runs of files that one node has most of. While there are more than `limit`, the two neighbours are
    joined that lose fewest local bytes by it, so many files whose nodes alternate lose much. Arguments as `by_node`.
    """
    best = _settled(shares, sizes)
    runs = [[index for index, _ in files] for _, files in groupby(enumerate(best), key=lambda item: item[1])]
    held = [_sum([shares[index] for index in run]) for run in runs]
    after = list(range(1, len(runs) + 1))
    before = list(range(-1, len(runs) - 1))
    age = [0] * len(runs)

    def loss(left: int) -> float:
        right = after[left]
        return _most(held[left]) + _most(held[right]) - _most(_sum([held[left], held[right]]))

    waiting = [(loss(left), left, 0, 0) for left in range(len(runs) - 1)]
    heapq.heapify(waiting)
    alive = len(runs)
    while alive > max(1, limit):
        _, left, left_age, right_age = heapq.heappop(waiting)
        right = after[left]
        if age[left] != left_age or right >= len(runs) or age[right] != right_age:
            continue  # one of the two has been joined to another since
        runs[left] += runs[right]
        held[left] = _sum([held[left], held[right]])
        after[left] = after[right]
        if after[left] < len(runs):
            before[after[left]] = left
        age[left] += 1
        age[right] = -1
        alive -= 1
        for start in (before[left], left):
            if start >= 0 and after[start] < len(runs):
                heapq.heappush(waiting, (loss(start), start, age[start], age[after[start]]))
    return [
        Group(_best(share, best[run[0]]), tuple(run))
        for run, share, number in zip(runs, held, age, strict=True)
        if number >= 0
    ]


def _settled(shares: Shares, sizes: Sequence[int]) -> list[str | None]:
    """A node for each file that has most of it. Where several have, the node of the file before goes on until it has
    its fair share, and then comes the one with least; a file that nobody has any of changes nothing."""
    fair = sum(sizes) / max(1, len({node for share in shares for node in share}))
    load: dict[str, int] = defaultdict(int)
    chosen: list[str | None] = []
    node: str | None = None
    for share, size in zip(shares, sizes, strict=True):
        most = _most(share)
        best = [name for name in share if share[name] == most] if most else []
        if best and (node is None or node not in best or load[node] >= fair):
            node = min(best, key=lambda name: (load[name], name))
        if node is not None:
            load[node] += size
        chosen.append(node)
    return chosen


def apportion(weights: Mapping[str, int], count: int) -> list[str]:
    """`count` names in proportion to their weights (highest averages, D'Hondt); those of one name stand together.

    Empty if nothing has a weight.
    """
    chosen: dict[str, int] = {}
    for _ in range(count):
        name = _next(weights, chosen, [name for name, weight in weights.items() if weight > 0])
        if name is not None:
            chosen[name] = chosen.get(name, 0) + 1
    return [name for name, times in chosen.items() for _ in range(times)]


def place_bundles(
    bundles: Sequence[Mapping[str, float]],
    weights: Mapping[str, int],
    capacity: Mapping[str, Mapping[str, float]],
    strategy: str,
) -> list[str | None]:
    """A node for each bundle of a placement group; None: anywhere.

    Bundles go to the nodes in proportion to their bytes, and only where they fit beside the others.

    Args:
        bundles: resources of each.
        weights: bytes by node.
        capacity: resources that each node has in all.
        strategy: PACK, SPREAD, STRICT_PACK or STRICT_SPREAD. STRICT_SPREAD takes each node once; STRICT_PACK takes the
            node with most bytes that has room for all of them.
    """
    left = {node: dict(capacity[node]) for node in weights if node in capacity and weights[node] > 0}
    if strategy == "STRICT_PACK":
        total = _sum(bundles)
        fitting = [node for node in left if _fits(total, left[node])]
        best = min(fitting, key=lambda node: (-weights[node], node), default=None)
        return [best] * len(bundles)
    taken: dict[str, int] = {}
    placed: list[str | None] = []
    for bundle in bundles:
        fitting = [node for node in left if _fits(bundle, left[node])]
        if strategy == "STRICT_SPREAD":
            fitting = [node for node in fitting if node not in taken]
        found = _next(weights, taken, fitting)
        if found is not None:
            taken[found] = taken.get(found, 0) + 1
            for resource, amount in bundle.items():
                left[found][resource] = left[found].get(resource, 0) - amount
        placed.append(found)
    return placed


def _next(weights: Mapping[str, int], taken: Mapping[str, int], names: Sequence[str]) -> str | None:
    return min(names, key=lambda name: (-weights[name] / (taken.get(name, 0) + 1), name), default=None)


def _fits(wanted: Mapping[str, float], room: Mapping[str, float]) -> bool:
    return all(amount <= room.get(resource, 0) for resource, amount in wanted.items())


def _best(share: Mapping[str, float], preferred: str | None) -> str | None:
    """The node with most; the preferred one, if no other has more."""
    most = _most(share)
    if not most:
        return None
    if preferred is not None and share.get(preferred) == most:
        return preferred
    return min(name for name in share if share[name] == most)


def _most(share: Mapping[str, float]) -> float:
    return max(share.values(), default=0)


def _sum(shares: Sequence[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = defaultdict(int)
    for share in shares:
        for name, amount in share.items():
            total[name] += amount
    return dict(total)
