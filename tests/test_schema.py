"""Migrations: they make what `ledger.tables` says, guard the journal, and refuse what does not fit."""

from __future__ import annotations

from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.exc import DBAPIError

from ledger.database import open_engine
from ledger.schema import SchemaError, check_schema, migrate
from ledger.tables import metadata
from tests.conftest import Database

GUARDS = r"event_is_append_only|address_is_for_ever|address_step_follows"


def test_migrations_make_exactly_the_tables_of_the_code(database: Database) -> None:
    with database.engine(writes=False).connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences: list[Any] = [each for each in compare_metadata(context, metadata) if not _is_partition(each)]
        assert differences == []
        for table in metadata.sorted_tables:
            made = {each["name"] for each in inspect(connection).get_check_constraints(table.name)}
            said = {each.name for each in table.constraints if type(each).__name__ == "CheckConstraint"}
            assert made == said, table.name


def _is_partition(difference: Any) -> bool:
    kind, subject = difference[0], difference[1] if isinstance(difference, tuple) else None
    name = getattr(subject, "name", "")
    owner = getattr(getattr(subject, "table", None), "name", "")
    return kind.startswith("remove_") and (str(name).startswith("event_") and (owner or name) != "event")


def test_migrating_again_changes_nothing(database: Database) -> None:
    engine = database.engine()
    assert migrate(engine) == migrate(engine) == "0001"
    check_schema(engine)
    engine.dispose()


def test_a_database_without_a_ledger_says_what_to_run(tmp_path: Any) -> None:
    engine = open_engine(str(tmp_path / "empty.db"))
    with pytest.raises(SchemaError, match="run `spiderledger migrate`"):
        check_schema(engine)
    engine.dispose()


@pytest.mark.parametrize("statement", [
    "UPDATE event SET cause = 'x'",
    "DELETE FROM event",
    "DELETE FROM address",
    "UPDATE address SET step = step + 2",
    "UPDATE address SET step = step",
    "UPDATE address SET step = step + 1, claim = 'somebody-else'",
])  # fmt: skip
def test_history_cannot_be_changed(database: Database, statement: str) -> None:
    engine = database.engine()
    _put_one_event(engine)
    with pytest.raises(DBAPIError, match=GUARDS), engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


@pytest.mark.parametrize("table", ["event", "address"])
def test_history_cannot_be_truncated(postgresql: Database, table: str) -> None:
    engine = postgresql.engine()
    _put_one_event(engine)
    with engine.connect() as connection:
        query = text("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = CAST(:t AS regclass)")
        names = [table, *connection.execute(query, {"t": table}).scalars()]
    for name in names:
        for statement in (f"TRUNCATE {name} CASCADE", f"UPDATE {name} SET step = 9", f"DELETE FROM {name}"):
            if statement.startswith("TRUNCATE") or _rows(engine, name):
                with pytest.raises(DBAPIError, match=GUARDS), engine.begin() as connection:
                    connection.execute(text(statement))
    engine.dispose()


def _rows(engine: Any, name: str) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one())


@pytest.mark.parametrize("verb", ["REPLACE", "INSERT OR REPLACE"])
def test_a_replacing_insert_cannot_change_the_journal(sqlite: Database, verb: str) -> None:
    engine = sqlite.engine()
    _put_one_event(engine)
    engine.dispose()
    # With a plain connection, which does not ask for recursive triggers as ours do.
    plain = create_engine(sqlite.url)
    with pytest.raises(DBAPIError, match="event_is_append_only"), plain.begin() as connection:
        connection.execute(text(f"{verb} INTO event SELECT * FROM event"))
    plain.dispose()


def _put_one_event(engine: Any) -> None:
    with engine.begin() as connection:
        position, value = ("position, ", "1, ") if engine.dialect.name == "sqlite" else ("", "")
        connection.execute(text(
            f"INSERT INTO event (tx, {position}id, type, version, recorded_at, happened_at, actor, cause, data, "
            "digest) "
            f"VALUES ((1 * 17592186044416) + 1000, {value}7, 't', 1, 1, 1, 'a', 'c', '{{}}', :digest)"
        ), {"digest": b"\0"})  # fmt: skip
        connection.execute(text(
            "INSERT INTO address (ip, pool, held, withheld, ready, step, at, claim, result) "
            "VALUES (:ip, 1, true, false, 0, 1, 1, 'me', '{}')"
        ), {"ip": b"\4\12\0\0\1"})  # fmt: skip


def test_the_agents_role_owns_nothing_and_cannot_rewrite_history(postgresql: Database) -> None:
    engine = postgresql.engine()
    _put_one_event(engine)
    for statement in ("UPDATE event SET cause = ''", "DELETE FROM event", "TRUNCATE event", "DELETE FROM address",
                      "DROP TABLE event", "ALTER TABLE event DISABLE TRIGGER ALL", "CREATE TABLE x (y int)",
                      "DELETE FROM ledger", "UPDATE subject SET document = ''"):  # fmt: skip
        with pytest.raises(DBAPIError, match=r"permission denied|must be owner"), engine.begin() as connection:
            connection.execute(text("SET LOCAL ROLE spiderledger_agent"))
            connection.execute(text(statement))
    engine.dispose()
