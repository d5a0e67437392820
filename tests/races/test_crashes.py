"""Crashes of the process and of the machine at every point of what the store does: found by recording, not listed.

What is asked of the store after each of them: nobody reads a wrong byte, neither before the next owner has looked
through the files nor while he does nor after; what could be read before can be had again without a fetch (when it was
the process that crashed); the ledger is what the filesystem has given; nothing is left over; and all goes on.
"""

from __future__ import annotations

import ast
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from itertools import product
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import raycache.store
from raycache.errors import CacheFullError
from raycache.metrics import CORRUPT_BLOCKS, Metrics
from raycache.store import LocalFile, StoreView, files, index
from raycache.store.scrubbing import NAME as POSITION
from tests.support.crashes import FATES, NAMES, Loss, Record, make, same
from tests.support.storelife import (
    ALL,
    FAT,
    HUGE,
    PART,
    SCRIPTS,
    A,
    B,
    Blocks,
    everyday,
    restarts,
    roomy,
    tiers,
)
from tests.support.stores import content, opened, part, put, tier

Recorded = Callable[[Callable[[Path], None]], Record]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """What each script changes on the disk."""

    @cache
    def of(script: Callable[[Path], None]) -> Record:
        root = tmp_path_factory.mktemp(script.__name__)
        record = Record(root)
        with record.recording():
            script(root)
        return record

    return of


# -- what is asked of what is left -----------------------------------------------------------------------------------


def _readable(held: list[LocalFile], doubtful: Blocks = frozenset()) -> Blocks:
    """The blocks that readers have, all of them right."""
    found = set()
    for file in held:
        of = file.version
        if file.complete and not any(doubt[0] == of for doubt in doubtful):
            assert file.view(0, of.size) == content(of)
            found.update((of, block) for block in range(of.block_count))
            continue
        for block in range(of.block_count):
            if file.has(range(block, block + 1)) and (of, block) not in doubtful:
                offset, length = of.block_extent(block)
                assert file.pread(offset, length) == part(of, range(block, block + 1)), (of.path, block)
                found.add((of, block))
    return frozenset(found)


@contextmanager
def _readers(root: Path) -> Iterator[list[LocalFile]]:
    """Readers of everything, who ask nobody."""
    view = StoreView([str(root / "m"), str(root / "s")])
    with ExitStack() as stack:
        held = [view.open(of, hit=False) for of in ALL]
        yield [stack.enter_context(file) for file in held if file is not None]


def _given(path: str) -> int:
    """Bytes that the filesystem has given to cached objects."""
    return sum(file.stat().st_blocks * 512 for file in Path(path).glob("??/*"))


def _recover(root: Path, *, killed: bool, rebooted: bool = False, doubtful: Blocks = frozenset()) -> Blocks:
    """The next owner comes. Returns what readers could read before.

    Args:
        root: what the crash has left.
        killed: it was the process only, so that all that was written is there.
        rebooted: the machine has been started since anything was written.
        doubtful: blocks that are rotten.
    """
    metrics = Metrics()
    with ExitStack() as stack:
        early = stack.enter_context(_readers(root))
        before = _readable(early, doubtful)
        assert not (rebooted and before), "nobody trusts what another boot has written"
        store = stack.enter_context(opened(*roomy(root), metrics=metrics))
        for usage in store.usage():
            assert _given(usage.path) <= usage.used
            assert _given(usage.path) == usage.used or not killed
        for of in ALL:
            there = store.contains(of)
            assert all(there[block] for (other, block) in before if other == of), "what was warm is warm"
            cached = store._registry.get(of.object_id)
            assert cached is None or cached.verified == 0, "nothing is trusted that has not been looked at"
            with store.fill(of) as filling:
                missing = filling.missing(range(of.block_count))
                for block in set(range(of.block_count)) - set(missing):
                    assert filling.read(block)[1] == part(of, range(block, block + 1))
                lost = [block for block in missing if there[block] and (of, block) not in doubtful]
                assert not (killed and lost), "a crash of the process damages nothing"
        if killed and not doubtful:
            assert CORRUPT_BLOCKS not in metrics.snapshot()
        _readable(early, doubtful)
        with _readers(root) as now:
            _readable(now)
        assert _names(root) == {
            name
            for status in store.objects()
            for path in store.paths
            for name in (
                index.data_path(path, status.version.object_id),
                index.index_path(path, status.version.object_id),
            )
            if status.medium == ("MEM" if path == store.paths[0] else "SSD")
        } | {
            str(root / name / file)
            for name in "ms"
            for file in ("LOCK", POSITION)
            if (root / name / file).exists()
        }
    return before


