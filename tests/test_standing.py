"""Whether a ledger may be acted on: another server, an older database, none at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, select, text

from ledger.database import database_url, file_identity, open_engine
from ledger.dialects import incarnation
from ledger.driver import transaction
from ledger.events import EPOCH_SHIFT
from ledger.images import Head
from ledger.reading import read_head
from ledger.requests import Refusal
from ledger.schema import migrate
from ledger.standing import Standing, standing
from ledger.store import Ledger, LedgerAwayError, Settings
from ledger.transitions import doubt, trust
from ledger.verify import verify
from ledger.witness import Witness, WitnessFile
from tests.acts import (
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
    session,
    try_define,
    until,
    until_waiting,
)
from tests.conftest import Database
from tests.postgresql import Server

POOL = a_pool("a", "10.1.0.1-10.1.0.99")
HEAD = Head(
    tx=1, now=1_000, epoch=1, definition=0, incarnation="then", present="then", doubted=None, doubt_until=None,
    fenced=None, witnessed=True,
)  # fmt: skip


@pytest.mark.parametrize("head, verdict, without_window", [
    ({}, Standing.OPEN, Standing.OPEN),
    ({"incarnation": ""}, Standing.NEW, Standing.NEW),
    ({"present": "now"}, Standing.DOUBT, Standing.TRUST),
    ({"present": "now", "doubted": "now", "doubt_until": 1_001}, Standing.DOUBTED, Standing.TRUST),
    ({"present": "now", "doubted": "now", "doubt_until": 1_000}, Standing.TRUST, Standing.TRUST),
    ({"present": "now", "doubted": "between", "doubt_until": 1}, Standing.DOUBT, Standing.TRUST),
    ({"doubted": "between", "doubt_until": 9_999}, Standing.OPEN, Standing.OPEN),
    ({"witnessed": False}, Standing.LOST, Standing.LOST),
    ({"witnessed": False, "present": "now"}, Standing.LOST, Standing.LOST),
    ({"witnessed": False, "incarnation": ""}, Standing.NEW, Standing.NEW),
    ({"fenced": "why"}, Standing.FENCED, Standing.FENCED),
    ({"fenced": "why", "witnessed": False, "present": "now"}, Standing.FENCED, Standing.FENCED),
])  # fmt: skip
def test_a_ledger_is_judged_in_this_order(head: dict[str, object], verdict: Standing, without_window: Standing) -> None:
    seen = HEAD._replace(**head)  # type: ignore[arg-type]
    assert standing(seen, doubt_us=15) is verdict
    assert standing(seen, doubt_us=0) is without_window


def test_the_first_act_opens_the_journal(database: Database) -> None:
    engine = database.engine()
    Ledger(engine).act([delete(Pod())])
    [opened] = journal(engine)
    assert (opened.type, opened.details["epoch"]) == ("ledger.opened", 1)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT incarnation FROM ledger")).scalar_one() == opened.details["incarnation"]
    check(engine)


def test_a_server_is_known_by_its_start_and_its_timeline(postgresql: Database) -> None:
    started = "SELECT (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint"
    with postgresql.engine().connect() as connection:
        start = connection.execute(text(started)).scalar_one()
        timeline = connection.execute(text("SELECT timeline_id FROM pg_control_checkpoint()")).scalar_one()
        assert connection.execute(select(incarnation())).scalar_one() == f"{start}/{timeline:08X}"


# A server of our own ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """One that may be stopped, and set back."""
    running = Server().create().start()
    yield running
    running.remove()


@pytest.fixture
def address(own_server: Server) -> str:
    """A fresh ledger on it."""
    engine = create_engine(database_url(own_server.url()), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        number = connection.execute(text("SELECT count(*) FROM pg_database")).scalar_one()
        connection.execute(text(f"CREATE DATABASE own_{number}"))
    engine.dispose()
    migrating = open_engine(own_server.url(f"own_{number}"))
    migrate(migrating)
    migrating.dispose()
    return own_server.url(f"own_{number}")


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    """Closed with the test."""
    opened: list[Engine] = []
    yield opened
    for engine in opened:
        engine.dispose()


def agent(address: str, engines: list[Engine], **settings: object) -> Ledger:
    """An agent with connections of its own."""
    engines.append(open_engine(address))
    return Ledger(engines[-1], Settings(**settings))  # type: ignore[arg-type]


def restart(server: Server) -> None:
    server.stop()
    server.start()


def types(engine: Engine) -> list[str]:
    """What happened to the ledger itself."""
    return [event.type for event in journal(engine) if event.type.startswith("ledger.")]


def test_a_server_that_was_restarted_is_doubted_and_nothing_is_given_meanwhile(
    own_server: Server, address: str, engines: list[Engine]
) -> None:
    one_, other = (agent(address, engines, doubt_seconds=3600) for _ in range(2))
    define(one_, POOL)
    pod = Pod()
    given(one_, pod)
    request = add(one_.definition(), Pod("later", "u2", "c2"))
    restart(own_server)
    with pytest.raises(LedgerAwayError):
        one(one_, request)
    for _ in range(2):
        assert reason(one(one_, request)) == "ledger-in-doubt"
        assert reason(one(other, delete(pod))) == "ledger-in-doubt"
    refused = try_define(one_, a_pool("b", "10.1.1.1"))
    assert isinstance(refused, Refusal)
    assert refused.reason == "ledger-in-doubt"
    with pytest.raises(LedgerAwayError, match="restarted or replaced"):
        one_.name_objects({("SpiderIPPool", "", "b")})
    assert types(engines[0]) == ["ledger.opened", "ledger.doubted"]
    assert len(journal(engines[0], "address.allocated", "address.released")) == 1
    check(engines[0])


def test_doubt_ends_when_its_time_is_over_and_work_goes_on(
    own_server: Server, address: str, engines: list[Engine]
) -> None:
    ledger = agent(address, engines, doubt_seconds=0.3)
    define(ledger, POOL)
    first, second = pods(2)
    given(ledger, first)
    restart(own_server)
    ledger = agent(address, engines, doubt_seconds=0.3)
    definition = ledger.definition()
    seen: list[str] = []

    def served() -> bool:
        answer = one(ledger, add(definition, second))
        seen.append(reason(answer) if isinstance(answer, Refusal) else "served")
        return seen[-1] == "served"

    until(served, "doubt ends")
    assert seen[0] == "ledger-in-doubt"
    assert set(seen[:-1]) == {"ledger-in-doubt"}
    assert types(engines[-1]) == ["ledger.opened", "ledger.doubted", "ledger.trusted"]
    doubted, trusted = journal(engines[-1], "ledger.doubted", "ledger.trusted")
    assert trusted.recorded_at >= doubted.details["until"]
    assert trusted.details["incarnation"] == doubted.details["incarnation"]
    check(engines[-1])
    assert verify(engines[-1]).faults == (), "the ledger's row says that nothing is doubted any more"


def test_a_ledger_whose_database_is_stopped_says_so_and_works_again_afterwards(
    own_server: Server, address: str, engines: list[Engine]
) -> None:
    ledger = agent(address, engines, doubt_seconds=0)
    define(ledger, POOL)
    request = add(ledger.definition(), Pod())
    own_server.stop()
    for _ in range(2):
        with pytest.raises(LedgerAwayError):
            one(ledger, request)
        with pytest.raises(LedgerAwayError):
            ledger.refresh()
        with pytest.raises(LedgerAwayError):
            try_define(ledger, a_pool("b", "10.1.1.1"))
    own_server.start()
    assert given(ledger, Pod()) == "10.1.0.1"
    assert types(engines[0]) == ["ledger.opened", "ledger.trusted"]
    check(engines[0])


def set_back(server: Server, copy: Path) -> None:
    """Put the copy where the server's data are, as somebody does who restores a backup and tells nobody."""
    server.stop()
    shutil.rmtree(server.folder / "data")
    shutil.copytree(copy, server.folder / "data", copy_function=copy_owned)
    for folder in (server.folder / "data", *(server.folder / "data").rglob("*")):
        owner = (copy / folder.relative_to(server.folder / "data")).stat()
        os.chown(folder, owner.st_uid, owner.st_gid)
    server.start()


