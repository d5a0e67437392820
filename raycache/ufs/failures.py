"""What a failure of an object store means: the one place where obstore's exceptions become raycache's.

obstore tells status and S3 error code only in its text, so they are read from there. That text also holds
request URLs (which may be signed) and the client's debugging output, so none of it goes into a message as it
is, and the original exception is not chained for display.
"""

from __future__ import annotations

import re

from obstore.exceptions import (
    BaseError,
    InvalidPathError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from raycache.descriptors import EXHAUSTED, can_open, too_many_files
from raycache.errors import (
    AccessDeniedError,
    BucketNotFoundError,
    IntegrityError,
    ObjectNotFoundError,
    PathError,
    RaycacheError,
    StaleObjectError,
    UnderStoreError,
)
from raycache.ufs.direct import HttpFailure
from raycache.ufs.pace import LEAST_RATE, TooSlowError
from raycache.ufs.retry import Failure

CATCH: tuple[type[Exception], ...] = (BaseError, OSError, ValueError, HttpFailure)
"""What obstore raises: its own tree, FileNotFoundError and other OSErrors, and ValueError for bad paths; and what the
direct way raises."""

_STATUS = re.compile(r"status(?: code)?: (\d{3})\b")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_KIND = re.compile(r"\bkind: (Connect|Timeout|Request|Interrupted|Decode|Body)\b")

_NO_DESCRIPTOR = re.compile(r"\bOs { code: (?:23|24)\b|\bos error (?:23|24)\b")
"""How the client says ENFILE or EMFILE."""

_NOT_PARTIAL = "source: NotPartial"
_OTHER_RANGE = re.compile(r"source: (?:UnexpectedRange|NoContentRange|\w*ContentRange)\b")
_BARE_REDIRECT = "inner: BareRedirect"
"""How the client says that the answer to a request for a part was a 200, or of another part or of none that can be
understood, or a redirection to nowhere."""

_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted"}
_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504, 509}
_TRANSIENT_CODES = {
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "TooManyRequests",
    "InternalError",
    "ServerBusy",
}
_THROTTLED_STATUS = {429, 503}
_THROTTLED_CODES = {"SlowDown", "Throttling", "TooManyRequests", "ServerBusy"}
# S3 answers some refusals of credentials with 400.
_REFUSED_CODES = {
    "InvalidAccessKeyId": "check the access key ID",
    "SignatureDoesNotMatch": "check the secret access key",
    "ExpiredToken": "the session token has expired; get a new one",
    "InvalidToken": "check the session token",
    "TokenRefreshRequired": "the session token has expired; get a new one",
    "RequestTimeTooSkewed": "set this machine's clock",
    "AuthorizationHeaderMalformed": "set the mount's option `region` to the bucket's region",
    "AccessDenied": "allow these credentials to list and read the bucket",
    "AllAccessDisabled": "the store has disabled all access to the bucket",
    "AuthenticationFailed": "check the account's key or token",
    "AuthorizationFailure": "allow these credentials to list and read the container",
}


def judge(error: Exception, where: str, *, listing: bool = False) -> Failure:
    """The failure behind an exception of obstore (or one raised while its answer was checked).

    Args:
        error: the exception.
        where: the object or bucket, for the message.
        listing: the request was for a bucket, so that "not found" can only mean the bucket.
    """
    if isinstance(error, RaycacheError):
        return Failure(error, transient=isinstance(error, IntegrityError))
    if isinstance(error, TooSlowError):
        what = f"the store sends less than {LEAST_RATE} bytes/s"
        hint = "look at the store, and at the network between it and this machine"
        return Failure(UnderStoreError(what, where=where, hint=hint), transient=True)
    text = str(error)
    if (isinstance(error, OSError) and error.errno in EXHAUSTED) or _NO_DESCRIPTOR.search(text):
        # Whoever uses the others will give some back, and there may be a connection to use again.
        return Failure(too_many_files(where), transient=True)
    found = _STATUS.search(text)
    status = int(found.group(1)) if found else 0
    found = _CODE.search(text)
    code = found.group(1) if found else ""
    if code in _NO_BUCKET or (listing and (status == 404 or isinstance(error, FileNotFoundError))):
        return Failure(
            BucketNotFoundError(
                "the bucket does not exist", where=where, hint="check the mount point's name and its endpoint"
            )
        )
    if isinstance(error, FileNotFoundError) or status == 404:
        return Failure(ObjectNotFoundError("there is no such object", where=where))
    if isinstance(error, PermissionDeniedError | UnauthenticatedError | PermissionError):
        return _refused(code, status, where)
    if status in (401, 403) or code in _REFUSED_CODES:
        return _refused(code, status, where)
    if isinstance(error, PreconditionError) or status == 412:
        return Failure(StaleObjectError("the object has changed since it was opened", where=where))
    if status == 416:
        return Failure(StaleObjectError("the object is shorter than when it was opened", where=where))
    if isinstance(error, NotSupportedError) or status == 200 or _NOT_PARTIAL in text:
        hint = "serve the files from a server that answers range requests"
        what = "the server does not send parts of files" + (f" ({code})" if code else "")
        return Failure(UnderStoreError(what, where=where, hint=hint), unpartial=True)
    if _OTHER_RANGE.search(text):
        return Failure(IntegrityError("the store sent another range than was asked for", where=where), True)
    if isinstance(error, InvalidPathError | ValueError):
        return Failure(PathError("the object store's client cannot express this path", where=where))
    if 300 <= status < 400 or _BARE_REDIRECT in text:
        hint = "set the mount's option `region` to the bucket's region, or correct `endpoint`"
        return Failure(
            UnderStoreError(
                f"the store answers from elsewhere (HTTP {status or 301})", where=where, hint=hint
            )
        )
    if status:
        transient = status in _TRANSIENT_STATUS or code in _TRANSIENT_CODES
        what = f"the store answers HTTP {status}" + (f" {code}" if code else "")
        after_s = error.after_s if isinstance(error, HttpFailure) else 0.0
        throttled = status in _THROTTLED_STATUS or code in _THROTTLED_CODES
        return Failure(UnderStoreError(what, where=where), transient, after_s, throttled=throttled)
    return Failure(_unreachable(text, where), transient=True)


def judge_listing(error: Exception, where: str) -> Failure:
    """`judge` for requests that name a bucket and no object."""
    return judge(error, where, listing=True)


def _refused(code: str, status: int, where: str) -> Failure:
    known = code or (f"HTTP {status}" if status else "permission denied")
    hint = _REFUSED_CODES.get(code, "check the mount's credentials and what they allow")
    return Failure(AccessDeniedError(f"the store refuses the request ({known})", where=where, hint=hint))


def _unreachable(text: str, where: str) -> RaycacheError:
    found = _KIND.search(text)
    kind = found.group(1) if found else ""
    if kind == "Connect" and not can_open(1):  # looking up a host's name does not say why it fails
        return too_many_files(where)
    if "timed out" in text.lower() or "TimedOut" in text or kind == "Timeout":
        return UnderStoreError("the store does not answer in time", where=where)
    if kind == "Connect":
        hint = "check the mount's option `endpoint` and the network"
        return UnderStoreError("cannot connect to the store", where=where, hint=hint)
    return UnderStoreError("the connection to the store broke", where=where)
