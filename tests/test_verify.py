"""`verify` is silent on a ledger that is right, also while it goes on; what is changed by hand it finds and names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from sqlalchemy import (
    Boolean,
    ColumnElement,
    Connection,
    Engine,
    LargeBinary,
    Table,
    Text,
    create_engine,
    insert,
    select,
    text,
)
from sqlalchemy import event as hook

from ledger import tables, verify
from ledger.addresses import Ip, parse
from ledger.addresses import text as ip_text
from ledger.claims import Subject
from ledger.database import database_url
from ledger.events import Event, EventType
from ledger.fold import Fault
from ledger.journal import PAGE_EVENTS, Mark
from ledger.schema import migrate
from ledger.verify import Report
from projector.projections import PROJECTIONS
from projector.tail import Tail
from tests.conftest import Database
from tests.ledgers import Past, inverted, journal_of, project, salt_of, small, store, store_more
from tests.postgresql import Server

PROJECTED = (tables.checkpoint, tables.occupancy, tables.holding)
TABLES = (tables.ledger, tables.pool, tables.reservation, tables.object_uid, tables.extent, tables.address,
          tables.subject, *PROJECTED)  # fmt: skip


def test_every_table_of_the_ledger_is_tampered_with_below() -> None:
    assert {*TABLES, tables.event} == set(tables.metadata.sorted_tables)


@dataclass(frozen=True)
class Kept:
    """A small ledger that many tests change by hand, each leaving it as it was."""

    database: Database
    reader: Engine
    events: list[Event]

    @property
    def kind(self) -> str:
        return self.database.kind

    def verified(self) -> Report:
        return verify.verify(self.reader)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    if request.param == "sqlite":
        database = Database("sqlite", f"sqlite:///{tmp_path_factory.mktemp('kept')}/ledger.db")
    else:
        server: Server = request.getfixturevalue("server")
        owner = create_engine(database_url(server.url()), isolation_level="AUTOCOMMIT")
        with owner.connect() as connection:
            connection.execute(text("CREATE DATABASE kept"))
        owner.dispose()
        database = Database("postgresql", server.url("kept"))
    engine = database.engine()
    migrate(engine)
    yield Kept(database, database.engine(writes=False), store(engine, small(salt_of(engine))))
    database.dispose()


def verified(database: Database) -> Report:
    return verify.verify(database.engine(writes=False))


@contextmanager
def by_hand(database: Database) -> Iterator[Connection]:
    """A connection of the database's owner, who may switch off what guards it. What it does is done at once."""
    engine = create_engine(database_url(database.url), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        if database.kind == "sqlite":
            for name in connection.execute(text(_TRIGGERS)).scalars().all():
                connection.execute(text(f"DROP TRIGGER {name}"))
            connection.execute(text("PRAGMA ignore_check_constraints = on"))
        else:
            connection.execute(text("SET session_replication_role = replica"))
            for table, name in connection.execute(text(_CHECKS)).all():
                connection.execute(text(f"ALTER TABLE {table} DROP CONSTRAINT {name}"))
        yield connection
    engine.dispose()


_TRIGGERS = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
_CHECKS = "SELECT conrelid::regclass::text, conname FROM pg_constraint WHERE contype = 'c' AND conrelid <> 0"


@contextmanager
def tampering(kept: Kept, table: Table) -> Iterator[Connection]:
    """The same, and afterwards the table is as it was."""
    with by_hand(kept.database) as connection:
        rows = [dict(row._mapping) for row in connection.execute(select(table))]
        try:
            yield connection
        finally:
            connection.execute(table.delete())
            connection.execute(insert(table), rows)


def change(connection: Connection, table: Table, row: Any, **cells: Any) -> None:
    """Other values in the cells of one row."""
    mine = [each == row._mapping[each] for each in table.primary_key.columns]
    done = connection.execute(table.update().where(*mine).values(cells))
    assert done.rowcount == 1


def another(table: Table, column: str, value: Any) -> Any:
    """A value that this cell does not have."""
    kind = table.c[column].type
    if isinstance(kind, Boolean):
        return not value
    if isinstance(kind, LargeBinary):
        return bytes([value[0] ^ 1]) + value[1:]
    if isinstance(kind, Text):
        return f"{value or ''}x"
    return (value or 0) + (1 if table is tables.event else 1_000)


def wheres(report: Report) -> set[str]:
    return {fault.where for fault in report.faults}


def at(event: Any) -> str:
    return f"event {event.tx}/{event.position}"


# What is right ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_ledger_that_is_right_has_no_faults(database: Database, seed: int) -> None:
    engine = database.engine()
    past = small(salt_of(engine), seed=seed, acts=150)
    events = store(engine, past)
    found = verified(database)
    assert found == Report(len(events), len(past.rows), Mark(events[-1].tx, events[-1].position), (), ())


def test_a_ledger_of_many_pages_has_no_faults(database: Database) -> None:
    engine = database.engine()
    past = small(salt_of(engine), acts=20)
    past.define_pool(7, "10.7.0.1", 2_000)
    past.commit()
    for number in range(1_100):
        past.allocate(Ip(parse("10.7.0.1") + number), Subject("here", "many", f"pod-{number}", f"u{number}"))
    past.live(1_500, alone=0.1)
    store(engine, past)
    reader = database.engine(writes=False)
    with statements_of_each_transaction(reader) as counts:
        found = verify.verify(reader)
    assert (found.faults, found.unjudged) == ((), ())
    assert found.events > 2 * PAGE_EVENTS
    assert found.addresses > verify.PAGE_ROWS
    # No transaction grows with the ledger: one has at most a projection's rows, checkpoint and event.
    assert max(counts) == 3


@contextmanager
def statements_of_each_transaction(engine: Engine) -> Iterator[list[int]]:
    counts: list[int] = []
    hook.listen(engine, "begin", lambda connection: counts.append(0))

    def count(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("SELECT"):
            counts[-1] += 1

    hook.listen(engine, "after_cursor_execute", count)
    yield counts


def test_pools_that_touch_are_kept_apart(database: Database) -> None:
    engine = database.engine()
    past = Past(salt_of(engine))
    past.open()
    for id_, first in ((1, "10.0.1.1"), (2, "10.0.1.5")):
        past.commit()
        past.define_pool(id_, first, 4)
    for number in (4, 5):
        past.commit()
        past.allocate(parse(f"10.0.1.{number}"), past.somebody())
    past.commit()
    store(engine, past)
    assert verified(database).faults == ()


def test_a_new_ledger_has_no_faults(database: Database) -> None:
    assert verified(database) == Report(0, 0, Mark(), ())


def test_the_writers_own_engine_may_be_used(database: Database) -> None:
    engine = database.engine()
    events = store(engine, small(salt_of(engine)))
    assert verify.verify(engine).events == len(events)


def test_a_name_that_was_removed_from_its_subject_is_no_fault(kept: Kept) -> None:
    with tampering(kept, tables.subject) as connection:
        connection.execute(tables.subject.update().values(document=None))
        assert kept.verified().faults == ()


def test_a_schema_of_newer_software_is_verified_but_for_what_only_that_knows(kept: Kept) -> None:
    with by_hand(kept.database) as connection, tampering(kept, tables.ledger):
        connection.execute(tables.ledger.update().values(oldest_software="9.9.9"))
        known = connection.execute(
            text("UPDATE alembic_version SET version_num = '9999' RETURNING '0001'")
        ).scalar_one()
        found = kept.verified()
        connection.execute(text("UPDATE alembic_version SET version_num = :known"), {"known": known})
    assert found.faults == ()


def test_projections_are_held_against_the_journal_at_their_own_checkpoint(database: Database) -> None:
    engine = database.engine()
    past = small(salt_of(engine), acts=40)
    events = store(engine, past)
    past.live(60)
    store_more(engine, past)
    assert len(journal_of(engine)) > len(events)
    assert verified(database).faults == ()


def test_the_projectors_own_rows_have_no_faults(database: Database) -> None:
    engine = database.engine()
    store(engine, small(salt_of(engine)))
    with by_hand(database) as connection:
        for table in PROJECTED:
            connection.execute(table.delete())
    tail = Tail(engine, PROJECTIONS)
    while tail.step():
        pass
    assert verified(database).faults == ()


@pytest.mark.parametrize("seed", range(3))
def test_steps_inverted_across_transactions_have_no_faults_wherever_a_projection_stands(
    postgresql: Database, seed: int
) -> None:
    engine = postgresql.engine()
    past = small(salt_of(engine), seed=seed, acts=60)
    store(engine, past, inverted(past.events(), Random(seed)))
    events = journal_of(engine)
    for end in Random(seed).sample(range(1, len(events)), 12):
        with by_hand(postgresql) as connection:
            _project_by_the_projector(connection, events[:end])
        assert verified(postgresql).faults == (), end


def _project_by_the_projector(connection: Connection, events: list[Event]) -> None:
    for projection in PROJECTIONS:
        table = tables.metadata.tables[projection.name]
        connection.execute(table.delete())
        images = projection.fold({}, events)
        if images:
            connection.execute(insert(table), [image._asdict() for image in images.values()])
        mine = tables.checkpoint.c.projection == projection.name
        connection.execute(
            tables.checkpoint.update().where(mine).values(tx=events[-1].tx, position=events[-1].position)
        )


# A ledger that goes on --------------------------------------------------------------------------

READS = ("event", "checkpoint", "occupancy", "holding", "subject", "address", "ledger", "pool", "reservation", "extent")


@contextmanager
def when_read(engine: Engine, table: str, act: Callable[[], None]) -> Iterator[list[str]]:
    """Something happens in the ledger just before and just after verify first reads this table's rows."""
    done: list[str] = []

    def happens(when: str) -> Any:
        def listener(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
            if f"FROM {table}" in statement.replace("\n", "").replace('"', "") and when not in done:
                done.append(when)
                act()

        return listener

    before, after = happens("before"), happens("after")
    hook.listen(engine, "before_cursor_execute", before)
    hook.listen(engine, "after_cursor_execute", after)
    yield done
    assert done == ["before", "after"]


@pytest.mark.parametrize("table", READS)
@pytest.mark.parametrize("projecting", [False, True])
def test_what_happens_meanwhile_is_no_fault(database: Database, table: str, projecting: bool) -> None:
    writer, reader = database.engine(), database.engine(writes=False)
    past = small(salt_of(writer), acts=40)
    store(writer, past)
    numbers = iter(range(10, 100))

    def live() -> None:
        past.live(6)
        past.define_pool(next(numbers), f"10.0.{next(numbers)}.1", 4)
        past.live(6)
        past.redefine_pool(1, excluded=set(sorted(past.unused[1])[:1]))
        past.commit()
        past.doubt(f"third {next(numbers)}")
        past.commit()
        store_more(writer, past)
        if projecting:
            project(writer, past, journal_of(writer)[-1])

    with when_read(reader, table, live):
        found = verify.verify(reader)
    assert (found.faults, found.unjudged) == ((), ())


def test_a_doubt_that_begins_meanwhile_is_no_fault_though_no_definition_changed(database: Database) -> None:
    writer, reader = database.engine(), database.engine(writes=False)
    past = small(salt_of(writer), acts=20)
    store(writer, past)

    def doubt() -> None:
        past.doubt("fourth")
        past.commit()
        store_more(writer, past)

    with when_read(reader, "address", doubt):
        found = verify.verify(reader)
    assert (found.faults, found.unjudged) == ((), ())


def test_fresh_addresses_that_are_taken_while_extents_are_read_are_no_fault(database: Database) -> None:
    writer, reader = database.engine(), database.engine(writes=False)
    past = small(salt_of(writer), acts=20)
    past.define_pool(7, "10.0.7.1", 8)
    past.commit()
    store(writer, past)

    def take_one() -> None:
        ip = min(past.unused[7])
        past.allocate(ip, Subject("here", "fresh", f"pod-{ip}", f"u{ip}"))
        past.commit()
        store_more(writer, past)

    with when_read(reader, "extent", take_one):
        found = verify.verify(reader)
    assert (found.faults, found.unjudged) == ((), ())


def test_a_row_changed_by_hand_is_found_though_it_is_ahead_of_the_fence(database: Database) -> None:
    writer, reader = database.engine(), database.engine(writes=False)
    past = small(salt_of(writer), acts=40)
    store(writer, past)
    ip = next(ip for ip, row in past.rows.items() if row.held)

    def unbind_and_change() -> None:
        past.unbind(ip)
        past.commit()
        store_more(writer, past)
        with by_hand(database) as connection:
            mine = tables.address.c.ip == ip
            connection.execute(tables.address.update().where(mine).values(result="{}"))

    with when_read(reader, "address", unbind_and_change):
        found = verify.verify(reader)
    assert wheres(found) == {f"address {ip_text(ip)} result"}


def test_an_open_transaction_leaves_what_is_ahead_of_it_unjudged(
    postgresql: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "SETTLE_SECONDS", 0.2)
    engine = postgresql.engine()
    past = small(salt_of(engine), acts=40)
    events = store(engine, past)
    with engine.connect() as idle:
        idle.execute(text("SELECT pg_current_xact_id()"))
        past.live(20)
        past.redefine_pool(2)
        past.commit()
        store_more(engine, past)
        found = verified(postgresql)
    assert found.faults == ()
    assert found.events == len(events)
    unjudged = {fault.where for fault in found.unjudged}
    assert "ledger 1 definition" in unjudged
    assert any(where.startswith("address ") for where in unjudged)
    assert (verified(postgresql).faults, verified(postgresql).unjudged) == ((), ())


@pytest.mark.parametrize("table", [tables.occupancy, tables.holding], ids=str)
def test_a_projection_that_is_being_rebuilt_is_not_judged(kept: Kept, table: Table) -> None:
    with tampering(kept, table) as connection, tampering(kept, tables.checkpoint):
        connection.execute(table.delete())
        mine = tables.checkpoint.c.projection == table.name
        connection.execute(tables.checkpoint.update().where(mine).values(tx=-1, position=-1))
        found = kept.verified()
    assert (found.faults, found.unjudged) == ((), (Fault(table.name, verify.REBUILT),))


def test_a_projection_whose_rebuild_begins_meanwhile_is_not_judged(database: Database) -> None:
    writer, reader = database.engine(), database.engine(writes=False)
    store(writer, small(salt_of(writer), acts=40))

    def rebuild() -> None:
        with by_hand(database) as connection:
            connection.execute(tables.holding.delete())
            mine = tables.checkpoint.c.projection == "holding"
            connection.execute(tables.checkpoint.update().where(mine).values(tx=-1, position=-1))

    with when_read(reader, "subject", rebuild):
        found = verify.verify(reader)
    assert (found.faults, found.unjudged) == ((), (Fault("holding", verify.REBUILT),))


@pytest.mark.parametrize("table", [tables.occupancy, tables.holding], ids=str)
def test_a_projection_that_begins_anew_is_judged_at_its_beginning(kept: Kept, table: Table) -> None:
    with tampering(kept, table) as connection, tampering(kept, tables.checkpoint):
        connection.execute(table.delete())
        mine = tables.checkpoint.c.projection == table.name
        connection.execute(tables.checkpoint.update().where(mine).values(tx=0, position=0))
        found = kept.verified()
    assert (found.faults, found.unjudged) == ((), ())


# The journal, changed by hand -------------------------------------------------------------------


def full(events: list[Event]) -> Event:
    """An event with a value in every column."""
    return next(event for event in events if None not in event)


def place_of(event: Event) -> tuple[ColumnElement[bool], ...]:
    return tables.event.c.tx == event.tx, tables.event.c.position == event.position


def row_of(connection: Connection, event: Event) -> Any:
    return connection.execute(select(tables.event).where(*place_of(event))).one()


@pytest.mark.parametrize("column", Event._fields)
def test_a_changed_cell_of_an_event_is_found(kept: Kept, column: str) -> None:
    event = full(kept.events)
    with tampering(kept, tables.event) as connection:
        row = row_of(connection, event)
        value = another(tables.event, column, row._mapping[column])
        if column == "position":
            value += 10**9
        change(connection, tables.event, row, **{column: value})
        assert at(event._replace(**{column: value})) in wheres(kept.verified())


@pytest.mark.parametrize("column", [column.name for column in tables.event.columns if column.nullable])
def test_an_emptied_cell_of_an_event_is_found(kept: Kept, column: str) -> None:
    event = full(kept.events)
    with tampering(kept, tables.event) as connection:
        change(connection, tables.event, row_of(connection, event), **{column: None})
        assert at(event) in wheres(kept.verified())


def steps_of(events: list[Event]) -> list[Event]:
    """All events of the first address that has enough of them."""
    ips = dict.fromkeys(event.ip for event in events if event.ip is not None)
    every = ([event for event in events if event.ip == ip] for ip in ips)
    return next(steps for steps in every if len(steps) >= 4)


def without(kept: Kept, event: Event) -> Report:
    """What is found when this event has been left out."""
    with tampering(kept, tables.event) as connection:
        assert connection.execute(tables.event.delete().where(*place_of(event))).rowcount == 1
        return kept.verified()


@pytest.mark.parametrize("place", [0, 1, -2])
def test_an_event_of_an_address_that_is_left_out_is_missed_by_the_next(kept: Kept, place: int) -> None:
    gone, following = steps_of(kept.events)[place], steps_of(kept.events)[place + 1]
    stands = f"step {following.step} of {ip_text(Ip(gone.ip or 0))} stands in the journal"
    assert Fault(at(following), f"{stands} without step {gone.step} before it") in without(kept, gone).faults


def test_an_event_that_is_left_out_is_missed_though_the_row_says_that_nothing_followed_it(kept: Kept) -> None:
    before, gone, following = next(steps for steps in triples(kept.events) if steps[1].type == EventType.UNBOUND)
    with tampering(kept, tables.address) as connection:
        row = connection.execute(select(tables.address).where(tables.address.c.ip == gone.ip)).one()
        change(connection, tables.address, row, step=before.step)
        assert at(following) in wheres(without(kept, gone))


def triples(events: list[Event]) -> Iterator[tuple[Event, Event, Event]]:
    """The last three events of each address that has so many."""
    for ip in dict.fromkeys(event.ip for event in events if event.ip is not None):
        steps = [event for event in events if event.ip == ip]
        if len(steps) >= 3:
            yield steps[-3], steps[-2], steps[-1]


def test_the_last_event_of_an_address_that_is_left_out_is_missed_by_its_row(kept: Kept) -> None:
    gone = steps_of(kept.events)[-1]
    step = Fault(f"address {ip_text(Ip(gone.ip or 0))} step", f"expected {(gone.step or 0) - 1}, found {gone.step}")
    assert step in without(kept, gone).faults


def test_a_refusal_that_is_left_out_is_missed(kept: Kept) -> None:
    gone = next(event for event in kept.events if event.type == EventType.REFUSED and event.details["pools"])
    following = kept.events[kept.events.index(gone) + 1]
    # PostgreSQL leaves gaps among the positions itself: there the count of the pool's refusals tells.
    missed = f"occupancy {gone.details['pools'][0]} refused" if kept.kind == "postgresql" else at(following)
    assert missed in wheres(without(kept, gone))


@pytest.mark.parametrize("type_", [EventType.LEDGER_OPENED, EventType.POOL_DEFINED, EventType.RESERVATION_REDEFINED])
def test_an_event_of_the_ledger_or_a_definition_that_is_left_out_is_missed_by_the_next(
    kept: Kept, type_: EventType
) -> None:
    place = next(place for place, event in enumerate(kept.events) if event.type == type_)
    following = kept.events[place + 1 :]
    if type_ is not EventType.LEDGER_OPENED:
        following = [event for event in following if event.type.startswith(("pool.", "reservation."))]
    assert at(following[0]) in wheres(without(kept, kept.events[place]))


@pytest.mark.parametrize("type_", EventType)
def test_an_event_that_stands_twice_is_found(kept: Kept, type_: EventType) -> None:
    event = next(event for event in kept.events if event.type == type_)
    with tampering(kept, tables.event) as connection:
        position = kept.events[-1].position + 1
        if kept.kind == "postgresql":
            position = connection.execute(text("SELECT nextval('event_position_seq')")).scalar_one()
        connection.execute(insert(tables.event), [dict(row_of(connection, event)._mapping) | {"position": position}])
        assert at(event._replace(position=position)) in wheres(kept.verified())


def swap(connection: Connection, one: Event, other: Event) -> None:
    """The two exchange their positions."""
    first, second, nowhere = row_of(connection, one), row_of(connection, other), one._replace(position=-1)
    change(connection, tables.event, first, position=-1)
    change(connection, tables.event, second, position=one.position)
    change(connection, tables.event, row_of(connection, nowhere), position=other.position)


def test_two_steps_that_have_changed_places_in_their_transaction_are_found(database: Database) -> None:
    engine = database.engine()
    past = small(salt_of(engine))
    ip = next(ip for ip, row in past.rows.items() if row.held)
    past.unbind(ip)
    past.release(ip)
    past.commit()
    one, other = store(engine, past)[-2:]
    with by_hand(database) as connection:
        swap(connection, one, other)
    assert {at(one), at(other)} & wheres(verified(database))


def test_events_that_have_changed_places_across_transactions_are_found_on_sqlite(sqlite: Database) -> None:
    engine = sqlite.engine()
    events = store(engine, small(salt_of(engine)))
    one, other = next(pair for pair in pairwise(events) if pair[0].tx != pair[1].tx)
    with by_hand(sqlite) as connection:
        swap(connection, one, other)
    assert at(one._replace(position=other.position)) in wheres(verified(sqlite))


# The tables, changed by hand --------------------------------------------------------------------


def key_of(table: Table, row: Any) -> str:
    """How a fault names the row."""
    keys = [table.c.pool] if table is tables.extent else list(table.primary_key.columns)
    return f"{table.name} {'/'.join(shown(each, row._mapping[each]) for each in keys)}"


def shown(column: ColumnElement[Any], value: Any) -> str:
    if isinstance(column.type, tables.IpKey):
        return ip_text(value)
    return value.hex() if isinstance(value, bytes) else str(value)


def rows_with(connection: Connection, table: Table, column: str) -> list[Any]:
    """Rows with a value in this column, or all where none has one; no extents that are used up."""
    rows = [row for row in connection.execute(select(table)) if table is not tables.extent or row.low <= row.high]
    return [row for row in rows if row._mapping[column] is not None] or rows


@pytest.mark.parametrize("which", [0, -1])
@pytest.mark.parametrize(("table", "column"), [(table, column.name) for table in TABLES for column in table.columns])
def test_a_changed_cell_is_found_and_named(kept: Kept, table: Table, column: str, which: int) -> None:
    with tampering(kept, table) as connection:
        row = rows_with(connection, table, column)[which]
        change(connection, table, row, **{column: another(table, column, row._mapping[column])})
        found = wheres(kept.verified())
    whole = column in table.primary_key.columns or table in (tables.extent, tables.checkpoint)
    assert (key_of(table, row) if whole else f"{key_of(table, row)} {column}") in found


# A subject's document may be emptied: so names are removed.
EMPTIABLE = [(table, column.name) for table in TABLES for column in table.columns
             if column.nullable and table is not tables.subject]  # fmt: skip


@pytest.mark.parametrize(("table", "column"), EMPTIABLE)
def test_an_emptied_or_filled_cell_is_found_and_named(kept: Kept, table: Table, column: str) -> None:
    with tampering(kept, table) as connection:
        row = rows_with(connection, table, column)[0]
        value = another(table, column, None) if row._mapping[column] is None else None
        change(connection, table, row, **{column: value})
        assert f"{key_of(table, row)} {column}" in wheres(kept.verified())


@pytest.mark.parametrize("which", [0, -1])
@pytest.mark.parametrize("table", TABLES, ids=str)
def test_a_row_that_is_gone_is_found_and_named(kept: Kept, table: Table, which: int) -> None:
    with tampering(kept, table) as connection:
        row = rows_with(connection, table, table.columns.keys()[0])[which]
        mine = [each == row._mapping[each] for each in table.primary_key.columns]
        assert connection.execute(table.delete().where(*mine)).rowcount == 1
        assert key_of(table, row) in wheres(kept.verified())


NOBODYS: dict[str, Any] = {
    "held": False, "holding": None, "claim": None, "subject": None, "container": None, "network": None, "netns": None,
    "node": None, "stamp": None, "bound_at": None,
}  # fmt: skip
TOO_MANY: dict[Table, dict[str, Any]] = {
    tables.pool: {"id": 99, "uid": "another", "name": "another"},
    tables.reservation: {"id": 99, "uid": "another", "name": "another"},
    tables.object_uid: {"name": "another"},
    tables.extent: {"pool": 99},
    tables.address: {"ip": parse("10.0.1.200"), **NOBODYS},
    tables.occupancy: {"pool": 99},
    tables.holding: {"step": 77},
}


@pytest.mark.parametrize("table", TOO_MANY, ids=str)
def test_a_row_too_many_is_found_and_named(kept: Kept, table: Table) -> None:
    with tampering(kept, table) as connection:
        row = dict(rows_with(connection, table, table.columns.keys()[0])[0]._mapping) | TOO_MANY[table]
        connection.execute(insert(table), [row])
        mine = [each == row[each.name] for each in table.primary_key.columns]
        added = connection.execute(select(table).where(*mine)).one()
        assert key_of(table, added) in wheres(kept.verified())


def test_an_address_that_is_offered_twice_is_found(kept: Kept) -> None:
    with tampering(kept, tables.extent) as connection:
        row = next(row for row in rows_with(connection, tables.extent, "low") if row.low < row.high)
        connection.execute(insert(tables.extent), [dict(row._mapping) | {"high": row.low}])
        found = kept.verified().faults
    assert [(fault.where, fault.text[:26]) for fault in found] == [(f"extent {row.pool}", "expected each address once")]


def test_another_salt_is_named_once_and_not_once_for_each_hash(kept: Kept) -> None:
    with tampering(kept, tables.ledger) as connection:
        connection.execute(tables.ledger.update().values(salt=b"another"))
        assert wheres(kept.verified()) == {"ledger 1 salt"}


def test_of_subjects_that_say_something_else_each_is_named_and_not_the_salt(kept: Kept) -> None:
    with tampering(kept, tables.subject) as connection:
        changed = rows_with(connection, tables.subject, "document")[:2]
        for row in changed:
            change(connection, tables.subject, row, document=f"{row.document}x")
        assert wheres(kept.verified()) == {f"{key_of(tables.subject, row)} document" for row in changed}


def test_an_only_subject_that_says_something_else_does_not_speak_against_the_salt(database: Database) -> None:
    engine = database.engine()
    past = Past(salt_of(engine))
    past.open()
    past.commit()
    past.refuse(past.somebody(), [])
    past.commit()
    store(engine, past)
    with by_hand(database) as connection:
        [row] = rows_with(connection, tables.subject, "document")
        change(connection, tables.subject, row, document=f"{row.document}x")
    assert wheres(verified(database)) == {f"{key_of(tables.subject, row)} document"}