def copy_owned(source: str, target: str) -> None:
    """A file with its owner."""
    shutil.copy2(source, target)
    owner = Path(source).stat()
    os.chown(target, owner.st_uid, owner.st_gid)


@pytest.fixture
def copied(own_server: Server, address: str, engines: list[Engine], tmp_path: Path) -> Path:
    """A copy of the server's data after the first ADD; meanwhile it goes on."""
    ledger = agent(address, engines, doubt_seconds=0)
    define(ledger, POOL)
    given(ledger, Pod("first", "u1", "c1"))
    own_server.stop()
    copy = tmp_path / "copy"
    shutil.copytree(own_server.folder / "data", copy, copy_function=copy_owned)
    for folder in (copy, *copy.rglob("*")):
        owner = (own_server.folder / "data" / folder.relative_to(copy)).stat()
        os.chown(folder, owner.st_uid, owner.st_gid)
    own_server.start()
    return copy


def test_a_database_that_forgot_an_acknowledged_event_is_fenced_for_everybody(
    own_server: Server, address: str, engines: list[Engine], copied: Path, tmp_path: Path
) -> None:
    witness = tmp_path / "witness"
    knows = agent(address, engines, doubt_seconds=0, witness=witness)
    lost = given(knows, Pod("lost", "u2", "c2"))
    assert lost == "10.1.0.2"
    set_back(own_server, copied)
    # The very agent, its successor that only has its file, and one that has never seen anything.
    successor = agent(address, engines, doubt_seconds=0, witness=witness)
    stranger = agent(address, engines, doubt_seconds=0)
    with pytest.raises(LedgerAwayError):
        one(knows, delete(Pod()))
    texts = []
    for ledger in (successor, stranger, knows, stranger):
        refused = one(ledger, add(stranger.definition(), Pod("new", "u3", "c3")))
        assert isinstance(refused, Refusal)
        assert refused.reason == "ledger-fenced"
        texts.append(refused.text)
        refused_too = try_define(ledger, a_pool("b", "10.1.1.1"))
        assert isinstance(refused_too, Refusal)
        assert refused_too.text == refused.text
        assert reason(one(ledger, delete(Pod("first", "u1", "c1")))) == "ledger-fenced"
    assert len(set(texts)) == 1
    assert "was acknowledged and is not in the journal any more" in texts[0]
    assert "run `spiderledger restore`" in texts[0]
    assert types(engines[-1]) == ["ledger.opened", "ledger.fenced"]
    [fenced] = journal(engines[-1], "ledger.fenced")
    assert fenced.details["reason"] in texts[0]
    assert len(journal(engines[-1], "address.allocated")) == 1
    check(engines[-1])


