"""Roles, policies and temporary credentials, as on AWS: moto plays S3, IAM and STS, which SeaweedFS does not have."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from raycache.errors import AccessDeniedError, BucketNotFoundError, ObjectNotFoundError
from raycache.ufs import Backoff, UnderStore, open_store
from tests.support.motoserver import moto_server

BODY = b"bytes that only the role may read"
IMPATIENT = Backoff(deadline_s=0.05, base_s=0.001, cap_s=0.01)
TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}],
}
READ = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": "*"}],
}
NOTHING = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": ["sts:AssumeRole"], "Resource": "*"}],
}


class Aws:
    """A bucket `data` with one object, roles `reader` and `stranger`, and a user who may take them on.

    Args:
        endpoint: of moto.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.post("reset")
        self.post("reset-auth", "1000000")
        made: dict[str, Any] = {
            "endpoint_url": endpoint,
            "aws_access_key_id": "setup",
            "aws_secret_access_key": "setup",
        }
        once = Config(request_checksum_calculation="when_required")
        s3 = boto3.client("s3", region_name="us-east-1", config=once, **made)
        iam = boto3.client("iam", region_name="us-east-1", **made)
        s3.create_bucket(Bucket="data")
        s3.put_object(Bucket="data", Key="dir/a", Body=BODY)
        s3.create_bucket(Bucket="empty")
        self.roles = {
            name: self._role(iam, name, policy) for name, policy in (("reader", READ), ("stranger", NOTHING))
        }
        iam.create_user(UserName="user")
        iam.put_user_policy(UserName="user", PolicyName="p", PolicyDocument=json.dumps(NOTHING))
        self.key = iam.create_access_key(UserName="user")["AccessKey"]
        for client in (s3, iam):
            client.close()
        self.post("reset-auth", "0")  # from now on every request must be allowed by a policy

    def post(self, action: str, body: str = "") -> None:
        """Tell moto itself something."""
        request = urllib.request.Request(
            f"{self.endpoint}/moto-api/{action}", body.encode(), {"Content-Type": "text/plain"}, method="POST"
        )
        urllib.request.urlopen(request).close()

    @staticmethod
    def _role(iam: Any, name: str, policy: dict[str, Any]) -> str:
        arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(TRUST))["Role"]["Arn"]
        iam.put_role_policy(RoleName=name, PolicyName="p", PolicyDocument=json.dumps(policy))
        return str(arn)


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The endpoint of a moto server."""
    with moto_server() as endpoint:
        yield endpoint


@pytest.fixture
def aws(moto: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", moto)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    aws = Aws(moto)
    yield aws
    aws.post("reset-auth", "1000000")


def opened(aws: Aws, uri: str = "s3://data", **options: str) -> UnderStore:
    return open_store(uri, {"endpoint": aws.endpoint} | options, backoff=IMPATIENT)


def profile(aws: Aws, path: Path, role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile `job` of ~/.aws/config that takes a role on with the user's keys."""
    path.write_text(
        f"[profile user]\naws_access_key_id = {aws.key['AccessKeyId']}\n"
        f"aws_secret_access_key = {aws.key['SecretAccessKey']}\n"
        f"[profile job]\nrole_arn = {aws.roles[role]}\nsource_profile = user\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(path))


def test_a_profile_with_a_role_reads_with_the_roles_session(
    aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile(aws, tmp_path / "config", "reader", monkeypatch)
    store = opened(aws, "s3://data/dir", profile="job")
    assert store.check()
    info = store.head("a")
    assert bytes(store.read("a", 0, info.size, info)) == BODY
    with pytest.raises(ObjectNotFoundError):
        store.head("nothing")
    store.close()


def test_a_pods_web_identity_is_a_role_too(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aws.post(
        "reset-auth", "1000000"
    )  # moto would have the exchange of the token signed, which nobody can yet
    (tmp_path / "token").write_text("token.of.the-pod")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", aws.roles["reader"])
    store = opened(aws)
    assert [info.key for info in store.walk("")] == ["dir/a"]
    store.close()


def test_a_role_that_may_not_read_is_refused_and_told_what_to_allow(
    aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile(aws, tmp_path / "config", "stranger", monkeypatch)
    store = opened(aws, profile="job")
    for call in (store.check, lambda: store.head("dir/a"), lambda: store.list("")):
        with pytest.raises(AccessDeniedError, match="list and read the bucket") as caught:
            call()
        assert aws.key["SecretAccessKey"] not in str(caught.value)
    store.close()


def test_a_session_without_its_token_is_refused(aws: Aws) -> None:
    sts = boto3.client(
        "sts",
        endpoint_url=aws.endpoint,
        region_name="us-east-1",
        aws_access_key_id=aws.key["AccessKeyId"],
        aws_secret_access_key=aws.key["SecretAccessKey"],
    )
    session = sts.assume_role(RoleArn=aws.roles["reader"], RoleSessionName="session")["Credentials"]
    sts.close()
    keys = {"access_key_id": session["AccessKeyId"], "secret_access_key": session["SecretAccessKey"]}
    store = opened(aws, **keys, session_token=session["SessionToken"])
    assert store.check()
    store.close()
    store = opened(aws, **keys | {"session_token": "of another session"})
    with pytest.raises(AccessDeniedError):
        store.check()
    store.close()


def test_a_bucket_that_is_missing_and_one_that_is_empty(
    aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile(aws, tmp_path / "config", "reader", monkeypatch)
    for uri, found in (("s3://empty", False), ("s3://data/dri", False), ("s3://data/dir", True)):
        store = opened(aws, uri, profile="job")
        assert store.check() is found, uri
        store.close()
    store = opened(aws, "s3://no-such-bucket", profile="job")
    with pytest.raises(BucketNotFoundError, match="no-such-bucket"):
        store.check()
    store.close()


def test_a_profile_that_does_not_exist_says_so(aws: Aws) -> None:
    with pytest.raises(AccessDeniedError, match="ProfileNotFound"):
        opened(aws, profile="nobody")
