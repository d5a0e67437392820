"""A server that keeps the contract of raycache/fuse/serverprocess.py and little else: a directory of flat files, for
tests of the supervisor. Its config.json:

    files   {name: path of the file with its bytes}
    fault   "" or how it misbehaves: "die", "fatal", "mute" at its start; "die-later" from its second start on;
            "crash-on-read" when bytes of the file `poison` are asked for; "deaf" to the supervisor's `stop`
    passthrough  whether the kernel reads the files itself
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import stat
import struct
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from raycache import errors, mountinfo
from raycache.fuse import device

(
    LOOKUP,
    FORGET,
    GETATTR,
    OPEN,
    READ,
    STATFS,
    RELEASE,
    FLUSH,
    INIT,
    OPENDIR,
    READDIR,
    RELEASEDIR,
    INTERRUPT,
) = (
    *(1, 2, 3, 14, 15, 17, 18, 25, 26),
    *(27, 28, 29, 36),
)
BATCH_FORGET, RESEND = 42, 7
MAX_PAGES, INIT_EXT, BIG_WRITES = 1 << 22, 1 << 30, 1 << 5
PASSTHROUGH, HAS_RESEND = 1 << 5, 1 << 7  # of flags2
DIRECT_IO, FOPEN_PASSTHROUGH = 1, 1 << 7
IN = struct.Struct("<IIQQIIIHH")
OUT = struct.Struct("<IiQ")
ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
INIT_OUT = struct.Struct("<IIIIHHIIHHII24x")
BEAT_S = 0.1


class Stub:
    def __init__(self, directory: str, fuse: int, supervisor: int, number: int) -> None:
        self.config = json.loads((Path(directory) / "config.json").read_text())
        self.plan = json.loads((Path(directory) / "mount.json").read_text())
        self.fuse, self.supervisor, self.number = fuse, supervisor, number
        self.fault = self.config.get("fault", "")
        self.names = sorted(self.config["files"])
        self.fds = [os.open(self.config["files"][name], os.O_RDONLY | os.O_CLOEXEC) for name in self.names]
        self.backing: dict[int, int] = {}
        self.reads = 0
        self.device = mountinfo.mounted_at(self.plan["mountpoint"])
        self.request = bytearray(2 << 20)

    def tell(self, **line: Any) -> None:
        with contextlib.suppress(OSError):
            os.write(self.supervisor, json.dumps(line).encode() + b"\n")

    def run(self) -> NoReturn:
        if self.fault == "fatal":
            self.tell(fatal=errors.to_wire(errors.AccessDeniedError("no such key", where="s3://b")))
            os._exit(1)
        if self.fault == "die" or (self.fault == "die-later" and self.number):
            print("the stub dies, as told", flush=True)
            os._exit(3)
        if self.number:
            os.write(self.fuse, OUT.pack(16, RESEND, 0))
        poll = select.poll()
        poll.register(self.fuse, select.POLLIN)
        poll.register(self.supervisor, select.POLLIN)
        beat = 0.0
        while True:
            if self.fault != "mute" and time.monotonic() >= beat:
                self.tell(pid=os.getpid(), reads=self.reads)
                beat = time.monotonic() + BEAT_S
            for fd, events in poll.poll(BEAT_S * 1000):
                if fd == self.supervisor:
                    self.listen(poll)
                elif events:
                    self.serve()

    def listen(self, poll: select.poll) -> None:
        try:
            told = os.read(self.supervisor, 100)
        except BlockingIOError:
            return
        if b"stop" in told and self.fault != "deaf":
            os._exit(75)
        if not told:
            poll.unregister(self.supervisor)
            entry = mountinfo.mounted_at(self.plan["mountpoint"])
            if entry == self.device:
                device.unmount(self.plan["mountpoint"], lazy=True)

    def serve(self) -> None:
        try:
            os.readv(self.fuse, [self.request])
        except OSError as error:
            if error.errno == errno.ENODEV:
                os._exit(0)
            return  # somebody else took it, or it was interrupted
        length, opcode, unique, node, *_ = IN.unpack_from(self.request)
        answer = self.answer(opcode, node, bytes(self.request[IN.size : length]))
        if answer is None:
            return
        code, payload = (answer, b"") if isinstance(answer, int) else (0, answer)
        with contextlib.suppress(OSError):  # whoever asked was killed meanwhile
            os.writev(self.fuse, [OUT.pack(OUT.size + len(payload), -code, unique), payload])

    def answer(self, opcode: int, node: int, body: bytes) -> bytes | int | None:
        """The reply to a request: its payload, or an errno; None for no reply."""
        if opcode in (FORGET, BATCH_FORGET, INTERRUPT):
            return None
        if opcode == INIT:
            _, minor, _, _, flags2 = struct.unpack_from("<IIIII", body)
            wanted = HAS_RESEND | (PASSTHROUGH if self.config.get("passthrough") else 0)
            flags = BIG_WRITES | MAX_PAGES | INIT_EXT
            depth = 1 if self.config.get("passthrough") else 0
            return INIT_OUT.pack(
                7, minor, 16 << 20, flags, 16, 12, 1 << 20, 1, 256, 0, wanted & flags2, depth
            )
        if opcode == LOOKUP:
            name = body[:-1].decode()
            if name not in self.names:
                return errno.ENOENT
            found = self.names.index(name) + 2
            return struct.pack("<QQQQII", found, 0, 60, 60, 0, 0) + self.attributes(found)
        if opcode == GETATTR:
            return struct.pack("<QII", 60, 0, 0) + self.attributes(node)
        if opcode == OPEN:
            return self.open(node)
        if opcode == READ:
            _, offset, count = struct.unpack_from("<QQI", body)
            if self.fault == "crash-on-read" and self.names[node - 2] == "poison":
                os._exit(9)
            self.reads += 1
            return os.pread(self.fds[node - 2], count, offset)
        if opcode == OPENDIR:
            return struct.pack("<QIi", 0, 0, 0)
        if opcode == READDIR:
            return self.entries(struct.unpack_from("<QQI", body)[1])
        if opcode in (RELEASE, RELEASEDIR, FLUSH):
            return b""
        if opcode == STATFS:
            return struct.pack("<QQQQQIIII24x", 1, 1, 1, 1, 1, 4096, 255, 4096, 0)
        return errno.ENOSYS

    def attributes(self, node: int) -> bytes:
        size = 0 if node == 1 else os.fstat(self.fds[node - 2]).st_size
        mode = stat.S_IFDIR | 0o755 if node == 1 else stat.S_IFREG | 0o444
        return ATTR.pack(node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def open(self, node: int) -> bytes:
        if not self.config.get("passthrough"):
            return struct.pack("<QIi", 1, DIRECT_IO, 0)
        if node not in self.backing:
            self.backing[node] = device.backing_open(self.fuse, self.fds[node - 2])
        return struct.pack("<QIi", 1, FOPEN_PASSTHROUGH, self.backing[node])

    def entries(self, offset: int) -> bytes:
        listing = b""
        for number, name in list(enumerate(self.names))[offset:]:
            data = name.encode()
            entry = struct.pack("<QQII", number + 2, number + 1, len(data), stat.S_IFREG >> 12) + data
            listing += entry + bytes(-len(entry) % 8)
        return listing


def main() -> None:
    given = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
    fuse, supervisor = int(given["fuse-fd"]), int(given["supervisor-fd"])
    for fd in (fuse, supervisor, int(given["lock-fd"])):
        os.set_inheritable(fd, False)
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    Stub(given["state-dir"], fuse, supervisor, int(given["start"])).run()


if __name__ == "__main__":
    main()
