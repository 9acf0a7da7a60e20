"""The agent as a node sees it: the real process, called through the real plugin, on both databases."""

from __future__ import annotations

import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from cni.call import VERSIONS
from ledger.tables import address, event
from tests.agents import CONFIGURATION, RunningAgent, Sandbox
from tests.conftest import Database

NODES = """
apiVersion: v1
kind: Node
metadata: {name: node-1, labels: {zone: a}}
---
apiVersion: v1
kind: Node
metadata: {name: node-2, labels: {zone: b}}
---
apiVersion: v1
kind: Namespace
metadata: {name: default}
"""
POOL = """
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {{name: {name}, annotations: {{ipam.spiderledger.io/cooling: 0s}}}}
spec: {{subnet: {subnet}, ips: [{ips}], gateway: {gateway}, default: true}}
"""
P = POOL.format(name="p", subnet="10.9.0.0/24", ips="10.9.0.10-10.9.0.19", gateway="10.9.0.1")
RESERVED = """
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderReservedIP
metadata: {{name: r}}
spec: {{ips: [{ips}]}}
"""
SPOOL_PAUSE = 0.05
PATIENCE_SECONDS = 30
"""How long a test waits for what must come; nothing is measured by it."""

Agents = Callable[..., RunningAgent]


def pod(name: str, uid: str = "", node: str = "node-1", more: str = "", annotations: str = "") -> str:
    said = f", annotations: {{{annotations}}}" if annotations else ""
    uid = f", uid: {uid}" if uid else ""
    return (
        f"---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default{uid}{said}{more}}}\n"
        f"spec: {{nodeName: {node}, containers: [{{name: c, image: i}}]}}\n"
    )


def write(folder: Path, name: str, text: str) -> None:
    """Replace a file of the cluster's folder, as an editor does."""
    temporary = folder / f".{name}.tmp"
    temporary.write_text(text)
    temporary.replace(folder / name)


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    folder = tmp_path / "cluster"
    folder.mkdir()
    write(folder, "nodes.yaml", NODES)
    write(folder, "pool.yaml", P)
    return folder


@pytest.fixture
def agents(plugin: Path, tmp_path: Path, cluster: Path, database: Database) -> Iterator[Agents]:
    """Start agents on the test's folder and database; all end with the test."""
    running: list[RunningAgent] = []

    def start(*arguments: str, **changes: Any) -> RunningAgent:
        state = tmp_path / f"state{len(running)}"
        settings: dict[str, Any] = {
            "cluster": cluster,
            "database": database.url,
            "arguments": ("--doubt", "0", *arguments),
        }
        agent = RunningAgent(plugin, state=state, **{**settings, **changes})
        running.append(agent)
        return agent.__enter__()

    yield start
    for agent in running:
        agent.__exit__(None, None, None)


def held(database: Database) -> dict[str, str | None]:
    """Who holds what: address in hexadecimal -> container."""
    with database.engine(writes=False).connect() as connection:
        rows = connection.execute(select(address.c.ip, address.c.container).where(address.c.held)).all()
    return {f"{row.ip:x}": row.container for row in rows}


def count(database: Database, type_: str) -> int:
    with database.engine(writes=False).connect() as connection:
        query = select(func.count()).select_from(event).where(event.c.type == type_)
        return int(connection.execute(query).scalar_one())


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(SPOOL_PAUSE)


A = Sandbox("a1", pod="web-0", uid="uid-0")
A_AGAIN = Sandbox("a2", pod="web-0", uid="uid-0")


# Results and errors -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_gets_its_shape_and_each_verb_its_answer(agents: Agents, cluster: Path, version: str) -> None:
    write(cluster, "pods.yaml", pod("web-0", "uid-0"))
    agent = agents()
    added = agent.add(A, cniVersion=version)
    [ip] = added.document["ips"]
    assert (ip["address"], ip["gateway"], ip.get("version")) == (
        "10.9.0.10/24", "10.9.0.1", "4" if version < "1" else None,
    )  # fmt: skip
    assert added.document["cniVersion"] == version
    assert {"dst": "0.0.0.0/0", "gw": "10.9.0.1"} in added.document["routes"]
    checked = agent.check(A, added, cniVersion=version)
    assert checked.code == (1 if version < "0.4.0" else 0)
    assert agent.call("STATUS", {}, {**CONFIGURATION, "cniVersion": version}).code == (0 if version == "1.1.0" else 1)
    assert agent.collect(A, cniVersion=version).code == (106 if version == "1.1.0" else 1)
    assert agent.delete(A, cniVersion=version).out == b""
    assert agent.call("VERSION", {}, {**CONFIGURATION, "cniVersion": version}).document["cniVersion"] == version


