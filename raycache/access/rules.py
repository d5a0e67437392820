"""What each action of a worker needs, and which datasets a request names.

An action that is not in the table is the cluster's own: evicting, moving, loading.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raycache.access.callers import Caller, Verb
from raycache.errors import AccessDeniedError

STREAM = "stream"
"""Name under which reading blocks is looked up, which is no action of Flight's but its `DoGet`."""

STATE = "state"

NEEDS: Mapping[str, Verb] = {
    STATE: "read",
    "info": "read",
    "list": "read",
    "ensure": "read",
    "present": "read",
    "cached": "read",
    "holdings": "read",
    "reads": "read",
    "recheck": "read",
    STREAM: "read",
    "invalidate": "invalidate",
}

KEEP = "keep"
"""Field of a request that keeps blocks from eviction: loads have it, which the cluster starts."""


ASKER = "asker"
"""Field of a ticket with the id of the worker that asks, to whom others are sent for what it got."""


def admit(caller: Caller, action: str, payload: Mapping[str, Any]) -> None:
    """See that a caller may do what he asks for.

    Args:
        caller: who.
        action: the action's name, or `STREAM`.
        payload: the request, decoded but untrusted.

    Raises:
        AccessDeniedError: he may not. It is the same for a dataset that does not exist, so that nobody learns which do.
    """
    if caller.internal:
        return
    verb = NEEDS.get(action)
    if verb is None:
        raise AccessDeniedError(
            "this is for the cluster's own processes", where=action[:80], hint="run it on the Ray cluster"
        )
    if payload.get(KEEP):
        raise AccessDeniedError("only loads may keep blocks from eviction", where=action)
    if payload.get(ASKER):
        raise AccessDeniedError("only workers may say that they keep what they get", where=action)
    named = datasets_of(payload)
    if (action != STATE and not named) or not caller.may(verb, named):
        where = ", ".join(sorted(named))[:200] or action
        raise AccessDeniedError(
            f"the token does not allow to {verb}", where=where, hint="ask for one that does"
        )


def datasets_of(payload: Mapping[str, Any]) -> set[str]:
    """The datasets that a request names: itself, in its version, or in those of its items."""
    places: list[Any] = [payload, payload.get("version")]
    items = payload.get("items")
    if isinstance(items, list):
        places += [item.get("version") for item in items if isinstance(item, dict)]
    return {str(place["dataset"]) for place in places if isinstance(place, dict) and "dataset" in place}


def shown(caller: Caller, action: str, answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without what a caller may not know: of the state, other datasets than his."""
    if caller.internal or action != STATE or "membership" not in answer:
        return answer
    membership = dict(answer["membership"])
    membership["workers"] = [
        {**worker, **{field: _seen(caller, worker.get(field, {})) for field in ("weights", "stores")}}
        for worker in membership["workers"]
    ]
    membership["tables"] = _seen(caller, membership.get("tables", {}))
    membership["former"] = _seen(caller, membership.get("former", {}))
    invalidations = dict(answer.get("invalidations", {}))
    invalidations["entries"] = [e for e in invalidations.get("entries", ()) if caller.sees(e[1])]
    return {
        **answer,
        "membership": membership,
        "datasets": _seen(caller, answer["datasets"]),
        "invalidations": invalidations,
    }


def _seen(caller: Caller, by_dataset: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in by_dataset.items() if caller.sees(name)}
