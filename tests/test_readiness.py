"""STATUS, and what an agent does before it is ready: it says so, gives nothing away and loses nothing."""

from __future__ import annotations

from pathlib import Path

from tests.agents import RunningAgent, Sandbox
from tests.conftest import Database
from tests.test_agent import NODES, A, Agents, P, agents, cluster, count, held, pod, until, write

__all__ = ["agents", "cluster"]


def test_until_the_cluster_has_been_read_nobody_is_served_and_dels_wait(
    plugin: Path, tmp_path: Path, database: Database
) -> None:
    folder, arguments = tmp_path / "later", ("--doubt", "0", "--node", "node-1", "--gc-min-age", "0")
    (tmp_path / "state").mkdir(mode=0o700)
    agent = RunningAgent(plugin, folder, tmp_path / "state", database.url, arguments)
    assert agent.delete(A).code == 0
    agent.launch()
    try:
        until(agent.socket.exists)
        unread = "the agent has not read the cluster yet"
        status = agent.status()
        assert (status.code, unread in status.document["msg"]) == (50, True)
        for answer in (agent.add(A), agent.add(Sandbox("c1")), agent.collect()):
            assert (answer.code, unread in answer.document["msg"]) == (11, True)
        assert agent.delete(Sandbox("c2")).code == 0
        assert agent.spooled == ["a1:eth0", "c2:eth0"]
        assert agent.status().code == 50
        folder.mkdir()
        for name, text in (("nodes", NODES), ("pool", P), ("pods", pod("web-0", "uid-0"))):
            write(folder, f"{name}.yaml", text)
        agent.wait_until_it_serves()
        until(lambda: agent.spooled == [])
        # The folder's pools come into the ledger a moment after its pods are known.
        until(lambda: agent.add(Sandbox("b1", pod="web-0", uid="uid-0")).code == 0)
        assert agent.stop() == 0
    finally:
        agent.kill()


def test_a_pool_that_is_used_out_is_an_event_and_leaves_the_node_ready(
    agents: Agents, cluster: Path, database: Database
) -> None:
    write(cluster, "pool.yaml", P.replace("10.9.0.10-10.9.0.19", "10.9.0.10"))
    agent = agents("--node", "node-1")
    assert agent.add(Sandbox("c1")).code == 0
    assert agent.add(Sandbox("c2")).code == 101
    assert agent.status().code == 0
    assert count(database, "allocation.refused") == 1
    assert list(held(database).values()) == ["c1"]