@pytest.mark.parametrize(("code", "environment", "configuration"), [
    (1, {}, {"cniVersion": "0.2.0"}),
    (4, {"CNI_IFNAME": ""}, {}),
    (4, {"CNI_CONTAINERID": "../x"}, {}),
    (4, {"CNI_ARGS": "K8S_POD_NAME"}, {}),
    (7, {}, {"name": "../net"}),
    (7, {}, {"ipam": {"type": "spiderpool", "default_ipv4_ippool": 3}}),
    (6, {}, b"[1, 2"),
    (11, {"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=nobody;K8S_POD_UID=u"}, {}),
    (105, {"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=other"}, {}),
    (102, {}, {"runtimeConfig": {"ips": ["10.9.0.15/24"]}}),
    (103, {}, {"runtimeConfig": {"ips": ["10.99.0.1/24"]}}),
    (104, {}, {"ipam": {"type": "spiderpool", "default_ipv4_ippool": ["p", "p"]}}),
    (101, {}, {"ipam": {"type": "spiderpool", "default_ipv4_ippool": ["full"]}}),
    (100, {}, {"ipam": {"type": "spiderpool", "default_ipv4_ippool": ["elsewhere"]}}),
])  # fmt: skip
def test_each_error_has_its_code_and_says_what_to_do(
    agents: Agents, cluster: Path, code: int, environment: dict[str, str], configuration: dict[str, Any] | bytes
) -> None:
    write(cluster, "pods.yaml", pod("web-0", "uid-0"))
    write(cluster, "full.yaml", POOL.format(name="full", subnet="10.8.0.0/24", ips="", gateway="10.8.0.1"))
    other = POOL.format(name="elsewhere", subnet="10.7.0.0/24", ips="10.7.0.5", gateway="10.7.0.1")
    write(cluster, "elsewhere.yaml", other.replace("spec: {", "spec: {nodeName: [node-9], "))
    write(cluster, "reserved.yaml", RESERVED.format(ips="10.9.0.15"))
    agent = agents()
    document = configuration if isinstance(configuration, bytes) else {**CONFIGURATION, **configuration}
    answer = agent.call("ADD", {**A.environment, **environment}, document)
    assert answer.code == code, answer
    assert answer.document["msg"]
    assert answer.err == b""


def test_a_refusal_names_every_candidate_and_leaves_one_trace(
    agents: Agents, cluster: Path, database: Database
) -> None:
    write(cluster, "pods.yaml", pod("web-0", "uid-0", annotations='ipam.spidernet.io/ippool: \'{"ipv4":["q","r"]}\''))
    for name, third in (("q", 7), ("r", 6)):
        text = POOL.format(name=name, subnet=f"10.{third}.0.0/24", ips=f"10.{third}.0.5", gateway=f"10.{third}.0.1")
        write(cluster, f"{name}.yaml", text.replace("spec: {", "spec: {disable: true, "))
    agent = agents()
    for _ in range(3):
        answer = agent.add(A)
        assert answer.code == 100
        assert "spiderpool IP allocation error" in answer.document["msg"]
        assert "disabled IPPool q" in str(answer.document)
        assert "disabled IPPool r" in str(answer.document)
    assert count(database, "allocation.refused") == 1


# Claims and containers ----------------------------------------------------------------------------


def test_the_same_container_gets_the_same_answer_whatever_became_of_the_pool(
    agents: Agents, cluster: Path, database: Database
) -> None:
    write(cluster, "pods.yaml", pod("web-0", "uid-0"))
    agent = agents()
    first = agent.add(A)
    write(cluster, "pool.yaml", P.replace("spec: {", "spec: {disable: true, "))
    until(lambda: count(database, "pool.redefined") == 1)
    assert agent.add(A).out == first.out
    assert agent.add(A_AGAIN).out == first.out, "a new container of the holder"
    (cluster / "pool.yaml").unlink()
    until(lambda: count(database, "pool.closed") == 1)
    assert agent.add(A_AGAIN).out == first.out
    assert count(database, "address.allocated") == 1


