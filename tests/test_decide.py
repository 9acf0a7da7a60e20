"""The rules of one batch as tables: what was read goes in, what is written and answered comes out. No database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from ledger.addresses import Ip, parse, text
from ledger.course import FOR_EVER, advance, batch_of, begin, plan_of, subject_of
from ledger.decide import Attempt, Decision, Setback, Unmet, decide, places_of
from ledger.definition import Definition, Pool, State
from ledger.events import digest
from ledger.images import DEMANDS_MAX, UNBOUND, Address, Demand, Extent, Head, Images
from ledger.requests import (
    Acquire,
    Answer,
    Done,
    Free,
    Granted,
    Reason,
    Refusal,
    Refuse,
    Release,
    Request,
    Reselect,
)
from ledger.supply import Supply
from tests.acts import NODE, Pod, a_pool, acquire, delete, outside, shown, want

NOW = 1_000_000
SALT = b"salt"
POD = Pod("web", "u1", "c1", stamp=100)
OTHER = Pod("other", "u2", "c2", stamp=100)


def definition(*pools: Pool) -> Definition:
    return Definition(1, pools or (pool(1, "10.1.0.1-10.1.0.9"), pool(2, "10.1.1.1-10.1.1.9")))


def pool(number: int, *ips: str, cooling: int = 0, **spec: Any) -> Pool:
    given = a_pool(f"pool-{number}", *ips, cooling=cooling, **spec)
    family = 6 if ":" in ips[0] else 4
    spec_ = given.spec.model_copy(update={"ip_version": family})
    return Pool(number, f"uid-{number}", State.OPEN, given.model_copy(update={"spec": spec_}))


def used(ip: str, pool: int = 1, **cells: Any) -> Address:
    """A row of an address that nobody holds."""
    cells = {"held": False, "withheld": False, "ready": 0, "step": 4, "at": 10, **cells}
    return Address(
        parse(ip), pool, holding=None, claim=None, subject=None, **UNBOUND, result='{"was": 1}', **{
            name: cells.pop(name) for name in ("held", "withheld", "ready", "step", "at")
        },
    )._replace(**cells)  # fmt: skip


def held(
    ip: str, pod: Pod = POD, pool: int = 1, *, bound: bool = True, interface: str = "eth0", **cells: Any
) -> Address:
    """A row of an address that this pod holds since step 2."""
    binding = {**pod.binding._asdict(), "bound_at": 9} if bound else {}
    return used(ip, pool, held=True, step=4, at=10)._replace(
        holding=2, claim=pod.claim(interface).key, **binding, **cells
    )


def last(ip: str, pod: Pod = POD, pool: int = 1, **cells: Any) -> Address:
    """A row of the address that this pod held last."""
    return used(ip, pool, **cells)._replace(claim=pod.claim().key)


def extent(low: str, high: str, pool: int = 1) -> Extent:
    return Extent(pool, parse(high), parse(low))


def images(
    *,
    own: Sequence[Address] = (),
    seen: Sequence[Address] = (),
    idle: Sequence[Address] = (),
    extents: Sequence[Extent] = (),
    asked: Sequence[Address] = (),
    seen_asked: Sequence[Address] = (),
    left: Sequence[int] = (),
    now: int = NOW,
    **more: Any,
) -> Images:
    """What was read; what is locked was also seen."""
    head = Head(77, now, 1, 1, "here", "here", None, None, None, True)
    pools = {each.pool for each in (*idle, *extents)}
    return Images(
        head,
        own,
        (*own, *seen),
        {number: [row for row in idle if row.pool == number] for number in pools},
        {number: [each for each in extents if each.pool == number] for number in pools},
        {row.ip: row for row in asked},
        {row.ip: row for row in (*asked, *seen_asked)},
        left=frozenset(left),
        **more,
    )


def judged(
    read: Images, *requests: Request, by: Definition | None = None, places: Mapping[int, tuple[int, ...]] | None = None
) -> Decision:
    """The decision on these requests, each at its first places unless said."""
    attempts = [
        Attempt(request, (places or {}).get(index, (0,) * len(getattr(request, "wants", ()))))
        for index, request in enumerate(requests)
    ]
    decision = decide(attempts, read, by or definition(), SALT, count(1))
    check_decision(decision, read)
    return decision


def check_decision(decision: Decision, read: Images) -> None:
    """Whatever is decided: a row once, its step one more, one event for it that says the same, times that grow."""
    rows = {row.ip: row for row in decision.rows}
    touched = {row.ip for row in decision.rows}
    before = {row.ip: row for each in read.idle.values() for row in each}
    before |= {row.ip: row for row in (*read.own, *read.asked.values())}
    assert len(touched) == len({(row.ip, row.step) for row in decision.rows})
    for event in decision.events:
        assert event.digest == digest(event)
        if event.ip is not None and event.step == rows[event.ip].step:
            assert (event.recorded_at, event.pool) == (rows[event.ip].at, rows[event.ip].pool)
            assert event.subject is None or event.subject == rows[event.ip].subject or not rows[event.ip].held
    steps = {ip: [event.step for event in decision.events if event.ip == ip] for ip in touched}
    for ip, found in steps.items():
        first = before[ip].step if ip in before else 0
        assert found == list(range(first + 1, first + 1 + len(found))), text(ip)
        assert rows[ip].at > (before[ip].at if ip in before else 0)


def add(pod: Pod = POD, *pools: int, interface: str = "eth0", **more: Any) -> Acquire:
    return acquire(definition(), pod, want(pod.claim(interface), *(pools or (1,)), **more), interface=interface)


def told(decision: Decision) -> list[str]:
    """What happened to which address, in the order of the journal."""
    return [
        f"{event.type.partition('.')[2]} {text(event.ip)}" if event.ip is not None else event.type
        for event in decision.events
    ]


def outcome(decision: Decision, index: int = 0) -> str:
    """The answer, or why there is none yet."""
    if index in decision.setbacks:
        return decision.setbacks[index].why.name.lower()
    return shown(decision.answers[index])


# Which address ------------------------------------------------------------------------------------

FRESH = extent("10.1.0.5", "10.1.0.9")


@pytest.mark.parametrize("read, request_, answer, how", [
    (images(extents=[FRESH]), add(), "10.1.0.5", "fresh"),
    (images(idle=[used("10.1.0.2")], extents=[FRESH]), add(), "10.1.0.2", "idle"),
    (images(idle=[used("10.1.0.2", ready=NOW)], extents=[FRESH]), add(), "10.1.0.2", "idle"),
    (images(idle=[used("10.1.0.2", ready=NOW + 1)], extents=[FRESH]), add(), "10.1.0.5", "fresh"),
    (images(own=[last("10.1.0.3")], idle=[used("10.1.0.2")], extents=[FRESH]), add(), "10.1.0.3", "own"),
    (images(own=[last("10.1.0.3", ready=FOR_EVER)], extents=[FRESH]), add(), "10.1.0.3", "own"),
    (images(asked=[used("10.1.0.3", ready=FOR_EVER)]), add(address="10.1.0.3", exact=True), "10.1.0.3", "asked"),
    (images(extents=[FRESH]), add(address="10.1.0.7", exact=True), "10.1.0.7", "asked"),
    (images(extents=[FRESH]), add(address="10.1.0.7"), "10.1.0.7", "asked"),
    (images(asked=[held("10.1.0.3", OTHER)], extents=[FRESH]), add(address="10.1.0.3"), "10.1.0.5", "fresh"),
    (images(own=[last("10.1.0.3", withheld=True)], extents=[FRESH]), add(), "10.1.0.5", "fresh"),
    (images(own=[last("10.1.1.3", pool=2)], extents=[FRESH]), add(), "10.1.0.5", "fresh"),
])  # fmt: skip
def test_an_address_is_chosen_in_this_order(read: Images, request_: Acquire, answer: str, how: str) -> None:
    decision = judged(read, request_)
    assert outcome(decision) == answer
    assert decision.events[-1].details["choice"] == how


@pytest.mark.parametrize("ready, extents, place, answer", [
    (NOW + 1, [FRESH], 0, "10.1.0.5 fresh"),
    (NOW + 1, [], 0, "next_place"),
    (NOW + 1, [], 1, "10.1.0.2 cooling"),
    (NOW + 1, [FRESH], 1, "10.1.0.5 fresh"),
    (NOW, [], 1, "10.1.0.2 idle"),
])  # fmt: skip
def test_the_cooling_period_yields_only_at_the_second_look(
    ready: int, extents: list[Extent], place: int, answer: str
) -> None:
    decision = judged(images(idle=[used("10.1.0.2", ready=ready)], extents=extents), add(), places={0: (place,)})
    how = [event.details["choice"] for event in decision.events]
    assert " ".join([outcome(decision), *how]) == answer


@pytest.mark.parametrize("first, reach, expected", [
    (0, 1, [(7, False)]),
    (2, 1, [(9, False)]),
    (3, 1, [(7, True)]),
    (6, 1, []),
    (0, 2, [(7, False), (3, False)]),
    (1, 9, [(3, False), (9, False)]),  # never into both halves
    (3, 9, [(7, True), (3, True), (9, True)]),
    (6, 9, []),
])  # fmt: skip
def test_pools_are_tried_in_their_order_and_then_again_with_what_cools(
    first: int, reach: int, expected: list[tuple[int, bool]]
) -> None:
    assert places_of(want(POD.claim(), 7, 3, 9), first, reach) == expected
    assert places_of(want(POD.claim()), first, reach) == []


@pytest.mark.parametrize("idle, left, answer", [
    ([], [], "next_place"),
    ([used("10.1.1.3", 2)], [], "10.1.1.3"),
    ([used("10.1.1.3", 2)], [1], "locked"),  # the pool before it has some, only not for us now
])  # fmt: skip
def test_a_far_look_takes_the_first_pool_that_has_something(idle: list[Address], left: list[int], answer: str) -> None:
    attempt = Attempt(add(POD, 1, 2), (0,), reach=2)
    decision = decide([attempt], images(idle=idle, left=left), definition(), SALT, count(1))
    assert outcome(decision) == answer
    if answer == "next_place":
        assert decision.setbacks[0].place == 2


@pytest.mark.parametrize("asked, extents, rest", [
    ("10.1.0.5", [FRESH], ["10.1.0.6-10.1.0.9"]),
    ("10.1.0.9", [FRESH], ["10.1.0.10-10.1.0.9", "10.1.0.5-10.1.0.8"]),
    ("10.1.0.7", [FRESH], ["10.1.0.5-10.1.0.6", "10.1.0.8-10.1.0.9"]),
    ("10.1.0.3", [extent("10.1.0.3", "10.1.0.3")], ["10.1.0.4-10.1.0.3"]),
    (None, [FRESH], ["10.1.0.6-10.1.0.9"]),
    (None, [extent("10.1.0.3", "10.1.0.2"), FRESH], ["10.1.0.6-10.1.0.9"]),
])  # fmt: skip
def test_what_is_taken_out_of_an_extent_leaves_the_rest_under_the_same_end(
    asked: str | None, extents: list[Extent], rest: list[str]
) -> None:
    decision = judged(images(extents=extents), add(address=asked, exact=asked is not None))
    assert isinstance(decision.answers[0], Granted)
    assert sorted(f"{text(each.low)}-{text(each.high)}" for each in decision.extents) == sorted(rest)


# Refusals, in their order -------------------------------------------------------------------------


@pytest.mark.parametrize("read, request_, reason", [
    # Everything is wrong: a newer container speaks, the address lies outside and nothing is left.
    (images(own=[held("10.1.0.2", POD.new("c9"))]), add(POD, address="10.9.9.9", exact=True, named=()), "superseded"),
    (images(asked=[held("10.9.9.9", OTHER)]), add(address="10.9.9.9", exact=True), "address-outside-pools"),
    (images(asked=[held("10.1.1.3", OTHER, 2)]), add(address="10.1.1.3", exact=True), "address-outside-pools"),
    (images(asked=[held("10.1.0.3", OTHER)]), add(address="10.1.0.3", exact=True), "address-taken"),
    (images(asked=[used("10.1.0.3", withheld=True)]), add(address="10.1.0.3", exact=True), "address-taken"),
    (images(), add(address="10.1.0.3", exact=True), "address-taken"),
    (images(), replace(add(), wants=(want(POD.claim()),)), "all-addresses-used-out"),
])  # fmt: skip
def test_refusals_come_in_this_order(read: Images, request_: Acquire, reason: str) -> None:
    decision = judged(read, request_)
    assert outcome(decision) == reason
    assert (decision.rows, decision.extents) == ([], [])
    assert [event.type for event in decision.events] == ["allocation.refused"]


@pytest.mark.parametrize("muted, events", [
    ((), 1),
    (((POD.claim().key, Reason.ADDRESS_TAKEN),), 0),
    (((POD.claim().key, Reason.USED_OUT),), 1),
    (((OTHER.claim().key, Reason.ADDRESS_TAKEN),), 1),
])  # fmt: skip
def test_only_an_equal_refusal_of_the_same_claim_is_muted(muted: tuple[Any, ...], events: int) -> None:
    request = Attempt(add(address="10.1.0.3", exact=True), (0,))
    decision = decide([request], images(), definition(), SALT, count(1), frozenset(muted))
    assert outcome(decision) == "address-taken"
    assert len(decision.events) == events


# Why a request waits ------------------------------------------------------------------------------

TAKEN = held("10.1.0.3", OTHER)


@pytest.mark.parametrize("read, request_, setback", [
    (images(), add(), Setback(Unmet.NEXT_PLACE, place=1)),
    (images(left=[1]), add(), Setback(Unmet.LOCKED, pool=1)),
    (images(left=[2]), add(), Setback(Unmet.NEXT_PLACE, place=1)),
    (images(seen=[held("10.1.0.2")]), add(POD.new("c2")), Setback(Unmet.LOCKED, claim=POD.claim().key)),
    (images(seen=[held("10.1.0.2", bound=False)]), add(), Setback(Unmet.LOCKED, claim=POD.claim().key)),
    (images(seen=[last("10.1.0.2")], extents=[FRESH]), add(), Setback(Unmet.LOCKED, claim=POD.claim().key)),
    (images(seen_asked=[TAKEN]), add(address="10.1.0.3", exact=True), Setback(Unmet.LOCKED, ip=parse("10.1.0.3"))),
    (images(seen_fresh=frozenset([parse("10.1.0.7")])), add(address="10.1.0.7", exact=True),
     Setback(Unmet.LOCKED, ip=parse("10.1.0.7"))),
    (images(seen=[held("10.1.0.2")]), delete(POD), Setback(Unmet.LOCKED, claim=POD.claim().key)),
    (images(seen_asked=[TAKEN]), Free(TAKEN.ip, 4, "alice", "x"), Setback(Unmet.LOCKED, ip=TAKEN.ip)),
])  # fmt: skip
def test_what_others_have_locked_is_waited_for_and_never_called_exhausted(
    read: Images, request_: Request, setback: Setback
) -> None:
    decision = judged(read, request_)
    assert decision.setbacks == {0: setback}
    assert (decision.answers, decision.rows, decision.events, decision.extents) == ({}, [], [], [])


def test_a_container_that_asks_again_need_not_wait_for_whoever_has_locked_its_row() -> None:
    decision = judged(images(seen=[held("10.1.0.2")]), add())
    assert outcome(decision) == "10.1.0.2"
    assert (decision.setbacks, decision.rows, decision.events) == ({}, [], [])


@pytest.mark.parametrize("first, second, answers", [
    # Of one row each: a free by hand, then whoever reads the row as it was.
    (Free(parse("10.1.0.2"), 4, "alice", "x"), add(POD.new("c9")), ["freed 1, unbound 0", "stirred"]),
    (Free(parse("10.1.0.2"), 4, "alice", "x"), delete(POD), ["freed 1, unbound 0", "stirred"]),
    (add(POD.new("c9")), Free(parse("10.1.0.2"), 4, "alice", "x"), ["10.1.0.2", "freed 0, unbound 0"]),
    (delete(POD), Free(parse("10.1.0.2"), 4, "alice", "x"), ["freed 1, unbound 0", "freed 0, unbound 0"]),
    (delete(POD), add(OTHER, address="10.1.0.2", exact=True), ["freed 1, unbound 0", "stirred"]),
    (delete(POD), add(OTHER), ["freed 1, unbound 0", "stirred"]),
])  # fmt: skip
def test_a_row_is_changed_by_one_request_of_a_batch_at_most(
    first: Request, second: Request, answers: list[str]
) -> None:
    row = held("10.1.0.2")
    decision = judged(images(own=[row], asked=[row]), first, second)
    assert [outcome(decision, index) for index in range(2)] == answers


def test_a_refused_container_that_a_fellow_has_changed_is_looked_at_again() -> None:
    row = held("10.1.0.2")
    why = Refusal(Reason.NO_POOL, "none", (), frozenset([1]))
    refuse = Refuse(POD.claim(), POD.subject, POD.new("c9").binding, why, 1)
    decision = judged(images(own=[row], asked=[row]), Free(row.ip, 4, "alice", "x"), refuse)
    assert [outcome(decision, index) for index in range(2)] == ["freed 1, unbound 0", "stirred"]


def test_what_a_request_drew_before_it_failed_goes_to_the_next() -> None:
    both = acquire(definition(), POD, want(POD.claim("eth0"), 1), want(POD.claim("net1"), 2))
    read = images(idle=[used("10.1.0.2")], extents=[extent("10.1.0.9", "10.1.0.9")])
    third = Pod("third", "u3", "c3")
    decision = judged(read, both, add(OTHER), add(third))
    assert [outcome(decision, index) for index in range(3)] == ["next_place", "10.1.0.2", "10.1.0.9"]
    assert told(decision) == ["allocated 10.1.0.2", "allocated 10.1.0.9"]


def test_a_last_address_that_a_failed_request_passed_over_is_there_for_the_next() -> None:
    own = last("10.1.0.2")
    both = acquire(definition(), POD, want(POD.claim("eth0"), 1), want(POD.claim("net1"), 1))
    decision = judged(images(own=[own], idle=[own]), both, add(OTHER))
    assert [outcome(decision, index) for index in range(2)] == ["next_place", "10.1.0.2"]


def test_who_holds_or_held_something_is_served_before_strangers() -> None:
    own = last("10.1.0.2")
    decision = judged(images(own=[own], idle=[own], extents=[FRESH]), add(OTHER), add(POD))
    assert [outcome(decision, index) for index in range(2)] == ["10.1.0.5", "10.1.0.2"]


def test_rows_that_become_free_are_written_first_and_then_in_the_order_of_their_claims() -> None:
    moving = held("10.1.0.2", pool=1)
    claims = [Pod(name, f"u-{name}", "c") for name in ("zz", "aa")]
    requests = [add(POD.new("c9"), 2), *(add(pod, 2) for pod in claims)]
    decision = judged(images(own=[moving], extents=[extent("10.1.1.1", "10.1.1.9", 2)]), *requests)
    assert [(row.held, row.claim and row.claim.split("|")[3]) for row in decision.rows] == [
        (False, None), (True, "aa"), (True, "web"), (True, "zz"),
    ]  # fmt: skip


# What happens to a row ----------------------------------------------------------------------------


@pytest.mark.parametrize("row, request_, events, cells", [
    (used("10.1.0.2"), add(address="10.1.0.2", exact=True), ["allocated"],
     {"held": True, "holding": 5, "ready": 0, "container": "c1", "claim": POD.claim().key, "bound_at": NOW}),
    (used("10.1.0.2"), add(POD, address="10.1.0.2", exact=True, interface="net1"), ["allocated"],
     {"container": "c1", "claim": POD.claim("net1").key}),
    (held("10.1.0.2"), add(POD), [], None),
    (held("10.1.0.2", bound=False), add(POD), ["rebound"], {"container": "c1", "holding": 2, "bound_at": NOW}),
    (held("10.1.0.2", pool=2), add(POD.new("c9"), 1, named=(1, 2)), ["rebound"], {"container": "c9", "pool": 2}),
    (held("10.1.0.2", withheld=True), add(POD.new("c9")), ["rebound"], {"withheld": True}),
    (held("10.1.0.2"), delete(POD), ["released"],
     {"held": False, "holding": None, "container": None, "stamp": None, "claim": POD.claim().key, "ready": NOW}),
    (held("10.1.0.2", withheld=True), delete(POD), ["released"], {"held": False, "withheld": True}),
    (held("10.1.0.2"), delete(POD, alive="u1"), ["unbound"], {"held": True, "holding": 2, "container": None}),
    (held("10.1.0.2"), Free(parse("10.1.0.2"), 4, "alice", "x"), ["released"], {"held": False}),
    (held("10.1.0.2"), Free(parse("10.1.0.2"), 3, "alice", "x"), [], None),
    (last("10.1.0.2", withheld=True), add(), ["forgotten", "allocated"],
     {"claim": None, "subject": None, "held": False}),
    (held("10.1.0.2", pool=2), add(POD.new("c9")), ["released", "allocated"],
     {"held": False, "claim": None, "subject": None, "ready": NOW}),
])  # fmt: skip
def test_a_row_changes_by_its_event_and_only_by_it(
    row: Address, request_: Request, events: list[str], cells: dict[str, Any] | None
) -> None:
    row = row._replace(subject=b"before")
    decision = judged(images(own=[row] if row.claim else [], asked=[row], extents=[FRESH]), request_)
    assert [event.type.partition(".")[2] for event in decision.events] == events
    after = {each.ip: each for each in decision.rows}.get(row.ip)
    assert (after is None) == (cells is None)
    if after is not None and cells is not None:
        assert {name: after._asdict()[name] for name in cells} == cells


@pytest.mark.parametrize("now, at, recorded", [(NOW, 10, NOW), (NOW, NOW, NOW + 1), (5, NOW, NOW + 1)])
def test_an_event_is_recorded_after_the_one_before_whatever_the_clock_says(now: int, at: int, recorded: int) -> None:
    decision = judged(images(own=[held("10.1.0.2", at=at)], now=now), delete(POD))
    assert (decision.events[0].recorded_at, decision.rows[0].at) == (recorded, recorded)


@pytest.mark.parametrize("node_time, bound_at, happened", [
    (500, 9, 500),
    (5, 9, 9),  # before the container was bound
    (NOW + 5, 9, NOW),
    (500, None, 600),  # nobody spoke for it since its last event
])  # fmt: skip
def test_a_release_happened_within_its_bounds(node_time: int, bound_at: int | None, happened: int) -> None:
    row = held("10.1.0.2")._replace(at=600, bound_at=bound_at)
    request = delete(POD, node_time=node_time)
    [event] = judged(images(own=[row]), request).events
    assert (event.happened_at, event.node_time) == (happened, node_time)


@pytest.mark.parametrize("cooling, closed, ready", [(0, False, NOW), (7, False, NOW + 7_000_000), (7, True, NOW)])
def test_an_address_cools_as_long_as_its_pool_says(cooling: int, closed: bool, ready: int) -> None:
    pools = () if closed else (pool(1, "10.1.0.1-10.1.0.9", cooling=cooling),)
    decision = judged(images(own=[held("10.1.0.2")]), delete(POD), by=Definition(1, pools))
    assert decision.rows[0].ready == decision.events[0].details["ready"] == ready


# Who is let go ------------------------------------------------------------------------------------

FIXED = Pod(uid="", container="c1", stamp=100)
STATIC = Pod(uid="mirror", container="c1", stamp=100)
CONTAINED = outside(NODE, "c1")


@pytest.mark.parametrize("holder, request_, freed, unbound", [
    (POD, delete(POD), 1, 0),
    (POD, delete(POD, alive="u1"), 0, 1),
    (POD, delete(POD, alive="successor"), 1, 0),
    (POD, delete(POD, sent=""), 1, 0),
    (POD, delete(POD.new("c9")), 0, 0),
    (POD, delete(POD, interface="net1"), 0, 0),
    (POD, delete(POD, stamp=99), 0, 0),
    (POD, delete(POD, stamp=100), 1, 0),
    (FIXED, delete(FIXED, sent="u1"), 0, 1),
    (FIXED, delete(FIXED, sent="u1", alive="u1"), 0, 1),
    (STATIC, delete(STATIC, sent="hash"), 0, 1),
    (STATIC, delete(STATIC, sent="hash", alive="mirror"), 0, 1),
    (STATIC, delete(STATIC, sent="hash", alive="new-mirror"), 1, 0),
    (CONTAINED, delete(CONTAINED), 1, 0),
])  # fmt: skip
def test_a_del_frees_unbinds_or_touches_nothing(holder: Pod, request_: Release, freed: int, unbound: int) -> None:
    decision = judged(images(own=[held("10.1.0.2", holder)]), request_)
    assert decision.answers[0] == Done(freed, unbound)
    assert len(decision.events) == freed + unbound


@pytest.mark.parametrize("request_, freed", [
    (delete(POD), ["10.1.0.2", "10.1.0.3"]),
    (delete(POD, alive="u1"), []),
    (delete(POD, alive="successor"), ["10.1.0.2", "10.1.0.3"]),
    (delete(POD.new("c9")), ["10.1.0.3"]),
    (delete(POD, sent=""), ["10.1.0.2", "10.1.0.3"]),
    (delete(POD.new("c9"), sent=""), []),
    (delete(POD.new("c9"), sent="", alive="u1"), []),
    (delete(POD.new("c9"), sent="somebody"), []),
    (delete(POD, stamp=99), ["10.1.0.3"]),
])  # fmt: skip
def test_the_unbound_claims_of_an_ended_pod_go_with_its_del(request_: Release, freed: list[str]) -> None:
    rows = [
        held("10.1.0.2"),
        held("10.1.0.3", bound=False, interface="net1"),
        held("10.1.0.4", POD.new("c8"), interface="net2"),
        held("10.1.0.5", replace(POD, uid="successor"), bound=False),
        held("10.1.0.6", replace(POD, uid=""), bound=False),
    ]
    decision = judged(images(own=rows), request_)
    assert [text(row.ip) for row in decision.rows if not row.held] == freed


# Who stays though refused -------------------------------------------------------------------------


@pytest.mark.parametrize("container, named, answer, events", [
    ("c1", (), "10.1.0.2", []),
    ("c9", (1,), "10.1.0.2", ["rebound 10.1.0.2"]),
    ("c9", (2,), "no-pool-available", ["allocation.refused"]),
    ("older", (1,), "superseded", ["allocation.refused"]),
])  # fmt: skip
def test_a_holder_stays_whatever_the_filters_left(
    container: str, named: tuple[int, ...], answer: str, events: list[str]
) -> None:
    speaker = replace(POD, container=container, stamp={"older": 99}.get(container, 200))
    refusal = Refusal(Reason.NO_POOL, "no pool", (), frozenset(named))
    decision = judged(images(own=[held("10.1.0.2")]), Refuse(POD.claim(), POD.subject, speaker.binding, refusal, 1))
    assert (outcome(decision), told(decision)) == (answer, events)


def test_who_holds_nothing_and_is_refused_is_refused() -> None:
    refusal = Refusal(Reason.NO_POOL, "no pool", (), frozenset([1]))
    request = Refuse(POD.claim(), POD.subject, POD.binding, refusal, 1)
    for own in ([], [last("10.1.0.2")]):
        decision = judged(images(own=own), request)
        assert decision.answers[0] == refusal
        assert decision.rows == []


@pytest.mark.parametrize("request_", [
    replace(add(), definition=7),
    Refuse(POD.claim(), POD.subject, POD.binding, Refusal(Reason.NO_POOL, "no IPPool available"), 7),
])  # fmt: skip
def test_a_selection_that_was_judged_by_another_version_is_not_decided(request_: Request) -> None:
    decision = judged(images(extents=[FRESH]), request_)
    assert decision.answers == {0: Reselect(1)}
    assert (decision.rows, decision.events) == ([], [])


def test_a_want_does_not_draw_what_a_later_one_of_its_request_held_last() -> None:
    first, second = want(POD.claim("net1"), 1), want(POD.claim(), 1)
    request = replace(add(), wants=(first, second))
    mine = last("10.1.0.2")
    decision = judged(images(own=[mine], idle=[mine, used("10.1.0.3")]), request)
    answer = decision.answers[0]
    assert isinstance(answer, Granted)
    assert [(grant.claim.interface, text(grant.ip)) for grant in answer.grants] == [
        ("net1", "10.1.0.3"), ("eth0", "10.1.0.2"),
    ]  # fmt: skip


def test_nor_does_a_want_that_must_move_draw_it() -> None:
    moves, stays = want(POD.claim(), 1), want(POD.claim("net1"), 1)
    mine, left = held("10.1.1.1", pool=2), last("10.1.0.2")._replace(claim=POD.claim("net1").key)
    request = replace(add(POD.new("c9")), wants=(moves, stays))
    decision = judged(images(own=[mine, left], idle=[left, used("10.1.0.3")]), request)
    answer = decision.answers[0]
    assert isinstance(answer, Granted)
    assert [text(grant.ip) for grant in answer.grants] == ["10.1.0.3", "10.1.0.2"]


def test_what_one_want_asks_for_no_other_of_its_request_draws() -> None:
    asks = want(POD.claim("net1"), 1, address="10.1.0.2", exact=True)
    request = replace(add(), wants=(want(POD.claim(), 1), asks))
    row = used("10.1.0.2")
    decision = judged(images(idle=[row, used("10.1.0.3")], asked=[row]), request)
    answer = decision.answers[0]
    assert isinstance(answer, Granted)
    assert [text(grant.ip) for grant in answer.grants] == ["10.1.0.3", "10.1.0.2"]


def test_what_one_want_held_last_no_other_of_its_request_gets_by_asking() -> None:
    mine = last("10.1.0.2")
    asks = want(POD.claim("net1"), 1, address="10.1.0.2", exact=True)
    decision = judged(images(own=[mine], asked=[mine]), replace(add(), wants=(want(POD.claim(), 1), asks)))
    answer = decision.answers[0]
    assert isinstance(answer, Refusal)
    assert answer.reason is Reason.ADDRESS_TAKEN


# The course of an act -----------------------------------------------------------------------------


@pytest.mark.parametrize("one, other, same", [
    (add(POD), delete(POD), True),
    (add(POD), add(replace(POD, uid="later"), interface="net1"), True),
    (add(POD), add(OTHER), False),
    (add(CONTAINED), delete(CONTAINED), True),
    (add(CONTAINED), add(outside(NODE, "c2")), False),
    (add(CONTAINED), add(outside("node-2", "c1")), False),
    (add(POD), Refuse(POD.claim(), POD.subject, POD.binding, Refusal(Reason.NO_POOL, ""), 1), True),
    (Free(Ip(1), 1, "a", "b"), Free(Ip(1), 2, "a", "b"), True),
    (Free(Ip(1), 1, "a", "b"), Free(Ip(2), 1, "a", "b"), False),
])  # fmt: skip
def test_a_batch_carries_one_act_for_each_holder(one: Request, other: Request, same: bool) -> None:
    assert (subject_of(one) == subject_of(other)) == same
    now, later = batch_of(begin([one, other]), 10)
    assert ([each.index for each in now], [each.index for each in later]) == (([0], [1]) if same else ([0, 1], []))


def test_a_batch_takes_no_more_than_its_limits_and_keeps_the_order_of_each_holder() -> None:
    crowd = [add(Pod(f"p{number}", f"u{number}", "c"), number + 1) for number in range(DEMANDS_MAX + 2)]
    now, later = batch_of(begin(crowd), 100)
    assert ([each.index for each in now], [each.index for each in later]) == (
        list(range(DEMANDS_MAX)), [DEMANDS_MAX, DEMANDS_MAX + 1],
    )  # fmt: skip
    now, later = batch_of(begin(crowd), 3)
    assert [each.index for each in now] == [0, 1, 2]
    # The second act of a holder does not overtake its first, even where that one does not fit.
    wide = acquire(definition(), POD, *(want(POD.claim(f"net{number}"), number) for number in range(1, 20)))
    now, later = batch_of(begin([crowd[0], wide, delete(POD), crowd[1]]), 100)
    assert ([each.index for each in now], [each.index for each in later]) == ([0, 3], [1, 2])
    now, later = batch_of(begin([wide, crowd[0]]), 100)
    assert [each.index for each in now] == [0]


def test_a_batch_reads_as_much_as_it_may_need_and_more_of_a_pool_that_others_have_locked() -> None:
    pending = begin([add(POD, 1, 2), add(OTHER, 1), add(Pod("third", "u3", "c3"), 2)])
    plan = plan_of(pending, {1: 500})
    assert plan.demands == [Demand(1, 2, 500, None, 1), Demand(2, 1, 0, None, 1)]
    again = advance(pending, judged(images(left=[2]), *(each.attempt.request for each in pending)))
    assert [(each.attempt.places, each.attempt.reach) for each in again] == [((1,), 2), ((1,), 2), ((0,), 1)]
    # Pool 1 is tried with what cools; pool 2 must not be called exhausted before everything has been looked at.
    assert plan_of(again, {1: 500, 2: 600}).demands == [Demand(1, 1, 500, FOR_EVER, 1), Demand(2, 2, 0, None, 2)]


def test_a_long_list_of_exhausted_pools_is_passed_in_few_rounds() -> None:
    pending = begin([add(POD, *range(1, 201))])
    for rounds in count(1):  # noqa: B007 - looked at below
        decision = decide([pending[0].attempt], images(), Definition(1), SALT, count(1))
        if not decision.setbacks:
            break
        pending = advance(pending, decision)
    assert outcome(decision) == "all-addresses-used-out"
    assert rounds < 40


def test_a_supply_puts_back_exactly_what_was_drawn() -> None:
    rows = [used(f"10.1.0.{number}") for number in (1, 2, 3)]
    supply = Supply(images(idle=rows, extents=[FRESH]))

    def everything() -> list[str]:
        mark = supply.mark()
        drawn: list[str] = []
        while choice := supply.draw(1, cooling=False):
            drawn.append(text(choice.ip))
        supply.undo(mark)
        return drawn

    first = everything()
    assert first == [f"10.1.0.{number}" for number in (1, 2, 3, 5, 6, 7, 8, 9)]
    supply.spend(parse("10.1.0.2"))
    mark = supply.mark()
    assert supply.draw_asked(parse("10.1.0.7"), 1) is not None
    assert everything() == [f"10.1.0.{number}" for number in (1, 3, 5, 6, 8, 9)]
    supply.undo(mark)
    assert supply.changed_extents() == []
    supply.undo(0)
    assert everything() == first


def answers_of(decision: Decision) -> dict[int, Answer]:
    return dict(decision.answers)


def test_the_same_input_is_decided_in_the_same_way() -> None:
    read = images(own=[held("10.1.0.2")], idle=[used("10.1.0.3")], extents=[FRESH])
    requests = [delete(POD), add(OTHER), add(Pod("third", "u3", "c3"), 1)]
    once, again = (judged(read, *requests) for _ in range(2))
    assert (once.rows, once.events, once.extents, answers_of(once)) == (
        again.rows, again.events, again.extents, answers_of(again),
    )  # fmt: skip
