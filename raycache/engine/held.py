"""What a worker sends out of its own store, asking nobody."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError

from raycache.blocks import ObjectVersion
from raycache.engine.fetch import Fetched
from raycache.errors import RaycacheError
from raycache.store import LocalStore

ARRIVING_S = 60.0
"""Longest wait for a block that is on its way. The tracker sees to it that nobody waits in a circle; if somebody does,
this ends it."""

SIGN_S = 2.0
"""Seconds after which somebody who waits is sent a sign of life, an empty block: he gives a silent worker up after
`peers.HELD_TIMEOUT_S`."""

Block = tuple[int, memoryview]
NOT_YET: Block = 0, memoryview(b"")


def stream(
    store: LocalStore,
    version: ObjectVersion,
    blocks: range,
    arriving: Callable[[int], Future[Fetched] | None] = lambda block: None,
) -> Iterator[Block]:
    """Blocks out of a local store, in order, each with its CRC32C.

    Args:
        store: where they are.
        version: the object.
        blocks: adjacent blocks.
        arriving: of a block, what is waited for if it is on its way already; meanwhile `NOT_YET` comes now and then.

    Raises:
        RaycacheError: one of them is not there, or not any more, and not on its way.
    """
    gone = RaycacheError("the worker does not have the blocks", where=f"{version.dataset}/{version.path}")
    # In this order: what is not on its way any more has arrived.
    coming = {block: future for block in blocks if (future := arriving(block)) is not None}
    if any(block not in coming for run in store.absent(version, blocks) for block in run):
        raise gone
    with store.fill(version, secondary=True) as filling:  # primary stays primary
        for block in blocks:
            try:
                future = coming.get(block)
                fetched = (yield from _wait(future)) if future is not None else None
                if fetched is not None and fetched.data is not None:
                    found = fetched.crc, fetched.data
                else:
                    found = filling.read(block)
            except (FutureTimeoutError, RaycacheError) as error:
                raise gone from error
            yield found


def _wait(future: Future[Fetched]) -> Generator[Block, None, Fetched]:
    until = time.monotonic() + ARRIVING_S
    while True:
        try:
            return future.result(SIGN_S)
        except FutureTimeoutError:
            if time.monotonic() > until:
                raise
            yield NOT_YET
