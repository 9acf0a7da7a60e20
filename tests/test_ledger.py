"""`Ledger.act` on both databases: who gets which address, who keeps it, and what the journal says of it."""

from __future__ import annotations

import re
from collections import Counter
from itertools import groupby
from typing import Any

import pytest
from sqlalchemy import Engine, text

from ledger.addresses import parse
from ledger.claims import Subject
from ledger.database import now_us
from ledger.redefine import EXTENTS_PER_POOL, RetirePool, RetireReservation
from ledger.requests import Candidate, Done, Free, Granted, Reason, Refusal, Refuse, Reselect
from ledger.store import Ledger, Settings
from tests.acts import (
    NODE,
    Pod,
    a_pool,
    a_reservation,
    acquire,
    add,
    ask,
    check,
    close,
    counted,
    define,
    delete,
    file_of,
    given,
    granted,
    journal,
    one,
    outside,
    pods,
    reason,
    row,
    shown,
    sqlite_engine,
    story,
    want,
)
from tests.conftest import Database


@pytest.fixture
def engine(database: Database) -> Engine:
    return database.engine()


@pytest.fixture
def ledger(engine: Engine) -> Ledger:
    return Ledger(engine, Settings(doubt_seconds=0))


def small(ledger: Ledger, *ips: str, **more: Any) -> None:
    """One pool named a."""
    define(ledger, a_pool("a", *(ips or ("10.1.0.1-10.1.0.9",)), **more))


# Asking again -------------------------------------------------------------------------------------


def test_the_same_container_gets_the_same_answer_whatever_became_of_the_pool(ledger: Ledger, engine: Engine) -> None:
    define(ledger, a_pool("a", "10.1.0.1-10.1.0.9", gateway="10.1.0.254"), a_pool("b", "10.1.1.1-10.1.1.9"))
    pod = Pod()
    first = one(ledger, add(ledger.definition(), pod, "a"))
    events = len(journal(engine))
    assert one(ledger, add(ledger.definition(), pod, "a")) == first
    # Neither another list of pools nor other terms nor a closed pool change what this container was told.
    assert one(ledger, add(ledger.definition(), pod, "b")) == first
    assert len(journal(engine)) == events, "an answer given again is no event"
    define(ledger, a_pool("a", "10.1.0.1-10.1.0.9", gateway="10.1.0.253"), close("a"))
    assert one(ledger, add(ledger.definition(), pod, "b")) == first
    check(engine)


@pytest.mark.parametrize("fate", ["open", "closed", "disabled", "matches nobody"])
def test_a_new_container_keeps_the_address_whatever_became_of_the_pool(
    ledger: Ledger, engine: Engine, fate: str
) -> None:
    a, b = a_pool("a", "10.1.0.1-10.1.0.9"), a_pool("b", "10.1.1.1-10.1.1.9")
    define(ledger, a, b)
    pod = Pod()
    ip = given(ledger, pod, "a")
    if fate == "closed":
        define(ledger, close("a"))
    elif fate == "disabled":
        define(ledger, a.model_copy(update={"spec": a.spec.model_copy(update={"disable": True})}))
    definition = ledger.definition()
    one_, other = (definition.by_name[name].id for name in "ab")
    # The source names both pools; the filters left only the other.
    asked = acquire(definition, pod.new("c2"), want(pod.claim(), other, named=(one_, other)))
    assert granted(one(ledger, asked)) == [ip]
    assert story(engine, ip)[-1] == "rebound"
    assert row(engine, ip).container == "c2"
    check(engine)


def test_a_new_container_moves_only_when_its_source_no_longer_names_the_pool(ledger: Ledger, engine: Engine) -> None:
    define(ledger, a_pool("a", "10.1.0.1-10.1.0.9"), a_pool("b", "10.1.1.1-10.1.1.9"))
    pod = Pod()
    old = given(ledger, pod, "a")
    new = given(ledger, pod.new("c2"), "b")
    assert (old, new) == ("10.1.0.1", "10.1.1.1")
    moved, taken = journal(engine)[-2:]
    assert (moved.type, taken.type, moved.tx) == ("address.released", "address.allocated", taken.tx)
    assert moved.details["moved"] is True
    assert row(engine, old).claim is None
    check(engine)


def test_a_new_container_moves_to_the_address_that_it_must_have_and_not_to_one_it_would_like(
    ledger: Ledger, engine: Engine
) -> None:
    small(ledger, "10.1.0.1-10.1.0.9")
    pod = Pod()
    assert given(ledger, pod) == "10.1.0.1"
    assert given(ledger, pod.new("c2"), address="10.1.0.5") == "10.1.0.1"
    assert given(ledger, pod.new("c3"), address="10.1.0.5", exact=True) == "10.1.0.5"
    check(engine)