def test_a_pool_that_was_made_anew_under_its_name_comes_once_the_old_one_is_empty(
    agents: Agents, cluster: Path, database: Database
) -> None:
    write(cluster, "pods.yaml", pod("web-0", "uid-0"))
    agent = agents()
    agent.add(A)
    write(cluster, "pool.yaml", P.replace("{name: p,", "{name: p, uid: another,"))
    until(lambda: count(database, "pool.closed") == 1)
    write(cluster, "pods.yaml", "# nobody\n---\n" + pod("other", "uid-9"))
    assert agent.delete(A).code == 0
    until(lambda: count(database, "pool.defined") == 2)
    assert agent.add(Sandbox("b1", pod="other", uid="uid-9")).code == 0


def test_a_new_container_keeps_the_pods_address_and_the_old_ones_del_touches_nothing(
    agents: Agents, cluster: Path, database: Database
) -> None:
    write(cluster, "pods.yaml", pod("web-0", "uid-0"))
    agent = agents()
    first = agent.add(A)
    assert agent.add(A_AGAIN).addresses == first.addresses
    assert agent.delete(A).code == 0
    assert list(held(database).values()) == ["a2"]
    assert agent.check(A_AGAIN, first).code == 0
    assert agent.check(A, first).code == 107
    assert (count(database, "address.rebound"), count(database, "address.unbound")) == (1, 0)


def test_a_live_pods_del_keeps_its_address_and_a_deleted_pods_frees_it(
    agents: Agents, cluster: Path, database: Database
) -> None:
    write(cluster, "pods.yaml", pod("web-0", "uid-0") + pod("web-1", "uid-1"))
    agent = agents()
    first = agent.add(A)
    assert agent.delete(A).code == 0
    assert list(held(database).values()) == [None]
    assert agent.add(Sandbox("b1", pod="web-1", uid="uid-1")).addresses != first.addresses
    assert agent.add(A_AGAIN).addresses == first.addresses
    write(cluster, "pods.yaml", pod("web-1", "uid-1"))
    assert agent.delete(Sandbox("a2", pod="web-0", uid="uid-0", netns="")).code == 0
    assert list(held(database).values()) == ["b1"]
    assert agent.delete(A_AGAIN).code == 0, "repeated"
    assert agent.delete(Sandbox("never", pod="web-0", uid="uid-0")).code == 0, "unknown"


def test_check_says_after_each_act_whether_the_container_has_what_its_add_was_told(
    agents: Agents, cluster: Path, database: Database
) -> None:
    write(cluster, "pods.yaml", pod("web-0", "uid-0"))
    agent = agents()
    added = agent.add(A)
    assert agent.check(A, added).code == 0
    assert agent.add(A).out == added.out
    assert agent.check(A, added).code == 0, "added again"
    without_netns = {name: value for name, value in A.environment.items() if name != "CNI_NETNS"}
    assert agent.call("DEL", without_netns).code == 0
    assert list(held(database).values()) == [None]
    assert agent.check(A, added).code == 107, "its pod lives and keeps the address; the container has it no more"
    assert agent.add(A_AGAIN).out == added.out
    assert (agent.check(A_AGAIN, added).code, agent.check(A, added).code) == (0, 107)
    write(cluster, "pods.yaml", pod("web-1", "uid-1"))
    assert agent.delete(A_AGAIN).code == 0
    assert agent.check(A_AGAIN, added).code == 11, "there is no such pod"
    write(cluster, "pods.yaml", pod("web-0", "uid-0"))
    assert agent.check(A_AGAIN, added).code == 107


def test_a_late_del_frees_what_its_ended_pod_kept_though_its_name_is_anothers_now(
    agents: Agents, cluster: Path, database: Database
) -> None:
    write(cluster, "pods.yaml", pod("web-0", "uid-0"))
    agent = agents()
    agent.add(A)
    assert agent.delete(A).code == 0
    assert list(held(database).values()) == [None], "its pod lived"
    write(cluster, "pods.yaml", pod("web-0", "uid-new"))
    agent.add(Sandbox("n1", pod="web-0", uid="uid-new"))
    assert agent.delete(A).code == 0
    assert list(held(database).values()) == ["n1"]


