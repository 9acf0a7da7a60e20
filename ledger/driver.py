"""Rows in and out through the database's own driver, in as few round trips as it allows.

Statements are written in SQLAlchemy Core like all others, but compiled once: an `execute` of SQLAlchemy's costs four
times the processor time of the driver's here, most of it for a description of the result that nobody asks for.
Errors are the driver's own. Every batch goes this way, and whoever writes rows and events.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Final, NamedTuple, Protocol
from typing import cast as cast_to

import psycopg
from sqlalchemy import Connection, Engine, Executable, PoolProxiedConnection, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.compiler import SQLCompiler

from ledger.dialects import POSTGRESQL, SQLITE, Conflict, insert, is_postgresql
from ledger.pipeline import Pipeline, Row

BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"


class Driver(Protocol):
    """One connection, inside a transaction."""

    @property
    def name(self) -> str:
        """Which of the two it is."""
        ...

    def fetch(self, statement: Executable, parameters: Mapping[str, Any]) -> list[Row]:
        """All rows, with the driver's values: an address is its bytes."""
        ...

    def put(self, table: Table, rows: Sequence[Row], conflict: Conflict = Conflict.ABORTS) -> None:
        """Insert these rows, cells in the order of the columns; an address is its bytes."""
        ...


class Transaction(Driver, Protocol):
    """A transaction of its own. Left without `commit`, it leaves nothing behind."""

    def commit(self) -> None:
        """Everything is durable once the block has been left."""
        ...


@contextmanager
def transaction(engine: Engine) -> Iterator[Transaction]:
    """BEGIN, the block, then COMMIT or ROLLBACK, on a connection of the engine's pool."""
    pooled = engine.raw_connection()
    connection: Any = pooled.driver_connection
    try:
        with _postgresql(_pipeline(pooled)) if is_postgresql(engine) else _sqlite(connection) as own:
            yield own
    finally:
        if getattr(connection, "broken", False):
            pooled.invalidate()  # To be rolled back, as what goes back to the pool is, it would have to be there.
        else:
            pooled.close()


def joined(connection: Connection) -> Driver:
    """The driver under a transaction that somebody else has begun and will end."""
    pooled = connection.connection
    driver: Any = pooled.driver_connection
    return _Joined(_pipeline(pooled)) if is_postgresql(connection) else Sqlite(driver)


# SQLite -----------------------------------------------------------------------------------------


class Sqlite:
    """No way is shorter than a prepared statement run for each row."""

    name: Final = SQLITE

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.committed = False

    def fetch(self, statement: Executable, parameters: Mapping[str, Any]) -> list[Row]:
        """See `Driver`."""
        text = _text(statement, self.name)
        return self._connection.execute(text.sql, text.values(parameters)).fetchall()

    def put(self, table: Table, rows: Sequence[Row], conflict: Conflict = Conflict.ABORTS) -> None:
        """See `Driver`."""
        self._connection.executemany(_text(insert(self.name, table, conflict), self.name).sql, rows)

    def commit(self) -> None:
        """See `Transaction`."""
        self.committed = True


@contextmanager
def _sqlite(connection: sqlite3.Connection) -> Iterator[Sqlite]:
    connection.execute("BEGIN IMMEDIATE")
    own = Sqlite(connection)
    try:
        yield own
        connection.execute("COMMIT" if own.committed else "ROLLBACK")
    finally:
        if connection.in_transaction:
            connection.rollback()


# PostgreSQL -------------------------------------------------------------------------------------


class Postgresql:
    """All rows of a statement are one JSON parameter: it is prepared once, however many they are."""

    name: Final = POSTGRESQL

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.committed = False

    def fetch(self, statement: Executable, parameters: Mapping[str, Any]) -> list[Row]:
        """See `Driver`."""
        # One flight there and back; the server knows then that it waits for us, and how long it may.
        self._send(statement, parameters)
        return self._pipeline.results()

    def put(self, table: Table, rows: Sequence[Row], conflict: Conflict = Conflict.ABORTS) -> None:
        """See `Driver`."""
        self._send(insert(self.name, table, conflict), {"rows": _json(table, rows)})

    def _send(self, statement: Executable, parameters: Mapping[str, Any]) -> None:
        text = _text(statement, self.name)
        self._pipeline.send(text.sql, text.values(parameters))

    def commit(self) -> None:
        """See `Transaction`."""
        self.committed = True


class _Joined(Postgresql):
    """Between statements the connection is somebody else's: each travels alone."""

    def fetch(self, statement: Executable, parameters: Mapping[str, Any]) -> list[Row]:
        """See `Driver`."""
        with self._begun():
            return super().fetch(statement, parameters)

    def put(self, table: Table, rows: Sequence[Row], conflict: Conflict = Conflict.ABORTS) -> None:
        """See `Driver`."""
        with self._begun():
            super().put(table, rows, conflict)
            self._pipeline.results()

    @contextmanager
    def _begun(self) -> Iterator[None]:
        """psycopg begins a transaction only with the first statement that it sees."""
        with self._pipeline.entered():
            if self._pipeline.idle:
                self._pipeline.send(BEGIN)
            yield


@contextmanager
def _postgresql(pipeline: Pipeline) -> Iterator[Postgresql]:
    """BEGIN travels with the first statement and COMMIT with the last ones."""
    with pipeline.entered():
        try:
            pipeline.send(BEGIN)
            own = Postgresql(pipeline)
            yield own
            if own.committed:
                pipeline.send("COMMIT")
                pipeline.results()
        finally:
            if not (pipeline.idle or pipeline.broken):
                pipeline.send("ROLLBACK")
                pipeline.results()


def _pipeline(pooled: PoolProxiedConnection) -> Pipeline:
    """What has been prepared lives as long as its connection."""
    if "pipeline" not in pooled.info:
        pooled.info["pipeline"] = Pipeline(cast_to(psycopg.Connection[Row], pooled.driver_connection))
    pipeline: Pipeline = pooled.info["pipeline"]
    return pipeline


def _json(table: Table, rows: Sequence[Row]) -> str:
    """Rows as the statement reads them: bytes in hexadecimal, and without what the database draws itself."""
    names = _names(table)
    return json.dumps([
        {
            name: cell.hex() if isinstance(cell, bytes) else cell
            for name, cell in zip(names, row, strict=True)
            if name and cell is not None
        }
        for row in rows
    ])  # fmt: skip


@cache
def _names(table: Table) -> tuple[str, ...]:
    return tuple("" if each.identity is not None else each.name for each in table.columns)


# Both -------------------------------------------------------------------------------------------


class _Text(NamedTuple):
    """A compiled statement: its positional parameters in order, and those whose value stands in the statement."""

    sql: str
    order: Sequence[str]
    constants: Mapping[str, Any]

    def values(self, parameters: Mapping[str, Any]) -> list[Any]:
        """One for each place in the statement."""
        said = {**self.constants, **parameters}
        return [said[name] for name in self.order]


_DIALECTS: Final = {
    POSTGRESQL: postgresql.psycopg.dialect(paramstyle="numeric_dollar"),  # type: ignore[no-untyped-call]
    SQLITE: sqlite.dialect(),
}
_texts: Final[dict[tuple[Executable, str], _Text]] = {}


def _text(statement: Executable, name: str) -> _Text:
    if (statement, name) not in _texts:
        compiled = cast_to(SQLCompiler, statement.compile(dialect=_DIALECTS[name]))  # type: ignore[attr-defined]
        _texts[statement, name] = _Text(compiled.string, compiled.positiontup or (), compiled.params)
    return _texts[statement, name]
