"""`load` and `evict`: progress, waiting, and what happens when it goes wrong."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
import typer

from raycache.cli import progress
from raycache.cli.progress import BarDisplay, JsonDisplay, LineDisplay, follow
from raycache.errors import ClusterUnavailableError, NotFoundError, OperationFailedError
from tests.unit.cli.fakes import NOW, FakeAdmin, FakeBackend, invoke, load_row

DONE = load_row(phase="Complete", finished=NOW + 8, bytes_cached=4 << 20)
FAILED = load_row(
    phase="Failed",
    finished=NOW + 8,
    reason="1 of 3 files is not cached",
    missing=[{"path": "a/b.bin", "bytes": 3 << 20, "reason": "the cache is full"}],
    missing_count=1,
)


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    monkeypatch.setattr(progress, "POLL_S", 0.001)
    return FakeBackend()


def test_load_shows_progress_and_waits(backend: FakeBackend) -> None:
    backend.fake.loads = [
        load_row(phase="Pending", bytes_total=0, bytes_cached=0, files_total=0),
        load_row(),
        DONE,
    ]
    result = invoke(backend, "load", "imagenet", "train", "val/x", "--replicas", "all")
    assert result.exit_code == 0
    assert backend.fake.calls == [("load", "imagenet", ["train", "val/x"], "all")]
    assert result.stdout.splitlines() == [
        "dataload/warm-up Pending",
        "dataload/warm-up Executing: 1.00MiB of 4.00MiB (25.0%), 3 files"
        + speed_of(result.stdout.splitlines()[1]),
        "dataload/warm-up Complete: 4.00MiB of 4.00MiB (100.0%), 3 files, 512.00KiB/s, 8.0s",
    ]


def speed_of(line: str) -> str:
    """The part of a line that tells a speed as this machine happened to have it."""
    return line[line.rindex(", ") :] if line.endswith("/s") else ""


def test_replicas_is_one_unless_told_otherwise(backend: FakeBackend) -> None:
    backend.fake.loads = [DONE]
    invoke(backend, "load", "imagenet")
    assert backend.fake.calls == [("load", "imagenet", [], 1)]


@pytest.mark.parametrize("text", ["0", "-1", "some", "1.5", "٣"])
def test_replicas_must_make_sense(backend: FakeBackend, text: str) -> None:
    result = invoke(backend, "load", "imagenet", f"--replicas={text}")
    assert result.exit_code == 2
    assert "--replicas" in result.stderr
    assert backend.addresses == []


def test_a_failed_load_says_what_is_missing_and_why(backend: FakeBackend) -> None:
    backend.fake.loads = [FAILED]
    result = invoke(backend, "load", "imagenet")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "error: 1 of 3 files is not cached",
        "  where: dataload/warm-up, dataset/imagenet",
        "  missing: a/b.bin (3.00MiB): the cache is full",
        "  next: what was cached stays; load it again to fetch what is missing",
    ]


def test_a_long_list_of_missing_files_is_cut_with_its_length(backend: FakeBackend) -> None:
    missing = [{"path": f"f{number}", "bytes": 1, "reason": "gone"} for number in range(100)]
    backend.fake.loads = [{**FAILED, "missing": missing, "missing_count": 5000}]
    lines = invoke(backend, "load", "imagenet").stderr.splitlines()
    assert sum("missing: f" in line for line in lines) == progress.SHOWN_MISSING
    assert any("and 4980 more" in line for line in lines)


def test_json_is_one_document_per_line(backend: FakeBackend) -> None:
    backend.fake.loads = [load_row(), load_row(), FAILED]
    result = invoke(backend, "load", "imagenet", "--json")
    documents = [json.loads(line) for line in result.stdout.splitlines()]
    assert [document["phase"] for document in documents] == ["Executing", "Failed"]
    assert documents[-1]["missing"][0]["path"] == "a/b.bin"
    assert result.exit_code == 1


def test_no_wait(backend: FakeBackend) -> None:
    backend.fake.loads = [load_row()]
    result = invoke(backend, "load", "imagenet", "--no-wait")
    assert (result.exit_code, result.stdout) == (0, "dataload/warm-up started\n")
    result = invoke(backend, "load", "imagenet", "--no-wait", "--json")
    assert json.loads(result.stdout)["name"] == "warm-up"


def test_interrupting_leaves_the_load_running(backend: FakeBackend) -> None:
    backend.fake.loads = [load_row(), KeyboardInterrupt(), DONE]
    result = invoke(backend, "load", "imagenet")
    assert result.exit_code == 130
    assert "dataload/warm-up goes on" in result.stderr
    assert not any(call[0] == "delete" for call in backend.fake.calls)


def test_timeout(backend: FakeBackend) -> None:
    backend.fake.loads = [load_row()]
    result = invoke(backend, "load", "imagenet", "--timeout", "20ms")
    assert result.exit_code == 1
    assert "it goes on" in result.stderr
    assert invoke(backend, "load", "imagenet", "--timeout", "10").exit_code == 2


def test_a_restarting_coordinator_is_waited_for() -> None:
    admin, clock = FakeAdmin(), Clock()
    away = ClusterUnavailableError("the coordinator does not answer")
    admin.loads = [load_row(), *[away] * 100, DONE]
    follow(admin, "warm-up", JsonDisplay(), now=clock.now, sleep=clock.sleep)

    admin.loads = [load_row(), away]
    with pytest.raises(ClusterUnavailableError):
        follow(admin, "warm-up", JsonDisplay(), now=clock.now, sleep=clock.sleep)


def test_a_timeout_counts_from_the_beginning() -> None:
    admin, clock = FakeAdmin(), Clock()
    admin.loads = [load_row()]
    with pytest.raises(OperationFailedError, match="not complete after 90s"):
        follow(admin, "warm-up", JsonDisplay(), timeout_s=90, now=clock.now, sleep=clock.sleep)
    assert clock.time == pytest.approx(1090)


def test_lines_come_now_and_then() -> None:
    stream, clock = io.StringIO(), Clock()
    display = LineDisplay(stream, clock.now)
    for second in range(12):
        display.update(load_row(bytes_cached=second << 18))
        clock.sleep(1)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[1] == "dataload/warm-up Executing: 1.25MiB of 4.00MiB (31.2%), 3 files, 256.00KiB/s"


def test_an_empty_load_is_complete() -> None:
    stream = io.StringIO()
    LineDisplay(stream).update({**DONE, "bytes_total": 0, "bytes_cached": 0, "files_total": 0})
    assert stream.getvalue() == "dataload/warm-up Complete: 0.00B of 0.00B (100.0%), 8.0s\n"


class Terminal(io.StringIO):
    """A text stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    display = progress.display_for(stream=stream)
    assert isinstance(display, BarDisplay)
    with display:
        display.update(load_row(phase="Pending", bytes_total=None, files_total=None))
        display.update(load_row())
        display.update(DONE)
    assert "1.00MiB/4.00MiB, 3 files" in stream.getvalue()
    assert stream.getvalue().endswith("Complete: 4.00MiB of 4.00MiB (100.0%), 3 files, 512.00KiB/s, 8.0s\n")


