"""`mountPath`: a node's worker has datasets mounted where their specs say, and keeps it so.

The FUSE shim is a front: it stands above this package, and its program does the work (`raycache.fuse.keeping`). Here is
only what is wanted, when to ask for it again, and what there is to tell. Mounts outlive this process; the worker that
comes after it adopts them.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from raycache import mountinfo
from raycache.actors.answers import unwrap
from raycache.errors import MountError, RaycacheError
from raycache.spec import ResolvedDataset

log = logging.getLogger(__name__)

KIND = "fuse.raycache"
"""Filesystem type of our mounts in the mount table."""

PROGRAM = (sys.executable, "-P", "-m", "raycache.fuse.keeping")

TIMEOUT_S = 45.0
"""Longest run of the program: a mount may take 20 s to come up, and wait that long for another worker's."""

LOOK_S = 5.0
"""Seconds between looks whether what is mounted still is, in the mount table, and its supervisor alive."""

FIRST_RETRY_S, LONGEST_RETRY_S = 5.0, 300.0
"""Seconds after which a mount that failed is tried again; doubles each time."""


class Mounter(Protocol):
    """Carries out a request of `raycache.fuse.keeping`. Raises RaycacheError."""

    def __call__(self, request: Mapping[str, Any]) -> Any: ...


