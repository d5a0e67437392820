"""What a handler returns for a request, and how it gets to the kernel."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from raycache.fuse.protocol import Request, replies

log = logging.getLogger(__name__)

ENDED = frozenset({errno.ENODEV, errno.ECONNABORTED})
"""What the device says once the file system is unmounted, or its connection aborted."""

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Bytes. A memoryview must be of bytes (`cast("B")`)."""


class ReplySender(Protocol):
    """A reply that writes itself, for one that is not copied through this process (splice).

    Exactly one of the two methods is called, once, by any thread.
    """

    def send(self, fd: int, unique: int) -> None:
        """Write the whole reply, `replies.header` and body, as one message to `fd`.

        Raises:
            OSError: nothing was written; the session then answers with its errno, which the kernel ignores (ENOENT)
                if it has ended the request already.
        """

    def discard(self) -> None:
        """Release what it holds: the reply is not wanted any more."""


Reply: TypeAlias = Buffer | list[Buffer] | tuple[Buffer, ...] | ReplySender
"""A reply's body: a buffer, or several that are written one after the other, or what writes itself. b"" says yes."""


@dataclass(frozen=True, slots=True)
class Deferred:
    """What a handler returns for a request that is to be served by a thread of the pool.

    Attributes:
        call: returns the reply, or raises, as a handler does. It may wait.
        undo: called after `call` has returned a reply that then was not delivered (interrupted meanwhile, or unknown
            to the kernel): takes back the reference or handle that the kernel never learnt of.
    """

    call: Callable[[], Reply | None]
    undo: Callable[[], None] | None = None


Handler: TypeAlias = Callable[[Request], Reply | Deferred | None]
"""Serves a request. Returns its reply; None for FORGET and BATCH_FORGET, which have none. Raises RaycacheError or
OSError to answer with their errno; whatever else it raises is logged and answered with EIO. Called by several threads
at once. It gets no INTERRUPT."""


def write(fd: int, unique: int, opcode: int, reply: Reply | None) -> bool:
    """Write a reply, and where that fails an error in its place; whether the kernel has the reply."""
    try:
        if isinstance(reply, (bytes, bytearray, memoryview)):
            os.writev(fd, (replies.header(unique, len(reply)), reply))
        elif isinstance(reply, (list, tuple)):
            os.writev(fd, (replies.header(unique, sum(map(len, reply))), *reply))
        elif reply is not None:
            reply.send(fd, unique)
        else:
            log.error("FUSE operation %d was left without a reply", opcode)
            write_error(fd, unique, errno.EIO)
            return False
    except OSError as error:
        if error.errno == errno.ENOENT or error.errno in ENDED:
            log.debug("FUSE operation %d was ended by the kernel", opcode)
        else:
            log.error("the reply to FUSE operation %d: %s", opcode, error)
        # The kernel keeps the request where it did not understand the reply: nobody shall wait for ever.
        write_error(fd, unique, error.errno)
        return False
    except Exception:
        log.exception("the reply to FUSE operation %d", opcode)
        write_error(fd, unique, errno.EIO)
        return False
    return True


def write_error(fd: int, unique: int, code: int | None) -> None:
    """Answer a request with an errno. A request that the kernel does not know any more is no error."""
    try:
        os.write(fd, replies.error(unique, code))
    except OSError as error:
        if error.errno != errno.ENOENT and error.errno not in ENDED:
            log.error("an error could not be told to the kernel: %s", error)


def discard(reply: Reply | None) -> None:
    """Release a reply that will not be written."""
    if not isinstance(reply, (bytes, bytearray, memoryview, list, tuple, type(None))):
        reply.discard()