def test_an_address_that_nobody_holds_is_not_freed_again(ledger: Ledger, engine: Engine) -> None:
    small(ledger, "10.1.0.1")
    pod = Pod()
    ip = given(ledger, pod)
    one(ledger, delete(pod))
    assert one(ledger, Free(parse(ip), row(engine, ip).step, "ada", "operator")) == Done()
    assert story(engine, ip) == ["allocated", "released"]


def test_a_move_that_finds_no_address_leaves_the_holder_where_it_is(ledger: Ledger, engine: Engine) -> None:
    define(ledger, a_pool("a", "10.1.0.1"), a_pool("b", "10.1.1.1"))
    pod = Pod()
    ip = given(ledger, pod, "a")
    given(ledger, Pod("other", "u2", "c9"), "b")
    assert reason(one(ledger, add(ledger.definition(), pod.new("c2"), "b"))) == "all-addresses-used-out"
    assert row(engine, ip).held
    assert row(engine, ip).container == "c1"
    check(engine)


def test_a_claim_that_holds_nothing_gets_its_own_last_address_before_any_other(ledger: Ledger, engine: Engine) -> None:
    small(ledger, "10.1.0.1-10.1.0.9", cooling=3600)
    pod, other = Pod(), Pod("other", "u2", "c9")
    ip = given(ledger, pod)
    one(ledger, delete(pod))
    assert row(engine, ip).ready > now_us(), "it is cooling"
    assert given(ledger, other) != ip
    assert given(ledger, pod.new("c2")) == ip
    assert journal(engine)[-1].details["choice"] == "own"
    check(engine)


def test_a_claim_forgets_a_last_address_that_it_may_not_have_any_more(ledger: Ledger, engine: Engine) -> None:
    define(ledger, a_pool("a", "10.1.0.1-10.1.0.9"), a_pool("b", "10.1.1.1-10.1.1.9"))
    pod = Pod()
    ip = given(ledger, pod, "a")
    one(ledger, delete(pod))
    assert given(ledger, pod.new("c2"), "b") == "10.1.1.1"
    assert story(engine, ip) == ["allocated", "released", "forgotten"]
    check(engine)


# Letting go ---------------------------------------------------------------------------------------


def test_a_del_of_a_pod_that_lives_unbinds_and_keeps_the_address(ledger: Ledger, engine: Engine) -> None:
    small(ledger)
    pod = Pod()
    ip = given(ledger, pod)
    assert one(ledger, delete(pod, alive=pod.uid)) == Done(0, 1)
    assert row(engine, ip).held
    assert given(ledger, pod.new("c2")) == ip
    assert story(engine, ip) == ["allocated", "unbound", "rebound"]
    check(engine)


def test_a_del_of_an_ended_pod_releases_its_unbound_claims_too(ledger: Ledger, engine: Engine) -> None:
    small(ledger)
    pod = Pod()
    definition = ledger.definition()
    wants = [want(pod.claim(interface), 1) for interface in ("eth0", "net1", "net2")]
    ips = granted(one(ledger, acquire(definition, pod, *wants)))
    one(ledger, add(definition, pod, interface="net1"))
    # net1 has its own container to speak for it; net2 never had one.
    assert one(ledger, delete(pod)) == Done(freed=2)
    assert [row(engine, ip).held for ip in ips] == [False, True, False]
    assert one(ledger, delete(pod, interface="net1")) == Done(freed=1)
    check(engine)


def test_unbound_claims_of_an_ended_pod_go_with_a_del_that_finds_nothing_bound(ledger: Ledger, engine: Engine) -> None:
    small(ledger)
    pod = Pod()
    ip = given(ledger, pod)
    one(ledger, delete(pod, alive=pod.uid))
    # The pod of this name that lives now is another one.
    assert one(ledger, delete(pod, alive="another-uid")) == Done(freed=1)
    assert not row(engine, ip).held
    check(engine)


def test_the_claims_of_another_pod_of_that_name_are_not_touched(ledger: Ledger, engine: Engine) -> None:
    small(ledger)
    old, new = Pod(uid="old"), Pod(uid="new", container="c2")
    before, after = given(ledger, old), given(ledger, new)
    one(ledger, delete(new, alive="new"))
    assert one(ledger, delete(old, alive="new")) == Done(freed=1)
    assert [row(engine, ip).held for ip in (before, after)] == [False, True]
    check(engine)


@pytest.mark.parametrize("alive", ["", "mirror"])
def test_a_static_pod_is_never_freed_by_the_absence_of_its_mirror(ledger: Ledger, engine: Engine, alive: str) -> None:
    small(ledger)
    pod = Pod(uid="mirror")
    ip = given(ledger, pod)
    # The runtime calls it by the hash of its configuration.
    assert one(ledger, delete(pod, alive=alive, sent="config-hash")) == Done(unbound=1)
    assert one(ledger, delete(pod, alive=alive, sent="config-hash")) == Done()
    assert row(engine, ip).held
    check(engine)


