"""The tail: nothing skipped, nothing counted twice, whoever writes, dies or goes away meanwhile."""

from __future__ import annotations

import logging
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import cast

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, select, text

from ledger import tables
from ledger.database import database_url, open_engine
from ledger.events import Event
from ledger.journal import Mark
from ledger.schema import migrate
from projector.checkpoints import AnotherProjectorError
from projector.lag import LAG_WARNING_US
from projector.projections import HOLDING, OCCUPANCY, PROJECTIONS, Key, Occupancy
from projector.tail import Tail, rebuild
from tests.conftest import Database
from tests.journals import Journal, pod, projected, started
from tests.postgresql import Server

PATIENCE = 60
"""Seconds after which a test that waits for something gives up."""


def caught_up(tail: Tail) -> int:
    """Everything below the fence is applied; how many events that were."""
    applied = 0
    while found := tail.step():
        applied += found
    return applied


def checkpoints(engine: Engine) -> set[Mark]:
    with engine.connect() as connection:
        return {Mark(row.tx, row.position) for row in connection.execute(select(tables.checkpoint))}


@contextmanager
def running(tail: Tail) -> Iterator[threading.Thread]:
    """The tail in a thread of its own, as the agent hosts it."""
    stop = threading.Event()
    thread = threading.Thread(target=tail.run, args=(stop,), daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(PATIENCE)
    assert not thread.is_alive()


def eventually(question: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while not question() and time.monotonic() < end:
        time.sleep(0.01)
    return question()


def test_an_empty_journal_has_nothing_to_apply(database: Database) -> None:
    tail = Tail(database.engine(), PROJECTIONS)
    assert (tail.step(), tail.mark) == (0, Mark())


def test_a_step_applies_one_page_and_moves_every_checkpoint_with_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projector.tail.PAGE_EVENTS", 10)
    journal = started(database.engine())
    journal.write(32)
    tail = Tail(journal.engine, PROJECTIONS)
    applied = []
    while found := tail.step():
        applied.append(found)
        assert checkpoints(journal.engine) == {tail.mark}
    assert applied == [10, 10, 10, journal.events - 30]
    assert projected(journal.engine) == (journal.holdings, journal.occupancy)


def test_a_reader_of_its_own_leaves_the_writers_connection_alone(sqlite: Database) -> None:
    journal = started(sqlite.engine())
    tail = Tail(journal.engine, PROJECTIONS, reader=sqlite.engine(writes=False))
    caught_up(tail)
    with journal.engine.connect():
        # The one connection that writes is taken: only a tail that has nothing to write can still look.
        assert tail.step() == 0
        assert tail.lag() is None
    journal.write(50)
    caught_up(tail)
    assert projected(journal.engine) == (journal.holdings, journal.occupancy)


def test_a_tail_abandoned_between_pages_is_carried_on_by_another(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projector.tail.PAGE_EVENTS", 7)
    journal = started(database.engine(), seed=11)
    journal.write(120)
    applied = 0
    while found := Tail(journal.engine, PROJECTIONS).step():
        applied += found
    assert applied == journal.events
    assert projected(journal.engine) == (journal.holdings, journal.occupancy)


@pytest.mark.parametrize("page_of_death", [1, 2, 4])
def test_a_page_that_cannot_be_finished_leaves_no_trace(
    database: Database, monkeypatch: pytest.MonkeyPatch, page_of_death: int
) -> None:
    monkeypatch.setattr("projector.tail.PAGE_EVENTS", 20)
    journal = started(database.engine(), seed=12)
    journal.write(120)
    tail = Tail(journal.engine, PROJECTIONS)
    for _ in range(page_of_death - 1):
        tail.step()
    before = projected(journal.engine), checkpoints(journal.engine)
    # Both checkpoints and the holdings are written when the database refuses this one's rows.
    broken = replace(OCCUPANCY, apply=lambda image, key, event: Occupancy(key[0], total=cast(int, None)))
    with pytest.raises((sqlite3.IntegrityError, psycopg.IntegrityError)):
        Tail(journal.engine, [HOLDING, broken]).step()
    assert (projected(journal.engine), checkpoints(journal.engine)) == before
    caught_up(Tail(journal.engine, PROJECTIONS))
    assert projected(journal.engine) == (journal.holdings, journal.occupancy)


def test_an_event_from_the_future_stops_the_tail_in_front_of_it(database: Database) -> None:
    journal = started(database.engine())
    tail = Tail(journal.engine, PROJECTIONS)
    caught_up(tail)
    before = projected(journal.engine), checkpoints(journal.engine)
    with journal.transaction() as writing:
        writing.refuse(pod(), [1])
        writing.events[-1] = writing.events[-1]._replace(version=2)
    with pytest.raises(ValueError, match="version 2 is not known here"):
        tail.run(threading.Event())
    assert (projected(journal.engine), checkpoints(journal.engine)) == before


# Writers that overtake each other ---------------------------------------------------------------


def test_what_commits_before_an_older_transaction_waits_for_it(postgresql: Database) -> None:
    journal = started(postgresql.engine())
    tail = Tail(journal.engine, PROJECTIONS)
    caught_up(tail)
    mark = tail.mark
    with journal.transaction() as late:
        with journal.transaction() as early:
            early.refuse(pod(), [1])
        assert (tail.step(), tail.mark) == (0, mark)
        late.refuse(pod(), [2])
    assert caught_up(tail) == 2
    assert projected(journal.engine)[1] == journal.occupancy


def test_steps_of_an_address_that_stand_in_the_wrong_order_are_put_right(postgresql: Database) -> None:
    journal = started(postgresql.engine())
    ip = journal.pools[1][0]
    with journal.transaction() as writing:
        writing.allocate(ip, pod("first", uid="a"), "c1")
    with journal.transaction() as late:
        with journal.transaction() as early:
            early.release(ip)
        late.allocate(ip, pod("second", uid="b"), "c2")
        late.rebind(ip, "c3")
    with journal.transaction() as late:
        with journal.transaction() as early:
            early.rebind(ip, "c4", "node-2", pod("third", uid="b"))
        late.release(ip)
    with journal.engine.connect() as connection:
        order = select(tables.event.c.step).where(tables.event.c.ip == ip)
        steps = connection.execute(order.order_by(tables.event.c.tx, tables.event.c.position)).scalars().all()
    assert steps == [1, 3, 4, 2, 6, 5]
    caught_up(Tail(journal.engine, PROJECTIONS))
    assert projected(journal.engine) == (journal.holdings, journal.occupancy)


def test_what_was_rolled_back_is_passed_over(postgresql: Database) -> None:
    journal = started(postgresql.engine())
    for _ in range(3):
        undone = Journal(journal.engine, Random(5), pools=journal.pools)
        with pytest.raises(ZeroDivisionError), undone.transaction() as writing:
            writing.refuse(pod(), [1])
            raise ZeroDivisionError
        with journal.transaction() as writing:
            writing.refuse(pod(), [2])
    caught_up(Tail(journal.engine, PROJECTIONS))
    assert projected(journal.engine)[1] == journal.occupancy


WRITERS = 6


@pytest.mark.parametrize("seed", [1, 2])
def test_writers_that_commit_out_of_order_are_neither_skipped_nor_counted_twice(
    postgresql: Database, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr("projector.tail.PAGE_EVENTS", 13)
    first = started(postgresql.engine(), pools=WRITERS)
    engine = postgresql.engine(connections=WRITERS)
    writers = [
        Journal(engine, Random(seed * 100 + number), pools={number: first.pools[number]})
        for number in range(1, WRITERS + 1)
    ]
    threads = [threading.Thread(target=each.write, args=(60, 3, 0.02), daemon=True) for each in writers]
    tail = Tail(first.engine, PROJECTIONS)
    for thread in threads:
        thread.start()
    applied = 0
    while any(thread.is_alive() for thread in threads):
        applied += tail.step()
    applied += caught_up(tail)
    assert applied == first.events + sum(each.events for each in writers)
    holdings, occupancy = projected(first.engine)
    assert holdings == {key: row for each in writers for key, row in each.holdings.items()}
    for each in writers:
        for pool, row in each.occupancy.items():
            counts = {"allocated": row["allocated"], "refused": row["refused"]}
            assert occupancy[pool] == first.occupancy[pool] | counts


def test_a_tail_needs_no_more_than_the_agents_role(postgresql: Database) -> None:
    journal = started(postgresql.engine(), seed=8)
    journal.write(40)
    granted = open_engine(postgresql.url + "&options=-c%20role%3Dspiderledger_agent")
    tail = Tail(granted, PROJECTIONS)
    assert tail.lag() is not None
    assert caught_up(tail) == journal.events
    rebuild(granted, "holding")
    granted.dispose()
    assert projected(journal.engine) == (journal.holdings, journal.occupancy)


# Another projector ------------------------------------------------------------------------------


def test_of_two_tails_that_take_turns_the_one_that_comes_late_stops(database: Database) -> None:
    journal = started(database.engine())
    one, other = Tail(journal.engine, PROJECTIONS), Tail(journal.engine, PROJECTIONS)
    caught_up(one)
    caught_up(other)
    journal.write(20)
    caught_up(one)
    with pytest.raises(AnotherProjectorError, match="the projection holding was moved by somebody else"):
        other.step()
    journal.write(20)
    caught_up(one)
    assert projected(journal.engine) == (journal.holdings, journal.occupancy)


@pytest.mark.parametrize("fresh", [True, False])
def test_of_two_tails_with_the_same_page_only_one_applies_it(database: Database, fresh: bool) -> None:
    journal = started(database.engine(connections=4), pools=1)
    both_have_read = threading.Barrier(2, timeout=PATIENCE)

    def apply(image: Occupancy | None, key: Key, event: Event) -> Occupancy:
        both_have_read.wait()
        return OCCUPANCY.apply(image, key, event)

    if not fresh:
        caught_up(Tail(journal.engine, [OCCUPANCY]))
        with journal.transaction() as writing:
            writing.refuse(pod(), [1])
    tails = [Tail(journal.engine, [replace(OCCUPANCY, apply=apply)]) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        outcomes = [future.exception() for future in [threads.submit(tail.step) for tail in tails]]
    assert sorted(str(type(each).__name__) for each in outcomes) == ["AnotherProjectorError", "NoneType"]
    assert projected(journal.engine)[1] == journal.occupancy


def test_of_two_tails_that_run_one_stops_and_nothing_is_counted_twice(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projector.tail.PAGE_EVENTS", 5)
    journal = started(database.engine(connections=6), seed=4)
    stop = threading.Event()
    with ThreadPoolExecutor(2) as threads:
        runs = [threads.submit(Tail(journal.engine, PROJECTIONS).run, stop) for _ in range(2)]
        while not any(run.done() for run in runs):
            journal.write(10)
            time.sleep(0.01)  # Who comes straight back for SQLite's one connection gets it before whoever waits.
        journal.write(50)
        assert eventually(lambda: projected(journal.engine) == (journal.holdings, journal.occupancy))
        stop.set()
    assert sorted(str(type(run.exception()).__name__) for run in runs) == ["AnotherProjectorError", "NoneType"]


# Lag, and a database that goes away ---------------------------------------------------------------


def test_a_tail_that_is_merely_behind_blames_nobody(database: Database) -> None:
    journal = started(database.engine())
    lag = Tail(journal.engine, PROJECTIONS).lag()
    assert lag is not None
    assert lag.age_us > LAG_WARNING_US
    assert lag.session is None
    assert str(lag).endswith("behind the journal, still reading")


def test_an_event_too_young_to_worry_about_is_no_lag(database: Database) -> None:
    with Journal(database.engine(), now=time.time_ns() // 1_000 + 3_600_000_000).transaction() as writing:
        writing.open()
    assert Tail(database.engine(), PROJECTIONS).lag() is None


def test_an_open_transaction_in_another_database_is_named_as_what_holds_the_tail_up(
    postgresql: Database, server: Server
) -> None:
    journal = started(postgresql.engine())
    tail = Tail(journal.engine, PROJECTIONS)
    caught_up(tail)
    elsewhere = create_engine(database_url(server.url() + "&application_name=forgotten"))
    with elsewhere.connect() as forgotten:
        pid = forgotten.execute(text("SELECT pg_backend_pid() FROM pg_current_xact_id()")).scalar_one()
        with journal.transaction() as writing:
            writing.refuse(pod(), [1])
        assert tail.step() == 0
        lag = tail.lag()
        assert lag is not None
        assert lag.recorded_at == journal.now
        assert lag.session is not None
        assert lag.session[:4] == (pid, "postgres", "owner", "forgotten")
        assert "held up by an open transaction: process" in str(lag)
    elsewhere.dispose()
    assert caught_up(tail) == 1
    assert tail.lag() is None


def test_an_old_snapshot_that_writes_nothing_holds_nobody_up(postgresql: Database, server: Server) -> None:
    journal = started(postgresql.engine())
    with journal.engine.connect().execution_options(isolation_level="REPEATABLE READ") as reading:
        reading.execute(select(tables.ledger)).all()
        journal.write(20)
        assert caught_up(Tail(journal.engine, PROJECTIONS)) == journal.events
    assert projected(journal.engine) == (journal.holdings, journal.occupancy)


def test_a_running_tail_says_once_that_it_lags_and_once_that_it_does_not(
    postgresql: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("projector.tail.LAG_CHECK_PAUSE", 0.0)
    monkeypatch.setattr("projector.tail.POLL_SLOWEST", 0.01)
    caplog.set_level(logging.INFO, "projector.tail")
    journal = started(postgresql.engine())
    caught_up(Tail(journal.engine, PROJECTIONS))
    with journal.engine.connect() as forgotten:
        forgotten.execute(text("SELECT pg_current_xact_id()"))
        with journal.transaction() as writing:
            writing.refuse(pod(), [1])
        with running(Tail(postgresql.engine(), PROJECTIONS)):
            assert eventually(lambda: len(caplog.messages) > 0)
            forgotten.rollback()
            assert eventually(lambda: len(caplog.messages) > 1)
    assert "held up by an open transaction: process" in caplog.messages[0]
    assert caplog.messages[1:] == ["the projections have caught up with the journal"]


def test_a_running_tail_follows_who_writes_through_the_same_engine(database: Database) -> None:
    journal = started(database.engine(), seed=9)
    with running(Tail(journal.engine, PROJECTIONS)):
        for _ in range(5):
            journal.write(30)
            assert eventually(lambda: projected(journal.engine) == (journal.holdings, journal.occupancy))


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server that may be stopped, and that takes prepared transactions."""
    running_ = Server(options=("-c", "max_prepared_transactions=2")).create().start()
    yield running_
    running_.remove()


def test_a_database_that_goes_away_is_waited_for(
    own_server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("projector.tail.RECONNECT_PAUSE", 0.05)
    engine = open_engine(own_server.url())
    migrate(engine)
    journal = started(engine, seed=6)
    tails_own = open_engine(own_server.url())
    with running(Tail(tails_own, PROJECTIONS)) as thread:
        for how in (signal.SIGINT, signal.SIGQUIT):
            assert eventually(lambda: projected(engine) == (journal.holdings, journal.occupancy))
            own_server.stop(how)
            caplog.clear()
            assert eventually(lambda: "waits 0.05 s for its database" in caplog.text)
            own_server.start()
            engine.dispose()
            journal.write(40)
        assert eventually(lambda: projected(engine) == (journal.holdings, journal.occupancy))
        assert thread.is_alive()
    tails_own.dispose()
    engine.dispose()


def test_a_prepared_transaction_is_named_too(own_server: Server) -> None:
    engine = open_engine(own_server.url())
    migrate(engine)
    journal = started(engine)
    tail = Tail(engine, PROJECTIONS)
    caught_up(tail)
    with engine.connect() as forgotten:
        forgotten.execute(text("CREATE TEMPORARY TABLE x (y int)"))
        forgotten.rollback()
        forgotten.execute(text("SELECT pg_current_xact_id()"))
        forgotten.execute(text("PREPARE TRANSACTION 'forgotten'"))
    with journal.transaction() as writing:
        writing.refuse(pod(), [1])
    lag = tail.lag()
    assert lag is not None
    assert lag.session is not None
    assert lag.session[:4] == (None, "postgres", "owner", "prepared transaction forgotten")
    assert "no process, database postgres" in str(lag)
    engine.dispose()
