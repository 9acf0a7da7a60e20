"""What a new epoch means for agents, readers and definitions: a ledger that was put back, and opened again."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from ledger.events import EPOCH_SHIFT
from ledger.operating import OperatorError, perform
from ledger.requests import Reselect
from ledger.schema import migrate
from ledger.store import Ledger, LedgerAwayError, Settings
from ledger.verify import verify
from ledger.witness import Witness, WitnessFile
from projector.projections import PROJECTIONS
from projector.tail import Tail
from tests.acts import (
    HeldBatch,
    Pod,
    Task,
    a_pool,
    add,
    check,
    copy_of,
    define,
    delete,
    file_of,
    given,
    journal,
    one,
    patient,
    pods,
    put_in_place,
    reason,
    set_at_connect,
    until_waiting,
)
from tests.conftest import Database
from tests.postgresql import Server, binaries

POOL = a_pool("a", "10.1.0.1-10.1.0.99")
WHY = "the backup of Monday"


def an_agent(database: Database, **settings: object) -> Ledger:
    """One that waits for nobody."""
    return Ledger(database.engine(), Settings(**{"doubt_seconds": 0, **settings}))  # type: ignore[arg-type]


def restore(ledger: Ledger) -> int:
    """Look, and accept what was seen; answers the epoch that has begun."""
    order = {"operator": "ada", "reason": WHY}
    loss = perform(ledger, {"restore": order})
    return int(perform(ledger, {"restore": {**order, "epoch": loss["epoch"]}})["epoch"])


def refuses(ledger: Ledger, **order: object) -> str:
    with pytest.raises(OperatorError) as refused:
        perform(ledger, {"restore": {"operator": "ada", "reason": WHY, **order}})
    return str(refused.value)


def mistaken(database: Database, tmp_path: Path, epoch: int = 1) -> Ledger:
    """An agent that believes in an event of this epoch that never was."""
    path = tmp_path / "witness-of-another"
    path.write_text(f'{{"tx": {epoch << EPOCH_SHIFT | 1}, "id": 1}}')
    agent = an_agent(database, witness=path)
    agent.act([])
    return agent


def forget(database: Database, tmp_path: Path, epoch: int = 1) -> Ledger:
    """Fence the ledger; answers who did."""
    agent = mistaken(database, tmp_path, epoch)
    assert reason(one(agent, delete(Pod()))) == "ledger-fenced"
    return agent


def epochs(engine: Engine) -> list[int]:
    return sorted({event.tx >> EPOCH_SHIFT for event in journal(engine)})


# Opening it ---------------------------------------------------------------------------------------


def test_a_ledger_that_is_not_fenced_is_not_restored(database: Database) -> None:
    ledger = an_agent(database)
    define(ledger, POOL)
    before = journal(database.engine())
    for order in ({}, {"epoch": 2}):
        assert refuses(ledger, **order) == "the ledger is not fenced: there is nothing to restore"
    assert journal(database.engine()) == before


def test_a_ledger_in_doubt_is_not_restored(postgresql: Database) -> None:
    define(an_agent(postgresql), POOL)
    engine = postgresql.engine()
    with engine.begin() as connection:
        connection.execute(text("UPDATE ledger SET incarnation = 'another server'"))
    doubts = an_agent(postgresql, doubt_seconds=3600)
    assert refuses(doubts, epoch=2) == "the ledger is not fenced: there is nothing to restore"
    assert [event.type for event in journal(engine)][-1] == "ledger.doubted"


def test_a_restore_is_what_was_looked_at_or_nothing(database: Database, tmp_path: Path) -> None:
    define(an_agent(database), POOL)
    ledger = forget(database, tmp_path)
    for other in (1, 3):
        assert refuses(ledger, epoch=other) == "the ledger has changed since it was looked at; look again"
    assert restore(ledger) == 2
    assert refuses(ledger, epoch=2) == "the ledger is not fenced: there is nothing to restore"
    assert len(journal(database.engine(), "ledger.restored")) == 1
    check(database.engine())


def test_a_restore_says_who_and_why_and_how_far_the_journal_goes(database: Database, tmp_path: Path) -> None:
    define(an_agent(database), POOL)
    given(an_agent(database), Pod())
    ledger = forget(database, tmp_path)
    *_, last, fenced = journal(database.engine())
    assert last.type == "address.allocated"
    loss = ledger.loss()
    assert loss == (fenced.details["reason"], last.tx, last.position, last.recorded_at, 2)
    restore(ledger)
    restored = journal(database.engine())[-1]
    assert (restored.type, restored.actor, restored.cause) == ("ledger.restored", "ada", "operator")
    assert (restored.details["epoch"], restored.details["reason"]) == (2, WHY)
    assert restored.tx > 2 << EPOCH_SHIFT
    assert given(an_agent(database), Pod("next", "u2", "c2")) == "10.1.0.2"
    check(database.engine())


def test_a_ledger_made_anew_in_the_place_of_one_that_was_known_begins_with_being_opened(
    database: Database, tmp_path: Path
) -> None:
    ledger = forget(database, tmp_path)
    assert restore(ledger) == 2
    kinds = [event.type for event in journal(database.engine())]
    assert kinds == ["ledger.opened", "ledger.fenced", "ledger.restored"]
    assert verify(database.engine()).faults == ()


# Witnesses ----------------------------------------------------------------------------------------


def test_a_witness_of_an_epoch_that_is_over_fences_nothing_and_one_of_this_epoch_does(
    database: Database, tmp_path: Path
) -> None:
    path = tmp_path / "witness"
    settled = an_agent(database, witness=path)
    define(settled, POOL)
    restore(forget(database, tmp_path))
    first, second = pods(2)
    assert settled.look() is None
    given(settled, first)
    path.write_text(f'{{"tx": {(2 << EPOCH_SHIFT) - 1}, "id": 1}}')
    given(an_agent(database, witness=path), second)
    latest = WitnessFile(path).latest
    assert latest is not None
    assert latest.epoch == 2
    path.write_text(f'{{"tx": {2 << EPOCH_SHIFT}, "id": 1}}')
    assert reason(one(an_agent(database, witness=path), delete(first))) == "ledger-fenced"
    check(database.engine())


def test_a_life_that_was_lost_is_not_lived_again(sqlite: Database, tmp_path: Path) -> None:
    """The copy is put back twice. What the second life's agents know must not be met again in the third."""
    file, witness = file_of(sqlite), tmp_path / "witness"
    ledger = an_agent(sqlite, witness=witness)
    define(ledger, POOL)
    copies = [copy_of(file, tmp_path / f"copy-{number}.db") for number in range(2)]
    given(ledger, Pod())
    for expected, copy in zip((2, 3), copies, strict=True):
        put_in_place(copy, file)
        assert reason(one(ledger, delete(Pod()))) == "ledger-fenced"
        # Somebody restores who has no witness of his own: what the one that fenced it knew is in the journal.
        assert restore(an_agent(sqlite)) == expected
        assert ledger.look() is None
        given(ledger, Pod("next", "u2", f"c{expected}"))
        assert WitnessFile(witness).latest == Witness(*_numbers(sqlite.engine()))
    assert epochs(sqlite.engine()) == [1, 3]
    check(sqlite.engine())


