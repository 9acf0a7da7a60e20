"""The projector: follows the journal behind its fence and keeps the projections.

A page at a time: the projections' rows and their checkpoints move in one transaction, so that a crash loses and
repeats nothing. It decides nothing: what an event does to a row is said by `projector.projections`. It tells nobody
in the cluster. Hosted as a thread of the agent (SQLite, where `engine` is the agent's own and has one connection,
which is held only while a page is written) or as a process of its own; `rebuild` is the operator's.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Mapping, Sequence
from threading import Event as Stop
from typing import Any, Final, NamedTuple

import psycopg
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionError

from ledger.events import Event
from ledger.journal import Mark, fence, page
from projector import checkpoints, images
from projector.checkpoints import BEGINNING, DROPPED, AnotherProjectorError
from projector.lag import Lag, lag
from projector.present import newest
from projector.projections import PROJECTIONS, Image, Key, Projection

PAGE_EVENTS: Final = 1_000
"""Events of one transaction at most: some hundredths of a second, which an agent that shares the connection waits."""
POLL_FASTEST: Final = 0.05
"""Seconds from one look at the journal to the next while there is something to read."""
POLL_SLOWEST: Final = 0.25
"""Seconds between looks once nothing has come for a while; each empty one doubles the pause up to this."""
RECONNECT_PAUSE: Final = 1.0
"""Seconds before a database that went away is tried again."""
LAG_CHECK_PAUSE: Final = 1.0
"""Seconds between two looks at the lag."""

# What a database says that goes away, restarts, is not writable yet or is too busy. Anything else is a bug.
_UNAVAILABLE: Final = (
    OperationalError, InterfaceError, InternalError, NoConnectionError,
    psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError, sqlite3.OperationalError,
)  # fmt: skip
_log = logging.getLogger(__name__)


class _Page(NamedTuple):
    """What one step has read: where each projection stood, events, and the images that they touch, by projection."""

    marks: dict[str, Mark]
    events: list[Event]
    images: dict[str, dict[Key, Any]]

    @property
    def end(self) -> Mark:
        return Mark(self.events[-1].tx, self.events[-1].position)

    def unread(self, projection: Projection[Any]) -> list[Event]:
        """The events that are new to it: one that was rebuilt alone is behind the others."""
        mark = self.marks[projection.name]
        return [event for event in self.events if (event.tx, event.position) > mark]


class Tail:
    """Keeps these projections, alone: two of them notice each other, and one stops.

    On SQLite `reader` may be a read-only engine, so that looking for events does not take the writer's connection.
    """

    def __init__(self, engine: Engine, projections: Sequence[Projection[Any]], *, reader: Engine | None = None) -> None:
        self._engine = engine
        self._reader = reader or engine
        # In one order, so that two tails wait for each other's checkpoints and never in a circle.
        self._projections = tuple(sorted(projections, key=lambda projection: projection.name))
        self._known: dict[str, Mark] | None = None

    @property
    def mark(self) -> Mark:
        """The last event that all its projections have seen, as far as it knows."""
        return min(self._known.values()) if self._known else DROPPED

    def step(self) -> int:
        """Apply the next page; answers how many events it had. AnotherProjectorError when somebody else did."""
        found = self._read()
        if DROPPED in found.marks.values():
            self._drop(found.marks)
        if not found.events:
            return 0
        # Outside of any transaction. Only who moves a checkpoint writes rows, so while it stands still they do.
        after = [(each, each.fold(found.images[each.name], found.unread(each))) for each in self._projections]
        # If the answer to the commit is lost, only the database knows how far we are.
        self._known = None
        with self._engine.begin() as connection:
            for projection, changed in after:
                _advance(connection, projection, found, changed)
        self._known = {name: max(mark, found.end) for name, mark in found.marks.items()}
        return len(found.events)

    def run(self, stop: Stop) -> None:
        """Follow the journal until told to stop, over every absence of the database.

        AnotherProjectorError, and whatever is a bug, goes to the caller.
        """
        pause = POLL_FASTEST
        watch = _Watch(self)
        while not stop.is_set():
            try:
                applied = self.step()
                watch.look()
                pause = POLL_FASTEST if applied else min(2 * pause, POLL_SLOWEST)
            except _UNAVAILABLE as error:
                _log.warning("the projector waits %s s for its database: %s", RECONNECT_PAUSE, error)
                self._known = None
                pause = RECONNECT_PAUSE
            stop.wait(pause)

    def lag(self) -> Lag | None:
        """How far it is behind, when that is too far."""
        with self._reader.connect() as connection:
            return lag(connection, max(self.mark, BEGINNING))

    def _read(self) -> _Page:
        with self._reader.connect() as connection:
            marks = self._recognised(checkpoints.marks(connection, [each.name for each in self._projections]))
            start = min(marks.values())
            if start == DROPPED:
                return _Page(marks, [], {})
            # The fence first: what is below it now will be in the page, whatever commits in between.
            before = fence(connection)
            found = _Page(marks, page(connection, start, before, PAGE_EVENTS), {})
            for each in self._projections:
                found.images[each.name] = images.read(connection, each, each.keys(found.unread(each)))
            return found

    def _recognised(self, marks: dict[str, Mark]) -> dict[str, Mark]:
        if self._known is None:
            self._known = marks
        for name, mark in marks.items():
            if mark != self._known[name]:
                raise AnotherProjectorError(name)
        return marks

    def _drop(self, marks: dict[str, Mark]) -> None:
        self._known = None
        for name in (name for name, mark in marks.items() if mark == DROPPED):
            with self._engine.begin() as connection:
                # Nobody may have begun to fill the table again, and nobody can while this lasts.
                checkpoints.move(connection, name, DROPPED, DROPPED)
                if not images.drop(connection, name):
                    checkpoints.move(connection, name, DROPPED, BEGINNING)


class _Watch:
    """Says once that the projections lag, and once that they do not any more."""

    def __init__(self, tail: Tail) -> None:
        self._tail = tail
        self._next = time.monotonic()
        self._lagging = False

    def look(self) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LAG_CHECK_PAUSE
        found = self._tail.lag()
        if found and not self._lagging:
            _log.warning("%s", found)
        if self._lagging and not found:
            _log.info("the projections have caught up with the journal")
        self._lagging = found is not None


def rebuild(engine: Engine, name: str, *, reader: Engine | None = None) -> None:
    """Drop this projection and make it anew from the whole journal; ValueError when there is none of that name.

    A projector that is alive stops when it notices, and AnotherProjectorError here means that one has carried on:
    either way nothing is counted twice. A rebuild that is killed is finished by whichever projector comes next.
    """
    projections = [each for each in PROJECTIONS if each.name == name]
    if not projections:
        raise ValueError(f"there is no projection {name}: choose {' or '.join(each.name for each in PROJECTIONS)}")
    tail = Tail(engine, projections, reader=reader)
    with engine.begin() as connection:
        checkpoints.reset(connection, name)
        end, _ = newest(connection, fence(connection))
    while tail.mark < end:
        tail.step()


def _advance(connection: Connection, projection: Projection[Image], found: _Page, changed: Mapping[Key, Image]) -> None:
    """Bring one projection to the end of the page, unless it is there."""
    if found.marks[projection.name] < found.end:
        # The checkpoint first: whoever else wants to move it waits here, and then finds it gone.
        checkpoints.move(connection, projection.name, found.marks[projection.name], found.end)
        images.write(connection, projection, changed)
