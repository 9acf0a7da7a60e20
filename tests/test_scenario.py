"""The cross-zone scenario, agent and plugin for real: tables, journal and printed text, on both databases."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import Row, select

from cni.demo.place import SCENARIO
from ledger import addresses, tables
from tests.agents import RunningAgent, Sandbox
from tests.conftest import Database

UIDS = "5b1c6a54-0c0e-4f5e-9d0b-6a3f1a6f000"
SIX = Sandbox("sandbox-6", pod="test-app-j9ftl", uid=f"{UIDS}1")
SEVEN = Sandbox("sandbox-7", pod="test-app-nkq5h", uid=f"{UIDS}2")
TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{6})?Z"
BOTH_HELD = """\
NAME            VERSION   SUBNET        ALLOCATED-IP-COUNT   TOTAL-IP-COUNT   DEFAULT   DISABLE
test-ippool-6   4         10.6.0.0/16   1                    10               false     false
test-ippool-7   4         10.7.0.0/16   1                    10               false     false
"""
ONE_HELD = BOTH_HELD.replace("10.6.0.0/16   1 ", "10.6.0.0/16   0 ")
ALLOCATIONS = """\
POD                      INTERFACE   IP               POOL            NODE                SINCE
default/test-app-j9ftl   eth0        10.6.168.60/16   test-ippool-6   controller-node-1   TIME
default/test-app-nkq5h   eth0        10.7.168.60/16   test-ippool-7   worker-node-1       TIME
"""
SMALL = """
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: small-6}
spec:
  subnet: 10.6.0.0/16
  ips: [10.6.200.1]
  gateway: 10.6.0.1
  nodeAffinity: {matchLabels: {node-subnet: subnet-6}}
"""
PODS = """
---
apiVersion: v1
kind: Pod
metadata:
  name: %s
  namespace: default
  uid: uid-%s
  annotations: {ipam.spidernet.io/ippool: '{"ipv4": [%s]}'}
spec: {nodeName: %s, containers: [{name: app, image: app}]}
"""


def a_pod(name: str, node: str, *pools: str) -> str:
    """A pod that lists these pools, as a user writes it."""
    return PODS % (name, name, ", ".join(f'"{pool}"' for pool in pools), node)


def sandbox(name: str) -> Sandbox:
    return Sandbox(f"sandbox-{name}", pod=name, uid=f"uid-{name}")


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """The scenario's folder, as a user copies it."""
    return Path(shutil.copytree(SCENARIO, tmp_path / "cluster"))


@pytest.fixture
def agent(plugin: Path, cluster: Path, tmp_path: Path, database: Database) -> Iterator[RunningAgent]:
    """An agent that serves both nodes."""
    with RunningAgent(plugin, cluster, tmp_path / "state", database.url) as running:
        yield running


def journal(database: Database) -> Sequence[Row[tuple[object, ...]]]:
    """Every event, in order."""
    with database.engine(writes=False).connect() as connection:
        return connection.execute(select(tables.event).order_by(tables.event.c.tx, tables.event.c.position)).all()


def held(database: Database) -> set[tuple[str, str, str | None, str | None]]:
    """Address, pool, node and container of each allocation, as the tables say."""
    query = select(tables.address, tables.pool.c.name).join(tables.pool, tables.pool.c.id == tables.address.c.pool)
    with database.engine(writes=False).connect() as connection:
        rows = connection.execute(query.where(tables.address.c.held)).all()
    return {(addresses.text(row.ip), row.name, row.node, row.container) for row in rows}


def of_addresses(database: Database) -> list[tuple[str, str, int]]:
    """Each address's events: type, address, step."""
    events = [row for row in journal(database) if row.ip is not None]
    return [(row.type, addresses.text(row.ip), row.step) for row in events]


def leaves(cluster: Path, name: str) -> None:
    """The pod's document is taken out of its file, which is replaced."""
    path, new = cluster / "cluster.yaml", cluster / ".new"
    documents = path.read_text().split("---\n")
    new.write_text("---\n".join(each for each in documents if f"name: {name}\n" not in each))
    new.replace(path)


