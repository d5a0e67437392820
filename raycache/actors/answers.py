"""Errors across actor calls: what an actor raises arrives as the same class, and nothing else travels.

Ray would wrap an exception, with the remote traceback as text, in a class that it makes from the exception's
own. Here a method's answer is plain data, its value or its error, so that nothing depends on what can be
pickled and no traceback of another process reaches a user.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from raycache.errors import RaycacheError, from_wire, to_wire

log = logging.getLogger(__name__)

S = TypeVar("S")
P = ParamSpec("P")

Answer = dict[str, Any]


def answered(method: Callable[Concatenate[S, P], Any]) -> Callable[Concatenate[S, P], Answer]:
    """A method of an actor whose value, or error, is returned as data. `unwrap` makes it one again."""

    @functools.wraps(method)
    def answering(self: S, *args: P.args, **kwargs: P.kwargs) -> Answer:
        try:
            return {"value": method(self, *args, **kwargs)}
        except RaycacheError as error:
            return {"error": to_wire(error)}
        except Exception as error:
            # Nobody above: Ray would send the traceback to the caller instead.
            log.exception("%s failed", method.__qualname__)
            internal = RaycacheError(
                f"internal error: {type(error).__name__}",
                where=method.__qualname__,
                hint="the actor's log has the details",
            )
            return {"error": to_wire(internal)}

    return cast("Callable[Concatenate[S, P], Answer]", answering)


def unwrap(answer: Mapping[str, Any]) -> Any:
    """The value of an answer. Raises the error it holds, as the class it was."""
    if "error" in answer:
        raise from_wire(answer["error"])
    return answer["value"]
