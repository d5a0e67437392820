"""How a command ends: exit statuses, and what is printed when it fails.

A RaycacheError says what went wrong, where, and what to do next, on standard error, without a traceback. Any
other exception is a bug of raycache: one line, and how to get the traceback.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import typer

from raycache import errors


class Exit(IntEnum):
    """Exit statuses of `raycache`. The text of each is in EXIT_STATUS_HELP."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    DENIED = 5
    UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h
    INTERRUPTED = 130  # 128 + SIGINT, as shells have it
    BROKEN_PIPE = 141  # 128 + SIGPIPE


EXIT_STATUS_HELP = """\b
Exit status:
  0    done
  1    the operation failed (a load that is not complete, a store that fails)
  2    wrong usage, or a spec that cannot be accepted
  3    no Ray cluster, or no raycache on it, answers
  4    a dataset, an object, a bucket or a mount does not exist
  5    access denied
  70   a bug in raycache; RAYCACHE_DEBUG=1 shows the traceback
  130  interrupted
`raycache run` ends with the status of its command (128+n if signal n ended it).
"""

# The first class that fits decides, so a subclass stands before its base.
_STATUS: tuple[tuple[type[errors.RaycacheError], Exit], ...] = (
    (errors.SpecError, Exit.USAGE),
    (errors.PathError, Exit.USAGE),
    (errors.NotFoundError, Exit.NOT_FOUND),
    (errors.NotMountedError, Exit.NOT_FOUND),
    (errors.AccessDeniedError, Exit.DENIED),
    (errors.ClusterUnavailableError, Exit.UNREACHABLE),
    (errors.WorkerUnavailableError, Exit.UNREACHABLE),
    (errors.RaycacheError, Exit.FAILED),
)


# With these typer itself ends a command. ClickException, the base of complaints about usage, is not among the
# names that typer exports, and which package it comes from depends on typer's version.
_TYPERS_OWN: tuple[type[BaseException], ...] = (typer.Exit, typer.Abort, typer.BadParameter.__mro__[2])


def status_of(error: errors.RaycacheError) -> Exit:
    """The exit status that stands for an error."""
    return next(status for cls, status in _STATUS if isinstance(error, cls))


def message(error: errors.RaycacheError) -> str:
    """An error as a command-line user reads it, one line per part."""
    lines = [f"error: {error.what}"]
    if error.where:
        lines.append(f"  where: {error.where}")
    if error.hint:
        lines.append(f"  next: {error.hint}")
    return "\n".join(lines)


def say(text: str) -> None:
    """Print a line on standard error: what is going on, as opposed to what was asked for."""
    print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print a warning on standard error."""
    say(f"warning: {text}")


@contextmanager
def explained(debug: bool) -> Iterator[None]:
    """Turn exceptions of a command into a message and `typer.Exit`.

    Args:
        debug: print the traceback as well.
    """
    try:
        yield
    except errors.RaycacheError as error:
        _traceback(debug)
        say(message(error))
        raise typer.Exit(status_of(error)) from None
    except KeyboardInterrupt:
        _traceback(debug)
        say("interrupted")
        raise typer.Exit(Exit.INTERRUPTED) from None
    except BrokenPipeError:
        _traceback(debug)
        silence_stdout()
        raise typer.Exit(Exit.BROKEN_PIPE) from None
    except _TYPERS_OWN:
        raise
    except Exception as error:  # noqa: BLE001 - the last line of defence: nobody above would explain it
        _traceback(debug)
        text = str(error).strip().partition("\n")[0][:300]
        say(f"error: unexpected {type(error).__name__}" + (f": {text}" if text else ""))
        if not debug:
            say(
                "  next: this is a bug in raycache; run it again with RAYCACHE_DEBUG=1 for the traceback to report"
            )
        raise typer.Exit(Exit.UNEXPECTED) from None


def _traceback(debug: bool) -> None:
    if debug:
        traceback.print_exc()


def silence_stdout() -> None:
    """Drop what is left for standard output, whose reader has gone: the interpreter would complain at its end."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, sys.stdout.fileno())
    except OSError:
        pass  # standard output is no file (a test's buffer): nothing is left to complain about
    finally:
        os.close(devnull)
