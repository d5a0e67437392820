"""`run`, and the supervisor it hands its command to."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raycache.cli import progress, supervise
from tests.unit.cli.fakes import FakeBackend, invoke, load_row
from tests.unit.cli.test_loads import DONE, FAILED
from tests.unit.cli.test_specs import DATASET, LOAD

SH = "/bin/sh"


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(progress, "POLL_S", 0.001)
    (tmp_path / "spec.yaml").write_text(f"{DATASET}---\n{LOAD}")
    return str(tmp_path / "spec.yaml")


def test_applies_waits_and_runs(spec: str) -> None:
    backend = FakeBackend()
    backend.fake.loads = [load_row(), DONE]
    result = invoke(backend, "run", "-f", spec, "--", "sh", "-c", "exit 3", "--epochs", "-f")
    assert result.exit_code == 0
    assert backend.executed is not None
    argv, environ = backend.executed
    assert argv[:4] == [sys.executable, "-I", "-S", supervise.__file__]
    assert os.path.basename(argv[4]) == "sh"
    assert argv[5:] == ["sh", "-c", "exit 3", "--epochs", "-f"]
    assert environ == {"RAY_ADDRESS": "10.0.0.1:6379"}
    # Standard output belongs to the command.
    assert result.stdout == ""
    assert "dataset/imagenet created\ndataload/warm-up created\n" in result.stderr
    assert "dataload/warm-up Complete" in result.stderr


def test_the_dashes_may_be_left_out(spec: str) -> None:
    backend = FakeBackend()
    backend.fake.loads = [DONE]
    invoke(backend, "run", "-f", spec, "sh", "-c", "true", "-f", "x")
    assert backend.executed is not None
    assert backend.executed[0][5:] == ["sh", "-c", "true", "-f", "x"]


def test_starts_raycache_where_it_is_not(spec: str) -> None:
    backend = FakeBackend(up=False)
    backend.fake.loads = [DONE]
    result = invoke(backend, "run", "--address", "a:1", "-f", spec, "--", "sh")
    assert backend.started == {}
    assert backend.addresses == ["a:1", "a:1", "a:1"]
    assert "raycache is not running; starting raycache" in result.stderr
    assert "it stays after this command" in result.stderr
    assert backend.executed is not None


def test_a_failed_load_stops_it(spec: str) -> None:
    backend = FakeBackend()
    backend.fake.loads = [FAILED]
    result = invoke(backend, "run", "-f", spec, "--", "sh")
    assert result.exit_code == 1
    assert "missing: a/b.bin" in result.stderr
    assert "--no-wait-loads" in result.stderr
    assert backend.executed is None


def test_loads_need_not_be_waited_for(spec: str) -> None:
    backend = FakeBackend()
    backend.fake.loads = [load_row()]
    assert invoke(backend, "run", "--no-wait-loads", "-f", spec, "--", "sh").exit_code == 0
    assert backend.executed is not None


def test_a_load_that_was_complete_before_is_checked(spec: str) -> None:
    backend = FakeBackend()
    backend.fake.action = "unchanged"
    backend.fake.loads = [DONE, load_row(), DONE]
    result = invoke(backend, "run", "-f", spec, "--", "sh")
    assert result.exit_code == 0
    assert backend.fake.calls[1:] == [("load", "imagenet", ["/"], 1)]
    assert "checking that it still is" in result.stderr


def test_a_load_that_another_run_started_is_only_waited_for(spec: str) -> None:
    backend = FakeBackend()
    backend.fake.action = "unchanged"
    backend.fake.loads = [load_row(), load_row(), DONE]
    assert invoke(backend, "run", "-f", spec, "--", "sh").exit_code == 0
    assert len(backend.fake.calls) == 1
    assert backend.executed is not None


@pytest.mark.parametrize(
    ("command", "status", "message"),
    [
        (["no-such-program"], 127, "no-such-program: command not found"),
        (["/no/such/program"], 127, "/no/such/program: command not found"),
        (["/etc/passwd"], 126, "not a program"),
        ([], 2, "no command given"),
    ],
)
def test_what_cannot_run_is_found_out_first(spec: str, command: list[str], status: int, message: str) -> None:
    backend = FakeBackend()
    result = invoke(backend, "run", "-f", spec, "--", *command)
    assert result.exit_code == status
    assert message in result.stderr
    assert backend.addresses == []


def test_run_needs_a_spec() -> None:
    assert invoke(FakeBackend(), "run", "--", "sh").exit_code == 2


@contextmanager
def supervised(script: str) -> Iterator[subprocess.Popen[str]]:
    """A shell script under the supervisor, which has printed its first line."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", supervise.__file__, SH, "sh", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -9 $$", 137)]
)
def test_ends_with_the_status_of_the_command(script: str, status: int) -> None:
    with supervised(script) as process:
        assert process.wait(30) == status


def test_orphans_of_the_command_do_not_end_it() -> None:
    with supervised("(exit 5) & wait; exit 6") as process:
        assert process.wait(30) == 6


@pytest.mark.parametrize("number", sorted(supervise.PASSED_ON))
def test_passes_signals_on(number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    # `wait` returns when the trap runs; a plain sleep would not.
    script = f"trap 'echo got {name}; kill $child; exit 42' {name}; sleep 60 & child=$!; echo ready; wait"
    with supervised(script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, number)
        assert process.stdout.readline() == f"got {name}\n"
        assert process.wait(30) == 42


def test_a_signal_that_ends_the_command_shows_in_the_status() -> None:
    with supervised("echo ready; exec sleep 60") as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM


def test_what_cannot_be_executed(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_text("no program")
    garbage.chmod(0o755)
    for program, status in (
        (str(garbage), supervise.NOT_EXECUTABLE),
        (str(tmp_path / "none"), supervise.NOT_FOUND),
    ):
        result = subprocess.run(
            [sys.executable, "-I", "-S", supervise.__file__, program, program],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert result.returncode == status
        assert result.stderr.startswith(f"error: {program}: ")


def test_the_command_gets_signals_as_a_shell_would_give_them() -> None:
    # Blocked or ignored signals would be inherited by everything the command starts.
    script = "grep -E '^Sig(Blk|Ign)' /proc/self/status"
    with supervised(script) as process:
        out, _ = process.communicate(timeout=30)
    plain = subprocess.run([SH, "-c", script], capture_output=True, text=True, check=True, timeout=30).stdout
    assert _masks(out) == _masks(plain)


def _masks(text: str) -> list[int]:
    # Signals 32 and 33 are glibc's own; its posix_spawn leaves them ignored.
    return [int(line.split()[1], 16) & ~(1 << 31 | 1 << 32) for line in text.splitlines()]


def test_ctrl_c_on_a_terminal_reaches_the_command_once() -> None:
    # The terminal sends SIGINT to both; the supervisor must not send it a second time.
    master, slave = os.openpty()
    script = (
        "n=0; trap 'n=$((n+1)); echo int $n' INT; trap 'echo end $n; exit 0' USR1; echo ready;"
        " while :; do sleep 0.05; done"
    )
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", supervise.__file__, SH, "sh", "-c", script],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(slave)
    try:
        _read_until(master, b"ready")
        os.write(master, b"\x03")
        _read_until(master, b"int 1")
        os.kill(process.pid, signal.SIGUSR1)
        assert b"end 1" in _read_until(master, b"end ")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)


def _read_until(descriptor: int, text: bytes) -> bytes:
    data = b""
    while text not in data or not data.endswith(b"\n"):
        ready, _, _ = select.select([descriptor], [], [], 30)
        assert ready, f"nothing came after {data!r}"
        data += os.read(descriptor, 4096)
    return data
