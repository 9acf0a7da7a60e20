"""Reading the journal without gaps: pages of committed events behind a fence.

Positions are drawn before commit, so "position > last" would lose events of slower writers. A reader
goes by (transaction, position) and stays below the oldest transaction that is still open.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, bindparam, select, tuple_

from ledger import dialects
from ledger.events import Event
from ledger.tables import event

PAGE_EVENTS = 1_000


class Mark(NamedTuple):
    """How far a reader has come: the last event it has read."""

    tx: int = 0
    position: int = 0


_page = (
    select(*(event.c[name] for name in Event._fields))
    .where(
        event.c.tx >= bindparam("tx"),
        tuple_(event.c.tx, event.c.position) > tuple_(bindparam("tx"), bindparam("position")),
        event.c.tx < bindparam("fence"),
    )
    .order_by(event.c.tx, event.c.position)
    .limit(bindparam("limit"))
)


def fence(connection: Connection) -> int:
    """The transaction at which a reader must stop now."""
    return int(connection.execute(select(dialects.fence())).scalar_one())


def page(connection: Connection, after: Mark, before: int, limit: int = PAGE_EVENTS) -> list[Event]:
    """The next events in order, at most `limit`; empty when the reader has caught up with the fence."""
    rows = connection.execute(_page, {**after._asdict(), "fence": before, "limit": limit})
    return [as_event(row) for row in rows]


def as_event(row: Row[Any]) -> Event:
    """The stored row as a value."""
    event_ = Event._make(row)
    return event_._replace(
        claim=_bytes(event_.claim), subject=_bytes(event_.subject), digest=_bytes(event_.digest) or b""
    )


def _bytes(value: bytes | memoryview | None) -> bytes | None:
    return None if value is None else bytes(value)
