"""The program as a whole: exit statuses, messages, start and stop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from raycache import __version__, errors
from raycache.cli.app import app
from raycache.cli.failures import Exit, status_of
from tests.unit.cli.fakes import FakeAdmin, FakeBackend, dataset_row, invoke


class FailingAdmin(FakeAdmin):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def get(self, kind: str, name: str | None = None) -> list[dict[str, Any]]:
        raise self.error


def failing(error: BaseException, **options: Any) -> Any:
    backend = FakeBackend()
    backend.fake = FailingAdmin(error)
    return invoke(backend, "get", "datasets", **options)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.OperationFailedError("x"), 1),
        (errors.UnderStoreError("x"), 1),
        (errors.CacheFullError("x"), 1),
        (errors.SpecError("x"), 2),
        (errors.PathError("x"), 2),
        (errors.ClusterUnavailableError("x"), 3),
        (errors.WorkerUnavailableError("x"), 3),
        (errors.DatasetNotFoundError("x"), 4),
        (errors.BucketNotFoundError("x"), 4),
        (errors.AccessDeniedError("x"), 5),
    ],
)
def test_each_error_has_its_status(error: errors.RaycacheError, status: int) -> None:
    assert status_of(error) == status
    assert failing(error).exit_code == status


def test_every_error_has_a_status() -> None:
    def below(cls: type) -> set[type]:
        return {cls}.union(*(below(sub) for sub in cls.__subclasses__()))

    for cls in below(errors.RaycacheError):
        if cls.__module__ == "raycache.errors":
            assert status_of(cls("x")) in set(Exit)


def test_an_error_says_what_where_and_what_next() -> None:
    result = failing(errors.AccessDeniedError("denied", where="s3://bucket", hint="check the keys"))
    assert result.stdout == ""
    assert result.stderr == "error: denied\n  where: s3://bucket\n  next: check the keys\n"


def test_debugging_shows_the_traceback() -> None:
    result = failing(errors.SpecError("bad"), env={"RAYCACHE_DEBUG": "1"})
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("error: bad\n")
    assert result.exit_code == 2


def test_a_bug_is_one_line_and_a_way_to_the_traceback() -> None:
    result = failing(KeyError("oops\nsecond line"))
    assert result.exit_code == 70
    assert result.stderr.splitlines() == [
        "error: unexpected KeyError: 'oops\\nsecond line'",
        "  next: this is a bug in raycache; run it again with RAYCACHE_DEBUG=1 for the traceback to report",
    ]
    assert "Traceback" in failing(KeyError("oops"), env={"RAYCACHE_DEBUG": "1"}).stderr


def test_an_interruption() -> None:
    result = failing(KeyboardInterrupt())
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


def test_an_interruption_before_there_is_a_command() -> None:
    program = (
        "import builtins\n"
        "def interrupted(name, *rest, real=builtins.__import__):\n"
        "    if name == 'raycache.cli.app':\n"
        "        raise KeyboardInterrupt\n"
        "    return real(name, *rest)\n"
        "builtins.__import__ = interrupted\n"
        "from raycache.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (Exit.INTERRUPTED, "interrupted\n")


def test_a_reader_that_goes_away() -> None:
    result = failing(BrokenPipeError())
    assert (result.exit_code, result.stderr) == (141, "")


def test_wrong_usage() -> None:
    for words in (["get"], ["get", "datasets", "-o", "xml"], ["frobnicate"], ["apply", "--no-such-option"]):
        result = invoke(FakeBackend(), *words)
        assert result.exit_code == 2, words
        assert "Traceback" not in result.output
    assert "Did you mean 'apply'" in invoke(FakeBackend(), "aply").output


@pytest.mark.parametrize(
    ("words", "env", "address"),
    [
        (["get", "datasets", "--address", "a:1"], {}, "a:1"),
        (["--address", "a:1", "get", "datasets"], {}, "a:1"),
        (["--address", "a:1", "get", "datasets", "--address", "b:2"], {"RAY_ADDRESS": "c:3"}, "b:2"),
        (["get", "datasets"], {"RAY_ADDRESS": "c:3"}, "c:3"),
        (["--address", "a:1", "get", "datasets"], {"RAY_ADDRESS": "c:3"}, "a:1"),
        (["get", "datasets"], {}, None),
    ],
)
def test_the_address(words: list[str], env: dict[str, str], address: str | None) -> None:
    backend = FakeBackend()
    assert invoke(backend, *words, env=env).exit_code == 0
    assert backend.addresses == [address]


def test_start() -> None:
    backend = FakeBackend(up=False)
    result = invoke(
        backend, "start", "--tier", "mem:/dev/shm:10Gi", "--tier", "SSD:/mnt/a:b:40%", "--num-cpus", "4"
    )
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "raycache is started",
        "  Ray Address:  127.0.0.1:6399",
        "  Workers:      3",
    ]
    assert backend.started is not None
    assert backend.started["num_cpus"] == 4
    memory, disk = backend.started["tiers"]
    assert (memory.medium, memory.path, memory.quota, memory.huge_pages) == (
        "MEM",
        "/dev/shm",
        10 << 30,
        True,
    )
    assert (disk.medium, disk.path, disk.quota, disk.quota_ratio) == ("SSD", "/mnt/a:b", None, 0.4)
    assert json.loads(invoke(backend, "start", "-o", "json").stdout)["workers"] == 3
    backend.already = True
    told = invoke(backend, "start").stdout.splitlines()
    assert (told[0], len(told)) == ("raycache runs already", 3)
    assert backend.started["tiers"] is None


@pytest.mark.parametrize(
    "tier", ["", "MEM", "MEM:/dev/shm", "TAPE:/x:1Gi", "MEM:relative:1Gi", "MEM:/x:10GB"]
)
def test_a_tier_must_make_sense(tier: str) -> None:
    result = invoke(FakeBackend(), "start", "--tier", tier)
    assert result.exit_code == 2
    assert f"--tier {tier}".rstrip() in result.stderr


def test_stop() -> None:
    backend = FakeBackend()
    assert invoke(backend, "stop", "--purge").stdout.startswith("raycache is stopped\n")
    assert backend.stopped == {"purge": True}


def test_version() -> None:
    assert invoke(FakeBackend(), "--version").stdout == f"{__version__}\n"
    assert invoke(FakeBackend(), "version").stdout.startswith(f"raycache {__version__}\npython 3.")
    assert json.loads(invoke(FakeBackend(), "version", "-o", "json").stdout)["raycache"] == __version__


def test_help_tells_the_exit_statuses() -> None:
    text = invoke(FakeBackend(), "--help").stdout
    for status in Exit:
        if status is not Exit.BROKEN_PIPE:
            assert f"\n    {status:<5}" in text
    for command in ("start", "stop", "status", "apply", "get", "describe", "delete", "load", "evict", "run"):
        assert f"\n  {command} " in text
        assert invoke(FakeBackend(), command, "--help").exit_code == 0


def raycache(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "raycache.cli", *words], capture_output=True, text=True, timeout=60, **options
    )


def test_help_imports_nothing_heavy() -> None:
    # What makes `raycache --help` answer at once; no time is asserted.
    program = (
        "import sys; sys.argv = ['raycache', '--help']; from raycache.cli import main\n"
        "try: main()\nfinally: print(*sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = set(result.stdout.splitlines()[-1].split())
    assert not loaded & {"ray", "pyarrow", "numpy", "pydantic", "boto3", "obstore", "fsspec", "yaml", "rich"}


def test_a_closed_pipe_is_no_noise() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "raycache.cli", "version"],
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    finally:
        os.close(writing)
    assert (result.returncode, result.stderr) == (141, b"")


def test_the_dashboards_address_is_told_apart() -> None:
    result = raycache("get", "datasets", env={**os.environ, "RAY_ADDRESS": "http://127.0.0.1:8265"})
    assert result.returncode == 2
    assert "dashboard" in result.stderr
    assert result.stdout == ""


def test_a_bad_spec_ends_the_process_with_2(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("kind: Datset\napiVersion: raycache.io/v1\n")
    result = raycache("validate", "-f", str(path))
    assert result.returncode == 2
    assert f"{path}:1" in result.stderr
    assert "did you mean" in result.stderr


def test_no_colour_without_a_terminal() -> None:
    backend = FakeBackend()
    backend.fake.rows["datasets"] = [dataset_row()]
    assert "\x1b" not in invoke(backend, "get", "datasets").output


def test_the_documentation_names_every_command_and_option() -> None:
    text = Path(__file__).parents[3].joinpath("docs", "cli.md").read_text()
    group = typer.main.get_command(app)
    commands = dict(group.commands)  # type: ignore[attr-defined]
    for name, command in list(commands.items()):
        commands |= {f"{name} {sub}": one for sub, one in getattr(command, "commands", {}).items()}
    for name, command in commands.items():
        section = text.partition(f"\n## {name.split()[0]}\n")[2].partition("\n## ")[0]
        assert section, f"docs/cli.md has no section {name}"
        assert f"raycache {name}" in section
        for parameter in command.params:
            longest = max(parameter.opts, key=len)
            if longest in ("--help", "--address", "--output", "--filename") or not longest.startswith("--"):
                continue
            assert f"`{longest}" in section, f"docs/cli.md, {name}: {longest}"