def test_a_pod_that_came_again_under_its_name_is_another_claim(
    agents: Agents, cluster: Path, database: Database
) -> None:
    write(cluster, "pods.yaml", pod("web-0", "uid-0"))
    agent = agents()
    first = agent.add(A)
    # Read and answered at once: the agent's memory still shows the old pod and must look again.
    write(cluster, "pods.yaml", pod("web-0", "uid-new"))
    second = agent.add(Sandbox("n1", pod="web-0", uid="uid-new"))
    assert second.addresses != first.addresses
    assert agent.add(Sandbox("a3", pod="web-0", uid="uid-0")).code == 105, "the old pod's late ADD"
    assert agent.delete(A).code == 0
    assert list(held(database).values()) == ["n1"]


def test_a_static_pod_is_known_by_its_name_and_its_missing_mirror_frees_nothing(
    agents: Agents, cluster: Path, database: Database
) -> None:
    mirror = "kubernetes.io/config.hash: abc, kubernetes.io/config.mirror: abc"
    write(cluster, "pods.yaml", pod("web-0", "uid-0", annotations=mirror))
    agent = agents()
    static = Sandbox("s1", pod="web-0", uid="abc")
    added = agent.add(static)
    assert added.code == 0
    write(cluster, "pods.yaml", pod("other", "uid-9"))
    assert agent.delete(static).code == 0
    assert list(held(database).values()) == [None], "unbound, not freed"
    write(cluster, "pods.yaml", pod("web-0", "uid-0", annotations=mirror))
    assert agent.add(Sandbox("s2", pod="web-0", uid="abc")).addresses == added.addresses


def test_two_interfaces_of_a_pod_get_two_addresses_all_or_nothing(
    agents: Agents, cluster: Path, database: Database
) -> None:
    both = json.dumps([{"interface": "eth0", "ipv4": ["p"]}, {"interface": "net1", "ipv4": ["p"]}])
    write(cluster, "pods.yaml", pod("web-0", "uid-0", annotations=f"ipam.spidernet.io/ippools: '{both}'"))
    agent = agents()
    first = agent.add(A)
    assert first.addresses == ["10.9.0.10/24"]
    assert held(database) == {"40a09000a": "a1", "40a09000b": None}
    second = agent.add(Sandbox("a1", pod="web-0", uid="uid-0", interface="net1"))
    assert second.addresses == ["10.9.0.11/24"]
    assert list(held(database).values()) == ["a1", "a1"]
    write(cluster, "pods.yaml", "# nobody\n---\n" + pod("other", "uid-9"))
    assert agent.delete(A).code == 0
    assert list(held(database).values()) == ["a1"], "net1 is bound, and its own DEL ends it"
    assert agent.delete(Sandbox("a1", pod="web-0", uid="uid-0", interface="net1")).code == 0
    assert held(database) == {}


def test_without_kubernetes_equal_container_ids_on_two_nodes_are_two_claims(
    agents: Agents, database: Database, cluster: Path
) -> None:
    if database.kind == "sqlite":
        first = agents("--node", "node-1")
        one = first.add(Sandbox("c1"))
        assert first.stop() == 0
        second = agents("--node", "node-2")
    else:
        first, second = agents("--node", "node-1"), agents("--node", "node-2")
        one = first.add(Sandbox("c1"))
    two = second.add(Sandbox("c1"))
    assert one.addresses != two.addresses
    assert second.delete(Sandbox("c1")).code == 0
    assert list(held(database)) == ["40a09000a"], "the other node's container keeps its address"


def test_a_pool_that_is_no_longer_named_is_left_and_the_pod_moves(
    agents: Agents, cluster: Path, database: Database
) -> None:
    def named(pools: str) -> str:
        return pod("web-0", "uid-0", annotations=f"ipam.spidernet.io/ippool: '{{\"ipv4\":[{pools}]}}'")

    write(cluster, "q.yaml", POOL.format(name="q", subnet="10.7.0.0/24", ips="10.7.0.5", gateway="10.7.0.1"))
    write(cluster, "pods.yaml", named('"p"'))
    agent = agents()
    assert agent.add(A).addresses == ["10.9.0.10/24"]
    write(cluster, "pods.yaml", named('"q"'))
    containers = (f"m{number}" for number in itertools.count())
    until(lambda: agent.add(Sandbox(next(containers), pod="web-0", uid="uid-0")).addresses == ["10.7.0.5/24"])
    assert list(held(database)) == ["40a070005"]
    assert count(database, "address.released") == 1


# Order on the node --------------------------------------------------------------------------------


def raw(
    agent: RunningAgent, sandbox: Sandbox, command: str, start: int, **configuration: Any
) -> tuple[int, dict[str, Any]]:
    """The plugin's request with a start stamp of our own."""
    with connected(agent) as client:
        client.sendall(requested(sandbox, command, start, **configuration))
        head, _, answer = received(client).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(answer or b"{}")


