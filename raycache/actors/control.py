"""Talking to the coordinator from outside: finding it, asking it, starting and stopping the whole."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayActorError, RayError

from raycache.actors import kv as keys
from raycache.actors.answers import unwrap
from raycache.actors.coordinator import NAME, start_coordinator
from raycache.actors.kv import RayKv, get_json
from raycache.actors.reservation import release_all
from raycache.actors.seat import first_line, why_died
from raycache.actors.volumes import Purge
from raycache.errors import ClusterUnavailableError, OperationFailedError, RaycacheError
from raycache.settings import NAMESPACE
from raycache.spec import TierSpec

log = logging.getLogger(__name__)

RESTART_S = 30.0
"""Longest wait for a coordinator that died: Ray needs about two seconds to restart it."""

CALL_TIMEOUT_S = 150.0
WORKER_STOP_S = 60.0

DEFAULT_TIERS = (
    TierSpec(medium="MEM", path="/dev/shm", quota_ratio=0.1, huge_pages=True),
    TierSpec(medium="SSD", path="/var/tmp/raycache", quota_ratio=0.1),
)
"""Tiers of datasets without a runtime, unless `start` is given others: a tenth of memory and of the disk."""


class Control:
    """The coordinator, seen from a process that is part of the Ray cluster."""

    def __init__(self) -> None:
        self._actor: Any = None

    def call(self, method: str, *args: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Call a method of the coordinator; waits for it if it is being restarted.

        A call may be carried out twice if the coordinator dies in it; all its methods allow that.

        Raises:
            ClusterUnavailableError: raycache does not run here, or its coordinator does not answer.
            RaycacheError: what the method raised.
        """
        deadline = time.monotonic() + RESTART_S
        while True:
            try:
                if self._actor is None:
                    self._actor = ray.get_actor(NAME, namespace=NAMESPACE)
                answer = ray.get(getattr(self._actor, method).remote(*args), timeout=timeout_s)
                break
            except ValueError:
                raise ClusterUnavailableError(
                    "raycache does not run on this Ray cluster", hint="start it with `raycache start`"
                ) from None
            except GetTimeoutError:
                raise ClusterUnavailableError(
                    f"the coordinator did not answer within {timeout_s:g} s", where=method
                ) from None
            except (ActorUnavailableError, ActorDiedError) as error:
                if isinstance(error, ActorDiedError):
                    self._actor = None  # perhaps there is a new one by that name
                if time.monotonic() > deadline:
                    raise ClusterUnavailableError(why_died(str(error)), where="coordinator") from None
                time.sleep(0.2)
            except RayError as error:
                raise ClusterUnavailableError(
                    f"the coordinator cannot be asked: {type(error).__name__}", where=method
                ) from error
        # Outside of the `try`: a SpecError is a ValueError, too.
        return unwrap(answer)


def start(tiers: Sequence[TierSpec] | None, timeout_s: float) -> dict[str, Any]:
    """Start raycache on the Ray cluster that this process is part of.

    Args:
        tiers: for datasets whose runtime has none; None leaves those of an earlier start, or `DEFAULT_TIERS`.
        timeout_s: longest wait for the nodes' workers.

    Returns:
        Numbers of `nodes` and `workers`, and whether it ran `already`.

    Raises:
        ClusterUnavailableError: the coordinator, or no worker at all, could start; says why.
    """
    running = RayKv().get(keys.STATE) is not None
    if tiers is None and not running:
        tiers = DEFAULT_TIERS
    control = Control()
    control._actor = start_coordinator()
    wires = [tier.model_dump(mode="json") for tier in tiers or ()]
    result: dict[str, Any] = control.call("configure", wires, timeout_s, timeout_s=timeout_s + 30)
    if result["nodes"] and not result["workers"]:
        node, why = next(iter(result["problems"].items()), ("", "no worker started in time"))
        raise ClusterUnavailableError(
            f"no cache worker started: {why}",
            where=f"node {node[:12]}",
            hint="`raycache stop` undoes what was started",
        )
    return {**result, "already": running}


def stop(purge: bool) -> dict[str, Any]:
    """Stop raycache on the Ray cluster that this process is part of.

    Args:
        purge: remove what is cached on disks, too.

    Returns:
        Number of `workers` that were stopped.

    Raises:
        ClusterUnavailableError: it does not run here.
        OperationFailedError: something is left behind; says what.
    """
    try:
        result: dict[str, Any] = Control().call("stop", purge, timeout_s=200.0)
    except ClusterUnavailableError:
        if not _actors():
            raise
        result = _stop_without_coordinator(purge)
    finally:
        _kill_all()
    if result["problems"]:
        node, why = next(iter(result["problems"].items()))
        raise OperationFailedError(
            f"{len(result['problems'])} nodes were not cleaned up: {why}", where=f"node {node[:12]}"
        )
    return {"workers": result["workers"]}


def _actors() -> dict[str, Any]:
    """Handles of all actors of raycache, by name, whatever state they are in."""
    found = {}
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == NAMESPACE and actor["name"].startswith("raycache-"):
            try:
                found[actor["name"]] = ray.get_actor(actor["name"], namespace=NAMESPACE)
            except ValueError:
                log.info("actor %s has just ended", actor["name"])
    return found


def _stop_without_coordinator(purge: bool) -> dict[str, Any]:
    """What `Coordinator.stop` does, for a cluster whose coordinator was ended for good."""
    what: Purge = "everything" if purge else "memory"
    wires = (get_json(RayKv(), keys.STATE) or {"datasets": {}})["datasets"]
    workers = {name: actor for name, actor in _actors().items() if name != NAME}
    problems: dict[str, str] = {}
    for method, arguments in (("sweep", (wires, what)), ("stop", (what,))):
        refs = {getattr(actor, method).remote(*arguments): name for name, actor in workers.items()}
        for ref, name in refs.items():
            try:
                unwrap(ray.get(ref, timeout=WORKER_STOP_S))
            except (RayError, RaycacheError) as error:
                problems[name] = first_line(str(error))
    return {"workers": len(workers), "problems": problems}


def _kill_all() -> None:
    """End every actor of raycache, the coordinator first: it would restart workers. Forget the cluster's state."""
    for _, actor in sorted(_actors().items(), key=lambda item: item[0] != NAME):
        try:
            ray.kill(actor, no_restart=True)
        except RayActorError as error:
            log.info("an actor was not killed: %s", error)
    release_all()
    kv = RayKv()
    for key in keys.RUNNING:
        kv.delete(key)
