"""A small web server over a directory, with what object stores offer: ranges, ETags, If-Match, index pages."""

from __future__ import annotations

import html
import http.server
import os
import re
import threading
from email.utils import formatdate
from pathlib import Path
from urllib.parse import quote, unquote


class WebServer:
    """Serves `root` at 127.0.0.1 while the context manager is open.

    Args:
        root: the directory.
        etags: whether files come with an ETag, or with Last-Modified alone.
        weak: whether the ETags are weak ones, which match no `If-Match`.
        conditions: whether it acts on If-Match, or ignores it as some servers do.
        authorization: the value of the `Authorization` header it asks for; "" asks for none.
    """

    def __init__(
        self,
        root: Path,
        *,
        etags: bool = True,
        weak: bool = False,
        conditions: bool = True,
        authorization: str = "",
    ) -> None:
        outer = self
        self.root = root
        self.etags = etags
        self.weak = weak
        self.conditions = conditions
        self.authorization = authorization

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                """Silence."""

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = False  # joined at the end, so that no test leaves one behind
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="webserver")
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> WebServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        request.close_connection = True  # one request each: nothing is kept open when a test ends
        if self.authorization and request.headers.get("Authorization") != self.authorization:
            return self._send(request, 401, b"no")
        path = self.root / unquote(request.path).strip("/")
        if len(request.path) > 4096:
            return self._send(request, 404, b"no such file")
        if path.is_dir():
            return self._send(request, 200, self._index(path))
        if not path.is_file():
            return self._send(request, 404, b"no such file")
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read()
        headers = {"Accept-Ranges": "bytes", "Last-Modified": formatdate(status.st_mtime, usegmt=True)}
        if self.etags:
            headers["ETag"] = f'{"W/" if self.weak else ""}"{status.st_ino:x}-{status.st_mtime_ns:x}"'
        wanted = request.headers.get("If-Match")
        if self.conditions and wanted and (self.weak or wanted != headers.get("ETag")):
            return self._send(request, 412, b"changed")
        spec = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if not spec:
            return self._send(request, 200, data, headers)
        start, end = int(spec[1]), min(int(spec[2]) + 1, len(data))
        if start >= len(data):
            return self._send(request, 416, b"", {"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        return self._send(request, 206, data[start:end], headers)

    @staticmethod
    def _send(
        request: http.server.BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
    ) -> None:
        request.send_response(status)
        for name, value in (headers or {}).items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.send_header("Connection", "close")
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    @staticmethod
    def _index(path: Path) -> bytes:
        names = [entry.name + ("/" if entry.is_dir() else "") for entry in sorted(path.iterdir())]
        links = "".join(f'<a href="{quote(name)}">{html.escape(name)}</a>\n' for name in names)
        return f'<html><a href="../">up</a> <a href="?C=M">sort</a>\n{links}</html>'.encode()