def test_the_agent_that_knows_better_fences_what_others_only_doubt(
    own_server: Server, address: str, engines: list[Engine], copied: Path
) -> None:
    knows = agent(address, engines, doubt_seconds=3600)
    behind = agent(address, engines, doubt_seconds=3600)
    pod = Pod("lost", "u2", "c2")
    until(lambda: trusted_by_hand(address), "the first restart is over")
    given(knows, pod)
    set_back(own_server, copied)
    with pytest.raises(LedgerAwayError):
        one(knows, delete(pod))
    assert reason(one(behind, add(behind.definition(), pod))) == "ledger-in-doubt"
    assert reason(one(knows, delete(pod))) == "ledger-fenced"
    assert reason(one(behind, add(behind.definition(), pod))) == "ledger-fenced"
    check(engines[-1])


def trusted_by_hand(address: str) -> bool:
    """Some agent that need not wait takes the server over."""
    engine = open_engine(address)
    Ledger(engine, Settings(doubt_seconds=0)).act([delete(Pod())])
    engine.dispose()
    return True


def test_a_database_that_went_back_to_before_anything_was_acknowledged_is_trusted(
    own_server: Server, address: str, engines: list[Engine], copied: Path
) -> None:
    ledger = agent(address, engines, doubt_seconds=0)
    assert given(ledger, Pod("first", "u1", "c1")) == "10.1.0.1"
    set_back(own_server, copied)
    fresh = agent(address, engines, doubt_seconds=0)
    assert given(fresh, Pod("second", "u2", "c2")) == "10.1.0.2"
    check(engines[-1])


# A file -------------------------------------------------------------------------------------------


def test_a_file_that_was_replaced_by_an_older_one_is_fenced(sqlite: Database, tmp_path: Path) -> None:
    path = file_of(sqlite)
    ledger = Ledger(sqlite.engine())
    define(ledger, POOL)
    copy = copy_of(path, tmp_path / "copy.db")
    pod = Pod()
    given(ledger, pod)
    before = file_identity(path)
    put_in_place(copy, path)
    assert file_identity(path) != before
    other = Pod("other", "u2", "c2")
    for _ in range(2):
        assert reason(one(ledger, add(ledger.definition(), other))) == "ledger-fenced"
    stranger = Ledger(sqlite.engine())
    assert reason(one(stranger, add(ledger.definition(), other))) == "ledger-fenced"
    engine = sqlite.engine()
    assert types(engine) == ["ledger.opened", "ledger.fenced"]
    assert not journal(engine, "address.allocated")
    check(engine)


