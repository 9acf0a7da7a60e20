"""What PostgreSQL and SQLite say differently: clock, transaction id, JSON rows, pipeline, BEGIN, connect settings.

Every statement of the ledger is written once in SQLAlchemy Core; where the two databases need other
words, the words are here. Who builds engines (`ledger.database`) attaches them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from enum import Enum
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
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
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.expression import FunctionElement, Insert
from sqlalchemy.types import JSON, TypeEngine

from ledger.events import EPOCH_SHIFT

POSTGRESQL: Final = "postgresql"
SQLITE: Final = "sqlite"
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
    return bound.dialect.name == POSTGRESQL


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
    if dialect == POSTGRESQL:
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


class Conflict(Enum):
    """What becomes of a row whose key is there already."""

    ABORTS = "the whole transaction fails"
    REPLACES = "the new row takes its place"
    IGNORED = "the old row stays"


@cache
def insert(dialect: str, table: Table, conflict: Conflict) -> Insert:
    """One row of positional parameters on SQLite; on PostgreSQL any number out of the JSON parameter `rows`.

    Columns that PostgreSQL draws itself are not in its JSON.
    """
    if dialect == SQLITE:
        names = list(table.columns.keys())
        values: dict[str, Any] = {name: bindparam(name) for name in names}
        return _on_conflict(sqlite.insert(table).values(values), table, names, conflict)
    said = [each for each in table.columns if each.identity is None]
    rows, cells = json_rows(dialect, "rows", said)
    names = [each.name for each in said]
    base = postgresql.insert(table).from_select(names, select(*cells).select_from(rows), include_defaults=False)
    # `inline`: the RETURNING of an identity, which nobody reads, cannot travel together with other statements.
    return _on_conflict(base.inline(), table, names, conflict)


def _on_conflict(
    base: postgresql.Insert | sqlite.Insert, table: Table, names: Sequence[str], conflict: Conflict
) -> Insert:
    keys = list(table.primary_key.columns)
    if conflict is Conflict.IGNORED:
        return base.on_conflict_do_nothing(index_elements=keys)
    if conflict is Conflict.REPLACES:
        changed = {name: base.excluded[name] for name in names if name not in table.primary_key.columns}
        return base.on_conflict_do_update(index_elements=keys, set_=changed)
    return base


def alone(connection: Connection) -> None:
    """Nobody else reads the ledger's row until this transaction ends, and whoever had read it has ended.

    So nobody writes an event by a row that is not true any more. On SQLite the one writer is alone anyway.
    """
    if is_postgresql(connection):
        connection.execute(text("LOCK TABLE ledger IN ACCESS EXCLUSIVE MODE"))


def on_connect_postgresql(engine: Engine) -> None:
    """Bounded waits, and plans that a fresh, never analyzed table cannot spoil."""
    settings = {
        "lock_timeout": LOCK_TIMEOUT_MS,
        "idle_in_transaction_session_timeout": TRANSACTION_IDLE_TIMEOUT_MS,
        "tcp_user_timeout": TCP_USER_TIMEOUT_MS,
        "jit": "off",
        # Else the first five runs of each statement on a new connection are planned one by one, a millisecond each.
        "plan_cache_mode": "force_generic_plan",
        "enable_seqscan": "off",
        # Rows are joined to the few that a batch names: a merge would walk through the whole index instead.
        "enable_mergejoin": "off",
        "enable_hashjoin": "off",
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

    @event.listens_for(engine, "checkout")
    def same_file(connection: sqlite3.Connection, record: Any, proxy: Any) -> None:
        """Where another file lies by now, the one that is open is nobody's any more."""
        if record.info["file"] != identity():
            raise DisconnectionError("another file lies there")

    @event.listens_for(engine, "connect")
    def apply(connection: sqlite3.Connection, record: Any) -> None:
        record.info["file"] = identity()
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
