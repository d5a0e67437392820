"""The serving half of the data plane."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import pyarrow as pa
import pyarrow.flight as fl

from raycache import wire
from raycache.access import Caller, Gate
from raycache.errors import AccessDeniedError, RaycacheError, WorkerUnavailableError, to_wire
from raycache.flight._sockets import cut_connections, format_address
from raycache.flight.tls import server_options
from raycache.settings import TlsFiles

log = logging.getLogger(__name__)

BLOCK_SCHEMA = pa.schema([pa.field("bytes", pa.uint8(), nullable=False)])
"""Every stream has this schema: one batch is one block, its bytes the one column."""

_ERROR_TEXT_LIMIT = 1500
"""Characters of each part of an error that travel: gRPC keeps all trailers of a call within 8 KiB."""

Action = Callable[[dict[str, Any]], dict[str, Any]]
Stream = Callable[[dict[str, Any]], Iterator[tuple[int, Any]]]
"""The second of each pair is anything with the buffer protocol."""


class FlightServer:
    """Answers actions and block streams on one port, from threads of its own.

    The port is bound at once, so that the address can be announced; calls are refused (retryable) until
    `start`. Handlers run concurrently and must be thread-safe. What they raise of `RaycacheError` reaches
    the caller as the same class; anything else is logged here and reaches it as an opaque `RaycacheError`.

    Args:
        host: address to listen on (a name, IPv4 or IPv6 address).
        port: 0 takes a free one.
        actions: handlers by name; each gets and returns a JSON object.
        stream: makes the blocks of a ticket: pairs of CRC32C and bytes. A block's bytes are sent from where
            they are, without a copy, and must not change until it was sent. The iterator's `close`, if it
            has one, is called when the stream ends, also when the reader leaves early.
        gate: who may call; None accepts everyone.
        tls: files for TLS; None speaks in clear.
        advertise: host that others reach this one by, if it is not `host` (`0.0.0.0`, a container).

    Raises:
        RaycacheError: the port cannot be bound.
        SpecError: a file for TLS cannot be read, or is not what it should be.
    """

    def __init__(
        self,
        host: str,
        port: int = 0,
        *,
        actions: Mapping[str, Action],
        stream: Stream,
        gate: Gate | None = None,
        tls: TlsFiles | None = None,
        advertise: str = "",
    ) -> None:
        self._host = host
        self._gate = Gate() if gate is None else gate
        self._actions = dict(actions)
        self._stream = stream
        self._open = False
        self._lock = threading.Lock()
        self._closed = False
        location = fl.Location.for_grpc_tcp if tls is None else fl.Location.for_grpc_tls
        options = {"middleware": {_GATE: _GateFactory(self._gate)}, **server_options(tls)}
        try:
            self._server = _Server(location(host, port), self._act, self._blocks, options)
        except (pa.ArrowException, OSError) as error:
            raise RaycacheError(
                "cannot listen on this address",
                where=format_address(host, port),
                hint="choose a free port, or 0 to let the system choose"
                + ("" if tls is None else "; or look at the files for TLS: are certificate and key a pair?"),
            ) from error
        self.port: int = self._server.port
        """The port it listens on."""
        self.address: str = format_address(advertise or host, self.port)
        """`host:port` for others to connect to."""

    def start(self) -> None:
        """Begin to answer."""
        self._open = True

    def close(self, grace_s: float = 1.0) -> None:
        """Stop: finish what ends within `grace_s` seconds, then cut all connections.

        Streams end at their next block. A handler that is stuck is waited for another `grace_s` and then
        left to its thread, with a warning in the log. Idempotent.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._open = False
        # pyarrow's shutdown waits for every call without a limit, so it gets a thread that we can leave.
        stopper = threading.Thread(target=self._server.shutdown, name="raycache-flight-close", daemon=True)
        stopper.start()
        stopper.join(grace_s)
        if stopper.is_alive():
            cut = cut_connections(self._host, self.port)
            log.info("cut %d connections of %s that did not end in %.1f s", cut, self.address, grace_s)
            stopper.join(grace_s)
        if stopper.is_alive():
            log.warning("a request on %s is stuck; its thread is left behind", self.address)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self._open:
            raise WorkerUnavailableError(
                "the worker is starting or stopping", where=self.address, hint="another worker has the data"
            )

    def _act(self, caller: Caller, peer: str, name: str, body: pa.Buffer) -> bytes:
        try:
            self._check_open()
            handler = self._actions.get(name)
            if handler is None:
                raise RaycacheError(
                    f"no action {name[:80]!r}",
                    where=self.address,
                    hint="client and worker are of different versions?",
                )
            request = wire.decode(memoryview(body), what=f"action {name!r}")
            with self._gate.action(caller, peer, name, request):
                return wire.encode(self._gate.shown(caller, name, handler(request)))
        except RaycacheError as error:
            raise _transported(error) from error
        except Exception as error:
            log.exception("action %s failed", name)
            raise self._opaque() from error

    def _blocks(self, caller: Caller, peer: str, ticket: bytes) -> Iterator[tuple[pa.RecordBatch, bytes]]:
        blocks: Iterator[tuple[int, Any]] | None = None
        try:
            self._check_open()
            request = wire.decode(ticket, what="stream ticket")
            with self._gate.stream(caller, peer, request):
                blocks = self._stream(request)
                for crc, buffer in blocks:
                    self._check_open()
                    data = pa.py_buffer(buffer)
                    column = pa.Array.from_buffers(pa.uint8(), data.size, [None, data])
                    yield pa.RecordBatch.from_arrays([column], schema=BLOCK_SCHEMA), wire.pack_crc(crc)
                    del data, column, buffer  # the block is sent: do not hold it while the next one is made
        except RaycacheError as error:
            raise _transported(error) from error
        except Exception as error:
            log.exception("a stream failed")
            raise self._opaque() from error
        finally:
            close = getattr(blocks, "close", None)
            if close is not None:
                close()

    def _opaque(self) -> fl.FlightServerError:
        error = RaycacheError(
            "internal error in a cache worker", where=self.address, hint="its log has the details"
        )
        return _transported(error)


