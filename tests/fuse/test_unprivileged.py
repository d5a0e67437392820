"""Mounting as a user who may not mount: through fusermount3. Run by root, who becomes nobody for it.

/dev/fuse may be root's alone on this machine (udev would open it to all), so it happens in a mount namespace with a
device that is everybody's. Nobody may not run this test's Python (it may be in root's home), so the system's does,
without any package: that also shows that supervisor and device need none.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import raycache
from raycache import mountinfo
from raycache.fuse import device
from tests.fuse.conftest import STUB, processes_of
from tests.support.waiting import until

PYTHON = "/usr/bin/python3"


def _why_not() -> str:
    helper = shutil.which("fusermount3")
    if os.geteuid():
        return "needs root, to become somebody else"
    if helper is None or not Path(helper).stat().st_mode & stat.S_ISUID:
        return "there is no setuid fusermount3"
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return "there is no unshare, or no nsenter (util-linux)"
    if not Path(PYTHON).exists():
        return f"there is no {PYTHON} that everybody may run"
    asked = subprocess.run(
        [PYTHON, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True
    )
    return "" if asked.stdout == b"True\n" else f"{PYTHON} is older than 3.11"


pytestmark = pytest.mark.skipif(bool(_why_not()), reason=_why_not() or "-")


class Nobody:
    """A directory of nobody's, with a mount point and a state directory, and programs run by nobody.

    Args:
        place: the directory.
    """

    def __init__(self, place: Path) -> None:
        self.place, self.point, self.state = place, place / "mnt", place / "state"
        self.user = pwd.getpwnam("nobody")
        shutil.copytree(Path(raycache.__file__).parent, place / "code/raycache")
        shutil.copy(STUB[-1], place / "code/stub.py")
        (place / "source").write_bytes(b"some bytes")
        self.point.mkdir()
        self.state.mkdir()
        plan = {
            "mountpoint": str(self.point),
            "source": "d,s",
            "command": [PYTHON, str(place / "code/stub.py")],
        }
        (self.state / "mount.json").write_text(json.dumps(plan))
        (self.state / "config.json").write_text(json.dumps({"files": {"file": str(place / "source")}}))
        for path in (place, *place.rglob("*")):
            os.chown(path, self.user.pw_uid, self.user.pw_gid)

        # Alive as long as its input is open; the mounts go with the namespace.
        bind = 'mknod -m 666 "$0" c 10 229 && mount --bind "$0" /dev/fuse && echo ready && exec cat'
        self.keeper = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", bind, str(place / "fuse")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.keeper.stdout is not None
        assert self.keeper.stdout.readline() == b"ready\n"

    def popen(self, *arguments: str, path: str = "") -> subprocess.Popen[bytes]:
        """The system's Python as nobody, in the namespace; `path` is its PATH."""
        enter = [shutil.which("nsenter") or "", f"--mount=/proc/{self.keeper.pid}/ns/mnt"]
        enter += [f"--setuid={self.user.pw_uid}", f"--setgid={self.user.pw_gid}", "--wd=/", "--"]
        return subprocess.Popen(
            [*enter, PYTHON, *arguments],
            env={"PATH": path or os.environ["PATH"], "PYTHONPATH": str(self.place / "code")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def mounted(self) -> list[mountinfo.MountEntry]:
        """What is mounted below the directory, in the namespace."""
        table = mountinfo.parse(Path(f"/proc/{self.keeper.pid}/mountinfo").read_bytes())
        return [entry for entry in table if entry.point.startswith(f"{self.place}/")]

    def run(self, program: str) -> str:
        """What a program printed."""
        with self.popen("-c", program) as process:
            output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output.decode()
        return output.decode().strip()

    def status(self) -> dict[str, object]:
        """status.json."""
        try:
            found: dict[str, object] = json.loads((self.state / "status.json").read_text())
        except FileNotFoundError:
            return {}
        return found

    def server(self, other_than: int = 0) -> int:
        """Process id of a server that answers."""

        def found() -> int:
            details = self.status().get("details", {})
            assert isinstance(details, dict)
            return details["pid"] if details.get("pid") not in (None, other_than) else 0

        pid: int = until(found, "a server answers")
        return pid


@pytest.fixture
def nobody() -> Iterator[Nobody]:
    place = Path(tempfile.mkdtemp(prefix="raycache-nobody-", dir="/tmp"))
    one: Nobody | None = None
    try:
        one = Nobody(place)
        yield one
        assert one.mounted() == []
        assert processes_of(place) == {}
    finally:
        for pid in processes_of(place):
            os.kill(pid, signal.SIGKILL)
        if one is not None:
            one.keeper.communicate()
        shutil.rmtree(place)


def test_mounted_through_fusermount3(nobody: Nobody) -> None:
    with nobody.popen("-m", "raycache.fuse.supervisor", str(nobody.state)) as supervisor:
        try:
            server = nobody.server()
            status = nobody.status()
            assert not status["privileged"]
            assert status["readahead_kib"] == 128
            (entry,) = nobody.mounted()
            assert (entry.kind, entry.source) == (device.KIND, "d,s")
            assert f"user_id={nobody.user.pw_uid}" in entry.options
            assert "allow_other" not in entry.options
            read = f"print(open({str(nobody.point / 'file')!r}).read())"
            assert nobody.run(read) == "some bytes"
            os.kill(server, signal.SIGKILL)
            nobody.server(other_than=server)
            assert nobody.run(read) == "some bytes"
        finally:
            supervisor.terminate()
        output, _ = supervisor.communicate(timeout=60)
    assert supervisor.returncode == 0, output.decode()
    assert b"unmounted" in output


def test_unmounted_while_in_use(nobody: Nobody) -> None:
    with nobody.popen("-m", "raycache.fuse.supervisor", str(nobody.state)) as supervisor:
        nobody.server()
        program = (
            "import sys; file = open(sys.argv[1]); print(1, flush=True); sys.stdin.read(); print(file.read())"
        )
        with nobody.popen("-c", program, str(nobody.point / "file")) as reader:
            assert reader.stdout is not None
            assert reader.stdin is not None
            assert reader.stdout.readline() == b"1\n"
            supervisor.terminate()
            until(lambda: nobody.status()["state"] == "detached", "it is out of the tree")
            assert nobody.mounted() == []
            reader.stdin.close()
            assert reader.stdout.read() == b"some bytes\n"
        output, _ = supervisor.communicate(timeout=60)
    assert supervisor.returncode == 0, output.decode()


def test_a_mount_point_of_somebody_elses(nobody: Nobody) -> None:
    os.chown(nobody.point, 0, 0)
    with nobody.popen("-m", "raycache.fuse.supervisor", str(nobody.state)) as supervisor:
        output, _ = supervisor.communicate(timeout=60)
    assert supervisor.returncode == 1
    assert nobody.status()["state"] == "failed"
    assert b"fusermount3" in output
    assert "no write access" in str(nobody.status()["error"])


def test_there_is_no_fusermount3(nobody: Nobody) -> None:
    with nobody.popen("-m", "raycache.fuse.supervisor", str(nobody.state), path="/nowhere") as supervisor:
        supervisor.communicate(timeout=60)
    assert "there is no fusermount3" in str(nobody.status()["error"])


def test_passthrough_is_not_for_nobody(nobody: Nobody) -> None:
    told = nobody.run("from raycache.fuse import device; print(device.passthrough_support())")
    assert told == "Passthrough(possible=False, reason='this process does not have CAP_SYS_ADMIN')"
