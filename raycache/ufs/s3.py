"""S3 and the stores that speak its protocol: mount options to an obstore `S3Store`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import obstore
import obstore.store

from raycache.errors import AccessDeniedError, SpecError
from raycache.metrics import Metrics
from raycache.ufs.direct import DirectGetter, is_direct
from raycache.ufs.object_store import NO_RETRIES, ObstoreStore, client_options
from raycache.ufs.raw_listing import RawListing
from raycache.ufs.retry import Backoff

if TYPE_CHECKING:
    from obstore.auth.boto3 import Boto3CredentialProvider
    from obstore.store import S3Config

SCHEMES = frozenset({"s3", "s3a", "s3n", "oss", "cos", "cosn", "obs", "tos", "minio"})

_AMAZON = frozenset({"s3", "s3a", "s3n"})
# Stores that refuse path-style requests (each vendor's documentation of its S3 compatibility says so).
_HOST_STYLE_ONLY = ("aliyuncs.com", "myqcloud.com", "myhuaweicloud.com", "volces.com")
_DEFAULT_REGION = "us-east-1"
_KNOWN = frozenset(
    {
        "endpoint",
        "region",
        "access_key_id",
        "secret_access_key",
        "session_token",
        "anonymous",
        "path_style",
        "profile",
        "allow_http",
    }
)


def open_s3(
    uri: str, options: Mapping[str, str], *, metrics: Metrics | None = None, backoff: Backoff | None = None
) -> ObstoreStore:
    """The store of an S3-like mount point.

    Args:
        uri: `scheme://bucket[/prefix]`.
        options: canonical mount options. Without keys and `anonymous`, credentials come from boto3's chain
            (environment, profile, web identity, container, instance). Unknown names go to obstore's `S3Config`.
        metrics: where GETs, bytes and retries are counted.
        backoff: how long failures are retried.

    Raises:
        SpecError: no bucket, a half pair of keys, a store that needs `endpoint` and has none.
        AccessDeniedError: no credentials were given, and the chain found none.
    """
    parts = urlsplit(uri)
    scheme, bucket, prefix = parts.scheme.lower(), parts.netloc, parts.path.strip("/")
    if not bucket:
        raise SpecError("the mount point names no bucket", where=uri, hint=f"write {scheme}://bucket/prefix")
    endpoint = _endpoint(options, scheme, uri)
    identity = f"{'s3' if scheme in _AMAZON else scheme}://{bucket}" + (f"/{prefix}" if prefix else "")
    if endpoint:
        identity += f"?endpoint={endpoint}"
    host_style = not _path_style(options, endpoint)
    config: dict[str, Any] = {name: value for name, value in options.items() if name not in _KNOWN}
    config["virtual_hosted_style_request"] = host_style
    config["region"] = options.get("region") or ""
    if endpoint:
        config["endpoint"] = _with_bucket(endpoint, bucket) if host_style else endpoint
    provider = _credentials(options, config, identity)
    config["region"] = config["region"] or _DEFAULT_REGION
    allow_http = endpoint.startswith("http://") or _flag(options, "allow_http")
    try:
        store = obstore.store.S3Store(
            bucket,
            prefix=prefix or None,
            config=_typed(config),
            client_options=client_options(allow_http=allow_http),
            retry_config=NO_RETRIES,
            credential_provider=provider,
        )
    except (obstore.exceptions.BaseError, ValueError, TypeError):
        # The client's message would quote the values of the options, secrets among them.
        unknown = sorted(set(options) - _KNOWN)
        hint = f"check the options {', '.join(unknown)}" if unknown else "check the endpoint and the options"
        raise SpecError(
            "the S3 client does not accept the mount's options", where=identity, hint=hint
        ) from None
    direct = _direct(store, endpoint, options)
    raw = RawListing(bucket, prefix, partial(_boto3, dict(options), endpoint, config["region"], host_style))
    return ObstoreStore(identity, store, metrics=metrics, backoff=backoff, direct=direct, raw=raw)


def _boto3(options: Mapping[str, str], endpoint: str, region: str, host_style: bool) -> Any:
    """A boto3 client of the same store, with the same credentials. Retries are the caller's."""
    import boto3.session
    from botocore import UNSIGNED
    from botocore.config import Config

    settings = Config(
        connect_timeout=5,
        read_timeout=20,
        retries={"total_max_attempts": 1},
        signature_version=UNSIGNED if _flag(options, "anonymous") else None,
        s3={"addressing_style": "virtual" if host_style else "path"},
    )
    return boto3.session.Session(profile_name=options.get("profile")).client(
        "s3",
        endpoint_url=endpoint or None,
        region_name=region,
        aws_access_key_id=options.get("access_key_id") or None,
        aws_secret_access_key=options.get("secret_access_key") or None,
        aws_session_token=options.get("session_token") or None,
        config=settings,
    )


