"""The server of one mount: `python -m raycache.fuse.server`, started by the supervisor (`serverprocess.py` has the
contract between the two). It imports no Ray."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import Any

from raycache import descriptors
from raycache.client import Client
from raycache.errors import MountError, RaycacheError, to_wire
from raycache.fuse import device, reach, statefiles
from raycache.fuse.attributes import Xattrs
from raycache.fuse.forgetting import Forgetting
from raycache.fuse.handles import Handles
from raycache.fuse.inodes import Inodes
from raycache.fuse.journal import Journal
from raycache.fuse.operations import Operations
from raycache.fuse.protocol import Negotiated
from raycache.fuse.serverprocess import REPLACE
from raycache.fuse.serving import Serving
from raycache.fuse.session import Session
from raycache.fuse.tree import Tree
from raycache.settings import Settings

log = logging.getLogger(__name__)

BEAT_S = 0.5
"""Seconds between two words to the supervisor."""

INIT_S = 2.0
"""Seconds that the first word waits for INIT, so that it tells how files are served."""

STUCK_S = 900.0
"""Seconds after which a request that is still not answered means that its thread hangs: longer than any read may take
with all retries of workers and store."""

LOOK_S = 1.0
"""Seconds between two looks what is new on the cluster: names that were invalidated, a dataset that was deleted."""

AGREED = "agreed.json"
"""File of the state directory: what INIT agreed on. It comes once per mount, not once per server."""


class Server:
    """One server process's work.

    Args:
        directory: the mount's state directory.
        fuse_fd: the connection.
        link: the socket to the supervisor.
        number: how many servers this mount had before.

    Raises:
        RaycacheError: the data cannot be reached.
    """

    def __init__(self, directory: str, fuse_fd: int, link: socket.socket, number: int) -> None:
        self._directory = directory
        self._fd = fuse_fd
        self._link = link
        self._number = number
        config = statefiles.read_json(os.path.join(directory, statefiles.CONFIG))
        if "dataset" not in config:
            raise MountError(
                "the mount has no config.json", where=directory, hint="unmount it, and mount it anew"
            )
        plan = statefiles.read_json(os.path.join(directory, statefiles.MOUNT))
        self._point = str(plan.get("mountpoint", ""))
        self._no_passthrough = device.passthrough_support().reason
        if not config.get("passthrough", True):
            self._no_passthrough = "passthrough is switched off for this mount"
        self._warnings = [] if number else reach.check(config)
        self._client: Client = reach.client_for(config, directory, first=number == 0)
        self._dataset = dataset = str(config["dataset"]["name"])
        self._journal, state = Journal.open(os.path.join(directory, statefiles.JOURNAL), generation=number)
        self._inodes = Inodes(state, self._journal.add)
        self._handles = Handles(self._inodes, state, self._journal.add)
        self._journal.attach(self._handles)
        self._serving = Serving(self._client, self._handles, fuse_fd)
        operations = Operations(
            Tree(self._client, dataset, self._inodes, self._handles, reach.ownership_of(config)),
            self._serving,
            Xattrs(self._client, dataset),
            self._inodes,
            self._handles,
            self._journal,
            agreed=self._agree,
            passthrough=self._no_passthrough,
        )
        self._session = Session(fuse_fd, operations)
        self._forgetting = Forgetting(
            self._client, dataset, self._inodes, self._expire, directory, first=number == 0
        )
        self._ended = threading.Event()
        self._settled = threading.Event()

    def run(self) -> int:
        """Serve; the exit status."""
        if self._number:
            self._take_over()
        gc.collect()
        gc.freeze()  # what is loaded stays: a full collection needs not look at it, and a fork shares it
        beat = threading.Thread(target=self._beat, name="raycache-fuse-beat", daemon=True)
        listen = threading.Thread(target=self._listen, name="raycache-fuse-supervisor", daemon=True)
        watch = threading.Thread(target=self._watch, name="raycache-fuse-watch", daemon=True)
        beat.start()
        listen.start()
        watch.start()
        unmounted = self._session.run()
        self._ended.set()
        self._serving.close()
        self._journal.close()
        if not unmounted:
            # Another takes over, and with it what is cached: nothing of it may be cleared away.
            _end(REPLACE)
        self._client.close()
        return 0

    # -- beginning ----------------------------------------------------------------------------------------

    def _agree(self, agreed: Negotiated) -> None:
        """INIT has been negotiated: those after this server have to know."""
        found = {"passthrough": agreed.passthrough, "resend": agreed.resend}
        statefiles.write_json(os.path.join(self._directory, AGREED), found)
        self._settle(found)

    def _settle(self, agreed: dict[str, Any]) -> None:
        if self._no_passthrough:
            self._serving.allow_passthrough(self._no_passthrough)
        elif not agreed.get("passthrough"):
            self._serving.allow_passthrough("this kernel is built without FUSE passthrough")
        else:
            self._serving.allow_passthrough()
        self._settled.set()

    def _take_over(self) -> None:
        agreed = statefiles.read_json(os.path.join(self._directory, AGREED))
        if not agreed:
            return  # the one before never got as far as INIT
        if agreed.get("passthrough") and not self._no_passthrough:
            self._serving.clear_backing_files()
        self._settle(agreed)
        if agreed.get("resend"):
            self._session.resend()
        else:
            log.warning(
                "this kernel (before Linux 6.9) cannot ask again what the server before left unanswered"
            )

    # -- the supervisor -----------------------------------------------------------------------------------

    def _beat(self) -> None:
        if self._number == 0:
            self._settled.wait(INIT_S)
        while True:
            load = self._session.oldest_age()
            if load.oldest_s > STUCK_S:
                log.error(
                    "a request has been under way for %.0f s: ending, for another server to answer it",
                    STUCK_S,
                )
                _end(1)
            self._say(self._status(load.oldest_s, load.requests))
            if self._journal.due:
                self._journal.compact()
            if self._ended.wait(BEAT_S):
                return

    def _watch(self) -> None:
        # Not the beat's business: a cluster that does not answer is waited for.
        while not self._ended.wait(LOOK_S):
            self._client.peers.refresh(wait=False)
            self._forgetting.look()

    def _expire(self, parent: int, name: bytes) -> None:
        self._session.notify_inval_entry(parent, name, expire_only=True)

    def _status(self, oldest_s: float, requests: int) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "warnings": self._warnings,
            "problem": reach.problem_of(self._client, self._dataset),
            "passthrough": self._serving.passthrough,
            "reason": self._serving.reason,
            "requests": requests,
            "oldest_s": round(oldest_s, 1),
            "nodes": len(self._inodes),
            "open": len(self._handles),
            "reads": self._serving.reads,
            "journal_bytes": self._journal.size,
            "journal_degraded": self._journal.degraded,
            "metrics": self._client.metrics.snapshot(),
        }

    def _say(self, status: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # full (it is stopped) or closed (the other thread sees that)
            self._link.send(json.dumps(status).encode() + b"\n", socket.MSG_DONTWAIT)

    def _listen(self) -> None:
        while True:
            try:
                told = self._link.recv(4096)
            except OSError:
                told = b""
            if b"stop" in told:
                self._session.stop()
            elif not told:
                break
        if self._ended.is_set():
            return
        # Nobody is left to start another server, so nobody new shall rely on the mount. Who is in may finish.
        log.warning("the supervisor is gone: %s is unmounted once its last file is closed", self._point)
        try:
            device.unmount(self._point, lazy=True)
        except RaycacheError as error:
            log.warning("%s", error)


def _end(status: int) -> None:
    """End the process now: threads that wait for a store are nobody's concern any more."""
    sys.stderr.flush()
    os._exit(status)


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="raycache.fuse.server", description=__doc__)
    parser.add_argument("--state-dir", required=True)
    for name in ("--fuse-fd", "--supervisor-fd", "--lock-fd", "--start"):
        parser.add_argument(name, type=int, required=True)
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    """Run as a program."""
    given = _arguments(words)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are for the supervisor, which says what to do
    for fd in (given.fuse_fd, given.supervisor_fd, given.lock_fd):
        os.set_inheritable(fd, False)
    logging.basicConfig(
        level=Settings.from_environ().log_level,
        format=f"%(asctime)s server {os.getpid()}: %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    descriptors.raise_limit()
    link = socket.socket(fileno=given.supervisor_fd)
    try:
        server = Server(given.state_dir, given.fuse_fd, link, given.start)
    except RaycacheError as error:
        log.error("%s", error)
        link.send(json.dumps({"fatal": to_wire(error)}).encode() + b"\n")
        return 1
    return server.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
