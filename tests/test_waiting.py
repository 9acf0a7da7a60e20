"""A batch never waits while it holds a row: whatever row of it others have, its fellows are served at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Connection, Engine, text

from ledger.addresses import from_key, parse
from ledger.definition import Definition
from ledger.requests import Free, Granted, Reason, Refusal, Refuse, Request
from tests.acts import (
    HeldBatch,
    Pod,
    Task,
    a_pool,
    a_reservation,
    add,
    ask,
    check,
    define,
    delete,
    given,
    one,
    row,
    session,
    shown,
    until_waiting,
)
from tests.conftest import Database
from tests.test_interleavings import agent, engine, impatient, lock, unhurried, used

__all__ = ["engine", "unhurried"]

HOLDER, GONE, NEW, FELLOW = Pod("holder", "uh", "ch"), Pod("used-0", "u-used-0", "c-used-0"), Pod(), Pod("fellow", "uf")


def refuse(definition: Definition, pod: Pod) -> Refuse:
    why = Refusal(Reason.NO_POOL, "", (), frozenset([1]))
    return Refuse(pod.claim(), pod.subject, pod.binding, why, definition.version)


# What is asked of pools a (.1 was used, .2 is held), fresh and used; and in which table others have all their rows.
ROWS: dict[str, tuple[str, Callable[[Definition], Request], str]] = {
    "the idle row": ("address", lambda now: add(now, NEW, "used"), "10.1.3.1"),
    "an extent": ("extent", lambda now: add(now, NEW, "fresh"), "10.1.2.1"),
    "its own last row": ("address", lambda now: add(now, GONE.new("c2"), "a"), "10.1.0.1"),
    "the row that it holds": ("address", lambda now: add(now, HOLDER.new("c2"), "a"), "10.1.0.2"),
    "the row that a refused one holds": ("address", lambda now: refuse(now, HOLDER.new("c3")), "10.1.0.2"),
    "the row to be released": ("address", lambda now: delete(HOLDER, stamp=2**40), "freed 1, unbound 0"),
    "the row to be freed": ("address", lambda now: Free(parse("10.1.0.2"), 1, "alice", "x"), "freed 1, unbound 0"),
    "the asked row": ("address", lambda now: add(now, NEW, "a", address="10.1.0.1", exact=True), "10.1.0.1"),
    "the asked extent": ("extent", lambda now: add(now, NEW, "a", address="10.1.0.5", exact=True), "10.1.0.5"),
}


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("which", ROWS)
def test_who_waits_for_a_row_holds_none_and_keeps_no_fellow_waiting(
    postgresql: Database, engine: Engine, which: str
) -> None:
    ledger = agent(postgresql)
    ranges = {"a": "10.1.0.1-10.1.0.9", "b": "10.1.1.1", "fresh": "10.1.2.1", "used": "10.1.3.1"}
    define(ledger, *(a_pool(name, ips) for name, ips in ranges.items()))
    used(ledger, "a", "used")
    given(ledger, HOLDER, address="10.1.0.2", exact=True)
    definition = ledger.definition()
    table, request, answer = ROWS[which]
    with session(engine) as somebody:
        take(somebody, table)
        task = Task(lambda: ask(ledger, request(definition), add(definition, FELLOW, "b")))
        until_waiting(engine, task)
        assert row(engine, "10.1.1.1").held, "the fellow is done"
        with session(engine) as another:
            for each in ("address", "extent"):
                free = "pool = 2" if each == table else "true"
                another.execute(text(f"SELECT FROM {each} WHERE {free} FOR UPDATE NOWAIT"))
    assert [shown(each) for each in task.result()] == [answer, "10.1.1.1"]
    check(engine)


def take(somebody: Connection, table: str) -> None:
    """Lock what all pools but the fellow's have in this table."""
    somebody.execute(text(f"SELECT FROM {table} WHERE pool <> 2 FOR UPDATE"))


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("table", ["address", "extent"])
def test_who_could_have_a_locked_row_of_the_first_pool_does_not_go_on_to_the_next(
    postgresql: Database, engine: Engine, table: str
) -> None:
    ledger = agent(postgresql)
    define(ledger, a_pool("a", "10.1.0.1-10.1.0.3"), a_pool("b", "10.1.1.1"))
    used(ledger, "a")
    if table == "extent":
        define(ledger, a_reservation("r", "10.1.0.1"))
    else:
        define(ledger, a_reservation("r", "10.1.0.2-10.1.0.3"))
    definition = ledger.definition()
    with session(engine) as somebody:
        somebody.execute(text(f"SELECT FROM {table} WHERE pool = 1 FOR UPDATE"))
        task = Task(lambda: one(ledger, add(definition, NEW, "a", "b")))
        until_waiting(engine, task)
    assert shown(task.result()) == ("10.1.0.2" if table == "extent" else "10.1.0.1")
    check(engine)


def test_who_brings_a_claim_that_another_agent_never_finishes_keeps_no_fellow_waiting(
    postgresql: Database, engine: Engine
) -> None:
    ledger = impatient(postgresql)
    definition = define(ledger, a_pool("a", "10.1.0.1-10.1.0.99"))
    batch = HeldBatch(engine, definition, add(definition, NEW)).read().write()
    # The constraint is met only when the batch is written, and stops it whole.
    answers = ask(ledger, add(definition, NEW), add(definition, FELLOW))
    assert shown(answers[0]) == "busy"
    assert isinstance(answers[1], Granted)
    batch.roll_back()
    check(engine)


@pytest.mark.usefixtures("unhurried")
def test_a_change_takes_its_rows_in_the_order_of_their_addresses(postgresql: Database, engine: Engine) -> None:
    ledger = agent(postgresql)
    define(ledger, a_pool("a", "10.1.0.1-10.1.0.9"))
    # Used in another order than that of their addresses.
    for number in (3, 1, 2):
        given(ledger, Pod(f"p{number}", f"u{number}"), address=f"10.1.0.{number}", exact=True)
    with session(engine) as somebody:
        lock(somebody, "10.1.0.2")
        task = Task(lambda: define(ledger, a_reservation("r", "10.1.0.1-10.1.0.9")))
        until_waiting(engine, task)
        with session(engine) as another:
            free = another.execute(text("SELECT ip FROM address FOR UPDATE SKIP LOCKED")).scalars().all()
            assert [from_key(bytes(ip)) for ip in free] == [parse("10.1.0.3")]
    task.result()
    check(engine)
