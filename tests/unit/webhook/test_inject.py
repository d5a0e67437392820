"""What a pod becomes, rule by rule."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from raycache.errors import SpecError
from raycache.webhook import Policy, inject
from tests.unit.webhook.pods import CATALOG, POLICY, env, patched, pod, sidecar

DEVICE = replace(POLICY, profile="device", device="example.com/fuse")
COPY = replace(POLICY, profile="copy")
CLASSIC = replace(POLICY, sidecar="classic")


def injected(original: dict[str, Any], policy: Policy = POLICY) -> dict[str, Any]:
    before = copy.deepcopy(original)
    result = patched(original, inject(original, CATALOG, policy))
    assert original == before
    return result


def test_a_claim_of_a_dataset_becomes_a_directory_of_the_pods_own() -> None:
    result = injected(pod("imagenet"))
    assert result["spec"]["volumes"][0] == {"name": "v0", "emptyDir": {}}
    assert not any("hostPath" in volume for volume in result["spec"]["volumes"])


def test_the_sidecar_stays_and_comes_before_the_init_containers() -> None:
    result = injected(pod("imagenet"))
    first, second = result["spec"]["initContainers"]
    assert (first["name"], first["restartPolicy"], second["name"]) == (
        "raycache-sidecar",
        "Always",
        "prepare",
    )
    assert first["startupProbe"]["exec"]["command"] == ["raycache", "sidecar", "--check"]
    assert first["readinessProbe"]["exec"]["command"] == ["raycache", "sidecar", "--check"]
    probe = first["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= POLICY.start_timeout_s
    assert "ports" not in first  # two pods in the host's network would collide


def test_mounts_propagate_from_the_sidecar_to_all_that_mount_the_volume() -> None:
    result = injected(pod("imagenet"))
    own = sidecar(result)["volumeMounts"][0]
    assert own == {"name": "v0", "mountPath": "/raycache/volumes/v0", "mountPropagation": "Bidirectional"}
    assert sidecar(result)["securityContext"]["privileged"] is True
    for kind in ("initContainers", "containers"):
        for container in result["spec"][kind]:
            for mount in container.get("volumeMounts", []):
                if mount["name"] == "v0" and container["name"] != "raycache-sidecar":
                    assert mount == {
                        "name": "v0",
                        "mountPath": "/data/0",
                        "mountPropagation": "HostToContainer",
                    }


def test_several_datasets_have_one_sidecar() -> None:
    result = injected(pod("imagenet", "models", "imagenet", annotation="models:/m, imagenet"))
    assert env(sidecar(result))["RAYCACHE_DATASETS"] == (
        "imagenet=/raycache/volumes/v0,models=/raycache/volumes/v1,imagenet=/raycache/volumes/v2,"
        "models=/raycache/volumes/raycache-data-0,imagenet=/raycache/volumes/raycache-data-1"
    )


def test_a_dataset_of_the_annotation_is_mounted_in_every_container() -> None:
    result = injected(pod(annotation="models:/models,imagenet"))
    for container in [*result["spec"]["initContainers"][1:], *result["spec"]["containers"]]:
        assert [(one["mountPath"], one["readOnly"]) for one in container["volumeMounts"]] == [
            ("/models", True),
            ("/raycache/imagenet", True),
        ]
    assert result["metadata"]["annotations"]["other/one"] == "kept"


def test_other_claims_are_left_alone() -> None:
    original = pod("imagenet", "checkpoints")
    result = injected(original)
    assert result["spec"]["volumes"][1] == original["spec"]["volumes"][1]
    assert result["spec"]["containers"][0]["volumeMounts"][1] == {"name": "v1", "mountPath": "/data/1"}


@pytest.mark.parametrize(
    ("labels", "asks"),
    [
        ({"raycache.io/inject": "true"}, True),
        ({"serverless.fluid.io/inject": "true"}, True),
        ({"alibabacloud.com/fluid-sidecar-target": "eci"}, True),
        ({"alibabacloud.com/fluid-sidecar-target": "asm"}, False),
        ({"raycache.io/inject": "false", "serverless.fluid.io/inject": "true"}, False),
        ({"serverless.fluid.io/inject": "false"}, False),
        ({}, False),
    ],
)
def test_which_labels_ask(labels: dict[str, str], asks: bool) -> None:
    assert bool(inject(pod("imagenet", labels=labels), CATALOG, POLICY).operations) is asks


@pytest.mark.parametrize(
    ("original", "reason"),
    [
        (pod(annotation="imagenett"), "there is no dataset imagenett"),
        (pod("imagenet", "cold"), "dataset cold is not ready: NotReady, 0 nodes hold it"),
        (pod("imagenet", annotation="models,nothing"), "there is no dataset nothing"),
        (pod("imagenett"), "its volume claims (imagenett) are not datasets"),
    ],
)
def test_unknown_and_unready_datasets_are_refused_or_nothing_is_changed(
    original: dict[str, Any], reason: str
) -> None:
    refused = inject(original, CATALOG, POLICY)
    assert reason in refused.refusal
    assert not refused.operations
    admitted = inject(original, CATALOG, replace(POLICY, on_unknown="admit"))
    assert (admitted.refusal, admitted.operations) == ("", [])
    assert reason in admitted.warnings[0]


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ("imagenet:data", "no mount path"),
        ("imagenet:/a/../b", "no mount path"),
        ("imagenet:/", "no mount path"),
        ("imagenet:/a:b", "no mount path"),
        ("ImageNet", "not a valid name"),
        ("", "not a valid name"),
        ("imagenet:/d,models:/d", "named twice"),
    ],
)
def test_a_malformed_annotation_is_refused(annotation: str, reason: str) -> None:
    assert reason in inject(pod(annotation=annotation), CATALOG, POLICY).refusal


def test_a_path_that_is_taken_is_refused() -> None:
    assert (
        "something is mounted at /data/0 already"
        in inject(pod("checkpoints", annotation="imagenet:/data/0"), CATALOG, POLICY).refusal
    )


@pytest.mark.parametrize(
    "spec",
    [
        {"containers": [{"name": "raycache-sidecar", "image": "x"}]},
        {"containers": []},
        {"os": {"name": "windows"}},
        {
            "containers": [
                {"name": "c", "image": "x", "volumeDevices": [{"name": "v0", "devicePath": "/dev/x"}]}
            ]
        },
    ],
)
def test_pods_that_cannot_have_it_are_refused(spec: dict[str, Any]) -> None:
    decision = inject(pod("imagenet", **spec), CATALOG, POLICY)
    assert decision.refusal
    assert not decision.operations


def test_volume_names_of_the_webhook_are_refused() -> None:
    original = pod("imagenet")
    original["spec"]["volumes"].append({"name": "raycache-cache", "emptyDir": {}})
    assert "raycache-cache is the webhook's" in inject(original, CATALOG, POLICY).refusal


def test_recursive_read_only_gives_way_to_propagation() -> None:
    original = pod("imagenet")
    mount = original["spec"]["containers"][0]["volumeMounts"][0]
    mount.update(readOnly=True, recursiveReadOnly="IfPossible", subPath="train")
    assert injected(original)["spec"]["containers"][0]["volumeMounts"][0] == {
        "name": "v0",
        "mountPath": "/data/0",
        "readOnly": True,
        "subPath": "train",
        "mountPropagation": "HostToContainer",
    }


def test_the_sidecar_is_told_everything_by_environment_and_files() -> None:
    policy = replace(POLICY, tls_secret="raycache-tls", tls_client=True, cache_bytes=1000)
    result = injected(pod("imagenet"), policy)
    assert env(sidecar(result)) == {
        "RAYCACHE_ADDRESS": "raycache-workers.ray:7777",
        "RAYCACHE_DATASETS": "imagenet=/raycache/volumes/v0",
        "RAYCACHE_SIDECAR_MODE": "mount",
        "RAYCACHE_START_TIMEOUT": "600s",
        "RAYCACHE_CACHE_DIR": "/var/cache/raycache",
        "RAYCACHE_CACHE_SIZE": "1000",
        "RAYCACHE_TOKEN_FILE": "/etc/raycache/token/token",
        "RAYCACHE_TLS_CA": "/etc/raycache/tls/ca.crt",
        "RAYCACHE_TLS_CERT": "/etc/raycache/tls/tls.crt",
        "RAYCACHE_TLS_KEY": "/etc/raycache/tls/tls.key",
    }
    volumes = {volume["name"]: volume for volume in result["spec"]["volumes"]}
    assert volumes["raycache-token"]["secret"] == {"secretName": "raycache-token"}
    assert volumes["raycache-cache"]["emptyDir"] == {"sizeLimit": "1250"}


def test_a_platform_that_supplies_the_device() -> None:
    result = injected(pod("imagenet", annotation="models"), DEVICE)
    own = sidecar(result)
    assert own["securityContext"]["privileged"] is False
    assert own["resources"]["limits"]["example.com/fuse"] == "1"
    # The API server refuses Bidirectional of a container that is not privileged.
    assert "mountPropagation" not in str(result)


def test_without_fuse_an_init_container_copies_before_the_others_start() -> None:
    result = injected(pod("imagenet", annotation="models"), COPY)
    own = result["spec"]["initContainers"][0]
    assert own["name"] == "raycache-sidecar"
    assert env(own)["RAYCACHE_SIDECAR_MODE"] == "copy"
    assert not {"restartPolicy", "startupProbe", "readinessProbe", "lifecycle"} & set(own)
    assert own["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert "mountPropagation" not in str(result)


def test_an_old_cluster_has_a_classic_container_first_that_ends_with_a_jobs_application() -> None:
    original = pod("imagenet", restartPolicy="Never", initContainers=[])
    result = injected(original, CLASSIC)
    own = result["spec"]["containers"][0]
    assert own["name"] == "raycache-sidecar"
    assert "restartPolicy" not in own
    assert own["lifecycle"]["postStart"]["exec"]["command"][:3] == ["raycache", "sidecar", "--check"]
    assert result["spec"]["shareProcessNamespace"] is True
    assert env(own)["RAYCACHE_END_WITH_APPLICATION"] == "1"


def test_a_deployments_pod_does_not_end_and_shares_no_processes() -> None:
    result = injected(pod("imagenet", restartPolicy="Always", initContainers=[]), CLASSIC)
    assert "shareProcessNamespace" not in result["spec"]
    assert "RAYCACHE_END_WITH_APPLICATION" not in env(sidecar(result))


@pytest.mark.parametrize(
    "spec",
    [
        {},  # an init container reads the data
        {"initContainers": [], "restartPolicy": "Never", "shareProcessNamespace": False},
        {"initContainers": [], "restartPolicy": "OnFailure", "hostPID": True},
    ],
)
def test_what_an_old_cluster_cannot_do_is_refused(spec: dict[str, Any]) -> None:
    assert inject(pod("imagenet", **spec), CATALOG, CLASSIC).refusal
    assert not inject(pod("imagenet", **spec), CATALOG, POLICY).refusal


def test_called_again_it_changes_nothing() -> None:
    once = injected(pod("imagenet", annotation="models:/m"))
    assert inject(once, CATALOG, POLICY).operations == []


def test_what_another_webhook_did_to_the_sidecar_stays() -> None:
    once = injected(pod("imagenet"))
    once["spec"]["initContainers"][0] |= {"image": "mirror/raycache:1", "imagePullPolicy": "IfNotPresent"}
    assert inject(once, CATALOG, POLICY).operations == []


def test_a_container_that_another_webhook_added_sees_the_data_too() -> None:
    once = injected(pod("imagenet", annotation="models:/m"))
    late = {"name": "late", "image": "x", "volumeMounts": [{"name": "v0", "mountPath": "/d"}]}
    once["spec"]["initContainers"].insert(0, late)
    twice = patched(once, inject(once, CATALOG, POLICY))
    assert [one["name"] for one in twice["spec"]["initContainers"]] == ["raycache-sidecar", "late", "prepare"]
    mounts = twice["spec"]["initContainers"][1]["volumeMounts"]
    assert [one["mountPropagation"] for one in mounts] == ["HostToContainer", "HostToContainer"]
    assert inject(twice, CATALOG, POLICY).operations == []


def test_a_volume_that_another_webhook_added_is_shown_by_the_same_sidecar() -> None:
    once = injected(pod("imagenet"))
    once["spec"]["volumes"].append({"name": "more", "persistentVolumeClaim": {"claimName": "models"}})
    twice = patched(once, inject(once, CATALOG, POLICY))
    assert env(sidecar(twice))["RAYCACHE_DATASETS"].endswith(",models=/raycache/volumes/more")
    assert inject(twice, CATALOG, POLICY).operations == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"image": " "},
        {"cache_address": ""},
        {"profile": "device"},
        {"device": "example.com/fuse"},
        {"tls_client": True},
        {"cache_bytes": 0},
        {"token_secret": "Not A Name"},
    ],
)
def test_a_policy_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        replace(POLICY, **wrong)
