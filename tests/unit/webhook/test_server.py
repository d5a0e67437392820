"""The server over TLS, its certificate's renewal, and callers that mean no good."""

from __future__ import annotations

import base64
import http.client
import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonpatch
import pytest

from raycache.errors import SpecError
from raycache.webhook import FileCatalog
from raycache.webhook.server import MOST_BYTES, Server
from tests.support.certificates import Authority
from tests.unit.webhook.pods import POLICY, pod

SPEC = """
apiVersion: raycache.io/v1
kind: Dataset
metadata: {name: imagenet}
spec: {mounts: [{mountPoint: "s3://bucket/imagenet"}]}
"""
PATIENCE_S = 60.0


@pytest.fixture
def specs(tmp_path: Path) -> Path:
    directory = tmp_path / "specs"
    directory.mkdir()
    (directory / "imagenet.yaml").write_text(SPEC)
    return directory


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "tls")


@pytest.fixture
def server(authority: Authority, specs: Path) -> Iterator[Server]:
    tls = authority.issue("webhook")
    catalog = FileCatalog([str(specs)])
    with Server("127.0.0.1", 0, tls.cert, tls.key, catalog, POLICY, idle_s=PATIENCE_S) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.05,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(
    server: Server, authority: Authority, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, dict[str, Any]]:
    context = ssl.create_default_context(cafile=str(authority.path))
    caller = http.client.HTTPSConnection("127.0.0.1", server.server_port, context=context, timeout=PATIENCE_S)
    try:
        caller.request(method, path, body or None, headers)
        answer = caller.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        caller.close()


def a_review(value: Any, operation: str = "CREATE") -> bytes:
    kind = {"group": "", "version": "v1", "kind": "Pod"}
    request = {"uid": "705ab4f5", "kind": kind, "operation": operation, "object": value}
    return json.dumps(
        {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    ).encode()


def test_a_review_is_answered_with_a_patch(server: Server, authority: Authority) -> None:
    original = pod("imagenet")
    status, answer = ask(server, authority, "POST", "/mutate?timeout=10s", a_review(original))
    assert (status, answer["kind"], answer["apiVersion"]) == (200, "AdmissionReview", "admission.k8s.io/v1")
    response = answer["response"]
    assert (response["uid"], response["allowed"], response["patchType"]) == ("705ab4f5", True, "JSONPatch")
    result = jsonpatch.apply_patch(original, json.loads(base64.b64decode(response["patch"])))
    assert result["spec"]["initContainers"][0]["name"] == "raycache-sidecar"


def test_a_refusal_says_why(server: Server, authority: Authority) -> None:
    response = ask(server, authority, "POST", "/mutate", a_review(pod(annotation="nothing")))[1]["response"]
    assert response["allowed"] is False
    assert response["status"]["code"] == 403
    assert "there is no dataset nothing" in response["status"]["message"]
    assert "patch" not in response


def test_what_is_not_the_webhooks_matter_is_allowed(server: Server, authority: Authority) -> None:
    for body in (a_review(pod("imagenet"), "UPDATE"), a_review(pod("imagenet", labels={}))):
        response = ask(server, authority, "POST", "/mutate", body)[1]["response"]
        assert response == {"uid": "705ab4f5", "allowed": True}


def test_datasets_that_come_later_are_known(server: Server, authority: Authority, specs: Path) -> None:
    (specs / "models.yaml").write_text(SPEC.replace("imagenet", "models"))
    asked = a_review(pod("models"))
    assert ask(server, authority, "POST", "/mutate", asked)[1]["response"]["allowed"]
    (specs / "models.yaml").write_text(
        "kind: Dataset\napiVersion: raycache.io/v1\n"
    )  # a bad one changes nothing
    assert ask(server, authority, "POST", "/mutate", asked)[1]["response"]["allowed"]
    (specs / "models.yaml").unlink()
    assert not ask(server, authority, "POST", "/mutate", asked)[1]["response"]["allowed"]


def test_health(server: Server, authority: Authority) -> None:
    assert ask(server, authority, "GET", "/healthz") == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/mutate", b"nonsense", 400),
        ("POST", "/mutate", b"[]", 400),
        ("POST", "/mutate", a_review(pod()).replace(b"k8s.io/v1", b"k8s.io/v9"), 400),
        ("POST", "/other", b"{}", 404),
        ("GET", "/mutate", b"", 404),
    ],
)
def test_what_is_no_review_gets_a_reason(
    server: Server, authority: Authority, method: str, path: str, body: bytes, status: int
) -> None:
    got, answer = ask(server, authority, method, path, body)
    assert (got, answer["error"]) == (status, "SpecError")
    assert answer["what"]


