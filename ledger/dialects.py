"""What PostgreSQL and SQLite say differently: clock, transaction id, JSON rows, pipeline, BEGIN, connect settings.

Every statement of the ledger is written once in SQLAlchemy Core; where the two databases need other
words, the words are here. Who builds engines (`ledger.database`) attaches them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final
from typing import cast as cast_to

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Executable,
    FromClause,
    LargeBinary,
    Table,
    Text,
    TypeDecorator,
    bindparam,
    cast,
    column,
    event,
    func,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.expression import FunctionElement, Insert, Select
from sqlalchemy.types import JSON, TypeEngine

from ledger.events import EPOCH_SHIFT

LOCK_TIMEOUT_MS: Final = 900
"""How long a statement waits for one row lock: below the second in which every request is answered."""
TRANSACTION_IDLE_TIMEOUT_MS: Final = 5_000
"""How long a transaction of ours may sit idle before PostgreSQL ends it: an open one stops the journal's readers."""
TCP_USER_TIMEOUT_MS: Final = 10_000
CONNECT_TIMEOUT_S: Final = 5
SQLITE_BUSY_TIMEOUT_MS: Final = 5_000
PARTITION_SPAN: Final = 1 << 24
"""Transactions that one partition of the journal takes."""


class clock(FunctionElement[int]):
    """The database's clock, microseconds since 1970 UTC; stable in a statement, so that an index can stand on it."""

    type = BigInteger()
    inherit_cache = True


class transaction(FunctionElement[int]):
    """The number of this transaction: ``epoch << 44 | id``, from the ledger's row."""

    type = BigInteger()
    inherit_cache = True


class fence(FunctionElement[int]):
    """The first transaction that a reader of the journal must not look at yet."""

    type = BigInteger()
    inherit_cache = True


class incarnation(FunctionElement[str]):
    """Which run of the server this is: when it started, and its timeline."""

    type = Text()
    inherit_cache = True


@compiles(clock, "postgresql")
def _clock_postgresql(element: clock, compiler: SQLCompiler, **kw: Any) -> str:
    return "(extract(epoch FROM now()) * 1000000)::bigint"


@compiles(clock, "sqlite")
def _clock_sqlite(element: clock, compiler: SQLCompiler, **kw: Any) -> str:
    return "clock_us()"


@compiles(transaction, "postgresql")
def _transaction_postgresql(element: transaction, compiler: SQLCompiler, **kw: Any) -> str:
    return f"((SELECT epoch FROM ledger)::bigint << {EPOCH_SHIFT} | pg_current_xact_id()::text::bigint)"


@compiles(transaction, "sqlite")
def _transaction_sqlite(element: transaction, compiler: SQLCompiler, **kw: Any) -> str:
    last = "SELECT position FROM event ORDER BY tx DESC, position DESC LIMIT 1"
    return f"((SELECT epoch FROM ledger) << {EPOCH_SHIFT} | coalesce(({last}), 0) + 1)"


@compiles(fence, "postgresql")
def _fence_postgresql(element: fence, compiler: SQLCompiler, **kw: Any) -> str:
    xmin = "pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
    return f"((SELECT epoch FROM ledger)::bigint << {EPOCH_SHIFT} | {xmin})"


@compiles(fence, "sqlite")
def _fence_sqlite(element: fence, compiler: SQLCompiler, **kw: Any) -> str:
    return f"((SELECT epoch FROM ledger) + 1 << {EPOCH_SHIFT})"


@compiles(incarnation, "postgresql")
def _incarnation_postgresql(element: incarnation, compiler: SQLCompiler, **kw: Any) -> str:
    started = "(extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint"
    return f"({started} || '/' || left(pg_walfile_name(pg_current_wal_lsn()), 8))"


@compiles(incarnation, "sqlite")
def _incarnation_sqlite(element: incarnation, compiler: SQLCompiler, **kw: Any) -> str:
    return "file_identity()"


def is_postgresql(bound: Connection | Engine) -> bool:
    """Which of the two it is."""
    return bound.dialect.name == "postgresql"


