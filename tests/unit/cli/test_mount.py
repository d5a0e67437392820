"""`mount` and `unmount`: what the words of a command line mean, what is told, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from raycache.actors.whereabouts import Whereabouts
from raycache.cli import attend
from raycache.errors import DatasetNotFoundError, MountBusyError, MountError, NotMountedError
from raycache.fuse.mounts import MountStatus
from raycache.spec import ResolvedDataset
from tests.support.embedded import dataset_of
from tests.unit.cli.fakes import FakeBackend, invoke

GiB = 1 << 30


def status(state: str = "serving", **changes: Any) -> MountStatus:
    details = {"passthrough": True, "reason": "", "open": 2, "nodes": 7, "metrics": {"hit_bytes": 5}}
    given = {
        "state_dir": "/run/raycache/mounts/x/0",
        "supervisor_pid": 11,
        "server_pid": 12,
        "starts": 3,
        "mount": {"device": "0:44", "readahead_kib": 4096},
        "details": details,
    } | changes
    return MountStatus("/mnt/data", "ds", state, **given)


class MountBackend(FakeBackend):
    """Remembers what was mounted; answers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.mounted: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = []
        self.asked: list[tuple[str, str | None]] = []
        self.there: list[MountStatus] = []
        self.ended: list[tuple[str, bool, float]] = []
        self.answer = status()

    def whereabouts(self, dataset: str, address: str | None) -> Whereabouts:
        self.asked.append((dataset, address))
        if dataset == "no-such":
            raise DatasetNotFoundError("no such dataset", where=dataset)
        return Whereabouts(dataset_of(dataset, {"": "s3://b"}), ["10.0.0.1:7000", "10.0.0.2:7000"], "t0ken")

    def mount(
        self, mountpoint: str, config: Mapping[str, Any], source: str, options: Mapping[str, Any]
    ) -> MountStatus:
        self.mounted.append((mountpoint, dict(config), source, dict(options)))
        return self.answer

    def mounts(self, mountpoint: str | None = None) -> list[MountStatus]:
        if mountpoint is not None and not self.there:
            raise NotMountedError("raycache has nothing mounted here", where=mountpoint)
        return self.there

    def log_of(self, mount: MountStatus) -> str:
        return "first line\nlast line"

    def unmount(self, mountpoint: str, *, force: bool, timeout_s: float) -> MountStatus:
        self.ended.append((mountpoint, force, timeout_s))
        return self.answer


def mounted(*words: str, **environ: str) -> tuple[ResolvedDataset, dict[str, Any]]:
    """The dataset that `raycache mount WORDS…` mounts, and its config."""
    backend = MountBackend()
    result = invoke(backend, "mount", *words, env=environ)
    assert result.exit_code == 0, result.output
    ((_, config, _, _),) = backend.mounted
    return ResolvedDataset.from_wire(config["dataset"]), config


# -- on a cluster


def test_a_dataset_of_a_cluster() -> None:
    backend = MountBackend()
    result = invoke(backend, "mount", "imagenet", "/mnt/data")
    assert (result.exit_code, result.stdout) == (0, "imagenet is mounted at /mnt/data (passthrough)\n")
    ((point, config, source, options),) = backend.mounted
    assert (point, source, options) == ("/mnt/data", "imagenet", {"allow_other": True})
    assert config["cluster"] == {"addresses": ["10.0.0.1:7000", "10.0.0.2:7000"], "token": "t0ken"}
    assert config["dataset"]["name"] == "imagenet"
    assert config["uid"] == os.geteuid()


def test_which_cluster() -> None:
    def asked(*words: str, **environ: str) -> str | None:
        backend = MountBackend()
        assert invoke(backend, *words, env=environ).exit_code == 0
        return backend.asked[0][1]

    assert asked("mount", "ds", "/m") is None
    assert asked("mount", "ds", "/m", "--address", "a:1") == "a:1"
    assert asked("mount", "ds", "/m", RAY_ADDRESS="r:1") == "r:1"
    assert asked("mount", "ds", "/m", RAY_ADDRESS="r:1", RAYCACHE_ADDRESS="w:1") is None
    assert asked("mount", "ds", "/m", "--address", "a:1", RAYCACHE_ADDRESS="w:1") == "a:1"
    assert asked("--address", "a:1", "mount", "ds", "/m", RAYCACHE_ADDRESS="w:1") == "a:1"


