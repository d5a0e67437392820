"""File descriptors, of which a process may have only so many."""

from __future__ import annotations

import contextlib
import errno
import os
import resource

from raycache.errors import TooManyFilesError

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE})
"""What system calls say when the process, or the machine, can open no more."""


def raise_limit() -> None:
    """Let this process use as many descriptors as it may: open files and connections cost some each, and the soft limit
    is mostly there for programs that use select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # not allowed: it goes on with what it has
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def can_open(count: int) -> bool:
    """Whether that many descriptors more can be had now."""
    opened: list[int] = []
    try:
        for _ in range(count):
            opened.append(os.open("/", os.O_PATH | os.O_CLOEXEC))
    except OSError as error:
        if error.errno not in EXHAUSTED:
            raise
        return False
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return True


def too_many_files(where: str) -> TooManyFilesError:
    """The error for `where`, with the limit in its hint."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    hint = f"raise the limit of open files (ulimit -n), now {soft} and at most {hard}, or close some"
    return TooManyFilesError("no file or connection can be opened: too many are open", where=where, hint=hint)
