"""A cluster that is not there: what the command line talks to in unit tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typer.testing import CliRunner, Result

from raycache.cli.app import app
from raycache.cli.backend import Backend, Replicas
from raycache.errors import ClusterUnavailableError, DatasetNotFoundError, NotFoundError

NOW = 1_800_000_000.0


def dataset_row(name: str = "imagenet", **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": "default",
        "ufs": "s3://bucket/imagenet",
        "ufs_total_size": 2 << 30,
        "ufs_total_files": 12,
        "ufs_scanning": False,
        "cached": 1 << 30,
        "cache_capacity": 10 << 30,
        "cached_percentage": 50.0,
        "hit_ratio": 0.925,
        "phase": "Bound",
        "created": NOW,
        "reason": "",
    } | changes


def load_row(name: str = "warm-up", **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "dataset": "imagenet",
        "phase": "Executing",
        "created": NOW,
        "started": NOW,
        "finished": None,
        "bytes_total": 4 << 20,
        "bytes_cached": 1 << 20,
        "files_total": 3,
        "missing": [],
        "reason": "",
    } | changes


class FakeAdmin:
    """Remembers what was asked; answers what it was given."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.descriptions: dict[tuple[str, str], dict[str, Any]] = {}
        self.loads: list[Any] = []
        """States that `load_status` gives one after the other (the last one for ever); exceptions are raised."""
        self.action = "created"
        self.freed = 3 << 20
        self.late: dict[str, str] = {}
        self.left: dict[str, int] = {}
        self.calls: list[tuple[Any, ...]] = []

    def apply(self, documents: list[Any]) -> list[dict[str, Any]]:
        self.calls.append(("apply", [document.name for document in documents]))
        return [
            {"kind": item.kind, "name": item.name, "action": self.action, "warnings": list(item.warnings)}
            for item in documents
        ]

    def get(self, kind: str, name: str | None = None) -> list[dict[str, Any]]:
        self.calls.append(("get", kind, name))
        rows = self.rows.get(kind, [])
        return [row for row in rows if name in (None, row.get("name"), row.get("id"))]

    def describe(self, kind: str, name: str) -> dict[str, Any]:
        try:
            return self.descriptions[kind, name]
        except KeyError:
            raise NotFoundError(f"no {kind} {name!r}", hint="apply it") from None

    def delete(self, kind: str, name: str) -> None:
        self.calls.append(("delete", kind, name))
        if name.startswith("no-"):
            raise DatasetNotFoundError(f"no dataset {name!r}")

    def load(self, dataset: str, paths: list[str], replicas: Replicas, *, metadata: bool = True) -> str:
        self.calls.append(("load", dataset, paths, replicas))
        return "warm-up"

    def scale(self, dataset: str, replicas: Any) -> dict[str, Any]:
        self.calls.append(("scale", dataset, replicas))
        return {"kind": "CacheRuntime", "name": dataset, "action": "configured", "warnings": []}

    def drain(self, node: str, timeout_s: float = 600.0, wait: bool = True) -> dict[str, Any]:
        self.calls.append(("drain", node, timeout_s, wait))
        progress = {"bytes_total": 4 << 20, "bytes_moved": 3 << 20, "bytes_left": self.left}
        return {"node_id": node, "ended": wait, "datasets": {"imagenet": progress}}

    def undrain(self, node: str) -> str:
        self.calls.append(("undrain", node))
        return node

    def create_token(self, datasets: Any, verbs: Any = ("read",), ttl_s: float = 0.0, name: str = "") -> str:
        self.calls.append(("create_token", list(datasets), list(verbs), ttl_s, name))
        return "a.b.c"

    def token_keys(self) -> dict[str, float]:
        return {"0a0a": 0.0, "0b0b": 1.0}

    def rotate_token_keys(self, revoke: bool = False) -> dict[str, str]:
        self.calls.append(("rotate_token_keys", revoke))
        return {"0123456789abcdef": "it does not answer"}

    def drop_token_key(self, key_id: str) -> dict[str, str]:
        self.calls.append(("drop_token_key", key_id))
        return {}

    def load_status(self, name: str) -> dict[str, Any]:
        state = self.loads.pop(0) if len(self.loads) > 1 else self.loads[0]
        if isinstance(state, BaseException):
            raise state
        return {**state, "name": name}

    def evict(self, dataset: str, path: str = "") -> int:
        self.calls.append(("evict", dataset, path))
        return self.freed

    def invalidate(self, dataset: str, paths: Sequence[str] = ("/",), *, wait: bool = True) -> dict[str, str]:
        self.calls.append(("invalidate", dataset, list(paths), wait))
        if dataset.startswith("no-"):
            raise DatasetNotFoundError("no such dataset", where=dataset)
        return self.late

    def status(self) -> dict[str, Any]:
        return {"coordinator": "running", "workers": 1}


class FakeBackend(Backend):
    """A backend with a fake admin.

    Args:
        up: whether raycache runs.
    """

    def __init__(self, up: bool = True) -> None:
        super().__init__()
        self.fake = FakeAdmin()
        self.up = up
        self.already = False
        self.addresses: list[str | None] = []
        self.started: dict[str, Any] | None = None
        self.stopped: dict[str, Any] | None = None
        self.executed: tuple[list[str], dict[str, str]] | None = None
        self.connected = False

    def admin(self, address: str | None) -> FakeAdmin:
        self.addresses.append(address)
        if not self.up:
            raise ClusterUnavailableError(
                "raycache is not running", where="ray://there", hint="`raycache start` starts it"
            )
        self.connected = True
        return self.fake

    def start(self, address: str | None, **options: Any) -> dict[str, Any]:
        self.addresses.append(address)
        self.up = True
        self.started = options
        return {"ray_address": "127.0.0.1:6399", "workers": 3, "already": self.already}

    def stop(self, address: str | None, **options: Any) -> dict[str, Any]:
        self.stopped = options
        return {"workers": 3}

    def environment(self) -> dict[str, str]:
        assert self.connected
        return {"RAY_ADDRESS": "10.0.0.1:6379"}

    def disconnect(self) -> None:
        self.connected = False

    def exec(self, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        assert not self.connected, "the command must not start under a connected Ray driver"
        self.executed = (list(argv), dict(environ))


def invoke(backend: Backend, *words: str, **options: Any) -> Result:
    """Run `raycache WORDS…` against a backend."""
    options.setdefault("env", {})
    options["env"] = {"RAY_ADDRESS": None, "RAYCACHE_DEBUG": None} | options["env"]
    return CliRunner().invoke(app, list(words), obj=backend, prog_name="raycache", **options)
