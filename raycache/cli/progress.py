"""Following a load until it ends: a bar on a terminal, lines now and then elsewhere, or JSON for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TextIO

import typer

from raycache.cli.backend import AdminLike
from raycache.cli.failures import Exit, say, status_of
from raycache.cli.output import duration, percentage, size
from raycache.errors import ClusterUnavailableError, NotFoundError, OperationFailedError, from_wire

Row = Mapping[str, Any]

POLL_S = 0.5
"""Seconds between two looks at a load."""

LINE_EVERY_S = 5.0
"""Seconds between two lines where no bar can be drawn. A log should not fill up with them."""

SILENCE_S = 120.0
"""Seconds that the coordinator may be away while a load is followed: it restarts, and the load goes on."""

SHOWN_MISSING = 20
"""Missing files that are listed on standard error."""


class Display(Protocol):
    """Shows a load. A context manager, so that what it has on the screen goes away whatever happens."""

    def __enter__(self) -> Display: ...
    def __exit__(self, *exc_info: object) -> None: ...
    def update(self, row: Row) -> None:
        """Called with each state of the load, the last one included."""
        ...


def follow(
    admin: AdminLike,
    name: str,
    display: Display,
    *,
    timeout_s: float | None = None,
    hint: str = "what was cached stays; load it again to fetch what is missing",
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show a load until it is complete.

    Args:
        admin: who knows about it.
        name: of the load.
        display: where to show it.
        timeout_s: seconds to wait at most; None waits without end. The load itself goes on.
        hint: what to do if it failed.
        now: clock, in seconds.
        sleep: waits for some seconds.

    Raises:
        OperationFailedError: it is not complete within `timeout_s`.
        typer.Exit: it failed, and what is missing has been printed; or the user interrupted the waiting.
    """
    try:
        with display:
            for row in _states(admin, name, timeout_s, now, sleep):
                display.update(row)
    except KeyboardInterrupt:
        say(f"interrupted; dataload/{name} goes on: `raycache describe dataload/{name}` shows how far it is")
        raise typer.Exit(Exit.INTERRUPTED) from None
    if row["phase"] == "Failed":
        _explain(name, row, hint)
        raise typer.Exit(_status(row))


def _states(
    admin: AdminLike,
    name: str,
    timeout_s: float | None,
    now: Callable[[], float],
    sleep: Callable[[float], None],
) -> Iterator[Row]:
    """Each state of a load, up to the one in which it ended."""
    begun = heard = now()
    while True:
        try:
            row = admin.load_status(name)
            heard = now()
        except NotFoundError:
            raise NotFoundError(
                "the load is gone: it, or its dataset, was deleted before it was complete",
                where=f"dataload/{name}",
                hint="`raycache get datasets` shows what there is",
            ) from None
        except ClusterUnavailableError:
            if now() - heard > SILENCE_S:
                raise
        else:
            yield row
            if row["phase"] in ("Complete", "Failed"):
                return
        wait = POLL_S
        if timeout_s is not None:
            wait = min(wait, timeout_s - (now() - begun))
            if wait <= 0:
                raise OperationFailedError(
                    f"not complete after {duration(timeout_s)}; it goes on",
                    where=f"dataload/{name}",
                    hint=f"`raycache describe dataload/{name}` shows how far it is",
                )
        sleep(wait)


def _status(row: Row) -> Exit:
    """4 or 5 for a load of what does not exist, or may not be read; 1 for all else."""
    status = status_of(from_wire({"error": str(row.get("error") or "")}))
    return status if status in (Exit.NOT_FOUND, Exit.DENIED) else Exit.FAILED


def _explain(name: str, row: Row, hint: str) -> None:
    """Say on standard error why a load failed, and what is missing."""
    reason = row.get("reason") or row.get("message") or "it ended without doing all its work"
    say(f"error: {reason}")
    say(f"  where: dataload/{name}, dataset/{row.get('dataset', '')}")
    missing = list(row.get("missing") or ())
    for item in missing[:SHOWN_MISSING]:
        say(f"  missing: {_missing(item)}")
    count = max(int(row.get("missing_count") or 0), len(missing))
    if count > SHOWN_MISSING:
        say(
            f"  missing: … and {count - min(len(missing), SHOWN_MISSING)} more (`raycache describe dataload/{name}`)"
        )
    say(f"  next: {hint}" if missing else f"  next: `raycache describe dataload/{name}` shows its events")


