"""Mounts that the cache workers of a machine keep, for `mountPath` in a dataset's spec.

A worker asks for them by running `python -m raycache.fuse.keeping`: one request on standard input, one answer on
standard output, both JSON (secrets are in no argument). The worker stands below this package, and in a Ray process;
neither has to be in the other's memory, and a mount's supervisor is no worker's child.

    {"do": "keep", "dataset": ..., "node": ..., "address": ..., "others": [...], "token": ...}
    {"do": "release", "node": ..., "token": ..., "keep": {name: path}, "nodes": [...]}
    {"do": "sweep", "token": ..., "names": [...]}

answered by {"value": ...} or {"error": errors.to_wire}.

Which mounts are whose is in their config.json: `keepers` has the nodes that want one, with the addresses of their
workers. (Several nodes may share a machine, in tests.) A mount that a user made by hand has none: it does where it is
in place, and is never ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from raycache import mountinfo
from raycache.errors import MountError, NotMountedError, RaycacheError, to_wire
from raycache.fuse import mounts, statedirs, statefiles
from raycache.fuse.configs import cluster_config
from raycache.fuse.mounts import MountOptions, MountStatus
from raycache.spec import ResolvedDataset

MADE = "MADE"
"""File in the same place: the mount point was made for the mount, and goes with it."""

START_S = 20.0
"""Seconds that a mount may take to come up."""

UNMOUNT_S = 10.0
"""Seconds that an unmount may take."""

MOST_ADDRESSES = 16
"""Workers' addresses in a config: one that answers is enough, and tells the rest."""

LIVE = ("starting", "serving", "restarting")


def keep(request: Mapping[str, Any], root: str = "") -> dict[str, Any]:
    """Have a dataset mounted at its `mount_path` for a node: mounted anew, or what is there adopted.

    Args:
        request: see the module.
        root: where state directories are; "" for the usual places.

    Returns:
        `point` (without links), `device` of the mount, process id of its `supervisor`, and how it is `served`.

    Raises:
        MountBusyError: something else is there.
        MountError, and what the server raises: it cannot be mounted.
    """
    dataset = ResolvedDataset.from_wire(request["dataset"])
    assert dataset.mount_path is not None
    point = statedirs.real_mountpoint(dataset.mount_path)
    with _locked(point, root) as home:
        found = _there(point, root)
        config = _config_of(found)
        if found is not None and _same(config, dataset.name, request["token"]):
            if "keepers" in config:
                _refresh(found, config, dataset, request)
            return _told(found)
        _make_directory(point, home)
        try:
            options = MountOptions(start_s=START_S)
            return _told(mounts.start(point, _new_config(dataset, request), dataset.name, options, root=root))
        except RaycacheError:
            _remove_directory(point, home)
            raise


def release(request: Mapping[str, Any], root: str = "") -> list[str]:
    """End what a node keeps mounted and does not want any more, unless another node of the machine wants it.

    Args:
        request: `keep` has the paths that are wanted, by dataset; `nodes` the nodes of the cluster.
        root: as for `keep`.

    Returns:
        Mount points that are free now.

    Raises:
        MountError: one cannot be unmounted; the others are.
    """

    def leave(found: MountStatus, config: dict[str, Any]) -> bool:
        node, name = request["node"], config["dataset"]["name"]
        wanted = request["keep"].get(name)
        if node not in config["keepers"]:
            return False
        if wanted is not None and statedirs.real_mountpoint(wanted) == found.mountpoint:
            return False
        left = {n: a for n, a in config["keepers"].items() if n != node and n in request["nodes"]}
        if not left:
            return True
        statefiles.write_json(_config_path(found), config | {"keepers": left})
        return False

    return _end(request["token"], leave, root)


def sweep(request: Mapping[str, Any], root: str = "") -> list[str]:
    """End the mounts of datasets, whoever kept them: nodes that are gone, too. As `release`."""
    return _end(request["token"], lambda _, config: config["dataset"]["name"] in request["names"], root)


def _end(token: str, over: Callable[[MountStatus, dict[str, Any]], bool], root: str) -> list[str]:
    freed, failures = [], []
    for found in mounts.find(root):
        with _locked(found.mountpoint, root) as home:
            config = _config_of(found)
            if found.state == "detached" or "keepers" not in config or config["cluster"]["token"] != token:
                continue
            if not over(found, config):
                continue
            try:
                mounts.unmount(found.mountpoint, timeout=UNMOUNT_S, root=root)
            except NotMountedError:
                pass  # by somebody else
            except MountError as error:
                failures.append(error)
                continue
            _remove_directory(found.mountpoint, home)
            freed.append(found.mountpoint)
    if failures:
        raise failures[0]
    return freed


