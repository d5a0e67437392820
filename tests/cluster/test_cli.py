"""The `raycache` program, run as its users run it: a process of its own, on a real Ray cluster, as a Ray job."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.jobserver import JobServer
from tests.support.s3proxy import ProxyProcess
from tests.support.seaweed import REGION, SeaweedS3
from tests.support.waiting import until

MiB = 1 << 20
SECRET_KEY = "raycache-test-secret"
FILES = {"train/a.bin": 5 * MiB + 7, "train/b.bin": 3 * MiB, "model/weights.bin": 9 * MiB + 1, "empty": 0}
TOTAL = sum(FILES.values())

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def jobs() -> Iterator[JobServer]:
    with JobServer() as server:
        yield server


@pytest.fixture(scope="module")
def raycache(jobs: JobServer) -> Run:
    """Runs `raycache` with words; nothing but the cluster's address in its environment."""

    def run(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [f"{os.path.dirname(sys.executable)}/raycache", *words],
            env=jobs.environ | {"RAY_ADDRESS": jobs.address} | environ,
            capture_output=True,
            text=True,
            timeout=180,
        )

    return run


def content(name: str) -> bytes:
    return random.Random(name).randbytes(FILES[name])


@pytest.fixture(scope="module")
def data(s3_server: SeaweedS3) -> str:
    """A bucket with `FILES`."""
    bucket = s3_server.create_bucket()
    for name in FILES:
        s3_server.put(bucket, name, content(name))
    return bucket


def spec_text(
    server: SeaweedS3, bucket: str, cache_dir: Path, name: str = "ds", secret: str = SECRET_KEY
) -> str:
    return f"""\
apiVersion: v1
kind: Secret
metadata: {{name: {name}}}
stringData: {{id: {server.access_key}, key: {secret}}}
---
apiVersion: raycache.io/v1
kind: Dataset
metadata: {{name: {name}}}
spec:
  mounts:
    - mountPoint: s3://{bucket}
      options: {{endpoint: "{server.endpoint}", region: {REGION}}}
      encryptOptions:
        - {{name: accessKeyId, valueFrom: {{secretKeyRef: {{name: {name}, key: id}}}}}}
        - {{name: secretAccessKey, valueFrom: {{secretKeyRef: {{name: {name}, key: key}}}}}}
---
apiVersion: raycache.io/v1
kind: CacheRuntime
metadata: {{name: {name}}}
spec:
  tieredstore:
    levels: [{{mediumtype: SSD, path: {cache_dir}, quota: 64Mi}}]
---
apiVersion: raycache.io/v1
kind: DataLoad
metadata: {{name: {name}-train}}
spec:
  dataset: {{name: {name}}}
  target: [{{path: /train}}]
"""


