"""What is true: a dict of path -> version, with its past. Pure: no file, no clock, nothing of raycache's.

A *moment* is a number of changes: the state after so many of them. What somebody may still believe began at some
moment (see `Beliefs`) and everything that was true from then on until now is right as an answer.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple


@dataclass(frozen=True)
class Version:
    """An object's bytes, and what its store tells them from others by: equal tags are one version."""

    tag: str
    data: bytes = field(repr=False, compare=False)

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data)


class Entry(NamedTuple):
    """What a stat or a listing says of a name. Directories have no size."""

    kind: Literal["file", "directory"]
    size: int = 0


State = Mapping[str, Version]


def parent_of(path: str) -> str:
    """The directory that a path is in."""
    return path.rpartition("/")[0]


def is_below(path: str, directory: str) -> bool:
    """Whether a path is `directory` or lies below it."""
    return not directory or path == directory or path.startswith(directory + "/")


def entry_of(state: State, path: str) -> Entry | None:
    """What is at a path; None for nothing. The root is always there."""
    if path in state:
        return Entry("file", state[path].size)
    there = not path or any(is_below(name, path) for name in state)
    return Entry("directory") if there else None


def listing_of(state: State, directory: str) -> dict[str, Entry] | None:
    """The entries of a directory by name; None if there is no such directory."""
    if entry_of(state, directory) != Entry("directory"):
        return None
    found = {}
    for path, version in state.items():
        if is_below(path, directory):
            name, _, rest = path[len(directory) :].lstrip("/").partition("/")
            found[name] = Entry("directory") if rest else Entry("file", version.size)
    return found


class History:
    """The store as it is, and as it was."""

    def __init__(self) -> None:
        self._states: list[State] = [{}]
        self._times: list[float] = []

    @property
    def now(self) -> State:
        """What the store holds."""
        return self._states[-1]

    @property
    def moment(self) -> int:
        """Number of changes so far."""
        return len(self._times)

    def put(self, time: float, path: str, version: Version) -> None:
        """Somebody wrote an object."""
        self._change(time, {**self.now, path: version})

    def delete(self, time: float, path: str) -> None:
        """Somebody deleted one."""
        self._change(time, {name: version for name, version in self.now.items() if name != path})

    def moment_at(self, time: float) -> int:
        """The moment just after all that had happened by then."""
        return bisect.bisect_right(self._times, time)

    def states(self, since: int) -> Iterator[State]:
        """What was true, from a moment on."""
        return iter(self._states[since:])

    def versions(self, path: str, since: int) -> set[Version | None]:
        """What was at a path, from a moment on; None for nothing."""
        return {state.get(path) for state in self.states(since)}

    def past(self, path: str) -> list[Version]:
        """All that has ever been at a path, each version once, the oldest first."""
        return list(dict.fromkeys(v for state in self._states if (v := state.get(path)) is not None))

    def _change(self, time: float, state: State) -> None:
        self._times.append(time)
        self._states.append(state)


class Beliefs:
    """From which moment on an answer of one client may be true.

    Args:
        history: what happened.
        ttl: seconds for which an answer may be believed.
    """

    def __init__(self, history: History, ttl: float) -> None:
        self._history = history
        self._ttl = ttl
        self._asked: list[tuple[str, int]] = []

    def forget(self, path: str) -> None:
        """The client was told, or found out, that what it knows at and below a path holds no longer."""
        self._asked.append((path, self._history.moment))

    def of(self, path: str, time: float) -> int:
        """The moment for what is said at `time` of a path."""
        return self._since(time, (moment for top, moment in self._asked if is_below(path, top)))

    def of_listing(self, directory: str, time: float) -> int:
        """The moment for a directory's entries. To forget a name is to forget what its directory holds."""
        told = (
            moment
            for top, moment in self._asked
            if is_below(directory, top) or (top and parent_of(top) == directory)
        )
        return self._since(time, told)

    def _since(self, time: float, told: Iterable[int]) -> int:
        if self._ttl <= 0:
            return self._history.moment
        return max([self._history.moment_at(time - self._ttl), *told])


class OneVersion:
    """What an open handle may give: bytes of one version, which is one of those that it may have been opened on.

    Args:
        candidates: these.
    """

    def __init__(self, candidates: Iterable[Version]) -> None:
        self.candidates = frozenset(candidates)

    def sized(self, size: int) -> None:
        """The handle said how large its object is."""
        self._narrow("of that size", {v for v in self.candidates if v.size == size})

    def gave(self, offset: int, length: int, data: bytes) -> None:
        """The handle gave bytes."""
        same = {v for v in self.candidates if v.data[offset : offset + length] == data}
        self._narrow(f"with these {len(data)} bytes of {length} at {offset}", same)

    def is_stale(self, current: Version | None) -> None:
        """The handle said that its version is gone from the store, which holds `current`."""
        self._narrow("that is gone", self.candidates - {current})

    def _narrow(self, what: str, left: Iterable[Version]) -> None:
        left = frozenset(left)
        known = ", ".join(f"{v.tag} ({v.size} bytes)" for v in self.candidates)
        assert left, f"no version {what}; it could be {known or 'none'}"
        self.candidates = left
