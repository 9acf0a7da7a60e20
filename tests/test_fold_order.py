"""The fold and order: steps, claims and positions that a journal brings in another one, and what that may not be."""

from __future__ import annotations

from itertools import permutations
from random import Random

import pytest

from ledger.events import Event, sealed
from ledger.fold import INVERSION_US, WAITING_MAX, Fault, Fold, Holding, told
from tests.ledgers import Past
from tests.test_fold import (
    ALLOCATED,
    ALLOCATED_B,
    NAMED,
    REBOUND,
    RELEASED,
    WEB_1,
    WEB_2,
    A,
    B,
    E,
    F,
    add,
    at,
    events_of_a_small_past,
    faults_of,
    folded,
    leave_out,
    short,
)


def swapped(events: list[Event], one: int, other: int) -> list[Event]:
    """The two take each other's place in the journal."""
    first, second = events[one], events[other]
    turned = list(events)
    turned[one] = sealed(second._replace(tx=first.tx, position=first.position))
    turned[other] = sealed(first._replace(tx=second.tx, position=second.position))
    return turned


def test_an_inverted_step_is_a_fault_on_sqlite_and_none_on_postgresql() -> None:
    turned = swapped(short().events(), ALLOCATED, REBOUND)
    assert Fault(
        at(turned[ALLOCATED]), "step 2 of 10.0.1.1 stands in the journal without step 1 before it"
    ) in faults_of(turned)
    assert faults_of(turned, ordered=False) == []


@pytest.mark.parametrize("ordered", [True, False])
def test_a_step_inverted_inside_one_transaction_is_a_fault(ordered: bool) -> None:
    past = Past()
    past.open()
    past.commit()
    past.define_pool(1, "10.0.1.1", 8)
    past.commit()
    past.allocate(A, WEB_1)
    past.release(A)
    events = past.events()
    assert faults_of(events, ordered=ordered) == []
    turned = swapped(events, 2, 3)
    found = faults_of(turned, ordered=ordered)
    assert any(fault.where in (at(turned[2]), at(turned[3])) for fault in found)


def test_below_a_fence_a_missing_step_is_named_and_the_steps_behind_it_count() -> None:
    past = short()
    broken = leave_out(past.events(), REBOUND)
    fold = Fold(ordered=False)
    assert [fault for event in broken for fault in fold.apply(event)] == []
    assert A not in fold.state.addresses or fold.state.addresses[A].step == 1
    assert fold.settle() == [Fault(at(broken[3]), "step 3 of 10.0.1.1 stands in the journal without step 2 before it")]
    assert fold.state.addresses[A].step == 3
    assert fold.settle() == []


def test_a_gap_does_not_gather_events_without_bound() -> None:
    past = short()
    for _ in range(WAITING_MAX + 5):
        past.rebind(B, WEB_2)
        past.commit()
    events = past.events()
    rebound = next(place for place, event in enumerate(events) if event.ip == B and event.step == 2)
    fold = Fold(ordered=False)
    found = [fault for event in leave_out(events, rebound) for fault in fold.apply(event)]
    assert [fault.text for fault in found] == ["step 3 of 10.0.1.2 stands in the journal without step 2 before it"]


def test_a_holding_is_told_as_far_as_the_journal_has_come_though_its_steps_are_inverted() -> None:
    events = swapped(short().events(), ALLOCATED, RELEASED)[: ALLOCATED + 1]
    fold, released = Fold(ordered=False), events[ALLOCATED]
    assert [fault for event in events for fault in fold.apply(event)] == []
    half = Holding(A, 1, held_until=released.happened_at, recorded_until=released.recorded_at, cause="del")
    assert fold.holding(A, 1) == half
    assert fold.holding(A, 2) is None


def test_what_waits_adds_to_an_open_holding_only_what_tells_of_it() -> None:
    past = short()
    for _ in range(2):
        past.rebind(B, WEB_2)
        past.commit()
    expected = Holding(**past.holdings[B, 1])
    past.unbind(B)
    events = past.events()
    steps = [place for place, event in enumerate(events) if event.ip == B]
    fold = Fold(ordered=False)
    found = [fault for place, event in enumerate(events) if place != steps[1] for fault in fold.apply(event)]
    assert (found, fold.state.holdings[B].last_step) == ([], 1)
    assert fold.holding(B, 1) == expected
    assert fold.holding(B, 7) is None


