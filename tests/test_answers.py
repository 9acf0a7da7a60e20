"""The audit's questions: right whether all is projected, half of it or nothing, and honest about how far they reach."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, text, update

from ledger import tables
from ledger.addresses import Ip, parse
from ledger.database import open_engine
from ledger.events import EventType
from ledger.requests import Candidate
from projector import answers, checkpoints
from projector.holders import Standing
from projector.lines import EventLine, Filter, HoldingLine, PoolLine, RefusalLine
from projector.projections import PROJECTIONS, Holding
from projector.tail import Tail
from tests.conftest import Database
from tests.journals import START, Journal, pod, started

HOUR = 3_600_000_000


def project_all(engine: Engine) -> None:
    """A projector catches up."""
    tail = Tail(engine, PROJECTIONS)
    while tail.step():
        pass


def howsoever_projected(engine: Engine) -> Iterator[str]:
    """An answer must be the same in each of these states, one after the other."""
    yield "no projector has ever run"
    Tail(engine, PROJECTIONS).step()
    yield "a projector came as far as the middle"
    project_all(engine)
    yield "a projector has caught up"
    with engine.begin() as connection:
        connection.execute(update(tables.holding).values(held_from=0, held_until=None, subject=None))
        connection.execute(update(tables.occupancy).values(allocated=77, refused=77))
        for projection in PROJECTIONS:
            checkpoints.reset(connection, projection.name)
    yield "a rebuild was interrupted while it deleted rows, and what is left is wrong"


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that one page is the middle of these short journals."""
    monkeypatch.setattr("projector.tail.PAGE_EVENTS", 9)


def address(number: int, pool: int = 1) -> Ip:
    return parse(f"10.{pool}.0.{number}")


class Past:
    """What happened, with names for its moments."""

    def __init__(self, database: Database) -> None:
        self.journal = Journal(database.engine())
        # Answers only read: on SQLite from an engine that could not write.
        self.engine = database.engine(writes=False)
        self.moments: dict[str, int] = {"before": START - 1}
        self.later = time.time_ns() // 1_000 + HOUR
        self._tell()

    def mark(self, name: str) -> None:
        self.moments[name] = self.journal.now

    def _tell(self) -> None:
        with self.journal.transaction() as writing:
            writing.open()
            self.mark("opened")
        with self.journal.transaction() as writing:
            writing.define_pool(1, addresses=16, withheld=1, excludeIPs=["10.1.0.16"])
        with self.journal.transaction() as writing:
            writing.define_pool(2, addresses=4, name="closed", state="closed")
        with self.journal.transaction() as writing:
            writing.reserve(3, ["10.1.0.15"], {1: 14})
        with self.journal.transaction() as writing:
            writing.allocate(address(1), pod("web-0", uid="a"), "c1", "node-1")
            self.mark("first starts")
            writing.allocate(address(2), pod("web-2", uid="c"))
            writing.allocate(address(3), pod("web-3", uid="d"))
        with self.journal.transaction() as writing:
            writing.rebind(address(1), "c2", "node-2", pod("web-0", uid="a", owner="set"))
            self.mark("first goes on")
            writing.release(address(1), cause="gc", early=20)
            self.moments["first ends"] = writing.events[-1].happened_at
        with self.journal.transaction() as writing:
            writing.release(address(2), cooling=self.later - self.journal.now)
            writing.release(address(3))
            self.mark("nobody")
        with self.journal.transaction() as writing:
            writing.allocate(address(1), pod("web-1", uid="b"), "c3", "node-3")
            self.mark("second starts")
            writing.allocate(address(4), pod("web-4", uid="e"), container=None)
            writing.allocate(address(5), pod("web-5", uid="f"))
        with self.journal.transaction() as writing:
            writing.withhold(address(3))
            writing.withhold(address(4))
            self.mark("end")


@pytest.fixture
def past(database: Database) -> Past:
    return Past(database)


