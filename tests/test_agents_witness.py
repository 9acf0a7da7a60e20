"""A restore that nobody announced, as a node sees it: the agent's own folder knows what the database has forgotten."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy import event as hook

from cni.agent import Agent
from cni.cluster import NoCluster
from cni.facts import Settings
from cni.spool import Spool
from ledger.database import database_url
from ledger.store import Ledger
from tests.acts import a_pool, copy_of, define, file_of, put_in_place
from tests.agents import Sandbox
from tests.conftest import Database
from tests.postgresql import Server
from tests.test_agent import Agents, agents, cluster, count, held

__all__ = ["agents", "cluster"]


@pytest.fixture
def backup(
    request: pytest.FixtureRequest, database: Database, tmp_path: Path
) -> Iterator[Callable[[], Callable[[], None]]]:
    """Copies the ledger, which nobody has open, and answers what puts the copy in its place again."""
    name = str(make_url(database.url).database)

    def copied_file() -> Callable[[], None]:
        shutil.copy2(name, tmp_path / "backup.db")
        return lambda: shutil.move(tmp_path / "backup.db", name)

    def copied_database() -> Callable[[], None]:
        server: Server = request.getfixturevalue("server")
        owner = create_engine(database_url(server.url()), isolation_level="AUTOCOMMIT")

        def run(*statements: str) -> None:
            database.dispose()
            with owner.connect() as connection:
                for statement in statements:
                    connection.execute(text(statement))
            owner.dispose()

        run(f"CREATE DATABASE {name}_backup TEMPLATE {name}")
        return lambda: run(f"DROP DATABASE {name}", f"ALTER DATABASE {name}_backup RENAME TO {name}")

    yield copied_file if database.kind == "sqlite" else copied_database


def test_an_agent_that_starts_on_an_older_database_hands_nothing_out(
    agents: Agents, cluster: Path, database: Database, backup: Callable[[], Callable[[], None]]
) -> None:
    agent = agents("--node", "node-1")
    agent.add(Sandbox("c1"))
    agent.stop()
    restore = backup()
    agent.start()
    assert agent.add(Sandbox("c2")).addresses == ["10.9.0.11/24"]
    agent.stop()
    restore()
    agent.start()
    for _ in range(2):
        refused = agent.add(Sandbox("c3"))
        assert refused.code == 11
        assert "run `spiderledger restore`" in refused.document["msg"]
    assert list(held(database).values()) == ["c1"]
    assert count(database, "ledger.fenced") == 1


def test_an_agent_that_nobody_calls_looks_now_and_then_and_tells_once_what_it_found(
    sqlite: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine, file = sqlite.engine(), file_of(sqlite)
    ledger = Ledger(engine)
    define(ledger, a_pool("a", "10.1.0.1"))
    spool = Spool(tmp_path / "spool")
    agent = Agent(ledger, NoCluster(), spool, Settings("here"), node="n", many_nodes=False, gc_age_seconds=60)
    asked: list[str] = []
    hook.listen(engine, "checkout", lambda *_: asked.append("again"))
    agent._look()
    before = len(asked)
    agent._look()
    assert len(asked) == before > 0
    copy = copy_of(file, tmp_path / "copy.db")
    file.unlink()
    agent._next_look = 0.0  # Its time has come.
    for _ in range(3):  # And now it looks whenever it can.
        agent._look()
    put_in_place(copy, file)
    agent._look()
    agent._look()
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "the ledger's database does not answer", "the ledger may be acted on again",
    ]  # fmt: skip
