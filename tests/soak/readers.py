"""Starts the soak's readers, on nodes of the cluster and outside of it, and collects what they saw."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raycache.actors import kv as keys
from tests.soak.reader import Plan, read
from tests.soak.setting import EMBEDDED_QUOTA, KEYS, PATIENCE_S, Setting

Collect = Callable[[], tuple[list[dict[str, Any]], list[str]]]
"""Gives the readers' reports, and what became of those that have none."""


def plans(setting: Setting, stop: Path) -> list[tuple[str, Plan]]:
    """Node id, or "" for a process of its own, and what to do there.

    Args:
        setting: of the soak.
        stop: path of a file whose appearance ends the readers.
    """
    directory, nodes = setting.cache.directory, setting.cache.cluster.node_ids()
    spec = directory / "embedded.yaml"
    spec.touch(mode=0o600)
    spec.write_text(setting.spec(mounted=False))
    embedded = {"spec": str(spec), "cache_dir": str(directory / "embedded"), "quota": EMBEDDED_QUOTA}
    mount = ("mount", {"point": setting.point}) if setting.point else ("client", {})
    wanted: list[tuple[str, str, dict[str, Any]]] = [
        (nodes[0], "client", {}),
        (nodes[1], "fsspec", {}),
        (nodes[2], "arrow", {}),
        (nodes[1], "local_path", {}),
        ("", "outside", {}),
        ("", "embedded", embedded),
        ("" if setting.point else nodes[0], *mount),
        ("" if setting.point else nodes[2], *mount),
    ]
    return [
        (
            node,
            Plan(
                name=f"{front}-{number}",
                front=front,
                arguments=arguments,
                truth=str(setting.truth_path),
                keys=KEYS,
                believed_s=setting.truth.believed_s,
                stop=str(stop),
                seed=setting.seed + 100 + number,
            ),
        )
        for number, (node, front, arguments) in enumerate(wanted)
    ]


@contextlib.contextmanager
def reading(setting: Setting, stop: Path) -> Iterator[Collect]:
    """All readers run; gives what collects their reports once `stop` is there."""
    import ray

    addresses = ",".join(row["address"] for row in setting.cache.admin.get("workers"))
    token = (keys.RayKv().get(keys.TOKEN) or b"").decode()
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY")}
    environ |= {"RAYCACHE_ADDRESS": addresses, "RAYCACHE_TOKEN": token}
    tasks, processes = [], []
    for node, plan in plans(setting, stop):
        if node:
            tasks.append(setting.cache.cluster.run_on(node, read, asdict(plan)))
        else:
            processes.append((plan.name, _start(plan, environ)))

    def collect() -> tuple[list[dict[str, Any]], list[str]]:
        reports, problems = list(ray.get(tasks, timeout=PATIENCE_S)), []
        for name, process in processes:
            out, error = process.communicate(timeout=PATIENCE_S)
            if process.returncode:
                problems.append(f"reader {name} ended with {process.returncode}: {error[-2000:]}")
            else:
                reports.append(json.loads(out))
        return reports, problems

    try:
        yield collect
    finally:
        for _, process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()


def _start(plan: Plan, environ: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.soak.reader", json.dumps(asdict(plan))],
        cwd=Path(__file__).parents[2],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
