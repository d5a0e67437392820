"""Run a command as its only task: pass signals on, and end with the command's status.

Started as a program of its own by `raycache run`, with the standard library and nothing else:

    python -I -S supervise.py PROGRAM ARGV0 [ARGUMENT]...
"""

from __future__ import annotations

import os
import signal
import sys

NOT_EXECUTABLE = 126
"""Exit status for a command that exists and cannot be executed, as in POSIX shells."""
NOT_FOUND = 127
"""Exit status for a command that does not exist, as in POSIX shells."""

PASSED_ON = frozenset(
    {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
)


def supervise(program: str, argv: list[str]) -> int:
    """Run a command, and return the status to end with: its own, or 128+n if signal n ended it.

    Args:
        program: path of the program.
        argv: its arguments, the name it is called by first.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would take children's statuses away
    # Blocked before the command exists, signals wait until they are asked for below: none can be lost.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON | {signal.SIGCHLD})
    try:
        # Python ignores these two; the command starts with what a shell would give it.
        child = os.posix_spawn(
            program, argv, os.environ, setsigmask=mask, setsigdef=(signal.SIGPIPE, signal.SIGXFSZ)
        )
    except OSError as error:
        print(f"error: {argv[0]}: {error.strerror}", file=sys.stderr)
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
    while True:
        received = signal.sigwaitinfo(PASSED_ON | {signal.SIGCHLD})
        if received.si_signo == signal.SIGCHLD:
            status = _status_of(child)
            if status is not None:
                return (
                    os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
                )
        elif received.si_code <= 0:
            # Sent by a process (SI_USER, SI_QUEUE, SI_TKILL). What the kernel sends, at Ctrl-C, goes to the whole
            # foreground process group: the command has it already.
            os.kill(child, received.si_signo)


def _status_of(child: int) -> int | None:
    """Wait status of the command if it has ended. Reaps other children too: as process 1 of a container, orphans."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        if pid == child:
            return status
        if pid == 0:
            return None


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[1], sys.argv[2:]))
