"""What a transaction of the ledger writes: images of rows, and the events that say why.

Each statement takes one JSON parameter, so that it is prepared once whatever the number of rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection, Insert

from ledger import dialects
from ledger.addresses import Ip, key
from ledger.events import Event
from ledger.images import Address, Extent
from ledger.tables import address, event, extent, subject

_ADDRESSES_OF = {"ip", "low", "high"}


def write(
    connection: Connection,
    *,
    events: Sequence[Event],
    rows: Sequence[Address] = (),
    extents: Sequence[Extent] = (),
    subjects: Mapping[bytes, str] | None = None,
) -> None:
    """Everything of one transaction. All its events go in one statement: on SQLite that numbers them."""
    statements = _statements(connection.dialect.name)
    documents = [{"id": id_.hex(), "document": document} for id_, document in (subjects or {}).items()]
    with dialects.flight(connection):
        if documents:
            dialects.run(connection, statements["subject"], {"rows": json.dumps(documents)})
        if extents:
            dialects.run(connection, statements["extent"], {"rows": as_json(extents)})
        if rows:
            dialects.run(connection, statements["address"], {"rows": as_json(rows)})
        if events:
            dialects.run(connection, statements["event"], {"rows": as_json(events)})


@cache
def _statements(dialect: str) -> dict[str, Insert]:
    return {
        "subject": dialects.insert_rows(dialect, subject, "rows", ignore=True),
        "extent": dialects.insert_rows(dialect, extent, "rows", replace=True),
        "address": dialects.insert_rows(dialect, address, "rows", replace=True),
        "event": dialects.insert_rows(dialect, event, "rows"),
    }


def as_json(rows: Iterable[Address | Extent | Event]) -> str:
    """The rows as the JSON that `dialects.json_rows` reads: addresses and other bytes in hexadecimal."""
    return json.dumps([{name: _plain(name, value) for name, value in row._asdict().items()} for row in rows])


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    return key(Ip(value)).hex() if name in _ADDRESSES_OF and value is not None else value