def test_every_image_that_an_address_takes_on_is_passed_once() -> None:
    events = short().events()
    fold = Fold(ordered=False)
    passed = []
    for event in (*events[:ALLOCATED], events[RELEASED], events[REBOUND], events[ALLOCATED], events[NAMED]):
        fold.apply(event)
        passed.append([(image.ip, image.step) for image in fold.passed])
    assert passed == [[], [], [], [], [(A, 1), (A, 2), (A, 3)], []]


def test_the_events_of_a_holding_may_be_told_in_any_order() -> None:
    past = short()
    for _ in range(3):
        past.rebind(B, WEB_2)
        past.commit()
    past.release(B)
    events = [event for event in past.events() if event.ip == B]
    expected = past.holdings[B, 1]
    for turned in permutations(events):
        image = Holding(B, 1)
        for event in turned:
            image = told(image, event)
        assert image._asdict() == expected


@pytest.mark.parametrize(("apart", "ordered", "faults"), [
    (1, False, 0),
    (INVERSION_US + 1, False, 1),
    (1, True, 1),
])  # fmt: skip
def test_a_claims_first_address_may_be_released_behind_its_second_only_by_transactions_that_overlapped(
    apart: int, ordered: bool, faults: int
) -> None:
    events = short().events()
    second = add(events, events[ALLOCATED], ip=E, claim=events[ALLOCATED_B].claim)
    later = second[-1].recorded_at + apart
    released = add(second, events[RELEASED], ip=B, step=2, holding=1, claim=events[ALLOCATED_B].claim,
                   recorded_at=later, happened_at=later)  # fmt: skip
    found = faults_of(released, ordered=ordered)
    assert [fault.where for fault in found] == [at(second[-1])] * faults


def test_a_claim_that_holds_more_than_two_is_found_at_each_and_once() -> None:
    events = short().events()
    claim = events[ALLOCATED_B].claim
    for ip in (E, F):
        events = add(events, events[ALLOCATED], ip=ip, claim=claim)
    fold, faults = folded(events, ordered=False)
    holds = f"is allocated to claim {(claim or b'').hex()}, which holds"
    assert [fault.text for fault in faults] == [f"10.0.1.5 {holds} 10.0.1.2", f"10.0.1.6 {holds} 10.0.1.5"]
    assert fold.settle() == []


def test_a_claim_whose_first_address_was_released_behind_its_second_may_give_that_back_and_get_another() -> None:
    events = short().events()
    claim = events[ALLOCATED_B].claim
    events = add(events, events[ALLOCATED], ip=E, claim=claim)
    for ip in (B, E):
        events = add(events, events[RELEASED], ip=ip, step=2, holding=1, claim=claim)
    assert faults_of(add(events, events[ALLOCATED], ip=F, claim=claim), ordered=False) == []


def test_a_claim_may_move_within_one_transaction_in_either_order() -> None:
    events = short().events()
    second = add(events, events[ALLOCATED], ip=E, claim=events[ALLOCATED_B].claim)
    released = add(second, events[RELEASED], ip=B, step=2, holding=1, claim=events[ALLOCATED_B].claim, tx=second[-1].tx)
    assert faults_of(released, ordered=True) == []


@pytest.mark.parametrize("positions", [(1, 3), (2, 1), (1, 1), (5,)])
def test_on_sqlite_positions_follow_one_another(positions: tuple[int, ...]) -> None:
    events = short().events()[: len(positions)]
    moved = [event._replace(position=position) for event, position in zip(events, positions, strict=True)]
    assert any(fault.text.startswith("its position") for fault in faults_of(moved))


@pytest.mark.parametrize("seed", range(5))
def test_on_postgresql_positions_may_come_in_any_order_with_gaps_but_never_twice(seed: int) -> None:
    events = events_of_a_small_past()
    positions = Random(seed).sample(range(1, 4 * len(events)), len(events))
    moved = [event._replace(position=position) for event, position in zip(events, positions, strict=True)]
    assert faults_of(moved, ordered=False) == []
    moved[50] = moved[50]._replace(position=positions[3])
    twice = Fault(at(moved[50]), f"its position {positions[3]} stands twice")
    assert twice in faults_of(moved, ordered=False)


@pytest.mark.parametrize("seed", range(5))
def test_positions_are_remembered_as_runs_however_they_come(seed: int) -> None:
    events = events_of_a_small_past()[:40]
    order = Random(seed).sample(range(1, len(events) + 1), len(events))
    fold = Fold(ordered=False)
    for event, position in zip(events, order, strict=True):
        fold.apply(event._replace(position=position))
    assert fold._positions._runs == [(1, len(events))]