HELD, FREE, COOLING = Standing.HELD, Standing.FREE, Standing.COOLING
WITHHELD, UNKNOWN = Standing.WITHHELD, Standing.UNKNOWN
WHO = [
    ("before the ledger was opened nothing is known", address(1), "before", UNKNOWN, None),
    ("before anybody had it", address(1), "opened", FREE, None),
    ("from the very moment of its allocation", address(1), "first starts", HELD, "web-0"),
    ("in the middle", address(1), "first goes on", HELD, "web-0"),
    ("the end is not part of the holding", address(1), "first ends", FREE, "web-0"),
    ("between two holders", address(1), "nobody", FREE, "web-0"),
    ("the next one", address(1), "second starts", HELD, "web-1"),
    ("who has it now", address(1), None, HELD, "web-1"),
    ("released too recently", address(2), None, COOLING, "web-2"),
    ("withheld after its release", address(3), None, WITHHELD, "web-3"),
    ("withheld while it is held", address(4), None, HELD, "web-4"),
    ("never used", address(6), None, FREE, None),
    ("reserved", address(15), None, WITHHELD, None),
    ("excluded", address(16), None, WITHHELD, None),
    ("of a closed pool", address(1, pool=2), None, WITHHELD, None),
    ("of our subnet but of no pool", address(200), None, UNKNOWN, None),
    ("of somebody else", parse("192.0.2.1"), None, UNKNOWN, None),
    ("of the other family", parse("fd00::1"), None, UNKNOWN, None),
]


def test_who_held_says_whose_an_address_was(past: Past) -> None:
    for state in howsoever_projected(past.journal.engine):
        for case, ip, moment, standing, name in WHO:
            found = answers.who_held(past.engine, ip, past.moments[moment] if moment else None)
            said = found.line.subject.name if found.line and found.line.subject else None
            assert (found.standing, said) == (standing, name), (case, state)


def test_who_held_tells_all_about_the_holding(past: Past) -> None:
    for state in howsoever_projected(past.journal.engine):
        found = answers.who_held(past.engine, address(1), past.moments["first goes on"])
        expected = Holding(**past.journal.holdings[address(1), 1])
        assert found.line == HoldingLine(expected, "pool-1", pod("web-0", uid="a", owner="set")), state
        assert expected[7:11] == ("c2", "node-2", past.moments["first starts"], past.moments["first ends"])
        assert (found.until, found.pool, found.definition) == (past.moments["first ends"], "pool-1", 3)


def test_who_held_tells_until_when_an_address_is_cooling(past: Past) -> None:
    assert answers.who_held(past.engine, address(2)).until == past.later
    assert answers.who_held(past.engine, address(2), past.later - 1).standing is COOLING
    assert answers.who_held(past.engine, address(2), past.later).standing is FREE


@pytest.mark.parametrize("seed", range(2))
def test_who_held_agrees_with_a_dictionary_at_any_moment(database: Database, seed: int) -> None:
    journal = started(database.engine(), addresses=4, seed=seed)
    journal.write(60)
    for state in howsoever_projected(journal.engine):
        engine, random = database.engine(writes=False), Random(seed)
        for _ in range(40):
            ip, at = random.choice(journal.pools[random.randint(1, 2)]), random.randint(START, journal.now + 1)
            held = [
                row for (where, _), row in journal.holdings.items()
                if where == ip and row["held_from"] <= at and (row["held_until"] is None or at < row["held_until"])
            ]  # fmt: skip
            found = answers.who_held(engine, ip, at)
            holding = found.line.holding._asdict() if found.line and found.standing is HELD else None
            assert holding == (held[0] if held else None), state


