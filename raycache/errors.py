"""Every error raycache raises.

Each says *what* went wrong, *where*, and *what to do next*; each carries the `errno` a POSIX caller would
see and says whether the same call may succeed later. They also derive from the built-in exception that
Python code already catches, so `except FileNotFoundError` keeps working.

    RaycacheError
     ├─ SpecError               (ValueError)         a spec that cannot be accepted
     ├─ PathError               (PermissionError)    a path that leaves its dataset
     ├─ NotFoundError           (FileNotFoundError)
     │   ├─ DatasetNotFoundError
     │   ├─ ObjectNotFoundError
     │   └─ BucketNotFoundError
     ├─ NotAFileError           (IsADirectoryError)
     ├─ AccessDeniedError       (PermissionError)    the under-store or a worker refused the credentials
     ├─ ReadOnlyError           (OSError, EROFS)     a write; datasets are read-only
     ├─ StaleObjectError        (OSError, ESTALE)    the version a handle was opened on is gone
     ├─ UnderStoreError         (OSError, EIO)       the object store failed; retryable
     ├─ IntegrityError          (OSError, EIO)       bytes that do not match their checksum; retryable
     ├─ CacheFullError          (OSError, ENOSPC)    no tier can take the block; readers go round the cache
     ├─ TooManyFilesError       (OSError, EMFILE)    this process can open no file and no connection; retryable
     ├─ StoreBusyError          (OSError, EBUSY)     another process owns the cache directory
     ├─ MountError              (OSError)            a mount could not be made or ended
     │   ├─ MountBusyError      (EBUSY)              something else is at the mount point
     │   └─ NotMountedError     (EINVAL)             raycache has nothing mounted there
     ├─ ClusterUnavailableError (ConnectionError)    no coordinator, or no Ray cluster, answers
     ├─ WorkerUnavailableError  (ConnectionError)    a worker does not answer; retryable
     ├─ ElsewhereError                               other workers have the blocks; between workers only
     └─ OperationFailedError    (RuntimeError)       a load or an apply ended without doing all its work
"""

from __future__ import annotations

import errno as _errno
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar


class RaycacheError(Exception):
    """Base of all errors of raycache.

    Args:
        what: one sentence, what went wrong.
        where: the thing it happened to (a URL, a path, `file.yaml:12: spec.mounts[0]`). Never a secret.
        hint: what to do next.
    """

    errno: int | None = _errno.EIO
    retryable: ClassVar[bool] = False

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint
        # OSError would fill errno from its arguments, and there is only one: the class's errno stands.
        self.errno = type(self).errno

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text} ({self.hint})" if self.hint else text

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.what, self.where, self.hint)


def _rebuild(cls: type[RaycacheError], what: str, where: str, hint: str) -> RaycacheError:
    return cls(what, where=where, hint=hint)


class SpecError(RaycacheError, ValueError):
    """A spec that cannot be accepted: syntax, unknown or misspelt field, impossible value."""

    errno = _errno.EINVAL


class PathError(RaycacheError, PermissionError):
    """A path that leaves its dataset (`..`) or cannot name an object."""

    errno = _errno.EACCES


class NotFoundError(RaycacheError, FileNotFoundError):
    """Something named does not exist."""

    errno = _errno.ENOENT


class DatasetNotFoundError(NotFoundError):
    """No dataset of that name has been applied."""


class ObjectNotFoundError(NotFoundError):
    """The under-store has no object at that path."""


class BucketNotFoundError(NotFoundError):
    """The bucket (or directory, or host) of a mount point does not exist."""


class NotAFileError(RaycacheError, IsADirectoryError):
    """A file was needed and the path is a directory."""

    errno = _errno.EISDIR


class AccessDeniedError(RaycacheError, PermissionError):
    """The object store, or a worker, refused the credentials."""

    errno = _errno.EACCES


class ReadOnlyError(RaycacheError, OSError):
    """A write was asked for. Datasets are read-only; write to the object store itself."""

    errno = _errno.EROFS


class StaleObjectError(RaycacheError, OSError):
    """The object version a handle was opened on no longer exists in the under-store. Open it again."""

    errno = _errno.ESTALE


class UnderStoreError(RaycacheError, OSError):
    """The object store failed, or could not be reached, within the deadline."""

    retryable = True


class IntegrityError(RaycacheError, OSError):
    """Bytes that do not match their checksum, or a body of the wrong length."""

    retryable = True


class CacheFullError(RaycacheError, OSError):
    """No tier can take the block: full, and all that is in it is being read. Readers go round the cache."""

    errno = _errno.ENOSPC


class TooManyFilesError(RaycacheError, OSError):
    """This process, or the machine, has no descriptor left for a file or a connection."""

    errno = _errno.EMFILE
    retryable = True


class StoreBusyError(RaycacheError, OSError):
    """Another live process owns the cache directory."""

    errno = _errno.EBUSY


class MountError(RaycacheError, OSError):
    """A FUSE mount could not be made or ended."""


class MountBusyError(MountError):
    """Something is at the mount point: another mount, files, or a mount that is still in use."""

    errno = _errno.EBUSY


class NotMountedError(MountError):
    """raycache has nothing mounted there. The errno is umount(2)'s."""

    errno = _errno.EINVAL


class ClusterUnavailableError(RaycacheError, ConnectionError):
    """No raycache coordinator, or no Ray cluster, answers."""

    errno = _errno.EHOSTUNREACH
    retryable = True


class WorkerUnavailableError(RaycacheError, ConnectionError):
    """A cache worker does not answer. Readers go on to the next owner, then to the object store."""

    errno = _errno.EHOSTUNREACH
    retryable = True


class ElsewhereError(RaycacheError):
    """Other workers have the blocks, and can be asked for them. `where` holds their ids; no reader ever sees this."""

    @classmethod
    def at(cls, workers: Iterable[str]) -> ElsewhereError:
        """The error that names these workers, by their ids."""
        return cls("other workers have the blocks", where=" ".join(workers))

    @property
    def workers(self) -> list[str]:
        """Ids of the workers, to be asked in this order."""
        return self.where.split()


class OperationFailedError(RaycacheError, RuntimeError):
    """A load or an apply ended without having done all its work."""


def to_wire(error: RaycacheError) -> dict[str, str]:
    """An error as plain data, for a Flight answer or a Ray reply. `from_wire` makes it an error again."""
    return {"error": type(error).__name__, "what": error.what, "where": error.where, "hint": error.hint}


def from_wire(data: Mapping[str, str]) -> RaycacheError:
    """The error that `to_wire` described; an unknown class (a newer peer's) becomes plain `RaycacheError`."""
    cls = globals().get(data.get("error", ""))
    if not (isinstance(cls, type) and issubclass(cls, RaycacheError)):
        cls = RaycacheError
    return cls(data.get("what", "unknown error"), where=data.get("where", ""), hint=data.get("hint", ""))
