"""What an agent remembers of its node, which ADDs come too late by it, and which pod a call is about."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from cni.agent import DELETIONS_REMEMBERED_MAX, Seen
from cni.call import CniCall, Command, PodName
from cni.errors import Code
from cni.facts import CONFIG_HASH_ANNOTATION, PodFacts, Settings
from cni.planning import ADD_AGE_SECONDS_MAX, NANOSECONDS, Order, is_this_pod, release, too_late

BEGAN = 1_000 * NANOSECONDS
OLD = BEGAN + ADD_AGE_SECONDS_MAX * NANOSECONDS
WEB = PodFacts("default", "web", "u1", "node-1")
ADD = CniCall(Command.ADD, "1.1.0", "net", BEGAN, container="c1")


@pytest.mark.parametrize(("order", "why"), [
    (Order(started=BEGAN, now=BEGAN), None),
    (Order(started=BEGAN + 1, now=BEGAN), "began before the agent did"),
    (Order(started=0, now=BEGAN, deleted=BEGAN), None),
    (Order(started=0, now=BEGAN, deleted=BEGAN + 1), "c1 has been deleted since this ADD began"),
    (Order(started=0, now=OLD), None),
    (Order(started=0, now=OLD + 1), "began more than 120 seconds ago"),
])  # fmt: skip
def test_an_add_that_something_newer_may_have_overtaken_is_not_served(order: Order, why: str | None) -> None:
    late = too_late(ADD, order)
    assert (late is None) == (why is None)
    if late is not None and why is not None:
        assert (late.code, why in str(late), str(late).endswith("try again")) == (Code.TRY_AGAIN, True, True)


@pytest.mark.parametrize(("sent", "config_hash", "same"), [
    ("u1", "", True), ("", "", True), ("u2", "", False),
    ("u1", "abc", True), ("", "abc", True), ("abc", "abc", True), ("u2", "abc", False),
])  # fmt: skip
def test_a_pod_is_known_by_its_uid_its_hash_or_its_name_alone(sent: str, config_hash: str, same: bool) -> None:
    annotations = {CONFIG_HASH_ANNOTATION: config_hash} if config_hash else {}
    assert is_this_pod(replace(ADD, pod=PodName("default", "web", sent)), replace(WEB, annotations=annotations)) == same


@pytest.mark.parametrize(("shown", "alive"), [(WEB, "u1"), (replace(WEB, alive=False), ""), (None, "")])
def test_a_del_finds_alive_only_a_pod_that_has_not_ended(shown: PodFacts | None, alive: str) -> None:
    call = replace(ADD, command=Command.DEL, pod=PodName("default", "web", "u1"))
    assert release(call, shown, "node-1", Settings("here")).alive == alive


def test_dels_that_come_in_another_order_leave_the_latest_in_memory() -> None:
    seen = Seen(time.time_ns)
    for start in (5, 9, 7):
        seen.deleted(replace(ADD, command=Command.DEL, start=start))
    assert seen.order(ADD).deleted == 9
    assert seen.order(replace(ADD, container="c2")).deleted == 0


def test_of_many_dels_the_longest_unheard_of_is_forgotten() -> None:
    seen = Seen(time.time_ns)
    containers = ["c1", "c2", *(f"more-{number}" for number in range(DELETIONS_REMEMBERED_MAX - 2)), "c1", "new"]
    for start, container in enumerate(containers, start=1):
        seen.deleted(replace(ADD, container=container, start=start))
    remembered = {name: seen.order(replace(ADD, container=name)).deleted for name in ("c1", "c2", "more-0", "new")}
    assert remembered == {"c1": len(containers) - 1, "c2": 0, "more-0": 3, "new": len(containers)}


def test_an_agent_began_when_it_was_made_and_now_is_now() -> None:
    before = time.time_ns()
    seen = Seen(time.time_ns)
    order = seen.order(ADD)
    assert before <= order.started <= order.now <= time.time_ns()