# The README's promises ---------------------------------------------------------------------------


def test_each_pod_gets_an_address_of_its_own_nodes_subnet_from_one_list_of_pools(
    agent: RunningAgent, database: Database
) -> None:
    answers = {pod: agent.add(pod).document for pod in (SIX, SEVEN)}
    assert answers[SIX] == {
        "cniVersion": "1.0.0",
        "ips": [{"address": "10.6.168.60/16", "gateway": "10.6.0.1"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.6.0.1"}],
        "dns": {},
    }
    assert answers[SEVEN]["ips"] == [{"address": "10.7.168.60/16", "gateway": "10.7.0.1"}]
    assert answers[SEVEN]["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.7.0.1"}]
    assert held(database) == {
        ("10.6.168.60", "test-ippool-6", "controller-node-1", "sandbox-6"),
        ("10.7.168.60", "test-ippool-7", "worker-node-1", "sandbox-7"),
    }


def test_the_tables_on_the_terminal_are_those_that_the_scenario_expects(agent: RunningAgent) -> None:
    agent.add(SIX)
    agent.add(SEVEN)
    assert agent.ask("get", "pools").text == BOTH_HELD
    assert re.sub(TIME, "TIME", agent.ask("get", "allocations").text) == ALLOCATIONS


def test_the_journal_tells_the_whole_story_in_order(agent: RunningAgent, cluster: Path, database: Database) -> None:
    agent.add(SIX)
    agent.add(SEVEN)
    leaves(cluster, SIX.pod)
    assert agent.delete(SIX).status == 0
    assert of_addresses(database) == [
        ("address.allocated", "10.6.168.60", 1),
        ("address.allocated", "10.7.168.60", 1),
        ("address.released", "10.6.168.60", 2),
    ]
    allocated, _, released = [row for row in journal(database) if row.ip is not None]
    assert (allocated.node, allocated.container, allocated.interface) == ("controller-node-1", "sandbox-6", "eth0")
    assert (allocated.cause, released.cause) == ("add", "del")
    assert allocated.holding == released.holding == 1
    assert '"seen":"no pod of this name"' in released.data
    assert agent.ask("verify").status == 0


def test_a_pod_that_left_frees_its_address_and_its_counts_while_the_other_keeps_its_own(
    agent: RunningAgent, cluster: Path, database: Database
) -> None:
    agent.add(SIX)
    agent.add(SEVEN)
    leaves(cluster, SIX.pod)
    assert (agent.delete(SIX).status, agent.delete(SIX).status) == (0, 0)
    assert held(database) == {("10.7.168.60", "test-ippool-7", "worker-node-1", "sandbox-7")}
    assert agent.ask("get", "pools").text == ONE_HELD


def test_the_audit_names_the_holder_then_and_nobody_now(agent: RunningAgent, cluster: Path) -> None:
    agent.add(SIX)
    then = agent.ask("get", "allocations", "-o", "json").document["items"][0]["since"]
    leaves(cluster, SIX.pod)
    agent.delete(SIX)
    before = agent.ask("who-held", "10.6.168.60", "--at", then)
    now = agent.ask("who-held", "10.6.168.60")
    assert (before.status, now.status) == (0, 1)
    assert before.text.splitlines()[1].split()[:6] == [
        "10.6.168.60", "held", "default/test-app-j9ftl", "eth0", "test-ippool-6", "controller-node-1",
    ]  # fmt: skip
    assert now.text.splitlines()[1].split()[:2] == ["10.6.168.60", "cooling"]
    history = agent.ask("history", "10.6.168.60").text.splitlines()
    assert history[1].split()[:2] == ["10.6.168.60", "default/test-app-j9ftl"]
    assert history[1].split()[5] == then


def test_a_sandbox_that_is_made_again_gets_its_pods_address_again(agent: RunningAgent, database: Database) -> None:
    """The cluster still shows the pod: its DEL only unbinds, and nobody else gets the address meanwhile."""
    first = agent.add(SIX)
    assert agent.delete(SIX).status == 0
    assert held(database) == {("10.6.168.60", "test-ippool-6", None, None)}
    again = agent.add(Sandbox("sandbox-6b", pod=SIX.pod, uid=SIX.uid))
    assert again.document == first.document
    assert [kind for kind, *_ in of_addresses(database)] == ["address.allocated", "address.unbound", "address.rebound"]


# Falling back ------------------------------------------------------------------------------------


def test_a_pool_of_the_other_zone_is_passed_over_by_its_node_affinity(
    plugin: Path, cluster: Path, tmp_path: Path, database: Database
) -> None:
    """The order of the list does not matter for that: each zone's own pool is the other's second choice."""
    pods = [
        a_pod(f"{node}-{first}", f"{node}-1", f"test-ippool-{first}", f"test-ippool-{second}")
        for node in ("controller-node", "worker-node")
        for first, second in ((6, 7), (7, 6))
    ]
    (cluster / "more.yaml").write_text("".join(pods))
    with RunningAgent(plugin, cluster, tmp_path / "state", database.url) as agent:
        got = {
            name: agent.add(sandbox(name)).addresses[0].split(".")[1]
            for name in ("controller-node-6", "controller-node-7", "worker-node-6", "worker-node-7")
        }
    assert got == {"controller-node-6": "6", "controller-node-7": "6", "worker-node-6": "7", "worker-node-7": "7"}


def test_a_pod_whose_only_pool_belongs_to_the_other_zone_is_refused_and_can_learn_why(
    plugin: Path, cluster: Path, tmp_path: Path, database: Database
) -> None:
    (cluster / "more.yaml").write_text(a_pod("lost", "worker-node-1", "test-ippool-6"))
    with RunningAgent(plugin, cluster, tmp_path / "state", database.url) as agent:
        refused = agent.add(sandbox("lost"))
        explained = agent.ask("explain", "lost")
        assert agent.ask("verify").status == 0
    assert refused.code == 100
    assert refused.document["details"] == "test-ippool-6: unmatched Node affinity of IPPool test-ippool-6"
    assert held(database) == set()
    assert explained.status == 0
    assert "passed over: unmatched Node affinity of IPPool test-ippool-6" in explained.text
    assert [row.type for row in journal(database)].count("allocation.refused") == 1


def test_when_the_first_pool_is_full_the_second_one_of_the_list_gives(
    plugin: Path, cluster: Path, tmp_path: Path, database: Database
) -> None:
    names = ("first", "second", "third")
    pods = [a_pod(name, "controller-node-1", "small-6", "test-ippool-7", "test-ippool-6") for name in names]
    (cluster / "more.yaml").write_text(SMALL + "".join(pods))
    with RunningAgent(plugin, cluster, tmp_path / "state", database.url) as agent:
        got = [agent.add(sandbox(name)).addresses for name in names]
        printed = agent.ask("get", "pools").text.splitlines()
    assert got == [["10.6.200.1/16"], ["10.6.168.60/16"], ["10.6.168.61/16"]]
    assert [line.split()[:5] for line in printed[1:]] == [
        ["small-6", "4", "10.6.0.0/16", "1", "1"],
        ["test-ippool-6", "4", "10.6.0.0/16", "2", "10"],
        ["test-ippool-7", "4", "10.7.0.0/16", "0", "10"],
    ]


def test_when_every_pool_that_fits_is_full_the_refusal_names_what_was_tried_and_what_was_not(
    plugin: Path, cluster: Path, tmp_path: Path, database: Database
) -> None:
    pods = [a_pod(name, "controller-node-1", "test-ippool-7", "small-6") for name in ("lucky", "late")]
    (cluster / "more.yaml").write_text(SMALL + "".join(pods))
    with RunningAgent(plugin, cluster, tmp_path / "state", database.url) as agent:
        assert agent.add(sandbox("lucky")).addresses == ["10.6.200.1/16"]
        refused = agent.add(sandbox("late"))
    assert refused.code == 101
    assert set(refused.document["details"].split("; ")) == {
        "small-6: tried",
        "test-ippool-7: unmatched Node affinity of IPPool test-ippool-7",
    }
