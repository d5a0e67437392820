"""`token`."""

from __future__ import annotations

from tests.unit.cli.fakes import FakeBackend, invoke


def test_create_prints_the_token_and_nothing_else() -> None:
    backend = FakeBackend()
    result = invoke(
        backend,
        "token",
        "create",
        "--dataset",
        "a",
        "--dataset",
        "b",
        "--verbs",
        "read,invalidate",
        "--ttl",
        "2h",
    )
    assert (result.exit_code, result.stdout) == (0, "a.b.c\n")
    assert backend.fake.calls == [("create_token", ["a", "b"], ["read", "invalidate"], 7200.0, "")]


def test_create_needs_a_dataset() -> None:
    assert invoke(FakeBackend(), "token", "create").exit_code == 2


def test_keys_tells_which_one_signs() -> None:
    lines = invoke(FakeBackend(), "token", "keys").stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["0a0a", "<none>"], ["0b0b", "yes"]]


def test_rotate_names_workers_that_have_not_heard_of_it() -> None:
    backend = FakeBackend()
    result = invoke(backend, "token", "rotate", "--revoke")
    assert (result.exit_code, backend.fake.calls) == (0, [("rotate_token_keys", True)])
    assert "node 0123456789ab: it does not answer" in result.stderr
    assert "refused" in result.stdout


def test_drop() -> None:
    backend = FakeBackend()
    assert invoke(backend, "token", "drop", "0a0a").stdout == "key/0a0a dropped\n"
    assert backend.fake.calls == [("drop_token_key", "0a0a")]
