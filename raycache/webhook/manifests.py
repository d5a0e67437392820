"""What is applied to a Kubernetes cluster to have the webhook there."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from raycache.errors import SpecError
from raycache.spec.kubernames import check_namespace
from raycache.webhook.server import HEALTH, PATH
from raycache.webhook.wishes import ARTICLE_LABEL, FLUID_LABEL, LABEL

NAME = "raycache-webhook"
SPECS = "raycache-datasets"
"""ConfigMap with the datasets' specs."""
_PORT = 8443
_LABELS = {"app.kubernetes.io/name": NAME}
_TIMEOUT_S = 10
_UID = 65532


def manifests(
    namespace: str, image: str, arguments: Sequence[str], ca_bundle: bytes | None = None
) -> list[dict[str, Any]]:
    """Kubernetes objects that run the webhook and register it.

    There is no RBAC: the webhook asks the API server for nothing, and its account has no token.

    Args:
        namespace: where it runs.
        image: image that has raycache.
        arguments: options of `raycache webhook` other than those for files and ports.
        ca_bundle: certificates, PEM, of the authority of the certificate in the Secret `raycache-webhook`, which is
            then the operator's to make and to renew. Without them cert-manager makes it.

    Raises:
        SpecError: `namespace` is not a name, or `ca_bundle` holds no certificate.
    """
    check_namespace(namespace)
    if ca_bundle is not None and b"-----BEGIN CERTIFICATE-----" not in ca_bundle:
        raise SpecError("there is no certificate in it", where="--ca-bundle", hint="it must be a PEM file")
    made = [
        _object("v1", "ServiceAccount", namespace, automountServiceAccountToken=False),
        _object(
            "v1",
            "Service",
            namespace,
            spec={"selector": _LABELS, "ports": [{"port": 443, "targetPort": _PORT, "name": "https"}]},
        ),
        _deployment(namespace, image, arguments),
        _object(
            "policy/v1",
            "PodDisruptionBudget",
            namespace,
            spec={"minAvailable": 1, "selector": {"matchLabels": _LABELS}},
        ),
    ]
    if ca_bundle is None:
        made += _certificate(namespace)
    return [*made, _registration(namespace, ca_bundle)]


def _object(api_version: str, kind: str, namespace: str, **rest: Any) -> dict[str, Any]:
    metadata = {"name": NAME, "namespace": namespace, "labels": dict(_LABELS)}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **rest}


def _deployment(namespace: str, image: str, arguments: Sequence[str]) -> dict[str, Any]:
    health = {"httpGet": {"path": HEALTH, "port": _PORT, "scheme": "HTTPS"}}
    container = {
        "name": "webhook",
        "image": image,
        "command": ["raycache", "webhook"],
        "args": [
            "--port",
            str(_PORT),
            "--cert",
            "/etc/webhook/tls/tls.crt",
            "--key",
            "/etc/webhook/tls/tls.key",
            "--specs",
            "/etc/webhook/datasets",
            *arguments,
        ],
        "ports": [{"containerPort": _PORT, "name": "https"}],
        "readinessProbe": health,
        "livenessProbe": health | {"initialDelaySeconds": 10, "periodSeconds": 20},
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [
            {"name": "tls", "mountPath": "/etc/webhook/tls", "readOnly": True},
            {"name": "datasets", "mountPath": "/etc/webhook/datasets", "readOnly": True},
        ],
    }
    pod = {
        "serviceAccountName": NAME,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _UID,
            "fsGroup": _UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "tls", "secret": {"secretName": NAME, "defaultMode": 0o440}},
            {"name": "datasets", "configMap": {"name": SPECS}},
        ],
    }
    template = {"metadata": {"labels": dict(_LABELS)}, "spec": pod}
    spec = {"replicas": 2, "selector": {"matchLabels": dict(_LABELS)}, "template": template}
    return _object("apps/v1", "Deployment", namespace, spec=spec)


def _certificate(namespace: str) -> list[dict[str, Any]]:
    names = [f"{NAME}.{namespace}.svc", f"{NAME}.{namespace}.svc.cluster.local"]
    certificate = {"secretName": NAME, "dnsNames": names, "issuerRef": {"name": NAME, "kind": "Issuer"}}
    return [
        _object("cert-manager.io/v1", "Issuer", namespace, spec={"selfSigned": {}}),
        _object("cert-manager.io/v1", "Certificate", namespace, spec=certificate),
    ]


def _registration(namespace: str, ca_bundle: bytes | None) -> dict[str, Any]:
    client: dict[str, Any] = {"service": {"name": NAME, "namespace": namespace, "path": PATH, "port": 443}}
    metadata: dict[str, Any] = {"name": NAME, "labels": dict(_LABELS)}
    if ca_bundle is None:
        metadata["annotations"] = {"cert-manager.io/inject-ca-from": f"{namespace}/{NAME}"}
    else:
        client["caBundle"] = base64.b64encode(ca_bundle).decode()
    # One each, of which one at most is called for a pod.
    selectors = {
        "inject": [_in(LABEL, "true")],
        "fluid": [_in(FLUID_LABEL, "true"), _absent(LABEL)],
        "eci": [_in(ARTICLE_LABEL, "eci"), _not_in(FLUID_LABEL, "true"), _absent(LABEL)],
    }
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": metadata,
        "webhooks": [
            {
                "name": f"{name}.webhook.raycache.io",
                "admissionReviewVersions": ["v1"],
                "clientConfig": client,
                # A pod that asks for data and gets an empty directory is worse than one that is not there.
                "failurePolicy": "Fail",
                "matchPolicy": "Equivalent",
                "namespaceSelector": {
                    "matchExpressions": [_not_in("kubernetes.io/metadata.name", "kube-system", namespace)]
                },
                "objectSelector": {"matchExpressions": expressions},
                "reinvocationPolicy": "IfNeeded",
                "rules": [
                    {
                        "apiGroups": [""],
                        "apiVersions": ["v1"],
                        "operations": ["CREATE"],
                        "resources": ["pods"],
                        "scope": "Namespaced",
                    }
                ],
                "sideEffects": "None",
                "timeoutSeconds": _TIMEOUT_S,
            }
            for name, expressions in selectors.items()
        ],
    }


def _in(key: str, *values: str) -> dict[str, Any]:
    return {"key": key, "operator": "In", "values": list(values)}


def _not_in(key: str, *values: str) -> dict[str, Any]:
    return {"key": key, "operator": "NotIn", "values": list(values)}


def _absent(key: str) -> dict[str, Any]:
    return {"key": key, "operator": "DoesNotExist"}
