"""The database roles of a real installation: an agent that owns nothing does all its work, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from tests.agents import ROOT, RunningAgent, Sandbox
from tests.conftest import Database
from tests.postgresql import Server
from tests.test_agent import NODES, P, held, pod, until, write

LOGIN = "node_agent"
AUDITOR = "auditor"


@pytest.fixture
def logins(server: Server, postgresql: Database) -> Iterator[Database]:
    """Login roles as an administrator makes them: members of ours, and nothing more."""
    with postgresql.engine().begin() as connection:
        connection.execute(text(f"CREATE ROLE {LOGIN} LOGIN IN ROLE spiderledger_agent"))
        connection.execute(text(f"CREATE ROLE {AUDITOR} LOGIN IN ROLE spiderledger_reader"))
    yield postgresql
    with postgresql.engine().begin() as connection:
        connection.execute(text(f"DROP ROLE {LOGIN}, {AUDITOR}"))


def ask(database: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {"SPIDERLEDGER_DATABASE": database, "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "spiderledger", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_an_agent_and_an_auditor_do_their_work_with_the_rights_of_their_roles(
    logins: Database, plugin: Path, tmp_path: Path
) -> None:
    cluster = tmp_path / "cluster"
    cluster.mkdir()
    write(cluster, "nodes.yaml", NODES + pod("web-0", "uid-0"))
    write(cluster, "pool.yaml", P)
    box = Sandbox("c1", pod="web-0", uid="uid-0")
    login = logins.url.replace("//owner@", f"//{LOGIN}@")
    with RunningAgent(plugin, cluster, tmp_path / "state", login, ("--doubt", "0")) as agent:
        assert agent.add(box).addresses == ["10.9.0.10/24"]
        write(cluster, "pool.yaml", P.replace("10.9.0.19", "10.9.0.29"))
        write(cluster, "nodes.yaml", NODES)
        assert agent.delete(box).code == 0
        until(lambda: held(logins) == {})
        until(lambda: "20" in ask(login, "get", "pools").stdout)
        assert ask(login, "allocate", "by-hand", "--pool", "p", "--reason", "a test").returncode == 0
    reader = logins.url.replace("//owner@", f"//{AUDITOR}@")
    assert ask(reader, "who-held", "10.9.0.10").returncode == 0, "the one that was given by hand"
    assert ask(reader, "who-held", "10.9.0.25").returncode == 1
    assert ask(reader, "verify").returncode == 0, ask(reader, "verify")
    refused = ask(reader, "allocate", "by-hand-2", "--pool", "p", "--reason", "a test")
    assert refused.returncode != 0
    assert "owner@" not in refused.stderr


@pytest.mark.parametrize("statement", [
    "INSERT INTO event SELECT * FROM event",
    "UPDATE address SET step = step + 1",
    "INSERT INTO subject VALUES ('a', 'b')",
    "SELECT nextval('event_position_seq')",
    "CREATE TABLE mine (x int)",
])  # fmt: skip
def test_an_auditor_can_change_nothing(logins: Database, statement: str) -> None:
    auditor = Database("postgresql", logins.url.replace("//owner@", f"//{AUDITOR}@"))
    with pytest.raises(DBAPIError, match="permission denied"), auditor.engine().begin() as connection:
        connection.execute(text(statement))
    auditor.dispose()
