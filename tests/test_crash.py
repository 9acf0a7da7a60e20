"""`kill -9` of agent, projector and PostgreSQL's server in a storm of calls, and what is found afterwards.

Each round kills some of them at a random moment while at least 32 calls have no answer, starts them again, and lets the
runtime ask until it knows everything again. Then journal, tables and projections must say exactly what the runtime was
told: every acknowledged ADD once, no address held twice, nothing held that was given back, nothing lost.

ROUNDS makes it longer (`make torture-crash ROUNDS=1000`), SEED repeats a run's choices; both are printed.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest
from sqlalchemy import Engine, create_engine, select, text

from ledger import addresses, tables
from ledger.database import database_url, open_engine
from ledger.events import Event
from ledger.schema import migrate
from ledger.verify import verify
from projector.projections import PROJECTIONS
from projector.tail import rebuild
from tests.acts import check, until
from tests.agents import RunningAgent
from tests.conftest import Database
from tests.linearizability import conflicts
from tests.postgresql import NoServerError, Server
from tests.storm import Storm

ROUNDS = int(os.environ.get("ROUNDS", "21"))
SEED = int(os.environ.get("SEED") or secrets.randbits(32))
ROUNDS_OF_A_LEDGER_MAX = 16
"""A new ledger begins after so many: the judgement of a round reads the whole journal."""
UNANSWERED_MIN = 32
STORM_SECONDS_MAX = 0.3
AWAY_SECONDS_MAX = 0.3
DOUBT_SECONDS = 0.2
SUSPECTS = {"sqlite": (("agent",),), "postgresql": (("agent",), ("server",), ("agent", "server"))}
CLUSTER = """
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: four, annotations: {ipam.spiderledger.io/cooling: 0s}}
spec: {subnet: 10.9.0.0/24, ips: [10.9.0.1-10.9.0.128], default: true}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: six, annotations: {ipam.spiderledger.io/cooling: 0s}}
spec: {subnet: "fd00::/64", ips: ["fd00::1-fd00::80"], default: true}
"""


def _campaigns(rounds: int) -> list[tuple[str, int, int]]:
    """Which database, the how many-eth ledger there, and its rounds: a third of all on SQLite."""
    found = []
    for kind, share in (("sqlite", rounds // 3), ("postgresql", rounds - rounds // 3)):
        ledgers = max(1, -(-share // ROUNDS_OF_A_LEDGER_MAX))
        found += [(kind, number, (share + number) // ledgers) for number in range(ledgers)]
    return found


CAMPAIGNS = _campaigns(ROUNDS)
assert sum(rounds for _, _, rounds in CAMPAIGNS) == ROUNDS


# A ledger that may be killed ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def mortal_server() -> Iterator[Server]:
    """One that is killed again and again, and writes as a server in earnest does."""
    try:
        server = Server(options=("-c", "fsync=on")).create().start()
    except NoServerError as error:
        pytest.exit(str(error), returncode=1)
    yield server
    server.remove()


@dataclass
class Scene:
    """One ledger with all that works on it."""

    agent: RunningAgent
    engine: Engine
    server: Server | None
    random: Random
    storm: Storm
    projector: subprocess.Popen[bytes] | None = None
    rounds: int = 0
    killed: Counter[str] = field(default_factory=Counter)

    # One round -------------------------------------------------------------------------------

    def round(self, victims: tuple[str, ...]) -> str:
        """Storm, crash, recovery, judgement; tells it in a line."""
        before = len(self.storm.acknowledged())
        self.storm.blow(self.random.uniform(0, STORM_SECONDS_MAX))
        while self.storm.unanswered() < UNANSWERED_MIN * 3 // 2:
            self.storm.blow(self.random.uniform(0, 0.01))
        unanswered = self.crash(victims)
        acknowledged = len(self.storm.acknowledged()) - before
        self.recover(victims)
        self.storm.drain()
        self.wait_for_the_database()
        unknown = {each.name for each in self.storm.unknown() if not each.ending}
        found = len(unknown & self.allocated().keys())
        self.agent.wait_until_it_serves()
        self.storm.calm()
        self.judge()
        if unanswered >= UNANSWERED_MIN:
            self.rounds += 1
        return (
            f"{'+'.join(victims)}: {unanswered} unanswered, {acknowledged} acknowledged, {len(unknown)} unknown, "
            f"{found} found"
        )

    def crash(self, victims: tuple[str, ...]) -> int:
        """SIGKILL for all of them at once; how many calls were unanswered then (some may have been a moment later)."""
        assert self.agent.process is not None
        for victim in self.random.sample(victims, len(victims)):
            if victim == "server":
                assert self.server is not None
                self.server.strike()
            elif victim == "agent":
                self.agent.send(signal.SIGKILL)
            elif self.projector is not None:
                self.projector.send_signal(signal.SIGKILL)
        self.killed.update(victims)
        if "agent" in victims:
            self.agent.kill()
            return self.storm.sweep()
        # An agent that lives is about to answer that its database is away: count while it is stopped.
        self.agent.send(signal.SIGSTOP)
        os.waitid(os.P_PID, self.agent.process.pid, os.WSTOPPED)
        unanswered = self.storm.sweep()
        self.agent.send(signal.SIGCONT)
        return unanswered

    def recover(self, victims: tuple[str, ...]) -> None:
        """Start again what was killed."""
        if self.server is not None and "server" in victims:
            self.server.bury()
            if "agent" not in victims:
                self.storm.blow(self.random.uniform(0, AWAY_SECONDS_MAX))
            self.server.start()
            self.engine.dispose()
        if self.projector is not None and "projector" in victims:
            self.projector.wait()
            self.projector = self.agent.beside("projector")
        if "agent" in victims:
            self.agent.launch()

    def wait_for_the_database(self) -> None:
        """What a killed agent had sent to a living server has ended when this returns."""
        if self.server is None:
            return
        query = text("SELECT pg_snapshot_xmin(pg_current_snapshot()) > CAST(:mine AS xid8)")
        with self.engine.begin() as connection:
            mine = connection.execute(text("SELECT CAST(pg_current_xact_id() AS text)")).scalar_one()
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            until(lambda: bool(connection.execute(query, {"mine": mine}).scalar_one()), "old transactions end")

    # Judgement -------------------------------------------------------------------------------

    def judge(self) -> None:
        """The runtime knows everything: so must the ledger, in every one of its tables."""
        until(lambda: not self.agent.spooled, "what was spooled is applied")
        assert conflicts(self.storm.history) == []
        events = check(self.engine)
        self.judge_journal()
        assert self.held() == {
            (address, each.name) for each in self.storm.containers if not each.gone for address in each.addresses
        }
        self.judge_projections(events)
        report = verify(self.engine)
        assert (report.faults, report.unjudged) == ((), ())
        assert report.events == len(events)

    def judge_journal(self) -> None:
        """Every acknowledged ADD once, and nobody's twice."""
        allocated = self.allocated()
        for each in self.storm.containers:
            found = allocated.get(each.name, [])
            assert len(found) == len(set(found)), f"{each} has {found}"
            assert not each.addresses or sorted(found) == sorted(each.addresses), f"{each} has {found}"
        assert allocated.keys() <= {each.name for each in self.storm.containers}

    def judge_projections(self, events: list[Event]) -> None:
        """They are what a rebuild makes of the journal, as soon as the projector has read it."""
        last = (events[-1].tx, events[-1].position)
        until(
            lambda: self.supervised() and self.read_to() == {each.name: last for each in PROJECTIONS},
            "the projections are up to date",
        )
        made = {each.name: {each.make(row) for row in each.fold({}, events).values()} for each in PROJECTIONS}
        assert self.projected() == made

    def judge_rebuild(self) -> None:
        """When nothing runs any more: dropped and made anew, they are the same."""
        assert self.agent.stop() == 0
        if self.projector is not None:
            self.projector.terminate()
            self.projector.wait()
        before = self.projected()
        writing = open_engine(self.agent.database)
        for each in PROJECTIONS:
            rebuild(writing, each.name)
        writing.dispose()
        assert self.projected() == before
        told = self.agent.ask("verify")
        assert told.status == 0, told

    def supervised(self) -> bool:
        """A projector that met the last words of its killed predecessor has ended, and is started again."""
        if self.projector is not None and self.projector.poll() is not None:
            self.projector = self.agent.beside("projector")
        return True

    def allocated(self) -> dict[str, list[str]]:
        """The addresses of each container's allocations, by the journal."""
        cells = tables.event.c
        query = select(cells.container, cells.ip).where(cells.type == "address.allocated")
        found: dict[str, list[str]] = {}
        with self.engine.connect() as connection:
            for container, ip in connection.execute(query):
                found.setdefault(container, []).append(addresses.text(ip))
        return found

    def held(self) -> set[tuple[str, str]]:
        """Who holds what."""
        cells = tables.address.c
        with self.engine.connect() as connection:
            rows = connection.execute(select(cells.ip, cells.container).where(cells.held)).all()
        return {(addresses.text(ip), container) for ip, container in rows}

    def read_to(self) -> dict[str, tuple[int, int]]:
        """How far the projections have read."""
        with self.engine.connect() as connection:
            return {row.projection: (row.tx, row.position) for row in connection.execute(select(tables.checkpoint))}

    def projected(self) -> dict[str, set[object]]:
        """The projections' rows."""
        with self.engine.connect() as connection:
            return {
                each.name: {each.make(row) for row in connection.execute(select(tables.metadata.tables[each.name]))}
                for each in PROJECTIONS
            }


