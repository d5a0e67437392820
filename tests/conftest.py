"""Fixtures that every test may use, and the check that no test leaves anything open behind it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import fsspec.asyn
import obstore
import obstore.store
import pytest

from tests.support.leaks import holdings, lasting, leaked_since
from tests.support.s3proxy import S3Proxy
from tests.support.seaweed import REGION, SeaweedS3

PATIENCE_S = 5.0
"""Seconds that threads and connections get to end after a test. Only a test that leaks waits for them."""

FAILED = pytest.StashKey[bool]()
"""Whether a test has failed, for fixtures that must not blame it for more."""


def pytest_configure(config: pytest.Config) -> None:
    # A shell that runs pytest in the background has it ignore these, and every process that a test starts too.
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    config.addinivalue_line(
        "markers", "leaks_allowed(reason): the test may leave descriptors, threads or processes; say why"
    )


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a Ray cluster go one after the other, by the same process, however many there are (pytest-xdist)."""
    for item in items:
        if {"cluster", "soak"} & set(item.path.relative_to(Path(__file__).parent).parts):
            item.add_marker(pytest.mark.xdist_group("ray"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the figures that tests have recorded (`record_property("figures", ...)`)."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, text in report.user_properties:
            if name == "figures":
                terminalreporter.section(report.nodeid)
                terminalreporter.write_line(text)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and report.when in ("setup", "call"):
        item.stash[FAILED] = True
    return report


@pytest.fixture(scope="session", autouse=True)
def _own_environment() -> Iterator[None]:
    """No test meets the credentials of whoever runs it, and none asks a metadata service."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("AWS_", "RAYCACHE_")):
                patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", "/dev/null")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        yield


@pytest.fixture(scope="session", autouse=True)
def _warm_libraries() -> None:
    """Start what libraries start once per process, so that no single test is blamed for it."""
    store = obstore.store.MemoryStore()
    obstore.put(store, "warm", b"warm")
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), fsspec.asyn.get_loop()).result()


@pytest.fixture(autouse=True)
def _no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves descriptors, threads or child processes open, with their names."""
    marker = request.node.get_closest_marker("leaks_allowed")
    if marker is not None:
        assert marker.args, "leaks_allowed needs a reason"
        yield
        return
    before = holdings()
    yield
    if request.node.stash.get(FAILED, False):
        return  # its traceback keeps its locals alive, so whatever it had open still is
    found = leaked_since(before, PATIENCE_S)
    if found:
        pytest.fail("the test left open:\n  " + "\n  ".join(found), pytrace=False)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedS3]:
    """A real S3 server for the whole session."""
    server = SeaweedS3(tmp_path_factory.mktemp("s3"))
    with lasting():
        server.start()
    yield server
    server.stop()


@pytest.fixture
def bucket(s3_server: SeaweedS3) -> str:
    """Name of a fresh, empty bucket."""
    return s3_server.create_bucket()


@pytest.fixture
def s3_options(s3_server: SeaweedS3) -> dict[str, str]:
    """Mount options (canonical names) with which `s3://<bucket>` is read from the server."""
    return s3_mount_options(s3_server)


def s3_mount_options(server: SeaweedS3, **changes: str) -> dict[str, str]:
    """Mount options for a server, or, with `endpoint=`, for a proxy in front of it."""
    return {
        "endpoint": server.endpoint,
        "region": REGION,
        "access_key_id": server.access_key,
        "secret_access_key": server.secret_key,
    } | changes


@pytest.fixture
def s3_proxy(s3_server: SeaweedS3) -> Iterator[S3Proxy]:
    """A counting proxy in front of the server, in this process; set its `fault` to break requests."""
    with S3Proxy(s3_server.address) as proxy:
        yield proxy


@pytest.fixture
def s3_client(s3_server: SeaweedS3) -> Iterator[Any]:
    """A boto3 client for the server."""
    client = s3_server.client()
    yield client
    client.close()
