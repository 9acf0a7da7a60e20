"""A commit that takes long, a row that somebody keeps: what comes meanwhile waits its turn, is dropped or told to come
again; an agent told to leave finishes first. PostgreSQL: there a transaction can be held up from outside."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.acts import patient, session
from tests.agents import RunningAgent, Sandbox
from tests.conftest import Database
from tests.test_agent import cluster, connected, count, held, requested, until
from tests.test_spool import slow_to_commit

__all__ = ["cluster"]

BOX, SECOND, THIRD = (Sandbox(f"c{number}") for number in (1, 2, 3))


@pytest.fixture
def agent(plugin: Path, tmp_path: Path, cluster: Path, postgresql: Database) -> Iterator[RunningAgent]:
    """Of one node, for containers that are no pods'."""
    arguments = ("--doubt", "0", "--node", "node-1")
    with RunningAgent(plugin, cluster, tmp_path / "state", postgresql.url, arguments) as running:
        yield running


def test_sigterm_in_the_middle_of_a_commit_waits_for_it_and_for_its_answer(
    agent: RunningAgent, postgresql: Database
) -> None:
    sleeps = slow_to_commit(postgresql)
    called = agent.begin("ADD", BOX.environment)
    until(sleeps)
    assert agent.stop() == 0
    assert not sleeps()
    assert agent.finish(called).addresses == ["10.9.0.10/24"]
    assert list(held(postgresql).values()) == ["c1"]
    assert not agent.socket.exists()
    assert agent.spooled == []


def test_an_add_whose_client_hangs_up_before_its_turn_is_dropped(agent: RunningAgent, postgresql: Database) -> None:
    sleeps = slow_to_commit(postgresql)
    called = agent.begin("ADD", BOX.environment)
    until(sleeps)
    with connected(agent) as client:
        client.sendall(requested(SECOND, "ADD", time.time_ns()))
    for _ in range(2):  # What the first may overtake, the server's thread has seen before the second.
        assert agent.status().code == 0
    assert sleeps()
    assert agent.finish(called).code == 0
    assert agent.add(THIRD).code == 0
    assert list(held(postgresql).values()) == ["c1", "c3"]
    assert count(postgresql, "address.allocated") == 2


def test_while_a_del_waits_its_container_is_not_added_again(agent: RunningAgent, postgresql: Database) -> None:
    """The one before it might still free what it got."""
    assert agent.add(BOX).code == 0
    with session(patient(postgresql.engine())) as somebody:
        somebody.execute(text("SELECT ip FROM address FOR UPDATE"))
        assert agent.delete(BOX).code == 0
        assert agent.spooled == ["c1:eth0"]
        refused = agent.add(BOX)
        assert (refused.code, "waits to be applied" in refused.document["msg"]) == (11, True)
        assert agent.add(SECOND).code == 0, "nobody else has to wait"
    until(lambda: agent.spooled == [])
    assert list(held(postgresql).values()) == ["c2"]
    assert agent.add(BOX).code == 0
