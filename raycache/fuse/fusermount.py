"""fusermount3, the setuid program of libfuse that mounts for users who may not (util/fusermount.c). It opens the device
itself and sends it over the socket whose number is in `_FUSE_COMMFD`. Standard library only."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from raycache import mountinfo
from raycache.errors import MountError, NotMountedError

_PROGRAM = "fusermount3"
_CONF = "/etc/fuse.conf"
_PATIENCE_S = 30.0


def allows_other(path: str = _CONF) -> bool:
    """Whether users may mount with allow_other: `user_allow_other`, alone on a line of fuse.conf."""
    try:
        lines = Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return False
    return any(line.split("#")[0].strip() == "user_allow_other" for line in lines)


def mount(point: str, source: str, options: str) -> int:
    """Mount read-only as type `fuse.raycache`; the connection's descriptor, close-on-exec.

    Args:
        point: absolute path of a directory that the user owns.
        source: what the mount table shows as mounted.
        options: more options, comma-separated.

    Raises:
        MountError: it was refused, or there is no such program.
    """
    import subprocess  # not for those who may mount themselves: it costs a megabyte

    name = source.replace("\\", "\\\\").replace(",", "\\,")
    options = f"ro,nosuid,nodev,noatime,{options},subtype=raycache,fsname={name}"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            done = subprocess.run(
                [_PROGRAM, "-o", options, "--", point],
                env=os.environ | {"_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PATIENCE_S,
                check=False,
            )
        except FileNotFoundError:
            raise MountError(
                f"this user may not mount, and there is no {_PROGRAM}",
                where=point,
                hint="install fuse3, or mount as root",
            ) from None
        except subprocess.TimeoutExpired:
            raise MountError(f"{_PROGRAM} does not end", where=point) from None
        theirs.close()
        fds = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)[1] if done.returncode == 0 else []
    if not fds:
        told = done.stderr.decode(errors="replace").strip() or f"{_PROGRAM}: status {done.returncode}"
        raise MountError(told, where=point, hint="mount as root")
    return fds[0]


def unmount(point: str, *, lazy: bool) -> bool:
    """As `device.unmount`, of what this user mounted."""
    import subprocess

    if mountinfo.mounted_at(point) is None:
        raise NotMountedError("nothing is mounted here", where=point)
    try:
        done = subprocess.run(
            [_PROGRAM, "-u", *(["-z"] if lazy else []), "--", point],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE_S,
            check=False,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise MountError(f"cannot be unmounted: {error}", where=point, hint="unmount as root") from None
    if done.returncode == 0:
        return True
    told = done.stderr.decode(errors="replace").strip()
    if not lazy and os.strerror(errno.EBUSY) in told:
        return False
    raise MountError(f"cannot be unmounted: {told or 'not allowed'}", where=point, hint="unmount as root")
