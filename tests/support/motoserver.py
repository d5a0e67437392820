"""moto in this process: another S3 than SeaweedFS, with IAM and STS as on AWS."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from moto.server import ThreadedMotoServer

from tests.support.leaks import lasting


@contextmanager
def moto_server() -> Iterator[str]:
    """The endpoint of a moto server, which ends with the context. It may outlive the test that needed it first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    with lasting():
        server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.stop()
