"""What `raycache webhook --manifests` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer.main
import yaml

from raycache.cli.app import app
from raycache.webhook.wishes import asked
from tests.unit.cli.fakes import FakeBackend, invoke

WORDS = ("webhook", "--manifests", "--image", "example.com/raycache:1", "--cache-address", "workers.ray:7777")


def printed(*more: str) -> dict[str, dict[str, Any]]:
    result = invoke(FakeBackend(), *WORDS, *more)
    assert result.exit_code == 0, result.output
    assert "&id" not in result.stdout
    assert "is not in this version" in result.stderr
    return {document["kind"]: document for document in yaml.safe_load_all(result.stdout)}


def test_they_are_valid_for_a_current_kubernetes() -> None:
    for kind, document in printed().items():
        if kind not in ("Issuer", "Certificate"):  # cert-manager's
            kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def matches(expressions: list[dict[str, Any]], labels: dict[str, str]) -> bool:
    """Kubernetes' label selector."""
    has = {
        "In": lambda one: labels.get(one["key"]) in one["values"],
        "NotIn": lambda one: labels.get(one["key"]) not in one["values"],
        "DoesNotExist": lambda one: one["key"] not in labels,
    }
    return all(has[one["operator"]](one) for one in expressions)


@pytest.mark.parametrize("own", [None, "true", "false"])
@pytest.mark.parametrize("fluid", [None, "true", "false"])
@pytest.mark.parametrize("article", [None, "eci", "other"])
def test_the_webhook_is_called_once_for_the_pods_that_ask(
    own: str | None, fluid: str | None, article: str | None
) -> None:
    keys = ("raycache.io/inject", "serverless.fluid.io/inject", "alibabacloud.com/fluid-sidecar-target")
    labels = {key: value for key, value in zip(keys, (own, fluid, article), strict=True) if value is not None}
    hooks = printed()["MutatingWebhookConfiguration"]["webhooks"]
    called = sum(matches(hook["objectSelector"]["matchExpressions"], labels) for hook in hooks)
    assert called == int(asked({"metadata": {"labels": labels}}))


def test_it_fails_closed_is_called_again_and_may_ask_for_nothing() -> None:
    documents = printed()
    for hook in documents["MutatingWebhookConfiguration"]["webhooks"]:
        assert (hook["failurePolicy"], hook["reinvocationPolicy"], hook["sideEffects"]) == (
            "Fail",
            "IfNeeded",
            "None",
        )
    assert documents["ServiceAccount"]["automountServiceAccountToken"] is False
    assert not {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"} & set(documents)


def test_the_deployment_runs_the_webhook_with_the_same_options() -> None:
    arguments = printed("--profile", "copy", "--token-secret", "", "--on-unknown", "admit")["Deployment"]
    words = arguments["spec"]["template"]["spec"]["containers"][0]["args"]
    command = typer.main.get_command(app).commands["webhook"]  # type: ignore[attr-defined]
    context = command.make_context("webhook", list(words))
    assert context.params["profile"] == "copy"
    assert context.params["token_secret"] == ""
    assert context.params["on_unknown"] == "admit"
    assert context.params["cache_address"] == "workers.ray:7777"


def test_a_certificate_of_ones_own(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("-----BEGIN CERTIFICATE-----\nx\n")
    documents = printed("--ca-bundle", str(bundle))
    assert not {"Issuer", "Certificate"} & set(documents)
    hooks = documents["MutatingWebhookConfiguration"]["webhooks"]
    assert all(hook["clientConfig"]["caBundle"] for hook in hooks)
    bundle.write_text("not one")
    assert invoke(FakeBackend(), *WORDS, "--ca-bundle", str(bundle)).exit_code == 2


@pytest.mark.parametrize(
    "more",
    [("--requests", "cpu"), ("--cache-size", "much"), ("--profile", "device"), ("--namespace", "Not A Name")],
)
def test_options_that_cannot_be_are_refused(more: tuple[str, ...]) -> None:
    assert invoke(FakeBackend(), *WORDS, *more).exit_code == 2
