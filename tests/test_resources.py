"""A node's life compressed: pods come and go in so many ADDs and DELs, and the agent weighs at the end what it did.

Memory, file descriptors, threads, sessions at the database, and SQLite's write-ahead log, looked at between two
generations of pods, when nobody calls. The first third of the life is for what is made once and kept. CALLS makes it
longer (`make torture-resources CALLS=100000`), SEED repeats a run's choices; both are printed.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from statistics import median
from typing import NamedTuple

from sqlalchemy import Engine, create_engine, text

from ledger.database import database_url
from tests.acts import counted, file_of, until
from tests.agents import Answer, RunningAgent, Sandbox
from tests.conftest import Database
from tests.wire import OpenCall

CALLS = int(os.environ.get("CALLS", "10000"))
SEED = int(os.environ.get("SEED") or secrets.randbits(32))
PODS = 100
GENERATION = PODS // 2
SIDELINES = 5
"""Of each kind: sandboxes made anew, calls that are repeated, callers that hang up, pods that nobody has heard of."""
AT_ONCE = 25
MEMORY_GROWTH_MAX = 3 << 19
"""From the middle third of a life to its last. The agent keeps the last 10,000 DELs in mind, some 200 bytes each."""
WAL_BYTES_MAX = 16 << 20
"""SQLite begins its log anew after 4 MB; who reads at that moment puts it off."""
TRY_AGAIN = 11
CLUSTER = """
apiVersion: v1
kind: Node
metadata: {name: node-1}
---
apiVersion: v1
kind: Namespace
metadata: {name: default}
---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: p, annotations: {ipam.spiderledger.io/cooling: 0s}}
spec: {subnet: 10.9.0.0/16, ips: [10.9.0.10-10.9.15.250], gateway: 10.9.0.1, default: true}
"""
POD = """---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default, uid: {uid}, labels: {{app: web}}}}
spec: {{nodeName: node-1, containers: [{{name: c, image: i}}]}}
"""


# A node's life ------------------------------------------------------------------------------------


@dataclass
class Node:
    """The runtime and the cluster of one node."""

    agent: RunningAgent
    random: Random
    calls: int = 0
    there: dict[Sandbox, Answer] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=count)

    def live(self) -> None:
        """One generation: half of the pods go, others come, and what else happens on a node."""
        number = min(GENERATION, len(self.there))
        going = self.random.sample(sorted(self.there, key=str), number)
        coming = [self._pod() for _ in range(PODS - len(self.there) + number)]
        staying = [each for each in self.there if each not in going]
        self._show([*staying, *coming])
        # Of some the runtime has forgotten that they were there.
        told = going[SIDELINES:]
        calls = [("DEL", each) for each in told] + [("ADD", each) for each in coming]
        self.random.shuffle(calls)
        found = dict(zip(calls, self._call(calls), strict=True))
        assert all(answer.code == 0 for answer in found.values()), found
        self.there = {each: self.there[each] for each in staying} | {each: found["ADD", each] for each in coming}
        self._make_anew(staying[:SIDELINES])
        self._repeat(coming[:SIDELINES])
        self._disappoint()
        assert self.agent.collect(*self.there).code == 0

    def _make_anew(self, sandboxes: Sequence[Sandbox]) -> None:
        """The pods live on in other sandboxes."""
        for old in sandboxes:
            new = Sandbox(self._name("c"), old.pod, old.uid)
            [_, answer] = self._call([("DEL", old), ("ADD", new)])
            assert answer.addresses == self.there.pop(old).addresses
            self.there[new] = answer

    def _repeat(self, sandboxes: Sequence[Sandbox]) -> None:
        for each, again in zip(sandboxes, self._call([("ADD", each) for each in sandboxes]), strict=True):
            assert again.addresses == self.there[each].addresses
            assert self.agent.check(each, again).code == 0

    def _disappoint(self) -> None:
        """Callers who hang up, whatever becomes of their ADD; pods that the cluster does not show."""
        lost = [Sandbox(self._name("lost")) for _ in range(SIDELINES)]
        for each in lost:
            OpenCall(self.agent.socket, "ADD", each).hang_up()
        unknown = [Sandbox(self._name("c"), self._name("unknown"), "uid") for _ in range(SIDELINES)]
        answers = self._call([("DEL", each) for each in lost] + [("ADD", each) for each in unknown])
        assert [each.code for each in answers] == [0] * len(lost) + [TRY_AGAIN] * len(unknown)

    def _call(self, calls: Sequence[tuple[str, Sandbox]]) -> list[Answer]:
        self.calls += len(calls)
        answers: list[Answer] = []
        for first in range(0, len(calls), AT_ONCE):
            some = calls[first : first + AT_ONCE]
            opened = [OpenCall(self.agent.socket, verb, sandbox) for verb, sandbox in some]
            answers += [each.answer() for each in opened]
        return answers

    def _show(self, pods: Sequence[Sandbox]) -> None:
        """The cluster's folder has these from now on."""
        assert self.agent.cluster is not None
        temporary = self.agent.cluster / ".pods"
        temporary.write_text("".join(POD.format(name=each.pod, uid=each.uid) for each in pods))
        temporary.replace(self.agent.cluster / "pods.yaml")

    def _pod(self) -> Sandbox:
        return Sandbox(self._name("c"), self._name("web"), self._name("uid"))

    def _name(self, kind: str) -> str:
        return f"{kind}-{next(self._numbers)}"


