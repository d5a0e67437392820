"""The server as a process: what it loads, what it says, what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.fusemount import FuseMount
from tests.support.waiting import until

_IMPORTED = """
import json, sys
import raycache.fuse.server, raycache.fuse.supervisor, raycache.fuse.mounts
print(json.dumps(sorted(sys.modules)))
"""


def test_no_ray_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", _IMPORTED], check=True, capture_output=True)
    assert not [name for name in json.loads(done.stdout) if name.partition(".")[0] == "ray"]


def test_no_ray_is_loaded_by_a_running_mount(fuse: FuseMount) -> None:
    fuse.put("file", b"bytes")
    status = fuse.start()
    assert (fuse.point / "file").read_bytes() == b"bytes"
    for pid in (status.supervisor_pid, fuse.server()):
        loaded = {line.split(maxsplit=5)[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()}
        assert any("python" in name for name in loaded)
        assert not [name for name in loaded if "/ray/" in name or "_raylet" in name]
    fuse.unmount()


def test_nothing_grows_with_what_is_opened_and_closed(fuse: FuseMount) -> None:
    for number in range(50):
        fuse.put(f"d/{number}", b"%d" % number)
    fuse.start()

    def rounds(count: int) -> tuple[int, int, int]:
        for _ in range(count):
            for name in os.listdir(fuse.point / "d"):
                (fuse.point / "d" / name).read_bytes()
        until(lambda: fuse.details()["open"] >= 0, "a word")
        until(lambda: fuse.status().details["open"] == 0, "all files are closed")
        told = fuse.details()
        return told["nodes"], told["requests"], len(os.listdir(f"/proc/{fuse.server()}/fd"))

    first = rounds(2)
    assert first[0] == 51
    assert rounds(10) == first
    fuse.unmount()


def test_its_secrets_are_in_no_argument_and_no_environment(fuse: FuseMount) -> None:
    fuse.put("file", b"bytes")
    status = fuse.start()
    for pid in (status.supervisor_pid, fuse.server()):
        for what in ("cmdline", "environ"):
            assert str(fuse.source) not in Path(f"/proc/{pid}/{what}").read_text(errors="replace")
    config = Path(status.state_dir, "config.json")
    assert str(fuse.source) in config.read_text()
    assert config.stat().st_mode & 0o777 == 0o600
    assert Path(status.state_dir).stat().st_mode & 0o777 == 0o700
    fuse.unmount()