def _direct(store: obstore.store.S3Store, endpoint: str, options: Mapping[str, str]) -> DirectGetter | None:
    """The shorter way for large reads, where it would send just what the client sends."""
    if _flag(options, "anonymous") or set(options) - _KNOWN:  # unsigned; or options that may want headers
        return None

    def sign(key: str) -> str:
        # Locally computed (15 µs); good for one request that begins now.
        return obstore.sign(store, "GET", key, expires_in=timedelta(minutes=15))

    return DirectGetter(sign) if is_direct(endpoint) else None


def _typed(config: dict[str, Any]) -> S3Config:
    result: S3Config = {}
    result.update(config)  # type: ignore[typeddict-item]  # names that the user gave are checked by obstore
    return result


def _endpoint(options: Mapping[str, str], scheme: str, uri: str) -> str:
    given = options.get("endpoint", "").strip().rstrip("/")
    if not given:
        if scheme not in _AMAZON:
            hint = (
                f"give the store's S3 endpoint in the mount's option `endpoint`; {scheme}:// has no default"
            )
            raise SpecError("the mount has no endpoint", where=uri, hint=hint)
        return ""
    if "://" not in given:
        given = ("http://" if _flag(options, "allow_http") else "https://") + given
    try:
        parts = urlsplit(given)
        _ = parts.port  # raises ValueError for what is no port
    except ValueError:
        raise SpecError(
            "the mount's endpoint is no URL", where=uri, hint="write https://host[:port]"
        ) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        hint = "write https://host[:port]; keys belong into options of their own"
        raise SpecError("the mount's endpoint is no URL of a store", where=uri, hint=hint)
    return given


def _path_style(options: Mapping[str, str], endpoint: str) -> bool:
    if options.get("path_style"):
        return _flag(options, "path_style")
    host = urlsplit(endpoint).hostname or ""
    return not host.endswith(_HOST_STYLE_ONLY)


def _with_bucket(endpoint: str, bucket: str) -> str:
    """The endpoint with the bucket in its host name, as obstore wants it for virtual-hosted requests."""
    parts = urlsplit(endpoint)
    if parts.netloc.startswith(f"{bucket}."):
        return endpoint
    return urlunsplit(parts._replace(netloc=f"{bucket}.{parts.netloc}"))


def _credentials(
    options: Mapping[str, str], config: dict[str, Any], where: str
) -> Boto3CredentialProvider | None:
    if _flag(options, "anonymous"):
        config["skip_signature"] = True
        return None
    key, secret = options.get("access_key_id"), options.get("secret_access_key")
    if bool(key) != bool(secret):
        missing = "secretAccessKey" if key else "accessKeyId"
        raise SpecError("the mount has half a pair of keys", where=where, hint=f"give {missing} as well")
    if key and secret:
        config["access_key_id"], config["secret_access_key"] = key, secret
        if options.get("session_token"):
            config["session_token"] = options["session_token"]
        return None
    return _chain(options.get("profile"), config, where)


def _chain(profile: str | None, config: dict[str, Any], where: str) -> Boto3CredentialProvider:
    # Imported only where it is needed: boto3 takes longer to import than a store takes to open.
    import boto3.session
    from botocore.exceptions import BotoCoreError
    from obstore.auth.boto3 import Boto3CredentialProvider

    hint = (
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the option `profile` (of a spec: accessKeyId and"
        " secretAccessKey in encryptOptions); for a public bucket, the option `anonymous=true`"
    )
    try:
        session = boto3.session.Session(profile_name=profile)
        if session.get_credentials() is None:
            raise AccessDeniedError(
                "no credentials for the store were given, and none found", where=where, hint=hint
            )
        config["region"] = config["region"] or session.region_name or ""
        return Boto3CredentialProvider(session)
    except BotoCoreError as error:
        what = f"the credentials for the store cannot be loaded ({type(error).__name__})"
        raise AccessDeniedError(what, where=where, hint=hint) from None


def _flag(options: Mapping[str, str], name: str) -> bool:
    return options.get(name, "").strip().lower() in ("true", "1", "yes", "on")