def _missing(item: object) -> str:
    if not isinstance(item, Mapping):
        return str(item)
    lacking = f" ({size(item['bytes'])})" if item.get("bytes") else ""
    return f"{item.get('path', '')}{lacking}: {item.get('reason', '')}"


def files_of(row: Row) -> int | None:
    """Number of files of a load, as far as they have been counted."""
    files = row.get("files_total", row.get("files"))
    return None if files is None else int(files)


class JsonDisplay:
    """One JSON document per line, when something changed."""

    def __init__(self) -> None:
        self._last = ""

    def __enter__(self) -> JsonDisplay:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None

    def update(self, row: Row) -> None:
        text = json.dumps(dict(row), default=str)
        if text != self._last:
            self._last = text
            print(text, flush=True)


class LineDisplay:
    """A line at the beginning, at the end, at every change of phase, and every few seconds.

    Args:
        stream: where to; standard output if None.
        now: clock, in seconds.
    """

    def __init__(self, stream: TextIO | None = None, now: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._now = now
        self._phase = ""
        self._printed = 0.0
        self._bytes: int | None = None

    def __enter__(self) -> LineDisplay:
        return self

    def __exit__(self, *exc_info: object) -> None:
        return None

    def update(self, row: Row) -> None:
        at = self._now()
        if row["phase"] == self._phase and at - self._printed < LINE_EVERY_S:
            return
        cached = int(row.get("bytes_cached") or 0)
        if row["phase"] in ("Complete", "Failed"):
            speed = _mean_speed(row)
        elif self._bytes is not None and at > self._printed:
            speed = max(0.0, (cached - self._bytes) / (at - self._printed))
        else:
            speed = None
        self._phase, self._printed, self._bytes = row["phase"], at, cached
        print(_line(row, speed), file=self._stream or sys.stdout, flush=True)


def _mean_speed(row: Row) -> float | None:
    started, finished = row.get("started"), row.get("finished")
    cached = row.get("bytes_cached") or 0
    return cached / (finished - started) if cached and started and finished and finished > started else None


def _line(row: Row, speed: float | None) -> str:
    parts = [f"dataload/{row['name']} {row['phase']}"]
    total = row.get("bytes_total")
    if total or row["phase"] == "Complete":
        cached = int(row.get("bytes_cached") or 0)
        share = 100.0 if row["phase"] == "Complete" else 100 * cached / total if total else 0.0
        parts[0] += f": {size(cached)} of {size(total or 0)} ({percentage(share)})"
    files = files_of(row)
    if files:
        parts.append(f"{files} file" + "s" * (files != 1))
    if speed is not None:
        parts.append(f"{size(speed)}/s")
    started, finished = row.get("started"), row.get("finished")
    if started and finished:
        parts.append(f"{finished - started:.1f}s")
    return ", ".join(parts)


class BarDisplay:
    """A progress bar that moves, and one line that stays at the end.

    Args:
        stream: a terminal; standard output if None.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

        self._stream = stream
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[amount]}"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(compact=True),
            console=Console(file=stream),
            transient=True,
        )
        self._task: Any = None

    def __enter__(self) -> BarDisplay:
        self._progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._progress.stop()

    def update(self, row: Row) -> None:
        if row["phase"] in ("Complete", "Failed"):
            self._progress.stop()
            print(_line(row, _mean_speed(row)), file=self._stream or sys.stdout, flush=True)
            return
        total = row.get("bytes_total") or None
        cached = int(row.get("bytes_cached") or 0)
        files = files_of(row)
        amount = f"{size(cached)}/{size(total)}" if total else ""
        if files:
            amount += f", {files} file" + "s" * (files != 1)
        if self._task is None:
            self._task = self._progress.add_task(f"dataload/{row['name']}", total=total, amount="", speed="")
        task = self._progress.tasks[0]
        # A total that still grows (the listing goes on) would make the bar jump back: it pulses until then.
        known = row.get("sized", True)
        self._progress.update(
            self._task,
            completed=cached,
            total=total if known else None,
            description=f"dataload/{row['name']} {row['phase']}",
            amount=amount,
            speed=f"{size(task.speed)}/s" if task.speed else "",
        )


def display_for(*, as_json: bool = False, stream: TextIO | None = None) -> Display:
    """The display that suits where the output goes.

    Args:
        as_json: for a program that reads it.
        stream: where to; standard output if None.
    """
    if as_json:
        return JsonDisplay()
    if (stream or sys.stdout).isatty():
        return BarDisplay(stream)
    return LineDisplay(stream)
