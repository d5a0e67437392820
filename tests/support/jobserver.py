"""A Ray head with a job server, in processes of its own, as a user who runs `ray start --head` has it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType

from tests.support.seaweed import free_ports

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 60.0


class JobServer:
    """A cluster of one node that runs while the context manager is open. It shares nothing with other clusters.

    Args:
        num_cpus: of the node.
    """

    def __init__(self, num_cpus: int = 4) -> None:
        self._num_cpus = num_cpus
        self._directory = tempfile.TemporaryDirectory(prefix="rcj-", ignore_cleanup_errors=True)
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""
        """`host:port` of the GCS."""
        self.jobs_url = ""
        """Address for `ray job submit`."""
        programs = os.path.dirname(sys.executable)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY")}
        self.environ = kept | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": self._directory.name,
            "XDG_STATE_HOME": f"{self._directory.name}/state",
            "NO_COLOR": "1",
        }
        """Environment in which commands find nothing but this cluster, and only if they are given its address."""

    def __enter__(self) -> JobServer:
        gcs, dashboard, client, agent, agent_grpc, runtime_env, metrics = free_ports(7)
        self.address = f"127.0.0.1:{gcs}"
        self.jobs_url = f"http://127.0.0.1:{dashboard}"
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *("--disable-usage-stats", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"),
            *(f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"),
            *(f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}"),
            *(f"--runtime-env-agent-port={runtime_env}", f"--metrics-export-port={metrics}"),
            *(f"--num-cpus={self._num_cpus}", f"--object-store-memory={80 << 20}"),
            f"--temp-dir={self._directory.name}/ray",
        ]
        log = Path(self._directory.name, "start.log")
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, env=self.environ, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        try:
            self._await_jobs(log)
        except BaseException:
            self.stop()
            raise
        return self

    def _await_jobs(self, log: Path) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.jobs_url}/api/jobs/", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise RuntimeError(f"the job server did not start:\n{log.read_text()[-3000:]}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the cluster."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)  # ends what `ray start --block` started, too
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        self._directory.cleanup()

    def submit(self, *command: str, timeout_s: float = 240.0) -> subprocess.CompletedProcess[str]:
        """`ray job submit -- COMMAND…`: waits for the job; its output is in the result's."""
        return subprocess.run(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "job", "submit"),
                *("--address", self.jobs_url, "--", *command),
            ],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