def requested(sandbox: Sandbox, command: str, start: int, **configuration: Any) -> bytes:
    variables = {"CNI_COMMAND": command, **sandbox.environment, "SPIDERLEDGER_START": str(start)}
    body = b"".join(f"{name}={value}".encode() + b"\0" for name, value in variables.items()) + b"\0"
    body += json.dumps({**CONFIGURATION, **configuration}).encode()
    return b"POST /v1/cni HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def connected(agent: RunningAgent) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(PATIENCE_SECONDS)
    client.connect(str(agent.socket))
    return client


def received(client: socket.socket) -> bytes:
    chunks = []
    while chunk := client.recv(1 << 16):
        chunks.append(chunk)
    return b"".join(chunks)


def test_late_acts_of_a_node_change_nothing(agents: Agents, cluster: Path, database: Database) -> None:
    write(cluster, "pods.yaml", pod("web-0", "uid-0"))
    agent = agents()
    assert raw(agent, A, "ADD", 1)[1]["code"] == 11, "from before the agent's start"
    earlier = time.time_ns()
    agent.add(A_AGAIN)
    assert raw(agent, A, "ADD", earlier)[1]["code"] == 11, "an older container than the one that speaks"
    write(cluster, "pods.yaml", "# gone\n")
    assert raw(agent, A_AGAIN, "DEL", earlier)[0] == 200
    assert list(held(database).values()) == ["a2"], "a DEL from before this start of the container"
    now = time.time_ns()
    assert raw(agent, A_AGAIN, "DEL", now)[0] == 200
    assert held(database) == {}
    write(cluster, "pods.yaml", pod("web-0", "uid-0"))
    assert raw(agent, A_AGAIN, "ADD", now - 1)[1]["code"] == 11, "older than a DEL of this container"
    assert held(database) == {}


# GC and STATUS ------------------------------------------------------------------------------------


def test_gc_speaks_for_its_node_and_network_and_spares_what_is_young(
    agents: Agents, cluster: Path, database: Database
) -> None:
    names = ["stale", "listed", "alive", "net", "other-node"]
    nodes = {"other-node": "node-2"}
    write(cluster, "pods.yaml", "".join(pod(name, name, nodes.get(name, "node-1")) for name in names))
    if database.kind == "postgresql":
        elsewhere = agents("--node", "node-2")
        assert elsewhere.add(Sandbox("c-other-node", pod="other-node", uid="other-node")).code == 0
    agent = agents("--node", "node-1", "--gc-min-age", "0")
    boxes = {name: Sandbox(f"c-{name}", pod=name, uid=name) for name in names[:4]}
    for name, box in boxes.items():
        assert agent.add(box, **({"name": "another-network"} if name == "net" else {})).code == 0
    write(cluster, "pods.yaml", "".join(pod(name, name) for name in ("alive",)))
    assert agent.collect(boxes["listed"]).code == 0
    containers = held(database).values()
    assert {"c-listed", "c-net"} <= set(containers)
    assert "c-stale" not in containers
    assert None in containers, "the live pod is only unbound"
    assert ("c-other-node" in containers) == (database.kind == "postgresql")
    assert agent.collect().code == 0, "an empty list is a list"
    assert "c-listed" not in held(database).values()


@pytest.mark.parametrize(("said", "node"), [(("--node", "node-1"), "node-1"), ((), "node-2")])
def test_where_a_container_is_its_agent_knows_and_where_one_serves_all_nodes_its_pod(
    agents: Agents, cluster: Path, database: Database, said: tuple[str, ...], node: str
) -> None:
    write(cluster, "pods.yaml", pod("web-0", "uid-0", "node-2"))
    assert agents(*said).add(A).code == 0
    with database.engine().connect() as connection:
        assert connection.execute(select(address.c.node)).scalar_one() == node


def test_gc_leaves_young_bindings_alone(agents: Agents, cluster: Path, database: Database) -> None:
    write(cluster, "pods.yaml", pod("web-0", "uid-0"))
    agent = agents("--node", "node-1")
    agent.add(A)
    write(cluster, "pods.yaml", "# gone\n")
    assert agent.collect().code == 0
    assert list(held(database).values()) == ["a1"]


