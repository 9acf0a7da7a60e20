"""GC is one DEL by the same rules for each binding that the runtime's list does not show and that is old enough."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cni.call import Attachment, CniCall, Command
from cni.facts import PodFacts
from cni.planning import GC_AGE_SECONDS_MIN, NANOSECONDS, NODES_OWN, collect, collected
from ledger import dialects
from ledger.addresses import Ip
from ledger.claims import CONTAINER, POD, Claim, Subject
from ledger.images import UNBOUND, Address
from ledger.requests import Done
from ledger.store import Ledger, Settings
from ledger.tables import address
from tests.acts import NODE, Pod, a_pool, define, given, one
from tests.agents import Sandbox
from tests.conftest import Database
from tests.test_agent import A, Agents, agents, cluster, held, pod, raw, until, write

__all__ = ["agents", "cluster"]

NOW = 1_000 * NANOSECONDS
MIRROR = "kubernetes.io/config.hash: abc, kubernetes.io/config.mirror: abc"


def call(*there: tuple[str, str]) -> CniCall:
    listed = tuple(Attachment(containerID=container, ifname=interface) for container, interface in there)
    return CniCall(Command.GC, "1.1.0", "net", NOW, attachments=listed)


def bound(container: str = "c1", interface: str = "eth0", kind: str = POD) -> Address:
    """A row that this container speaks for."""
    claim = Claim("here", kind, "default", "web", "u1", interface, 4)
    row = Address(Ip(1), 1, True, False, 0, 1, 0, 1, claim.key, b"s", **UNBOUND, result="{}")
    return row._replace(container=container, network="net", node="node-1", bound_at=0, stamp=0)


def test_what_is_not_listed_is_stale() -> None:
    rows = [bound("gone"), bound("listed"), bound("listed", "net1")]
    assert collect(call(("listed", "eth0")), rows) == [rows[0], rows[2]]


@pytest.mark.parametrize("ahead", [-3_600, 3_600])
def test_how_old_a_binding_is_the_databases_clock_says_whatever_the_nodes_does(database: Database, ahead: int) -> None:
    ledger = Ledger(database.engine(), Settings(doubt_seconds=0))
    define(ledger, a_pool("a", "10.1.0.1"))
    given(ledger, replace(Pod(), stamp=time.time_ns() + ahead * NANOSECONDS))
    assert ledger.bound_on(NODE, "net", 1_800) == []
    assert [row.container for row in ledger.bound_on(NODE, "net", 0)] == ["c1"]


def test_a_fixed_claim_is_unbound_and_what_is_unbound_gc_never_sees(database: Database) -> None:
    ledger = Ledger(database.engine(), Settings(doubt_seconds=0))
    define(ledger, a_pool("a", "10.1.0.1"))
    given(ledger, Pod(uid=""))
    [row] = ledger.bound_on(NODE, "net", 0)
    assert one(ledger, collected(call(), row, None, subject())) == Done(unbound=1)
    assert ledger.bound_on(NODE, "net", 0) == []
    assert ledger.held(row.ip) is not None


def subject(owner: str = "") -> Subject:
    return Subject("here", "default", "web", "u1", owner)


def shown(uid: str = "u1", *, alive: bool = True, static: bool = False) -> PodFacts:
    annotations = {"kubernetes.io/config.mirror": "abc"} if static else {}
    return PodFacts("default", "web", uid, "node-1", annotations=annotations, alive=alive)


@pytest.mark.parametrize(("pod", "names", "alive", "static"), [
    (shown(), subject(), "u1", False),
    (shown(alive=False), subject(), "", False),
    (shown("u2"), subject(), "u2", False),
    (None, subject(), "", False),
    (None, subject("apps/v1/ReplicaSet/web"), "", False),
    (shown(static=True), subject(f"{NODES_OWN}node-1"), "u1", True),
    (shown(alive=False, static=True), subject(f"{NODES_OWN}node-1"), "", True),
    (None, subject(f"{NODES_OWN}node-1"), "", True),
    (shown("u2", static=True), subject(), "u2", False),  # another pod of its name says nothing about this one
    (shown("u2", alive=False, static=True), subject(), "", False),
    (shown("u2", alive=False), subject(f"{NODES_OWN}node-1"), "", True),
    (shown(static=True), subject(), "u1", True),
    (shown(), subject(f"{NODES_OWN}node-1"), "u1", False),
    (None, None, "", True),  # whoever's names were removed may be one
])  # fmt: skip
def test_a_stale_binding_gets_the_del_that_its_pod_would_get(
    pod: PodFacts | None, names: Subject | None, alive: str, static: bool
) -> None:
    release = collected(call(), bound(), pod, names)
    assert release.alive == alive
    assert (release.sent_uid == "u1") is not static
    assert release.span[0] == "here|Pod|default|web|"
    assert release.evidence["seen"]


@pytest.mark.parametrize("names", [subject(), None])
def test_a_stale_container_outside_kubernetes_is_freed_alone(names: Subject | None) -> None:
    release = collected(call(), bound(kind=CONTAINER), None, names)
    assert (release.alive, release.sent_uid, release.span[0]) == ("", "u1", "here|Container|default|web|u1|")


def test_gc_frees_what_a_del_would_free_and_keeps_what_it_would_keep(
    agents: Agents, cluster: Path, database: Database
) -> None:
    both = json.dumps([{"interface": "eth0", "ipv4": ["p"]}, {"interface": "net1", "ipv4": ["p"]}])
    ended = pod("web-0", "uid-0", annotations=f"ipam.spidernet.io/ippools: '{both}'")
    write(cluster, "pods.yaml", ended + pod("static", "uid-s", annotations=MIRROR))
    agent = agents("--node", "node-1", "--gc-min-age", "0")
    agent.add(A)
    agent.add(Sandbox("s1", pod="static", uid="abc"))
    assert held(database) == {"40a09000a": "a1", "40a09000b": None, "40a09000c": "s1"}
    write(cluster, "pods.yaml", "# gone\n")
    assert agent.collect().code == 0
    assert held(database) == {"40a09000c": None}, "the pod's other claim went with it; a static pod is only unbound"


def test_gc_frees_nobody_who_may_stand_in_a_file_that_cannot_be_read(
    agents: Agents, cluster: Path, database: Database
) -> None:
    write(cluster, "pods.yaml", pod("web-0", "uid-0"))
    write(cluster, "more.yaml", pod("web-1", "uid-1"))
    agent = agents("--node", "node-1", "--gc-min-age", "0")
    for box in (A, Sandbox("b1", pod="web-1", uid="uid-1")):
        agent.add(box)
    write(cluster, "more.yaml", pod("web-1", "uid-1", more=", deletionTimestamp: '2024-01-01T00:00:00Z'"))
    (cluster / "pods.yaml").rename(cluster / "moved.txt")
    (cluster / "other.yaml").symlink_to("nowhere")
    answers = []

    def refused() -> bool:
        answers.append(agent.collect())
        return "b1" not in held(database).values()

    until(refused)
    assert [answer.code for answer in answers] == [11] * len(answers)
    assert "proves nothing" in answers[-1].document["msg"]
    assert list(held(database).values()) == ["a1"]
    (cluster / "other.yaml").unlink()
    until(lambda: agent.collect().code == 0)
    assert held(database) == {}


def test_gc_leaves_alone_what_was_added_since_it_began(agents: Agents, database: Database) -> None:
    agent, box = agents("--node", "node-1", "--gc-min-age", "0"), Sandbox("c1")
    before = time.time_ns()
    assert agent.add(box).code == 0
    assert raw(agent, box, "GC", before, cniVersion="1.1.0")[0] == 200
    assert list(held(database).values()) == ["c1"]
    assert raw(agent, box, "GC", time.time_ns(), cniVersion="1.1.0")[0] == 200
    assert held(database) == {}


def test_without_another_word_a_binding_is_young_for_a_minute(agents: Agents, database: Database) -> None:
    agent = agents("--node", "node-1")
    assert agent.add(Sandbox("c1")).code == 0
    for age, holders in ((GC_AGE_SECONDS_MIN / 2, ["c1"]), (GC_AGE_SECONDS_MIN, [])):
        bound_since(database, age)
        assert agent.collect().code == 0
        assert list(held(database).values()) == holders
    assert GC_AGE_SECONDS_MIN == 60


def bound_since(database: Database, seconds: float) -> None:
    """As if every container had spoken for its address for so long."""
    bound_at = dialects.clock() - int(seconds * 1_000_000)
    with database.engine().begin() as connection:
        connection.execute(address.update().where(address.c.held).values(bound_at=bound_at, step=address.c.step + 1))
