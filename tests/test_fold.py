"""The fold: whole journals give the state that they were written with; what breaks a rule is found where it stands."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any

import pytest

from ledger.addresses import parse
from ledger.canonical import canonical
from ledger.claims import Subject, salted
from ledger.events import EPOCH_SHIFT, Event, EventType, sealed
from ledger.fold import Fault, Fold, Occupancy
from ledger.ranges import TOTAL_MAX
from tests.ledgers import Past, changed_cell, inverted, small

WEB_1, WEB_2, WEB_3 = (Subject("here", "default", f"web-{number}", f"uid-{number}") for number in (1, 2, 3))
A, B, C, D, E, F = (parse(f"10.0.1.{number}") for number in range(1, 7))
NULLABLE = ("ip", "family", "step", "holding", "pool", "definition", "claim", "node_time", "interface", "subject",
            "container", "network", "netns", "node", "stamp")  # fmt: skip


def short() -> Past:
    """Few acts, each a transaction: what stands at which place of its journal is named below."""
    past = Past()
    past.open()
    acts: tuple[Callable[[], None], ...] = (
        lambda: past.define_pool(1, "10.0.1.1", 8),
        lambda: past.allocate(A, WEB_1),
        lambda: past.rebind(A, WEB_1),
        lambda: past.release(A),
        lambda: past.allocate(B, WEB_2),
        lambda: past.allocate(C, WEB_3),
        lambda: past.redefine_pool(1, excluded={C}),
        lambda: past.allocate(D, WEB_1, "eth1"),
        lambda: past.name("Pod", "default", "web-1"),
        lambda: past.refuse(WEB_1, [1]),
    )
    for act in acts:
        past.commit()
        act()
    past.commit()
    return past


OPENED, DEFINED, ALLOCATED, REBOUND, RELEASED, ALLOCATED_B, ALLOCATED_C = range(7)
REDEFINED, WITHHELD, ALLOCATED_D, NAMED, REFUSED = range(7, 12)
LAST = -1


@cache
def _small_journal() -> tuple[Event, ...]:
    return tuple(small().events())


def events_of_a_small_past() -> list[Event]:
    return list(_small_journal())


def folded(events: list[Event], *, ordered: bool = True) -> tuple[Fold, list[Fault]]:
    fold = Fold(ordered=ordered)
    faults = [fault for event in events for fault in fold.apply(event)]
    return fold, faults + fold.settle()


def faults_of(events: list[Event], *, ordered: bool = True) -> list[Fault]:
    return folded(events, ordered=ordered)[1]


def at(event: Event) -> str:
    return f"event {event.tx}/{event.position}"


def edit(events: list[Event], place: int, **cells: Any) -> list[Event]:
    """Say something else, with the digest of it: only the rule is broken."""
    return [*events[:place], sealed(events[place]._replace(**cells)), *events[place + 1 :]]


def details(events: list[Event], place: int, **changed: Any) -> list[Event]:
    """Other details; None takes one out."""
    kept = {name: value for name, value in (events[place].details | changed).items() if value is not None}
    return edit(events, place, data=canonical(kept))


def document(events: list[Event], ips: list[str] | None) -> list[Event]:
    """The pool says other ranges, or nothing that a pool must say."""
    said = events[DEFINED].details["document"]
    return details(events, DEFINED, document={**said, "spec": {**said["spec"], "ips": ips} if ips else {}})


def add(events: list[Event], copy: Event, **cells: Any) -> list[Event]:
    """One more like this, in a transaction of its own, later than all."""
    later = max(event.recorded_at for event in events) + 1
    place = {"tx": 1 << EPOCH_SHIFT | len(events) + 1, "position": len(events) + 1, "id": copy.id + 1}
    return [*events, sealed(copy._replace(**{**place, "recorded_at": later, "happened_at": later, **cells}))]


def leave_out(events: list[Event], place: int) -> list[Event]:
    """Without this one, and nothing else to show it: positions and transactions close up."""
    left = [*events[:place], *events[place + 1 :]]
    return [
        sealed(event._replace(tx=1 << EPOCH_SHIFT | number, position=number)) for number, event in enumerate(left, 1)
    ]


# What is right ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_a_valid_journal_folds_into_the_state_it_was_written_with(seed: int, ordered: bool) -> None:
    past = small(seed=seed, acts=120)
    fold, faults = folded(past.events(), ordered=ordered)
    assert faults == []
    assert_same(fold, past)


@pytest.mark.parametrize("seed", range(20))
def test_steps_inverted_across_transactions_make_no_difference_on_postgresql(seed: int) -> None:
    past = small(seed=seed, acts=120)
    turned = inverted(past.events(), Random(seed))
    assert turned != past.events()
    fold, faults = folded(turned, ordered=False)
    assert faults == []
    assert_same(fold, past)


def assert_same(fold: Fold, past: Past) -> None:
    state, rows = fold.state, {}
    for ip, row in past.rows.items():
        claim = None if row.claim is None else salted(past.salt, row.claim).hex()
        rows[ip] = row._replace(claim=claim)
    assert state.addresses == rows
    open_ = {ip: row for (ip, _), row in past.holdings.items() if row["held_until"] is None}
    assert {ip: holding._asdict() for ip, holding in state.holdings.items()} == open_
    ended = {key: row for key, row in past.holdings.items() if row["held_until"] is not None}
    assert {(each.ip, each.step): each._asdict() for each in fold.ended} == ended
    assert {pool: row._asdict() for pool, row in state.occupancy.items()} == past.occupancy
    for history, defined in ((state.pools, past.pool_rows), (state.reservations, past.reservation_rows)):
        latest = {id_: versions[max(versions)] for id_, versions in history.items()}
        assert {id_: row[:4] for id_, row in latest.items()} == {
            id_: (row["uid"], row["name"], row["state"], row["document"]) for id_, row in defined.items()
        }
    assert state.objects == {key: row["uid"] for key, row in past.objects.items()}
    ledger = {"epoch": 1, "doubted": None, "doubt_until": None, "fenced": None}
    assert state.ledger._asdict() == ledger | past.ledger | {"definition": past.version}


def test_the_small_past_has_every_type_of_event() -> None:
    assert {event.type for event in events_of_a_small_past()} == {each.value for each in EventType}


def test_an_empty_journal_leaves_the_ledger_as_it_was_made() -> None:
    fold, faults = folded([])
    assert faults == []
    assert tuple(fold.state.ledger) == (1, 0, "", None, None, None)


def test_a_new_epoch_goes_on_with_the_definition_and_the_steps_and_ends_what_fenced_the_old() -> None:
    past = short()
    restored_after(past)
    past.unbind(B)
    past.commit()
    past.redefine_pool(1)
    fold, faults = folded(past.events())
    assert faults == []
    assert tuple(fold.state.ledger) == (2, (2 << 32) + 1, "new", None, None, None)
    assert past.events()[-1].tx >> EPOCH_SHIFT == 2
    assert fold.state.addresses[B].step == 2


def restored_after(past: Past) -> None:
    """It is fenced, and its loss accepted."""
    past.fence("an event is missing")
    past.commit()
    past.restore("new")
    past.commit()


def test_what_a_restore_says_of_itself_must_be_true() -> None:
    past = short()
    restored_after(past)
    *before, fenced, restored = past.events()
    place = f"event {restored.tx}/{restored.position}"
    told = {"epoch": 2, "incarnation": "new", "reason": "lost"}

    def faults_with(*events: Event) -> list[Fault]:
        return [fault for fault in folded(list(events))[1] if fault.where == place]

    assert faults_with(*before, fenced, restored) == []
    not_fenced = sealed(restored._replace(position=fenced.position))
    found = folded([*before, not_fenced])[1]
    assert [fault.text for fault in found] == ["it restores a ledger that is not fenced"]
    other = sealed(restored._replace(data=canonical(told | {"epoch": 3})))
    assert faults_with(*before, fenced, other) == [Fault(place, "it opens epoch 3 after 1")]
    for version in (1, 2):
        low = sealed(restored._replace(definition=version))
        assert faults_with(*before, fenced, low) == [Fault(place, f"definition {version} follows 2")]
    none = sealed(restored._replace(definition=None))
    assert faults_with(*before, fenced, none) == [Fault(place, "it cannot be read: it lacks definition")]
    again = sealed(restored._replace(tx=1 << EPOCH_SHIFT | 100, data=canonical(told | {"epoch": 1})))
    assert "it opens epoch 1 after 1" in [fault.text for fault in folded([*before, fenced, again])[1]]


# What is broken --------------------------------------------------------------------------------

Break = Callable[[list[Event]], list[Event]]
RULES: dict[str, tuple[Break, int, str]] = {
    # What is broken: how, at which place of the broken journal it is found, and in which words.
    "its digest": (lambda j: [*j[:3], j[3]._replace(digest=b"?"), *j[4:]], REBOUND, "its digest is not that of what"),
    "an unknown type": (lambda j: edit(j, REBOUND, type="address.lost"), REBOUND, "address.lost version 1 is not"),
    "an unknown version": (lambda j: edit(j, REBOUND, version=2), REBOUND, "version 2 is not known here"),
    "data that is no JSON": (lambda j: edit(j, REBOUND, data="{"), REBOUND, "it cannot be read: Expecting"),
    "data that is no object": (lambda j: edit(j, REBOUND, data="[]"), REBOUND, "its data is no object"),
    "data in other words": (lambda j: edit(j, REBOUND, data='{"b":1,"a":1}'), REBOUND, "its data is no object"),
    "a number that is none": (lambda j: edit(j, REBOUND, data='{"a":NaN}'), REBOUND, "it cannot be read"),
    "pools by name": (lambda j: details(j, REFUSED, pools=["pool-1"]), REFUSED, "it lacks data.pools"),
    "no address": (lambda j: edit(j, REBOUND, ip=None), REBOUND, "it lacks ip"),
    "no step": (lambda j: edit(j, REBOUND, step=None), REBOUND, "it lacks step"),
    "no pool": (lambda j: edit(j, REBOUND, pool=None), REBOUND, "it lacks pool"),
    "no claim": (lambda j: edit(j, ALLOCATED, claim=None), ALLOCATED, "it lacks claim"),
    "no holding": (lambda j: edit(j, ALLOCATED, holding=None), ALLOCATED, "it lacks holding"),
    "no definition": (lambda j: edit(j, ALLOCATED, definition=None), ALLOCATED, "it lacks definition"),
    "a name that is none": (lambda j: details(j, DEFINED, name=3), DEFINED, "it lacks data.name"),
    "no result": (lambda j: details(j, ALLOCATED, result=None), ALLOCATED, "it lacks data.result"),
    "a readiness in words": (lambda j: details(j, RELEASED, ready="soon"), RELEASED, "it lacks data.ready"),
    "no total": (lambda j: details(j, DEFINED, total=None), DEFINED, "it lacks data.total"),
    "another family": (lambda j: edit(j, REBOUND, family=6), REBOUND, "10.0.1.1 is not of family 6"),
    "a step without an address": (lambda j: edit(j, OPENED, step=1), OPENED, "ledger.opened has no step"),
    "an address of the ledger": (lambda j: edit(j, OPENED, ip=A), OPENED, "ledger.opened has no ip"),
    "a holding of the ledger": (lambda j: edit(j, OPENED, holding=1), OPENED, "ledger.opened has no holding"),
    "a document of no pool": (lambda j: document(j, None), DEFINED, "its document cannot be read"),
    "a range that is reversed": (lambda j: document(j, ["10.0.1.9-10.0.1.1"]), DEFINED, "its document cannot be read"),
    "an unknown state": (lambda j: details(j, DEFINED, state="ajar"), DEFINED, "its document cannot be read"),
    "the first event": (lambda j: leave_out(j, OPENED), 0, "the journal begins with pool.defined"),
    "the epoch": (lambda j: edit(j, WITHHELD, tx=2 << EPOCH_SHIFT), WITHHELD, "its epoch 2 is not 1"),
    "an epoch but its transaction's": (lambda j: details(j, OPENED, epoch=2), OPENED, "it opens epoch 2 after 1"),
    "an epoch that is opened twice": (lambda j: add(j, j[OPENED]), LAST, "it opens epoch 1 after 1"),
    "an id": (lambda j: edit(j, WITHHELD, id=j[REDEFINED].id), WITHHELD, "stands twice in one transaction"),
    "a position": (lambda j: add(j, j[REFUSED], position=12), LAST, "its position 12 stands twice"),
    "a step": (lambda j: leave_out(j, REBOUND), REBOUND, "step 3 of 10.0.1.1 stands in the journal without step 2"),
    "some steps": (lambda j: edit(j, RELEASED, step=5), RELEASED, "stands in the journal without steps 3 to 4"),
    "a step that comes again": (lambda j: add(j, j[REBOUND]), LAST, "step 2 of 10.0.1.1 comes again, after step 3"),
    "allocated while held": (
        lambda j: add(j, j[ALLOCATED_B], step=2, holding=2, claim=b"x"), LAST, "is allocated while it is held"),
    "allocated while withheld": (
        lambda j: add(add(j, j[WITHHELD], ip=A, step=4, holding=None), j[ALLOCATED], step=5, holding=5), LAST,
        "10.0.1.1 is allocated while it is withheld"),
    "released while not held": (
        lambda j: add(j, j[RELEASED], step=4, holding=None), LAST, "10.0.1.1 is released while it is not held"),
    "rebound while not held": (
        lambda j: add(j, j[REBOUND], step=4, holding=None), LAST, "10.0.1.1 is rebound while it is not held"),
    "unbound while not held": (
        lambda j: add(j, j[REBOUND], type=EventType.UNBOUND, step=4, holding=None), LAST,
        "10.0.1.1 is unbound while it is not held"),
    "forgotten while held": (
        lambda j: add(j, j[WITHHELD], type=EventType.FORGOTTEN, step=3), LAST, "is forgotten while it is held"),
    "released through another claim": (
        lambda j: edit(j, RELEASED, claim=b"\1"), RELEASED, "10.0.1.1 is released by claim 01, but"),
    "a holding that is not the open one": (
        lambda j: edit(j, RELEASED, holding=2), RELEASED, "10.0.1.1 is in holding 1, but the event says 2"),
    "a holding that is not named": (
        lambda j: edit(j, REBOUND, holding=None), REBOUND, "10.0.1.1 is in holding 1, but the event says None"),
    "a holding that is not its first step": (
        lambda j: edit(j, ALLOCATED, holding=9), ALLOCATED, "10.0.1.1 is in holding 1, but the event says 9"),
    "a claim that holds two addresses": (
        lambda j: add(j, j[ALLOCATED], ip=E, claim=j[ALLOCATED_B].claim), LAST, "which holds 10.0.1.2"),
    "recorded with the step before": (
        lambda j: edit(j, REBOUND, recorded_at=j[ALLOCATED].recorded_at, happened_at=1), REBOUND,
        "10.0.1.1 had its last event recorded at"),
    "allocated before it was recorded": (
        lambda j: edit(j, ALLOCATED, happened_at=j[ALLOCATED].recorded_at - 1), ALLOCATED, "an event that happened at"),
    "released before it was allocated": (
        lambda j: edit(j, RELEASED, happened_at=j[ALLOCATED].recorded_at - 1), RELEASED, "an event that happened at"),
    "rebound before it was allocated": (
        lambda j: edit(j, REBOUND, happened_at=j[ALLOCATED].recorded_at - 1), REBOUND, "an event that happened at"),
    "released after it was recorded": (
        lambda j: edit(j, RELEASED, happened_at=j[RELEASED].recorded_at + 1), RELEASED, "after it was recorded at"),
    "a definition passed over": (lambda j: edit(j, REDEFINED, definition=3), REDEFINED, "definition 3 follows 1"),
    "a definition made again": (lambda j: add(j, j[REDEFINED]), LAST, "definition 2 follows 2"),
    "two definitions in a transaction": (
        lambda j: add(j, j[REDEFINED], tx=j[WITHHELD].tx, definition=3), LAST,
        "definition 3 is made in the transaction of 2"),
    "allocated from an unknown pool": (
        lambda j: edit(j, ALLOCATED_B, pool=7), ALLOCATED_B, "10.0.1.2 was not available in pool 7 at definition 1"),
    "allocated though excluded": (
        lambda j: edit(j, ALLOCATED_D, ip=C, definition=2), ALLOCATED_D,
        "10.0.1.3 was not available in pool 1 at definition 2"),
    "allocated from outside": (
        lambda j: edit(j, ALLOCATED_B, ip=parse("10.0.1.99")), ALLOCATED_B, "10.0.1.99 was not available in pool 1"),
    "allocated from a closed pool": (
        lambda j: details(j, REDEFINED, state="closed"), ALLOCATED_D,
        "10.0.1.4 was not available in pool 1 at definition 2"),
    "allocated by a definition to come": (
        lambda j: edit(j, ALLOCATED, definition=2), ALLOCATED, "it cites definition 2, after 1"),
    "an object named twice": (lambda j: add(j, j[NAMED]), LAST, "object.named Pod/default/web-1"),
    "an object that leaves by another uid": (
        lambda j: add(details(j, NAMED, uid="x"), j[NAMED], type=EventType.OBJECT_LEFT), LAST, "but it was x"),
}  # fmt: skip


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("name", RULES)
def test_what_is_broken_is_found_where_it_is(name: str, ordered: bool) -> None:
    breaks, place, words = RULES[name]
    journal = short().events()
    assert faults_of(journal, ordered=ordered) == []
    broken = breaks(journal)
    found = faults_of(broken, ordered=ordered)
    assert [fault for fault in found if fault.where == at(broken[place]) and words in fault.text], found


@pytest.mark.parametrize("column", Event._fields)
def test_a_changed_cell_of_an_event_is_found(column: str) -> None:
    journal = events_of_a_small_past()
    place = next(place for place, event in enumerate(journal) if None not in event)
    journal[place] = changed_cell(journal[place], column)
    assert at(journal[place]) in {fault.where for fault in faults_of(journal)}


@pytest.mark.parametrize("column", NULLABLE)
def test_an_emptied_cell_of_an_event_is_found(column: str) -> None:
    journal = events_of_a_small_past()
    place = next(place for place, event in enumerate(journal) if None not in event)
    emptied: dict[str, Any] = {column: None}
    journal[place] = journal[place]._replace(**emptied)
    assert Fault(at(journal[place]), "its digest is not that of what it says") in faults_of(journal)


@pytest.mark.parametrize("type_", EventType)
def test_an_event_without_its_details_is_found_and_passed_over(type_: EventType) -> None:
    journal = events_of_a_small_past()
    place = next(place for place, event in enumerate(journal) if event.type == type_)
    found = faults_of(edit(journal, place, data="{}"))
    harmless = {"address.rebound", "address.unbound", "address.forgotten", "address.withheld", "address.readmitted"}
    lacking = [fault for fault in found if fault.where == at(journal[place]) and "it lacks data." in fault.text]
    assert len(lacking) == (type_ not in harmless)


@pytest.mark.parametrize("available", [["1"], {"pool-1": 3}, {"01": 3}, {"1": "three"}])
def test_a_reservation_that_does_not_say_what_is_left_of_which_pool_cannot_be_read(available: Any) -> None:
    journal = events_of_a_small_past()
    place = next(place for place, event in enumerate(journal) if event.type == EventType.RESERVATION_DEFINED)
    lacks = Fault(at(journal[place]), "it cannot be read: it lacks data.available")
    assert lacks in faults_of(details(journal, place, available=available))


def test_a_reservation_that_says_no_version_or_no_ranges_cannot_be_read() -> None:
    journal = events_of_a_small_past()
    place = next(place for place, event in enumerate(journal) if event.type == EventType.RESERVATION_DEFINED)
    lacks = Fault(at(journal[place]), "it cannot be read: it lacks definition")
    assert lacks in faults_of(edit(journal, place, definition=None))
    said = journal[place].details["document"]
    reversed_ = {**said, "spec": {**said["spec"], "ips": ["10.0.1.9-10.0.1.1"]}}
    unread = Fault(at(journal[place]), "its document cannot be read")
    assert unread in faults_of(details(journal, place, document=reversed_))


def test_more_addresses_than_a_column_holds_are_counted_as_so_many() -> None:
    fold, faults = folded(details(short().events(), DEFINED, total=1 << 70, available=1 << 69)[: DEFINED + 1])
    assert faults == []
    assert fold.state.occupancy[1] == Occupancy(1, definition=1, total=TOTAL_MAX)


def test_a_definition_that_is_made_again_does_not_bring_the_version_back() -> None:
    events = short().events()
    fold, faults = folded(add(events, events[DEFINED]))
    assert [fault.text for fault in faults] == ["definition 1 follows 2"]
    assert fold.state.ledger.definition == 2


def test_an_allocation_is_judged_by_the_definition_that_it_cites() -> None:
    past = short()
    past.redefine_pool(1, excluded={C, E})
    events = past.events()
    for version, available in ((2, True), (3, False)):
        found = faults_of(add(events, events[ALLOCATED], ip=E, definition=version, claim=b"x"))
        text = f"10.0.1.5 was not available in pool 1 at definition {version}"
        assert [fault.text for fault in found] == ([] if available else [text])


def test_an_address_that_is_allocated_while_it_is_held_ends_the_holding_before_as_it_was() -> None:
    events = short().events()
    before = folded(events)[0].state.holdings[B]
    fold, faults = folded(add(events, events[ALLOCATED_B], step=2, holding=2))
    assert [fault.text for fault in faults] == ["10.0.1.2 is allocated while it is held"]
    assert before in fold.ended
    assert fold.state.holdings[B].step == 2


def test_what_names_another_holding_tells_nothing_of_the_open_one() -> None:
    events = short().events()[: RELEASED + 1]
    before = folded(events[:RELEASED])[0].state.holdings[A]
    assert folded(edit(events, RELEASED, holding=2))[0].state.holdings[A] == before


def test_an_id_may_come_again_in_another_transaction() -> None:
    events = short().events()
    assert faults_of(edit(events, ALLOCATED_B, id=events[ALLOCATED].id)) == []


def test_a_step_that_comes_again_changes_nothing() -> None:
    events = short().events()
    for ordered in (True, False):
        fold, faults = folded(add(events, events[REBOUND], node="another"), ordered=ordered)
        assert len(faults) == 1
        assert fold.state.addresses == folded(events)[0].state.addresses


def test_a_step_that_comes_again_while_it_waits_is_found() -> None:
    events = short().events()
    waiting = [*events[:ALLOCATED], events[REBOUND]]
    faults = faults_of(add(waiting, events[REBOUND]), ordered=False)
    assert Fault(f"event {1 << EPOCH_SHIFT | 4}/4", "step 2 of 10.0.1.1 comes again, after step 0") in faults


def test_the_ledger_is_in_doubt_until_it_is_trusted() -> None:
    past = short()
    past.doubt("second")
    past.commit()
    assert_same(folded(past.events())[0], past)
    assert folded(past.events())[0].state.ledger.doubted == "second"
    past.trust("second")
    assert_same(folded(past.events())[0], past)
    assert folded(past.events())[0].state.ledger.doubted is None