@pytest.mark.parametrize("make", [lambda: BarDisplay(Terminal()), lambda: LineDisplay(io.StringIO())])
def test_any_display_survives_an_interruption(make: Callable[[], Any]) -> None:
    admin = FakeAdmin()
    admin.loads = [load_row(), KeyboardInterrupt()]
    with pytest.raises(typer.Exit) as info:
        follow(admin, "warm-up", make(), sleep=lambda seconds: None)
    assert info.value.exit_code == 130


def test_evict(backend: FakeBackend) -> None:
    result = invoke(backend, "evict", "imagenet", "train")
    assert (result.exit_code, result.stdout) == (0, "dataset/imagenet: 3.00MiB freed\n")
    assert backend.fake.calls == [("evict", "imagenet", "train")]


def test_evicting_nothing_is_told(backend: FakeBackend) -> None:
    backend.fake.freed = 0
    result = invoke(backend, "evict", "imagenet", "trian")
    assert (result.exit_code, result.stdout) == (0, "dataset/imagenet: 0.00B freed\n")
    assert result.stderr.startswith("warning: nothing of trian was cached")
    assert invoke(backend, "evict", "imagenet").stderr == ""


def test_a_load_that_is_deleted_while_it_runs(backend: FakeBackend) -> None:
    backend.fake.loads = [load_row(), NotFoundError("no such load", where="warm-up")]
    result = invoke(backend, "load", "imagenet")
    assert result.exit_code == 4
    assert "was deleted before it was complete\n  where: dataload/warm-up\n" in result.stderr


@pytest.mark.parametrize(
    ("error", "status"),
    [("ObjectNotFoundError", 4), ("AccessDeniedError", 5), ("UnderStoreError", 1), ("", 1)],
)
def test_the_status_tells_a_path_that_is_not_there(backend: FakeBackend, error: str, status: int) -> None:
    backend.fake.loads = [load_row(phase="Failed", reason="ds/nowhere: no such object", error=error)]
    result = invoke(backend, "load", "imagenet", "nowhere")
    assert result.exit_code == status
    assert result.stderr.startswith("error: ds/nowhere: no such object\n")


def test_invalidate(backend: FakeBackend) -> None:
    result = invoke(backend, "invalidate", "imagenet", "train", "val/x")
    assert (result.exit_code, result.stdout, result.stderr) == (
        0,
        "dataset/imagenet: train, val/x invalidated\n",
        "",
    )
    invoke(backend, "invalidate", "imagenet", "--no-wait")
    assert backend.fake.calls == [
        ("invalidate", "imagenet", ["train", "val/x"], True),
        ("invalidate", "imagenet", ["/"], False),
    ]


def test_workers_that_did_not_hear_of_an_invalidation_are_told(backend: FakeBackend) -> None:
    backend.fake.late = {"94b8f530db2b99bb": "the worker does not answer"}
    result = invoke(backend, "invalidate", "imagenet")
    assert (result.exit_code, result.stdout) == (0, "dataset/imagenet: / invalidated\n")
    assert result.stderr.startswith(
        "warning: node 94b8f530db2b: the worker does not answer; its worker hears"
    )


def test_invalidating_what_is_no_dataset(backend: FakeBackend) -> None:
    result = invoke(backend, "invalidate", "no-such", "a")
    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr.startswith("error: no such dataset\n  where: no-such\n")