def test_the_history_of_an_address_is_all_its_holdings_newest_first(past: Past) -> None:
    for state in howsoever_projected(past.journal.engine):
        found = answers.history_of_ip(past.engine, address(1))
        assert [line.holding._asdict() for line in found.lines] == [
            past.journal.holdings[address(1), 4], past.journal.holdings[address(1), 1],
        ], state  # fmt: skip
        assert [(line.pool, line.subject.name) for line in found.lines if line.subject] == [
            ("pool-1", "web-1"), ("pool-1", "web-0"),
        ]  # fmt: skip
        assert not found.more
        newest = answers.history_of_ip(past.engine, address(1), limit=1)
        assert (newest.lines, newest.more) == (found.lines[:1], True)
        assert answers.history_of_ip(past.engine, address(9)).lines == ()


def test_the_history_of_a_pod_is_all_it_had_newest_first(past: Past) -> None:
    with past.journal.transaction() as writing:
        writing.allocate(address(7), pod("web-0", uid="z"))
        writing.allocate(address(8), pod("web-0", "elsewhere", uid="y"))
    for state in howsoever_projected(past.journal.engine):
        found = answers.history_of_pod(past.engine, "default", "web-0")
        assert [line.holding.ip for line in found.lines] == [address(7), address(1)], state
        assert [line.subject and line.subject.uid for line in found.lines] == ["z", "a"]
        newest = answers.history_of_pod(past.engine, "default", "web-0", limit=1)
        assert (newest.lines, newest.more) == (found.lines[:1], True)
        assert answers.history_of_pod(past.engine, "default", "web").lines == ()


def test_a_holding_that_was_rebound_is_of_who_spoke_for_it_last(past: Past) -> None:
    with past.journal.transaction() as writing:
        writing.rebind(address(1), "c7", "node-7", pod("launcher-2", uid="b"))
    for state in howsoever_projected(past.journal.engine):
        lines = [answers.history_of_pod(past.engine, "default", name).lines for name in ("launcher-2", "web-1")]
        assert [len(each) for each in lines] == [1, 0], state


HOSTILE = [
    "a%", "a_", "ab", "A", "a", "", "%", 'a"b', "a\\b", 'a\\"b', "a'b", "'; DROP TABLE event; --", "a/b", "a/%b",
    "a\nb", "é", "e\u0301", "💥", '","namespace":"default', 'x","namespace":"y', "{}", "a" * 300, "null", "a|b",
]  # fmt: skip


def test_no_name_is_taken_for_another(database: Database) -> None:
    journal = started(database.engine(), pools=1, addresses=200)
    engine = database.engine(writes=False)
    free = iter(journal.pools[1])
    given: dict[tuple[str, str], Ip] = {}
    imitation = {"name": "victim", "namespace": "default", "owner": ""}
    with journal.transaction() as writing:
        for number, name in enumerate(HOSTILE):
            for namespace, pod_name in (("default", name), (name + "-ns", "web")):
                given[namespace, pod_name] = next(free)
                writing.allocate(given[namespace, pod_name], pod(pod_name, namespace, uid=f"u{number}"))
        writing.allocate(next(free), pod("imitator", uid="i", labels=tuple(imitation.items())))
    for state in howsoever_projected(journal.engine):
        for (namespace, pod_name), ip in given.items():
            found = answers.history_of_pod(engine, namespace, pod_name)
            assert [line.holding.ip for line in found.lines] == [ip], (namespace, pod_name, state)
        for namespace, pod_name in (("default", "victim"), ("default", "\0"), ("default", "\udc80"), ("web", "a%-ns")):
            assert answers.history_of_pod(engine, namespace, pod_name).lines == ()
            assert answers.explain(engine, namespace, pod_name).lines == ()


def test_a_history_remains_when_names_are_removed(past: Past) -> None:
    with past.journal.engine.begin() as connection:
        connection.execute(update(tables.subject).values(document=None))
    found = answers.who_held(past.engine, address(1))
    assert found.line is not None
    assert (found.standing, found.line.subject, found.line.holding.container) == (HELD, None, "c3")
    assert answers.history_of_pod(past.engine, "default", "web-1").lines == ()
    assert [line.subject for line in answers.allocations(past.engine).lines] == [None] * 3


