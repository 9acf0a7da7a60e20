"""`verify` is silent on a ledger that is right, also while it goes on; what is changed by hand it finds and names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from sqlalchemy import Boolean, Connection, Engine, LargeBinary, Table, Text, create_engine, insert, select, text
from sqlalchemy import event as hook

from ledger import tables, verify
from ledger.addresses import Ip, parse
from ledger.addresses import text as ip_text
from ledger.claims import Subject
from ledger.database import database_url
from ledger.events import Event, EventType
from ledger.fold import Fault
from ledger.journal import PAGE_EVENTS, Mark
from ledger.verify import Report
from projector.projections import PROJECTIONS
from projector.tail import Tail
from tests.conftest import Database
from tests.ledgers import inverted, journal_of, project, salt_of, small, store, store_more

STATE = (
    tables.ledger,
    tables.pool,
    tables.reservation,
    tables.object_uid,
    tables.extent,
    tables.address,
    tables.subject,
)
PROJECTED = (tables.checkpoint, tables.occupancy, tables.holding)


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
            for name in (
                connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars().all()
            ):
                connection.execute(text(f"DROP TRIGGER {name}"))
            connection.execute(text("PRAGMA ignore_check_constraints = on"))
        else:
            connection.execute(text("SET session_replication_role = replica"))
            for table, name in connection.execute(text(_CHECKS)).all():
                connection.execute(text(f"ALTER TABLE {table} DROP CONSTRAINT {name}"))
        yield connection
    engine.dispose()


_CHECKS = "SELECT conrelid::regclass::text, conname FROM pg_constraint WHERE contype = 'c' AND conrelid <> 0"


@contextmanager
def tampering(kept: Kept, table: Table) -> Iterator[Connection]:
    """The same, and afterwards the table is as it was."""
    with by_hand(kept.database) as connection:
        rows = [dict(row._mapping) for row in connection.execute(select(table))]
        yield connection
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
    return (value or 0) + 1


def row_of_event(connection: Connection, event: Event) -> Any:
    mine = tables.event.c.tx == event.tx, tables.event.c.position == event.position
    return connection.execute(select(tables.event).where(*mine)).one()


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
    found = verified(database)
    assert (found.faults, found.unjudged) == ((), ())
    assert found.events > 2 * PAGE_EVENTS
    assert found.addresses > verify.PAGE_ROWS


def test_a_new_ledger_has_no_faults(database: Database) -> None:
    assert verified(database) == Report(0, 0, Mark(), ())


def test_the_writers_own_engine_may_be_used(stored: tuple[Database, list[Event]]) -> None:
    database, events = stored
    assert verify.verify(database.engine()).events == len(events)


def test_a_name_that_was_removed_from_its_subject_is_no_fault(stored: tuple[Database, list[Event]]) -> None:
    with by_hand(stored[0]) as connection:
        connection.execute(text("UPDATE subject SET document = NULL"))
    assert verified(stored[0]).faults == ()


def test_projections_are_held_against_the_journal_at_their_own_checkpoint(database: Database) -> None:
    engine = database.engine()
    past = small(salt_of(engine), acts=40)
    events = store(engine, past)
    past.live(60)
    store_more(engine, past)
    assert len(journal_of(engine)) > len(events)
    assert verified(database).faults == ()


def test_the_projectors_own_rows_have_no_faults(stored: tuple[Database, list[Event]]) -> None:
    with by_hand(database) as connection:
        for table in PROJECTED:
            connection.execute(table.delete())
    engine = database.engine()
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
def when_read(engine: Engine, table: str, act: Any) -> Iterator[list[str]]:
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
        store_more(engine, past)
        found = verified(postgresql)
    assert found.faults == ()
    assert found.events == len(events)
    assert found.unjudged != ()
    assert (verified(postgresql).faults, verified(postgresql).unjudged) == ((), ())


@pytest.mark.parametrize("name", ["occupancy", "holding"])
def test_a_projection_that_is_being_rebuilt_is_not_judged(stored: tuple[Database, list[Event]], name: str) -> None:
    database, _ = stored
    with by_hand(database) as connection:
        connection.execute(text(f"DELETE FROM {name}"))
        connection.execute(
            text("UPDATE checkpoint SET tx = -1, position = -1 WHERE projection = :name"), {"name": name}
        )
    found = verified(database)
    assert (found.faults, found.unjudged) == ((), (Fault(name, verify.REBUILT),))


# The journal, changed by hand -------------------------------------------------------------------


def full(events: list[Event]) -> Event:
    """An event with a value in every column, neither the first nor the last."""
    return next(event for event in events if None not in event)


@pytest.mark.parametrize("column", Event._fields)
def test_a_changed_cell_of_an_event_is_found(stored: tuple[Database, list[Event]], column: str) -> None:
    database, events = stored
    with by_hand(database) as connection:
        row = row_of_event(connection, full(events))
        value = another(tables.event, column, row._mapping[column])
        value += 10**9 if column == "position" else type(value)()
        change(connection, tables.event, row, **{column: value})
    assert at(full(events)._replace(**{column: value})) in wheres(verified(database))


NULLABLE = [column.name for column in tables.event.columns if column.nullable]


@pytest.mark.parametrize("column", NULLABLE)
def test_an_emptied_cell_of_an_event_is_found(stored: tuple[Database, list[Event]], column: str) -> None:
    database, events = stored
    with by_hand(database) as connection:
        change(connection, tables.event, row_of_event(connection, full(events)), **{column: None})
    assert at(full(events)) in wheres(verified(database))


def steps_of(events: list[Event], length: int = 4) -> list[Event]:
    """All events of the first address that has so many."""
    addresses = dict.fromkeys(event.ip for event in events if event.ip is not None)
    every = ([event for event in events if event.ip == ip] for ip in addresses)
    return next(steps for steps in every if len(steps) >= length)


@pytest.mark.parametrize("place", [0, 1, -2])
def test_an_event_of_an_address_that_is_left_out_is_missed_by_the_next(
    stored: tuple[Database, list[Event]], place: int
) -> None:
    database, events = stored
    steps = steps_of(events)
    gone, following = steps[place], steps[place + 1]
    drop(database, gone)
    stands = f"step {following.step} of {ip_text(Ip(gone.ip or 0))} stands in the journal"
    assert Fault(at(following), f"{stands} without step {gone.step} before it") in verified(database).faults


def test_the_last_event_of_an_address_that_is_left_out_is_missed_by_its_row(
    stored: tuple[Database, list[Event]],
) -> None:
    database, events = stored
    gone = steps_of(events)[-1]
    drop(database, gone)
    step = Fault(f"address {ip_text(Ip(gone.ip or 0))} step", f"expected {(gone.step or 0) - 1}, found {gone.step}")
    assert step in verified(database).faults


def test_a_refusal_that_is_left_out_is_missed(stored: tuple[Database, list[Event]]) -> None:
    database, events = stored
    gone = next(event for event in events if event.type == EventType.REFUSED and event.details["pools"])
    drop(database, gone)
    found = wheres(verified(database))
    following = events[events.index(gone) + 1]
    # PostgreSQL leaves gaps among the positions itself: there the count of the pool's refusals tells.
    missed = f"occupancy {gone.details['pools'][0]} refused" if database.kind == "postgresql" else at(following)
    assert missed in found


@pytest.mark.parametrize("type_", [EventType.LEDGER_OPENED, EventType.POOL_DEFINED, EventType.RESERVATION_REDEFINED])
def test_an_event_of_the_ledger_or_a_definition_that_is_left_out_is_missed_by_the_next(
    stored: tuple[Database, list[Event]], type_: EventType
) -> None:
    database, events = stored
    place = next(place for place, event in enumerate(events) if event.type == type_)
    drop(database, events[place])
    following = events[place + 1 :]
    if type_ is not EventType.LEDGER_OPENED:
        following = [event for event in following if event.type.startswith(("pool.", "reservation."))]
    assert at(following[0]) in wheres(verified(database))


def drop(database: Database, event: Event) -> None:
    with by_hand(database) as connection:
        mine = tables.event.c.tx == event.tx, tables.event.c.position == event.position
        assert connection.execute(tables.event.delete().where(*mine)).rowcount == 1


@pytest.mark.parametrize("type_", EventType)
def test_an_event_that_stands_twice_is_found(stored: tuple[Database, list[Event]], type_: EventType) -> None:
    database, events = stored
    event = next(event for event in events if event.type == type_)
    position = events[-1].position + 1
    with by_hand(database) as connection:
        row = dict(row_of_event(connection, event)._mapping) | {"position": position}
        if database.kind == "postgresql":
            position = connection.execute(text("SELECT nextval('event_position_seq')")).scalar_one()
        connection.execute(insert(tables.event), [row | {"position": position}])
    assert f"event {event.tx}/{position}" in wheres(verified(database))


def test_events_of_one_address_that_have_changed_places_in_their_transaction_are_found(database: Database) -> None:
    engine = database.engine()
    past = small(salt_of(engine))
    ip = next(ip for ip, row in past.rows.items() if row.held)
    past.unbind(ip)
    past.release(ip)
    past.commit()
    events = store(engine, past)
    swap(database, *events[-2:])
    assert {at(event) for event in events[-2:]} & wheres(verified(database))


def test_events_that_have_changed_places_across_transactions_are_found_on_sqlite(sqlite: Database) -> None:
    engine = sqlite.engine()
    events = store(engine, past_of(salt_of(engine)))
    one, other = next(pair for pair in pairwise(events) if pair[0].tx != pair[1].tx)
    swap(sqlite, one, other)
    assert f"event {one.tx}/{other.position}" in wheres(verified(sqlite))


def swap(database: Database, one: Event, other: Event) -> None:
    """The two exchange their positions."""
    with by_hand(database) as connection:
        row, second = row_of_event(connection, one), row_of_event(connection, other)
        change(connection, tables.event, row, position=-1)
        change(connection, tables.event, second, position=one.position)
        away = row_of_event(connection, one._replace(position=-1))
        change(connection, tables.event, away, position=other.position)


# The tables, changed by hand --------------------------------------------------------------------


def key_of(table: Table, row: Any) -> str:
    """How a fault names the row."""
    values = [row._mapping[each] for each in table.primary_key.columns]
    if table is tables.extent:
        values = values[:1]
    shown = (ip_text(value) if isinstance(table.c[name].type, tables.IpKey) else value
             for name, value in zip(table.primary_key.columns.keys(), values, strict=False))  # fmt: skip
    return f"{table.name} {'/'.join(value.hex() if isinstance(value, bytes) else str(value) for value in shown)}"


def rows_with(connection: Connection, table: Table, column: str) -> list[Any]:
    """Rows with a value in this column, or all where none has one."""
    rows = list(connection.execute(select(table)).all())
    if table is tables.extent:
        rows = [row for row in rows if row.low <= row.high]
    return [row for row in rows if row._mapping[column] is not None] or rows


CELLS = [(table.name, column.name) for table in (*STATE, *PROJECTED) for column in table.columns]


@pytest.mark.parametrize(("name", "column"), CELLS)
@pytest.mark.parametrize("which", [0, -1])
def test_a_changed_cell_is_found_and_named(
    stored: tuple[Database, list[Event]], name: str, column: str, which: int
) -> None:
    database, table = stored[0], tables.metadata.tables[name]
    with by_hand(database) as connection:
        row = rows_with(connection, table, column)[which]
        change(connection, table, row, **{column: another(table, column, row._mapping[column])})
    whole = column in table.primary_key.columns or table in (tables.extent, tables.checkpoint)
    named = key_of(table, row) if whole else f"{key_of(table, row)} {column}"
    assert named in wheres(verified(database))


EMPTY = [(table.name, column.name) for table in (*STATE, *PROJECTED) for column in table.columns
         if column.nullable and (table.name, column.name) != ("subject", "document")]  # fmt: skip


@pytest.mark.parametrize(("name", "column"), EMPTY)
def test_an_emptied_cell_is_found_and_named(stored: tuple[Database, list[Event]], name: str, column: str) -> None:
    database, table = stored[0], tables.metadata.tables[name]
    with by_hand(database) as connection:
        row = rows_with(connection, table, column)[0]
        value = another(table, column, None) if row._mapping[column] is None else None
        change(connection, table, row, **{column: value})
    assert f"{key_of(table, row)} {column}" in wheres(verified(database))


@pytest.mark.parametrize("table", [*STATE, *PROJECTED], ids=str)
@pytest.mark.parametrize("which", [0, -1])
def test_a_row_that_is_gone_is_found_and_named(stored: tuple[Database, list[Event]], table: Table, which: int) -> None:
    database = stored[0]
    with by_hand(database) as connection:
        row = rows_with(connection, table, table.columns.keys()[0])[which]
        mine = [each == row._mapping[each] for each in table.primary_key.columns]
        assert connection.execute(table.delete().where(*mine)).rowcount == 1
    assert key_of(table, row) in wheres(verified(database))


NOBODYS: dict[str, Any] = {
    "held": False, "holding": None, "claim": None, "subject": None, "container": None, "network": None, "netns": None,
    "node": None, "stamp": None, "bound_at": None,
}  # fmt: skip
TOO_MANY: dict[str, dict[str, Any]] = {
    "pool": {"id": 99, "uid": "another", "name": "another"},
    "reservation": {"id": 99, "uid": "another", "name": "another"},
    "object_uid": {"name": "another"},
    "extent": {"pool": 99},
    "address": {"ip": parse("10.0.1.200"), **NOBODYS},
    "occupancy": {"pool": 99},
    "holding": {"step": 77},
}


@pytest.mark.parametrize("name", TOO_MANY)
def test_a_row_too_many_is_found_and_named(stored: tuple[Database, list[Event]], name: str) -> None:
    database, table = stored[0], tables.metadata.tables[name]
    with by_hand(database) as connection:
        row = rows_with(connection, table, table.columns.keys()[0])[0]
        connection.execute(insert(table), [dict(row._mapping) | TOO_MANY[name]])
        mine = [table.c[key] == value for key, value in TOO_MANY[name].items() if value is not None]
        added = connection.execute(select(table).where(*mine)).one()
    assert key_of(table, added) in wheres(verified(database))


def test_an_address_that_is_offered_twice_is_found(stored: tuple[Database, list[Event]]) -> None:
    database = stored[0]
    with by_hand(database) as connection:
        row = next(row for row in rows_with(connection, tables.extent, "low") if row.low < row.high)
        connection.execute(insert(tables.extent), [dict(row._mapping) | {"high": row.low}])
    assert [fault.text[:34] for fault in verified(database).faults] == ["expected each address once, found "]


def test_another_salt_is_named_once_and_not_once_for_each_hash(stored: tuple[Database, list[Event]]) -> None:
    with by_hand(stored[0]) as connection:
        connection.execute(tables.ledger.update().values(salt=b"another"))
    assert wheres(verified(stored[0])) == {"ledger 1 salt"}
