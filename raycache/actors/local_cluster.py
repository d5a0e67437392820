"""A Ray cluster of one node on this machine, for `raycache start` where there is none.

`ray stop` would end every Ray process of the machine, so the head runs in the foreground of a process of ours
(`ray start --head --block`), and ending that one ends exactly what was started. Which one it is stands in
`$XDG_STATE_HOME/raycache/local.json`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from raycache.errors import ClusterUnavailableError, OperationFailedError
from raycache.settings import Settings

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 45.0
"""Seconds until the cluster is ended the hard way. Ray itself gives the node 30 to drain."""


def _state_file() -> Path:
    return Path(Settings.from_environ().state_dir) / "local.json"


def running() -> dict[str, Any] | None:
    """Address and process id of the cluster that `start` started, if it still runs."""
    try:
        state: dict[str, Any] = json.loads(_state_file().read_text())
    except (OSError, ValueError):
        return None
    # A process id alone may be somebody else's by now.
    return state if _start_time(state["pid"]) == state["start_time"] else None


def start(num_cpus: int | None = None) -> dict[str, Any]:
    """Start a cluster. Returns its address and process id.

    Args:
        num_cpus: of the node; None takes what the machine has.

    Raises:
        ClusterUnavailableError: it did not come up; says where its log is.
    """
    file = _state_file()
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = file.with_suffix(".log")
    port = _free_port()
    # Not 127.0.0.1: Ray would put the machine's address in its place.
    import ray

    host = ray.util.get_node_ip_address()
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
        *(f"--node-ip-address={host}", f"--port={port}", "--include-dashboard=false"),
        *([] if num_cpus is None else [f"--num-cpus={num_cpus}"]),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    state = {"address": f"{host}:{port}", "pid": process.pid, "start_time": _start_time(process.pid)}
    file.write_text(json.dumps(state))
    deadline = time.monotonic() + START_TIMEOUT_S
    try:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            # The last thing that `ray start --block` says, once all parts answer.
            if b"block forever" in log.read_bytes():
                return state
            time.sleep(0.1)
    except KeyboardInterrupt:
        stop()
        raise
    stop()
    raise ClusterUnavailableError(
        "the local Ray cluster did not start", where=str(log), hint="its log says why"
    )


def known_as(address: str) -> None:
    """Note what Ray calls the cluster that `start` started: it may replace the loopback address it was given."""
    state = running()
    if state is not None:
        _state_file().write_text(json.dumps(state | {"address": address}))


def stop() -> bool:
    """End the cluster that `start` started. False if there is none.

    Raises:
        OperationFailedError: it does not end.
    """
    state = running()
    if state is None:
        _state_file().unlink(missing_ok=True)
        return False
    _forget_address(state["address"])
    # Killed hard, too, it takes its children with it: Ray's reaper waits for its end.
    for number in (signal.SIGTERM, signal.SIGKILL):
        os.kill(state["pid"], number)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while time.monotonic() < deadline:
            _reap(state["pid"])
            if running() is None:
                _state_file().unlink(missing_ok=True)
                return True
            time.sleep(0.1)
    raise OperationFailedError(
        "the local Ray cluster does not end", where=f"process {state['pid']}", hint="kill it"
    )


def _forget_address(address: str) -> None:
    """Remove Ray's note of the machine's newest cluster, as `ray stop` does, if it is this one: a plain `ray.init()`
    would try for minutes to connect to it."""
    from ray._common.utils import get_ray_address_file  # where Ray's own `start` and `stop` look

    note = Path(get_ray_address_file(None))
    try:
        noted = note.read_text().strip()
    except OSError:
        return
    if noted == address:
        note.unlink(missing_ok=True)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass  # another process started it


def _start_time(pid: int) -> str:
    """When a process began, in the kernel's clock ticks since boot (proc(5)); "" if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