@pytest.mark.parametrize(
    ("length", "status"),
    [(str(MOST_BYTES + 1), 413), ("9" * 5000, 413), ("-1", 411), ("x", 411), ("", 411)],
)
def test_a_body_too_large_or_of_no_length_is_not_read(
    server: Server, authority: Authority, length: str, status: int
) -> None:
    context = ssl.create_default_context(cafile=str(authority.path))
    with (
        socket.create_connection(("127.0.0.1", server.server_port), PATIENCE_S) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as caller,
    ):
        caller.sendall(f"POST /mutate HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode())
        answer = http.client.HTTPResponse(caller)
        answer.begin()
        assert answer.status == status
        assert json.loads(answer.read())["error"] == "SpecError"
        assert caller.recv(1) == b""  # and the connection is over


def test_who_says_nothing_or_speaks_in_clear_holds_up_nobody(server: Server, authority: Authority) -> None:
    address = ("127.0.0.1", server.server_port)
    with (
        socket.create_connection(address, PATIENCE_S),
        socket.create_connection(address, PATIENCE_S) as clear,
    ):
        clear.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert ask(server, authority, "GET", "/healthz")[0] == 200
        # an alert, or a reset; in any case no answer
        try:
            assert b"200" not in clear.recv(100)
        except ConnectionResetError:
            pass


def test_a_certificate_that_was_renewed_is_used(server: Server, authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path / "tls", "other")
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(server, other, "GET", "/healthz")
    (tmp_path / "tls" / "webhook.crt").write_text("half a certif")  # a bad one changes nothing
    assert ask(server, authority, "GET", "/healthz")[0] == 200
    other.issue("webhook")
    assert ask(server, other, "GET", "/healthz")[0] == 200


def test_files_that_cannot_be_used_are_named(tmp_path: Path, specs: Path) -> None:
    with pytest.raises(SpecError, match=r"missing\.crt"):
        Server("127.0.0.1", 0, str(tmp_path / "missing.crt"), "k", FileCatalog([str(specs)]), POLICY)


def test_only_what_is_bound_is_ready_where_there_is_a_status(tmp_path: Path, specs: Path) -> None:
    (specs / "models.yaml").write_text(SPEC.replace("imagenet", "models"))
    status = tmp_path / "status.json"
    status.write_text(
        json.dumps([{"name": "imagenet", "phase": "Pending", "reason": "workers are taking it on"}])
    )
    catalog = FileCatalog([str(specs)], str(status))
    assert catalog.current()["imagenet"] == "Pending, workers are taking it on"
    assert "does not know it" in catalog.current()["models"]
    status.write_text(json.dumps([{"name": name, "phase": "Bound"} for name in ("imagenet", "models")]))
    assert dict(catalog.current()) == {"imagenet": "", "models": ""}
    status.write_text("[1]")  # a bad one changes nothing
    assert dict(catalog.current()) == {"imagenet": "", "models": ""}
    with pytest.raises(SpecError, match=r"status\.json"):
        FileCatalog([str(specs)], str(status))


def test_the_program_serves_until_it_is_told_to_end(authority: Authority, specs: Path) -> None:
    tls = authority.issue("webhook")
    words = ["webhook", "--image", "i", "--cache-address", "h:1", "--specs", str(specs), "--cert", tls.cert]
    words += ["--key", tls.key, "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "raycache", *words], stdout=subprocess.PIPE, text=True
    ) as program:
        try:
            assert program.stdout is not None
            assert "listening at 127.0.0.1:" in program.stdout.readline()
            program.send_signal(signal.SIGTERM)
            assert program.wait(PATIENCE_S) == 0
        finally:
            program.kill()
