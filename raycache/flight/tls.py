"""TLS of the data plane: which files, and what they hold.

The files are the ones that Ray's own processes use (`RAY_USE_TLS`), or raycache's own where a process has no part in
Ray. A worker reads them when it starts; a client when it connects, and again when they have changed and a worker does
not answer: its own certificate may have been replaced.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raycache.errors import SpecError
from raycache.settings import TlsFiles


def client_options(files: TlsFiles | None) -> dict[str, Any]:
    """Arguments for `pyarrow.flight.connect`; none without TLS.

    Raises:
        SpecError: a file cannot be read.
    """
    if files is None:
        return {}
    options: dict[str, Any] = {"tls_root_certs": _read(files.ca, "certificate authority")}
    if files.cert:
        # A worker that asks for none does not look at it.
        options |= {
            "cert_chain": _read(files.cert, "certificate"),
            "private_key": _read(files.key, "private key"),
        }
    return options


def server_options(files: TlsFiles | None) -> dict[str, Any]:
    """Arguments for `pyarrow.flight.FlightServerBase`; none without TLS.

    Raises:
        SpecError: a file cannot be read, or there is no certificate for a server.
    """
    if files is None:
        return {}
    if not (files.cert and files.key):
        raise SpecError(
            "a worker with TLS needs a certificate and its key",
            where="RAYCACHE_TLS_CERT",
            hint="set RAYCACHE_TLS_CERT and RAYCACHE_TLS_KEY, or Ray's own RAY_TLS_SERVER_CERT and _KEY",
        )
    pair = _read(files.cert, "certificate"), _read(files.key, "private key")
    options: dict[str, Any] = {"tls_certificates": [pair]}
    if files.mutual:
        options |= {"verify_client": True, "root_certificates": _read(files.ca, "certificate authority")}
    return options


def stamp(files: TlsFiles | None) -> tuple[int, ...]:
    """Tells whether the files are still the ones that were read: their times, 0 for one that is not there."""
    return () if files is None else tuple(map(_changed, (files.ca, files.cert, files.key)))


def _changed(path: str) -> int:
    try:
        return Path(path).stat().st_mtime_ns
    except OSError:
        return 0


def _read(path: str, what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise SpecError(
            f"the {what} of the data plane cannot be read: {error.strerror}", where=path
        ) from None
