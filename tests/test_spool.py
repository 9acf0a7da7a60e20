"""DELs while the agent or its database is away, and agents that die in the middle: nothing live is freed, nothing dead
is kept. Real agents, the real plugin, real databases."""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import select, text

from cni.agent import Agent
from cni.cluster import NoCluster
from cni.facts import Settings
from cni.spool import FILES_MAX, HALF_WRITTEN_SECONDS_MAX, Spool
from ledger.database import open_engine
from ledger.schema import migrate
from ledger.store import BATCH_MAX, Ledger
from ledger.tables import event
from ledger.verify import verify
from tests.agents import RunningAgent, Sandbox
from tests.conftest import Database
from tests.postgresql import Server
from tests.test_agent import A_AGAIN, A, Agents, P, agents, cluster, count, held, pod, raw, requested, until, write

__all__ = ["agents", "cluster"]

SEED = 20_251
KILLS = 12


def test_a_del_without_an_agent_waits_and_comes_before_the_next_add(
    agents: Agents, cluster: Path, database: Database
) -> None:
    write(cluster, "pods.yaml", pod("web-0", "uid-0") + pod("web-1", "uid-1"))
    agent = agents()
    first = agent.add(A)
    assert agent.stop() == 0
    write(cluster, "pods.yaml", pod("web-1", "uid-1"))
    before = time.time_ns() // 1_000
    assert agent.delete(A).code == 0
    assert agent.delete(A).code == 0, "repeated"
    after = time.time_ns() // 1_000
    assert agent.spooled == ["a1:eth0"]
    assert agent.add(Sandbox("b1", pod="web-1", uid="uid-1")).code == 11
    agent.start()
    until(lambda: agent.spooled == [])
    assert held(database) == {}
    with database.engine(writes=False).connect() as connection:
        query = select(event.c.happened_at, event.c.recorded_at, event.c.node_time)
        released = connection.execute(query.where(event.c.type == "address.released")).one()
    assert before <= released.happened_at == released.node_time <= after < released.recorded_at
    assert agent.add(Sandbox("b1", pod="web-1", uid="uid-1")).addresses != []
    assert first.addresses == ["10.9.0.10/24"]


def test_a_container_that_stopped_and_started_under_one_id_keeps_what_its_new_life_got(
    agents: Agents, database: Database
) -> None:
    """Outside Kubernetes a DEL frees; the one that was spooled is of the old life, and comes before the new ADD."""
    agent = agents("--node", "node-1")
    box = Sandbox("c1")
    agent.add(box)
    agent.stop()
    assert agent.delete(box).code == 0
    agent.launch()
    until(lambda: agent.add(box).code == 0)
    until(lambda: agent.spooled == [])
    assert list(held(database).values()) == ["c1"]
    assert (count(database, "address.allocated"), count(database, "address.released")) == (2, 1)