def test_a_fixed_claim_outlives_its_pods(ledger: Ledger, engine: Engine) -> None:
    small(ledger)
    pod = Pod(uid="")
    ip = given(ledger, pod)
    assert one(ledger, delete(pod, sent="u1")) == Done(unbound=1)
    assert given(ledger, pod.new("c2")) == ip
    check(engine)


def test_containers_outside_kubernetes_are_separate_claims_on_each_node(ledger: Ledger, engine: Engine) -> None:
    small(ledger)
    here, there = outside("node-1", "c1"), outside("node-2", "c1")
    ips = [given(ledger, here), given(ledger, there)]
    assert len(set(ips)) == 2
    assert one(ledger, delete(here)) == Done(freed=1)
    assert [row(engine, ip).held for ip in ips] == [False, True]
    assert given(ledger, there) == ips[1]
    check(engine)


@pytest.mark.parametrize("stranger", ["another container", "another interface", "an earlier start", "nobody at all"])
def test_a_del_that_is_not_meant_for_the_holder_succeeds_and_touches_nothing(
    ledger: Ledger, engine: Engine, stranger: str
) -> None:
    small(ledger)
    earlier, pod = Pod(container="c0"), Pod()
    ip = given(ledger, pod)
    late = {
        "another container": delete(pod.new("c7"), alive="another"),
        "another interface": delete(pod, interface="net1", alive="another"),
        "an earlier start": delete(pod, stamp=earlier.stamp, alive="another"),
        "nobody at all": delete(Pod("nobody", "u9", "c9")),
    }[stranger]
    assert one(ledger, late) == Done()
    assert row(engine, ip).container == "c1"
    assert story(engine, ip) == ["allocated"]
    check(engine)


def test_a_repeated_del_succeeds_and_a_del_before_any_add_does(ledger: Ledger, engine: Engine) -> None:
    small(ledger)
    pod = Pod()
    assert one(ledger, delete(pod)) == Done()
    ip = given(ledger, pod)
    assert [one(ledger, delete(pod)) for _ in range(3)] == [Done(freed=1), Done(), Done()]
    assert story(engine, ip) == ["allocated", "released"]
    check(engine)


def test_a_late_del_does_not_free_the_address_for_the_container_that_has_it_now(ledger: Ledger, engine: Engine) -> None:
    small(ledger)
    first = Pod()
    ip = given(ledger, first)
    given(ledger, first.new("c2"))
    assert one(ledger, delete(first)) == Done()
    assert row(engine, ip).container == "c2"
    check(engine)


def test_a_late_add_of_an_older_container_does_not_steal_the_address(ledger: Ledger, engine: Engine) -> None:
    small(ledger)
    older = Pod(container="c1")
    newer = older.new("c2")
    ip = given(ledger, newer)
    assert reason(one(ledger, add(ledger.definition(), older))) == "superseded"
    assert row(engine, ip).container == "c2"
    check(engine)


def test_stamps_of_different_nodes_are_not_compared(ledger: Ledger, engine: Engine) -> None:
    small(ledger)
    older = Pod(container="c1", node="node-2")
    newer = older.new("c2", node="node-1")
    ip = given(ledger, newer)
    assert given(ledger, older) == ip
    assert row(engine, ip).container == "c1"
    check(engine)


def test_an_address_is_freed_by_hand_only_at_the_step_that_was_looked_at(ledger: Ledger, engine: Engine) -> None:
    small(ledger)
    pod = Pod()
    ip = given(ledger, pod)
    looked_at = row(engine, ip).step
    given(ledger, pod.new("c2"))
    by_hand = Free(parse(ip), looked_at, "alice", "operator", {"reason": "node burnt down"})
    assert one(ledger, by_hand) == Done()
    assert row(engine, ip).held
    now = Free(parse(ip), row(engine, ip).step, "alice", "operator", {"reason": "node burnt down"})
    assert one(ledger, now) == Done(freed=1)
    said = journal(engine)[-1]
    assert (said.actor, said.cause, said.details["evidence"]) == ("alice", "operator", {"reason": "node burnt down"})
    assert one(ledger, Free(parse("10.1.0.9"), 1, "alice", "operator")) == Done(), "it was never used"
    check(engine)


def test_a_release_says_when_it_happened_on_the_node_within_its_bounds(ledger: Ledger, engine: Engine) -> None:
    small(ledger)
    for at in (0, 2**61, None):
        pod = Pod(uid=f"u{at}")
        ip = given(ledger, pod)
        taken = journal(engine)[-1]
        define(ledger, a_reservation("r", ip))
        node_time = taken.happened_at + 1 if at is None else at
        one(ledger, delete(pod, node_time=node_time))
        freed = journal(engine)[-1]
        define(ledger, RetireReservation("uid-r"))
        expected = {0: taken.happened_at, 2**61: freed.recorded_at, None: node_time}[at]
        assert (freed.type, freed.node_time, freed.happened_at) == ("address.released", node_time, expected)
    check(engine)


