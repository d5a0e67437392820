"""After the storm: is everything there again, right, accounted for, and nothing held?"""

from __future__ import annotations

import gc
import os
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from raycache import api
from raycache.errors import RaycacheError
from tests.soak.reader import name_of
from tests.soak.setting import KEYS, PATIENCE_S, MiB, Setting
from tests.soak.truth import ABSENT, content
from tests.support.waiting import until


def settle(setting: Setting) -> None:
    """Wait until all workers hold the dataset again, and no answer of the storm is believed any more."""
    rows: list[dict[str, Any]] = []

    def settled() -> bool:
        nonlocal rows
        try:
            rows = setting.cache.admin.get("workers")
        except RaycacheError:
            return False
        up = [row for row in rows if row["state"] == "up" and row["datasets"] == ["ds"]]
        return len(rows) == len(up) == 3

    try:
        until(settled, "all workers are back", PATIENCE_S)
    except AssertionError as late:
        told = [(row["node_id"], row["state"], row["reason"], row["datasets"]) for row in rows]
        raise AssertionError(f"{late}: {told}") from None
    if setting.point:
        until(
            lambda: setting.cache.admin.describe("datasets", "ds")["mount"]["mounted_on"] == 3,
            "the mount is known on all nodes",
            PATIENCE_S,
        )
    over = setting.truth.last_change() + setting.truth.believed_s
    until(lambda: time.monotonic() > over, "no old answer is believed", PATIENCE_S)


def check_all_is_right(setting: Setting) -> list[str]:
    """Every object, whole, by the client and by the mount."""
    problems = []
    for key, size in _sizes(setting).items():
        assert size != ABSENT
        right = content(key, setting.truth.newest(key), 0, size)
        if setting.cache.read(name_of(key)) != right:
            problems.append(f"object {key} is not right after the storm")
        if setting.point and Path(setting.point, name_of(key)).read_bytes() != right:
            problems.append(f"object {key} of the mount is not right after the storm")
    return problems


def check_leases(setting: Setting) -> list[str]:
    """Nobody reads any more, so everything can be evicted; a lease that was forgotten would keep its file."""

    def empty() -> bool:
        setting.cache.admin.evict("ds")
        return not any(tier["used"] for tier in _tiers(setting))

    gc.collect()
    try:
        until(empty, "", 30.0)
    except AssertionError:
        left = [path for tier in _tiers(setting) for path in Path(tier["path"]).rglob("*.data")]
        return [
            f"{path} ({path.stat().st_blocks // 2} KiB) cannot be evicted: {_lease_holders(path)}"
            for path in left
        ]
    return []


def _lease_holders(path: Path) -> str:
    """Who has a flock on a file."""
    found = path.stat()
    file = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    holders = []
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if file in fields:
            command = Path(f"/proc/{fields[4]}/cmdline")
            holders.append(command.read_text().replace("\0", " ")[:100] if command.exists() else fields[4])
    return ", ".join(holders) or "nobody has a lease on it"


def check_fetched_once(setting: Setting) -> tuple[tuple[int, int], list[str]]:
    """On a quiet cluster, what fits is fetched once, whatever reads it, and the workers know of every byte.

    Returns:
        Bytes that the store gave and bytes that were read on each of the nodes; and what is wrong.
    """
    import ray

    cluster, proxy, problems = setting.cache.cluster, setting.cache.proxy, []
    chosen, size = [], 0
    for key, bytes_ in sorted(_sizes(setting).items(), key=lambda item: item[1]):
        if size + bytes_ <= 12 * MiB:
            chosen.append(name_of(key))
            size += bytes_
    proxy.reset()
    before = _counted(setting)
    tasks = [cluster.run_on(node, _read_all, chosen) for node in cluster.node_ids()]
    assert ray.get(tasks, timeout=PATIENCE_S) == [size] * len(tasks)
    fetched, counted = proxy.stats().bytes, _counted(setting) - before
    if not size <= fetched <= size * 1.01:
        problems.append(f"{fetched} bytes were fetched for {size}")
    if counted != fetched:
        problems.append(f"the store gave {fetched} bytes and the workers have counted {counted}")
    return (fetched, size), problems


def check_ledger(setting: Setting) -> list[str]:
    """What the workers say they use is what lies on their tiers."""
    problems = []
    for tier in _tiers(setting):
        # (LOCK and SCRUB, the store's own notes, have no suffix, and a page at most.)
        files = [path for path in Path(tier["path"]).rglob("*") if path.suffix]
        lies = sum(path.stat().st_blocks * 512 for path in files)
        if lies > tier["used"]:
            problems.append(f"{tier['path']}: {lies} bytes lie there, {tier['used']} are known: {files}")
    return problems


def _sizes(setting: Setting) -> dict[int, int]:
    return {key: setting.truth.size(key, setting.truth.newest(key)) for key in range(KEYS)}


def _tiers(setting: Setting) -> list[dict[str, Any]]:
    workers = setting.cache.admin.describe("datasets", "ds")["workers"]
    return [tier for worker in workers for tier in worker["tiers"]]


def _counted(setting: Setting) -> int:
    """Bytes from the store that the workers have counted."""
    rows = setting.cache.admin.get("workers")
    return sum(row["metrics"].get("fetched_store_bytes", 0) for row in rows)


def _read_all(names: list[str]) -> int:
    """Runs in a task: bytes of these files."""
    client = api.connect()
    total = 0
    for name in names:
        with closing(client.open("ds", name)) as reader:
            total += len(reader.read_at(0, reader.size))
    return total
