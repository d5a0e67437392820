"""What a process holds open: descriptors, Python threads, children. The leak check compares two of these."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Made once per process by libraries and kept for good: event loops, the pool of fsspec's loop.
# "Dummy-1": a foreign thread (gRPC's) that once ran Python; the interpreter forgets such only from 3.12 on.
_LASTING_THREADS = re.compile(r"^(MainThread|fsspecIO|asyncio_\d+|Dummy-\d+|pydevd.*)$")
_LASTING_FILES = re.compile(
    r"^(anon_inode:\[(eventpoll|eventfd|signalfd|io_uring)\]|/dev/(null|urandom|pts/.*))$"
)


@dataclass(frozen=True)
class Holdings:
    """Descriptors as {(number, target)}, threads as {(ident, name)}, child processes as {(pid, command)}."""

    descriptors: frozenset[tuple[int, str]]
    threads: frozenset[tuple[int, str]]
    children: frozenset[tuple[int, str]]


_lasting: set[tuple[int, str]] = set()

_ray_was_here = False


def ray_was_here() -> None:
    """From now on sockets of this process that reach nobody are none of ours: Ray goes on trying to connect to a
    cluster that is gone (a process that does nothing but start one, and stop it, shows that)."""
    global _ray_was_here
    _ray_was_here = True


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """What is opened inside is meant to outlive the test that happened to need it first.

    For session-wide fixtures: pytest may set one up in the middle of a test's own fixtures.
    """
    before = holdings()
    yield
    after = holdings()
    _lasting.update(after.descriptors - before.descriptors)
    _lasting.update(after.threads - before.threads)
    _lasting.update(after.children - before.children)


def holdings() -> Holdings:
    """What this process holds now, less what is `lasting`."""
    descriptors = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of this listing is gone by now
            target = str(Path(f"/proc/self/fd/{name}").readlink())
            if _LASTING_FILES.match(target):
                continue
            if not (_ray_was_here and target.startswith("socket:") and _reaches_nobody(int(name))):
                descriptors.add((int(name), target))
    threads = {
        (thread.ident or 0, thread.name)
        for thread in threading.enumerate()
        if not _LASTING_THREADS.match(thread.name)
    }
    children = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            for pid in (task / "children").read_text().split():
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
                children.add((int(pid), command.decode(errors="replace")[:80].strip()))
    return Holdings(
        frozenset(descriptors - _lasting), frozenset(threads - _lasting), frozenset(children - _lasting)
    )


def _reaches_nobody(number: int) -> bool:
    """Whether a socket is neither connected nor listening."""
    with socket.socket(fileno=os.dup(number)) as held:
        if held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return False
        try:
            held.getpeername()
        except OSError:
            return True
    return False


def _describe(descriptor: tuple[int, str]) -> str:
    number, target = descriptor
    if target.startswith("socket:"):
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as held:
            try:
                return f"descriptor {number}: socket {held.getsockname()} -> {held.getpeername()}"
            except OSError:
                return f"descriptor {number}: socket {held.getsockname()}"
    return f"descriptor {number}: {target}"


def _kind(target: str) -> str:
    return target.split(":", 1)[0] if ":[" in target else target


def leaked(before: Holdings, after: Holdings) -> list[str]:
    """Names of what `after` holds more than `before`.

    A connection that was closed and made again is no leak, so kinds of descriptors are compared by number.
    """
    found = []
    new, gone = after.descriptors - before.descriptors, before.descriptors - after.descriptors
    for kind in sorted({_kind(target) for _, target in new}):
        more = [entry for entry in new if _kind(entry[1]) == kind]
        if len(more) > sum(_kind(target) == kind for _, target in gone):
            found += [_describe(entry) for entry in sorted(more)]
    found += [f"thread {name}" for _, name in sorted(after.threads - before.threads)]
    found += [f"process {pid}: {command}" for pid, command in sorted(after.children - before.children)]
    return found


def leaked_since(before: Holdings, patience_s: float, now: Callable[[], float] = time.monotonic) -> list[str]:
    """What has been leaked since `before`; what is merely slow to close gets `patience_s` seconds."""
    deadline = now() + patience_s
    while leaked(before, holdings()):
        gc.collect()
        if now() > deadline:
            return leaked(before, holdings())
        time.sleep(0.02)
    return []
