"""Operations (a DataLoad, for now) as values, and what may become of them.

                  started            completed, all bytes there
        Pending ──────────▶ Executing ──────────────────────────▶ Complete
           ▲                 │  │  ▲  sized, progressed
           │     recovered   │  └──┘
           ├─────────────────┘ │
           │     retried       ▼ completed with bytes missing, failed
           └──────────────── Failed

No clock and no input or output: times are arguments (seconds since the epoch), and whoever runs an operation
keeps the value that each step returns. Complete means that every byte that was to be cached is cached;
there is no way to end in Complete with less.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from raycache.errors import OperationFailedError, RaycacheError

Phase = Literal["Pending", "Executing", "Complete", "Failed"]

MAX_MISSING = 100
"""Entries of `Operation.missing` that are kept; the coordinator stores operations in Ray's key-value store."""


@dataclass(frozen=True)
class Missing:
    """Something that should have been cached and is not.

    Args:
        path: path inside the dataset.
        bytes: how much of it is missing, all copies counted.
        reason: why, for a person to read.
    """

    path: str
    bytes: int
    reason: str


@dataclass(frozen=True)
class Operation:
    """One operation.

    Args:
        name: unique among the operations.
        dataset: the dataset it works on.
        spec: what was asked for, as plain data: enough to begin again after a restart.
        created: when it was asked for, seconds since the epoch.
        phase: where it stands.
        started: when it first began to execute; None before.
        finished: when it ended; None before.
        attempt: how often it has begun.
        sized: whether `files` and `bytes_total` are final: the listing is done.
        files: files found so far.
        bytes_total: bytes to be cached, all copies counted.
        bytes_cached: bytes of these that are cached.
        missing: what could not be cached, largest first, at most `MAX_MISSING` entries.
        missing_count: how many there were.
        message: why it failed, for a person to read.
        error: class of the error that ended it (`raycache.errors`); "" if none did.
    """

    name: str
    dataset: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    created: float = 0.0
    phase: Phase = "Pending"
    started: float | None = None
    finished: float | None = None
    attempt: int = 0
    sized: bool = False
    files: int = 0
    bytes_total: int = 0
    bytes_cached: int = 0
    missing: tuple[Missing, ...] = ()
    missing_count: int = 0
    message: str = ""
    error: str = ""

    @property
    def ended(self) -> bool:
        """Whether it is over, well or badly."""
        return self.phase in ("Complete", "Failed")

    @property
    def progress(self) -> float | None:
        """Part that is done, 0 to 1; None while the total is not known."""
        if self.phase == "Complete":
            return 1.0
        if not self.sized:
            return None
        return self.bytes_cached / self.bytes_total if self.bytes_total else 0.0

    def duration(self, now: float) -> float | None:
        """Seconds it ran, or has run until `now`; None before it started."""
        if self.started is None:
            return None
        return max(0.0, (now if self.finished is None else self.finished) - self.started)

    def check(self) -> None:
        """Raises OperationFailedError if it failed, saying what is missing and why."""
        if self.phase == "Failed":
            raise OperationFailedError(
                self.message or "failed",
                where=f"dataload/{self.name}",
                hint="what was cached stays; apply it again to fetch the rest",
            )

    def to_wire(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        data = dict(self.__dict__)
        data["spec"] = dict(self.spec)
        data["missing"] = [dict(item.__dict__) for item in self.missing]
        return data

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> Operation:
        """The operation that `to_wire` described. Raises RaycacheError if it is none."""
        try:
            missing = tuple(Missing(**item) for item in data.get("missing", ()))
            operation = cls(**{**data, "missing": missing})
        except TypeError:
            raise RaycacheError("a stored operation cannot be read") from None
        if operation.phase not in get_args(Phase):
            raise RaycacheError("a stored operation is in no known phase", where=operation.name)
        return operation


def started(operation: Operation, now: float) -> Operation:
    """Pending → Executing. The first start is the one that `duration` counts from."""
    _require(operation, "Pending", "start")
    first = now if operation.started is None else operation.started
    return replace(operation, phase="Executing", started=first, attempt=operation.attempt + 1)


def sized(operation: Operation, files: int, bytes_total: int, final: bool = True) -> Operation:
    """Executing: the listing has found so much; `final` once it is done."""
    _require(operation, "Executing", "size")
    if operation.sized:
        raise RaycacheError("the size of an operation was already final", where=operation.name)
    return replace(operation, files=files, bytes_total=bytes_total, sized=final)


def progressed(operation: Operation, bytes_cached: int) -> Operation:
    """Executing: so many bytes are cached now. May fall: what was evicted is not cached any more."""
    _require(operation, "Executing", "progress")
    return replace(operation, bytes_cached=_within(operation, bytes_cached))


def completed(
    operation: Operation, now: float, bytes_cached: int, missing: Iterable[Missing] = ()
) -> Operation:
    """Executing → Complete if every byte is cached, else → Failed.

    Args:
        operation: the operation; its size must be final.
        now: seconds since the epoch.
        bytes_cached: what is cached, counted at the end.
        missing: what could not be cached.
    """
    _require(operation, "Executing", "complete")
    if not operation.sized:
        raise RaycacheError("an operation cannot end before its size is final", where=operation.name)
    cached = _within(operation, bytes_cached)
    lost = sorted(missing, key=lambda item: (-item.bytes, item.path))
    ended = replace(
        operation,
        finished=now,
        bytes_cached=cached,
        missing=tuple(lost[:MAX_MISSING]),
        missing_count=len(lost),
    )
    if cached == operation.bytes_total and not lost:
        return replace(ended, phase="Complete")
    absent = operation.bytes_total - cached
    message = f"{absent} of {operation.bytes_total} bytes are not cached"
    if lost:
        message += f"; {len(lost)} of {operation.files} files, first {lost[0].path!r}: {lost[0].reason}"
    return replace(ended, phase="Failed", message=message)


def failed(operation: Operation, now: float, message: str, error: str = "") -> Operation:
    """Pending or Executing → Failed, for a reason that is not about single files; `error` is its class."""
    if operation.ended:
        raise _illegal(operation, "fail")
    return replace(operation, phase="Failed", finished=now, message=message, error=error)


def retried(operation: Operation, now: float) -> Operation:
    """Failed → Pending: asked for again. Times and counts begin anew."""
    _require(operation, "Failed", "retry")
    return _anew(replace(operation, created=now, started=None, finished=None, message="", error=""))


def recovered(operation: Operation) -> Operation:
    """What to make of a stored operation when its runner restarted.

    One that was executing goes back to Pending, to be run again: what it cached is still there, so it goes
    quickly over that. Others are as they were.
    """
    return _anew(operation) if operation.phase == "Executing" else operation


def _anew(operation: Operation) -> Operation:
    return replace(
        operation,
        phase="Pending",
        sized=False,
        files=0,
        bytes_total=0,
        bytes_cached=0,
        missing=(),
        missing_count=0,
    )


def _within(operation: Operation, bytes_cached: int) -> int:
    if bytes_cached < 0 or (operation.sized and bytes_cached > operation.bytes_total):
        raise RaycacheError(
            f"{bytes_cached} cached bytes of {operation.bytes_total} cannot be", where=operation.name
        )
    return bytes_cached


def _require(operation: Operation, phase: Phase, step: str) -> None:
    if operation.phase != phase:
        raise _illegal(operation, step)


def _illegal(operation: Operation, step: str) -> RaycacheError:
    return RaycacheError(f"cannot {step} an operation that is {operation.phase}", where=operation.name)
