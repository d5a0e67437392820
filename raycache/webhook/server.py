"""HTTPS for the API server: one path for reviews, one for health."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

from raycache.errors import SpecError
from raycache.webhook.catalog import Catalog
from raycache.webhook.policy import Policy
from raycache.webhook.review import review

logger = logging.getLogger(__name__)

PATH = "/mutate"
HEALTH = "/healthz"
MOST_BYTES = 8 << 20
"""Largest body. An object in Kubernetes has at most 1.5 MiB in etcd, 3 MiB in a request; a review may hold two."""
MOST_CONNECTIONS = 128
IDLE_S = 30.0
"""Seconds that a connection may say nothing, in its handshake, in a request, or between two."""


class Server(ThreadingHTTPServer):
    """The webhook's server. `serve_forever` runs it.

    Args:
        host: address to listen at.
        port: port; 0 for any, see `server_port`.
        cert: PEM file with the certificate and its chain. Read again when it, or the key, changes.
        key: PEM file with its private key.
        catalog: which datasets there are.
        policy: what becomes of pods.
        idle_s: see `IDLE_S`.

    Raises:
        SpecError: the certificate or the key cannot be used.
        OSError: the port cannot be had.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(
        self,
        host: str,
        port: int,
        cert: str,
        key: str,
        catalog: Catalog,
        policy: Policy,
        idle_s: float = IDLE_S,
    ) -> None:
        self.catalog = catalog
        self.policy = policy
        self.idle_s = idle_s
        self._certificate = _Certificate(cert, key)
        self._places = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection, if there is one left; who comes when there is none is turned away."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            logger.warning("%d connections are open; one more is turned away", MOST_CONNECTIONS)
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handshake and requests, in the connection's own thread: who dawdles there holds up nobody."""
        try:
            request.settimeout(self.idle_s)
            try:
                secured = self._certificate.context().wrap_socket(request, server_side=True)
            except OSError as error:  # ssl.SSLError is one
                logger.info("no TLS with %s: %s", client_address[0], error)
                self.shutdown_request(request)
                return
            super().process_request_thread(secured, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke; a bug shows its traceback."""
        logger.info("connection with %s ended", client_address[0], exc_info=True)


class _Certificate:
    """An `ssl.SSLContext` of two files, and a new one when they have changed."""

    def __init__(self, cert: str, key: str) -> None:
        self._files = (cert, key)
        self._lock = threading.Lock()
        self._signature = self._look()
        self._context = self._load()

    def context(self) -> ssl.SSLContext:
        with self._lock:
            signature = self._look()
            if signature != self._signature:
                try:
                    self._context = self._load()
                    self._signature = signature
                except SpecError as error:  # half written, perhaps; the next connection looks again
                    logger.warning("the certificate stays as it was: %s", error)
            return self._context

    def _look(self) -> list[tuple[int, int, int]]:
        found = []
        for file in self._files:
            try:
                stat = Path(file).stat()
                found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
            except FileNotFoundError:
                found.append((0, 0, 0))
        return found

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(*self._files, password="")
        except OSError as error:
            why = error.strerror or error.args[-1] if error.args else "not usable"
            raise SpecError(f"no certificate and key: {why}", where=", ".join(self._files)) from None
        return context


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "raycache"
    sys_version = ""

    def do_GET(self) -> None:
        if self.path == HEALTH:
            self._answer(200, {"status": "ok"})
        else:
            self._refuse(404, f"nothing here; reviews go to {PATH}")

    def do_POST(self) -> None:
        # The API server adds ?timeout=10s.
        if self.path.partition("?")[0] != PATH:
            self._refuse(404, f"nothing here; reviews go to {PATH}")
            return
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or self.headers.get("Transfer-Encoding"):
            self._refuse(411, "a review must say its length")
            return
        if len(length) > 9 or int(length) > MOST_BYTES:
            self._refuse(413, f"a review has at most {MOST_BYTES} bytes")
            return
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            self.close_connection = True
            return
        server = cast(Server, self.server)
        try:
            answer = review(body, server.catalog.current(), server.policy)
        except SpecError as error:
            self._answer(400, {"error": type(error).__name__, "what": str(error)})
            return
        response = answer["response"]
        if not response["allowed"]:
            logger.warning("refused: %s", response["status"]["message"])
        self._answer(200, answer)

    def _refuse(self, code: int, what: str) -> None:
        self.close_connection = True  # the body was not read
        self._answer(code, {"error": "SpecError", "what": what})

    def _answer(self, code: int, data: dict[str, Any]) -> None:
        body = json.dumps(data).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)
