"""A projection brought up to the present, in memory: its rows, and folded onto them what is not projected yet.

Whoever asks sees one snapshot of the database: the state, the projections, their checkpoints, and every event that
was committed. So an answer is never stale, whether or not a projector runs and whoever holds the fence. How far it
can be relied on is said by `AsOf`. Nothing is written. Called by `projector.answers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple

from sqlalchemy import Connection, Engine, bindparam, select

from ledger import dialects
from ledger.events import Event
from ledger.journal import PAGE_EVENTS, Mark, fence, page
from ledger.tables import event
from projector import checkpoints, images
from projector.checkpoints import BEGINNING, DROPPED
from projector.projections import Image, Key, Projection

EVENTS_FOLDED_MAX: Final = 20_000
"""Unprojected events that one answer folds at most: some tenths of a second. A projector behind by more is not well."""
_EVERYTHING: Final = (1 << 63) - 1


class AsOf(NamedTuple):
    """How far an answer holds.

    Up to this event, recorded at `at`, nothing is missing and nothing will come in between any more. What was
    committed after it until `read_at`, the database's clock, is in the answer as well: unless it is not
    `complete`, because the projection is too far behind.
    """

    tx: int
    position: int
    at: int | None
    read_at: int
    complete: bool = True


@dataclass(frozen=True)
class Present(Generic[Image]):
    """The images that unprojected events have touched, as they are now.

    The stored rows of all other keys are up to date, if they are `trusted`: not while a rebuild deletes them.
    """

    images: dict[Key, Image]
    trusted: bool
    as_of: AsOf

    def over(self, stored: dict[Key, Image]) -> dict[Key, Image]:
        """What is stored, brought up to date."""
        return {**stored, **self.images} if self.trusted else dict(self.images)


@contextmanager
def snapshot(engine: Engine) -> Iterator[Connection]:
    """A read-only connection that sees one state of the database, whatever is committed meanwhile."""
    with engine.connect() as connection:
        if dialects.is_postgresql(engine):
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        yield connection


def present(
    connection: Connection, projection: Projection[Image], concerns: Callable[[Event], bool] = lambda event: True
) -> Present[Image]:
    """The projection as the snapshot has it, as far as the events that matter to the question touch it."""
    mark = checkpoints.marks(connection, [projection.name])[projection.name]
    trusted = mark != DROPPED
    events, complete = _unprojected(connection, max(mark, BEGINNING))
    mattering = [event for event in events if concerns(event)]
    stored = images.read(connection, projection, projection.keys(mattering)) if trusted else {}
    read_to = None if complete else Mark(events[-1].tx, events[-1].position)
    return Present(projection.fold(stored, mattering), trusted, as_of(connection, read_to))


def as_of(connection: Connection, read_to: Mark | None = None) -> AsOf:
    """How far an answer from this snapshot holds, when all was read or not more than up to there."""
    now = connection.execute(select(dialects.clock())).scalar_one()
    settled, at = newest(connection, fence(connection))
    if read_to is None or read_to >= settled:
        return AsOf(*settled, at, now, read_to is None)
    row = connection.execute(_at, read_to._asdict()).one()
    return AsOf(*read_to, row.recorded_at, now, complete=False)


def newest(connection: Connection, before: int) -> tuple[Mark, int | None]:
    """Which event below the fence is the last, and when was it recorded?"""
    row = connection.execute(_newest, {"fence": before}).first()
    return (BEGINNING, None) if row is None else (Mark(row.tx, row.position), row.recorded_at)


_at = select(event.c.recorded_at).where(event.c.tx == bindparam("tx"), event.c.position == bindparam("position"))
_newest = (
    select(event.c.tx, event.c.position, event.c.recorded_at)
    .where(event.c.tx < bindparam("fence"))
    .order_by(event.c.tx.desc(), event.c.position.desc())
    .limit(1)
)


def _unprojected(connection: Connection, mark: Mark) -> tuple[list[Event], bool]:
    """The events after the mark, and whether these are all."""
    events: list[Event] = []
    while (left := EVENTS_FOLDED_MAX - len(events)) > 0:
        found = page(connection, mark, _EVERYTHING, min(left, PAGE_EVENTS))
        events += found
        if len(found) < min(left, PAGE_EVENTS):
            return events, True
        mark = Mark(found[-1].tx, found[-1].position)
    return events, not page(connection, mark, _EVERYTHING, 1)
