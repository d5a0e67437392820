"""What the commands talk to: the one place where the command line meets `raycache.api` and Ray.

Everything is imported when it is used: Ray takes half a second. Tests put a fake in the place of `Backend`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from raycache.errors import MountError, RaycacheError, SpecError

if TYPE_CHECKING:
    from raycache.actors.whereabouts import Whereabouts
    from raycache.fuse.mounts import MountStatus
    from raycache.spec import Document, ResolvedDataset, TierSpec

Replicas = int | Literal["all"]


class AdminLike(Protocol):
    """The part of `raycache.api.Admin` that the commands use; its docstrings say what each method does."""

    def apply(self, documents: list[Document]) -> list[dict[str, Any]]: ...
    def get(self, kind: str, name: str | None = None) -> list[dict[str, Any]]: ...
    def describe(self, kind: str, name: str) -> dict[str, Any]: ...
    def delete(self, kind: str, name: str) -> None: ...
    def load(self, dataset: str, paths: list[str], replicas: Replicas, *, metadata: bool = True) -> str: ...
    def load_status(self, name: str) -> dict[str, Any]: ...
    def evict(self, dataset: str, path: str = "") -> int: ...
    def invalidate(
        self, dataset: str, paths: Sequence[str] = ("/",), *, wait: bool = True
    ) -> dict[str, str]: ...
    def scale(self, dataset: str, replicas: int | str | Mapping[str, int]) -> dict[str, Any]: ...
    def drain(self, node: str, timeout_s: float = ..., wait: bool = True) -> dict[str, Any]: ...
    def undrain(self, node: str) -> str: ...
    def create_token(
        self, datasets: str | Sequence[str], verbs: Sequence[str] = ..., ttl_s: float = ..., name: str = ""
    ) -> str: ...
    def token_keys(self) -> dict[str, float]: ...
    def rotate_token_keys(self, revoke: bool = False) -> dict[str, str]: ...
    def drop_token_key(self, key_id: str) -> dict[str, str]: ...
    def status(self) -> dict[str, Any]: ...


class Backend:
    """The real thing. Made before anything else is imported: it notes what the process was started with."""

    def __init__(self) -> None:
        self._environ = dict(os.environ)
        self._descriptors = _open_descriptors()

    def admin(self, address: str | None) -> AdminLike:
        """Connect to the raycache of a Ray cluster.

        Raises:
            ClusterUnavailableError: no Ray cluster at `address`, or no raycache on it.
        """
        _check_address(address)
        _quiet()
        from raycache.api import Admin

        return Admin(address)

    def start(
        self, address: str | None, *, tiers: list[TierSpec] | None = None, num_cpus: int | None = None
    ) -> dict[str, Any]:
        """Start raycache on a Ray cluster, or on a local one that is started for it."""
        _check_address(address)
        _quiet()
        from raycache import api
        from raycache.actors import joining
        from raycache.cli.failures import say

        if address is None and joining.find_address() is None:
            say("no Ray cluster was found; starting one on this machine")
        return api.start(address, tiers=tiers, num_cpus=num_cpus)

    def stop(self, address: str | None, *, purge: bool = False) -> dict[str, Any]:
        """Stop raycache, and the local Ray cluster if `start` started it."""
        _check_address(address)
        _quiet()
        from raycache import api

        return api.stop(address, purge=purge)

    def environment(self) -> dict[str, str]:
        """What a command needs in its environment to reach the cluster that this process is connected to."""
        import ray

        return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}

    def disconnect(self) -> None:
        """Leave the Ray cluster, if this process joined it."""
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            ray.shutdown()

    def load_files(self, paths: Sequence[str]) -> list[Document]:
        """The objects in spec files. Raises SpecError and NotFoundError."""
        from raycache.spec import load_files

        return load_files(paths)

    # -- mounts -------------------------------------------------------------------------------------------

    def whereabouts(self, dataset: str, address: str | None) -> Whereabouts:
        """Where a dataset of a cluster is. Raises as `raycache.actors.whereabouts.whereabouts`."""
        _check_address(address)
        _quiet()
        from raycache.actors.whereabouts import whereabouts

        return whereabouts(dataset, address)

    def datasets_in(self, path: str) -> list[ResolvedDataset]:
        """The datasets of a spec file, cached without a cluster. Raises SpecError and NotFoundError."""
        from raycache.actors.embedding import datasets_in

        return datasets_in(path)

    def mount(
        self, mountpoint: str, config: Mapping[str, Any], source: str, options: Mapping[str, Any]
    ) -> MountStatus:
        """Mount. Arguments and errors as of `raycache.fuse.mounts.start`; `options` are those of MountOptions."""
        from raycache.fuse import mounts

        try:
            return mounts.start(mountpoint, config, source, mounts.MountOptions(**options))
        except RaycacheError as error:
            if type(error) is MountError:
                raise
            # The server has said what is wrong: its log, which follows, has nothing to add.
            what = error.what.partition("\n")[0]
            raise type(error)(what, where=error.where, hint=error.hint) from None

    def mounts(self, mountpoint: str | None = None) -> list[MountStatus]:
        """The mounts of this user, or the one at a mount point. Raises NotMountedError."""
        from raycache.fuse import mounts

        return mounts.find() if mountpoint is None else [mounts.status(mountpoint)]

    def log_of(self, mount: MountStatus) -> str:
        """The last lines of a mount's log."""
        from raycache.fuse import statefiles

        return statefiles.log_tail(mount.state_dir) if mount.state_dir else ""

    def unmount(self, mountpoint: str, *, force: bool, timeout_s: float) -> MountStatus:
        """Unmount; see `raycache.fuse.mounts.unmount`."""
        from raycache.fuse import mounts

        return mounts.unmount(mountpoint, force=force, timeout=timeout_s)

    def exec(self, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        """Become another program, with the environment and the open files this one was started with.

        Args:
            argv: path of the program, and its arguments.
            environ: what to add to the environment.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor in _open_descriptors() - self._descriptors:
            try:
                os.set_inheritable(descriptor, False)
            except OSError:
                pass  # closed meanwhile, by a thread that is ending
        os.execve(argv[0], list(argv), {**self._environ, **environ})


def _open_descriptors() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/fd")}


def _check_address(address: str | None) -> None:
    """Refuse what looks like an address of Ray and is another kind of one."""
    if address and address.startswith(("http://", "https://")):
        raise SpecError(
            "this is the address of Ray's dashboard (for `ray job submit`), not of a Ray cluster",
            where=f"--address (or RAY_ADDRESS) {address}",
            hint="give host:port of the cluster's GCS, such as 10.0.0.1:6379, or run the command as a Ray job",
        )


def _quiet() -> None:
    """Let Ray's log say only what is wrong."""
    logging.getLogger("ray").setLevel(logging.WARNING)