def _go_on(root: Path, *, killed: bool) -> None:
    """Everything is fetched and read, with little room."""
    with opened(*tiers(root)) as store:
        for of in ALL:
            for run in (range(13), range(13, 26)) if of == HUGE else (range(of.block_count),):
                try:
                    put(store, of, run)
                except CacheFullError:
                    # What it held contradicts its checksums: given up, because somebody may have it mapped.
                    assert not killed
                    put(store, of, run)
            if of.size <= FAT.size:
                with store.lease(of) or pytest.fail("no file") as file:
                    assert file.pread(0, of.size) == content(of)
        for usage in store.usage():
            assert _given(usage.path) <= usage.used <= usage.quota


def _names(root: Path) -> set[str]:
    return {str(path) for path in root.rglob("*") if path.is_file()}


# -- the record itself -------------------------------------------------------------------------------------------------

_CHANGING = re.compile(
    r"(files\.|index\.|os\.|cached\.|)(pwrite_all|create|unlink|punch_hole|ftruncate|fsync|mkdir|makedirs"
    r"|write_(new|states|crcs|flags|boot))|os\.replace"
)
_ELSEWHERE = {("home", "__init__"), ("home", "claim"), ("home", "_lock_slot"), ("files", "private_directory")}
"""The directories that a tier lies in; see tests/unit/store/test_home.py."""


def test_all_that_changes_the_disk_is_recorded(recorded: Recorded) -> None:
    """Every function of the store that changes something does so in one of the scripts, and the record has it all."""
    seen: set[tuple[str, str]] = set()
    for script in SCRIPTS:
        record = recorded(script)
        for change in record.changes:
            seen |= change.callers
        *_, (_, _, last) = record.killed()
        copy = record.root.with_suffix(".copy")
        make(last, copy)
        assert same(record.root, copy)
    writers = set()
    for module in Path(raycache.store.__file__).parent.glob("*.py"):
        for function in ast.walk(ast.parse(module.read_text())):
            if isinstance(function, ast.FunctionDef):
                called = [ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)]
                if any(_CHANGING.fullmatch(name) for name in called):
                    writers.add((module.stem, function.name))
    assert writers - _ELSEWHERE <= seen


# -- the process is killed ---------------------------------------------------------------------------------------------


SITUATIONS = 3
"""In how many situations each step of each sequence is tried. All would be three times as many."""


@pytest.mark.parametrize("script", SCRIPTS)
def test_killed_at_any_point(tmp_path: Path, recorded: Recorded, script: Callable[[Path], None]) -> None:
    earlier: tuple[int, Blocks] = -1, frozenset()
    met: Counter[tuple[str, ...]] = Counter()
    for number, (where, change, state) in enumerate(recorded(script).killed()):
        step = (where.split(" (")[0], *map("/".join, sorted(change.callers)))
        met[step] += 1
        if met[step] > SITUATIONS:
            continue
        root = tmp_path / str(number)
        make(state, root)
        try:
            found = _recover(root, killed=True, doubtful=SCRIPTS[script])
            if ("space", "_move_to") in change.callers and ("space", "room") not in change.callers:
                assert found >= earlier[1] or earlier[0] < number - 1, (
                    "what moves down can be found all the time"
                )
            earlier = number, found
            if number % 4 == 0:
                _go_on(root, killed=True)
        except BaseException as error:
            error.add_note(f"killed {where}; left in {root}")
            raise
        shutil.rmtree(root)


def _die(directory: str, script: str, at: str) -> None:
    """Run a script until its change `at`, and be killed before it. For a process of its own."""
    root = Path(directory)
    record = Record(root)

    def before() -> None:
        if len(record.changes) == int(at):
            os.kill(os.getpid(), signal.SIGKILL)

    record.before = before
    with record.recording():
        globals()[script](root)


@pytest.mark.parametrize(("script", "share"), [(everyday, 0.21), (everyday, 0.8), (restarts, 0.5)])
def test_a_process_that_is_killed_leaves_what_the_record_says(
    tmp_path: Path, recorded: Recorded, script: Callable[[Path], None], share: float
) -> None:
    record = recorded(script)
    at = int(len(record.changes) * share)
    while record.changes[at].call in ("mkdir", "fsync"):
        at += 1
    code = "import sys; from tests.races.test_crashes import _die; _die(*sys.argv[1:])"
    root = tmp_path / "killed"
    root.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, str(root), script.__name__, str(at)],
        cwd=Path(__file__).parents[2],
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL
    make(record.before_change(at), tmp_path / "recorded")
    assert same(root, tmp_path / "recorded")
    _recover(root, killed=True)


