"""libpq's pipeline mode as `ledger.pipeline` and the driver use it, against a real server."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.errors import AdminShutdown, InvalidSqlStatementName, UndefinedTable, UniqueViolation
from sqlalchemy import func, select, text

from ledger.driver import joined, transaction
from ledger.pipeline import Pipeline
from ledger.requests import Granted
from ledger.store import Ledger, Settings
from ledger.tables import checkpoint
from tests.acts import Pod, a_pool, add, define
from tests.conftest import Database

LARGE = 4 << 20
"""More than any socket takes at once."""


@pytest.fixture
def connection(postgresql: Database) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgresql.url.replace("+psycopg", ""), autocommit=True, prepare_threshold=None) as opened:
        yield opened


@pytest.fixture
def pipeline(connection: psycopg.Connection[Any]) -> Iterator[Pipeline]:
    pipeline = Pipeline(connection)
    with pipeline.entered():
        yield pipeline


def test_what_is_sent_is_answered_together_in_its_order(pipeline: Pipeline) -> None:
    for number in (1, 2, 1):
        pipeline.send("SELECT $1::int, $2::text, $3::bytea", (number, None, "\\x00ff"))
    assert pipeline.results() == [(1, None, b"\0\xff"), (2, None, b"\0\xff"), (1, None, b"\0\xff")]
    assert pipeline.results() == []


def test_each_statement_is_prepared_once(pipeline: Pipeline) -> None:
    for _ in range(3):
        pipeline.send("SELECT 1")
        pipeline.results()
    pipeline.send("SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT 1'")
    assert pipeline.results() == [(1,)]


def test_the_first_error_is_raised_and_what_follows_is_not_done(pipeline: Pipeline) -> None:
    pipeline.send("BEGIN")
    pipeline.send("SELECT * FROM nowhere")
    pipeline.send("SELECT 1 / 0")
    pipeline.send("COMMIT")
    with pytest.raises(UndefinedTable):
        pipeline.results()
    assert not pipeline.idle
    pipeline.send("ROLLBACK")
    pipeline.results()
    assert pipeline.idle


def test_what_was_prepared_together_with_a_failure_is_prepared_again(pipeline: Pipeline) -> None:
    pipeline.send("SELECT 7")
    pipeline.send("SELECT * FROM nowhere")
    pipeline.send("SELECT 8")
    with pytest.raises(UndefinedTable):
        pipeline.results()
    pipeline.send("SELECT 7")
    pipeline.send("SELECT 8")
    assert pipeline.results() == [(7,), (8,)]


def test_what_somebody_has_deallocated_is_prepared_again(pipeline: Pipeline) -> None:
    for statement in ("SELECT 7", "SELECT 8", "DEALLOCATE ALL"):
        pipeline.send(statement)
    pipeline.results()
    pipeline.send("SELECT 7")
    with pytest.raises(InvalidSqlStatementName):
        pipeline.results()
    for statement in ("SELECT 7", "SELECT 8"):
        pipeline.send(statement)
    assert pipeline.results() == [(7,), (8,)]


def test_an_act_goes_on_where_somebody_has_deallocated_what_it_had_prepared(postgresql: Database) -> None:
    engine = postgresql.engine(connections=1)
    ledger = Ledger(engine, Settings(doubt_seconds=0))
    definition = define(ledger, a_pool("a", "10.1.0.1-10.1.0.9"))
    for name in ("first", "second"):
        pod = Pod(name, f"u-{name}", f"c-{name}")
        assert isinstance(ledger.act([add(definition, pod)])[0], Granted)
        with engine.connect() as connection:
            connection.execute(text("DEALLOCATE ALL"))


def test_a_server_that_goes_says_why(pipeline: Pipeline) -> None:
    pipeline.send("SELECT pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(AdminShutdown):
        pipeline.results()
    with pytest.raises(psycopg.OperationalError):
        pipeline.send("SELECT 1")
        pipeline.results()
    assert pipeline.broken


def test_much_goes_both_ways_at_once(pipeline: Pipeline) -> None:
    for letter in "abc":
        pipeline.send("SELECT $1::text", (letter * LARGE,))
    assert [row[0] == letter * LARGE for row, letter in zip(pipeline.results(), "abc", strict=True)] == [True] * 3


def test_after_an_interruption_nobody_gets_the_answers_of_before(pipeline: Pipeline) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        pipeline.send("SELECT 1, pg_sleep(0.5)")
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(InterruptedError):
            pipeline.results()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    pipeline.send("SELECT 2")
    assert pipeline.results() == [(2,)]


def test_a_driver_that_joins_writes_in_the_other_ones_transaction(postgresql: Database) -> None:
    engine = postgresql.engine()
    count = select(func.count()).select_from(checkpoint).where(checkpoint.c.projection == "mine")
    with engine.connect() as connection:
        joined(connection).put(checkpoint, [("mine", 1, 1)])  # Nothing has been said on it before.
        assert connection.execute(count).scalar_one() == 1
        connection.rollback()
        assert connection.execute(count).scalar_one() == 0


def test_a_transaction_that_fails_at_its_end_leaves_nothing_and_its_connection_is_good(postgresql: Database) -> None:
    engine = postgresql.engine()
    with pytest.raises(UniqueViolation), transaction(engine) as own:
        for _ in range(2):
            own.put(checkpoint, [("mine", 1, 1)])
        own.commit()
    with transaction(engine) as own:
        assert own.fetch(select(func.count()).select_from(checkpoint), {}) == [(0,)]


def test_what_is_not_committed_is_rolled_back(postgresql: Database) -> None:
    engine = postgresql.engine()
    with transaction(engine) as own:
        own.put(checkpoint, [("mine", 1, 1)])
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM checkpoint")).scalar_one() == 0
