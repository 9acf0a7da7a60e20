"""Projections: in any order where that may be, exact where it counts, and rebuilt they equal the live ones."""

from __future__ import annotations

from itertools import permutations
from random import Random
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, delete, func, select, update

from ledger import tables
from ledger.addresses import parse
from ledger.canonical import canonical
from ledger.events import Event, EventType
from ledger.journal import Mark, fence, page
from ledger.ranges import TOTAL_MAX
from projector import checkpoints, images
from projector.checkpoints import DROPPED, AnotherProjectorError
from projector.projections import HOLDING, OCCUPANCY, PROJECTIONS, Holding, Key, Occupancy, Projection
from projector.tail import Tail, rebuild
from tests.conftest import Database
from tests.journals import projected, started

IP = parse("10.1.0.5")


def event(type_: EventType, step: int = 0, data: dict[str, Any] | None = None, **cells: Any) -> Event:
    at = 1_000 + step
    return Event(1, step, step, type_, 1, at, at, data=canonical(data or {}), step=step, **cells)


def of_ip(type_: EventType, step: int, **cells: Any) -> Event:
    return event(type_, step, ip=IP, holding=3, pool=1, claim=b"claim", interface="eth0", **cells)


LIFE = (
    of_ip(EventType.ALLOCATED, 3, subject=b"first", container=None, node=None),
    of_ip(EventType.REBOUND, 4, subject=b"first", container="c1", node="n1"),
    of_ip(EventType.UNBOUND, 5, subject=b"first", container="c1", node="n1", cause="del"),
    of_ip(EventType.REBOUND, 6, subject=b"second", container="c2", node="n2"),
    of_ip(EventType.WITHHELD, 7, subject=b"second", container="c2", node="n2"),
    of_ip(EventType.RELEASED, 8, subject=b"second", container="c2", node="n2", cause="gc"),
)


def test_a_holding_is_the_same_in_whatever_order_its_events_come() -> None:
    expected = {(IP, 3): Holding(
        ip=IP, step=3, last_step=6, pool=1, claim=b"claim", interface="eth0", subject=b"second", container="c2",
        node="n2", held_from=1_003, held_until=1_008, recorded_from=1_003, recorded_until=1_008, cause="gc",
    )}  # fmt: skip
    for order in permutations(LIFE):
        assert HOLDING.fold(HOLDING.fold({}, order[:3]), order[3:]) == expected, [each.step for each in order]


def test_a_holding_takes_no_harm_from_events_that_come_again() -> None:
    once = HOLDING.fold({}, LIFE)
    assert HOLDING.fold(once, LIFE) == once


def test_each_holding_of_an_address_has_its_own_row() -> None:
    again = of_ip(EventType.ALLOCATED, 9, subject=b"third", container="c3", node="n1")._replace(holding=9)
    folded = HOLDING.fold({}, [again, *LIFE])
    assert {key: row.held_until for key, row in folded.items()} == {(IP, 3): 1_008, (IP, 9): None}


def defined(definition: int, total: int, available: int, type_: EventType = EventType.POOL_REDEFINED) -> Event:
    return event(type_, data={"total": total, "available": available}, pool=1, definition=definition)


def reserved(definition: int, **available: int) -> Event:
    counts = {pool.removeprefix("pool_"): count for pool, count in available.items()}
    return event(EventType.RESERVATION_DEFINED, data={"available": counts}, definition=definition)


