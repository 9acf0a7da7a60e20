"""The statements that read and write a projection's rows: images by key, out of and into one JSON parameter.

Whether a projector may write at all is the checkpoint's question. Called by `projector.tail` and `projector.present`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final

from sqlalchemy import Connection, Delete, LargeBinary, Select, Table, and_, bindparam, delete, select, true, tuple_

from ledger.addresses import key as address_key
from ledger.dialects import Conflict, json_rows
from ledger.driver import joined
from ledger.tables import IpKey, metadata
from projector.projections import Image, Key, Projection

DROP_ROWS: Final = 10_000
"""Rows that one transaction deletes at most: well below a second."""


def read(connection: Connection, projection: Projection[Image], keys: Collection[Key]) -> dict[Key, Image]:
    """The images that exist under these keys."""
    if not keys:
        return {}
    table = metadata.tables[projection.name]
    names = [column.name for column in table.primary_key]
    wanted = as_json(table, names, sorted(keys))
    rows = connection.execute(_by_key(connection.dialect.name, projection.name), {"keys": wanted})
    return {tuple(row[: len(names)]): projection.make(row) for row in rows}


def write(connection: Connection, projection: Projection[Image], images: Mapping[Key, Image]) -> None:
    """Put these images in the place of the ones under their keys."""
    if images:
        table = metadata.tables[projection.name]
        store = [address_key if isinstance(each.type, IpKey) else None for each in table.columns]
        rows = [
            tuple(code(cell) if code else cell for code, cell in zip(store, images[key], strict=True))
            for key in sorted(images)
        ]
        joined(connection).put(table, rows, Conflict.REPLACES)


def drop(connection: Connection, name: str) -> bool:
    """Delete a page of the projection's rows; answers whether there may be more."""
    return connection.execute(_drop(name), {"limit": DROP_ROWS}).rowcount == DROP_ROWS


def as_json(table: Table, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as `json_rows` takes them: one object each, bytes in hexadecimal."""
    encode = [_ENCODE.get(type(table.c[name].type)) for name in names]
    return json.dumps(
        [
            {
                name: value if value is None or code is None else code(value)
                for name, code, value in zip(names, encode, row, strict=True)
            }
            for row in rows
        ]
    )


_ENCODE: Final[Mapping[type, Callable[[Any], str]]] = {
    IpKey: lambda ip: address_key(ip).hex(),
    LargeBinary: bytes.hex,
}


@cache
def _by_key(dialect: str, name: str) -> Select[Any]:
    table = metadata.tables[name]
    keys = list(table.primary_key.columns)
    rows, values = json_rows(dialect, "keys", keys)
    # Each key is to be looked up, whatever the planner thought of the number of rows when it first saw this.
    if dialect == "postgresql":
        found = and_(*(key == value for key, value in zip(keys, values, strict=True)))
        one = select(table).where(found).limit(1).lateral("one")
        return select(one).select_from(rows.join(one, true()))
    return select(table).where(tuple_(*keys).in_(select(*values).select_from(rows)))


@cache
def _drop(name: str) -> Delete:
    table = metadata.tables[name]
    keys = list(table.primary_key.columns)
    page = select(*keys).limit(bindparam("limit"))
    return delete(table).where(tuple_(*keys).in_(page))
