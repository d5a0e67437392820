"""Names of mount options: the ones raycache has, the ones Fluid's users know, and which of them are secret.

One setting has many spellings (`accessKeyId`, `fs.oss.accessKeyId`, `aws.accessKeyId`, `minio-access-key`). Each is a
prefix that names a product, and a name; both are compared without case and punctuation. A name that is not known
here is passed through as it is written, for the store's client to understand.
"""

from __future__ import annotations

import re

# Longest first: "fs.s3a.endpoint" must not lose only "fs.s3".
_PREFIX = re.compile(
    r"(?:alluxio\.underfs\.(?:s3a|s3|oss|cos|obs|gcs)|alluxio\.underfs|fs\.(?:s3a|s3n|s3|oss|cosn|cos|obs|tos)"
    r"|aws|s3a|s3|oss|cosn|cos|obs|tos|minio|goosefs\.underfs\.(?:cosn|s3))[.\-_]",
    re.IGNORECASE,
)

_CANONICAL = {
    "endpoint": "endpoint",
    "endpointurl": "endpoint",
    "miniourl": "endpoint",  # too general a word to take without its prefix
    "region": "region",
    "endpointregion": "region",
    "bucketregion": "region",
    "accesskeyid": "access_key_id",
    "accesskey": "access_key_id",
    "userinfosecretid": "access_key_id",  # fs.cosn.userinfo.secretId
    "secretaccesskey": "secret_access_key",
    "accesskeysecret": "secret_access_key",
    "accesssecret": "secret_access_key",  # minio-access-secret
    "secretkey": "secret_access_key",
    "userinfosecretkey": "secret_access_key",
    "sessiontoken": "session_token",
    "securitytoken": "session_token",
    "anonymous": "anonymous",
    "pathstyle": "path_style",
    "pathstyleaccess": "path_style",
    "disablednsbuckets": "path_style",  # alluxio.underfs.s3.disable.dns.buckets
    "allowhttp": "allow_http",
    "profile": "profile",
}
# Saying the opposite of allow_http: fs.s3a.connection.ssl.enabled, alluxio.underfs.s3.secure.http.enabled.
_TLS = {"connectionsslenabled", "securehttpenabled"}
TLS = "tls"
"""Pseudo-name that `canonical` gives to an option that asks for TLS; `resolve` turns it into `allow_http`."""

FLAGS = frozenset({"anonymous", "path_style", "allow_http", TLS})
"""Canonical names whose value is `true` or `false`."""

_SECRET = frozenset({"access_key_id", "secret_access_key", "session_token"})
_SECRET_WORD = re.compile(
    r"secret|token|passw|credential|accesskey|accountkey|apikey|privatekey|sharedkey|signature|connectionstring|metaurl"
    r"|^(?:sas|key|pw|pwd)$"
)
_USERINFO = re.compile(r"://[^/\s]*@")


def canonical(name: str) -> str:
    """The one name of a mount option; a name that is not known comes back as it is.

    `"fs.oss.accessKeySecret"` and `"secretAccessKey"` are both `"secret_access_key"`.
    """
    prefix = _PREFIX.match(name)
    squashed = _squash(name[prefix.end() :] if prefix else name)
    if squashed in _TLS:
        return TLS
    return _CANONICAL.get(squashed) or _CANONICAL.get(_squash(name)) or name


def is_secret(name: str, value: str = "") -> bool:
    """Whether an option may hold a credential: by its name, or because its value is a URL with a user in it.

    Errs on the side of secrecy: an option that is shown can't be taken back.
    """
    return (
        canonical(name) in _SECRET
        or bool(_SECRET_WORD.search(_squash(name)))
        or bool(_USERINFO.search(value))
    )


def _squash(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