# Its beginning and its end -----------------------------------------------------------------------


@contextmanager
def scene_on(kind: str, request: pytest.FixtureRequest, plugin: Path, folder: Path, random: Random) -> Iterator[Scene]:
    """A fresh ledger with everything that works on it; whatever happens, nothing is left behind."""
    cluster = folder / "cluster"
    cluster.mkdir()
    (cluster / "pools.yaml").write_text(CLUSTER)
    server: Server | None = None
    if kind == "sqlite":
        url = request.getfixturevalue("sqlite").url
    else:
        server = request.getfixturevalue("mortal_server")
        url = new_ledger(server, f"ledger_{random.getrandbits(32):x}")
    arguments = ("--node", "node-1", "--doubt", str(DOUBT_SECONDS))
    agent = RunningAgent(plugin, cluster, folder / "state", url, arguments)
    storm = Storm(agent, random)
    scene = Scene(agent, Database(kind, url).engine(writes=False), server, random, storm)
    try:
        with agent:
            if server is not None:
                scene.projector = agent.beside("projector")
            yield scene
    finally:
        storm.end()
        scene.engine.dispose()
        if scene.projector is not None:
            scene.projector.kill()
            scene.projector.wait()


def new_ledger(server: Server, name: str) -> str:
    """An empty one on this server; proves that the server waits for its disk."""
    engine = create_engine(database_url(server.url()), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        settings = [connection.execute(text(f"SHOW {each}")).scalar_one() for each in ("fsync", "synchronous_commit")]
        assert settings == ["on", "on"]
    engine.dispose()
    engine = open_engine(server.url(name))
    migrate(engine)
    engine.dispose()
    return server.url(name)


# The test -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "number", "rounds"), CAMPAIGNS, ids=[f"{kind}-{number}" for kind, number, _ in CAMPAIGNS]
)
def test_killed_at_any_moment_the_ledger_says_what_the_runtime_was_told(
    request: pytest.FixtureRequest,
    plugin: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    number: int,
    rounds: int,
) -> None:
    say(capsys, f"\n{kind}: ledger {number}, {rounds} rounds, SEED={SEED}")
    random = Random(f"{SEED} {kind} {number}")
    with scene_on(kind, request, plugin, tmp_path, random) as scene:
        tries = 0
        while scene.rounds < rounds:
            assert tries <= 2 * rounds, "the storm is too weak"
            victims = SUSPECTS[kind][tries % len(SUSPECTS[kind])]
            if scene.projector is not None and random.random() < 0.5:
                victims = (*victims, "projector")
            say(capsys, f"{kind} {tries + 1}: {scene.round(victims)}")
            tries += 1
        say(capsys, f"{kind}: {len(scene.storm.history)} calls, refusals by code {dict(scene.storm.refusals)}")
        scene.judge_rebuild()


def say(capsys: pytest.CaptureFixture[str], line: str) -> None:
    """Also where a test that passes says nothing."""
    with capsys.disabled():
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - the report that is asked for