def test_owner_readahead_and_who_may_look() -> None:
    backend = MountBackend()
    words = ["--uid", "5", "--gid", "6", "--mode", "0440", "--readahead", "8Mi", "--no-allow-other"]
    assert invoke(backend, "mount", "ds", "/m", *words).exit_code == 0
    ((_, config, _, options),) = backend.mounted
    assert config["dataset"]["owner"] == {"uid": 5, "gid": 6, "mode": "0440"}
    assert options == {"allow_other": False, "readahead_kib": 8192}


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["--cache-dir", "/x"], "--cache-dir"),
        (["--tier", "MEM:/x:1Gi"], "--tier"),
        (["-o", "region=eu"], "-o"),
        (["--immutable"], "--immutable"),
    ],
)
def test_what_the_cluster_says_is_not_said_again(words: list[str], flag: str) -> None:
    result = invoke(MountBackend(), "mount", "ds", "/m", *words)
    assert result.exit_code == 2
    assert f"where: {flag}\n" in result.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["/tmp/x"], "file:///tmp/x"),
        ([".."], "file:///"),
        (["mydata", "-o", "endpoint=http://h"], "s3://mydata"),
    ],
)
def test_what_is_no_dataset_is_told_before_a_cluster_is_looked_for(words: list[str], told: str) -> None:
    backend = MountBackend()
    result = invoke(backend, "mount", words[0], "/m", *words[1:])
    assert (result.exit_code, backend.asked) == (2, [])
    assert told in result.stderr


def test_how_it_is_served_is_told() -> None:
    backend = MountBackend()
    backend.answer = status(details={"passthrough": False, "reason": "no CAP_SYS_ADMIN", "warnings": ["odd"]})
    result = invoke(backend, "mount", "ds", "/mnt/data")
    assert result.stdout == "ds is mounted at /mnt/data (user space: no CAP_SYS_ADMIN)\n"
    assert result.stderr == "warning: odd\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [(MountBusyError("not empty"), 1), (MountError("fusermount3: no"), 1), (NotMountedError("nothing"), 4)],
)
def test_errors_have_a_status_and_no_traceback(error: MountError, code: int) -> None:
    class Failing(MountBackend):
        def mount(self, *_: Any) -> MountStatus:
            raise error

    result = invoke(Failing(), "mount", "ds", "/m")
    assert (result.exit_code, result.stderr) == (code, f"error: {error.what}\n")
    assert invoke(MountBackend(), "mount", "no-such", "/m").exit_code == 4


@pytest.mark.parametrize("words", [[], ["s3://b"], ["a", "b", "c"], ["-f", "x.yaml"]])
def test_the_words_must_make_sense(words: list[str]) -> None:
    result = invoke(MountBackend(), "mount", *words)
    assert result.exit_code == 2
    assert "raycache mount" in result.stderr


# -- without one


def test_a_place_in_an_object_store(tmp_path: Path) -> None:
    dataset, config = mounted("s3://bucket/models/v1/", "/m", XDG_CACHE_HOME=str(tmp_path))
    assert config["embedded"] == {"cache_dir": "", "quota": None}
    assert [mount.uri for mount in dataset.mounts] == ["s3://bucket/models/v1"]
    assert re.fullmatch(r"bucket-models-v1-[0-9a-f]{8}", dataset.name)
    (tier,) = dataset.tiers
    assert (tier.path, tier.quota, tier.quota_ratio) == (f"{tmp_path}/raycache", None, 0.1)
    assert (dataset.block_size, dataset.consistency_mode, dataset.metadata_ttl) == (4 << 20, "ttl", 30.0)
    assert dataset.owner is None


def test_its_options(tmp_path: Path) -> None:
    words = ["-o", "endpoint=http://127.0.0.1:9000", "-o", "region=eu-1", "-o", "pathStyle", "--name", "m"]
    words += ["--cache-dir", str(tmp_path), "--cache-size", "10Gi", "--block-size", "1Mi", "--immutable"]
    dataset, _ = mounted("s3://bucket", "/m", *words)
    assert dataset.name == "m"
    assert dataset.mounts[0].options == {
        "endpoint": "http://127.0.0.1:9000",
        "region": "eu-1",
        "path_style": "true",
        "allow_http": "true",
    }
    assert [(tier.medium, tier.path, tier.quota) for tier in dataset.tiers] == [
        ("SSD", str(tmp_path), 10 * GiB)
    ]
    assert (dataset.block_size, dataset.consistency_mode) == (1 << 20, "immutable")


def test_names_tell_places_apart() -> None:
    def name(*words: str) -> str:
        return mounted(*words, "/m")[0].name

    assert name("s3://b/p") == name("s3://b/p/")
    assert name("s3://b/p") != name("s3://b-p")
    assert name("s3://b/p") != name("s3://b/p", "-o", "endpoint=https://other")
    assert name("file:///").startswith("root-")