def test_an_add_that_is_older_than_a_spooled_del_of_its_container_is_not_served(
    agents: Agents, database: Database
) -> None:
    agent, box = agents("--node", "node-1"), Sandbox("c1")
    before = time.time_ns()
    missed_the_agent = {**box.environment, "SPIDERLEDGER_SOCKET": str(agent.state / "nobody")}
    assert agent.call("DEL", missed_the_agent).code == 0
    until(lambda: agent.spooled == [])
    refused = raw(agent, box, "ADD", before)[1]
    assert (refused["code"], "has been deleted since" in refused["msg"]) == (11, True)
    assert raw(agent, box, "ADD", time.time_ns())[0] == 200
    assert list(held(database).values()) == ["c1"]


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A PostgreSQL that the test may stop."""
    server = Server().create().start()
    yield server
    server.remove()


def _migrated(server: Server) -> Database:
    engine = open_engine(server.url())
    migrate(engine)
    engine.dispose()
    return Database("postgresql", server.url())


def test_while_postgresql_is_away_dels_are_spooled_adds_ask_again_and_status_stays_well(
    plugin: Path, tmp_path: Path, cluster: Path, own_server: Server
) -> None:
    database = _migrated(own_server)
    write(cluster, "pods.yaml", pod("web-0", "uid-0") + pod("web-1", "uid-1"))
    with RunningAgent(plugin, cluster, tmp_path / "state", database.url, ("--doubt", "0")) as agent:
        agent.add(A)
        write(cluster, "pods.yaml", pod("web-1", "uid-1"))
        own_server.stop(signal.SIGQUIT)
        refused = agent.add(Sandbox("b1", pod="web-1", uid="uid-1"))
        assert refused.code == 11
        assert "does not answer" in refused.document["msg"]
        assert "owner" not in str(refused.document), "nothing of the connection's secrets"
        assert agent.delete(A).code == 0
        assert agent.spooled == ["a1:eth0"]
        assert agent.status().code == 0
        own_server.start()
        until(lambda: agent.add(Sandbox("b1", pod="web-1", uid="uid-1")).code == 0)
        assert agent.spooled == []
        assert list(held(database).values()) == ["b1"]
    database.dispose()


def test_an_agent_that_starts_without_its_database_says_so_and_serves_when_it_comes(
    plugin: Path, tmp_path: Path, cluster: Path, own_server: Server
) -> None:
    database = _migrated(own_server)
    write(cluster, "pods.yaml", pod("web-0", "uid-0"))
    own_server.stop()
    agent = RunningAgent(plugin, cluster, tmp_path / "state", database.url, ("--doubt", "0")).launch()
    try:
        until(agent.socket.exists)
        answer = agent.status()
        assert (answer.code, "database" in answer.document["msg"]) == (50, True)
        assert agent.add(A).code == 11
        own_server.start()
        agent.wait_until_it_serves()
        until(lambda: agent.add(A).code == 0)
        assert agent.stop() == 0
    finally:
        agent.kill()
    database.dispose()


def test_killed_connections_are_made_anew(plugin: Path, tmp_path: Path, cluster: Path, own_server: Server) -> None:
    database = _migrated(own_server)
    with RunningAgent(plugin, cluster, tmp_path / "state", database.url, ("--doubt", "0", "--node", "n")) as agent:
        agent.add(Sandbox("c1"))
        for number in range(3):
            with database.engine().begin() as connection:
                mine = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IS NOT NULL"
                connection.execute(text(f"{mine} AND pid <> pg_backend_pid()"))
            until(lambda number=number: agent.add(Sandbox(f"d{number}")).code == 0)  # type: ignore[misc]
        assert len(held(database)) == 4
    database.dispose()


def test_while_the_sqlite_file_is_locked_dels_are_spooled(
    plugin: Path, tmp_path: Path, cluster: Path, sqlite: Database
) -> None:
    write(cluster, "pods.yaml", pod("web-0", "uid-0"))
    with RunningAgent(plugin, cluster, tmp_path / "state", sqlite.url) as agent:
        agent.add(A)
        write(cluster, "pods.yaml", "# gone\n")
        with closing(sqlite3.connect(sqlite.url.removeprefix("sqlite:///"), isolation_level=None)) as intruder:
            intruder.execute("BEGIN IMMEDIATE")
            assert agent.delete(A).code == 0
            assert agent.spooled == ["a1:eth0"]
            assert agent.add(A_AGAIN).code == 11
        until(lambda: agent.spooled == [])
        assert held(sqlite) == {}


def slow_to_commit(database: Database) -> Callable[[], bool]:
    """The first commit that gives an address sleeps; answers whether one sleeps now."""
    watching = database.engine()
    with watching.begin() as connection:
        body = "BEGIN PERFORM pg_sleep(3); RETURN NULL; END"
        slow = f"CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS '{body}'"
        connection.execute(text(slow))
        after = "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON address DEFERRABLE INITIALLY DEFERRED"
        connection.execute(text(f"{after} FOR EACH ROW EXECUTE FUNCTION slow()"))
    active = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()")

    def sleeps() -> bool:
        with watching.connect() as connection:
            return bool(connection.execute(active).scalar_one())

    return sleeps


def test_a_del_that_the_disk_does_not_take_leaves_nothing_half_written(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            spool.keep("c1", "eth0", b"a request")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((tmp_path / "spool").iterdir()) == []
    spool.keep("c1", "eth0", b"a request")
    assert [waiting.body for waiting in spool.waiting(9)] == [b"a request"]


def test_what_waits_is_taken_oldest_first_and_by_the_whole_name_of_its_container(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    names = [("c10", "eth0"), ("c2", "eth0"), ("c1", "net1"), ("c1", "eth0")]
    for age, (container, interface) in enumerate(names):
        spool.keep(container, interface, f"{container} {interface}".encode())
        os.utime(tmp_path / f"{container}:{interface}", ns=(0, 1_000 - age))
    bodies = [f"{container} {interface}".encode() for container, interface in reversed(names)]
    assert [each.body for each in spool.waiting(9)] == bodies
    assert [each.body for each in spool.waiting(3)] == bodies[:3]
    (tmp_path / "c10:eth0").rename(tmp_path / "c10:eth0.unreadable")
    (tmp_path / "c2:eth0").rename(tmp_path / ".tmp-1")
    assert [each.body for each in spool.waiting(9)] == bodies[:2]
    assert [spool.has(container) for container in ("c1", "c", "c10", "c2")] == [True, False, False, False]


def test_all_that_waits_is_applied_before_anything_else_however_much_it_is(sqlite: Database, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    for number in range(2 * BATCH_MAX + 1):
        _, _, body = requested(Sandbox(f"c{number}"), "DEL", number).partition(b"\r\n\r\n")
        spool.keep(f"c{number}", "eth0", body)
    ledger = Ledger(sqlite.engine())
    agent = Agent(ledger, NoCluster(), spool, Settings("here"), node="n", many_nodes=False, gc_age_seconds=60)
    agent._apply_spool()
    assert spool.waiting(1) == []


def test_the_first_del_of_a_container_stays_and_says_when_it_ended(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for body in (b"first", b"second"):
        spool.keep("c1", "eth0", body)
    assert [each.body for each in spool.waiting(9)] == [b"first"]
    spool.applied(spool.waiting(1)[0])
    spool.keep("c1", "eth0", b"third")
    assert [each.body for each in spool.waiting(9)] == [b"third"]


def test_what_a_crash_left_half_written_goes_with_the_next_start_but_not_what_is_being_written(tmp_path: Path) -> None:
    for name, age in ((".tmp-old", HALF_WRITTEN_SECONDS_MAX + 60), (".tmp-new", 0), ("c1:eth0", 9_999)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age, time.time() - age))
    Spool(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-new", "c1:eth0"]


def test_a_del_that_can_neither_be_applied_nor_written_down_is_error_5(
    agents: Agents, cluster: Path, database: Database
) -> None:
    write(cluster, "pods.yaml", pod("web-0", "uid-0"))
    agent = agents()
    agent.add(A)
    (cluster / "pods.yaml").unlink()
    (cluster / "other.yaml").symlink_to("nowhere")
    others = [agent.spool / f".tmp-{number}" for number in range(FILES_MAX)]
    for path in others:
        path.touch()
    answer = agent.delete(A)
    assert answer.code == 5
    assert "neither be applied (part of the cluster cannot be read" in answer.document["msg"]
    assert f"nor spooled ({agent.spool} holds {FILES_MAX} DELs already)" in answer.document["msg"]
    others[0].unlink()
    assert agent.delete(A).code == 0
    assert "a1:eth0" in agent.spooled
    assert list(held(database).values()) == ["a1"]
    (cluster / "other.yaml").unlink()
    until(lambda: held(database) == {})


def test_a_file_that_is_no_request_is_set_aside_and_stops_no_other(agents: Agents, database: Database) -> None:
    agent = agents("--node", "node-1")
    agent.add(Sandbox("c1"))
    agent.stop()
    for name, content in (("c0:eth0", b""), ("c2:eth0", b"\0" * 99)):
        (agent.spool / name).write_bytes(content)
        os.utime(agent.spool / name, (0, 0))
    assert agent.delete(Sandbox("c1")).code == 0
    agent.start()
    until(lambda: held(database) == {})
    assert agent.spooled == ["c0:eth0.unreadable", "c2:eth0.unreadable"]
    assert "c2:eth0 is no DEL and was set aside" in agent.log


def test_an_add_that_was_in_flight_when_its_agent_died_is_waited_for_by_the_next(
    plugin: Path, tmp_path: Path, cluster: Path, postgresql: Database
) -> None:
    """The commit ends after the agent is gone, and the DEL that overtakes it must not find nothing."""
    write(cluster, "pods.yaml", pod("web-0", "uid-0"))
    sleeps = slow_to_commit(postgresql)
    agent = RunningAgent(plugin, cluster, tmp_path / "slow", postgresql.url, ("--doubt", "0")).start()
    called = agent.begin("ADD", A.environment)
    until(sleeps)
    agent.kill()
    assert agent.finish(called).code == 11
    assert held(postgresql) == {}, "not committed yet"
    write(cluster, "pods.yaml", "# gone\n")
    agent.start()
    assert agent.delete(A).code == 0
    until(lambda: agent.spooled == [])
    assert not sleeps()
    assert held(postgresql) == {}
    assert (count(postgresql, "address.allocated"), count(postgresql, "address.released")) == (1, 1)
    assert agent.stop() == 0


def test_kill_9_at_any_moment_loses_no_acknowledged_address_and_gives_none_twice(
    agents: Agents, cluster: Path, database: Database
) -> None:
    wide = P.replace("10.9.0.10-10.9.0.19", "10.9.0.10-10.9.0.200")
    write(cluster, "pool.yaml", wide)
    agent = agents("--node", "node-1")
    chance = random.Random(SEED)
    acknowledged: dict[str, str] = {}
    for turn in range(KILLS):
        begun = {f"k{turn}-{number}": number for number in range(6)}
        calls = {name: agent.begin("ADD", Sandbox(name).environment) for name in begun}
        time.sleep(chance.uniform(0, 0.06))
        agent.kill()
        for name, called in calls.items():
            answer = agent.finish(called)
            assert answer.code in (0, 11), answer
            if answer.status == 0:
                acknowledged[name] = answer.addresses[0]
        agent.start()
        for name in calls:
            again = agent.add(Sandbox(name))
            assert acknowledged.setdefault(name, again.addresses[0]) == again.addresses[0]
    assert len(set(acknowledged.values())) == len(acknowledged) == len(held(database)) == 6 * KILLS
    assert agent.stop() == 0
    report = verify(database.engine(writes=False))
    assert not report.faults, report
