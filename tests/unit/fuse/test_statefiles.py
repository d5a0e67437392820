"""State files: written whole, locked once, and processes that are not mistaken for later ones of their number."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

from raycache.fuse import statefiles
from raycache.fuse.statefiles import Process


def test_json_is_replaced_whole_and_private(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    statefiles.write_json(str(path), {"a": 1})
    with open(path) as old:
        statefiles.write_json(str(path), {"a": 2})
        assert old.read() == '{"a": 1}'
    assert statefiles.read_json(str(path)) == {"a": 2}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["status.json"]


def test_json_that_is_none(tmp_path: Path) -> None:
    assert statefiles.read_json(str(tmp_path / "absent")) == {}
    for text in ("", "{", "[1]", "\xff"):
        (tmp_path / "x").write_text(text, encoding="latin-1")
        assert statefiles.read_json(str(tmp_path / "x")) == {}


def test_a_lock_is_held_once(tmp_path: Path) -> None:
    path = str(tmp_path / "LOCK")
    assert not statefiles.locked(path)
    held = statefiles.lock(path)
    assert held is not None
    assert statefiles.locked(path)
    assert statefiles.lock(path) is None
    os.close(held)
    assert not statefiles.locked(path)


def test_a_process_and_a_later_one_of_its_number() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        known = statefiles.process(child.pid)
        assert known.pid == child.pid
        assert known.alive
        assert not Process(known.pid, known.began + 1).alive
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
        assert not known.alive
    assert not known.alive
    assert not Process().alive


def test_a_long_log_is_put_aside(tmp_path: Path) -> None:
    fd = statefiles.open_log(str(tmp_path))
    other = os.open(tmp_path / "log", os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, b"first\n" + b"x" * statefiles.LOG_LIMIT)
        statefiles.shorten_log(str(tmp_path), fd)
        os.write(other, b"second\n")
        assert (tmp_path / "log").read_bytes() == b"second\n"
        assert (tmp_path / "log.old").read_bytes() == b"x" * statefiles.LOG_LIMIT
        statefiles.shorten_log(str(tmp_path), fd)
        assert (tmp_path / "log").read_bytes() == b"second\n"
    finally:
        os.close(fd)
        os.close(other)
    (tmp_path / "log").write_bytes(b"y" * (statefiles.LOG_LIMIT + 1))
    os.close(statefiles.open_log(str(tmp_path)))
    assert (tmp_path / "log").read_bytes() == b""


def test_the_end_of_a_log(tmp_path: Path) -> None:
    assert statefiles.log_tail(str(tmp_path)) == ""
    (tmp_path / "log").write_text("".join(f"line {number}\n" for number in range(5000)))
    assert statefiles.log_tail(str(tmp_path), 2) == "line 4998\nline 4999"
