"""A restore that nobody announced, and the one that an operator orders: real agents, real backups, real standbys.

Nothing that is in use is given again before somebody has accepted the loss, and then work goes on in a new epoch.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from ledger.database import open_engine
from ledger.events import EPOCH_SHIFT, Event
from ledger.schema import migrate
from ledger.store import Ledger
from ledger.verify import verify
from projector.projections import PROJECTIONS
from projector.tail import Tail
from tests.acts import copy_of, file_of, journal, put_in_place
from tests.agents import Answer, RunningAgent, Sandbox
from tests.conftest import Database
from tests.postgresql import Server
from tests.proxy import Proxy
from tests.test_agent import POOL, cluster, count, held, until, write
from tests.test_roles import AUDITOR, LOGIN, ask, logins
from tests.test_spool import slow_to_commit

__all__ = ["cluster", "logins"]

DOUBT_SECONDS = "2"
"""Long enough for an agent that nobody calls to be heard."""
FENCED = "the ledger is fenced: event"
REASON = ("--reason", "the backup of Monday")
STANDINGS = ("ledger.doubted", "ledger.trusted", "ledger.fenced", "ledger.restored")
Q = POOL.format(name="q", subnet="10.8.0.0/24", ips="10.8.0.10-10.8.0.19", gateway="10.8.0.1")


class Site:
    """Two agents on one ledger, each on a node of its own: `knows` will have seen what the database loses."""

    def __init__(self, plugin: Path, folder: Path, url: str, parts: ExitStack) -> None:
        self.cluster = folder / "cluster"
        self.url = url
        self.engine = open_engine(url)
        parts.callback(self.engine.dispose)
        arguments = ("--doubt", DOUBT_SECONDS, "--gc-min-age", "0", "--node")
        self.knows, self.other = (
            parts.enter_context(RunningAgent(plugin, self.cluster, folder / node, url, (*arguments, node)))
            for node in ("node-1", "node-2")
        )

    def standings(self) -> list[str]:
        """What became of the ledger itself, after it was opened."""
        return [event.type.removeprefix("ledger.") for event in journal(self.engine, *STANDINGS)]

    def until_fenced(self, *calls: Sandbox) -> None:
        """Only the other agent is called, again and again: nothing is given until the ledger is fenced."""
        answers: list[Answer] = []

        def fenced() -> bool:
            answers.extend(self.other.add(box) for box in calls)
            return all(FENCED in each.document["msg"] for each in answers[-len(calls) :])

        until(fenced)
        assert {each.code for each in answers} == {11}


@pytest.fixture
def parts() -> Iterator[ExitStack]:
    """What ends with the test, the last thing first."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def own_server(parts: ExitStack) -> Server:
    """A server of this test's own, with a ledger."""
    own = Server().create().start()
    parts.callback(own.remove)
    return migrated(own)


def migrated(server: Server) -> Server:
    engine = open_engine(server.url())
    migrate(engine)
    engine.dispose()
    return server


def epoch(event: Event) -> int:
    return event.tx >> EPOCH_SHIFT


def proven(engine: Engine) -> None:
    """Journal, tables and projections say the same."""
    tail = Tail(engine, PROJECTIONS)
    while tail.step():
        pass
    report = verify(engine)
    assert (report.faults, report.unjudged) == ((), ())


# Nobody announced it ------------------------------------------------------------------------------


def test_a_server_replaced_by_its_backup_is_fenced_until_somebody_accepts_the_loss(
    plugin: Path, tmp_path: Path, cluster: Path, own_server: Server, parts: ExitStack
) -> None:
    site = Site(plugin, tmp_path, own_server.url(), parts)
    knows, other, engine = site.knows, site.other, site.engine
    before = Sandbox("before")
    assert other.add(before).addresses == ["10.9.0.10/24"]
    backup = own_server.backup(own_server.folder / "backup")
    write(cluster, "pool-q.yaml", Q)
    until(lambda: len(journal(engine, "pool.defined")) == 2)
    assert knows.add(Sandbox("lost")).addresses == ["10.9.0.11/24"]
    own_server.set_back(backup)
    engine.dispose()

    site.until_fenced(Sandbox("new"))
    assert "trusted" not in site.standings()
    assert len(journal(engine, "address.allocated", "address.released")) == 1
    [fenced] = journal(engine, "ledger.fenced")
    why = fenced.details["reason"]
    refusals = [
        each.document["msg"]
        for agent in (knows, other)
        for each in (agent.add(Sandbox("new")), agent.add(before), agent.collect())
        if each.status  # Of the agent that has nothing to collect.
    ]
    assert len(refusals) == 5
    by_hand = other.ask("allocate", "printer", "--pool", "p", "--reason", "x")
    assert (by_hand.status, by_hand.out) == (1, b"")
    for each in (*refusals, by_hand.err.decode()):
        assert f"the ledger is fenced: {why}; run `spiderledger restore`" in each
    assert other.delete(before).code == 0
    assert other.spooled == ["before:eth0"]
    assert why in other.log
    assert len(journal(engine, "address.allocated", "address.released", "pool.defined")) == 2, "nothing was done"

    told = knows.ask("restore", *REASON)
    assert (told.status, told.err) == (1, b"spiderledger: nothing was done: say --accept-loss if that is to be\n")
    assert why in told.text.splitlines()[0]
    assert "fenced" in site.standings()[-1]
    done = knows.ask("restore", "--accept-loss", *REASON, "--operator", "ada")
    assert done.status == 0, done
    assert done.text == told.text + "the ledger is open: epoch 2 has begun\n"
    [restored] = journal(engine, "ledger.restored")
    assert (restored.actor, restored.details["reason"], epoch(restored)) == ("ada", REASON[1], 2)
    until(lambda: other.spooled == [])
    until(lambda: len(journal(engine, "pool.defined")) == 2)
    assert other.add(Sandbox("new")).addresses == ["10.9.0.10/24"], "the spooled DEL was applied"
    assert other.add(Sandbox("newer")).addresses == ["10.9.0.11/24"], "nothing was adopted"
    # Its witness is of an epoch that is over: neither in memory nor from its file does it fence the ledger again.
    assert knows.delete(Sandbox("lost")).code == 0
    assert knows.stop() == 0
    assert knows.start().add(Sandbox("newest")).addresses == ["10.9.0.12/24"]
    assert site.standings()[-2:] == ["fenced", "restored"]
    assert {epoch(each) for each in journal(engine, "address.allocated")[1:]} == {2}
    proven(engine)


