"""Several agents on one PostgreSQL, each held at the point where it could do harm.

A session is held by letting it run into a lock that the test has taken, or by taking its steps one by one; that it
waits is read from the server. Nothing here depends on how fast anything is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text

from ledger.addresses import from_key, parse
from ledger.admission import AdmissionRefused
from ledger.definition import Definition
from ledger.definitions import StillHeldError
from ledger.driver import joined
from ledger.images import Demand, Plan
from ledger.intervals import contains
from ledger.reading import read
from ledger.redefine import Change, DefinePool, DefineReservation, RetirePool, RetireReservation
from ledger.requests import Acquire, Answer, Done, Free, Granted, Request, Reselect
from ledger.store import Ledger, LedgerAwayError, Settings
from tests.acts import (
    HeldBatch,
    Pod,
    Task,
    a_pool,
    a_reservation,
    acquire,
    add,
    ask,
    check,
    close,
    define,
    delete,
    given,
    granted,
    journal,
    one,
    patient,
    pods,
    reason,
    row,
    session,
    set_at_connect,
    shown,
    story,
    try_define,
    until,
    until_waiting,
    waiting_for_lock,
    want,
)
from tests.conftest import Database


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """An act waits for as long as the test holds what it needs."""
    monkeypatch.setattr("ledger.store.ACT_SECONDS_MAX", 3600.0)


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """An act gives up as soon as it has waited once."""
    monkeypatch.setattr("ledger.store.ACT_SECONDS_MAX", 0.0)


@pytest.fixture
def engine(postgresql: Database) -> Engine:
    """What the test itself looks and holds with."""
    return patient(postgresql.engine(connections=8))


def agent(database: Database) -> Ledger:
    """An agent that waits for locks as long as it takes, with what it needs at hand."""
    ledger = Ledger(patient(database.engine()), Settings(doubt_seconds=0))
    ledger.act([])
    ledger.definition()
    return ledger


def impatient(database: Database) -> Ledger:
    """An agent that waits for a lock only briefly."""
    ledger = Ledger(set_at_connect(database.engine(), lock_timeout="20"), Settings(doubt_seconds=0))
    ledger.act([])
    ledger.definition()
    return ledger


def lock(connection: Connection, *ips: str) -> None:
    """Somebody else has these rows."""
    for ip in ips:
        query = text("SELECT ip FROM address WHERE ip = :ip FOR UPDATE")
        assert connection.execute(query, {"ip": parse(ip).to_bytes(5, "big")}).first() is not None


def lock_extents(connection: Connection) -> None:
    """Somebody else has every extent."""
    connection.execute(text("SELECT high FROM extent FOR UPDATE"))


def used(ledger: Ledger, *pools: str) -> list[Pod]:
    """A pod that has used, and released, one address of each pool."""
    found = pods(len(pools), "used")
    for pod, pool in zip(found, pools, strict=True):
        given(ledger, pod, pool)
        one(ledger, delete(pod))
    return found


# Rows that others have ----------------------------------------------------------------------------


@pytest.mark.usefixtures("unhurried")
def test_who_needs_a_locked_row_waits_for_it_and_holds_nothing_meanwhile(postgresql: Database, engine: Engine) -> None:
    ledger = agent(postgresql)
    define(ledger, a_pool("a", "10.1.0.1"), a_pool("b", "10.1.1.1"))
    used(ledger, "a")
    definition = ledger.definition()
    needs, other = pods(2)
    with session(engine) as somebody:
        lock(somebody, "10.1.0.1")
        task = Task(lambda: ask(ledger, add(definition, needs, "a"), add(definition, other, "b")))
        until_waiting(engine, task)
        # The other request of the batch is done, and its row is free for others.
        assert row(engine, "10.1.1.1").held
        with session(engine) as another:
            another.execute(text("SELECT * FROM address WHERE held FOR UPDATE NOWAIT"))
            another.execute(text("SELECT * FROM extent FOR UPDATE NOWAIT"))
    assert [shown(answer) for answer in task.result()] == ["10.1.0.1", "10.1.1.1"]
    check(engine)


@pytest.mark.usefixtures("hurried")
def test_who_does_not_get_a_locked_row_is_told_to_try_again_and_the_others_keep_their_answers(
    postgresql: Database, engine: Engine
) -> None:
    ledger = impatient(postgresql)
    define(ledger, a_pool("a", "10.1.0.1"), a_pool("b", "10.1.1.1-10.1.1.9"))
    used(ledger, "a")
    ends, freed, other, needs = pods(4)
    given(ledger, ends, "b"), given(ledger, freed, "b")
    by_hand = Free(parse("10.1.1.2"), row(engine, "10.1.1.2").step, "alice", "operator")
    definition = ledger.definition()
    requests = (delete(ends), by_hand, add(definition, other, "b"), add(definition, needs, "a"))
    with session(engine) as somebody:
        lock(somebody, "10.1.0.1")
        answers = ask(ledger, *requests)
    assert answers[:2] == [Done(freed=1), Done(freed=1)]
    assert [shown(answer) for answer in answers[2:]] == ["10.1.1.3", "busy"]
    assert given(ledger, needs, "a") == "10.1.0.1"
    check(engine)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("fallback", [False, True])
def test_a_pool_whose_addresses_are_all_locked_is_not_called_exhausted(
    postgresql: Database, engine: Engine, fallback: bool
) -> None:
    ledger = impatient(postgresql)
    define(ledger, a_pool("a", "10.1.0.1-10.1.0.3"), a_pool("b", "10.1.1.1-10.1.1.3"))
    used(ledger, "a")
    pools = ("a", "b") if fallback else ("a",)
    with session(engine) as somebody:
        lock(somebody, "10.1.0.1")
        lock_extents(somebody)
        assert reason(one(ledger, add(ledger.definition(), Pod(), *pools))) == "busy"
    assert not journal(engine, "allocation.refused")
    assert given(ledger, Pod(), *pools) == "10.1.0.1"
    check(engine)


@pytest.mark.usefixtures("unhurried")
def test_an_address_that_cools_keeps_nobody_from_waiting_for_a_locked_extent(
    postgresql: Database, engine: Engine
) -> None:
    ledger = agent(postgresql)
    define(ledger, a_pool("a", "10.1.0.1-10.1.0.2", cooling=3600))
    used(ledger, "a")
    definition = ledger.definition()
    with session(engine) as somebody:
        lock_extents(somebody)
        task = Task(lambda: one(ledger, add(definition, Pod())))
        until_waiting(engine, task)
    assert shown(task.result()) == "10.1.0.2"
    check(engine)


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("which", ["asked, used", "asked, never used", "freed by hand", "its own", "to be released"])
def test_who_needs_this_very_row_gets_it_once_it_is_let_go(postgresql: Database, engine: Engine, which: str) -> None:
    ledger = agent(postgresql)
    define(ledger, a_pool("a", "10.1.0.1-10.1.0.9"))
    definition = ledger.definition()
    [gone] = used(ledger, "a")
    holder = Pod()
    assert given(ledger, holder, address="10.1.0.2", exact=True) == "10.1.0.2"
    asked = want(Pod("asker").claim(), 1, address="10.1.0.1", exact=True)
    fresh = want(Pod("asker").claim(), 1, address="10.1.0.5", exact=True)
    request, answer = {
        "asked, used": (acquire(definition, Pod("asker"), asked), "10.1.0.1"),
        "asked, never used": (acquire(definition, Pod("asker"), fresh), "10.1.0.5"),
        "freed by hand": (Free(parse("10.1.0.2"), 1, "alice", "operator"), "freed 1, unbound 0"),
        "its own": (add(definition, gone.new("c2")), "10.1.0.1"),
        "to be released": (delete(holder), "freed 1, unbound 0"),
    }[which]
    with session(engine) as somebody:
        lock(somebody, "10.1.0.1", "10.1.0.2")
        lock_extents(somebody)
        task: Task[Answer] = Task(lambda: one(ledger, request))
        until_waiting(engine, task)
    assert shown(task.result()) == answer
    check(engine)


def test_rows_that_come_back_below_an_agents_bound_are_found(postgresql: Database, engine: Engine) -> None:
    ledger = agent(postgresql)
    define(ledger, a_pool("a", "10.1.0.1-10.1.0.2"))
    definition = ledger.definition()
    early, late, first, second = pods(4)
    given(ledger, early), given(ledger, late)
    # It begins first, so that what it frees is ready first, and ends last.
    batch = HeldBatch(engine, definition, delete(early)).read()
    one(ledger, delete(late))
    assert given(ledger, first) == "10.1.0.2"
    batch.write().commit()
    assert row(engine, "10.1.0.1").ready < row(engine, "10.1.0.2").at
    assert given(ledger, second) == "10.1.0.1"
    check(engine)


def test_a_batch_does_not_pass_over_what_an_old_snapshot_keeps_in_the_index(
    postgresql: Database, engine: Engine
) -> None:
    ledger = agent(postgresql)
    definition = define(ledger, a_pool("a", "10.1.0.1-10.1.0.50"))
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as old, old.begin():
        old.execute(text("SELECT count(*) FROM address"))
        for turn in range(20):
            users = pods(50, f"turn-{turn}")
            ask(ledger, *(add(definition, pod) for pod in users))
            ask(ledger, *(delete(pod) for pod in users))
        bounded, unbounded = (pages(engine, since) for since in (row(engine, "10.1.0.1").ready, 0))
    assert bounded * 2 < unbounded, (bounded, unbounded)


def pages(engine: Engine, since: int) -> int:
    """How many pages of addresses a batch touches to find one that is idle since then."""
    query = text("SELECT pg_stat_get_xact_blocks_fetched(CAST('address' AS regclass))")
    with session(engine) as connection:
        read(joined(connection), Plan(demands=(Demand(1, 1, since, None, 1),)), None)
        return int(connection.execute(query).scalar_one())


# Two agents, one claim ----------------------------------------------------------------------------


@pytest.mark.usefixtures("unhurried")
def test_two_agents_that_bring_one_claim_at_once_get_one_address(postgresql: Database, engine: Engine) -> None:
    ledger = agent(postgresql)
    define(ledger, a_pool("a", "10.1.0.1-10.1.0.99"))
    definition = ledger.definition()
    pod, other = pods(2)
    batch = HeldBatch(engine, definition, add(definition, pod)).read().write()
    task = Task(lambda: ask(ledger, add(definition, pod), add(definition, other)))
    until_waiting(engine, task)
    [first] = batch.commit()
    again, another = task.result()
    assert again == first
    assert granted(another) != granted(first)
    assert [event.type for event in journal(engine) if event.ip] == ["address.allocated"] * 2
    check(engine)


@pytest.mark.usefixtures("hurried")
def test_who_brings_a_claim_that_another_agent_never_finishes_is_told_to_try_again(
    postgresql: Database, engine: Engine
) -> None:
    ledger = impatient(postgresql)
    define(ledger, a_pool("a", "10.1.0.1-10.1.0.99"))
    definition = ledger.definition()
    pod = Pod()
    batch = HeldBatch(engine, definition, add(definition, pod)).read().write()
    assert reason(one(ledger, add(definition, pod))) == "busy"
    batch.roll_back()
    assert isinstance(one(ledger, add(definition, pod)), Granted)
    check(engine)


def race(*works: Callable[[], Any]) -> list[Any]:
    """All at once."""
    barrier = Barrier(len(works))

    def begin(work: Callable[[], Any]) -> Any:
        barrier.wait()
        return work()

    tasks = [Task(lambda work=work: begin(work)) for work in works]  # type: ignore[misc]
    return [task.result() for task in tasks]


def insistent(ledger: Ledger, *requests: Request) -> list[Answer]:
    """Asked again for as long as the answer is to try again."""
    answers = ledger.act(requests)
    for place, request in enumerate(requests):
        while shown(answers[place]) == "busy":
            answers[place] = one(ledger, request)
    return answers


def test_agents_that_race_for_the_same_claims_agree(postgresql: Database, engine: Engine) -> None:
    agents = [agent(postgresql) for _ in range(4)]
    definition = define(agents[0], a_pool("a", "10.1.0.1-10.1.0.200"))
    for number in range(6):
        requests = [add(definition, pod) for pod in pods(5, f"round-{number}")]
        answers = race(*(partial(insistent, ledger, *requests) for ledger in agents))
        assert all(answer == answers[0] for answer in answers)
    assert len(journal(engine, "address.allocated")) == 30
    check(engine)


def test_exactly_as_many_claims_are_served_as_there_are_addresses(postgresql: Database, engine: Engine) -> None:
    agents = [agent(postgresql) for _ in range(4)]
    definition = define(agents[0], a_pool("a", "10.1.0.1-10.1.0.60"))
    define(agents[0], a_reservation("r", "10.1.0.51-10.1.0.60"))
    definition = define(agents[0], a_pool("a", "10.1.0.1-10.1.0.60"))
    answers = race(*(
        lambda ledger=ledger, number=number: [
            insistent(ledger, *(add(definition, pod) for pod in pods(4, f"agent-{number}-{turn}"))) for turn in range(5)
        ]
        for number, ledger in enumerate(agents)
    ))  # fmt: skip
    words = Counter(
        "served" if isinstance(answer, Granted) else shown(answer)
        for agents_ in answers for turn in agents_ for answer in turn
    )  # fmt: skip
    assert words == {"served": 50, "all-addresses-used-out": 30}
    check(engine)


def test_opposite_orders_of_nearly_full_pools_never_block_each_other(postgresql: Database, engine: Engine) -> None:
    agents = [agent(postgresql) for _ in range(2)]
    define(agents[0], a_pool("a", "10.1.0.1-10.1.0.6"), a_pool("b", "10.1.1.1-10.1.1.6"))
    definition = agents[0].definition()

    def run(ledger: Ledger, number: int) -> Counter[str]:
        words: Counter[str] = Counter()
        first, second = ((1, 2), (2, 1))[number]
        for turn in range(25):
            users = pods(4, f"agent-{number}-{turn}")
            requests = [
                acquire(definition, pod, want(pod.claim("eth0"), first), want(pod.claim("net1"), second))
                for pod in users
            ]
            words.update(type(answer).__name__ for answer in insistent(ledger, *requests))
            insistent(ledger, *(delete(pod) for pod in users))
        return words

    words = race(*(lambda ledger=ledger, number=number: run(ledger, number) for number, ledger in enumerate(agents)))
    assert all(each["Granted"] >= 25 for each in words)
    with engine.connect() as connection:
        query = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        assert connection.execute(query).scalar_one() == 0
    events = check(engine)
    assert sum(event.type == "address.allocated" for event in events) == 2 * sum(each["Granted"] for each in words)


def test_rebinds_releases_and_frees_of_one_pod_race_without_harm(postgresql: Database, engine: Engine) -> None:
    agents = [agent(postgresql) for _ in range(3)]
    definition = define(agents[0], a_pool("a", "10.1.0.1-10.1.0.3"))
    pod = Pod()

    def rebind(ledger: Ledger) -> None:
        for number in range(25):
            insistent(ledger, add(definition, pod.new(f"c{number}")))

    def release(ledger: Ledger) -> None:
        for number in range(25):
            insistent(ledger, delete(pod.new(f"c{number}")))

    def free(ledger: Ledger) -> None:
        for _ in range(25):
            for found in ledger.held_by([pod.claim()]):
                insistent(ledger, Free(found.ip, found.step, "reclaim", "reclaim"))

    works = zip((rebind, release, free), agents, strict=True)
    race(*(lambda work=work, ledger=ledger: work(ledger) for work, ledger in works))
    check(engine)


# What is still in flight --------------------------------------------------------------------------


@pytest.mark.usefixtures("unhurried")
def test_a_new_agent_acts_only_when_what_was_in_flight_before_has_ended(postgresql: Database, engine: Engine) -> None:
    definition = define(agent(postgresql), a_pool("a", "10.1.0.1-10.1.0.9"))
    pod = Pod()
    # The agent before was killed when it had sent an ADD; the server has not come to its locks yet.
    in_flight = HeldBatch(engine, definition, add(definition, pod))
    successor = Ledger(patient(postgresql.engine()), Settings(doubt_seconds=0))
    task = Task(lambda: one(successor, delete(pod)))
    until(lambda: not task.is_alive() or looking(engine), "the new agent looks for what is in flight")
    assert task.is_alive()
    in_flight.read().write().commit()
    assert task.result() == Done(freed=1)
    check(engine)


def looking(engine: Engine) -> bool:
    query = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_snapshot_xmin%' AND pid <> pg_backend_pid()"
    with engine.connect() as connection:
        return bool(connection.execute(text(query)).scalar_one())


@pytest.mark.usefixtures("hurried")
def test_an_agent_that_lost_its_connections_settles_again(postgresql: Database, engine: Engine) -> None:
    ledger = agent(postgresql)
    definition = define(ledger, a_pool("a", "10.1.0.1-10.1.0.9"))
    pod = Pod()
    with session(engine) as somebody:
        somebody.execute(text("SELECT pg_current_xact_id()"))
        given(ledger, pod)
        with engine.connect() as connection:
            mine = [each.execute(text("SELECT pg_backend_pid()")).scalar_one() for each in (connection, somebody)]
            others = "datname = current_database() AND pid <> ALL (:mine)"
            connection.execute(
                text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"), {"mine": mine}
            )
        with pytest.raises(LedgerAwayError):
            one(ledger, delete(pod))
        assert reason(one(ledger, delete(pod))) == "busy"
    assert one(ledger, delete(pod)) == Done(freed=1)
    assert definition == ledger.definition()
    check(engine)


# Definitions and acts -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """A pool .1-.9 with a holder of .2 and somebody who had .1; .3 is reserved, the rest was never used."""

    number: int

    @property
    def name(self) -> str:
        return f"a{self.number}"

    @property
    def holder(self) -> Pod:
        return Pod(f"holder-{self.number}", f"uh-{self.number}", "ch", stamp=10)

    @property
    def gone(self) -> Pod:
        return Pod(f"gone-{self.number}", f"ug-{self.number}", "cg", stamp=10)

    def ip(self, last: int) -> str:
        return f"10.1.{self.number}.{last}"

    def ips(self, first: int, last: int) -> str:
        return f"{self.ip(first)}-{self.ip(last)}"

    def pool(self, first: int, last: int, *excluded: str) -> DefinePool:
        return DefinePool(a_pool(self.name, self.ips(first, last), exclude_ips=excluded))

    def reserve(self, first: int, last: int, name: str = "r") -> DefineReservation:
        return DefineReservation(a_reservation(f"{name}{self.number}", self.ips(first, last)))

    def build(self, ledger: Ledger) -> Site:
        define(ledger, self.pool(1, 9), self.reserve(3, 3, "s"))
        assert given(ledger, self.gone, self.name) == self.ip(1)
        assert given(ledger, self.holder, self.name) == self.ip(2)
        one(ledger, delete(self.gone))
        return self

    def add(self, definition: Definition, pod: Pod, last: int | None = None) -> Acquire:
        address = None if last is None else self.ip(last)
        return add(definition, pod, self.name, address=address, exact=last is not None)


CHANGES: dict[str, Callable[[Site], Change]] = {
    "exclude": lambda site: site.pool(1, 9, site.ips(1, 7)),
    "shrink": lambda site: site.pool(8, 9),
    "grow": lambda site: site.pool(1, 19),
    "reserve all": lambda site: site.reserve(1, 9),
    "reserve one": lambda site: site.reserve(9, 9),
    "give back": lambda site: RetireReservation(f"uid-s{site.number}"),
    "close": lambda site: close(site.name),
    "retire": lambda site: RetirePool(f"uid-{site.name}"),
}
ACTS: dict[str, Callable[[Site, Definition], Request]] = {
    "the idle address": lambda site, now: site.add(now, Pod(f"new-{site.number}")),
    "a fresh address": lambda site, now: site.add(now, Pod(f"new-{site.number}"), 4),
    "one out of an extent": lambda site, now: site.add(now, Pod(f"new-{site.number}"), 6),
    "its own last address": lambda site, now: site.add(now, replace(site.gone, container="again", stamp=20)),
    "another container": lambda site, now: site.add(now, replace(site.holder, container="again", stamp=20)),
    "a del": lambda site, now: delete(site.holder),
    "a del of a pod that lives": lambda site, now: delete(site.holder, alive=site.holder.uid),
    "a free by hand": lambda site, now: Free(parse(site.ip(2)), 1, "alice", "operator"),
}


def changed(ledger: Ledger, change: Change) -> str:
    """What became of a change, in a word."""
    try:
        outcome = try_define(ledger, change)
    except StillHeldError:
        return "still held"
    return "in use" if isinstance(outcome, AdmissionRefused) else "made"


def check_site(engine: Engine, ledger: Ledger, site: Site, change: Change) -> None:
    """Everything is true, and nobody holds what an edit of the pool took away."""
    check(engine)
    if isinstance(change, DefinePool):
        effective = ledger.refresh().by_name[site.name].effective
        query = text("SELECT ip FROM address WHERE held AND pool = :pool")
        with engine.connect() as connection:
            pool = ledger.definition().by_name[site.name].id
            held = connection.execute(query, {"pool": pool}).scalars().all()
        assert all(contains(effective, from_key(bytes(ip))) for ip in held)


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("point", ["after its read", "before its commit"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_waits_for_the_acts_that_it_meets_and_sees_what_they_did(
    postgresql: Database, engine: Engine, change: str, point: str
) -> None:
    ledger = agent(postgresql)
    takes_held = {"exclude": "in use", "shrink": "in use", "retire": "still held"}
    for number, (act, request_of) in enumerate(ACTS.items()):
        site = Site(number).build(ledger)
        changing, definition = CHANGES[change](site), ledger.definition()
        batch = HeldBatch(engine, definition, request_of(site, definition)).read()
        if point == "before its commit":
            batch.write()
        task = Task(partial(changed, ledger, changing))
        until(lambda task=task: waits(engine, 1, task), "the change waits, or need not wait")  # type: ignore[misc]
        if point == "after its read":
            batch.write()
        batch.commit()
        nobody_left = act in ("a del", "a free by hand")
        assert task.result() == ("made" if nobody_left else takes_held.get(change, "made")), act
        check_site(engine, ledger, site, changing)


def waits(engine: Engine, sessions: int, task: Task[Any]) -> bool:
    return waiting_for_lock(engine) >= sessions or not task.is_alive()


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("point", ["after its extents", "after its rows"])
@pytest.mark.parametrize("change", CHANGES)
def test_an_act_that_meets_a_change_is_judged_by_what_the_change_leaves(
    postgresql: Database, engine: Engine, change: str, point: str
) -> None:
    definer, ledger = agent(postgresql), agent(postgresql)
    for number, (act, request_of) in enumerate(ACTS.items()):
        site = Site(number).build(definer)
        changing, definition = CHANGES[change](site), ledger.refresh()
        with session(engine) as somebody:
            hold(somebody, site, changing, point)
            task = Task(partial(changed, definer, changing))
            until(lambda task=task: waits(engine, 1, task), "the change is held")  # type: ignore[misc]
            acting = Task(partial(one, ledger, request_of(site, definition)))
            sessions = 1 + int(task.is_alive())
            until(
                lambda acting=acting, sessions=sessions: waits(engine, sessions, acting), "the act waits, or need not"
            )  # type: ignore[misc]
        task.result()
        answer = acting.result()
        if isinstance(answer, Reselect) and site.name in ledger.definition().by_name:
            answer = one(ledger, request_of(site, ledger.definition()))
        assert shown(answer) != "busy", act
        check_site(engine, ledger, site, changing)


def hold(somebody: Connection, site: Site, change: Change, point: str) -> None:
    """Let the change run until it has its extents, or until it has its rows and would store what it says."""
    if point == "after its extents":
        lock(somebody, site.ip(1), site.ip(2))
    else:
        table = "reservation" if isinstance(change, DefineReservation | RetireReservation) else "pool"
        somebody.execute(text(f"LOCK TABLE {table} IN SHARE MODE"))


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("point", ["after its read", "before its commit"])
@pytest.mark.parametrize("act", ["a del", "a del of a pod that lives", "another container", "a fresh address"])
def test_a_pool_that_is_retired_and_made_anew_while_acts_are_in_flight_goes_on_with_their_steps(
    postgresql: Database, engine: Engine, act: str, point: str
) -> None:
    ledger, behind = agent(postgresql), agent(postgresql)
    site = Site(0).build(ledger)
    behind.refresh()
    definition = ledger.definition()
    late = site.add(definition, Pod("late", "ul", "cl"), 2)
    batch = HeldBatch(engine, definition, ACTS[act](site, definition)).read()
    if point == "before its commit":
        batch.write()
    task = Task(lambda: made_anew(ledger, site))
    until(lambda: waits(engine, 1, task), "the retirement waits, or need not wait")
    if point == "after its read":
        batch.write()
    batch.commit()
    if task.result() == "still held":
        for claim in (site.holder, replace(site.holder, container="again", stamp=20), Pod("new-0")):
            one(ledger, delete(claim))
        assert made_anew(ledger, site) == "made"
    before = {ip: row(engine, site.ip(ip)).step for ip in (1, 2)}
    assert isinstance(one(behind, late), Reselect)
    for ip in (1, 2):
        assert given(ledger, Pod(f"next-{ip}", f"un-{ip}", f"cn-{ip}"), site.name) == site.ip(ip)
    pool = ledger.definition().by_name[site.name].id
    assert pool != definition.by_name[site.name].id
    after = {ip: row(engine, site.ip(ip)) for ip in before}
    assert {ip: (each.pool, each.step) for ip, each in after.items()} == {ip: (pool, before[ip] + 1) for ip in before}
    check(engine)


def made_anew(ledger: Ledger, site: Site) -> str:
    """The same ranges and name, and another object."""
    retired = changed(ledger, RetirePool(f"uid-{site.name}"))
    return retired if retired != "made" else changed(ledger, DefinePool(a_pool(site.name, site.ips(1, 9), uid="anew")))


@pytest.mark.usefixtures("unhurried")
def test_a_reservation_that_meets_an_add_of_its_address_withholds_it_after_the_holder(
    postgresql: Database, engine: Engine
) -> None:
    ledger = agent(postgresql)
    define(ledger, a_pool("a", "10.1.0.1-10.1.0.9"))
    pod = Pod()
    batch = HeldBatch(engine, ledger.definition(), add(ledger.definition(), pod)).read()
    task = Task(lambda: define(ledger, a_reservation("r", "10.1.0.1")))
    until_waiting(engine, task)
    batch.write().commit()
    task.result()
    assert story(engine, "10.1.0.1") == ["allocated", "withheld"]
    one(ledger, delete(pod))
    assert given(ledger, Pod("other", "u2", "c2")) == "10.1.0.2"
    check(engine)


@pytest.mark.usefixtures("unhurried")
def test_an_address_split_out_of_an_extent_during_a_change_takes_none_of_its_neighbours_away(
    postgresql: Database, engine: Engine
) -> None:
    ledger = agent(postgresql)
    define(ledger, a_pool("a", "10.1.0.1-10.1.0.9"))
    definition = ledger.definition()
    batch = HeldBatch(engine, definition, add(definition, Pod(), address="10.1.0.5", exact=True)).read().write()
    task = Task(lambda: define(ledger, a_reservation("r", "10.1.0.9")))
    until_waiting(engine, task)
    batch.commit()
    task.result()
    answers = ask(ledger, *(add(ledger.definition(), pod) for pod in pods(8)))
    assert [shown(answer) for answer in answers] == [
        *(f"10.1.0.{number}" for number in (1, 2, 3, 4, 6, 7, 8)), "all-addresses-used-out",
    ]  # fmt: skip
    check(engine)


def test_changes_race_acts_without_harm(postgresql: Database, engine: Engine) -> None:
    agents = [agent(postgresql) for _ in range(3)]
    site = Site(0)
    define(agents[0], site.pool(1, 9))

    def act(ledger: Ledger, number: int) -> None:
        for turn in range(30):
            users = pods(3, f"agent-{number}-{turn}")
            definition = ledger.definition()
            if definition.by_name:
                ledger.act([add(definition, pod, site.name, address=site.ip(turn % 9 + 1)) for pod in users])
                ledger.act([delete(pod) for pod in users[:2]])

    def change(ledger: Ledger) -> None:
        for turn in range(30):
            each = list(CHANGES.values())[turn * 5 % len(CHANGES)](site)
            try:
                changed(ledger, each)
                changed(ledger, site.pool(1, 9))
            except LedgerAwayError:
                continue

    race(lambda: act(agents[1], 1), lambda: act(agents[2], 2), lambda: change(agents[0]))
    check(engine)


@pytest.mark.usefixtures("unhurried")
def test_two_changes_are_made_one_after_the_other(postgresql: Database, engine: Engine) -> None:
    agents = [agent(postgresql) for _ in range(4)]
    race(*(
        lambda ledger=ledger, number=number: define(ledger, a_pool(f"p{number}", f"10.1.{number}.1"))
        for number, ledger in enumerate(agents)
    ))  # fmt: skip
    versions = [event.definition for event in journal(engine, "pool.defined")]
    assert sorted(each or 0 for each in versions) == [1, 2, 3, 4]
    assert sorted(agents[0].refresh().by_id) == [1, 2, 3, 4]
    check(engine)


def test_a_change_that_cannot_get_what_others_hold_says_so_and_changes_nothing(
    postgresql: Database, engine: Engine
) -> None:
    ledger = impatient(postgresql)
    define(ledger, a_pool("a", "10.1.0.1-10.1.0.9"))
    given(ledger, Pod())
    with session(engine) as somebody:
        lock(somebody, "10.1.0.1")
        with pytest.raises(LedgerAwayError, match="lock timeout"):
            try_define(ledger, close("a"))
    assert ledger.refresh().version == 1
    check(engine)
