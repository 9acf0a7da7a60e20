"""The journal's partitions, made ahead by whoever owns it (PostgreSQL): for the present epoch and for the next one.

Who restores need not own the journal, so that the next epoch's first partitions must be there before. Events for which
there was none lie in `event_rest`, and stay there: it keeps every transaction that has no partition of its own.
Called by `ledger.schema`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sqlalchemy import Connection, select, text

from ledger.dialects import PARTITION_SPAN, transaction
from ledger.events import EPOCH_SHIFT

AHEAD: Final = 8
"""Partitions from the server's present transaction on."""
AHEAD_OF_NEXT_EPOCH: Final = 2
"""Enough until `migrate` is run again, which is to be done after a restore."""

_LOCK: Final = text("LOCK TABLE event IN ACCESS EXCLUSIVE MODE")
_THERE: Final = text(
    "SELECT relname FROM pg_inherits JOIN pg_class ON oid = inhrelid WHERE inhparent = 'event'::regclass"
)
_LIES_IN_REST: Final = text("SELECT EXISTS (SELECT FROM event_rest WHERE tx >= :low AND tx < :high)")


def make_ahead(connection: Connection) -> None:
    """Those that are missing, if any are. Until the transaction ends, nobody reads or writes the journal then."""
    if list(_missing(connection)):
        connection.execute(_LOCK)
        # Nobody can have made one since, nor put an event where it would belong.
        for low, high in list(_missing(connection)):
            _make(connection, low, high)


def _missing(connection: Connection) -> Iterator[tuple[int, int]]:
    """The bounds of each; none where an event lies in `event_rest` already."""
    there = set(connection.execute(_THERE).scalars())
    for low in _ahead(connection.execute(select(transaction())).scalar_one()):
        bounds = {"low": low, "high": low + PARTITION_SPAN}
        if _name(low) not in there and not connection.execute(_LIES_IN_REST, bounds).scalar_one():
            yield low, low + PARTITION_SPAN


def _ahead(now: int) -> Iterator[int]:
    """Where they begin."""
    for start, number in ((now, AHEAD), (now + (1 << EPOCH_SHIFT), AHEAD_OF_NEXT_EPOCH)):
        first = start // PARTITION_SPAN
        yield from (each * PARTITION_SPAN for each in range(first, first + number))


def _make(connection: Connection, low: int, high: int) -> None:
    name = _name(low)
    connection.execute(text(f"CREATE TABLE {name} PARTITION OF event FOR VALUES FROM ({low}) TO ({high})"))
    # The guards of rows came with it, those of statements do not.
    guard = f"CREATE TRIGGER event_is_not_truncated BEFORE TRUNCATE ON {name} FOR EACH STATEMENT"
    connection.execute(text(f"{guard} EXECUTE FUNCTION event_is_append_only()"))


def _name(low: int) -> str:
    return f"event_{low}"