# Several at once ----------------------------------------------------------------------------------


def test_one_request_gets_both_families_or_neither(ledger: Ledger, engine: Engine) -> None:
    define(ledger, a_pool("four", "10.1.0.1-10.1.0.9"), a_pool("six", "fd00::1"))
    definition = ledger.definition()

    def both(pod: Pod) -> str:
        wants = [want(pod.claim(family=4), 1), want(pod.claim(family=6), 2)]
        return shown(one(ledger, acquire(definition, pod, *wants)))

    first, second = Pod(), Pod("second", "u2", "c2")
    assert both(first) == "10.1.0.1 fd00::1"
    assert both(second) == "all-addresses-used-out"
    assert counted(engine, "address") == 2, "nothing of the second request stays"
    assert given(ledger, Pod("third", "u3", "c3"), "four") == "10.1.0.2"
    check(engine)


def test_one_request_gets_all_interfaces_or_none(ledger: Ledger, engine: Engine) -> None:
    small(ledger, "10.1.0.1-10.1.0.3")
    definition = ledger.definition()
    first, second, third = pods(3)
    answers = ask(ledger, *(
        acquire(definition, pod, want(pod.claim("eth0"), 1), want(pod.claim("net1"), 1)) for pod in (first, second)
    ), add(definition, third))  # fmt: skip
    # Of three addresses the first takes two; the second gives back the one that it found, and the third gets that.
    assert [shown(answer) for answer in answers] == ["10.1.0.1 10.1.0.2", "all-addresses-used-out", "10.1.0.3"]
    check(engine)


def test_two_interfaces_of_one_pod_get_two_addresses_and_the_second_waits_for_its_add(
    ledger: Ledger, engine: Engine
) -> None:
    small(ledger)
    pod, definition = Pod(), ledger.definition()
    wants = (want(pod.claim("eth0"), 1), want(pod.claim("net1"), 1))
    eth0, net1 = granted(one(ledger, acquire(definition, pod, *wants)))
    assert [row(engine, ip).container for ip in (eth0, net1)] == ["c1", None]
    assert given(ledger, pod, interface="net1") == net1
    assert [row(engine, ip).container for ip in (eth0, net1)] == ["c1", "c1"]
    check(engine)


def test_a_pod_with_more_pools_than_a_statement_takes_is_served(ledger: Ledger, engine: Engine) -> None:
    define(ledger, *(a_pool(f"p{number}", f"10.1.{number}.1") for number in range(20)))
    pod = Pod()
    wants = [want(pod.claim(f"net{each.id}"), each.id) for each in ledger.definition().pools]
    got = granted(one(ledger, acquire(ledger.definition(), pod, *wants, interface="net1")))
    assert got == [f"10.1.{number}.1" for number in range(20)]
    check(engine)


def test_requests_of_one_batch_that_touch_one_address_are_served_one_after_the_other(
    ledger: Ledger, engine: Engine
) -> None:
    small(ledger, "10.1.0.1-10.1.0.2")
    definition = ledger.definition()
    holder, second, container = Pod(), Pod("second", "u2", "c2"), outside(NODE, "c7")
    ip = parse(given(ledger, holder))
    assert given(ledger, container) == "10.1.0.2"
    looked_at = row(engine, "10.1.0.1").step
    answers = ask(
        ledger,
        Free(ip, looked_at, "alice", "operator"),
        add(definition, holder.new("c9")),
        delete(container),
        add(definition, container.new("c7")),
        add(definition, second),
    )
    # The holder loses its address and gets it back; the container is deleted and comes back: both as their own.
    expected = ["freed 1, unbound 0", "10.1.0.1", "freed 1, unbound 0", "10.1.0.2", "all-addresses-used-out"]
    assert [shown(answer) for answer in answers] == expected
    check(engine)


def test_claims_of_one_batch_that_want_each_others_last_addresses_are_all_served(
    ledger: Ledger, engine: Engine
) -> None:
    small(ledger)
    definition = ledger.definition()
    swapped = [Pod("z", "uz", "cz"), Pod("b", "ub", "cb")]
    ips = [given(ledger, pod) for pod in swapped]
    for pod in swapped:
        one(ledger, delete(pod))
    wants = [want(pod.claim(), 1, address=ip, exact=True) for pod, ip in zip(swapped, reversed(ips), strict=True)]
    requests = [acquire(definition, pod.new("c"), one_) for pod, one_ in zip(swapped, wants, strict=True)]
    assert [shown(answer) for answer in ask(ledger, *requests)] == list(reversed(ips))
    check(engine)


def test_many_containers_of_one_network_go_through_one_transaction(ledger: Ledger, engine: Engine) -> None:
    small(ledger, "10.1.0.1-10.1.0.31")
    definition = ledger.definition()
    answers = ask(ledger, *(add(definition, outside(NODE, f"c{number}")) for number in range(30)))
    assert len({shown(answer) for answer in answers}) == 30
    assert len({event.tx for event in journal(engine, "address.allocated")}) == 1
    check(engine)


