"""The store proxy as a process of its own, with a control port. Its core is `httprelay.S3Proxy`.

    python -m tests.support.s3proxy --upstream HOST:PORT [--bandwidth BYTES_PER_S] [--port P]

prints one JSON line {"port": ..., "control_port": ...} when it listens, and ends with SIGTERM or SIGINT. On
the control port: GET /__stats, POST /__reset, POST /__bandwidth {"bandwidth": n}, POST /__faults [rule, ...].
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.httprelay import Fault, KeyStats, Request, S3Proxy, Stats

__all__ = ["Fault", "FaultRules", "KeyStats", "ProxyProcess", "Request", "S3Proxy", "Stats"]

_ROOT = Path(__file__).resolve().parents[2]


class FaultRules:
    """Faults as data, so that they can cross a process boundary.

    Args:
        rules: each a mapping with the fields of `Fault`, and which requests it is for: `kind` (GET, HEAD,
            LIST, ...; absent = all), `key` (regular expression, searched), `skip` (matching requests to let
            through first), `times` (how many it is done to; absent = all), `every` (only each n-th match).
    """

    def __init__(self, rules: Sequence[dict[str, Any]]) -> None:
        self._lock = threading.Lock()
        self._rules = []
        for rule in rules:
            which = {name: rule[name] for name in ("kind", "key", "skip", "times", "every") if name in rule}
            fault = Fault(**{name: value for name, value in rule.items() if name not in which})
            self._rules.append((which, fault, [0, 0]))

    def __call__(self, request: Request) -> Fault | None:
        """The fault of the first rule that is for this request."""
        with self._lock:
            for which, fault, state in self._rules:
                if which.get("kind", request.kind) != request.kind:
                    continue
                if not re.search(which.get("key", ""), request.key):
                    continue
                seen, done = state
                state[0] += 1
                if seen < which.get("skip", 0) or done >= which.get("times", sys.maxsize):
                    continue
                if (seen - which.get("skip", 0)) % which.get("every", 1):
                    continue
                state[1] += 1
                return fault
        return None


class ProxyProcess:
    """An `S3Proxy` in a process of its own, so that it takes no turn of this process's GIL.

    Args:
        upstream: "host:port" (or URL) of the store.
        bandwidth: bytes per second of answer bodies, all connections together; 0 is no limit.
        port: port to listen on; 0 takes a free one.
    """

    def __init__(self, upstream: str, bandwidth: float = 0, port: int = 0) -> None:
        self._arguments = ["--upstream", upstream, "--bandwidth", str(bandwidth), "--port", str(port)]
        self._process: subprocess.Popen[str] | None = None
        self._control = 0
        self.port = port

    @property
    def endpoint(self) -> str:
        """URL to give to S3 clients."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the proxy."""
        if self._process is None:
            raise RuntimeError("the proxy is not running")
        return self._process.pid

    def __enter__(self) -> ProxyProcess:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> ProxyProcess:
        """Start the process and wait until it listens."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.s3proxy", "--end-with-stdin", *self._arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_ROOT,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.stop()
            raise RuntimeError("the proxy did not start; its message is on standard error")
        ports = json.loads(line)
        self.port, self._control = ports["port"], ports["control_port"]
        return self

    def stop(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout):
            if stream:
                stream.close()

    def stats(self) -> Stats:
        """A snapshot of the counters."""
        return Stats.from_json(self._ask("/__stats"))

    def reset(self) -> None:
        """Set all counters to zero."""
        self._ask("/__reset", {})

    def set_bandwidth(self, bandwidth: float) -> None:
        """Change the limit, bytes per second; 0 is none."""
        self._ask("/__bandwidth", {"bandwidth": bandwidth})

    def set_faults(self, rules: Sequence[dict[str, Any]]) -> None:
        """Replace the fault rules (see `FaultRules`); an empty list ends all faults."""
        self._ask("/__faults", list(rules))

    def _ask(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self._control}{path}", data, timeout=30) as answer:
            return json.load(answer)


def _control_server(proxy: S3Proxy, port: int) -> ThreadingHTTPServer:
    def faults(rules: Any) -> None:
        proxy.fault = FaultRules(rules) if rules else None

    actions: dict[str, Callable[[Any], object]] = {
        "/__reset": lambda _: proxy.reset(),
        "/__bandwidth": lambda body: proxy.set_bandwidth(float(body["bandwidth"])),
        "/__faults": faults,
    }

    class Control(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/__stats":
                self.answer(200, asdict(proxy.stats()))
            else:
                self.answer(404, {"error": f"no {self.path} here"})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            action = actions.get(self.path)
            if action is None:
                return self.answer(404, {"error": f"no {self.path} here"})
            try:
                action(json.loads(body or b"null"))
            except (ValueError, TypeError, KeyError) as error:
                return self.answer(400, {"error": str(error)})
            return self.answer(200, {})

        def answer(self, status: int, body: object) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Silence: standard error is for what went wrong."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Control)
    server.daemon_threads = True
    return server


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the proxy until it is told to end."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.s3proxy", description=__doc__)
    parser.add_argument("--upstream", required=True, help="host:port of the store")
    parser.add_argument("--bandwidth", type=float, default=0, help="bytes per second in total; 0 = no limit")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 = a free one")
    parser.add_argument("--control-port", type=int, default=0, help="port of the counters; 0 = a free one")
    parser.add_argument("--end-with-stdin", action="store_true", help="end when standard input is closed")
    options = parser.parse_args(arguments)

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    if options.end_with_stdin:  # also when the parent is killed and cannot tell us

        def watch() -> None:
            with contextlib.suppress(OSError):
                while os.read(0, 4096):
                    pass
            ended.set()

        threading.Thread(target=watch, name="stdin", daemon=True).start()
    with S3Proxy(options.upstream, options.bandwidth, options.port) as proxy:
        control = _control_server(proxy, options.control_port)
        threading.Thread(target=control.serve_forever, name="control", daemon=True).start()
        print(json.dumps({"port": proxy.port, "control_port": control.server_address[1]}), flush=True)
        ended.wait()
        control.shutdown()
        control.server_close()


if __name__ == "__main__":
    main()