@pytest.fixture(scope="module")
def spec(s3_server: SeaweedS3, data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cli")
    path = directory / "dataset.yaml"
    path.write_text(spec_text(s3_server, data, directory / "cache"))
    return path


@pytest.fixture(scope="module")
def applied(raycache: Run, spec: Path) -> Path:
    """The spec, applied to a started raycache."""
    started = raycache("start")
    assert started.returncode == 0, started.stderr
    result = raycache("apply", "-f", str(spec))
    assert result.returncode == 0, result.stderr
    return spec


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for whoever inherited it to take notice."""
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return True


SCRIPT = """\
import hashlib, os, sys
import fsspec
with fsspec.open("raycache://ds/model/weights.bin", "rb") as file:
    print("sha", hashlib.sha256(file.read()).hexdigest())
print("address", os.environ["RAY_ADDRESS"])
sys.exit(int(sys.argv[1]))
"""


def test_a_ray_job_runs_a_command_over_the_cache(jobs: JobServer, raycache: Run, spec: Path) -> None:
    # Nobody has started raycache on this cluster: the job does it.
    assert raycache("status").returncode == 3
    script = spec.with_name("script.py")
    script.write_text(SCRIPT)
    try:
        result = jobs.submit("raycache", "run", "-f", str(spec), "--", "python", str(script), "0")
        assert result.returncode == 0, result.stdout + result.stderr
        assert "starting raycache" in result.stdout
        assert "dataset/ds created" in result.stdout
        assert "dataload/ds-train Complete: 8.00MiB of 8.00MiB (100.0%), 2 files" in result.stdout
        assert f"sha {hashlib.sha256(content('model/weights.bin')).hexdigest()}" in result.stdout
        assert SECRET_KEY not in result.stdout + result.stderr

        # The cache is there for the next job, which fails: the job's status says so.
        result = jobs.submit("raycache", "run", "-f", str(spec), "--", "python", str(script), "7")
        assert result.returncode == 1
        assert "exit code 7" in result.stdout + result.stderr
        assert "starting raycache" not in result.stdout
        assert "dataset/ds unchanged" in result.stdout
        assert f"sha {hashlib.sha256(content('model/weights.bin')).hexdigest()}" in result.stdout
    finally:
        raycache("delete", "--ignore-not-found", "-f", str(spec))


def test_a_bad_spec_fails_the_job_before_the_command(jobs: JobServer, spec: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(spec.read_text().replace("mountPoint", "mountpoint"))
    result = jobs.submit("raycache", "run", "-f", str(path), "--", "echo", "reached", "the", "command")
    assert result.returncode == 1
    assert f"{path}:11: spec.mounts[0]" in result.stdout
    assert "exit code 2" in result.stdout + result.stderr
    assert "\nreached the command" not in result.stdout
    assert "Traceback" not in result.stdout


def test_get_shows_what_is_cached(raycache: Run, applied: Path) -> None:
    result = raycache("load", "ds")
    assert (result.returncode, result.stderr) == (0, "")
    last = result.stdout.splitlines()[-1]
    assert " Complete: 17.00MiB of 17.00MiB (100.0%), 4 files" in last
    result = raycache("get", "datasets")
    header, row = result.stdout.splitlines()
    assert header.split("   ")[0].strip() == "NAME"
    assert row.split()[:6] == ["ds", "17.00MiB", "17.00MiB", "64.00MiB", "100.0%", "Bound"]
    assert result.stderr == ""
    row_data = json.loads(raycache("get", "dataset", "ds", "-o", "json").stdout)
    assert (row_data["cached"], row_data["ufs_total_size"]) == (TOTAL, TOTAL)
    loads = raycache("get", "dataloads").stdout.splitlines()
    assert loads[0].split() == ["NAME", "DATASET", "PHASE", "AGE", "DURATION"]
    assert any(line.split()[:3] == ["ds-train", "ds", "Complete"] for line in loads)

    result = raycache("evict", "ds", "model")
    assert result.stdout.startswith("dataset/ds: 9.0")  # its index takes a little, too
    assert json.loads(raycache("get", "ds/ds", "-o", "json").stdout)["cached"] == 8 * MiB + 7


def test_what_was_overwritten_is_seen_after_it_was_invalidated(
    raycache: Run, jobs: JobServer, applied: Path, s3_server: SeaweedS3, tmp_path: Path
) -> None:
    bucket = s3_server.create_bucket()
    s3_server.put(bucket, "file", b"old")
    spec = tmp_path / "changing.yaml"
    text = spec_text(s3_server, bucket, tmp_path / "cache", name="changing").rpartition("---")[0]
    spec.write_text(text.replace("  mounts:", "  consistency: {mode: immutable}\n  mounts:"))
    assert raycache("apply", "-f", str(spec)).returncode == 0
    # One process that stays, and knows the name; each line that it gets is answered by what it reads then.
    url = "raycache://changing/file"
    program = f"import fsspec, sys\nfor _ in sys.stdin: print(fsspec.open({url!r}).open().read(), flush=True)"
    reader = subprocess.Popen(
        [sys.executable, "-c", program],
        env=jobs.environ | {"RAY_ADDRESS": jobs.address},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert reader.stdin is not None
    assert reader.stdout is not None

    def read() -> str:
        reader.stdin.write("\n")
        reader.stdin.flush()
        return reader.stdout.readline().strip()

    try:
        assert read() == "b'old'"
        s3_server.put(bucket, "file", b"the new one")
        assert read() == "b'old'"
        result = raycache("invalidate", "changing", "file", "never/was")
        told = "dataset/changing: file, never/was invalidated\n"
        assert (result.returncode, result.stdout, result.stderr) == (0, told, "")
        assert read() == "b'the new one'"
        assert raycache("load", "changing").returncode == 0
        assert raycache("load", "changing", "nowhere").returncode == 4
        assert raycache("invalidate", "changed").returncode == 4
        assert raycache("delete", "-f", str(spec)).returncode == 0
    finally:
        reader.stdin.close()
        reader.wait(30)
        reader.stdout.close()


def test_a_misspelt_prefix_is_a_warning(
    raycache: Run, applied: Path, s3_server: SeaweedS3, data: str, tmp_path: Path
) -> None:
    spec = tmp_path / "astray.yaml"
    text = spec_text(s3_server, data, tmp_path / "cache", name="astray")
    spec.write_text(text.replace(f"s3://{data}", f"s3://{data}/trian"))
    result = raycache("apply", "-f", str(spec))
    assert (result.returncode, "dataset/astray created" in result.stdout) == (0, True)
    assert f"warning: dataset astray: there is nothing (yet) in s3://{data}/trian" in result.stderr


def test_a_tier_that_cannot_be_made_is_a_warning(
    raycache: Run, applied: Path, s3_server: SeaweedS3, data: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    spec = tmp_path / "unheld.yaml"
    spec.write_text(spec_text(s3_server, data, tmp_path / "file" / "tier", name="unheld"))
    result = raycache("apply", "-f", str(spec))
    assert (result.returncode, "dataset/unheld created" in result.stdout) == (0, True)
    assert "warning: dataset unheld: not cached on " in result.stderr
    assert "the cache directory cannot be made" in result.stderr


def test_load_as_json(raycache: Run, applied: Path) -> None:
    result = raycache("load", "ds", "model", "--json")
    last = json.loads(result.stdout.splitlines()[-1])
    assert (last["phase"], last["bytes_cached"], last["bytes_total"]) == (
        "Complete",
        9 * MiB + 1,
        9 * MiB + 1,
    )
    assert result.returncode == 0


def test_a_load_that_does_not_fit_fails_with_what_is_missing(
    raycache: Run, applied: Path, s3_server: SeaweedS3, data: str, tmp_path: Path
) -> None:
    small = tmp_path / "small.yaml"
    small.write_text(spec_text(s3_server, data, tmp_path / "cache", name="small").replace("64Mi", "10Mi"))
    assert raycache("apply", "-f", str(small)).returncode == 0
    result = raycache("load", "small")
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "  missing: " in result.stderr
    assert "quota" in result.stderr


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["load", "nothing"], 4, "no such dataset"),
        (["load", "ds", "../escape"], 2, ".."),
        (["evict", "ds", "a/../../b"], 2, ".."),
        (["load", "ds", "no/such/file"], 4, "no/such/file"),
        (["get", "dataset", "nothing"], 4, "no such dataset"),
        (["describe", "dataset", "nothing"], 4, "no such dataset"),
        (["delete", "secret", "ds"], 2, "used by dataset ds"),
        (["get", "datset"], 2, "did you mean datasets?"),
        (["get", "datasets", "--address", "127.0.0.1:1"], 3, "127.0.0.1:1"),
        (["run", "-f", "/nowhere.yaml", "--", "true"], 4, "/nowhere.yaml"),
    ],
)
def test_bad_input_is_answered_clearly(
    raycache: Run, applied: Path, words: list[str], status: int, message: str
) -> None:
    result = raycache(*words)
    assert result.returncode == status
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr + result.stdout


@pytest.mark.parametrize(
    ("old", "new", "status", "message"),
    [
        (SECRET_KEY, "not-the-secret", 5, "check the secret access key"),
        ("mountPoint: s3://", "mountPoint: s3://no-such-", 4, "the bucket does not exist"),
        ("quota: 64Mi", "quota: 500Ti", 2, "larger than"),
    ],
)
def test_a_spec_that_cannot_work_changes_nothing(
    raycache: Run, applied: Path, tmp_path: Path, old: str, new: str, status: int, message: str
) -> None:
    assert raycache("load", "ds").returncode == 0
    bad = tmp_path / "bad.yaml"
    bad.write_text(applied.read_text().replace(old, new))
    result = raycache("apply", "-f", str(bad))
    assert (result.returncode, result.stdout) == (status, "")
    assert message in result.stderr
    row = json.loads(raycache("get", "dataset", "ds", "-o", "json").stdout)
    assert (row["phase"], row["cached"]) == ("Bound", TOTAL)


def test_no_secret_is_shown(raycache: Run, applied: Path) -> None:
    for words in (
        ["describe", "dataset", "ds"],
        ["describe", "dataset", "ds", "-o", "yaml"],
        ["describe", "secret", "ds"],
        ["get", "secrets", "-o", "json"],
        ["get", "datasets", "-o", "yaml"],
        ["status", "-o", "json"],
        ["validate", "-f", str(applied)],
    ):
        result = raycache(*words, RAYCACHE_DEBUG="1")
        assert result.returncode == 0, result.stderr
        assert SECRET_KEY not in result.stdout + result.stderr
    assert "********" in raycache("describe", "dataset", "ds").stdout


def test_a_signal_ends_the_command(jobs: JobServer, applied: Path) -> None:
    process = subprocess.Popen(
        [
            f"{os.path.dirname(sys.executable)}/raycache",
            "run",
            "-f",
            str(applied),
            "--",
            "sh",
            "-c",
            "echo up; exec sleep 60",
        ],
        env=jobs.environ | {"RAY_ADDRESS": jobs.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_leaves_a_load_running(
    jobs: JobServer, raycache: Run, s3_server: SeaweedS3, data: str, tmp_path: Path
) -> None:
    assert raycache("start").returncode == 0
    spec = tmp_path / "slow.yaml"
    with ProxyProcess(s3_server.address) as proxy:
        text = spec_text(s3_server, data, tmp_path / "cache", name="slow").replace(
            s3_server.endpoint, proxy.endpoint
        )
        spec.write_text(text.rpartition("---")[0])  # without its DataLoad
        try:
            assert raycache("apply", "-f", str(spec)).returncode == 0
            proxy.set_bandwidth(2 * MiB)
            process = subprocess.Popen(
                [f"{os.path.dirname(sys.executable)}/raycache", "load", "slow", "--json"],
                env=jobs.environ | {"RAY_ADDRESS": jobs.address},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert process.stdout is not None
            name = json.loads(process.stdout.readline())["name"]
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 130
            assert f"dataload/{name} goes on" in errors
            assert "Traceback" not in errors
            proxy.set_bandwidth(0)
            until(
                lambda: (
                    json.loads(raycache("get", f"load/{name}", "-o", "json").stdout)["phase"] == "Complete"
                ),
                "the load is complete",
                90,
            )
        finally:
            raycache("delete", "--ignore-not-found", "-f", str(spec))


def test_stop_and_what_comes_after(raycache: Run) -> None:
    assert raycache("start").returncode == 0
    assert raycache("start").returncode == 0  # a second time: nothing to do
    result = raycache("status")
    assert result.returncode == 0
    assert "Workers:      1" in result.stdout
    result = raycache("stop")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("raycache is stopped\n")
    for words in (["status"], ["get", "datasets"], ["load", "ds"], ["stop"]):
        result = raycache(*words)
        assert result.returncode == 3
        assert "raycache start" in result.stderr


def test_start_without_a_cluster_starts_one_and_stop_ends_it(jobs: JobServer) -> None:
    with tempfile.TemporaryDirectory(prefix="rcl-", ignore_cleanup_errors=True) as directory:
        # Where this looks for a cluster of this machine, there is none.
        environ = jobs.environ | {"RAY_TMPDIR": directory, "XDG_STATE_HOME": f"{directory}/state"}

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            program = f"{os.path.dirname(sys.executable)}/raycache"
            return subprocess.run([program, *words], env=environ, capture_output=True, text=True, timeout=180)

        assert run("status").returncode == 3
        started = run("start", "--num-cpus", "1", "-o", "json", "--tier", f"SSD:{directory}/cache:64Mi")
        assert started.returncode == 0, started.stderr
        try:
            result = json.loads(started.stdout)
            assert (result["local"], result["workers"]) == (True, 1)
            pid = json.loads(Path(directory, "state/raycache/local.json").read_text())["pid"]
            assert run("status").returncode == 0  # found without being told the address
        finally:
            stopped = run("stop")
        assert stopped.returncode == 0, stopped.stderr
        assert has_ended(pid)
        assert run("status").returncode == 3