def test_two_acts_for_one_pod_are_done_in_their_order(ledger: Ledger, engine: Engine) -> None:
    small(ledger)
    definition, pod = ledger.definition(), Pod()
    again = pod.new("c2")
    answers = ask(ledger, add(definition, pod), delete(pod), add(definition, again), delete(again, alive=again.uid))
    assert [shown(answer) for answer in answers] == [
        "10.1.0.1", "freed 1, unbound 0", "10.1.0.1", "freed 0, unbound 1",
    ]  # fmt: skip
    assert story(engine, "10.1.0.1") == ["allocated", "released", "allocated", "unbound"]
    check(engine)


# Which address ------------------------------------------------------------------------------------


def test_a_full_pool_yields_to_the_next_in_the_list(ledger: Ledger, engine: Engine) -> None:
    define(ledger, a_pool("a", "10.1.0.1"), a_pool("b", "10.1.1.1-10.1.1.2"))
    definition = ledger.definition()
    answers = ask(ledger, *(add(definition, pod, "a", "b") for pod in pods(4)))
    assert [shown(answer) for answer in answers] == ["10.1.0.1", "10.1.1.1", "10.1.1.2", "all-addresses-used-out"]
    check(engine)


def test_a_pool_behind_many_full_ones_is_found(ledger: Ledger, engine: Engine) -> None:
    names = [f"p{number}" for number in range(40)]
    define(ledger, *(a_pool(name, f"10.1.{number}.1") for number, name in enumerate(names)))
    definition = ledger.definition()
    ask(ledger, *(add(definition, pod, name) for pod, name in zip(pods(39), names, strict=False)))
    assert given(ledger, Pod("late", "u", "c"), *names) == "10.1.39.1"
    assert shown(one(ledger, add(definition, Pod("later", "v", "d"), *names))) == "all-addresses-used-out"
    check(engine)


def test_the_cooling_period_yields_last_of_all_and_the_event_says_so(ledger: Ledger, engine: Engine) -> None:
    define(ledger, a_pool("a", "10.1.0.1", cooling=3600), a_pool("b", "10.1.1.1"))
    first, second, third = pods(3)
    assert given(ledger, first, "a") == "10.1.0.1"
    one(ledger, delete(first))
    assert given(ledger, second, "a", "b") == "10.1.1.1", "the next pool before an address that cools"
    assert given(ledger, third, "a", "b") == "10.1.0.1"
    choices = [event.details["choice"] for event in journal(engine, "address.allocated")]
    assert choices == ["fresh", "fresh", "cooling"]
    check(engine)


def test_idle_addresses_come_before_fresh_ones_and_the_longest_idle_first(ledger: Ledger, engine: Engine) -> None:
    small(ledger)
    users = pods(3)
    for pod in users:
        given(ledger, pod)
    for pod in (users[1], users[0], users[2]):
        one(ledger, delete(pod))
    later = pods(4, "later")
    assert [given(ledger, pod) for pod in later] == ["10.1.0.2", "10.1.0.1", "10.1.0.3", "10.1.0.4"]
    check(engine)


@pytest.mark.parametrize("case, exact, answer", [
    ("10.1.0.7", True, "10.1.0.7"),  # fresh, in the middle of an extent
    ("10.1.0.1", True, "10.1.0.1"),  # idle
    ("10.1.0.2", True, "address-taken"),
    ("10.1.0.8", True, "address-taken"),  # reserved
    ("10.9.0.1", True, "address-outside-pools"),
    ("fd00::1", True, "address-outside-pools"),
    ("10.1.0.7", False, "10.1.0.7"),
    ("10.1.0.2", False, "10.1.0.1"),
    ("10.1.0.8", False, "10.1.0.1"),
    ("10.9.0.1", False, "10.1.0.1"),
])  # fmt: skip
def test_who_asks_for_an_address_gets_it_or_learns_why_not(
    ledger: Ledger, engine: Engine, case: str, exact: bool, answer: str
) -> None:
    define(ledger, a_pool("a", "10.1.0.1-10.1.0.9"), a_reservation("r", "10.1.0.8"))
    idle, holder = pods(2)
    assert [given(ledger, idle), given(ledger, holder)] == ["10.1.0.1", "10.1.0.2"]
    one(ledger, delete(idle))
    asker = Pod()
    request = acquire(ledger.definition(), asker, want(asker.claim(), 1, address=case, exact=exact))
    assert shown(one(ledger, request)) == answer
    check(engine)


def test_an_exact_address_out_of_an_extent_leaves_both_sides_to_be_handed_out(ledger: Ledger, engine: Engine) -> None:
    small(ledger, "10.1.0.1-10.1.0.5")
    for pod, ip in zip(pods(3, "exact"), ("10.1.0.3", "10.1.0.1", "10.1.0.5"), strict=True):
        assert given(ledger, pod, address=ip, exact=True) == ip
    assert [given(ledger, pod) for pod in pods(2)] == ["10.1.0.2", "10.1.0.4"]
    check(engine)


