"""The only reader of `os.environ`. Everything else is handed a `Settings`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

NAMESPACE = "raycache"
"""Ray namespace of raycache's actors, and the GCS key-value namespace of its state."""


@dataclass(frozen=True)
class TlsFiles:
    """PEM files for TLS of the data plane, by path.

    Args:
        ca: certificates of the authorities that others' certificates are checked against.
        cert: this process's own certificate, with its chain; "" for a client that has none.
        key: its private key.
        mutual: whether a worker accepts only callers that have a certificate of `ca`.
    """

    ca: str
    cert: str = ""
    key: str = ""
    mutual: bool = False


@dataclass(frozen=True)
class Settings:
    """Process-wide settings, from the environment.

    Args:
        address: `RAYCACHE_ADDRESS`: comma-separated `host:port` of workers' Flight servers; "" asks Ray.
        token: `RAYCACHE_TOKEN`: bearer token of the data plane. Kept out of `repr`.
        ray_token: the token of Ray's own processes, found as Ray does: `RAY_AUTH_TOKEN`, the file
            `RAY_AUTH_TOKEN_PATH`, `~/.ray/auth_token`; "" unless `RAY_AUTH_MODE` is `token`. Kept out of `repr`.
        tls: `RAYCACHE_TLS_CA`, `_CERT`, `_KEY`; without them, and with `RAY_USE_TLS=1`, Ray's own `RAY_TLS_CA_CERT`,
            `RAY_TLS_SERVER_CERT`, `RAY_TLS_SERVER_KEY`. `RAYCACHE_TLS_MUTUAL=1`: workers ask for certificates.
        ray_address: `RAY_ADDRESS`: Ray cluster to connect to.
        cache_dir: `RAYCACHE_CACHE_DIR`: directory of an embedded store (no cluster).
        state_dir: `$XDG_STATE_HOME/raycache` (XDG Base Directory Specification), for what outlives a command.
        cache_home: `$XDG_CACHE_HOME/raycache` (the same), where a mount without a cluster caches unless told otherwise.
        runtime_dir: `$XDG_RUNTIME_DIR` (the same), for what ends with the session; "" where there is none.
        log_level: `RAYCACHE_LOG_LEVEL`.
        memory_threshold: `RAY_memory_usage_threshold`: share of the memory in use above which Ray kills.
        memory_min_free: `RAY_min_memory_free_bytes`: bytes that Ray lets be used up to, if that is more; -1: not set.
        yields: `RAYCACHE_MEMORY_YIELD`: whether memory tiers shrink while others need the memory; `0`: they do not.
    """

    address: str = ""
    token: str = field(default="", repr=False)
    ray_token: str = field(default="", repr=False)
    tls: TlsFiles | None = None
    ray_address: str = ""
    cache_dir: str = ""
    state_dir: str = ""
    cache_home: str = ""
    runtime_dir: str = ""
    log_level: str = "WARNING"
    memory_threshold: float = 0.95
    memory_min_free: int = -1
    yields: bool = True

    @property
    def ray_tokens(self) -> tuple[str, ...]:
        """The token of Ray's own processes, if they have one."""
        return (self.ray_token,) if self.ray_token else ()

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Settings as the environment gives them."""
        return cls(
            address=environ.get("RAYCACHE_ADDRESS", ""),
            token=environ.get("RAYCACHE_TOKEN", ""),
            ray_token=_ray_token(environ),
            tls=_tls(environ),
            ray_address=environ.get("RAY_ADDRESS", ""),
            cache_dir=environ.get("RAYCACHE_CACHE_DIR", ""),
            state_dir=os.path.join(
                environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "raycache"
            ),
            cache_home=os.path.join(
                environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "raycache"
            ),
            runtime_dir=environ.get("XDG_RUNTIME_DIR", ""),
            log_level=environ.get("RAYCACHE_LOG_LEVEL", "WARNING").upper(),
            memory_threshold=_number(environ, "RAY_memory_usage_threshold", 0.95),
            memory_min_free=int(_number(environ, "RAY_min_memory_free_bytes", -1)),
            yields=environ.get("RAYCACHE_MEMORY_YIELD", "1") != "0",
        )


def _number(environ: Mapping[str, str], name: str, otherwise: float) -> float:
    """A number that is meant for Ray, which itself refuses to start with one it cannot read."""
    try:
        return float(environ.get(name, otherwise))
    except ValueError:
        return otherwise


def _tls(environ: Mapping[str, str]) -> TlsFiles | None:
    if environ.get("RAYCACHE_TLS_CA"):
        names = ("RAYCACHE_TLS_CA", "RAYCACHE_TLS_CERT", "RAYCACHE_TLS_KEY")
    elif environ.get("RAY_USE_TLS", "").lower() in ("1", "true"):
        names = ("RAY_TLS_CA_CERT", "RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY")
    else:
        return None
    ca, cert, key = (environ.get(name, "") for name in names)
    return TlsFiles(ca, cert, key, mutual=environ.get("RAYCACHE_TLS_MUTUAL", "") == "1")


def _ray_token(environ: Mapping[str, str]) -> str:
    if environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return ""
    given = environ.get("RAY_AUTH_TOKEN", "").strip()
    if given:
        return given
    path = environ.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError):
        return ""  # then Ray has none either, and says so itself
