"""A Ray node whose memory tier is full, and a task on it that allocates most of the memory.

Run as a program in a small machine (`smallmachine`): python -m tests.support.squeeze DIRECTORY [STEP_S]. Prints JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import ray

from raycache import api
from raycache.blocks import MiB
from raycache.settings import Settings
from raycache.store import MemoryReader
from tests.support import raycluster
from tests.support.waiting import until

FILES, FILE = 16, 64 * MiB
QUOTA = FILES * FILE + 96 * MiB
"""Of the memory tier: all files fit below its high watermark."""


def allocate(amount: int, step_s: float) -> int:
    """Have `amount` bytes, 16 MiB at a time."""
    held = []
    while sum(map(len, held)) < amount:
        held.append(bytearray(b"x") * (16 * MiB))
        time.sleep(step_s)
    return sum(map(len, held))


def _spec(bucket: Path, tier: Path, quota: str) -> str:
    return f"""
apiVersion: raycache.io/v1
kind: Dataset
metadata: {{name: ds}}
spec: {{mounts: [{{mountPoint: "file://{bucket}"}}], blockSize: 1Mi, consistency: {{mode: immutable}}}}
---
apiVersion: raycache.io/v1
kind: CacheRuntime
metadata: {{name: ds}}
spec:
  tieredstore: {{levels: [{{mediumtype: MEM, path: {tier}, quota: {quota}}}]}}
"""


def _tier(admin: api.Admin) -> dict[str, Any]:
    tier: dict[str, Any] = admin.get("workers")[0]["tiers"][0]
    return tier


def main(directory: Path, step_s: float, quota: str) -> dict[str, Any]:
    """See above."""
    settings = Settings.from_environ()
    reader = MemoryReader(settings.memory_threshold, settings.memory_min_free)
    bucket = directory / "bucket"
    bucket.mkdir()
    for number in range(FILES):
        with (bucket / str(number)).open("wb") as file:
            file.truncate(FILE)
    found: dict[str, Any] = {}
    with raycluster.ray_cluster(1, object_store_memory=80 * MiB) as cluster:
        api.start(cluster.address)
        admin = api.Admin(cluster.address)
        admin.apply(_spec(bucket, directory / "mem", quota))
        with closing(api.connect()) as client:

            def read(number: int) -> None:
                with closing(client.open("ds", str(number % FILES))) as file:
                    data = file.read_at(0, file.size)
                assert len(data) == FILE
                assert data == bytes(FILE)

            for number in range(FILES):
                read(number)
            until(lambda: _tier(admin)["used"] >= FILES * FILE, "the tier is full")
            before, sample = _tier(admin), reader.read()
            pid = admin.get("workers")[0]["pid"]
            amount = max(0, sample.threshold - sample.used) + before["used"] // 2
            task = ray.remote(allocate).options(max_retries=0).remote(amount, step_s)
            done, reads, failures = threading.Event(), [0], []

            def read_on() -> None:
                try:
                    while not done.wait(0.2):
                        read(reads[0])
                        reads[0] += 1
                except Exception as error:  # noqa: BLE001 - told by the program
                    failures.append(repr(error))

            thread = threading.Thread(target=read_on)
            thread.start()
            smallest = before["quota"]
            peak = 0
            while not ray.wait([task], timeout=0.05)[0]:
                peak = max(peak, reader.read().used)
            smallest = _tier(admin)["quota"]
            try:
                found["allocated"] = ray.get(task)
            except ray.exceptions.RayError as error:
                found["killed"] = type(error).__name__ + ": " + str(error)[:200]
            done.set()
            thread.join()
            found |= {
                "asked": amount,
                "reads": reads[0],
                "failures": failures,
                "smallest": smallest,
                "peak": peak,
            }
            found |= {
                "before": before,
                "threshold": sample.threshold,
                "total": sample.total,
                "used": sample.used,
            }
            found["same_worker"] = admin.get("workers")[0]["pid"] == pid
            if "killed" not in found:
                until(lambda: _tier(admin)["yielded"] == 0, "the tier has grown back", 120)
            found["after"] = _tier(admin)
            found["events"] = [event["reason"] for event in admin.describe("dataset", "ds")["events"]]
        api.stop(cluster.address)
    return found


if __name__ == "__main__":
    step = float(sys.argv[2]) if len(sys.argv) > 2 else 0.1
    print(json.dumps(main(Path(sys.argv[1]), step, sys.argv[3] if len(sys.argv) > 3 else str(QUOTA))))
