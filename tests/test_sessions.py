"""What each session with the database is told when it connects: bounded waits, and plans that no table can spoil."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, text

from ledger import dialects
from ledger.store import Ledger, Settings
from tests.acts import a_pool, add, ask, define, delete, pods, until
from tests.conftest import Database

TURNS = 20
PODS_PER_TURN = 25


@pytest.mark.parametrize(("name", "said"), [
    ("lock_timeout", dialects.LOCK_TIMEOUT_MS),
    ("idle_in_transaction_session_timeout", dialects.TRANSACTION_IDLE_TIMEOUT_MS),
    ("tcp_user_timeout", None),  # shown as 0 where the server is reached by a Unix socket
    ("jit", "off"),
    ("enable_seqscan", "off"),
])  # fmt: skip
def test_every_session_on_postgresql_has_these_settings(postgresql: Database, name: str, said: object) -> None:
    engine = postgresql.engine(connections=2)
    query = text("SELECT setting, source FROM pg_settings WHERE name = :name")
    with engine.connect() as one, engine.connect() as other:
        for connection in (one, other):
            setting, source = connection.execute(query, {"name": name}).one()
            assert source == "session"
            assert said is None or setting == str(said)


@pytest.mark.parametrize(("name", "said"), [
    ("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("recursive_triggers", 1), ("query_only", 0),
    ("busy_timeout", dialects.SQLITE_BUSY_TIMEOUT_MS),
])  # fmt: skip
def test_the_writer_on_sqlite_has_these_settings(sqlite: Database, name: str, said: object) -> None:
    with sqlite.engine().connect() as connection:
        assert connection.execute(text(f"PRAGMA {name}")).scalar_one() == said


def test_readers_on_sqlite_cannot_write(sqlite: Database) -> None:
    with sqlite.engine(writes=False).connect() as connection:
        assert connection.execute(text("PRAGMA query_only")).scalar_one() == 1


@pytest.mark.parametrize("analyzed", [False, True], ids=["never analyzed", "analyzed when it was small"])
def test_a_ledger_that_grows_is_never_read_from_end_to_end(postgresql: Database, analyzed: bool) -> None:
    engine = postgresql.engine()
    ledger = Ledger(engine, Settings(doubt_seconds=0))
    definition = define(ledger, a_pool("a", "10.1.0.1-10.1.255.254"))

    def turn(number: int) -> None:
        users = pods(PODS_PER_TURN, f"turn-{number}")
        ask(ledger, *(add(definition, pod) for pod in users))
        ask(ledger, *(delete(pod) for pod in users[1:]))

    turn(0)
    if analyzed:
        with engine.begin() as connection:
            connection.execute(text("ANALYZE address, extent, subject, event"))
    before = scans(engine)
    for number in range(1, TURNS):
        turn(number)
    after = scans(engine)
    assert after["whole"] == before["whole"]
    assert after["by index"] > before["by index"] + TURNS


def scans(engine: Engine) -> dict[str, int]:
    """How often a table that grows was read, as the sessions report when they end."""
    engine.dispose()
    others = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    counts = text(
        "SELECT coalesce(sum(seq_scan), 0), coalesce(sum(idx_scan), 0) FROM pg_stat_user_tables "
        "WHERE relname IN ('address', 'extent', 'subject') OR relname LIKE 'event%'"
    )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        until(lambda: not connection.execute(others).scalar_one(), "the sessions end")
        whole, by_index = connection.execute(counts).one()
    return {"whole": whole, "by index": by_index}