def test_a_life_that_only_the_restorer_knows_of_is_not_lived_again(database: Database, tmp_path: Path) -> None:
    define(an_agent(database), POOL)
    forget(database, tmp_path)
    path = tmp_path / "witness"
    path.write_text(f'{{"tx": {3 << EPOCH_SHIFT | 1}, "id": 1}}')
    assert restore(an_agent(database, witness=path)) == 4


def _numbers(engine: Engine) -> tuple[int, int]:
    last = journal(engine)[-1]
    return last.tx, last.id


@pytest.mark.parametrize("act", ["define", "name"])
def test_a_change_of_a_pool_and_a_name_that_was_given_are_witnessed_too(
    sqlite: Database, tmp_path: Path, act: str
) -> None:
    ledger = an_agent(sqlite)
    define(ledger, POOL)
    copy = copy_of(file_of(sqlite), tmp_path / "copy.db")
    if act == "define":
        define(ledger, a_pool("b", "10.1.1.1"))
    else:
        ledger.name_objects([("Pod", "default", "web")])
    put_in_place(copy, file_of(sqlite))
    assert reason(one(ledger, delete(Pod()))) == "ledger-fenced"


# Definitions --------------------------------------------------------------------------------------


def test_a_definition_that_was_lost_is_not_taken_for_one_that_came_after_it(sqlite: Database, tmp_path: Path) -> None:
    """Both would have been the third one, and their pools the second pool."""
    behind, other = an_agent(sqlite), an_agent(sqlite)
    define(behind, POOL)
    copy = copy_of(file_of(sqlite), tmp_path / "copy.db")
    define(behind, a_pool("lost", "10.1.1.1-10.1.1.9"))
    lost = define(behind, a_pool("lost", "10.1.1.1-10.1.1.8"))
    request = add(lost, Pod(), "lost")
    put_in_place(copy, file_of(sqlite))
    assert reason(one(behind, request)) == "ledger-fenced"
    restore(other)
    found = define(other, a_pool("found", "10.1.2.1-10.1.2.9"))
    assert found.by_name["found"].id == lost.by_name["lost"].id
    assert one(behind, request) == Reselect(found.version)
    assert behind.definition() == found
    assert behind.epoch == 2
    assert not journal(sqlite.engine(), "address.allocated")
    check(sqlite.engine())
    assert verify(sqlite.engine()).faults == ()


