"""The calling half of the data plane: one connection to one worker."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Generator, Mapping
from typing import Any, Self

import crc32c
import pyarrow as pa
import pyarrow.flight as fl

from raycache import wire
from raycache.errors import (
    AccessDeniedError,
    IntegrityError,
    RaycacheError,
    WorkerUnavailableError,
    from_wire,
)
from raycache.flight.tls import client_options
from raycache.settings import TlsFiles

log = logging.getLogger(__name__)


class FlightPeer:
    """A worker, seen from outside. Thread-safe: many calls and streams share the connection.

    Connecting is lazy, and a lost connection is made again by the next call.

    Args:
        address: `host:port`.
        token: what the worker asks for; "" if it asks for none. Never shown in an error or a repr.
        tls: files for TLS; None speaks in clear.
        connect_timeout_s: seconds after which an address that does not answer counts as gone.
    """

    def __init__(
        self,
        address: str,
        token: str = "",
        *,
        tls: TlsFiles | None = None,
        connect_timeout_s: float = 2.0,
    ) -> None:
        self.address = address
        self._tls = tls
        self._headers = [(b"authorization", wire.bearer(token))] if token else []
        milliseconds = max(1, int(connect_timeout_s * 1000))
        options = [
            # gRPC's name for the time limit of one attempt to connect.
            ("grpc.min_reconnect_backoff_ms", milliseconds),
            # Its default lets a restarted worker look dead for up to two minutes.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", max(1000, milliseconds)),
            # Connections are not shared between peers of one address: close() then really closes.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        try:
            scheme = "grpc" if tls is None else "grpc+tls"
            self._client = fl.connect(f"{scheme}://{address}", generic_options=options, **client_options(tls))
        except (pa.ArrowException, OSError) as error:
            raise WorkerUnavailableError("not a usable worker address", where=address) from error
        self._watch = _Watch()

    def __repr__(self) -> str:
        return f"FlightPeer({self.address!r})"

    def call(
        self, action: str, payload: Mapping[str, Any] | None = None, timeout_s: float = 30.0
    ) -> dict[str, Any]:
        """Run an action and return its answer.

        Args:
            action: its name.
            payload: the request.
            timeout_s: seconds until the call is given up.

        Raises:
            WorkerUnavailableError: no connection, no answer in time.
            AccessDeniedError: the token was refused.
            RaycacheError: what the action raised, as the same class.
        """
        options = fl.FlightCallOptions(timeout=timeout_s, headers=self._headers)
        try:
            results = list(self._client.do_action(fl.Action(action, wire.encode(payload or {})), options))
        except (pa.ArrowException, OSError) as error:
            raise self._translated(error, f"did not answer {action!r} within {timeout_s:g} s") from error
        if len(results) != 1:
            raise RaycacheError(f"the answer to {action!r} is not one message", where=self.address)
        return wire.decode(
            memoryview(results[0].body), what=f"answer of {self.address}", limit=wire.MAX_ANSWER
        )

    def stream(
        self, ticket: Mapping[str, Any], timeout_s: float = 30.0
    ) -> Generator[tuple[int, pa.Buffer], None, None]:
        """Blocks of a ticket, in its order, as they arrive; each is verified against its CRC32C.

        Close the generator to leave early; the worker then stops too. The request is sent by the first
        `next`.

        Args:
            ticket: what to ask for (`wire.StreamTicket.to_wire()`).
            timeout_s: longest wait for one block, seconds. The time the caller takes between blocks does
                not count.

        Yields:
            CRC32C and bytes of each block.

        Raises:
            IntegrityError: the bytes of a block do not match its checksum.
            WorkerUnavailableError, AccessDeniedError, RaycacheError: as for `call`.
        """
        reader: fl.FlightStreamReader | None = None
        try:
            # Not gRPC's own deadline: that one would end the whole stream, however well it flows.
            options = fl.FlightCallOptions(headers=self._headers)
            reader = self._client.do_get(fl.Ticket(wire.encode(ticket)), options)
            while True:
                try:
                    with self._watch.cancel_after(timeout_s, reader):
                        chunk = reader.read_chunk()
                except StopIteration:
                    reader = None  # it ended by itself: nothing to cancel
                    return
                yield self._verified(chunk)
                del chunk  # the block is the caller's: do not hold it while waiting for the next
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, RaycacheError):
                raise
            raise self._translated(error, f"sent nothing for {timeout_s:g} s") from error
        finally:
            if reader is not None:
                reader.cancel()

    def close(self) -> None:
        """Close the connection. Streams that are still open end with WorkerUnavailableError."""
        self._watch.close()
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _verified(self, chunk: fl.FlightStreamChunk) -> tuple[int, pa.Buffer]:
        batch, metadata = chunk.data, chunk.app_metadata
        if batch is None or batch.num_columns != 1 or batch.column(0).type != pa.uint8() or metadata is None:
            raise IntegrityError("the answer is not a block", where=self.address)
        column = batch.column(0)
        buffer = column.buffers()[1].slice(column.offset, len(column))
        expected = wire.unpack_crc(metadata.to_pybytes())
        if crc32c.crc32c(buffer) != expected:
            raise IntegrityError(
                "a block's bytes do not match their CRC32C", where=self.address, hint="it is fetched again"
            )
        return expected, buffer

    def _translated(self, error: Exception, late: str) -> RaycacheError:
        """The error of ours for one of Flight's. Flight's own text is left to the cause: it is for logs."""
        log.debug("call to %s failed: %s", self.address, error)
        if isinstance(error, fl.FlightUnauthenticatedError | fl.FlightUnauthorizedError):
            return AccessDeniedError(
                "the worker refused the token",
                where=self.address,
                hint="has it expired? `raycache token create` on the cluster makes one for RAYCACHE_TOKEN",
            )
        # Only a handler of ours attaches this; all the rest is the transport's trouble.
        details = getattr(error, "extra_info", b"")
        if isinstance(error, fl.FlightServerError) and details:
            return from_wire(wire.decode(details, what=f"error of {self.address}"))
        what = "the connection to the worker failed"
        if isinstance(error, fl.FlightTimedOutError | fl.FlightCancelledError):
            what = f"the worker {late}"
        hint = (
            ""
            if self._tls is None
            else "this process speaks TLS: does the worker, with a certificate of that CA?"
        )
        return WorkerUnavailableError(what, where=self.address, hint=hint)


class _Watch:
    """Cancels the streams that wait too long for their next block, from one thread, started when needed.

    Entering and leaving costs a few microseconds: the thread sleeps until the earliest deadline it knows,
    and is only woken for an earlier one.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting: dict[object, tuple[float, fl.FlightStreamReader]] = {}
        self._thread: threading.Thread | None = None
        self._wakes_at = 0.0
        self._closed = False

    @contextlib.contextmanager
    def cancel_after(self, timeout_s: float, reader: fl.FlightStreamReader) -> Generator[None, None, None]:
        """Cancel `reader` if the body takes longer than `timeout_s` seconds, or `close` is called."""
        key, deadline = object(), time.monotonic() + timeout_s
        with self._condition:
            if self._closed:
                raise fl.FlightCancelledError("the peer was closed")
            self._waiting[key] = (deadline, reader)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="raycache-flight-watch", daemon=True)
                self._thread.start()
            elif deadline < self._wakes_at:
                self._condition.notify()
        try:
            yield
        finally:
            with self._condition:
                self._waiting.pop(key, None)

    def close(self) -> None:
        """Cancel all that waits and end the thread."""
        with self._condition:
            self._closed = True
            thread = self._thread
            self._condition.notify()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        with self._condition:
            while not self._closed:
                now = time.monotonic()
                for key, (deadline, reader) in list(self._waiting.items()):
                    if deadline <= now:
                        del self._waiting[key]
                        reader.cancel()
                deadlines = [deadline for deadline, _ in self._waiting.values()]
                self._wakes_at = min(deadlines, default=now + _IDLE_WATCH_S)
                self._condition.wait(self._wakes_at - now)
            for _, reader in self._waiting.values():
                reader.cancel()


_IDLE_WATCH_S = 3600.0
"""Sleep of a watch that has nothing to watch; a new stream wakes it earlier."""
