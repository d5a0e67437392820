"""AdmissionReview (admission.k8s.io/v1), in and out.

https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from raycache.errors import SpecError
from raycache.webhook.inject import Decision, inject
from raycache.webhook.policy import Policy

API_VERSION = "admission.k8s.io/v1"
_MOST_WARNING = 256
"""Characters of a warning; Kubernetes asks for few, and cuts what all of them together have above 4096."""


def review(body: bytes, catalog: Mapping[str, str], policy: Policy) -> dict[str, Any]:
    """The answer to an AdmissionReview.

    Args:
        body: the request's body, JSON.
        catalog: as for `inject`.
        policy: as for `inject`.

    Raises:
        SpecError: it is no AdmissionReview that could be answered. One about a malformed pod is: the pod is refused.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise SpecError("the body is not JSON") from None
    request = asked.get("request") if isinstance(asked, dict) else None
    if not isinstance(asked, dict) or asked.get("kind") != "AdmissionReview" or not isinstance(request, dict):
        raise SpecError("the body is no AdmissionReview")
    if asked.get("apiVersion") != API_VERSION:
        raise SpecError(f"only AdmissionReview of {API_VERSION} is understood")
    uid = request.get("uid")
    if not isinstance(uid, str) or not uid:
        raise SpecError("must be a string", where="request.uid")
    return {
        "apiVersion": API_VERSION,
        "kind": "AdmissionReview",
        "response": _response(request, uid, catalog, policy),
    }


def _response(
    request: dict[str, Any], uid: str, catalog: Mapping[str, str], policy: Policy
) -> dict[str, Any]:
    kind = request.get("kind")
    if request.get("operation") != "CREATE" or kind != {"group": "", "version": "v1", "kind": "Pod"}:
        return {
            "uid": uid,
            "allowed": True,
        }  # not asked for by the registration; and not the webhook's matter
    try:
        decision = inject(request.get("object"), catalog, policy)
    except RecursionError:
        decision = Decision(refusal="raycache: the pod is nested too deeply")
    answer: dict[str, Any] = {"uid": uid, "allowed": not decision.refusal}
    if decision.refusal:
        answer["status"] = {"code": 403, "reason": "Forbidden", "message": decision.refusal}
    if decision.warnings:
        answer["warnings"] = [warning[:_MOST_WARNING] for warning in decision.warnings]
    if decision.operations:
        answer["patchType"] = "JSONPatch"
        answer["patch"] = base64.b64encode(json.dumps(decision.operations).encode()).decode()
    return answer