def run_program(request: Mapping[str, Any]) -> Any:
    """The mounter: `PROGRAM`, in a process of its own."""
    try:
        done = subprocess.run(
            PROGRAM,
            input=json.dumps(request).encode(),
            capture_output=True,
            cwd="/",
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise MountError(f"not done within {TIMEOUT_S:g} s: {request['do']}") from None
    except OSError as error:
        raise MountError(f"the FUSE shim cannot be run: {error.strerror}") from None
    if done.stderr:
        log.warning("%s: %s", PROGRAM[-1], done.stderr.decode(errors="replace").strip())
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise MountError("the FUSE shim failed", hint="the worker's log has the details") from None
    return unwrap(answer)


@dataclass
class _Mount:
    """One dataset that is to be mounted.

    Args:
        dataset: with its `mount_path`.
        state: `pending`, `mounted` or `failed`.
        problem: why it is not mounted.
        served: how files are served, as the mounter told.
        point: where it is, without links; "" if it is not.
        device: of the mount, in the mount table.
        supervisor: process id of its supervisor.
        due: when to try again, monotonic seconds.
        pause: seconds until the try after that.
    """

    dataset: ResolvedDataset
    state: str = "pending"
    problem: str = ""
    served: str = ""
    point: str = ""
    device: str = ""
    supervisor: int = 0
    due: float = 0.0
    pause: float = FIRST_RETRY_S

    def there(self) -> bool:
        """Whether it still is, and somebody serves it. Costs next to nothing, and asks nothing of the mount."""
        entry = mountinfo.mounted_at(self.point) if self.point else None
        return (
            entry is not None and (entry.kind, entry.device) == (KIND, self.device) and _runs(self.supervisor)
        )


def _runs(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for has no command line any more."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False


class NodeMounts:
    """The mounts of one node's worker. Thread-safe.

    Args:
        node_id: the node.
        token: of the cluster's data plane.
        address: of this worker.
        others: nodes of the cluster, with their workers' addresses, as far as they are known.
        mounter: carries it out.
    """

    def __init__(
        self,
        node_id: str,
        token: str,
        address: str,
        others: Callable[[], Mapping[str, str]],
        mounter: Mounter = run_program,
    ) -> None:
        self._node_id = node_id
        self._token = token
        self._address = address
        self._others = others
        self._mounter = mounter
        self._turn = threading.Lock()
        """One request at a time."""
        self._lock = threading.Lock()
        self._mounts: dict[str, _Mount] = {}
        self._wake = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None

    def leave(self, wanted: Mapping[str, ResolvedDataset]) -> None:
        """Unmount what is not among `wanted`; returns when that is done. What cannot be unmounted is logged."""
        paths = {name: dataset.mount_path for name, dataset in wanted.items() if dataset.mount_path}
        with self._lock:
            kept = {n: m for n, m in self._mounts.items() if paths.get(n) == m.dataset.mount_path}
            self._mounts = kept
        with self._turn:
            # Also what a worker of this node left that is no more. The table costs nothing to look at.
            if any(entry.kind == KIND for entry in mountinfo.mounts()):
                nodes = [self._node_id, *self._others()]
                self._ask(
                    {"do": "release", "node": self._node_id, "keep": paths, "nodes": nodes}, "unmounting"
                )

    def want(self, wanted: Mapping[str, ResolvedDataset]) -> None:
        """Have these mounted, as soon as may be, and kept so; `report` tells what became of it."""
        with self._lock:
            for name, dataset in wanted.items():
                known = self._mounts.get(name)
                if dataset.mount_path and (known is None or known.dataset != dataset):
                    self._mounts[name] = _Mount(dataset)
            if self._mounts and self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="raycache-mounts", daemon=True)
                self._thread.start()
        self._wake.set()

    def report(self) -> dict[str, dict[str, Any]]:
        """What there is to tell, by dataset: `path`, `generation`, `state`, `problem`, `served`."""
        with self._lock:
            return {
                name: {
                    "path": mount.dataset.mount_path,
                    "generation": mount.dataset.generation,
                    "state": mount.state,
                    "problem": mount.problem,
                    "served": mount.served,
                }
                for name, mount in self._mounts.items()
            }

    def sweep(self, names: Sequence[str]) -> None:
        """Unmount datasets that nobody has any more, whichever node of this machine had them mounted."""
        with self._turn:
            if any(entry.kind == KIND for entry in mountinfo.mounts()):
                self._ask({"do": "sweep", "names": list(names)}, "unmounting")

    def close(self) -> None:
        """Unmount everything, and end."""
        self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(TIMEOUT_S)
        self.leave({})

    def _ask(self, request: Mapping[str, Any], what: str) -> Any:
        try:
            return self._mounter({**request, "token": self._token})
        except RaycacheError as error:
            log.warning("%s: %s", what, error)
            return None

    def _run(self) -> None:
        while not self._closed:
            with self._lock:
                mounts = list(self._mounts.values())
            for mount in mounts:
                if self._closed:
                    return
                try:
                    self._look(mount)
                except Exception:
                    # The thread has nobody above it, and other mounts must be looked after.
                    log.exception("looking after the mount of dataset %s", mount.dataset.name)
                    self._set(
                        mount, state="failed", problem="internal error; the worker's log has the details"
                    )
            self._wake.wait(LOOK_S)
            self._wake.clear()

    def _look(self, mount: _Mount) -> None:
        now = time.monotonic()
        if mount.state == "mounted" and mount.there():
            return
        if mount.state == "failed" and now < mount.due:
            return
        with self._turn:
            with self._lock:
                if self._mounts.get(mount.dataset.name) is not mount:
                    return  # not wanted any more
            others = self._others()
            request = {
                "do": "keep",
                "dataset": mount.dataset.wire(),
                "node": self._node_id,
                "address": self._address,
                "others": list(others.values()),
                "token": self._token,
            }
            try:
                told = self._mounter(request)
            except RaycacheError as error:
                what = error.what.partition("\n")[0]  # the end of the server's log may follow
                problem = f"{error.where}: {what}" if error.where else what
                self._set(
                    mount,
                    state="failed",
                    problem=problem,
                    due=now + mount.pause,
                    pause=min(2 * mount.pause, LONGEST_RETRY_S),
                )
                log.warning("dataset %s is not mounted: %s", mount.dataset.name, error)
            else:
                self._set(mount, state="mounted", problem="", pause=FIRST_RETRY_S, **told)
                log.info("dataset %s is mounted at %s", mount.dataset.name, mount.point)

    def _set(self, mount: _Mount, **changes: Any) -> None:
        with self._lock:
            for name, value in changes.items():
                setattr(mount, name, value)
