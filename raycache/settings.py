"""The only reader of `os.environ`. Everything else is handed a `Settings`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

NAMESPACE = "raycache"
"""Ray namespace of raycache's actors, and the GCS key-value namespace of its state."""


@dataclass(frozen=True)
class Settings:
    """Process-wide settings, from the environment.

    Args:
        address: `RAYCACHE_ADDRESS`: comma-separated `host:port` of workers' Flight servers; "" asks Ray.
        token: `RAYCACHE_TOKEN`: bearer token of the data plane. Kept out of `repr`.
        ray_token: the token of Ray's own processes, found as Ray does: `RAY_AUTH_TOKEN`, the file
            `RAY_AUTH_TOKEN_PATH`, `~/.ray/auth_token`; "" unless `RAY_AUTH_MODE` is `token`. Kept out of `repr`.
        ray_address: `RAY_ADDRESS`: Ray cluster to connect to.
        cache_dir: `RAYCACHE_CACHE_DIR`: directory of an embedded store (no cluster).
        state_dir: `$XDG_STATE_HOME/raycache` (XDG Base Directory Specification), for what outlives a command.
        cache_home: `$XDG_CACHE_HOME/raycache` (the same), where a mount without a cluster caches unless told otherwise.
        runtime_dir: `$XDG_RUNTIME_DIR` (the same), for what ends with the session; "" where there is none.
        log_level: `RAYCACHE_LOG_LEVEL`.
    """

    address: str = ""
    token: str = field(default="", repr=False)
    ray_token: str = field(default="", repr=False)
    ray_address: str = ""
    cache_dir: str = ""
    state_dir: str = ""
    cache_home: str = ""
    runtime_dir: str = ""
    log_level: str = "WARNING"

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Settings as the environment gives them."""
        return cls(
            address=environ.get("RAYCACHE_ADDRESS", ""),
            token=environ.get("RAYCACHE_TOKEN", ""),
            ray_token=_ray_token(environ),
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
        )


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
