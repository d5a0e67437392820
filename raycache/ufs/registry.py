"""From a mount point's URI to the store that reads it."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import obstore
import obstore.exceptions
import obstore.store

from raycache.descriptors import can_open, too_many_files
from raycache.errors import RaycacheError, SpecError
from raycache.metrics import Metrics
from raycache.ufs import s3
from raycache.ufs.base import UnderStore, safe_uri
from raycache.ufs.fsspec_store import open_fsspec
from raycache.ufs.http import open_http
from raycache.ufs.local import LocalDirectory
from raycache.ufs.object_store import NO_RETRIES, ObstoreStore, client_options
from raycache.ufs.retry import Backoff

_GOOGLE = frozenset({"gs", "gcs"})
_AZURE = frozenset({"az", "azure", "abfs", "abfss", "adl"})

SPARE = 16
"""Descriptors that must be left for a store to be opened: obstore's runtime takes three, certificates, profiles and
modules one each at a time, and the first connection one."""


def open_store(
    uri: str,
    options: Mapping[str, str] | None = None,
    *,
    metrics: Metrics | None = None,
    backoff: Backoff | None = None,
) -> UnderStore:
    """The store of a mount point. Opens no connection: `check()` does.

    Args:
        uri: `s3://bucket/prefix` (also oss, cos, obs, tos, minio: S3 by `endpoint`), `gs://`, `az://` and
            `abfs://`, `http(s)://`, `file:///dir` or `/dir` (`local:///dir` in Fluid's documents), or any URL
            of fsspec's.
        options: mount options by canonical name, secrets included.
        metrics: where requests, bytes and retries are counted.
        backoff: how long failures are retried.

    Raises:
        SpecError: a URI or an option that cannot be accepted.
        AccessDeniedError: credentials were needed and none were found.
        TooManyFilesError: the process has too few descriptors left.
    """
    # Asked first, and again if it fails: without descriptors the clients say that they dislike the options, or that
    # they find no certificates, and a runtime that obstore could not start once it never starts again.
    if not can_open(SPARE):
        raise too_many_files(safe_uri(uri))
    _start_runtime()
    try:
        return _open(uri, dict(options or {}), metrics, backoff)
    except (RaycacheError, OSError):
        if not can_open(1):
            raise too_many_files(safe_uri(uri)) from None
        raise


@functools.cache
def _start_runtime() -> None:
    """Have obstore start its threads now, while there are descriptors for them."""
    obstore.list_with_delimiter(obstore.store.MemoryStore())


def _open(uri: str, options: dict[str, str], metrics: Metrics | None, backoff: Backoff | None) -> UnderStore:
    if uri.startswith("/"):
        uri = f"file://{uri}"
    scheme = uri.partition("://")[0].lower()
    if "://" not in uri or not scheme:
        raise SpecError(
            "the mount point is no URL", where=safe_uri(uri), hint="write s3://bucket/prefix, or /directory"
        )
    if "::" in uri:
        return open_fsspec(uri, options, metrics=metrics, backoff=backoff)
    if scheme in ("file", "local"):
        return _open_directory(uri, options, metrics)
    _no_secrets(uri)
    if scheme in s3.SCHEMES:
        return s3.open_s3(uri, options, metrics=metrics, backoff=backoff)
    if scheme in ("http", "https"):
        return open_http(uri, options, metrics=metrics, backoff=backoff)
    if scheme in _GOOGLE or scheme in _AZURE:
        return _open_cloud(uri, scheme, options, metrics, backoff)
    return open_fsspec(uri, options, metrics=metrics, backoff=backoff)


def _no_secrets(uri: str) -> None:
    """The URI is shown everywhere, so it must not be where a secret is kept."""
    try:
        parts = urlsplit(uri)
        user = "@" in parts.netloc and not parts.scheme.startswith(("abfs", "sftp", "ssh", "hdfs", "smb"))
    except ValueError:
        raise SpecError("the mount point is no URL", where=safe_uri(uri)) from None
    if user or parts.password or parts.query or parts.fragment:
        raise SpecError(
            "a mount point may hold no user, password, query or fragment",
            where=safe_uri(uri),
            hint="give credentials in encryptOptions",
        )


def _open_directory(uri: str, options: Mapping[str, str], metrics: Metrics | None) -> UnderStore:
    parts = urlsplit(uri.replace("?", "%3F").replace("#", "%23"))
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path:
        raise SpecError(
            "a local mount point needs an absolute path", where=safe_uri(uri), hint="write file:///directory"
        )
    if options:
        raise SpecError(f"local directories have no option {', '.join(sorted(options))}", where=uri)
    return LocalDirectory(os.path.normpath(path), metrics=metrics)


def _open_cloud(
    uri: str,
    scheme: str,
    options: dict[str, str],
    metrics: Metrics | None,
    backoff: Backoff | None,
) -> ObstoreStore:
    """Google Cloud Storage and Azure; options go to obstore's `GCSConfig` or `AzureConfig`."""
    google = scheme in _GOOGLE
    parts = urlsplit(uri)
    if not parts.netloc:
        raise SpecError("the mount point names no bucket", where=uri, hint=f"write {scheme}://bucket/prefix")
    uri = f"{'gs' if google else scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    identity = uri
    endpoint = options.get("endpoint", "")
    if google and endpoint:
        raise SpecError("Google Cloud Storage mounts take no endpoint", where=identity)
    if endpoint:
        identity += f"?endpoint={safe_uri(endpoint)}"
    config: dict[str, Any] = {k: v for k, v in options.items() if k not in ("anonymous", "allow_http")}
    if options.get("anonymous", "").lower() == "true":
        config["skip_signature"] = True
    allow_http = endpoint.startswith("http://") or options.get("allow_http", "").lower() == "true"
    kind: Any = obstore.store.GCSStore if google else obstore.store.AzureStore
    try:
        store = kind.from_url(
            uri,
            config=config,
            client_options=client_options(allow_http=allow_http),
            retry_config=NO_RETRIES,
        )
    except (obstore.exceptions.BaseError, OSError, ValueError, TypeError) as error:
        # The client's message may quote the values of the options, secrets among them.
        hint = f"check the options {', '.join(sorted(options)) or '(none were given)'}"
        what = f"the client does not accept the mount ({type(error).__name__})"
        raise SpecError(what, where=identity, hint=hint) from None
    return ObstoreStore(identity, store, metrics=metrics, backoff=backoff)