# -- the machine loses power -------------------------------------------------------------------------------------------

BOOTS = (b"the second boot.", b"the third boot..")


@settings(max_examples=40, deadline=None)
@given(
    script=st.sampled_from(list(SCRIPTS)),
    share=st.floats(0, 1),
    again=st.floats(0, 1),
    losses=st.tuples(*[st.tuples(*map(st.sampled_from, (FATES, FATES, NAMES)))] * 2),
    killed=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_power_fails_at_any_point(
    recorded: Recorded,
    script: Callable[[Path], None],
    share: float,
    again: float,
    losses: tuple[tuple[str, str, str], tuple[str, str, str]],
    killed: bool,
    seed: int,
) -> None:
    """Whatever of what was written had not reached the disk: no wrong byte to anyone, also while the next owner looks
    through the files. He is interrupted, too: killed, or the power fails once more."""
    record, doubtful, chooser = recorded(script), SCRIPTS[script], random.Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory, "1")
        make(record.without_power(round(share * len(record.changes)), Loss(chooser, *losses[0])), root)
        with mock.patch.object(files, "boot_id", return_value=BOOTS[0]), _readers(root) as early:

            def look() -> None:
                _readable(early)
                with _readers(root) as now:
                    _readable(now)

            assert not _readable(early)
            second = Record(root, look)
            with second.recording(), opened(*roomy(root)) as store:
                for of in (PART, A):
                    with store.fill(of) as filling:
                        filling.missing(range(of.block_count))
                with suppress(CacheFullError):
                    put(store, B)
            look()
        at = round(again * len(second.changes))
        root = Path(directory, "2")
        make(
            second.before_change(at) if killed else second.without_power(at, Loss(chooser, *losses[1])), root
        )
        with mock.patch.object(files, "boot_id", return_value=BOOTS[not killed]):
            _recover(root, killed=False, rebooted=not killed, doubtful=doubtful)
            _go_on(root, killed=False)


def test_files_without_bytes_bytes_without_files(tmp_path: Path, recorded: Recorded) -> None:
    """What a filesystem makes of an outage at the end of everything, each by itself."""
    record = recorded(everyday)
    chooser = random.Random(0)
    for number, (data, rest, names) in enumerate(
        product(("kept", "lost", "torn"), ("kept", "lost"), ("kept", "some"))
    ):
        root = tmp_path / str(number)
        make(record.without_power(len(record.changes), Loss(chooser, data, rest, names)), root)
        with mock.patch.object(files, "boot_id", return_value=BOOTS[0]):
            _recover(root, killed=False, rebooted=True)
            _go_on(root, killed=False)


# -- a reader is killed ----------------------------------------------------------------------------------------------

_READER = """
import json, sys
from raycache.blocks import ObjectVersion
from raycache.store import StoreView
view = StoreView(json.loads(sys.argv[1]))
held = [view.open(ObjectVersion.from_wire(wire)) for wire in json.loads(sys.argv[2])]
mapped = [file.view(0, file.version.size) for file in held if file.complete]
while True:
    for file in held:
        file.pread(0, 2 * file.version.block_size)
    sum(bytes(mapped[0]))
    print("read", flush=True)
"""


def test_a_reader_that_is_killed_while_it_reads(tmp_path: Path) -> None:
    """Its leases and its mapping end with it, and what it had can be evicted, and had again."""
    with opened(tier(tmp_path, 20)) as store:
        put(store, A)
        put(store, PART, range(2))
        wires = json.dumps([A.to_wire(), PART.to_wire()])
        with subprocess.Popen(
            [sys.executable, "-c", _READER, json.dumps(store.paths), wires], stdout=subprocess.PIPE
        ) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"read\n"
            assert store.evict(lambda _: True) == 0
            put(store, B)
            assert reader.stdout.readline() == b"read\n"
            reader.kill()
        assert reader.returncode == -signal.SIGKILL
        assert store.evict(lambda _: True) > 0
        assert (store.objects(), store.usage()[0].used, _given(str(tmp_path))) == ([], 0, 0)
        put(store, A)
        with store.lease(A) or pytest.fail("no file") as file:
            assert file.view(0, A.size) == content(A)