def test_an_exact_address_that_a_fellow_of_the_batch_takes_is_refused_to_the_other(
    ledger: Ledger, engine: Engine
) -> None:
    small(ledger, "10.1.0.1-10.1.0.2")
    definition = ledger.definition()
    answers = ask(ledger, *(add(definition, pod, address="10.1.0.1", exact=True) for pod in pods(2)))
    assert [shown(answer) for answer in answers] == ["10.1.0.1", "address-taken"]
    check(engine)


def test_huge_pools_cost_a_handful_of_rows(ledger: Ledger, engine: Engine) -> None:
    subnet = "10.0.0.0/8"
    huge = a_pool("ten", "10.0.0.1-10.255.255.254", subnet=subnet)
    define(ledger, huge, a_pool("six", "fd00::1-fd00::ffff:ffff:ffff:ffff"))
    assert counted(engine, "extent") == 2 * EXTENTS_PER_POOL
    assert given(ledger, Pod(), "ten", address="10.200.0.7", exact=True) == "10.200.0.7"
    pod = Pod("second", "u2", "c2")
    asked = want(pod.claim(family=6), 2, address="fd00::dead:0:beef", exact=True)
    assert granted(one(ledger, acquire(ledger.definition(), pod, asked))) == ["fd00::dead:0:beef"]
    assert counted(engine, "extent") == 2 * EXTENTS_PER_POOL + 2
    assert counted(engine, "address") == 2
    define(ledger, huge.model_copy(update={"spec": huge.spec.model_copy(update={"exclude_ips": ("10.7.0.0",)})}))
    check(engine)


def test_the_very_last_addresses_of_both_families_are_handed_out(ledger: Ledger, engine: Engine) -> None:
    last = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
    define(
        ledger,
        a_pool("four", "255.255.255.255", subnet="255.255.255.0/24"),
        a_pool("six", last, subnet="ffff:ffff:ffff:ffff::/64"),
    )
    pod = Pod()
    wants = [want(pod.claim(family=4), 1), want(pod.claim(family=6), 2)]
    assert granted(one(ledger, acquire(ledger.definition(), pod, *wants))) == ["255.255.255.255", last]
    check(engine)


# Steps and clocks ---------------------------------------------------------------------------------


def test_the_step_of_an_address_grows_by_one_through_exclusion_retirement_and_re_creation(
    ledger: Ledger, engine: Engine
) -> None:
    one_ = a_pool("a", "10.1.0.1-10.1.0.2", uid="first")
    define(ledger, one_)
    pod = Pod()
    assert given(ledger, pod) == "10.1.0.1"
    one(ledger, delete(pod))
    define(ledger, one_.model_copy(update={"spec": one_.spec.model_copy(update={"exclude_ips": ("10.1.0.1",)})}))
    define(ledger, one_, RetirePool("first"), a_pool("a", "10.1.0.1-10.1.0.2", uid="second"))
    assert given(ledger, Pod("other", "u2", "c2")) == "10.1.0.1"
    life = ["allocated", "released", "withheld", "readmitted", "withheld", "readmitted", "allocated"]
    assert story(engine, "10.1.0.1") == life
    assert (row(engine, "10.1.0.1").step, row(engine, "10.1.0.1").pool) == (7, 2)
    check(engine)


def test_an_agent_that_looked_before_the_pool_was_re_created_frees_nobody(ledger: Ledger, engine: Engine) -> None:
    small(ledger, "10.1.0.1")
    pod = Pod()
    ip = given(ledger, pod)
    looked_at = row(engine, ip).step
    one(ledger, delete(pod))
    define(ledger, RetirePool("uid-a"), a_pool("a", "10.1.0.1", uid="second"))
    given(ledger, Pod("other", "u2", "c2"))
    assert one(ledger, Free(parse(ip), looked_at, "reclaim", "reclaim")) == Done()
    assert row(engine, ip).held
    check(engine)


def test_an_address_is_never_recorded_twice_at_one_time_nor_backwards(sqlite: Database) -> None:
    clock = [5_000_000]
    engine = sqlite_engine(file_of(sqlite), lambda: clock[0])
    ledger = Ledger(engine)
    define(ledger, a_pool("a", "10.1.0.1"))
    pod = Pod()
    ip = given(ledger, pod)
    clock[0] = 1_000_000
    given(ledger, pod.new("c2"))
    define(ledger, a_reservation("r", ip))
    one(ledger, delete(pod.new("c2"), node_time=7_000_000))
    times = [event.recorded_at for event in journal(engine) if event.ip]
    assert times == [5_000_000, 5_000_001, 5_000_002, 5_000_003]
    assert journal(engine)[-1].happened_at == 5_000_003
    check(engine)
    engine.dispose()


