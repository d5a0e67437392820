"""`raycache demo`, and the model server that it starts."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

import raycache
from examples.serving.demo import MB, Experiment, Run
from raycache.cli import demo
from tests.support.s3proxy import ProxyProcess
from tests.unit.cli.fakes import FakeBackend, invoke

SERVER = Path(__file__).parents[3] / "examples" / "serving" / "server.py"


class Started:
    """Stands for `subprocess.run`: what was started, and the status that it ends with."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.command: list[str] = []
        self.cwd = Path()

    def __call__(self, command: list[str], *, cwd: Path, check: bool) -> Any:
        self.command, self.cwd = command, cwd
        return subprocess.CompletedProcess(command, self.status)


@pytest.mark.parametrize("which", ["quickstart", "serving"])
def test_a_demo_is_run_from_the_checkout_with_its_status(
    which: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started = Started(status=3)
    monkeypatch.setattr(demo.subprocess, "run", started)
    monkeypatch.chdir(tmp_path)
    result = invoke(FakeBackend(), "demo", which, "--bandwidth", "50", "--size", "64")
    assert result.exit_code == 3
    assert started.command[1:] == ["-m", f"examples.{which}.demo", "--bandwidth=50", "--size=64"]
    assert (started.cwd / "examples" / which / "demo.py").exists()


def test_without_a_checkout_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed = tmp_path / "site-packages" / "raycache" / "__init__.py"
    monkeypatch.setattr(raycache, "__file__", str(installed))
    monkeypatch.chdir(tmp_path)
    result = invoke(FakeBackend(), "demo", "serving")
    assert result.exit_code == 2
    assert "checkout" in result.stderr
    assert "--group dev" in result.stderr


def test_an_unknown_demo_is_wrong_usage() -> None:
    assert invoke(FakeBackend(), "demo", "training").exit_code == 2


def model(path: Path, data: bytes, size: int | None = None) -> Path:
    """A safetensors file of two tensors."""
    half, size = len(data) // 2, len(data) if size is None else size
    offsets = {"a": [0, half], "b": [half, size]}
    tensors = {name: {"dtype": "U8", "shape": [1], "data_offsets": place} for name, place in offsets.items()}
    header = json.dumps({"__metadata__": {}} | tensors).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


@pytest.mark.parametrize("how", ["mmap", "read"])
def test_the_model_server_loads_every_tensor_and_says_how_long_it_took(how: str, tmp_path: Path) -> None:
    path = model(tmp_path / "m.safetensors", bytes(10_000))
    command = [sys.executable, "-I", "-S", str(SERVER), str(path), f"--how={how}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert (said["tensors"], said["bytes"]) == (2, 10_000)
    assert said["seconds"] > 0


@pytest.mark.parametrize("how", ["mmap", "read"])
def test_the_model_server_fails_on_a_file_that_is_too_short(how: str, tmp_path: Path) -> None:
    path = model(tmp_path / "m.safetensors", bytes(10_000), size=20_000)
    command = [sys.executable, "-I", "-S", str(SERVER), str(path), f"--how={how}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "too short" in done.stderr


def test_servers_are_compared_by_what_they_get_together() -> None:
    told = io.StringIO()
    experiment = Experiment(cast("ProxyProcess", None), "/m", "mmap", Console(file=told, width=120))
    experiment.runs = [Run("one", 2.0, 100 * MB, 9, 100 * MB), Run("three", 2.5, 300 * MB, 9, 100 * MB)]
    experiment.print_table()
    assert re.findall(r"\d\.\d x", told.getvalue()) == ["1.0 x", "2.4 x"]
