"""Signed tokens: what is made here is accepted until its end, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest

from raycache.access import SigningKeys, TokenClaims
from raycache.access.tokens import ISSUER, LEEWAY_S, MAX_TTL_S
from raycache.errors import AccessDeniedError, RaycacheError, SpecError

READ = TokenClaims(("a", "b"), ("read",), 3600.0, "ci")


@pytest.fixture
def keys() -> SigningKeys:
    return SigningKeys.fresh(0.0)


def secret_of(keys: SigningKeys) -> str:
    return str(keys.to_wire()["keys"][-1][1])


def test_a_token_allows_what_was_asked_for(keys: SigningKeys) -> None:
    caller = keys.check(keys.issue(READ))
    assert caller.may("read", ["a"])
    assert caller.may("read", ["a", "b"])
    assert not caller.may("read", ["a", "c"])
    assert not caller.may("invalidate", ["a"])
    assert not caller.internal


def test_every_dataset(keys: SigningKeys) -> None:
    caller = keys.check(keys.issue(TokenClaims(("*",), ("read", "invalidate"), 60.0)))
    assert caller.may("invalidate", ["whatever"])
    assert not caller.internal


def test_two_tokens_are_two_callers(keys: SigningKeys) -> None:
    assert keys.check(keys.issue(READ)).name != keys.check(keys.issue(READ)).name


@pytest.mark.parametrize(
    "claims",
    [
        ((), ("read",), 60.0),
        (("a",), (), 60.0),
        (("a",), ("write",), 60.0),
        (("a", "*"), ("read",), 60.0),
        (("a",), ("read",), 0.0),
        (("a",), ("read",), -1.0),
        (("a",), ("read",), MAX_TTL_S + 1),
        (("a",), ("read",), float("nan")),
        (("a",), ("read",), float("inf")),
    ],
)
def test_what_cannot_be_in_a_token_is_said(claims: Any) -> None:
    with pytest.raises(SpecError):
        TokenClaims(*claims)


def test_it_ends(keys: SigningKeys) -> None:
    import time

    past = time.time() - 3600.0 - 2 * LEEWAY_S
    with pytest.raises(AccessDeniedError, match="expired"):
        keys.check(keys.issue(READ, clock=lambda: past))


def test_keys_change_without_a_pause_and_old_ones_can_be_dropped(keys: SigningKeys) -> None:
    old = keys.issue(READ)
    both = keys.rotated(1.0)
    new = both.issue(READ)
    assert both.check(old)
    assert both.check(new)
    only = both.without(keys.current)
    assert only.check(new)
    with pytest.raises(AccessDeniedError, match="no longer"):
        only.check(old)
    with pytest.raises(AccessDeniedError):
        both.rotated(2.0, revoke=True).check(new)


def test_the_key_that_signs_cannot_be_dropped(keys: SigningKeys) -> None:
    with pytest.raises(SpecError, match="signs"):
        keys.without(keys.current)
    with pytest.raises(SpecError, match="no such key"):
        keys.without("ffff")


def test_keys_outlive_the_coordinator_and_damage_is_noticed(keys: SigningKeys) -> None:
    stored = json.loads(json.dumps(keys.rotated(5.0).to_wire()))
    again = SigningKeys.from_wire(stored)
    assert again.check(keys.issue(READ))
    assert list(again.ages.values()) == [0.0, 5.0]
    for damaged in ({}, {"audience": "x", "keys": []}, {"audience": "x", "keys": [["id"]]}):
        with pytest.raises(RaycacheError, match="damaged"):
            SigningKeys.from_wire(damaged)


def _forged(
    change: Callable[[dict[str, Any], dict[str, Any]], None], keys: SigningKeys, secret: str = ""
) -> str:
    header = {"kid": keys.current}
    claims: dict[str, Any] = jwt.decode(keys.issue(READ), options={"verify_signature": False})
    change(header, claims)
    return jwt.encode(claims, secret or secret_of(keys), headers=header)


FORGERIES: dict[str, Callable[[SigningKeys], str]] = {
    "another secret": lambda keys: _forged(lambda h, c: None, keys, "x" * 43),
    "another cluster": lambda keys: _forged(lambda h, c: c.update(aud="other"), keys),
    "another issuer": lambda keys: _forged(lambda h, c: c.update(iss="other"), keys),
    "no end": lambda keys: _forged(lambda h, c: c.pop("exp"), keys),
    "no audience": lambda keys: _forged(lambda h, c: c.pop("aud"), keys),
    "no id": lambda keys: _forged(lambda h, c: c.pop("jti"), keys),
    "datasets of a wrong kind": lambda keys: _forged(lambda h, c: c.update(datasets="a"), keys),
    "no datasets": lambda keys: _forged(lambda h, c: c.pop("datasets"), keys),
    "verbs of a wrong kind": lambda keys: _forged(lambda h, c: c.update(verbs=[1]), keys),
    "an unknown key": lambda keys: _forged(lambda h, c: h.update(kid="zz"), keys),
    "made in the future": lambda keys: _forged(lambda h, c: c.update(iat=c["exp"] + 9999), keys),
    "no signature": lambda keys: jwt.encode(
        {"iss": ISSUER, "aud": keys.audience, "datasets": ["a"]}, None, "none", headers={"kid": keys.current}
    ),
    "a signature cut off": lambda keys: keys.issue(READ).rpartition(".")[0] + ".",
    "another's claims": lambda keys: ".".join(
        (
            keys.issue(READ).split(".")[0],
            keys.issue(TokenClaims(("*",), ("read",), 9.0)).split(".")[1],
            keys.issue(READ).split(".")[2],
        )
    ),
    "no token": lambda keys: "",
    "two dots": lambda keys: "..",
    "rubbish": lambda keys: "a.b.c",
    "very long": lambda keys: "a" * 100_000 + ".b.c",
}


@pytest.mark.parametrize("how", FORGERIES)
def test_what_was_not_made_here_is_refused(keys: SigningKeys, how: str) -> None:
    with pytest.raises(AccessDeniedError, match="refused") as caught:
        keys.check(FORGERIES[how](keys))
    assert secret_of(keys) not in str(caught.value)


def test_one_that_is_changed_anywhere_is_refused(keys: SigningKeys) -> None:
    token = keys.issue(READ)
    signed = token.rindex(".") + 1
    # The last character of the signature holds bits that mean nothing (base64 of 32 bytes).
    for place in [*range(0, signed - 1, 7), *range(signed, len(token) - 1, 5)]:
        if token[place] == ".":
            continue
        other = "A" if token[place] != "A" else "B"
        with pytest.raises(AccessDeniedError):
            keys.check(token[:place] + other + token[place + 1 :])
