"""The data plane over TLS: who has no certificate of the right authority learns nothing and is told nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from raycache.access import Gate
from raycache.errors import AccessDeniedError, RaycacheError, SpecError, WorkerUnavailableError
from raycache.flight import FlightPeer, FlightServer, PeerPool
from raycache.settings import Settings, TlsFiles
from tests.support.certificates import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


def a_server(tls: TlsFiles | None, token: str = "t") -> FlightServer:
    return FlightServer(
        "127.0.0.1",
        actions={"echo": lambda request: request},
        stream=lambda _: iter([(0x8A9136AA, b"\0" * 32)]),  # RFC 3720, B.4: CRC32C of 32 zeros
        gate=Gate(token),
        tls=tls,
    )


@pytest.fixture
def server(authority: Authority) -> Iterator[FlightServer]:
    with a_server(authority.issue("server")) as server:
        yield server


@pytest.fixture
def mutual(authority: Authority) -> Iterator[FlightServer]:
    with a_server(authority.issue("server", mutual=True)) as server:
        yield server


def ask(server: FlightServer, tls: TlsFiles | None, token: str = "t") -> object:
    with FlightPeer(server.address, token, tls=tls, connect_timeout_s=2.0) as peer:
        assert [bytes(data) for _, data in peer.stream({})] == [b"\0" * 32]
        return peer.call("echo", {"a": 1}, timeout_s=5.0)


def test_calls_and_streams(server: FlightServer, authority: Authority) -> None:
    assert ask(server, authority.trusted()) == {"a": 1}
    assert ask(server, authority.issue("client")) == {"a": 1}, (
        "a certificate that nobody asks for does no harm"
    )


def test_the_token_is_asked_for_all_the_same(server: FlightServer, authority: Authority) -> None:
    with pytest.raises(AccessDeniedError):
        ask(server, authority.trusted(), "wrong")


def test_who_speaks_in_clear_is_not_understood(server: FlightServer, authority: Authority) -> None:
    with pytest.raises(WorkerUnavailableError):
        ask(server, None)
    with a_server(None) as plain, pytest.raises(WorkerUnavailableError, match="TLS"):
        ask(plain, authority.trusted())


def test_a_worker_with_another_certificate_is_not_believed(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    for files in (other.issue("server"), authority.issue("server", ["10.0.0.1"])):
        with a_server(files) as server, pytest.raises(WorkerUnavailableError):
            ask(server, authority.trusted())


def test_mutual_tls_wants_a_certificate(mutual: FlightServer, authority: Authority, tmp_path: Path) -> None:
    assert ask(mutual, authority.issue("client")) == {"a": 1}
    foreign = Authority(tmp_path / "other").issue("client")
    for files in (authority.trusted(), TlsFiles(str(authority.path), foreign.cert, foreign.key)):
        with pytest.raises(WorkerUnavailableError):
            ask(mutual, files)


def test_a_certificate_that_was_replaced_is_taken(
    mutual: FlightServer, authority: Authority, tmp_path: Path
) -> None:
    Authority(tmp_path / "pki", "other").issue("client")  # overwritten below
    files = TlsFiles(
        str(authority.path), str(tmp_path / "pki" / "client.crt"), str(tmp_path / "pki" / "client.key")
    )
    with closing(PeerPool("t", tls=files)) as pool:
        with pytest.raises(WorkerUnavailableError):
            pool.get(mutual.address).call("echo", {}, timeout_s=5.0)
        authority.issue("client")
        os.utime(files.cert, ns=(1, 1))  # whatever the clock's resolution is
        pool.mark_down(mutual.address)
        assert pool.get(mutual.address).call("echo", {}, timeout_s=10.0) == {}


def test_files_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path) -> None:
    good = authority.issue("server")
    with pytest.raises(SpecError, match="cannot be read"):
        a_server(TlsFiles(good.ca, str(tmp_path / "nowhere"), good.key))
    with pytest.raises(SpecError, match="needs a certificate"):
        a_server(authority.trusted())
    with pytest.raises(SpecError, match="cannot be read"):
        FlightPeer("127.0.0.1:1", tls=TlsFiles(str(tmp_path / "nowhere")))
    rubbish = tmp_path / "rubbish"
    rubbish.write_text("no certificate")
    with pytest.raises(RaycacheError) as caught:
        a_server(TlsFiles(good.ca, str(rubbish), str(rubbish)))
    assert "a pair" in str(caught.value)


def test_where_the_files_come_from() -> None:
    ray = {"RAY_USE_TLS": "1", "RAY_TLS_CA_CERT": "a", "RAY_TLS_SERVER_CERT": "b", "RAY_TLS_SERVER_KEY": "c"}
    assert Settings.from_environ({}).tls is None
    assert Settings.from_environ({**ray, "RAY_USE_TLS": "0"}).tls is None
    assert Settings.from_environ(ray).tls == TlsFiles("a", "b", "c")
    assert Settings.from_environ({**ray, "RAYCACHE_TLS_MUTUAL": "1"}).tls == TlsFiles(
        "a", "b", "c", mutual=True
    )
    assert Settings.from_environ({**ray, "RAYCACHE_TLS_CA": "d"}).tls == TlsFiles("d")


def test_rays_token_is_found_as_ray_finds_it(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("from-file\n")
    mode = {"RAY_AUTH_MODE": "token"}
    assert Settings.from_environ({"RAY_AUTH_TOKEN": "x"}).ray_tokens == ()
    assert Settings.from_environ({**mode, "RAY_AUTH_TOKEN": "x"}).ray_tokens == ("x",)
    assert Settings.from_environ({**mode, "RAY_AUTH_TOKEN_PATH": str(file)}).ray_tokens == ("from-file",)
    assert Settings.from_environ({**mode, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}).ray_tokens == ()
    assert "from-file" not in repr(Settings.from_environ({**mode, "RAY_AUTH_TOKEN_PATH": str(file)}))