def test_cooling_is_counted_by_the_databases_clock(sqlite: Database) -> None:
    clock = [1_000_000]
    engine = sqlite_engine(file_of(sqlite), lambda: clock[0])
    ledger = Ledger(engine)
    define(ledger, a_pool("a", "10.1.0.1-10.1.0.9", cooling=10))
    first, second, third, fourth = pods(4)
    given(ledger, first)
    clock[0] = 2_000_000
    one(ledger, delete(first))
    clock[0] = 11_999_999
    assert given(ledger, second) == "10.1.0.2"
    clock[0] = 12_000_000
    assert given(ledger, third) == "10.1.0.1"
    assert given(ledger, fourth) == "10.1.0.3"
    check(engine)
    engine.dispose()


# Refusals -----------------------------------------------------------------------------------------


def test_equal_refusals_of_one_claim_leave_one_event(ledger: Ledger, engine: Engine) -> None:
    small(ledger, "10.1.0.1")
    holder, loser, other = pods(3)
    given(ledger, holder)
    definition = ledger.definition()
    for _ in range(3):
        assert reason(one(ledger, add(definition, loser))) == "all-addresses-used-out"
    one(ledger, add(definition, loser, address="10.1.0.1", exact=True))
    one(ledger, add(definition, other))
    refused = journal(engine, "allocation.refused")
    assert [event.details["reason"] for event in refused] == [
        "all-addresses-used-out", "address-taken", "all-addresses-used-out",
    ]  # fmt: skip
    assert len({event.claim for event in refused}) == 2
    assert {event.ip for event in refused} | {event.step for event in refused} == {None}
    check(engine)


