"""Mounts as `raycache mount --status` shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raycache.cli.output import Column

if TYPE_CHECKING:
    from raycache.fuse.mounts import MountStatus


def served(mount: MountStatus) -> str:
    """How files are served: `passthrough`, or `user space` and why; "" if nobody has said."""
    details = mount.details
    if "passthrough" not in details:
        return ""
    if details["passthrough"]:
        return "passthrough"
    return f"user space: {details.get('reason') or 'no reason given'}"


def in_use(mount: MountStatus) -> bool:
    """Whether what is mounted can be used."""
    return not mount.details.get("problem") and mount.state in (
        "starting",
        "serving",
        "restarting",
        "unknown",
    )


def comes_back(mount: MountStatus) -> bool:
    """Whether a mount that was unmounted is one that workers keep, for `mountPath` in a spec."""
    return bool(mount.mount.get("kept"))


def farewell(mount: MountStatus) -> str:
    """What an unmount did."""
    if mount.state != "detached":
        return f"{mount.mountpoint} is unmounted"
    still = mount.details.get("open")
    if not still:  # the kernel tells nobody of a working directory
        return f"{mount.mountpoint} is unmounted; it is still in use (an open file or a working directory)"
    return f"{mount.mountpoint} is unmounted; {still} open file(s) of it are served until they are closed"


def row(mount: MountStatus) -> dict[str, Any]:
    """A mount as data."""
    details = mount.details
    return {
        "mountpoint": mount.mountpoint,
        "dataset": mount.source,
        "state": mount.state,
        "served": served(mount),
        "open": details.get("open"),
        "nodes": details.get("nodes"),
        "requests": details.get("requests"),
        "restarts": max(0, mount.starts - 1),
        "supervisor_pid": mount.supervisor_pid or None,
        "server_pid": mount.server_pid or None,
        "error": mount.error,
        "problem": details.get("problem") or "",
        "last_exit": mount.mount.get("last_exit"),
        "device": mount.mount.get("device"),
        "readahead_kib": mount.mount.get("readahead_kib"),
        "allow_other": mount.mount.get("allow_other"),
        "privileged": mount.mount.get("privileged"),
        "journal_bytes": details.get("journal_bytes"),
        "journal_degraded": details.get("journal_degraded"),
        "warnings": details.get("warnings") or [],
        "metrics": details.get("metrics") or {},
        "state_dir": mount.state_dir,
    }


def _text(key: str) -> Any:
    def value(row: Mapping[str, Any]) -> str:
        return "" if row[key] is None else str(row[key])

    return value


COLUMNS = (
    Column("MOUNT POINT", _text("mountpoint")),
    Column("DATASET", _text("dataset")),
    Column("STATE", _text("state")),
    Column("OPEN", _text("open")),
    Column("RESTARTS", _text("restarts")),
    Column("SERVED", _text("served")),
    Column("NODES", _text("nodes"), wide=True),
    Column("READAHEAD KIB", _text("readahead_kib"), wide=True),
    Column("SUPERVISOR", _text("supervisor_pid"), wide=True),
    Column("SERVER", _text("server_pid"), wide=True),
)