# How far an answer reaches ----------------------------------------------------------------------


def test_an_answer_says_up_to_which_event_it_holds(past: Past) -> None:
    for state in howsoever_projected(past.journal.engine):
        last = answers.events(past.engine, limit=1).lines[0].event
        asked: list[Any] = [
            answers.who_held(past.engine, address(1)), answers.history_of_ip(past.engine, address(1)),
            answers.history_of_pod(past.engine, "default", "web-0"), answers.explain(past.engine, "default", "web-0"),
            answers.pools(past.engine), answers.allocations(past.engine), answers.events(past.engine),
        ]  # fmt: skip
        for answer in asked:
            reach = answer.as_of
            assert reach[:3] == (last.tx, last.position, last.recorded_at), state
            assert reach.complete, state
            assert reach.read_at > past.moments["end"]


def test_an_answer_from_an_empty_ledger_holds_from_the_beginning(database: Database) -> None:
    engine = database.engine(writes=False)
    found = answers.who_held(engine, address(1))
    assert (found.standing, found.as_of.tx, found.as_of.at, found.as_of.complete) == (UNKNOWN, 0, None, True)
    assert [*answers.pools(engine).lines, *answers.allocations(engine).lines, *answers.events(engine).lines] == []


def test_what_is_committed_above_the_fence_is_told_but_not_vouched_for(postgresql: Database) -> None:
    past = Past(postgresql)
    project_all(past.journal.engine)
    settled = answers.who_held(past.engine, address(6)).as_of
    with past.journal.engine.connect() as forgotten:
        forgotten.execute(text("SELECT pg_current_xact_id()"))
        with past.journal.transaction() as writing:
            writing.allocate(address(6), pod("new", uid="n"))
        found = answers.who_held(past.engine, address(6))
        assert found.standing is HELD
        assert found.as_of[:3] == settled[:3]
        assert answers.history_of_pod(past.engine, "default", "new").lines[0].holding.ip == address(6)
        assert answers.pools(past.engine).lines[1].allocated == 4
    assert answers.who_held(past.engine, address(6)).as_of.tx > settled.tx