def test_a_file_replaced_by_an_older_copy_is_fenced_until_somebody_accepts_the_loss(
    plugin: Path, tmp_path: Path, cluster: Path, sqlite: Database
) -> None:
    engine = sqlite.engine(writes=False)
    with RunningAgent(plugin, cluster, tmp_path / "state", sqlite.url, ("--node", "node-1")) as agent:
        kept, lost = Sandbox("kept"), Sandbox("lost")
        assert agent.add(kept).addresses == ["10.9.0.10/24"]
        copy = copy_of(file_of(sqlite), tmp_path / "copy.db")
        assert agent.add(lost).addresses == ["10.9.0.11/24"]
        not_fenced = agent.ask("restore", "--accept-loss", *REASON)
        assert not_fenced.status == 1
        assert not_fenced.err == b"spiderledger: the ledger is not fenced: there is nothing to restore\n"
        put_in_place(copy, file_of(sqlite))

        for box in (Sandbox("new"), kept):
            refused = agent.add(box)
            assert (refused.code, FENCED in refused.document["msg"]) == (11, True)
        assert agent.delete(kept).code == 0
        assert agent.spooled == ["kept:eth0"]
        assert list(held(sqlite).values()) == ["kept"]
        told = agent.ask("restore", *REASON)
        assert (told.status, len(told.text.splitlines())) == (1, 4)
        assert agent.ask("restore", "--accept-loss", *REASON).text == told.text + (
            "the ledger is open: epoch 2 has begun\n"
        )
        until(lambda: agent.spooled == [])
        # The cooling is off: the longest idle comes first.
        assert agent.add(Sandbox("new")).addresses == ["10.9.0.10/24"]
        assert agent.add(Sandbox("newer")).addresses == ["10.9.0.11/24"]
        # The projector that the agent hosts has found its way into the new file.
        last = journal(engine)[-1]
        until(lambda: checkpoints(engine) == {(last.tx, last.position)})
        assert agent.stop() == 0
    kinds = [event.type for event in journal(engine) if event.type.startswith("ledger.")]
    assert kinds == ["ledger.opened", "ledger.fenced", "ledger.restored"]
    proven(sqlite.engine())


def checkpoints(engine: Engine) -> set[tuple[int, int]]:
    """How far the projections have come."""
    with engine.connect() as connection:
        return {(row.tx, row.position) for row in connection.execute(text("SELECT tx, position FROM checkpoint"))}


# Failover ------------------------------------------------------------------------------------------


def either(*servers: Server) -> str:
    """Whichever of these takes writes, as agents are told of a pair."""
    hosts = ",".join(str(server.folder) for server in servers)
    return f"postgresql://owner@/postgres?host={hosts}&target_session_attrs=read-write"


def test_a_promoted_standby_that_lacked_the_last_events_is_fenced(
    plugin: Path, tmp_path: Path, cluster: Path, own_server: Server, parts: ExitStack
) -> None:
    standby = own_server.standby()
    parts.callback(standby.remove)
    site = Site(plugin, tmp_path, either(own_server, standby), parts)
    assert site.other.add(Sandbox("before")).addresses == ["10.9.0.10/24"]
    until(lambda: replayed(own_server) == 1)
    standby.stop()
    assert site.knows.add(Sandbox("lost")).addresses == ["10.9.0.11/24"]
    own_server.stop(signal.SIGQUIT)
    standby.start().promote()
    site.engine.dispose()

    site.until_fenced(Sandbox("new"), Sandbox("newer"))
    assert "trusted" not in site.standings()
    assert len(journal(site.engine, "address.allocated")) == 1
    assert site.other.ask("restore", "--accept-loss", *REASON).status == 0
    assert site.other.add(Sandbox("new")).addresses == ["10.9.0.11/24"]
    assert site.knows.add(Sandbox("newer")).addresses == ["10.9.0.12/24"]
    proven(site.engine)


