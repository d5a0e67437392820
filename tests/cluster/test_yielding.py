"""A task that allocates most of a node's memory while the memory tier is full runs to its end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from raycache.blocks import GiB, MiB
from tests.support.smallmachine import small_machine
from tests.support.squeeze import QUOTA


def _available() -> int:
    rows = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return next(int(row[1]) * 1024 for row in rows if row[0] == "MemAvailable:")


def test_a_task_that_takes_most_of_the_memory_runs_to_its_end_and_the_tier_grows_back(tmp_path: Path) -> None:
    if _available() < 4 * GiB:
        pytest.skip("less than 4 GiB of memory are free")
    with small_machine(3 * GiB) as machine:
        run = subprocess.run(
            machine.command([sys.executable, "-m", "tests.support.squeeze", str(tmp_path)]),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert run.returncode == 0, run.stderr[-4000:]
        assert machine.kernel_kills() == 0
    found = json.loads(run.stdout.splitlines()[-1])
    assert found.get("allocated", 0) >= found["asked"], found
    # It could not have had that much beside the full tier.
    assert found["asked"] + found["used"] > found["threshold"] + 256 * MiB
    assert found["same_worker"]
    assert found["failures"] == []
    assert found["reads"] > 0
    assert found["smallest"] < QUOTA // 2
    assert found["after"]["quota"] == QUOTA
    assert "MemoryPressure" in found["events"]