def test_a_refusal_is_recorded_again_once_the_interval_is_over(
    ledger: Ledger, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(ledger, "10.1.0.1")
    holder, loser = pods(2)
    given(ledger, holder)
    monkeypatch.setattr("ledger.store.REFUSAL_INTERVAL_SECONDS", 0.0)
    for _ in range(3):
        one(ledger, add(ledger.definition(), loser))
    assert len(journal(engine, "allocation.refused")) == 3


def test_what_was_refused_before_the_ledger_was_asked_leaves_its_trace_once(ledger: Ledger, engine: Engine) -> None:
    pod = Pod()
    why = Refusal(Reason.NO_POOL, "no IPPool available", (Candidate("a", "node affinity"),))
    for _ in range(2):
        assert one(ledger, Refuse(pod.claim(), pod.subject, pod.binding, why, ledger.definition().version)) == why
    [event] = journal(engine, "allocation.refused")
    assert event.details["candidates"] == [["a", "node affinity"]]
    assert (event.container, event.node) == ("c1", NODE)
    check(engine)


def test_a_refusal_changes_nothing_and_names_every_candidate(ledger: Ledger, engine: Engine) -> None:
    small(ledger, "10.1.0.1")
    holder, loser = pods(2)
    given(ledger, holder)
    before = row(engine, "10.1.0.1")
    asked = want(loser.claim(), 1)
    candidates = (Candidate("a"), Candidate("b", "disabled"))
    answer = one(ledger, acquire(ledger.definition(), loser, type(asked)(**{**vars(asked), "candidates": candidates})))
    assert isinstance(answer, Refusal)
    assert answer.candidates == candidates
    assert "failed to allocate any IPv4 IP address to NIC eth0 from IPPools [a]" in answer.text
    assert journal(engine)[-1].details["candidates"] == [["a", ""], ["b", "disabled"]]
    assert row(engine, "10.1.0.1") == before


def test_a_selection_judged_by_another_definition_is_not_acted_on(ledger: Ledger, engine: Engine) -> None:
    small(ledger)
    pod = Pod()
    stale = add(ledger.definition(), pod)
    define(ledger, a_reservation("r", "10.1.0.1"))
    assert one(ledger, stale) == Reselect(2)
    assert counted(engine, "address") == 0
    assert given(ledger, pod) == "10.1.0.2"
    check(engine)


def test_an_agent_learns_of_a_definition_that_another_made(database: Database) -> None:
    one_, other = (Ledger(database.engine(), Settings(doubt_seconds=0)) for _ in range(2))
    define(one_, a_pool("a", "10.1.0.1-10.1.0.9"))
    pod = Pod()
    stale = add(other.definition(), pod, "a")
    define(one_, a_reservation("r", "10.1.0.1"))
    assert one(other, stale) == Reselect(2)
    assert given(other, pod) == "10.1.0.2"
    assert other.definition().version == 2


# Names --------------------------------------------------------------------------------------------


def test_events_cite_names_only_by_salted_hashes(ledger: Ledger, engine: Engine) -> None:
    small(ledger)
    pod = Pod("secret-name", "secret-uid", namespace="secret-space")
    given(ledger, pod)
    one(ledger, delete(pod))
    assert not [event for event in journal(engine) if "secret" in repr(event)]
    with engine.connect() as connection:
        documents = connection.execute(text("SELECT document FROM subject")).scalars().all()
    assert documents == [Subject("here", "secret-space", "secret-name", "secret-uid").document]


def test_who_holds_what_is_answered_by_claim_by_node_and_by_address(ledger: Ledger, engine: Engine) -> None:
    small(ledger)
    here, there = Pod(), Pod("there", "u2", "c2", node="node-2")
    ips = [parse(given(ledger, pod)) for pod in (here, there)]
    assert [found.ip for found in ledger.held_by([here.claim()])] == ips[:1]
    assert [found.ip for found in ledger.bound_on("node-2", "net", 0)] == ips[1:]
    assert [found.claim for found in [ledger.held(ips[1])] if found] == [there.claim().key]
    one(ledger, delete(there))
    assert ledger.held(ips[1]) is None
    assert ledger.held_by([there.claim()]) == []


# What a batch costs -------------------------------------------------------------------------------


def statements(engine: Engine) -> list[str]:
    """What SQLite is told from now on, parameters and all; the ledger's writer has one connection."""
    sent: list[str] = []
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        driver.set_trace_callback(sent.append)
    return sent


def test_a_batch_reads_once_and_then_writes_one_table_after_the_other(sqlite: Database) -> None:
    engine = sqlite.engine()
    ledger = Ledger(engine)
    small(ledger)
    given(ledger, Pod("first", "u0", "c0"))
    definition = ledger.definition()
    sent = statements(engine)
    answers = ask(ledger, *(add(definition, pod) for pod in pods(5)))
    assert all(isinstance(answer, Granted) for answer in answers)
    different = list(dict.fromkeys(sent))  # A statement is told again for each trigger it meets.
    tables = [each.split()[2] for each in different if each.startswith("INSERT")]
    assert Counter(tables) == {"subject": 5, "extent": 1, "address": 5, "event": 5}
    assert [name for name, _ in groupby(tables)] == ["subject", "extent", "address", "event"]
    others = [each.split()[0] for each in different if not each.startswith("INSERT")]
    assert others in (["BEGIN", "WITH", "COMMIT"], ["BEGIN", "SELECT", "COMMIT"])


def test_on_sqlite_a_request_that_came_up_short_waits_for_nobody(sqlite: Database) -> None:
    engine = sqlite.engine()
    ledger = Ledger(engine)
    small(ledger, *(f"10.1.0.{number}" for number in range(1, 10, 2)))
    definition = ledger.definition()
    sent = statements(engine)
    answers = ask(ledger, *(add(definition, pod) for pod in pods(4)))
    assert all(isinstance(answer, Granted) for answer in answers)
    begun = [each for each in sent if each.startswith("BEGIN")]
    assert begun == ["BEGIN IMMEDIATE"] * sent.count("COMMIT"), "each transaction has written"


def test_a_batch_looks_for_idle_addresses_only_from_the_last_one_on(sqlite: Database) -> None:
    engine = sqlite.engine()
    ledger = Ledger(engine)
    small(ledger)
    users = pods(3)
    for pod in users:
        given(ledger, pod)
    for pod in users:
        one(ledger, delete(pod))
    first_idle = row(engine, "10.1.0.1").ready
    sent = statements(engine)
    assert [given(ledger, pod) for pod in pods(2, "later")] == ["10.1.0.1", "10.1.0.2"]
    bounds = [re.findall(r"ready >= (\d+)", each) for each in sent if each.startswith("WITH")]
    assert bounds == [["0"], [str(first_idle)]]


def test_addresses_that_come_back_below_the_bound_are_found_before_a_pool_is_called_exhausted(sqlite: Database) -> None:
    clock = [1_000]
    engine = sqlite_engine(file_of(sqlite), lambda: clock[0])
    ledger = Ledger(engine)
    define(ledger, a_pool("a", "10.1.0.1-10.1.0.3"))
    users = pods(3)
    for pod in users:
        given(ledger, pod)
    clock[0] = 5_000
    one(ledger, delete(users[0]))
    assert given(ledger, Pod("x", "x", "x")) == "10.1.0.1"
    clock[0] = 2_000
    one(ledger, delete(users[1]))
    clock[0] = 6_000
    assert given(ledger, Pod("y", "y", "y")) == "10.1.0.2"
    assert row(engine, "10.1.0.2").at == 6_000
    check(engine)
    engine.dispose()


def test_the_claims_of_a_pod_are_not_those_of_a_pod_with_a_longer_name(ledger: Ledger, engine: Engine) -> None:
    small(ledger)
    short, longer = Pod("web", "u1"), Pod("web-1", "u1", "c1")
    given(ledger, short)
    ip = given(ledger, longer)
    one(ledger, delete(short))
    assert row(engine, ip).held
    check(engine)