class _Server(fl.FlightServerBase):  # type: ignore[misc]  # pyarrow is untyped
    """pyarrow's side: turns its calls into ours."""

    def __init__(
        self,
        location: fl.Location,
        act: Callable[[Caller, str, str, pa.Buffer], bytes],
        blocks: Callable[[Caller, str, bytes], Iterator[tuple[pa.RecordBatch, bytes]]],
        options: dict[str, Any],
    ) -> None:
        # Set first: the base class serves as soon as it is constructed.
        self._act = act
        self._blocks = blocks
        super().__init__(location, **options)

    def do_action(self, context: fl.ServerCallContext, action: fl.Action) -> Iterator[fl.Result]:
        answer = self._act(_caller(context), context.peer(), action.type, action.body)
        return iter([fl.Result(pa.py_buffer(answer))])

    def do_get(self, context: fl.ServerCallContext, ticket: fl.Ticket) -> fl.FlightDataStream:
        blocks = self._blocks(_caller(context), context.peer(), ticket.ticket)
        return fl.GeneratorStream(BLOCK_SCHEMA, blocks)


_GATE = "gate"


class _Admitted(fl.ServerMiddleware):  # type: ignore[misc]  # pyarrow is untyped
    """Carries who calls to the call."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller


class _GateFactory(fl.ServerMiddlewareFactory):  # type: ignore[misc]  # pyarrow is untyped
    """Refuses calls of whom the gate does not know."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def start_call(self, info: fl.CallInfo, headers: dict[str, list[str | bytes]]) -> _Admitted:
        given = headers.get("authorization", [b""])[0]
        try:
            return _Admitted(self._gate.caller(given.encode() if isinstance(given, str) else given))
        except AccessDeniedError as error:
            raise fl.FlightUnauthenticatedError(error.what) from None


def _caller(context: fl.ServerCallContext) -> Caller:
    caller: Caller = context.get_middleware(_GATE).caller
    return caller


def _transported(error: RaycacheError) -> fl.FlightServerError:
    """The Flight error that carries one of ours."""
    parts = {name: text[:_ERROR_TEXT_LIMIT] for name, text in to_wire(error).items()}
    return fl.FlightServerError(type(error).__name__, wire.encode(parts))
