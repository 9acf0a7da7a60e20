"""Migrations: they make what `ledger.tables` says, guard the journal, and refuse what does not fit."""

from __future__ import annotations

from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, create_engine, inspect, select, text
from sqlalchemy.exc import DBAPIError

from ledger.database import open_engine
from ledger.dialects import PARTITION_SPAN, transaction
from ledger.events import EPOCH_SHIFT
from ledger.journal import Mark, page
from ledger.schema import SchemaError, check_schema, migrate
from ledger.store import Ledger, Settings
from ledger.tables import metadata
from tests.acts import HeldBatch, Pod, a_pool, add, define, given
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


SHARED = ("ledger", "pool", "reservation", "subject")


def test_nothing_that_every_add_writes_points_at_rows_that_adds_share(database: Database) -> None:
    with database.engine(writes=False).connect() as connection:
        schema = inspect(connection)
        pointed_at = {
            key["referred_table"] for name in schema.get_table_names() for key in schema.get_foreign_keys(name)
        }
    assert not pointed_at & set(SHARED), "each insert would lock such a row"


def test_the_journal_is_kept_by_transaction_then_position(database: Database) -> None:
    with database.engine(writes=False).connect() as connection:
        assert inspect(connection).get_pk_constraint("event")["constrained_columns"] == ["tx", "position"]


def test_events_lie_in_partitions_by_their_transaction(postgresql: Database) -> None:
    engine = postgresql.engine()
    ledger = Ledger(engine, Settings(doubt_seconds=0))
    define(ledger, a_pool("a", "10.1.0.1"))
    given(ledger, Pod())
    with engine.connect() as connection:
        assert connection.execute(text("SELECT pg_get_partkeydef('event'::regclass)")).scalar_one() == "RANGE (tx)"
        used = connection.execute(text("SELECT DISTINCT tableoid::regclass::text FROM event")).scalars().all()
    assert used == partitions(engine)[:1]


def test_a_page_looks_only_into_the_partitions_between_its_mark_and_its_fence(postgresql: Database) -> None:
    engine = postgresql.engine()
    names = partitions(engine)
    lows = [int(name.removeprefix("event_")) for name in names]
    for mark, fence, touched in (
        (Mark(lows[2] + 5, 7), lows[2] + 9, names[2:3]),
        (Mark(lows[2] + 5, 7), lows[3] + 1, names[2:4]),
        (Mark(lows[6], 7), lows[6] + 1, names[6:7]),
    ):
        with engine.connect() as connection:
            page(connection, mark, before=fence)
            assert sorted(connection.execute(text(_LOOKED_INTO)).scalars()) == touched
            connection.invalidate()  # The next session counts anew.


_LOOKED_INTO = "SELECT relname FROM pg_stat_xact_user_tables WHERE relname LIKE 'event%' AND seq_scan + idx_scan > 0"


def partitions(engine: Engine) -> list[str]:
    """Those for transactions from now on, in order."""
    query = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'event'::regclass"
    with engine.connect() as connection:
        return sorted(set(connection.execute(text(query)).scalars()) - {"event_rest"})


def test_partitions_are_made_ahead_in_this_epoch_and_in_the_next(postgresql: Database) -> None:
    engine = postgresql.engine()
    with engine.connect() as connection:
        first = connection.execute(select(transaction())).scalar_one() // PARTITION_SPAN * PARTITION_SPAN
    later = first + (1 << EPOCH_SHIFT)
    lows = [int(name.removeprefix("event_")) for name in partitions(engine)]
    assert lows == [low + number * PARTITION_SPAN for low, count in ((first, 8), (later, 2)) for number in range(count)]


def test_a_partition_that_is_missing_is_made_and_where_none_is_nobody_has_to_wait(postgresql: Database) -> None:
    engine = postgresql.engine()
    made = partitions(engine)
    definition = define(Ledger(engine, Settings(doubt_seconds=0)), a_pool("a", "10.1.0.1"))
    with engine.begin() as connection:
        connection.execute(text(f"DROP TABLE {made[-1]}"))
    migrate(engine)
    assert partitions(engine) == made
    # The journal's locks are this one's until it ends: a lock that had to wait for it would be given up before.
    batch = HeldBatch(engine, definition, add(definition, Pod())).read().write()
    migrate(engine)
    batch.commit()


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


def test_the_journal_as_a_whole_is_not_truncated_even_where_a_partition_has_no_guard(postgresql: Database) -> None:
    engine = postgresql.engine()
    with engine.begin() as connection:
        for name in (*partitions(engine), "event_rest"):
            connection.execute(text(f"DROP TRIGGER event_is_not_truncated ON {name}"))
    with pytest.raises(DBAPIError, match=GUARDS), engine.begin() as connection:
        connection.execute(text("TRUNCATE event"))


def test_a_partition_that_is_made_later_keeps_its_events(postgresql: Database) -> None:
    engine = postgresql.engine()
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE event_later PARTITION OF event FOR VALUES FROM (1) TO (10)"))
    _put_one_event(engine, tx=5)
    for statement in ("UPDATE event_later SET cause = 'x'", "DELETE FROM event_later"):
        with pytest.raises(DBAPIError, match=GUARDS), engine.begin() as connection:
            connection.execute(text(statement))


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


def test_a_replacing_insert_cannot_take_an_address_away(sqlite: Database) -> None:
    engine = sqlite.engine()
    _put_one_event(engine)
    with pytest.raises(DBAPIError, match=GUARDS), engine.begin() as connection:
        connection.execute(text("REPLACE INTO address SELECT * FROM address"))


def _put_one_event(engine: Any, tx: int = (1 << 44) + 1000) -> None:
    with engine.begin() as connection:
        position, value = ("position, ", "1, ") if engine.dialect.name == "sqlite" else ("", "")
        connection.execute(text(
            f"INSERT INTO event (tx, {position}id, type, version, recorded_at, happened_at, actor, cause, data, "
            "digest) "
            f"VALUES ({tx}, {value}7, 't', 1, 1, 1, 'a', 'c', '{{}}', :digest)"
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