def test_after_a_failover_that_lost_nothing_work_goes_on_by_itself_when_the_doubt_is_over(
    plugin: Path, tmp_path: Path, cluster: Path, own_server: Server, parts: ExitStack
) -> None:
    standby = own_server.standby()
    parts.callback(standby.remove)
    site = Site(plugin, tmp_path, either(own_server, standby), parts)
    with site.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(text("ALTER SYSTEM SET synchronous_standby_names = 'standby'"))
        connection.execute(text("SELECT pg_reload_conf()"))
    site.engine.dispose()
    boxes = [Sandbox(f"box-{number}") for number in range(4)]
    given = [agent.add(box).addresses for agent in (site.knows, site.other) for box in boxes[:2]]
    own_server.stop(signal.SIGQUIT)
    # Nobody hears of the old server's standby any more, so nobody waits for it.
    standby.promote()
    site.engine.dispose()

    until(lambda: site.standings() == ["doubted", "trusted"])
    given += [agent.add(box).addresses for agent in (site.knows, site.other) for box in boxes[2:]]
    assert len({address for addresses in given for address in addresses}) == 8
    doubted, trusted = journal(site.engine, "ledger.doubted", "ledger.trusted")
    assert trusted.recorded_at >= doubted.details["until"]
    assert all(event.recorded_at > trusted.recorded_at for event in journal(site.engine, "address.allocated")[4:])
    proven(site.engine)


def replayed(server: Server) -> int:
    """How many standbys have all that this server has written."""
    engine = open_engine(server.url())
    caught_up = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()"
    with engine.connect() as connection:
        found = int(connection.execute(text(caught_up)).scalar_one())
    engine.dispose()
    return found


def test_an_agent_that_meets_a_standby_before_its_promotion_waits(
    plugin: Path, tmp_path: Path, cluster: Path, own_server: Server, parts: ExitStack
) -> None:
    standby = own_server.standby()
    parts.callback(standby.remove)
    blind = f"postgresql://owner@/postgres?host={own_server.folder},{standby.folder}"
    site = Site(plugin, tmp_path, blind, parts)
    box = Sandbox("box")
    assert site.knows.add(box).code == 0
    until(lambda: replayed(own_server) == 1)
    own_server.stop(signal.SIGQUIT)
    for _ in range(2):
        refused = site.knows.add(Sandbox("new"))
        assert (refused.code, "does not answer" in refused.document["msg"]) == (11, True)
    assert site.knows.delete(box).code == 0
    assert site.knows.spooled == ["box:eth0"]
    standby.promote()
    until(lambda: site.knows.spooled == [])
    assert site.knows.add(Sandbox("new")).code == 0
    assert "Traceback" not in site.knows.log
    site.engine.dispose()
    assert site.standings() == ["doubted", "trusted"]
    proven(site.engine)


# A commit in flight -------------------------------------------------------------------------------


def test_an_add_whose_connection_was_cut_in_mid_commit_leaves_nothing_held_after_the_del_that_overtakes_it(
    plugin: Path, tmp_path: Path, cluster: Path, own_server: Server, parts: ExitStack
) -> None:
    """The agent lives on, and cannot know that the server will still do what it was asked for."""
    database = Database("postgresql", own_server.url())
    parts.callback(database.dispose)
    sleeps = slow_to_commit(database)
    wire = parts.enter_context(Proxy(own_server))
    arguments = ("--doubt", "0", "--node", "node-1")
    agent = parts.enter_context(RunningAgent(plugin, cluster, tmp_path / "state", wire.url("postgres"), arguments))
    box = Sandbox("box")
    called = agent.begin("ADD", box.environment)
    until(sleeps)
    wire.cut()
    assert agent.finish(called).code == 11
    assert sleeps()
    assert held(database) == {}
    assert agent.delete(box).code == 0
    assert agent.spooled == ["box:eth0"], "who comes too early waits"
    until(lambda: agent.spooled == [])
    assert not sleeps()
    assert held(database) == {}
    assert (count(database, "address.allocated"), count(database, "address.released")) == (1, 1)
    proven(database.engine())


# Who may order it ---------------------------------------------------------------------------------


def test_the_agents_role_may_restore_and_an_auditor_may_not(logins: Database, tmp_path: Path) -> None:
    engine = logins.engine()
    Ledger(engine).look()
    with engine.begin() as connection:
        connection.execute(text("UPDATE ledger SET fenced = 'by hand'"))
    for login, status in ((AUDITOR, 2), (LOGIN, 0)):
        address = logins.url.replace("//owner@", f"//{login}@")
        asked = ask(address, "restore", "--accept-loss", *REASON)
        assert asked.returncode == status, asked