def test_a_file_that_was_replaced_by_its_copy_is_taken_over_and_written_to(sqlite: Database, tmp_path: Path) -> None:
    path = file_of(sqlite)
    ledger = Ledger(sqlite.engine())
    define(ledger, POOL)
    first, second = pods(2)
    given(ledger, first)
    put_in_place(copy_of(path, tmp_path / "copy.db"), path)
    assert given(ledger, second) == "10.1.0.2"
    engine = sqlite.engine()
    assert types(engine) == ["ledger.opened", "ledger.trusted"]
    assert len(journal(engine, "address.allocated")) == 2
    check(engine)


def test_a_change_of_a_pool_is_not_made_in_a_file_that_is_not_there_any_more(sqlite: Database, tmp_path: Path) -> None:
    path = file_of(sqlite)
    ledger = Ledger(sqlite.engine())
    define(ledger, POOL)
    put_in_place(copy_of(path, tmp_path / "copy.db"), path)
    define(ledger, a_pool("b", "10.1.1.1"))
    engine = sqlite.engine()
    assert len(journal(engine, "pool.defined")) == 2
    check(engine)


def test_a_file_that_is_gone_is_away_and_works_again_when_it_is_back(sqlite: Database, tmp_path: Path) -> None:
    path = file_of(sqlite)
    ledger = Ledger(sqlite.engine())
    define(ledger, POOL)
    request = add(ledger.definition(), Pod())
    copy = copy_of(path, tmp_path / "copy.db")
    path.unlink()
    for _ in range(2):
        with pytest.raises(LedgerAwayError):
            one(ledger, request)
    put_in_place(copy, path)
    assert given(ledger, Pod()) == "10.1.0.1"
    check(sqlite.engine())


# The witness --------------------------------------------------------------------------------------


def test_the_witness_is_the_last_event_that_was_acknowledged(database: Database, tmp_path: Path) -> None:
    engine, path = database.engine(), tmp_path / "witness"
    ledger = Ledger(engine, Settings(doubt_seconds=0, witness=path))
    define(ledger, POOL)
    for pod in pods(3):
        given(ledger, pod)
    last = journal(engine)[-1]
    assert WitnessFile(path).latest == Witness(last.tx, last.id)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"tx": 1}', None])
def test_a_torn_witness_is_none(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "witness"
    if content is not None:
        path.write_text(content)
    assert WitnessFile(path).latest is None


def test_a_database_that_knows_another_event_under_the_witness_number_has_lost_it(
    database: Database, tmp_path: Path
) -> None:
    engine, path = database.engine(), tmp_path / "witness"
    ledger = Ledger(engine, Settings(doubt_seconds=0, witness=path))
    define(ledger, POOL)
    given(ledger, Pod())
    last = WitnessFile(path).latest
    assert last is not None
    path.write_text(f'{{"tx": {last.tx}, "id": {last.id + 1}}}')
    assert reason(one(Ledger(engine, Settings(witness=path)), delete(Pod()))) == "ledger-fenced"


def test_of_those_who_saw_the_same_only_the_first_records_what_follows(database: Database) -> None:
    """Or the doubt would last until the last of thousands has looked."""
    engine = database.engine()
    Ledger(engine, Settings(doubt_seconds=0)).act([delete(Pod())])
    with transaction(engine) as own:
        head = read_head(own, None)
    for until_ in (5, 9):
        doubt(engine, head, until_)
    trust(engine, head)
    assert types(engine) == ["ledger.opened", "ledger.doubted"]
    with engine.connect() as connection:
        assert connection.execute(text("SELECT doubt_until FROM ledger")).scalar_one() == 5


def test_a_loss_is_recorded_even_when_another_agent_records_its_doubt_at_the_same_moment(
    postgresql: Database, tmp_path: Path
) -> None:
    engine = patient(postgresql.engine())
    Ledger(engine, Settings(doubt_seconds=0)).act([delete(Pod())])
    witness = tmp_path / "witness"
    witness.write_text(f'{{"tx": {1 << EPOCH_SHIFT | 1}, "id": 1}}')
    knows = Ledger(patient(postgresql.engine()), Settings(witness=witness))
    knows.act([])
    with session(engine) as somebody:
        somebody.execute(text("SELECT one FROM ledger FOR UPDATE"))
        task = Task(lambda: one(knows, delete(Pod())))
        until_waiting(engine, task)
        somebody.execute(text("UPDATE ledger SET doubted = 'another server', doubt_until = 1"))
        somebody.commit()
    assert reason(task.result()) in ("ledger-fenced", "busy")
    with engine.connect() as connection:
        assert connection.execute(text("SELECT fenced FROM ledger")).scalar_one() is not None
    assert types(engine) == ["ledger.opened", "ledger.fenced"]
