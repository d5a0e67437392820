"""Processes that see, and have, a small machine's memory: a control group of their own, where Ray and raycache look."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import until

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")


class SmallMachine:
    """See above.

    Args:
        group: the control group's directory.
        view: where its processes see it.
    """

    def __init__(self, group: Path, view: Path) -> None:
        self._group, self._view = group, view

    def command(self, command: list[str]) -> list[str]:
        """The command that runs `command` there."""
        enter = 'echo $$ > "$1/cgroup.procs" && mount --bind "$1" "$2" && shift 2 && exec "$@"'
        return ["unshare", "-m", "sh", "-c", enter, "sh", str(self._group), str(self._view), *command]

    def kernel_kills(self) -> int:
        """Processes that the kernel has killed there for want of memory."""
        for name in ("memory.oom_control", "memory.events"):
            if (self._group / name).exists():
                rows = dict(line.split() for line in (self._group / name).read_text().splitlines())
                return int(rows.get("oom_kill", 0))
        raise AssertionError("the kernel does not count them")

    def processes(self) -> list[int]:
        """Who is there."""
        return [int(line) for line in (self._group / "cgroup.procs").read_text().split()]


@contextlib.contextmanager
def small_machine(size: int) -> Iterator[SmallMachine]:
    """A machine of `size` bytes; skips the test where there cannot be one. Whoever is left in the end is killed."""
    if os.geteuid() or not shutil.which("unshare"):
        pytest.skip("a memory control group of its own needs root and unshare(1)")
    view = _V1 if (_V1 / "memory.limit_in_bytes").exists() else _V2
    limit = "memory.limit_in_bytes" if view == _V1 else "memory.max"
    group = view / f"raycache-test-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
        (group / limit).write_text(str(size))
        probe = subprocess.run(SmallMachine(group, view).command(["true"]), capture_output=True, check=False)
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no memory control group can be made here: {error}")
    if probe.returncode:
        group.rmdir()
        pytest.skip(f"no private mounts can be made here: {probe.stderr.decode().strip()}")
    machine = SmallMachine(group, view)
    try:
        yield machine
    finally:
        for pid in machine.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not machine.processes(), "the small machine is empty")
        group.rmdir()