def plain_type(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """What a value of this column is in JSON: bytes are hexadecimal text."""
    inner = type_.impl if isinstance(type_, TypeDecorator) else type_
    if isinstance(inner, LargeBinary):
        return Text()
    return Text() if isinstance(inner, Text) else type_


def json_rows(
    dialect: str, parameter: str, columns: Sequence[Column[Any]]
) -> tuple[FromClause, list[ColumnElement[Any]]]:
    """Rows out of one JSON parameter, a list of objects, as a table and its typed columns.

    One text parameter is prepared once whatever the number of rows; a VALUES list is compiled anew for each.
    """
    if dialect == "postgresql":
        source = func.json_to_recordset(cast(bindparam(parameter, type_=Text()), JSON)).table_valued(
            *(column(each.name, plain_type(each.type)) for each in columns), name=parameter
        )
        rows: FromClause = source.render_derived(with_types=True)
        return rows, [_postgresql_value(rows.c[each.name], each) for each in columns]
    rows = func.json_each(bindparam(parameter, type_=Text())).table_valued("key", "value", name=parameter)
    return rows, [_sqlite_value(rows.c.value, each) for each in columns]


def _is_binary(each: Column[Any]) -> bool:
    inner = each.type.impl if isinstance(each.type, TypeDecorator) else each.type
    return isinstance(inner, LargeBinary)


def _postgresql_value(value: ColumnElement[Any], each: Column[Any]) -> ColumnElement[Any]:
    return func.decode(value, text("'hex'"), type_=each.type) if _is_binary(each) else value


def _sqlite_value(value: ColumnElement[Any], each: Column[Any]) -> ColumnElement[Any]:
    extracted = func.json_extract(value, text(f"'$.{each.name}'"), type_=each.type)
    return func.from_hex(extracted, type_=each.type) if _is_binary(each) else extracted


def insert_rows(dialect: str, table: Table, parameter: str, *, replace: bool = False, ignore: bool = False) -> Insert:
    """INSERT … SELECT from one JSON parameter; `replace` updates the row of the same key, `ignore` leaves it."""
    journal = table.name == "event"
    columns = [each for each in table.columns if not (journal and each.name == "position")]
    rows, values = json_rows(dialect, parameter, columns)
    names = [each.name for each in columns]
    if journal and dialect == "sqlite":
        # The writer is alone: positions follow the last one, and a transaction's number is its first position.
        names.append("position")
        mask = (1 << EPOCH_SHIFT) - 1
        values.append(values[names.index("tx")].op("&")(mask) + rows.c.key)
    query: Select[Any] = select(*values).select_from(rows).where(text("true"))
    base = (postgresql if dialect == "postgresql" else sqlite).insert(table)
    insert: postgresql.Insert | sqlite.Insert = base.from_select(names, query, include_defaults=False).inline()
    keys = list(table.primary_key.columns)
    if replace:
        changed = {name: insert.excluded[name] for name in names if name not in table.primary_key.columns}
        insert = insert.on_conflict_do_update(index_elements=keys, set_=changed)
    elif ignore:
        insert = insert.on_conflict_do_nothing(index_elements=keys)
    return insert


_texts: dict[tuple[Executable, str], tuple[str, Sequence[str] | None, Mapping[str, Any]]] = {}


def run(connection: Connection, statement: Executable, parameters: Mapping[str, Any]) -> Any:
    """Execute a statement of the hot path; answers the driver's cursor.

    Its text is compiled once for each database. An `execute` of SQLAlchemy's costs four times as much processor time
    here, most of it for a description of the result that nobody asks for. Errors are the driver's own.
    """
    key = (statement, connection.dialect.name)
    if key not in _texts:
        compiled = cast_to(SQLCompiler, statement.compile(dialect=connection.dialect))  # type: ignore[attr-defined]
        _texts[key] = (compiled.string, compiled.positiontup, compiled.params)
    text_, order, constants = _texts[key]
    said = {**constants, **parameters}
    cursor: Any = connection.connection.cursor()
    cursor.execute(text_, said if order is None else [said[name] for name in order])
    return cursor


@contextmanager
def flight(connection: Connection) -> Iterator[None]:
    """On PostgreSQL the statements inside go out together and are answered together."""
    if not is_postgresql(connection):
        yield
        return
    driver: Any = connection.connection.driver_connection
    with driver.pipeline():
        yield


def on_connect_postgresql(engine: Engine) -> None:
    """Bounded waits, and plans that a fresh, never analyzed table cannot spoil."""
    settings = {
        "lock_timeout": LOCK_TIMEOUT_MS,
        "idle_in_transaction_session_timeout": TRANSACTION_IDLE_TIMEOUT_MS,
        "tcp_user_timeout": TCP_USER_TIMEOUT_MS,
        "jit": "off",
        "enable_seqscan": "off",
    }

    @event.listens_for(engine, "connect")
    def apply(connection: Any, record: Any) -> None:
        with connection.cursor() as cursor:
            for name, value in settings.items():
                cursor.execute("SELECT set_config(%s, %s, false)", (name, str(value)))
        connection.commit()


def on_connect_sqlite(engine: Engine, identity: Any, now_us: Any, *, writes: bool) -> None:
    """WAL with full durability for the one writer; readers cannot write.

    `identity` tells which file this is and `now_us` the writer's clock: SQLite has neither.
    """

    @event.listens_for(engine, "connect")
    def apply(connection: sqlite3.Connection, record: Any) -> None:
        connection.isolation_level = None
        connection.create_function("from_hex", 1, _from_hex, deterministic=True)
        connection.create_function("clock_us", 0, now_us)
        connection.create_function("file_identity", 0, identity)
        connection.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_TIMEOUT_MS}")
        if not writes:
            connection.execute("PRAGMA query_only = on")
            return
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("PRAGMA synchronous = full")
        connection.execute("PRAGMA foreign_keys = on")
        # Without it REPLACE would delete behind the back of the triggers that forbid deleting.
        connection.execute("PRAGMA recursive_triggers = on")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        driver.execute("BEGIN IMMEDIATE" if writes else "BEGIN")


def _from_hex(value: str | None) -> bytes | None:
    return None if value is None else bytes.fromhex(value)
