"""What the fronts and the users of the package stand on: clients, control, start and stop.

Nothing here imports Ray before it is needed, and a client with an address, or an embedded one, never does.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from raycache.actors import cluster_state, embedding, host, joining, local_cluster, outside
from raycache.actors.catalog import document_to_wire
from raycache.actors.kv import GcsKv, Kv, RayKv
from raycache.actors.outside import StateOverFlight
from raycache.blocks import clean_path
from raycache.client import Client
from raycache.errors import ClusterUnavailableError, OperationFailedError, SpecError
from raycache.settings import Settings
from raycache.spec import Document, ResolvedDataset, TierSpec

Replicas = int | Literal["all"]

EMBEDDED = "embedded:"
"""Prefix of an address that names a spec file instead of a cluster."""

_clients: dict[tuple[Any, ...], Client] = {}
_lock = threading.Lock()


# -- reading ----------------------------------------------------------------------------------------------


def connect(address: str | None = None, token: str | None = None) -> Client:
    """A client of the cache. The same arguments give the same client, within one process.

    Args:
        address: `host:port` of one or more workers, separated by commas, for a process outside the Ray cluster;
            `embedded:FILE` for the datasets of a spec file, cached in this process alone. Default:
            `RAYCACHE_ADDRESS`, else the Ray cluster that this process is part of, else the one that
            `RAY_ADDRESS` (or the machine's last `ray start`) names.
        token: of the workers at `address`. Default: `RAYCACHE_TOKEN`.

    Raises:
        ClusterUnavailableError: no cluster, or no raycache on it.
        AccessDeniedError: the token is wrong.
        SpecError, NotFoundError: the spec file cannot be used.
    """
    settings = Settings.from_environ()
    address = address or settings.address
    token = settings.token if token is None else token
    if address:
        key: tuple[Any, ...] = (os.getpid(), address, token)
        return _cached(key, lambda: _connect_to(address, token))
    found = joining.find_address()
    if found is None:
        raise ClusterUnavailableError(
            "no Ray cluster was found, and no address of raycache is set",
            hint="run `raycache start`, call ray.init(), or set RAY_ADDRESS or RAYCACHE_ADDRESS",
        )
    joined = _is_in_ray()
    return _cached((os.getpid(), found, joined), lambda: _connect_in_ray(found, joined))


def disconnect() -> None:
    """Close the clients that `connect` made in this process. Files opened through them cannot be read further."""
    with _lock:
        mine = [key for key in _clients if key[0] == os.getpid()]
        clients = [_clients.pop(key) for key in mine]
    for client in clients:
        client.close()


@contextlib.contextmanager
def local_path(url: str) -> Iterator[str]:
    """A path of a complete local file with an object's bytes, fetched if need be.

    The file stays as long as the context, and must not be written.

    Args:
        url: `raycache://dataset/path`.

    Raises:
        As `connect` and `Client.local_path`.
    """
    dataset, path = _split(url)
    with connect().local_path(dataset, path) as local:
        yield local


def embedded(datasets: Sequence[ResolvedDataset], cache_dir: str = "", quota: int | None = None) -> Client:
    """A client with a cache of its own, in this process: no cluster, no Ray.

    Args:
        datasets: what can be read.
        cache_dir: directory for what is cached, kept for the next time. Default: `RAYCACHE_CACHE_DIR`; without
            that, the tiers of the datasets themselves.
        quota: bytes that each dataset may use in `cache_dir`. Default: half of what is free there.

    Raises:
        SpecError, AccessDeniedError, CacheFullError, StoreBusyError: the cache cannot be opened.
    """
    return embedding.open_embedded(datasets, cache_dir or Settings.from_environ().cache_dir, quota)


def _split(url: str) -> tuple[str, str]:
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("raycache", "fsspec+raycache"):
        raise SpecError("not a URL of raycache", where=url, hint="write raycache://dataset/path")
    dataset, _, path = clean_path(rest).partition("/")
    return dataset, path


def _cached(key: tuple[Any, ...], make: Any) -> Client:
    with _lock:
        client = _clients.get(key)
        if client is None:
            client = _clients[key] = make()
        return client


def _unlock_in_child() -> None:
    # A child that was forked while another thread held the lock would wait for ever. The parent's clients stay
    # in the table, under its process id: closing them here would close what the parent uses.
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_unlock_in_child)


def _connect_to(address: str, token: str) -> Client:
    if address.startswith(EMBEDDED):
        return embedded(embedding.datasets_in(address.removeprefix(EMBEDDED)))
    asker = StateOverFlight(lambda: outside.seeds(address), token)
    try:
        state = asker(-1)
    except BaseException:
        asker.close()
        raise
    assert state is not None  # no cluster's epoch is -1
    return Client(state, refresh=asker, host_id=host.host_id(), on_close=asker.close)


def _is_in_ray() -> bool:
    import ray

    return bool(ray.is_initialized())


def _connect_in_ray(address: str, joined: bool) -> Client:
    kv: Kv = RayKv() if joined else GcsKv(address)
    node_id = ""
    if joined:
        import ray

        node_id = ray.get_runtime_context().get_node_id()
    return Client(
        cluster_state.read(kv),
        refresh=lambda known_epoch: cluster_state.read_if_newer(kv, known_epoch),
        node_id=node_id,
        host_id=host.host_id(),
    )


# -- control ----------------------------------------------------------------------------------------------


DRAIN_S = 600.0
"""Seconds that a drain may take if nothing else is said."""

TOKEN_S = 24 * 3600.0
"""Seconds that a token is valid if nothing else is said."""

_DRAIN_LOOK_S = 0.5
"""Seconds between looks at a drain that is waited for."""


class Admin:
    """Control of the raycache of a Ray cluster. Every method raises only `RaycacheError` and what derives from it.

    Args:
        ray_address: `host:port` of the cluster; None finds it as `connect` does. This process joins it.

    Raises:
        ClusterUnavailableError: no Ray cluster, or no raycache on it.
    """

    def __init__(self, ray_address: str | None = None) -> None:
        joining.join(ray_address)
        from raycache.actors.control import Control

        self._control = Control()
        self._control.call("status")

    def apply(self, documents: Sequence[Document] | str) -> list[dict[str, Any]]:
        """Make documents (or YAML text) so: all of them, or, if one cannot be, none.

        Returns when the workers hold what is new. For each document: `kind`, `name`, `action` (`created`,
        `configured` or `unchanged`) and `warnings`.

        Raises:
            SpecError: a document cannot be accepted, or a quota is larger than what a node has.
            BucketNotFoundError, AccessDeniedError, UnderStoreError: a mount cannot be read.
        """
        if isinstance(documents, str):
            from raycache.spec import load_documents

            documents = load_documents(documents)
        wires = [document_to_wire(document) for document in documents]
        return list(self._control.call("apply", wires))

    def get(self, kind: str, name: str | None = None) -> list[dict[str, Any]]:
        """Rows of a kind (`datasets`, `runtimes`, `loads`, `workers`, `secrets`), or of one object.

        Raises:
            NotFoundError: there is no object of that name.
            SpecError: there is no such kind.
        """
        return list(self._control.call("get", _kind(kind), name))

    def describe(self, kind: str, name: str) -> dict[str, Any]:
        """Spec (secrets masked), status, workers and events of one object. Raises as `get` does."""
        return dict(self._control.call("describe", _kind(kind), name))

    def delete(self, kind: str, name: str) -> None:
        """Delete an object; of a dataset, what is cached of it too. The object store keeps what it holds.

        Raises:
            NotFoundError: there is none.
            SpecError: a dataset needs it.
        """
        self._control.call("delete", _kind(kind, deletable=True), name)

    def load(
        self,
        dataset: str,
        paths: str | Sequence[str] = ("/",),
        replicas: Replicas = 1,
        name: str | None = None,
        metadata: bool = True,
    ) -> str:
        """Start to fetch paths of a dataset. Returns the load's name, for `load_status`.

        Args:
            dataset: its name.
            paths: files and directories in it, or one.
            replicas: on how many nodes a copy should be, or `all`.
            name: of the load; default: made from the dataset's.
            metadata: list the object store afresh first.

        Raises:
            DatasetNotFoundError, PathError, SpecError.
        """
        if replicas != "all" and (not isinstance(replicas, int) or replicas < 1):
            raise SpecError("replicas must be a number of at least 1, or 'all'", where=repr(replicas))
        spec = {
            "target": [{"path": "/" + clean_path(path), "replicas": replicas} for path in _paths(paths)],
            "loadMetadata": metadata,
        }
        name = name or f"{dataset}-{uuid.uuid4().hex[:5]}"
        self._control.call("load", name, dataset, spec)
        return name

    def load_status(self, name: str) -> dict[str, Any]:
        """The row of a load. Raises NotFoundError."""
        return self.get("loads", name)[0]

    def evict(self, dataset: str, path: str = "") -> int:
        """Drop what is cached at and below a path, on all nodes; what is being read stays. Returns bytes freed.

        Raises:
            DatasetNotFoundError, PathError.
        """
        return int(self._control.call("evict", dataset, clean_path(path)))

    def invalidate(
        self, dataset: str, paths: str | Sequence[str] = ("/",), *, wait: bool = True
    ) -> dict[str, str]:
        """Have everybody forget what is known of the names at and below paths, because they have changed in the store.

        Workers forget at once, and so whoever connects afterwards sees the store as it is. Clients that are connected
        and mounts look once a second whether there is something to forget. What is cached stays, for files that
        are open; `evict` drops it.

        Args:
            dataset: its name.
            paths: files and directories in it, or one, whether or not the store has them (any more).
            wait: return two seconds later, when clients and mounts that can be reached have forgotten, too.

        Returns:
            Nodes whose worker did not say in time that it has, and why. It is told by the next who asks it.

        Raises:
            DatasetNotFoundError, PathError.
            ClusterUnavailableError: it could not be published.
        """
        cleaned = [clean_path(path) for path in _paths(paths)]
        return dict(self._control.call("invalidate", dataset, cleaned, wait))

    def scale(self, dataset: str, replicas: int | str | Mapping[str, int]) -> dict[str, Any]:
        """Change on how many nodes a dataset is held, and nothing else of its spec.

        Returns when new holders have taken it on. Holders that go move what only they have to the others first, in the
        background; see `leaving` in the rows of `get("workers")`.

        Args:
            dataset: its name.
            replicas: a number, `all`, or `{"min": …, "max": …}`.

        Returns:
            `kind`, `name`, `action` and `warnings`, of its CacheRuntime.

        Raises:
            DatasetNotFoundError: there is none.
            SpecError: no such number, or it has no CacheRuntime of its own.
        """
        given = dict(replicas) if isinstance(replicas, Mapping) else replicas
        return dict(self._control.call("scale", dataset, given))

    def drain(self, node: str, timeout_s: float = DRAIN_S, wait: bool = True) -> dict[str, Any]:
        """Have a node's worker move what only it holds to the others, and end; the node holds nothing from then on.

        Args:
            node: Ray node id, or the beginning of it, or the id of its worker.
            timeout_s: seconds; what has not moved by then is left behind.
            wait: return when it has ended.

        Returns:
            `node_id`, whether it has `ended`, its `deadline` (seconds since the epoch) and, by dataset, `bytes_total`,
            `bytes_moved`, `bytes_elsewhere` (others had them already) and `bytes_left` by reason.

        Raises:
            NotFoundError: no such node.
            OperationFailedError: the node went before its worker had ended.
        """
        if timeout_s < 0:
            raise SpecError("a timeout must not be negative", where=f"{timeout_s:g} s")
        node_id = str(self._control.call("drain", node, float(timeout_s)))
        while True:
            found = self._control.call("drained", node_id)
            if found is None:
                raise OperationFailedError("the node is gone, or not to be drained any more", where=node_id)
            if found["ended"] or not wait:
                return {"node_id": node_id, **found}
            time.sleep(_DRAIN_LOOK_S)

    def undrain(self, node: str) -> str:
        """Let a drained node hold datasets again. Returns its id. Raises NotFoundError: it is not drained."""
        return str(self._control.call("undrain", node))

    def create_token(
        self,
        datasets: str | Sequence[str],
        verbs: Sequence[str] = ("read",),
        ttl_s: float = TOKEN_S,
        name: str = "",
    ) -> str:
        """A token for clients and mounts outside the Ray cluster (`RAYCACHE_TOKEN`), which may only what it says.

        Args:
            datasets: names of those that it is for; "*" is all, also those to come.
            verbs: `read` (names and bytes), `invalidate`.
            ttl_s: seconds until it ends; at most a year.
            name: whom it is for.

        Raises:
            DatasetNotFoundError: there is no such dataset.
            SpecError: an unknown verb, a token that would not end.
        """
        named = [datasets] if isinstance(datasets, str) else list(datasets)
        return str(self._control.call("issue_token", name, named, list(verbs), float(ttl_s)))

    def token_keys(self) -> dict[str, float]:
        """When each key that signs tokens was made, seconds since the epoch, by its id; the last one signs."""
        return dict(self._control.call("signing_keys"))

    def rotate_token_keys(self, revoke: bool = False) -> dict[str, str]:
        """Sign tokens with a new key from now on.

        Args:
            revoke: drop all the older ones: every token that was made before is refused from now on.

        Returns:
            The nodes whose worker did not say that it has heard of it, and why; it hears of it from the coordinator
            as soon as it answers again.
        """
        return dict(self._control.call("change_keys", None, revoke))

    def drop_token_key(self, key_id: str) -> dict[str, str]:
        """Refuse the tokens of one of the older keys.

        Returns:
            As `rotate_token_keys`.

        Raises:
            SpecError: no such key, or it is the one that signs.
        """
        return dict(self._control.call("change_keys", key_id, False))

    def status(self) -> dict[str, Any]:
        """How the cluster is: versions, epoch, coordinator, counts, problems by node."""
        return dict(self._control.call("status"))


def _paths(paths: str | Sequence[str]) -> Sequence[str]:
    """Paths, or one: a string is a sequence of strings, too. None are all."""
    return [paths] if isinstance(paths, str) else paths or ["/"]


_KINDS = {
    "datasets": ("dataset", "ds"),
    "runtimes": ("runtime", "cacheruntime", "cacheruntimes"),
    "loads": ("load", "dataload", "dataloads"),
    "secrets": ("secret",),
    "workers": ("worker",),
}


def _kind(word: str, deletable: bool = False) -> str:
    folded = word.lower()
    for kind, others in _KINDS.items():
        if folded == kind or folded in others:
            if deletable and kind == "workers":
                raise SpecError("a worker cannot be deleted", hint="`raycache stop` ends all of them")
            return kind
    raise SpecError(f"there is no kind {word!r}", hint="kinds are " + ", ".join(_KINDS))


def start(
    ray_address: str | None = None,
    *,
    tiers: Sequence[TierSpec] | None = None,
    num_cpus: int | None = None,
    timeout_s: float = 60.0,
) -> dict[str, Any]:
    """Start raycache on a Ray cluster; where there is none, on a local one that this starts.

    Args:
        ray_address: `host:port` of the cluster; None finds one as `connect` does.
        tiers: for datasets whose runtime has none. Default: a tenth of memory and disk.
        num_cpus: of the local cluster, if one is started.
        timeout_s: longest wait for the nodes' workers.

    Returns:
        `ray_address`, whether it is a local cluster that a `start` started (`local`), numbers of `nodes` and
        `workers`, `problems` by node, and whether it ran `already`.

    Raises:
        ClusterUnavailableError: no cluster at `ray_address`, or no worker could start on it; says why.
    """
    fresh = ray_address is None and joining.find_address() is None
    if fresh:
        ray_address = local_cluster.start(num_cpus)["address"]
    joined = joining.join(ray_address)
    if fresh:
        local_cluster.known_as(joined)
    running = local_cluster.running()
    local = running is not None and running["address"] == joined
    from raycache.actors import control

    return {"ray_address": joined, "local": local, **control.start(tiers, timeout_s)}


def stop(ray_address: str | None = None, purge: bool = False) -> dict[str, Any]:
    """Stop raycache, and the local Ray cluster if `start` started it.

    Memory is given back; what is on disks stays for the next start, unless `purge`.

    Args:
        ray_address: as for `start`.
        purge: remove what is cached on disks, too.

    Returns:
        Number of `workers` that were stopped, and whether a `local` cluster was ended.

    Raises:
        ClusterUnavailableError: raycache does not run there.
        OperationFailedError: something could not be cleaned up; says what.
    """
    running = local_cluster.running()
    joined = joining.join(ray_address)
    from raycache.actors import control

    disconnect()
    local = running is not None and running["address"] == joined
    try:
        result = control.stop(purge)
    finally:
        if local:
            import ray

            ray.shutdown()
            local_cluster.stop()
    return {"ray_address": joined, "local": local, **result}
