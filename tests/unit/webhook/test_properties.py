"""What holds for every pod, and for what is no pod."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import kubernetes_validate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycache.errors import SpecError
from raycache.webhook import Policy, inject
from raycache.webhook.review import review
from tests.unit.webhook.pods import CATALOG, POLICY, patched, pod

POLICIES = st.sampled_from(
    [
        POLICY,
        replace(POLICY, tls_secret="tls", cache_medium="Memory"),
        replace(POLICY, profile="device", device="example.com/fuse"),
        replace(POLICY, profile="copy", token_secret=""),
        replace(POLICY, sidecar="classic"),
        replace(POLICY, on_unknown="admit"),
    ]
)
NAMES = st.sampled_from(["imagenet", "models", "cold", "checkpoints"])


@st.composite
def pods(draw: st.DrawFn) -> dict[str, Any]:
    """Pods as users write them."""
    made = pod(
        *draw(st.lists(NAMES, max_size=3)),
        annotation=draw(st.sampled_from([None, "models", "imagenet:/i,models:/m", "nothing"])),
    )
    spec = made["spec"]
    for kind in ("initContainers", "containers"):
        for container in spec[kind]:
            container["env"] = [{"name": "A", "value": "b"}]
            for mount in container.get("volumeMounts", []):
                mount |= draw(st.sampled_from([{}, {"subPath": "x"}, {"readOnly": True}]))
    if draw(st.booleans()):
        del spec["initContainers"]
    spec["restartPolicy"] = draw(st.sampled_from(["Always", "Never", "OnFailure"]))
    spec["hostNetwork"] = draw(st.booleans())
    if draw(st.booleans()):
        spec["volumes"].append({"name": "config", "configMap": {"name": "config"}})
    return made


def without_what_is_its_own(value: dict[str, Any]) -> dict[str, Any]:
    """A pod less all that the webhook may change."""
    value = copy.deepcopy(value)
    value["metadata"].get("annotations", {}).pop("raycache.io/injected", None)
    if not value["metadata"].get("annotations"):
        value["metadata"].pop("annotations", None)
    spec = value["spec"]
    spec.pop("shareProcessNamespace", None)
    for kind in ("initContainers", "containers"):
        spec[kind] = [one for one in spec.get(kind, []) if one["name"] != "raycache-sidecar"]
        for container in spec[kind]:
            mounts = container.get("volumeMounts", [])
            container["volumeMounts"] = [
                one for one in mounts if not one["name"].startswith("raycache-data-")
            ]
            for mount in container["volumeMounts"]:
                mount.pop("mountPropagation", None)
    own = ("raycache-data-", "raycache-cache", "raycache-token", "raycache-tls")
    spec["volumes"] = [
        {"name": one["name"]}
        if "emptyDir" in one or one.get("persistentVolumeClaim", {}).get("claimName") in CATALOG
        else one
        for one in spec["volumes"]
        if not one["name"].startswith(own)
    ]
    return value


@settings(max_examples=150, deadline=None)
@given(pods(), POLICIES)
def test_twice_is_once_and_nothing_else_is_touched(original: dict[str, Any], policy: Policy) -> None:
    before = copy.deepcopy(original)
    decision = inject(original, CATALOG, policy)
    assert original == before
    if decision.refusal or not decision.operations:
        assert not decision.operations
        return
    once = patched(original, decision)
    assert inject(once, CATALOG, policy).operations == []
    assert without_what_is_its_own(once) == without_what_is_its_own(original)


@settings(max_examples=40, deadline=None)
@given(pods(), POLICIES)
def test_patched_pods_are_valid_for_a_current_kubernetes(original: dict[str, Any], policy: Policy) -> None:
    decision = inject(original, CATALOG, policy)
    if not decision.refusal:
        version = "1.28" if policy.sidecar == "classic" else kubernetes_validate.latest_version()
        kubernetes_validate.validate(patched(original, decision), version, strict=True)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every place in a document: what it is in, and where in that."""
    steps = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [(value, step) for step in steps] + [place for step in steps for place in places(value[step])]


@st.composite
def broken(draw: st.DrawFn) -> Any:
    """A pod with anything in the place of something."""
    document = {"pod": draw(pods())}
    within, step = draw(st.sampled_from(places(document)))
    within[step] = draw(JSON)
    return document["pod"]


@settings(max_examples=200, deadline=None)
@given(broken(), POLICIES)
def test_malformed_pods_are_refused_or_patched_and_never_raise(value: Any, policy: Policy) -> None:
    body = json.dumps(
        {
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "u",
                "operation": "CREATE",
                "kind": {"group": "", "version": "v1", "kind": "Pod"},
                "object": value,
            },
        }
    ).encode()
    response = review(body, CATALOG, policy)["response"]
    assert response["uid"] == "u"
    assert response["allowed"] or response["status"]["message"].startswith("raycache: ")


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=64) | JSON.map(lambda value: json.dumps(value).encode()))
def test_what_is_no_review_is_a_spec_error(body: bytes) -> None:
    with pytest.raises(SpecError):
        review(body, CATALOG, POLICY)


def test_deep_nesting_is_an_error_like_another() -> None:
    with pytest.raises(SpecError):
        review(b'{"a":' * 200_000, CATALOG, POLICY)
    deep: dict[str, Any] = {}
    for _ in range(400):
        deep = {"a": deep}
    request = {"uid": "u", "operation": "CREATE", "kind": {"group": "", "version": "v1", "kind": "Pod"}}
    request["object"] = pod("imagenet") | {"x": deep}
    body = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}
    assert review(json.dumps(body).encode(), CATALOG, POLICY)["response"]["uid"] == "u"