# What it weighs -----------------------------------------------------------------------------------


class Weight(NamedTuple):
    """What a process has: bytes of memory, and how many of the others."""

    memory: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Weight:
        """Now."""
        process = Path(f"/proc/{pid}")
        resident = int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return cls(resident, *(sum(1 for _ in (process / each).iterdir()) for each in ("fd", "task")))


@dataclass
class Scale:
    """What is weighed: the agent, on PostgreSQL the projector beside it, and what both leave at the database."""

    database: Database
    processes: dict[str, int]
    engine: Engine

    def weigh(self) -> dict[str, int]:
        """Each number by its name."""
        found = {"sessions": self._sessions(), "log": self._log()}
        for name, pid in self.processes.items():
            found |= {f"{name}'s {what}": number for what, number in Weight.of(pid)._asdict().items()}
        return found

    def _sessions(self) -> int:
        """Of PostgreSQL; those at a SQLite file are file descriptors of the agent."""
        if self.database.kind == "sqlite":
            return 0
        query = text(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        with self.engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def _log(self) -> int:
        """Bytes of SQLite's write-ahead log."""
        if self.database.kind == "postgresql":
            return 0
        path = file_of(self.database)
        return path.with_name(f"{path.name}-wal").stat().st_size


# The test -----------------------------------------------------------------------------------------


@contextmanager
def living(database: Database, plugin: Path, folder: Path) -> Iterator[tuple[Node, Scale]]:
    """An agent and its projector at work."""
    cluster = folder / "cluster"
    cluster.mkdir()
    (cluster / "cluster.yaml").write_text(CLUSTER)
    engine = create_engine(database_url(database.url))
    projector: subprocess.Popen[bytes] | None = None
    arguments = ("--node", "node-1", "--gc-min-age", "0")
    try:
        with RunningAgent(plugin, cluster, folder / "state", database.url, arguments) as agent:
            assert agent.process is not None
            processes = {"agent": agent.process.pid}
            if database.kind == "postgresql":
                projector = agent.beside("projector")
                processes["projector"] = projector.pid
            yield Node(agent, Random(SEED)), Scale(database, processes, engine)
    finally:
        engine.dispose()
        if projector is not None:
            projector.kill()
            projector.wait()


def test_pods_come_and_go_and_the_agent_weighs_what_it_weighed(
    database: Database, plugin: Path, tmp_path: Path, say: Callable[[str], None]
) -> None:
    weights: list[dict[str, int]] = []
    with living(database, plugin, tmp_path) as (node, scale):
        while node.calls < CALLS:
            node.live()
            weights.append(scale.weigh())
        third = len(weights) // 3
        middle, last = weights[third : 2 * third], weights[2 * third :]
        before = {name: _settled(name, [each[name] for each in middle]) for name in weights[0]}
        after = {name: _settled(name, [each[name] for each in last]) for name in weights[0]}
        told = ", ".join(f"{name} {before[name]:,} then {after[name]:,}" for name in before)
        say(f"SEED={SEED}: {database.kind}, {node.calls} calls, {told}")
        for name in before:
            if name.endswith("memory"):
                assert after[name] - before[name] <= MEMORY_GROWTH_MAX, [each[name] for each in weights]
            elif name == "log":
                assert max(each[name] for each in weights) <= WAL_BYTES_MAX
            else:
                # A connection of the last call may be closed a moment later.
                until(lambda name=name: scale.weigh()[name] <= before[name], f"{name} are {before[name]} again")
        assert not node.agent.spooled
        assert counted(scale.engine, "address WHERE held") == len(node.there) == PODS


def _settled(name: str, numbers: Sequence[int]) -> float:
    """Of memory what it usually was, of all else the least: when nothing was under way."""
    return median(numbers) if name.endswith("memory") else min(numbers)