OCCUPIED = [
    ("a definition says totals", [defined(2, 20, 15)], Occupancy(1, 2, 20, 5)),
    ("the higher definition stands", [defined(3, 30, 30), defined(2, 20, 15)], Occupancy(1, 3, 30, 0)),
    ("a later event of one definition stands",
     [defined(3, 30, 0, EventType.POOL_CLOSED), defined(3, 30, 0, EventType.POOL_RETIRED)], Occupancy(1, 3, 30, 30)),
    ("a reservation withholds", [defined(2, 20, 20), reserved(3, pool_1=4)], Occupancy(1, 3, 20, 16)),
    ("a reservation elsewhere does not", [defined(2, 20, 20), reserved(3)], Occupancy(1, 2, 20, 0)),
    ("an old reservation changes nothing", [defined(4, 20, 20), reserved(3, pool_1=4)], Occupancy(1, 4, 20, 0)),
    ("more than a status can say is saturated", [defined(2, TOTAL_MAX, TOTAL_MAX)], Occupancy(1, 2, TOTAL_MAX, 0)),
    ("a total beyond that too", [defined(2, TOTAL_MAX + 5, TOTAL_MAX)], Occupancy(1, 2, TOTAL_MAX, 0)),
    ("a release may come before its allocation", [LIFE[5], LIFE[0]], Occupancy(1)),
    ("only allocations and releases count", list(LIFE[:5]), Occupancy(1, allocated=1)),
    ("a refusal counts once for each pool that was tried",
     [event(EventType.REFUSED, data={"pools": [1, 1]})] * 2, Occupancy(1, refused=2)),
    ("an allocation may come before its pool", [LIFE[0], defined(2, 20, 20)], Occupancy(1, 2, 20, 0, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("events", "expected"), [case[1:] for case in OCCUPIED], ids=[case[0] for case in OCCUPIED])
def test_occupancy(events: list[Event], expected: Occupancy) -> None:
    assert OCCUPANCY.fold({}, events) == {(1,): expected}


@pytest.mark.parametrize("type_", sorted(set(EventType) - {
    EventType.ALLOCATED, EventType.REBOUND, EventType.RELEASED, EventType.REFUSED, EventType.POOL_DEFINED,
    EventType.POOL_REDEFINED, EventType.POOL_CLOSED, EventType.POOL_RETIRED, EventType.RESERVATION_DEFINED,
    EventType.RESERVATION_REDEFINED, EventType.RESERVATION_RETIRED,
}))  # fmt: skip
def test_other_events_touch_nothing(type_: EventType) -> None:
    assert [projection.fold({}, [of_ip(type_, 1)]) for projection in PROJECTIONS] == [{}, {}]


@pytest.mark.parametrize("strange", [
    LIFE[0]._replace(version=2), LIFE[0]._replace(type="address.painted"), LIFE[0]._replace(type="t"),
])  # fmt: skip
def test_an_event_from_the_future_stops_the_fold(strange: Event) -> None:
    for projection in PROJECTIONS:
        with pytest.raises(ValueError, match="is not known here"):
            projection.fold({}, [strange])


@pytest.mark.parametrize(("projection", "image"), [(HOLDING, Holding), (OCCUPANCY, Occupancy)])
def test_an_image_is_a_row_of_its_table(projection: Projection[Any], image: Any) -> None:
    table = tables.metadata.tables[projection.name]
    assert image._fields == tuple(table.columns.keys())
    assert tuple(table.primary_key.columns.keys()) == image._fields[: len(table.primary_key)]


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_transactions_and_the_cut_of_pages_do_not_matter(sqlite: Database, seed: int) -> None:
    journal = started(sqlite.engine(), seed=seed)
    journal.write(200)
    with journal.engine.connect() as connection:
        events = page(connection, Mark(), fence(connection))
    random = Random(seed)
    folded: tuple[dict[Key, Holding], dict[Key, Occupancy]] = ({}, {})
    for part in _parts(random, _shuffled(random, events)):
        folded = HOLDING.fold(folded[0], part), OCCUPANCY.fold(folded[1], part)
    assert {key: row._asdict() for key, row in folded[0].items()} == journal.holdings
    assert {key[0]: row._asdict() for key, row in folded[1].items()} == journal.occupancy


def _shuffled(random: Random, events: list[Event]) -> list[Event]:
    """Definitions in their order, everything else in any."""
    definitions = [each for each in events if each.definition is not None and each.ip is None]
    rest = [each for each in events if each not in definitions]
    random.shuffle(rest)
    for each in reversed(definitions):
        rest.insert(random.randint(0, len(rest) // 2), each)
    order = iter(definitions)
    return [next(order) if each in definitions else each for each in rest]


def _parts(random: Random, events: list[Event]) -> list[list[Event]]:
    cuts = sorted(random.sample(range(len(events)), 9))
    return [events[low:high] for low, high in zip([0, *cuts], [*cuts, len(events)], strict=True)]


def follow(engine: Engine) -> None:
    tail = Tail(engine, PROJECTIONS)
    while tail.step():
        pass


@pytest.mark.parametrize("seed", range(5))
def test_random_histories_are_projected_as_a_dictionary_says(database: Database, seed: int) -> None:
    journal = started(database.engine(), seed=seed)
    for _ in range(5):
        journal.write(40)
        follow(journal.engine)
        assert projected(journal.engine) == (journal.holdings, journal.occupancy)


def test_a_reservation_and_a_redefinition_change_what_is_withheld(database: Database) -> None:
    journal = started(database.engine())
    with journal.transaction() as writing:
        writing.reserve(1, ["10.1.0.1-10.1.0.3"], {1: 13})
    follow(journal.engine)
    with journal.transaction() as writing:
        writing.define_pool(1, addresses=20, withheld=3, type_=EventType.POOL_REDEFINED)
    with journal.transaction() as writing:
        writing.define_pool(2, state="closed", type_=EventType.POOL_CLOSED)
    follow(journal.engine)
    found = projected(journal.engine)[1]
    assert found == journal.occupancy
    assert {pool: (row["total"], row["withheld"]) for pool, row in found.items()} == {1: (20, 3), 2: (16, 16)}


@pytest.mark.parametrize("name", ["holding", "occupancy"])
@pytest.mark.parametrize("rows", [1, 10_000])
def test_a_rebuild_equals_the_live_projection(
    database: Database, monkeypatch: pytest.MonkeyPatch, name: str, rows: int
) -> None:
    monkeypatch.setattr(images, "DROP_ROWS", rows)
    journal = started(database.engine(), seed=7)
    journal.write(150)
    follow(journal.engine)
    _spoil(journal.engine)
    rebuild(journal.engine, name)
    found = dict(zip(("holding", "occupancy"), projected(journal.engine), strict=True))
    expected = {"holding": journal.holdings, "occupancy": journal.occupancy}
    assert {each: found[each] == expected[each] for each in found} == {each: each == name for each in found}
    journal.write(50)
    follow(journal.engine)
    assert dict(zip(("holding", "occupancy"), projected(journal.engine), strict=True))[name] == expected[name]


def _spoil(engine: Engine) -> None:
    """Whatever can be wrong in a projection: a row too few, a row too many, wrong cells."""
    with engine.begin() as connection:
        connection.execute(delete(tables.holding).where(tables.holding.c.step == 1))
        connection.execute(update(tables.holding).values(last_step=10**6, node="elsewhere", held_until=1))
        connection.execute(tables.holding.insert(), {"ip": parse("192.0.2.1"), "step": 1, "last_step": 1})
        connection.execute(delete(tables.occupancy).where(tables.occupancy.c.pool == 1))
        connection.execute(update(tables.occupancy).values(allocated=-5, definition=10**6))
        connection.execute(tables.occupancy.insert(), Occupancy(99)._asdict())


def test_a_rebuild_of_an_empty_journal_ends(database: Database) -> None:
    engine = database.engine()
    for projection in PROJECTIONS:
        rebuild(engine, projection.name)
    assert projected(engine) == ({}, {})


def test_a_rebuild_of_an_unknown_projection_names_the_known_ones(sqlite: Database) -> None:
    with pytest.raises(ValueError, match="no projection leases: choose holding or occupancy"):
        rebuild(sqlite.engine(), "leases")


def test_a_rebuild_that_was_killed_is_finished_by_the_next_projector(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "DROP_ROWS", 2)
    journal = started(database.engine(), seed=3)
    journal.write(100)
    follow(journal.engine)
    _spoil(journal.engine)
    with journal.engine.begin() as connection:
        for projection in PROJECTIONS:
            checkpoints.reset(connection, projection.name)
            images.drop(connection, projection.name)
    tail = Tail(journal.engine, PROJECTIONS)
    while tail.step() or tail.mark == DROPPED:
        pass
    assert projected(journal.engine) == (journal.holdings, journal.occupancy)


def test_who_was_late_in_dropping_rows_does_not_drop_new_ones(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "DROP_ROWS", 1)
    journal = started(database.engine(), seed=3)
    journal.write(60)
    follow(journal.engine)
    late = Tail(journal.engine, PROJECTIONS)
    rebuild(journal.engine, "holding")
    with pytest.raises(AnotherProjectorError):
        # It had seen the checkpoint before the rebuild was through with it.
        late._drop({"holding": DROPPED})
    assert projected(journal.engine) == (journal.holdings, journal.occupancy)


def test_a_projection_that_was_rebuilt_alone_joins_the_others(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = started(database.engine(), seed=5)
    journal.write(100)
    follow(journal.engine)
    with journal.engine.begin() as connection:
        checkpoints.reset(connection, "holding")
    monkeypatch.setattr("projector.tail.PAGE_EVENTS", 7)
    journal.write(30)
    tail = Tail(journal.engine, PROJECTIONS)
    while tail.step() or tail.mark == DROPPED:
        pass
    assert projected(journal.engine) == (journal.holdings, journal.occupancy)
    with journal.engine.connect() as connection:
        assert connection.execute(select(func.count(tables.checkpoint.c.tx.distinct()))).scalar_one() == 1


def test_images_are_looked_up_by_their_key(database: Database) -> None:
    journal = started(database.engine(), seed=2)
    journal.write(60)
    follow(journal.engine)
    with journal.engine.connect() as connection:
        some = sorted(journal.holdings)[::2]
        found = images.read(connection, HOLDING, [*some, (parse("192.0.2.9"), 4)])
        assert {key: row._asdict() for key, row in found.items()} == {key: journal.holdings[key] for key in some}
        plan = _plan(connection)
    assert {"sqlite": "SEARCH holding", "postgresql": "Index Cond: ((ip = "}[database.kind] in plan, plan
    assert "SCAN holding" not in plan
    assert "Hash" not in plan


def _plan(connection: Connection) -> str:
    dialect = connection.dialect.name
    statement = images._by_key(dialect, "holding").compile(dialect=connection.dialect)
    parameters = {**statement.params, "keys": '[{"ip": "040a010001", "step": 1}]'}
    if dialect == "postgresql":
        rows = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
    else:
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", (parameters["keys"],))
    return "\n".join(str(row) for row in rows)