# In flight ----------------------------------------------------------------------------------------


def test_a_restore_waits_for_whoever_has_read_the_epoch_that_ends(postgresql: Database, tmp_path: Path) -> None:
    """Or an event of the old epoch would be committed behind the back of readers that have come to the new one."""
    engine = patient(postgresql.engine())
    definition = define(an_agent(postgresql), POOL)
    fences = mistaken(postgresql, tmp_path)
    batch = HeldBatch(postgresql.engine(), definition, add(definition, Pod())).read()
    assert reason(one(fences, delete(Pod()))) == "ledger-fenced"
    with pytest.raises(LedgerAwayError, match="lock timeout"):
        restore(an_agent(postgresql))
    task = Task(lambda: restore(Ledger(engine)))
    until_waiting(engine, task)
    batch.write().commit()
    assert task.result() == 2
    *_, fenced, restored = journal(engine)
    [allocated] = journal(engine, "address.allocated")
    assert allocated.tx < fenced.tx < restored.tx
    assert allocated.tx >> EPOCH_SHIFT == 1
    check(engine)


def test_readers_go_on_from_one_epoch_into_the_next(database: Database, tmp_path: Path) -> None:
    ledger = an_agent(database)
    define(ledger, POOL)
    tail = Tail(database.engine(), PROJECTIONS)
    for epoch in (1, 2, 3):
        given(ledger, Pod(f"web-{epoch}", f"u{epoch}", f"c{epoch}"))
        while tail.step():
            pass
        assert tail.mark == journal(database.engine())[-1][:2]
        assert restore(forget(database, tmp_path, epoch)) == epoch + 1
        ledger = an_agent(database)
    while tail.step():
        pass
    assert epochs(database.engine()) == [1, 2, 3, 4]
    report = verify(database.engine())
    assert (report.faults, report.unjudged) == ((), ())


# Partitions ---------------------------------------------------------------------------------------


