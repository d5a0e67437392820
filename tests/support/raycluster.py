"""A real Ray cluster of several nodes on this machine, and looking after what raycache leaves on it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.support.leaks import ray_was_here

MiB = 1 << 20
NODE: dict[str, Any] = {"num_cpus": 2, "memory": 2048 * MiB, "object_store_memory": 80 * MiB}
"""What each node offers to Ray's scheduler."""


class RayCluster:
    """A running cluster. This process is a driver of it, on the head node.

    Args:
        cluster: Ray's own.
    """

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster

    @property
    def address(self) -> str:
        """`host:port` of the GCS."""
        return str(self._cluster.address)

    def node_ids(self) -> list[str]:
        """Ids of the nodes that are alive, sorted."""
        import ray

        return sorted(row["NodeID"] for row in ray.nodes() if row["Alive"])

    def add_node(self, **changes: Any) -> Any:
        """Start another node; give the result to `remove_node`."""
        return self._cluster.add_node(**(NODE | changes))

    def remove_node(self, node: Any) -> None:
        """Kill a node without a warning, as a lost machine."""
        self._cluster.remove_node(node, allow_graceful=False)

    def run_on(self, node_id: str, function: Callable[..., Any], *args: Any) -> Any:
        """Start a function on a node; the result is Ray's reference of its result."""
        import ray

        return (
            ray.remote(function)
            .options(num_cpus=0, max_retries=0, label_selector={"ray.io/node-id": node_id})
            .remote(*args)
        )


@contextlib.contextmanager
def _environment(directory: str) -> Iterator[None]:
    """What Ray must find in the environment: this process's, and with it that of the processes it starts."""
    values = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Nobody is told of the tests; and the threads that gather what to tell would outlive the cluster.
        "RAY_USAGE_STATS_ENABLED": "0",
        # A directory of this cluster's own, and short: the paths of Unix sockets are limited to 107 bytes.
        "RAY_TMPDIR": directory,
        # A killed node is noticed within about three seconds, not fifteen; one that is only slow is left alone.
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "10000",
        "RAY_health_check_failure_threshold": "3",
    }
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def ray_cluster(nodes: int = 3, **head: Any) -> Iterator[RayCluster]:
    """A cluster of `nodes` nodes; more arguments for the head node. Its files are in a directory of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="rct-", ignore_cleanup_errors=True) as directory,
        _environment(directory),
    ):
        import ray
        from ray.cluster_utils import Cluster

        cluster = Cluster(
            initialize_head=True,
            head_node_args=NODE | {"include_dashboard": False} | head,
            shutdown_at_exit=False,
        )
        try:
            for _ in range(nodes - 1):
                cluster.add_node(wait=False, **NODE)
            cluster.wait_for_nodes()
            ray.init(
                address=cluster.address,
                namespace="raycache-tests",
                log_to_driver=False,
                logging_level="ERROR",
            )
            yield RayCluster(cluster)
        finally:
            ray.shutdown()
            cluster.shutdown()
            ray_was_here()


def left_behind(directory: Path) -> list[str]:
    """What raycache left after a stop: actors, placement groups, keys, mounts, memory tiers' files."""
    import ray

    from raycache.actors import kv as keys

    found = [
        f"actor {actor['name']}"
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["namespace"] == "raycache"
    ]
    found += [
        f"placement group {row['name']}"
        for row in ray.util.placement_group_table().values()
        if row["name"].startswith("raycache/") and row["state"] != "REMOVED"
    ]
    kv = keys.RayKv()
    found += [f"key {key}" for key in keys.RUNNING if kv.get(key) is not None]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found += [f"mount {line.split()[4]}" for line in mounts if line.split()[4].startswith(str(directory))]
    found += [f"file {path}" for path in directory.glob("mem/*/*/tier/**/*") if path.is_file()]
    return found
