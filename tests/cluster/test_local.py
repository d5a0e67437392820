"""`start` and `stop` where there is no cluster: one is started for it, and exactly that one is ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

STEPS = """
import json, os
from raycache import api, errors
from raycache.spec import TierSpec
directory = os.environ["XDG_STATE_HOME"]
try:
    api.Admin()
except errors.ClusterUnavailableError as error:
    assert "raycache start" in str(error)
else:
    raise AssertionError("there is a cluster already")
tier = TierSpec(medium="SSD", path=directory + "/tier", quota=64 << 20)
started = api.start(tiers=[tier], num_cpus=1)
assert (started["local"], started["nodes"], started["workers"]) == (True, 1, 1), started
again = api.start()
assert (again["local"], again["ray_address"]) == (True, started["ray_address"]), again
os.makedirs(directory + "/bucket")
open(directory + "/bucket/a", "wb").write(b"hello")
admin = api.Admin()
admin.apply(f"{{apiVersion: raycache.io/v1, kind: Dataset, metadata: {{name: ds}},"
            f" spec: {{mounts: [{{mountPoint: file://{directory}/bucket}}]}}}}")
with api.local_path("raycache://ds/a") as path:
    assert path.startswith(directory + "/tier/"), path
    assert open(path, "rb").read() == b"hello"
print(json.dumps(api.stop()))
"""


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory whose path is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="rcl-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


def test_a_local_cluster_is_started_used_and_ended(short_dir: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environ |= {
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": str(short_dir),
        "XDG_STATE_HOME": str(short_dir),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    run = subprocess.run(
        [sys.executable, "-c", STEPS], env=environ, capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stderr
    stopped = json.loads(run.stdout.splitlines()[-1])
    assert (stopped["local"], stopped["workers"]) == (True, 1)
    assert [path.name for path in (short_dir / "raycache").iterdir()] == ["local.log"]
    assert not list(short_dir.rglob("ray_current_cluster")), "a plain ray.init() would look for it there"
    assert not [pid for pid in Path("/proc").glob("[0-9]*") if mentions(pid, str(short_dir))]


def mentions(process: Path, text: str) -> bool:
    """Whether a process has something in its command line."""
    try:
        return text.encode() in (process / "cmdline").read_bytes()
    except OSError:
        return False