def test_an_answer_that_cannot_fold_all_events_says_how_far_it_came(
    past: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projector.present.EVENTS_FOLDED_MAX", 5)
    found = answers.who_held(past.engine, address(1), past.moments["first goes on"])
    assert (found.standing, found.until) == (HELD, None)
    assert (found.as_of.complete, found.as_of.at) == (False, past.moments["first starts"])
    # Who has it now is in its row, however far behind the projection is.
    now = answers.who_held(past.engine, address(5))
    assert now.line is not None
    assert now.line.subject == pod("web-5", uid="f")
    assert (now.standing, now.line.pool, now.line.holding.held_from) == (HELD, "pool-1", None)
    monkeypatch.setattr("projector.present.EVENTS_FOLDED_MAX", past.journal.events)
    assert answers.who_held(past.engine, address(1)).as_of.complete


def test_an_answer_is_of_one_moment_while_a_projector_runs(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("projector.tail.PAGE_EVENTS", 2)
    monkeypatch.setattr("projector.tail.POLL_FASTEST", 0.0)
    journal = started(database.engine(), pools=1)
    with journal.transaction() as writing:
        for _ in range(600):
            writing.refuse(pod("late"), [1])
    stop, reader = threading.Event(), database.engine(writes=False)
    tail = Tail(journal.engine, PROJECTIONS, reader=database.engine(writes=False))
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(tail.run, stop)
        counted = [answers.pools(reader).lines[0].refused for _ in range(60)]
        stop.set()
    assert (set(counted), running.exception()) == ({600}, None)


def test_an_answer_needs_no_more_than_the_readers_role(postgresql: Database) -> None:
    past = Past(postgresql)
    granted = open_engine(postgresql.url + "&options=-c%20role%3Dspiderledger_reader")
    for engine in (granted, past.engine):
        assert answers.who_held(engine, address(1)).standing is HELD
        assert len(answers.explain(engine, "default", "web-0").lines) == 1
        assert len(answers.pools(engine).lines) == 2
        assert len(answers.allocations(engine).lines) == 3
        assert len(answers.events(engine).lines) == past.journal.events
    granted.dispose()


# Pools, allocations, refusals, events -----------------------------------------------------------


def test_pools_are_told_with_the_columns_of_spiderpool_and_ours(past: Past) -> None:
    spec: dict[str, Any] = {
        "default": True, "disable": True, "nodeName": ["node-1"], "multusName": ["kube-system/macvlan"],
        "podAffinity": {"matchLabels": {"ipam.spidernet.io/app-namespace": "shop"}},
    }  # fmt: skip
    with past.journal.transaction() as writing:
        writing.define_pool(4, addresses=8, name="a pool", **spec)
    with past.journal.transaction() as writing:
        writing.define_pool(5, state="retired", type_=EventType.POOL_RETIRED)
        writing.refuse(pod("late"), [1, 2])
        writing.refuse(pod("late"), [1])
    nobody: tuple[str, ...] = ()
    for state in howsoever_projected(past.journal.engine):
        assert answers.pools(past.engine).lines == (
            PoolLine("a pool", 4, "10.4.0.0/16", 0, 8, True, True, ("node-1",), ("kube-system/macvlan",), "shop",
                     "open", withheld=0, cooling=0, refused=0),
            PoolLine("closed", 4, "10.2.0.0/16", 0, 4, False, False, nobody, nobody, "", "closed",
                     withheld=4, cooling=0, refused=1),
            PoolLine("pool-1", 4, "10.1.0.0/16", 3, 16, False, False, nobody, nobody, "", "open",
                     withheld=2, cooling=1, refused=2),
        ), state  # fmt: skip


def test_allocations_are_what_is_held_now_in_address_order(past: Past) -> None:
    found = answers.allocations(past.engine)
    assert [(line.address.ip, line.pool, line.claim.name, line.subject) for line in found.lines] == [
        (address(1), "pool-1", "web-1", pod("web-1", uid="b")),
        (address(4), "pool-1", "web-4", pod("web-4", uid="e")),
        (address(5), "pool-1", "web-5", pod("web-5", uid="f")),
    ]
    assert [line.address.node for line in found.lines] == ["node-3", None, "node-1"]
    first = answers.allocations(past.engine, limit=2)
    rest = answers.allocations(past.engine, after=first.lines[-1].address.ip, limit=2)
    assert (first.lines + rest.lines, first.more, rest.more) == (found.lines, True, False)


def test_a_pods_requests_are_explained_newest_first(past: Past) -> None:
    passed_over = [("closed", "the pool is closed"), ("pool-1", "")]
    with past.journal.transaction() as writing:
        writing.refuse(pod("web-0", uid="q"), [1], candidates=passed_over)
        writing.refuse(pod("other"), [1])
    with past.journal.transaction() as writing:
        writing.allocate(address(7), pod("web-0", uid="q"))
    with past.journal.transaction() as writing:
        writing.refuse(pod("web-0", uid="r"), [], "no-pool-available", [("closed", "the pool is closed")])
    for state in howsoever_projected(past.journal.engine):
        found = answers.explain(past.engine, "default", "web-0")
        said = [line.reason if isinstance(line, RefusalLine) else line.holding.ip for line in found.lines]
        assert said == ["no-pool-available", address(7), "all-addresses-used-out", address(1)], state
        refused = found.lines[2]
        assert isinstance(refused, RefusalLine)
        assert refused.candidates == tuple(Candidate(*each) for each in passed_over)
        assert (refused.interface, refused.text) == ("eth0", "no address: all-addresses-used-out")
        assert refused.subject == pod("web-0", uid="q")
        newest = answers.explain(past.engine, "default", "web-0", limit=2)
        assert (newest.lines, newest.more, found.more) == (found.lines[:2], True, False)


def test_refusals_are_found_by_their_index(past: Past) -> None:
    with past.journal.engine.connect() as connection:
        plan = _plan(connection)
    assert {"sqlite": "USING INDEX event_refused", "postgresql": "_subject_idx on event_"}[
        past.journal.engine.dialect.name
    ] in plan, plan


def _plan(connection: Connection) -> str:
    statement = answers._refusals(connection.dialect.name).compile(dialect=connection.dialect)
    if connection.dialect.name == "postgresql":
        rows = connection.exec_driver_sql(f"EXPLAIN {statement}", {"subjects": "[]", "limit": 1})
    else:
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", ("[]", 1, 0))
    return "\n".join(str(row) for row in rows)


def test_events_are_told_newest_first_with_the_names_behind_them(past: Past) -> None:
    with past.journal.transaction() as writing:
        writing.refuse(pod("late"), [1, 2])
    found = answers.events(past.engine)
    assert [(line.event.type, line.pools, line.subject and line.subject.name) for line in found.lines[:3]] == [
        ("allocation.refused", ("pool-1", "closed"), "late"),
        ("address.withheld", ("pool-1",), "web-4"),
        ("address.withheld", ("pool-1",), "web-3"),
    ]
    assert found.lines[-1].event.type == "ledger.opened"
    assert (len(found.lines), found.searched_to) == (past.journal.events, None)


FILTERED: list[tuple[str, Callable[[dict[str, int]], Filter], list[str]]] = [
    ("of one address", lambda at: Filter(ip=address(3)), ["address.withheld", "address.released", "address.allocated"]),
    ("of some types", lambda at: Filter(types=frozenset({"pool.defined", "ledger.opened"})),
     ["pool.defined", "pool.defined", "ledger.opened"]),
    ("of a pool", lambda at: Filter(pool="closed"), ["pool.defined"]),
    ("of a pod", lambda at: Filter(namespace="default", name="web-5"), ["address.allocated"]),
    ("of a namespace", lambda at: Filter(namespace="elsewhere"), []),
    ("of a node", lambda at: Filter(node="node-2"), ["address.released", "address.rebound"]),
    ("from a moment on", lambda at: Filter(since=at["end"]), ["address.withheld"]),
    ("before a moment", lambda at: Filter(until=at["opened"] + 1), ["ledger.opened"]),
    ("of all these", lambda at: Filter(ip=address(1), node="node-3", until=at["second starts"]), []),
]  # fmt: skip


@pytest.mark.parametrize(("wanted", "types"), [case[1:] for case in FILTERED], ids=[case[0] for case in FILTERED])
def test_events_are_filtered(past: Past, wanted: Callable[[dict[str, int]], Filter], types: list[str]) -> None:
    assert [line.event.type for line in answers.events(past.engine, wanted=wanted(past.moments)).lines] == types


def test_events_are_asked_for_page_by_page(past: Past) -> None:
    every = answers.events(past.engine).lines
    found: list[EventLine] = []
    mark = None
    for _ in range(len(every)):
        part = answers.events(past.engine, 4, before=mark)
        found += part.lines
        mark = part.searched_to
        if mark is None:
            break
    assert found == list(every)


def test_a_search_for_rare_events_ends_and_can_be_carried_on(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = past.journal
    with journal.transaction() as writing:
        for _ in range(1_500):
            writing.refuse(pod("late"), [1])
    monkeypatch.setattr(answers, "EVENTS_SEARCHED_MAX", answers.EVENTS_PER_READ)
    rare = Filter(types=frozenset({"ledger.opened"}))
    first = answers.events(past.engine, wanted=rare)
    assert first.lines == ()
    assert first.searched_to is not None
    rest = answers.events(past.engine, wanted=rare, before=first.searched_to)
    assert ([line.event.type for line in rest.lines], rest.searched_to) == (["ledger.opened"], None)