def test_status_without_an_agent_is_error_50(plugin: Path, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    nobody = RunningAgent(plugin, None, tmp_path / "state")
    assert nobody.status().code == 50


# Survival -----------------------------------------------------------------------------------------


def test_the_socket_and_all_that_the_agent_keeps_are_its_users_alone(agents: Agents, cluster: Path) -> None:
    agent = agents()
    agent.add(Sandbox("c1"))
    for path in (agent.socket, *agent.state.iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path


GARBAGE = (
    b"\0" * 9_000,
    b"GET / HTTP/1.1\r\n\r\n",
    b"\r\n\r\n",
    b"POST /v1/cni HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    b"POST /v1/cni HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
    b"POST /v1/operator HTTP/1.1\r\nContent-Length: 3\r\n\r\n[1]",
    b"POST /v1/cni HTTP/1.1\r\nContent-Length: 5\r\n\r\n\0\0\0\0\0",
)


def test_garbage_silence_and_hang_ups_harm_nobody(agents: Agents, cluster: Path, database: Database) -> None:
    write(cluster, "pods.yaml", pod("web-0", "uid-0"))
    agent = agents()
    silent = [connected(agent) for _ in range(50)]
    for garbage in GARBAGE:
        with connected(agent) as client:
            client.sendall(garbage)
            assert received(client).startswith(b"HTTP/1.1 4")
    with connected(agent) as client:
        client.sendall(b"POST /v1/cni HTTP/1.1\r\nContent-Length: 50\r\n\r\nhalf")
    assert agent.add(A).code == 0
    for client in silent:
        client.close()
    assert list(held(database).values()) == ["a1"]


def test_a_thousand_requests_at_once_are_all_answered(agents: Agents, cluster: Path, database: Database) -> None:
    wide = POOL.format(name="p", subnet="10.9.0.0/16", ips="10.9.0.10-10.9.9.9", gateway="10.9.0.1")
    write(cluster, "pool.yaml", wide)
    agent = agents("--node", "node-1")
    answers: list[tuple[int, dict[str, Any]]] = []

    def ask(first: int) -> None:
        for number in range(first, first + 20):
            answers.append(raw(agent, Sandbox(f"c{number}"), "ADD", time.time_ns()))

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(0, 1_000, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {status for status, _ in answers} == {200}
    assert len({answer["ips"][0]["address"] for _, answer in answers}) == len(held(database)) == 1_000


def test_sigterm_finishes_what_has_come_in(agents: Agents, cluster: Path, database: Database) -> None:
    agent = agents("--node", "node-1")
    begun = [agent.begin("ADD", Sandbox(f"c{number}").environment) for number in range(8)]
    until(lambda: len(held(database)) > 0)
    assert agent.stop() == 0
    answers = [agent.finish(called) for called in begun]
    granted = [answer for answer in answers if answer.status == 0]
    assert all(answer.code == 11 for answer in answers if answer.status != 0)
    assert len(granted) == len(held(database)), "whoever has an address was told so"
    assert not agent.socket.exists()


def test_a_second_agent_on_the_same_socket_or_file_is_refused(agents: Agents, database: Database) -> None:
    agent = agents()
    second = RunningAgent(agent.plugin, agent.cluster, agent.state, agent.database, agent.arguments).launch()
    assert second.process is not None
    assert second.process.wait(PATIENCE_SECONDS) != 0
    second.process = None
    assert "another" in second.log
    assert agent.status().code == 0


def test_the_agents_memory_holds_no_secret_of_the_database_in_its_log(agents: Agents) -> None:
    agent = agents()
    agent.add(Sandbox("c1"))
    assert "postgresql://" not in agent.log
    assert os.environ.get("SPIDERLEDGER_DATABASE", "no-such-thing") not in agent.log


def test_a_pod_in_a_file_that_cannot_be_read_loses_nothing(agents: Agents, cluster: Path, database: Database) -> None:
    write(cluster, "pods.yaml", pod("web-0"))
    agent = agents()
    nameless = Sandbox("a1", pod="web-0")
    first = agent.add(nameless)
    (cluster / "pods.yaml").unlink()
    (cluster / "other.yaml").symlink_to("nowhere")
    assert agent.delete(nameless).code == 0
    assert agent.spooled == ["a1:eth0"], "what is not seen while something cannot be read proves nothing"
    (cluster / "other.yaml").unlink()
    write(cluster, "pods.yaml", pod("web-0"))
    until(lambda: agent.spooled == [])
    assert agent.add(Sandbox("a2", pod="web-0")).addresses == first.addresses