def test_tiers_and_where_they_come_from(tmp_path: Path) -> None:
    dataset, _ = mounted("s3://b", "/m", "--tier", "SSD:/y:20%", "--tier", "MEM:/x:1Gi")
    assert [(tier.medium, tier.path) for tier in dataset.tiers] == [("MEM", "/x"), ("SSD", "/y")]
    dataset, _ = mounted("s3://b", "/m", RAYCACHE_CACHE_DIR=str(tmp_path))
    assert dataset.tiers[0].path == str(tmp_path)


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["s3:///x"], "s3:///x"),
        (["s3://key:hunter2@b"], "b"),
        (["s3://b", "-o", "nonsense"], "-o nonsense"),
        (["s3://b", "-o", "endpoint=ftp://x"], "-o"),
        (["s3://b", "--block-size", "3Mi"], "--block-size"),
        (["s3://b", "--metadata-ttl", "30"], "--metadata-ttl"),
        (["s3://b", "--metadata-ttl", "3s", "--strict"], "--metadata-ttl"),
        (["s3://b", "--immutable", "--strict"], "--immutable --strict"),
        (["s3://b", "--mode", "999"], "--mode"),
        (["s3://b", "--uid", "-1"], "--uid"),
        (["s3://b", "--name", "A_b"], "--name"),
        (["s3://b", "--cache-size", "10GB"], "--cache-size 10GB"),
        (["s3://b", "--cache-size", "1Ki"], "--cache-size"),
        (["s3://b", "--cache-size", "1Gi", "--tier", "MEM:/x:1Gi"], "--cache-dir, --cache-size"),
        (["s3://b", "--readahead", "1"], "--readahead 1"),
    ],
)
def test_what_is_wrong_is_told_where_it_stands(words: list[str], where: str) -> None:
    result = invoke(MountBackend(), "mount", *words, "/m")
    assert result.exit_code == 2
    assert f"  where: {where}\n" in result.stderr
    assert "hunter2" not in result.output


def test_credentials_are_refused_and_not_shown() -> None:
    result = invoke(MountBackend(), "mount", "s3://b", "/m", "-o", "secretAccessKey=hunter2")
    assert result.exit_code == 2
    assert "AWS_SECRET_ACCESS_KEY" in result.stderr
    assert "hunter2" not in result.output


SPEC = """
apiVersion: raycache.io/v1
kind: Dataset
metadata: {{name: {name}}}
spec: {{mounts: [{{mountPoint: 's3://b/{name}'}}]}}
"""


