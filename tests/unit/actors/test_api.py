"""The API without a cluster: embedded clients, lazy imports, errors across calls."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

import raycache
from raycache import api
from raycache.actors import joining
from raycache.actors.answers import answered, unwrap
from raycache.actors.seat import first_line, why_died
from raycache.blocks import MiB
from raycache.engine import Peers
from raycache.errors import (
    ClusterUnavailableError,
    DatasetNotFoundError,
    PathError,
    RaycacheError,
    SpecError,
    to_wire,
)
from raycache.flight import PeerPool
from raycache.membership import Membership
from raycache.spec import ResolvedDataset
from tests.support.embedded import BLOCK, PATIENCE_S, at_once, dataset_of, noise

DATA = noise(3 * BLOCK + 7)


@pytest.fixture
def dataset(tmp_path: Path) -> ResolvedDataset:
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "a").write_bytes(DATA)
    return dataset_of("ds", {"": f"file://{tmp_path}/bucket"})


def run(code: str, **environ: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environ, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_raycache_imports_nothing_heavy() -> None:
    assert (
        run("import sys, raycache; print([m for m in ('ray', 'pyarrow', 'pydantic') if m in sys.modules])")
        == "[]\n"
    )
    assert run("import sys, raycache.api; print('ray' in sys.modules)") == "False\n"


def test_one_path_is_not_taken_for_its_letters() -> None:
    assert list(api._paths("images")) == ["images"]
    assert list(api._paths(["a", "b"])) == ["a", "b"]
    assert list(api._paths(())) == ["/"], "none are all"


def test_every_exported_name_is_there() -> None:
    for name in raycache.__all__:
        assert getattr(raycache, name) is not None
    assert set(raycache.__all__) <= set(dir(raycache))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        raycache.nothing  # noqa: B018


def test_an_embedded_client_keeps_its_cache(tmp_path: Path, dataset: ResolvedDataset) -> None:
    for _ in range(2):
        with closing(api.embedded([dataset], str(tmp_path / "cache"), quota=8 * MiB)) as client:
            with closing(client.open("ds", "a")) as reader:
                assert reader.read_at(0, len(DATA)) == DATA
            fetched = client.metrics.snapshot().get("fetched_store_bytes", 0)
    assert fetched == 0, "the second one finds what the first one cached"


def test_a_spec_file_is_an_address(tmp_path: Path, dataset: ResolvedDataset) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "{apiVersion: raycache.io/v1, kind: Dataset, metadata: {name: ds},"
        f" spec: {{mounts: [{{mountPoint: file://{tmp_path}/bucket}}]}}}}"
    )
    code = f"""
import sys, raycache
with raycache.local_path("raycache://ds/a") as path:
    assert open(path, "rb").read() == open({str(tmp_path / "bucket" / "a")!r}, "rb").read()
    assert path.startswith({str(tmp_path / "cache")!r}), path
raycache.disconnect()
print("ray" in sys.modules)
"""
    environ = {"RAYCACHE_ADDRESS": f"embedded:{spec}", "RAYCACHE_CACHE_DIR": str(tmp_path / "cache")}
    assert run(code, **environ) == "False\n"


def test_urls_of_other_kinds_are_refused() -> None:
    for url in ("s3://bucket/key", "ds/file", "file:///etc/passwd"):
        with pytest.raises(SpecError, match="not a URL of raycache"), api.local_path(url):
            pass
    with pytest.raises(PathError), api.local_path("raycache://ds/../other"):
        pass


def test_no_cluster_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "find_address", lambda address=None: address)
    with pytest.raises(ClusterUnavailableError, match="raycache start"):
        api.connect()
    with pytest.raises(ClusterUnavailableError, match="raycache start"):
        api.Admin()
    with pytest.raises(ClusterUnavailableError, match="no Ray cluster answers"):
        api.Admin("127.0.0.1:1")
    with pytest.raises(ClusterUnavailableError, match="host:port"):
        api.Admin("somewhere")


class Actor:
    @answered
    def work(self, what: str) -> str:
        """Return, refuse, or break."""
        if what == "refuse":
            raise DatasetNotFoundError("no such dataset", where="ds", hint="apply it")
        if what == "break":
            raise KeyError("hunter2")
        return what


def test_errors_cross_calls_as_the_class_they_were(caplog: pytest.LogCaptureFixture) -> None:
    actor = Actor()
    assert unwrap(actor.work("done")) == "done"
    with pytest.raises(DatasetNotFoundError) as raised:
        unwrap(actor.work("refuse"))
    assert to_wire(raised.value) == to_wire(
        DatasetNotFoundError("no such dataset", where="ds", hint="apply it")
    )
    with pytest.raises(RaycacheError, match="internal error: KeyError") as internal:
        unwrap(actor.work("break"))
    assert "hunter2" not in str(internal.value)
    assert "work failed" in caplog.text


def test_why_an_actor_died_is_said_in_one_sentence() -> None:
    trace = "The actor died.\nTraceback ...\nModuleNotFoundError: No module named 'raycache'\n"
    assert "install it on every node" in why_died(trace)
    assert (
        why_died("The actor died.\nValueError: bad luck\n")
        == "the worker could not start: ValueError: bad luck"
    )
    assert first_line("\n one \n two") == "one"


def test_threads_that_fail_together_wait_for_one_question() -> None:
    asked: list[int] = []
    arrived, answer = threading.Semaphore(0), threading.Event()

    def refresh(epoch: int) -> Membership:
        asked.append(epoch)
        assert answer.wait(PATIENCE_S)
        return Membership(epoch=7)

    now = [0.0]
    with closing(PeerPool()) as pool:
        peers = Peers(pool, Membership(epoch=1), refresh=refresh, clock=lambda: now[0])
        now[0] = 10.0

        def fail(number: int) -> int:
            arrived.release()
            if number == 0:  # this one lets the answer come, once all are here
                for _ in range(4):
                    assert arrived.acquire(timeout=PATIENCE_S)
                answer.set()
            peers.refresh()
            return peers.membership.epoch

        assert at_once(4, fail) == [7] * 4
        assert asked == [1]
        peers.refresh(wait=False)
        assert asked == [1], "not twice within a second"