@contextlib.contextmanager
def _locked(point: str, root: str) -> Iterator[str]:
    """The directory of a mount point's state directories, while nobody else keeps or ends mounts there."""
    lock = None
    while lock is None:
        home = statedirs.make_home(root, point) if root else statedirs.first_home(point)
        with contextlib.suppress(FileNotFoundError):  # cleared away this moment
            lock = statedirs.lock_home(home, statedirs.KEEPING, wait=True)
    try:
        yield home
    finally:
        os.close(lock)


def _there(point: str, root: str) -> MountStatus | None:
    """What raycache has mounted at a mount point, if it can be used."""
    try:
        found = mounts.status(point, root)
    except NotMountedError:
        return None
    return found if found.state in LIVE else None


def _config_path(mount: MountStatus) -> str:
    return os.path.join(mount.state_dir, statefiles.CONFIG)


def _config_of(mount: MountStatus | None) -> dict[str, Any]:
    return statefiles.read_json(_config_path(mount)) if mount is not None and mount.state_dir else {}


def _same(config: Mapping[str, Any], name: str, token: str) -> bool:
    """Whether a mount is of that dataset of this cluster."""
    same_cluster = config.get("cluster", {}).get("token") == token
    return bool(same_cluster and config["dataset"]["name"] == name)


def _new_config(dataset: ResolvedDataset, request: Mapping[str, Any]) -> dict[str, Any]:
    addresses = list(dict.fromkeys([request["address"], *request["others"]]))[:MOST_ADDRESSES]
    config = cluster_config(dataset, addresses, request["token"])
    return config | {"keepers": {request["node"]: request["address"]}}


def _refresh(
    found: MountStatus, config: dict[str, Any], dataset: ResolvedDataset, request: Mapping[str, Any]
) -> None:
    """Make a mount follow the dataset's spec and the workers' addresses. For another spec its server is replaced, under
    open files; a new address it finds in the config when it needs one."""
    keepers = config["keepers"] | {request["node"]: request["address"]}
    if keepers == config["keepers"] and config["dataset"] == dataset.wire():
        return
    fresh = _new_config(dataset, request)
    others = [address for node, address in keepers.items() if node != request["node"]]
    addresses = [*fresh["cluster"]["addresses"], *others]
    fresh["cluster"]["addresses"] = list(dict.fromkeys(addresses))[:MOST_ADDRESSES]
    kept = {name: config[name] for name in ("made_ns", "uid", "gid") if name in config}
    statefiles.write_json(_config_path(found), fresh | kept | {"keepers": keepers})
    if config["dataset"] == dataset.wire():
        return
    told = statefiles.read_json(os.path.join(found.state_dir, statefiles.STATUS))
    supervisor = statedirs.process_of(told, "supervisor").open()
    if supervisor is not None:
        try:
            signal.pidfd_send_signal(supervisor, signal.SIGHUP)
        except ProcessLookupError:
            pass  # it has just ended: the next look mounts anew
        finally:
            os.close(supervisor)


def _told(mount: MountStatus) -> dict[str, Any]:
    reason = mount.details.get("reason", "")
    served = "passthrough" if mount.details.get("passthrough") else f"user space: {reason}"
    return {
        "point": mount.mountpoint,
        "device": mount.mount.get("device", ""),
        "supervisor": mount.supervisor_pid,
        "served": served,
    }


def _make_directory(point: str, home: str) -> None:
    """Make the mount point if it is not there, and note that."""
    # What is mounted there may not answer, so it is not asked.
    if mountinfo.mounted_at(point) is not None or os.path.isdir(point):
        return
    try:
        os.makedirs(point, 0o755)
    except FileExistsError:
        return  # no directory: the mount will say so; or somebody else made it
    except OSError as error:
        raise MountError(f"the directory cannot be made: {error.strerror}", where=point) from None
    Path(home, MADE).touch(0o600)


def _remove_directory(point: str, home: str) -> None:
    """Remove the mount point if it was made for the mount."""
    made = Path(home, MADE)
    if made.exists() and mountinfo.mounted_at(point) is None:
        with contextlib.suppress(OSError):  # somebody uses it
            os.rmdir(point)
        made.unlink()


def main() -> int:
    """Run as a program; see the module."""
    request = json.load(sys.stdin)
    answer: dict[str, Any]
    try:
        answer = {"value": {"keep": keep, "release": release, "sweep": sweep}[request["do"]](request)}
    except RaycacheError as error:
        answer = {"error": to_wire(error)}
    except OSError as error:
        answer = {"error": to_wire(MountError(str(error)))}
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