def test_what_comes_after_a_restore_has_a_partition_although_who_restores_cannot_make_one(
    postgresql: Database, tmp_path: Path
) -> None:
    engine = postgresql.engine()
    define(an_agent(postgresql), POOL)
    for epoch in (2, 3):
        forget(postgresql, tmp_path, epoch - 1)
        agent = Ledger(set_at_connect(postgresql.engine(), role="spiderledger_agent"), Settings(doubt_seconds=0))
        assert restore(agent) == epoch
        given(agent, Pod(f"web-{epoch}", f"u{epoch}", f"c{epoch}"))
        migrate(engine)
    assert epochs(engine) == [1, 2, 3]
    assert lying_in_rest(engine) == []
    check(engine)


def test_what_had_no_partition_stays_where_it_lies_and_is_read_in_its_turn(
    postgresql: Database, tmp_path: Path
) -> None:
    engine = postgresql.engine()
    define(an_agent(postgresql), POOL)
    tail = Tail(engine, PROJECTIONS)
    for epoch, rests in ((8, [8, 8]), (9, [8, 8, 8])):
        assert restore(forget(postgresql, tmp_path, epoch - 1)) == epoch
        given(an_agent(postgresql), Pod(f"web-{epoch}", f"u{epoch}", f"c{epoch}"))
        assert lying_in_rest(engine) == rests
        migrate(engine)
        assert lying_in_rest(engine) == rests
        while tail.step():
            pass
    assert epochs(engine) == [1, 8, 9]
    assert tail.mark == journal(engine)[-1][:2]
    report = verify(engine)
    assert (report.faults, report.unjudged) == ((), ())


def lying_in_rest(engine: Engine) -> list[int]:
    """The epochs of the events that have no partition of their own."""
    with engine.connect() as connection:
        return [tx >> EPOCH_SHIFT for tx in connection.execute(text("SELECT tx FROM event_rest ORDER BY tx")).scalars()]


# A dump -------------------------------------------------------------------------------------------


@pytest.fixture
def younger() -> Iterator[Server]:
    """A server that has counted fewer transactions than the one that tests share."""
    own = Server().create().start()
    yield own
    own.remove()


def test_a_dump_that_was_loaded_into_a_server_that_counts_anew_is_fenced(
    postgresql: Database, younger: Server, tmp_path: Path
) -> None:
    """It has lost nothing; but its events would stand before those that are there, where no reader looks any more."""
    witness = tmp_path / "witness"
    define(an_agent(postgresql, witness=witness), POOL)
    given(an_agent(postgresql, witness=witness), Pod())
    whole = journal(postgresql.engine())
    spend_transactions(postgresql.engine())
    given(an_agent(postgresql, witness=witness), Pod("late", "u2", "c2"))
    postgresql.dispose()
    load(postgresql.url, younger)
    there = Database("postgresql", younger.url())
    ledger = an_agent(there, witness=witness)
    tail = Tail(there.engine(), PROJECTIONS)
    refused = one(ledger, delete(Pod()))
    assert reason(refused) == "ledger-fenced"
    assert "this server counts from" in str(refused)
    assert restore(ledger) == 2
    assert given(ledger, Pod("next", "u3", "c3")) == "10.1.0.3"
    while tail.step():
        pass
    assert [event.type for event in journal(there.engine())][len(whole) + 1 :] == [
        "ledger.fenced", "ledger.restored", "address.allocated",
    ]  # fmt: skip
    report = verify(there.engine())
    assert (report.faults, report.unjudged) == ((), ())
    check(there.engine())
    there.dispose()


def spend_transactions(engine: Engine, number: int = 3_000) -> None:
    """As a server that has lived longer has."""
    with engine.connect() as connection:
        for _ in range(number):
            connection.execute(text("SELECT pg_current_xact_id()"))
            connection.commit()


def load(url: str, target: Server) -> None:
    """What pg_dump writes of this database, into another server's."""
    dump = [binaries() / "pg_dump", "--no-owner", "--no-privileges", url]
    written = subprocess.run(dump, capture_output=True, check=True).stdout
    command = [binaries() / "psql", "--quiet", "--set=ON_ERROR_STOP=1", target.url()]
    subprocess.run(command, input=written, capture_output=True, check=True)