def test_a_spec_file(tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text(SPEC.format(name="a"))
    two.write_text("---".join(SPEC.format(name=name) for name in "ab"))
    dataset, config = mounted("/m", "-f", str(one))
    assert (dataset.name, sorted(config["embedded"])) == ("a", ["cache_dir", "quota"])
    assert mounted("b", "/m", "-f", str(two))[0].name == "b"
    dataset, _ = mounted("/m", "-f", str(one), "--cache-dir", "/c", "--cache-size", "2Gi", "--mode", "0400")
    assert [(tier.path, tier.quota) for tier in dataset.tiers] == [("/c", 2 * GiB)]
    assert dataset.owner is not None
    assert dataset.owner.mode == 0o400
    assert mounted("b", "/m", RAYCACHE_ADDRESS=f"embedded:{two}")[0].name == "b"
    for words, told in (
        (["/m", "-f", str(two)], "which dataset? There are a, b"),
        (["c", "/m", "-f", str(two)], "no dataset 'c'"),
        (["/m", "-f", str(one), "--strict"], "the dataset's spec says it"),
        (["/m", "-f", str(tmp_path / "absent")], "no such file"),
    ):
        result = invoke(MountBackend(), "mount", *words)
        assert result.exit_code == (4 if told.startswith("no ") else 2)
        assert told in result.stderr


def test_a_mount_without_a_cluster_loads_no_ray(tmp_path: Path) -> None:
    program = (
        f"import sys; sys.argv = ['raycache', 'mount', 's3://b', '{tmp_path}/absent']\n"
        "from raycache.cli import main\ntry: main()\nfinally: print(*sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "does not exist" in result.stderr
    assert not {"ray", "pyarrow", "boto3"} & set(result.stdout.split())


# -- status


def test_status() -> None:
    backend = MountBackend()
    assert invoke(backend, "mount", "--status").stdout == "Nothing is mounted.\n"
    backend.there = [status(), status("failed", error="the server does not stay up", details={})]
    header, first, second, error = invoke(backend, "mount", "--status").stdout.splitlines()
    assert header.split("   ")[0] == "MOUNT POINT"
    assert first.split() == ["/mnt/data", "ds", "serving", "2", "2", "passthrough"]
    assert second.split() == ["/mnt/data", "ds", "failed", "<none>", "2", "<none>"]
    assert error == "/mnt/data: the server does not stay up"
    wide = invoke(backend, "mount", "--status", "-o", "wide").stdout.splitlines()
    assert wide[1].split()[-4:] == ["7", "4096", "11", "12"]
    assert len(json.loads(invoke(backend, "mount", "--status", "-o", "json").stdout)) == 2
    told = yaml.safe_load(invoke(backend, "mount", "--status", "/mnt/data", "-o", "yaml").stdout)
    assert told["log"] == "first line\nlast line"
    assert (told["restarts"], told["metrics"]) == (2, {"hit_bytes": 5})
    assert "last line" in invoke(backend, "--debug", "mount", "--status").stdout
    assert invoke(backend, "mount", "--status", "-o", "xml").exit_code == 2
    assert invoke(backend, "mount", "--status", "a", "b").exit_code == 2


@pytest.mark.parametrize(
    ("state", "code"),
    [("serving", 0), ("restarting", 0), ("unknown", 0), ("detached", 1), ("failed", 1), ("dead", 1)],
)
def test_status_of_a_path_ends_with_how_it_is(state: str, code: int) -> None:
    backend = MountBackend()
    backend.there = [status(state)]
    assert invoke(backend, "mount", "--status", "/mnt/data").exit_code == code
    assert invoke(backend, "mount", "--status").exit_code == 0
    backend.there = []
    result = invoke(backend, "mount", "--status", "/mnt/data")
    assert (result.exit_code, result.stdout) == (4, "")


def test_a_mount_of_a_dataset_that_was_deleted_has_a_problem() -> None:
    backend = MountBackend()
    backend.there = [status(details={"passthrough": True, "problem": "the dataset has been deleted"})]
    result = invoke(backend, "mount", "--status", "/mnt/data")
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (
        1,
        "/mnt/data: the dataset has been deleted",
    )
    told = json.loads(invoke(backend, "mount", "--status", "-o", "json").stdout)
    assert told[0]["problem"] == "the dataset has been deleted"


# -- unmount


@pytest.mark.parametrize("command", ["unmount", "umount"])
def test_unmount(command: str) -> None:
    backend = MountBackend()
    backend.answer = status("ended")
    assert invoke(backend, command, "/mnt/data").stdout == "/mnt/data is unmounted\n"
    backend.answer = status("detached")
    told = invoke(backend, command, "/mnt/data", "--force", "--timeout", "2m").stdout
    assert told == "/mnt/data is unmounted; 2 open file(s) of it are served until they are closed\n"
    backend.answer = status("detached", details={"open": 0})
    told = invoke(backend, command, "/mnt/data").stdout
    assert told == "/mnt/data is unmounted; it is still in use (an open file or a working directory)\n"
    del backend.ended[-1]
    assert backend.ended == [("/mnt/data", False, 30.0), ("/mnt/data", True, 120.0)]
    assert invoke(backend, command, "/mnt/data", "--timeout", "soon").exit_code == 2


def test_a_mount_that_workers_keep_comes_back_and_that_is_said() -> None:
    backend = MountBackend()
    backend.answer = status("ended", mount={"kept": True})
    result = invoke(backend, "unmount", "/mnt/data")
    assert (result.exit_code, result.stdout) == (0, "/mnt/data is unmounted\n")
    assert "take `mountPath` out of the spec of dataset ds" in result.stderr


# -- foreground


class Attended(MountBackend):
    """A mount that a child process stands for."""

    def __init__(self) -> None:
        super().__init__()
        self.child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        self.answer = status(supervisor_pid=self.child.pid)
        self.forced: list[bool] = []

    def unmount(self, mountpoint: str, *, force: bool, timeout_s: float) -> MountStatus:
        self.forced.append(force)
        if force:
            self.child.communicate()
            return status("ended")
        os.kill(os.getpid(), signal.SIGINT)  # somebody has no patience
        return status("detached")


@pytest.fixture
def signals() -> Any:
    """Signal handlers as they were, afterwards."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_a_signal_unmounts_and_another_one_insists(signals: Any) -> None:
    backend = Attended()
    noted = attend.Signals()
    os.kill(os.getpid(), signal.SIGTERM)
    attend.until_ended(backend, backend.answer, noted)
    assert backend.forced == [False, True]


def test_a_mount_that_fails_ends_the_command(signals: Any) -> None:
    backend = Attended()
    backend.there = [status("failed", error="given up")]
    backend.child.communicate()
    result = invoke(backend, "mount", "ds", "/mnt/data", "--foreground")
    assert result.exit_code == 1
    assert "error: given up" in result.stderr
    backend = Attended()
    backend.child.communicate()
    assert invoke(backend, "mount", "ds", "/mnt/data", "--foreground").exit_code == 0
