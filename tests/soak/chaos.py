"""What happens to the readers: objects change, processes die or freeze, the store fails now and then."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from raycache.api import Admin
from raycache.errors import NotFoundError, RaycacheError
from raycache.fuse import mounts
from tests.soak.reader import name_of
from tests.soak.truth import ABSENT, VERSIONS, Truth, content
from tests.support.s3proxy import Fault, FaultRules, Request
from tests.support.seaweed import SeaweedS3
from tests.support.waiting import until

KiB, MiB = 1 << 10, 1 << 20

SIZES = (4 * KiB, 300 * KiB, 1 * MiB, 3 * MiB, 9 * MiB, 17 * MiB)
"""Sizes of objects, about: below a page's multiple, below a block, of some blocks, larger than what a mount fetches at
once (8 MiB), than a fetch (8 MiB), and than what the S3 server keeps in one piece (16 MiB)."""

ONE_IN = 20
"""One request in so many fails: 5 %."""

FAULTS: Sequence[dict[str, Any]] = (
    {"status": 500},
    {"status": 503, "headers": {"Retry-After": "1"}},
    {"reset": True},
    {"truncate": 10_000},
    {"truncate": 3_000, "reset": True},
    {"stall_after": 2_000, "stall_s": 1.5},
    {"latency_s": 0.4},
    {"status": 429},
    {"headers": {"Content-Range": "bytes 1-2/3"}, "kind": "GET"},
)

FREEZE_S = 2.0

RESTORE_S = 60.0
"""Longest wait for a coordinator, which may just have been killed, to take the last orders."""


class Faults:
    """What the store's proxy does to requests: each of FAULTS in turn, to one request in ONE_IN.

    Attributes:
        done: number of requests that were made to fail.
    """

    def __init__(self) -> None:
        period = ONE_IN * len(FAULTS)
        self._rules = FaultRules(
            [{**fault, "skip": ONE_IN * number, "every": period} for number, fault in enumerate(FAULTS)]
        )
        self.done = 0

    def __call__(self, request: Request) -> Fault | None:
        """The fault of this request, if it has one."""
        fault = self._rules(request)
        self.done += fault is not None
        return fault


class Repeated:
    """Does something again and again, in a thread, until it is stopped.

    Args:
        name: of the thread.
        act: what it does; returns the seconds to wait.
    """

    def __init__(self, name: str, act: Callable[[], float]) -> None:
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(1, name)
        self._ended = self._pool.submit(self._run, act)

    def stop(self) -> None:
        """End it, and wait for it. Raises what ended it before."""
        self._stopped.set()
        with self._pool:
            self._ended.result()

    def _run(self, act: Callable[[], float]) -> None:
        while not self._stopped.wait(act()):
            pass


class Writer:
    """A third party that changes objects in the store, past raycache.

    Args:
        server: the store.
        bucket: where.
        truth: what it notes its changes in.
        seed: of its choices.
    """

    def __init__(self, server: SeaweedS3, bucket: str, truth: Truth, seed: int) -> None:
        self._client = server.client()
        self._bucket = bucket
        self._truth = truth
        self._random = random.Random(seed)
        self.changes: Counter[str] = Counter()

    def fill(self) -> None:
        """First versions of all objects."""
        for key in range(self._truth.keys):
            self._put(key, self._new_size(key))

    def act(self) -> float:
        """One change; the seconds until the next."""
        key = self._random.randrange(self._truth.keys)
        newest = self._truth.newest(key)
        if newest > VERSIONS - 3:
            return 1.0
        size = self._truth.size(key, newest)
        dice = self._random.random()
        if size == ABSENT:
            self._put(key, self._new_size(key), "created again")
        elif dice < 0.1:
            self._delete(key)
        elif dice < 0.3:
            self._put(key, size, "replaced by one of equal size")
        elif dice < 0.4:
            self._put(key, max(4096, size // 2), "truncated")
        elif dice < 0.45:
            # The same bytes: the same version, for who goes by ETags.
            self._client.put_object(Bucket=self._bucket, Key=name_of(key), Body=content(key, newest, 0, size))
            self.changes["written again, the same"] += 1
        else:
            self._put(key, self._new_size(key), "replaced")
        return self._random.uniform(0.1, 1.5)

    def make_whole(self) -> None:
        """Every object there again."""
        for key in range(self._truth.keys):
            if self._truth.size(key, self._truth.newest(key)) == ABSENT:
                self._put(key, self._new_size(key))

    def close(self) -> None:
        """Close its connection."""
        self._client.close()

    def _new_size(self, key: int) -> int:
        return int(SIZES[key % len(SIZES)] * self._random.uniform(0.7, 1.3)) + 16

    def _put(self, key: int, size: int, what: str = "created") -> None:
        with self._truth.change(key, size) as version:
            body = content(key, version, 0, size)
            self._client.put_object(Bucket=self._bucket, Key=name_of(key), Body=body)
        self.changes[what] += 1

    def _delete(self, key: int) -> None:
        with self._truth.change(key, ABSENT):
            self._client.delete_object(Bucket=self._bucket, Key=name_of(key))
        self.changes["deleted"] += 1


class Killer:
    """Kills and freezes workers, the coordinator and the mount's server; scales the dataset and drains nodes.

    Args:
        admin: control of the cluster.
        spared: node whose worker lives, so that its memory can be watched.
        point: where the dataset is mounted; "" where it is not.
        seed: of its choices.
    """

    def __init__(self, admin: Admin, spared: str, point: str, seed: int) -> None:
        self._admin = admin
        self._spared = spared
        self._point = point
        self._random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self._drained = ""
        self._blows = [self._worker, self._worker, self._frozen_worker, self._coordinator, self._eviction]
        self._blows += [self._rescale, self._drain]
        if point:
            self._blows += [self._server, self._server]

    def act(self) -> float:
        """One blow; the seconds until the next."""
        blow = self._random.choice(self._blows)
        if blow():
            self.done[_kind(blow)] += 1
        return self._random.uniform(1.0, 5.0)

    def restore(self) -> None:
        """All nodes hold the dataset again."""
        until(self._undrain, "no node is drained", RESTORE_S)
        until(lambda: self._scale("all"), "all nodes are wanted", RESTORE_S)

    @property
    def kinds(self) -> set[str]:
        """All kinds of blows."""
        return {_kind(blow) for blow in self._blows}

    def _victim(self) -> int:
        try:
            workers = self._admin.get("workers")
        except RaycacheError:  # the coordinator was killed just now
            return 0
        pids = [row["pid"] for row in workers if row["state"] == "up" and row["node_id"] != self._spared]
        return self._random.choice(pids) if pids else 0

    def _worker(self) -> bool:
        return _signal(self._victim(), signal.SIGKILL)

    def _frozen_worker(self) -> bool:
        pid = self._victim()
        frozen = _signal(pid, signal.SIGSTOP)
        if frozen:
            time.sleep(FREEZE_S)  # that long it is frozen: no race
            _signal(pid, signal.SIGCONT)
        return frozen

    def _coordinator(self) -> bool:
        try:
            return _signal(self._admin.status()["coordinator"]["pid"], signal.SIGKILL)
        except RaycacheError:
            return False

    def _eviction(self) -> bool:
        try:
            self._admin.evict("ds")
        except RaycacheError:
            return False
        return True

    def _rescale(self) -> bool:
        return self._scale(self._random.choice([1, 2, 2, "all"]))

    def _scale(self, replicas: int | str) -> bool:
        try:
            self._admin.scale("ds", replicas)
        except RaycacheError:
            return False
        return True

    def _drain(self) -> bool:
        """One node after the other: the one before may hold again."""
        if self._drained:
            return self._undrain()
        try:
            rows = self._admin.get("workers")
            nodes = [row["node_id"] for row in rows if row["node_id"] != self._spared]
            self._drained = self._random.choice(nodes)
            self._admin.drain(self._drained, timeout_s=10.0, wait=False)
        except RaycacheError:  # it may have been taken all the same
            return False
        return True

    def _undrain(self) -> bool:
        if not self._drained:
            return True
        try:
            self._admin.undrain(self._drained)
        except NotFoundError:
            pass  # the coordinator was killed before it had heard of the drain
        except RaycacheError:
            return False
        self._drained = ""
        return True

    def _server(self) -> bool:
        return _signal(mounts.status(self._point).server_pid, signal.SIGKILL)


def _kind(blow: Callable[[], bool]) -> str:
    return blow.__name__.strip("_").replace("_", " ")


def _signal(pid: int, number: signal.Signals) -> bool:
    if not pid:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
