"""Signed tokens for callers outside the Ray cluster, and the keys that sign them.

A token is a JSON Web Token (RFC 7519), HS256 (RFC 7518, section 3.2), whose header names the key (`kid`). Its claims
are the registered `iss`, `aud` (the cluster), `iat`, `exp` and `jti`, and `datasets` and `verbs`. Several keys may be
valid at a time: the newest signs, and the others stay until they are dropped, so that keys change without a pause. A
token ends with its time, or with its key.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import jwt

from raycache.access.callers import VERBS, Caller, Verb
from raycache.errors import AccessDeniedError, RaycacheError, SpecError

ISSUER = "raycache"
ALGORITHM = "HS256"

KEY_BYTES = 32
"""Length of a key: that of the hash (RFC 7518, section 3.2, asks for at least as much)."""

LEEWAY_S = 30
"""Seconds by which the clocks of two machines may differ."""

MAX_TTL_S = 366 * 24 * 3600.0
"""Longest life of a token: one that never ends is one that nobody remembers."""

MAX_TOKEN = 8 * 1024
"""Characters of the longest token that is looked at: all headers of a call together are not longer (gRPC's default)."""

EVERY = "*"
"""In a token's `datasets`: every dataset, also those that come later."""


@dataclass(frozen=True)
class TokenClaims:
    """What is to be in a token.

    Args:
        datasets: names; `EVERY` alone is every dataset.
        verbs: what it allows.
        ttl_s: seconds until it ends.
        name: whom it is for; shown in workers' logs.
    """

    datasets: tuple[str, ...]
    verbs: tuple[Verb, ...]
    ttl_s: float
    name: str = ""

    def __post_init__(self) -> None:
        if not self.datasets:
            raise SpecError("a token needs a dataset", hint=f"name one, or {EVERY!r} for all")
        if EVERY in self.datasets and len(self.datasets) > 1:
            raise SpecError(f"{EVERY!r} is every dataset", hint="name no other beside it")
        unknown = [verb for verb in self.verbs if verb not in VERBS]
        if unknown or not self.verbs:
            raise SpecError(
                f"no verb {unknown[0]!r}" if unknown else "a token needs a verb",
                hint="verbs are " + ", ".join(VERBS),
            )
        if not 0 < self.ttl_s <= MAX_TTL_S:
            raise SpecError(
                "a token must end, and within a year", where=f"{self.ttl_s:g} s", hint="write 24h, or 30d"
            )


@dataclass(frozen=True)
class _Key:
    secret: str
    created: float


@dataclass(frozen=True)
class SigningKeys:
    """The keys of a cluster. A value: changes make another one.

    Args:
        audience: the cluster's own name: a token of another one is refused, even if a key was copied.
        keys: by id, oldest first; the last one signs.
    """

    audience: str
    keys: Mapping[str, _Key]

    @classmethod
    def fresh(cls, now: float) -> Self:
        """A cluster's first key. `now`: seconds since the epoch."""
        return cls(secrets.token_hex(8), {}).rotated(now)

    def rotated(self, now: float, revoke: bool = False) -> Self:
        """The keys with a new one, which signs from now on.

        Args:
            now: seconds since the epoch.
            revoke: drop all others, and with them every token that they signed.
        """
        key = _Key(secrets.token_urlsafe(KEY_BYTES), now)
        kept = {} if revoke else dict(self.keys)
        return replace(self, keys={**kept, secrets.token_hex(4): key})

    def without(self, key_id: str) -> Self:
        """The keys without one of the older ones.

        Raises:
            SpecError: there is none of that id, or it is the one that signs.
        """
        if key_id not in self.keys:
            raise SpecError("no such key", where=key_id, hint="see `raycache token keys`")
        if key_id == self.current:
            raise SpecError(
                "this key signs new tokens", where=key_id, hint="`raycache token rotate` makes another"
            )
        return replace(self, keys={id: key for id, key in self.keys.items() if id != key_id})

    @property
    def current(self) -> str:
        """Id of the key that signs."""
        return list(self.keys)[-1]

    @property
    def ages(self) -> dict[str, float]:
        """When each key was made, seconds since the epoch, by its id; oldest first."""
        return {key_id: key.created for key_id, key in self.keys.items()}

    def issue(self, claims: TokenClaims, clock: Callable[[], float] = time.time) -> str:
        """A token that allows what `claims` says."""
        now = int(clock())
        payload = {
            "iss": ISSUER,
            "aud": self.audience,
            "iat": now,
            "exp": now + int(max(1.0, claims.ttl_s)),
            "jti": secrets.token_hex(8),
            "sub": claims.name,
            "datasets": list(claims.datasets),
            "verbs": list(claims.verbs),
        }
        headers = {"kid": self.current}
        return jwt.encode(payload, self.keys[self.current].secret, algorithm=ALGORITHM, headers=headers)

    def knows(self, token: str) -> bool:
        """Whether the key that a token names is among these; nothing of the token is checked."""
        return _key_id(token) in self.keys

    def check(self, token: str) -> Caller:
        """Who presents a token.

        Raises:
            AccessDeniedError: it is not a token of this cluster, or not valid (any more). Says no more than that
                to whoever may be trying.
        """
        key = self.keys.get(_key_id(token))
        if key is None:
            raise _refused("its key is not, or no longer, one of this cluster's")
        try:
            claims = jwt.decode(
                token,
                key.secret,
                algorithms=[ALGORITHM],
                audience=self.audience,
                issuer=ISSUER,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iat", "jti", "aud", "iss"]},
            )
            return _caller(claims)
        except jwt.ExpiredSignatureError:
            raise _refused("it has expired") from None
        except (jwt.InvalidTokenError, TypeError, KeyError, ValueError):
            raise _refused("it is not valid") from None

    def to_wire(self) -> dict[str, Any]:
        """Plain data WITH the secrets, for the cluster's store."""
        keys = [[key_id, key.secret, key.created] for key_id, key in self.keys.items()]
        return {"audience": self.audience, "keys": keys}

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> Self:
        """The keys that `to_wire` described. Raises RaycacheError if it is none."""
        try:
            keys = {str(id): _Key(str(secret), float(created)) for id, secret, created in data["keys"]}
            if not keys:
                raise ValueError
            return cls(str(data["audience"]), keys)
        except (KeyError, TypeError, ValueError):
            raise RaycacheError("what was kept of the cluster's signing keys is damaged") from None


def _key_id(token: str) -> str:
    if len(token) > MAX_TOKEN:
        return ""
    try:
        return str(jwt.get_unverified_header(token).get("kid", ""))
    except jwt.InvalidTokenError:
        return ""


def _caller(claims: Mapping[str, Any]) -> Caller:
    datasets, verbs = _texts(claims["datasets"]), _texts(claims["verbs"])
    return Caller(
        str(claims["jti"]),
        None if EVERY in datasets else frozenset(datasets),
        frozenset(verb for verb in VERBS if verb in verbs),
    )


def _texts(value: Collection[Any]) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError
    return value


def _refused(why: str) -> AccessDeniedError:
    return AccessDeniedError(f"the token is refused: {why}", hint="`raycache token create` makes another one")
