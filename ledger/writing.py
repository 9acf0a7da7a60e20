"""What a transaction of the ledger writes: images of rows, and the events that say why.

Each kind of row goes in one statement, so that it is prepared once whatever their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from ledger.addresses import key
from ledger.dialects import SQLITE, Conflict
from ledger.driver import Driver
from ledger.events import EPOCH_SHIFT, Event
from ledger.images import Address, Extent
from ledger.pipeline import Row
from ledger.tables import address, event, extent, subject

_ID: Final = (1 << EPOCH_SHIFT) - 1


def write(
    driver: Driver,
    *,
    events: Sequence[Event],
    rows: Sequence[Address] = (),
    extents: Sequence[Extent] = (),
    subjects: Mapping[bytes, str] | None = None,
) -> None:
    """Everything of one transaction. All its events go in one call: on SQLite that numbers them."""
    if subjects:
        driver.put(subject, list(subjects.items()), Conflict.IGNORED)
    if extents:
        driver.put(extent, [(each.pool, key(each.high), key(each.low)) for each in extents], Conflict.REPLACES)
    if rows:
        driver.put(address, [(key(row.ip), *row[1:]) for row in rows], Conflict.REPLACES)
    if events:
        driver.put(event, list(_numbered(events) if driver.name == SQLITE else map(_stored, events)))


def _numbered(events: Sequence[Event]) -> Iterator[Row]:
    """SQLite's writer is alone: positions follow the last one, and a transaction's number is its first position."""
    for number, event_ in enumerate(events):
        tx, _, *rest = _stored(event_)
        yield (tx, (tx & _ID) + number, *rest)


def _stored(event_: Event) -> Row:
    return tuple(event_) if event_.ip is None else event_._replace(ip=key(event_.ip))  # type: ignore[arg-type]
