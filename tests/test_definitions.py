"""`Ledger.define` on both databases: what a change of a pool or reservation does to addresses, used or not."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from sqlalchemy import Engine, text

from ledger.admission import AdmissionRefused
from ledger.definition import State
from ledger.definitions import StillHeldError
from ledger.redefine import ClosePool, RetirePool, RetireReservation
from ledger.requests import Done, Granted, Refusal, Request
from ledger.resources import SpiderIPPool
from ledger.store import Ledger, Settings
from tests.acts import (
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
    given,
    journal,
    one,
    pods,
    row,
    shown,
    story,
    try_define,
    want,
)
from tests.conftest import Database

POOL = a_pool("a", "10.1.0.1-10.1.0.9")


@pytest.fixture
def engine(database: Database) -> Engine:
    return database.engine()


@pytest.fixture
def ledger(engine: Engine) -> Ledger:
    return Ledger(engine, Settings(doubt_seconds=0))


def edited(pool: SpiderIPPool = POOL, **spec: Any) -> SpiderIPPool:
    """The pool with some words of its spec changed."""
    return pool.model_copy(update={"spec": pool.spec.model_copy(update=spec)})


def all_given(ledger: Ledger, number: int) -> list[str]:
    """What so many new pods are answered."""
    definition = ledger.definition()
    return [shown(answer) for answer in ask(ledger, *(add(definition, pod) for pod in pods(number, "all")))]


# What a change says -------------------------------------------------------------------------------


def test_a_change_is_one_event_with_the_object_and_one_version_more(ledger: Ledger, engine: Engine) -> None:
    define(ledger, POOL, a_reservation("r", "10.1.0.3"), edited(exclude_ips=("10.1.0.1",)), close("a"))
    define(ledger, RetirePool("uid-a"), RetireReservation("uid-r"))
    said = [(event.type, event.definition) for event in journal(engine) if event.definition]
    assert said == [
        ("pool.defined", 1), ("reservation.defined", 2), ("pool.redefined", 3), ("pool.closed", 4),
        ("pool.retired", 5), ("reservation.retired", 6),
    ]  # fmt: skip
    told = [event.details for event in journal(engine) if event.type.startswith("pool")]
    assert [(each["total"], each["available"]) for each in told] == [(9, 9), (8, 7), (8, 0), (8, 0)]
    assert journal(engine, "reservation.defined")[0].details["available"] == {"1": 8}
    with engine.connect() as connection:
        state, document = connection.execute(text("SELECT state, document FROM pool")).one()
    assert (state, json.loads(document)) == ("retired", told[-1]["document"])
    check(engine)


@pytest.mark.parametrize("change", [POOL, close("none"), RetirePool("none"), RetireReservation("none")])
def test_a_change_that_changes_nothing_leaves_no_trace(ledger: Ledger, engine: Engine, change: Any) -> None:
    define(ledger, POOL)
    events = len(journal(engine))
    assert define(ledger, change).version == 1
    assert len(journal(engine)) == events


def test_what_admission_refuses_changes_nothing(ledger: Ledger, engine: Engine) -> None:
    define(ledger, POOL)
    refused = try_define(ledger, a_pool("b", "10.1.0.9-10.1.0.20"))
    assert isinstance(refused, AdmissionRefused)
    assert "overlap with IPPool a" in str(refused)
    assert ledger.refresh().version == 1
    assert counted(engine, "pool") == 1


def test_a_family_that_is_switched_off_is_refused(engine: Engine) -> None:
    only_four = Ledger(engine, Settings(doubt_seconds=0, families=frozenset({4})))
    assert isinstance(try_define(only_four, a_pool("six", "fd00::1")), AdmissionRefused)


# Shrinking, growing -------------------------------------------------------------------------------


def test_an_edit_that_takes_a_held_address_away_is_rolled_back_whole(ledger: Ledger, engine: Engine) -> None:
    define(ledger, POOL)
    ip = given(ledger, Pod("web", namespace="prod"))
    before = (row(engine, ip), counted(engine, "extent"), len(journal(engine)))
    refused = try_define(ledger, edited(exclude_ips=(ip, "10.1.0.5")))
    assert isinstance(refused, AdmissionRefused)
    assert f"remove an IP address {ip} that is being used by Pod prod/web" in str(refused)
    assert (row(engine, ip), counted(engine, "extent"), len(journal(engine))) == before
    assert ledger.refresh().version == 1
    check(engine)


def test_a_held_address_that_a_reservation_covers_cannot_be_taken_away_either(ledger: Ledger, engine: Engine) -> None:
    define(ledger, POOL)
    ip = given(ledger, Pod())
    define(ledger, a_reservation("r", ip))
    assert isinstance(try_define(ledger, edited(exclude_ips=(ip,))), AdmissionRefused)
    check(engine)


def test_what_an_edit_takes_away_is_not_handed_out_and_what_it_brings_is(ledger: Ledger, engine: Engine) -> None:
    define(ledger, a_pool("a", "10.1.0.1-10.1.0.4"))
    used = Pod()
    assert given(ledger, used) == "10.1.0.1"
    one(ledger, delete(used))
    define(ledger, a_pool("a", "10.1.0.4-10.1.0.6", exclude_ips=("10.1.0.5",)))
    assert row(engine, "10.1.0.1").withheld
    assert all_given(ledger, 3) == ["10.1.0.4", "10.1.0.6", "all-addresses-used-out"]
    define(ledger, a_pool("a", "10.1.0.1-10.1.0.6"))
    assert story(engine, "10.1.0.1") == ["allocated", "released", "withheld", "readmitted"]
    later = [given(ledger, pod) for pod in pods(4, "later")]
    assert later == ["10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.5"]
    check(engine)


@pytest.mark.parametrize("change, why", [
    (edited(exclude_ips=("10.1.0.1",)), "10.1.0.1 is in none of the IPPools of this request"),
    (a_reservation("r", "10.1.0.1"), "10.1.0.1 is withheld"),
])  # fmt: skip
def test_a_claim_does_not_get_a_withheld_last_address_back(
    ledger: Ledger, engine: Engine, change: Any, why: str
) -> None:
    define(ledger, POOL)
    pod = Pod()
    ip = given(ledger, pod)
    one(ledger, delete(pod))
    define(ledger, change)
    exactly = acquire(ledger.definition(), pod.new("c2"), want(pod.claim(), 1, address=ip, exact=True))
    refused = one(ledger, exactly)
    assert isinstance(refused, Refusal)
    assert refused.text == why
    assert given(ledger, pod.new("c3")) == "10.1.0.2"
    assert story(engine, ip) == ["allocated", "released", "withheld", "forgotten"]
    check(engine)


def test_an_address_moves_with_its_steps_from_one_pool_to_another(ledger: Ledger, engine: Engine) -> None:
    define(ledger, a_pool("a", "10.1.0.1-10.1.0.2"))
    pod = Pod()
    given(ledger, pod)
    one(ledger, delete(pod))
    define(ledger, a_pool("a", "10.1.0.2"), a_reservation("r", "10.1.0.1"), a_pool("b", "10.1.0.1"))
    assert row(engine, "10.1.0.1").withheld
    define(ledger, RetireReservation("uid-r"))
    assert given(ledger, Pod("other", "u2", "c2"), "b") == "10.1.0.1"
    assert (row(engine, "10.1.0.1").pool, row(engine, "10.1.0.1").step) == (3, 5)
    check(engine)


def test_new_words_of_a_pool_hold_for_new_allocations_only(ledger: Ledger, engine: Engine) -> None:
    define(ledger, edited(gateway="10.1.0.250"))
    first, second = pods(2)
    before = one(ledger, add(ledger.definition(), first))
    define(ledger, edited(gateway="10.1.0.251"))
    assert one(ledger, add(ledger.definition(), first)) == before
    after = one(ledger, add(ledger.definition(), second))
    assert isinstance(before, Granted)
    assert isinstance(after, Granted)
    assert [each.grants[0].terms["gateway"] for each in (before, after)] == ["10.1.0.250", "10.1.0.251"]
    check(engine)


# Reserving ----------------------------------------------------------------------------------------


def test_a_reserved_address_stays_with_its_holder_and_is_nobodys_after_its_release(
    ledger: Ledger, engine: Engine
) -> None:
    define(ledger, a_pool("a", "10.1.0.1-10.1.0.2"))
    pod = Pod()
    ip = given(ledger, pod)
    define(ledger, a_reservation("r", ip))
    assert (row(engine, ip).held, row(engine, ip).withheld) == (True, True)
    assert given(ledger, pod.new("c2")) == ip
    assert one(ledger, delete(pod.new("c2"), stamp=2**40)) == Done(freed=1)
    assert all_given(ledger, 2) == ["10.1.0.2", "all-addresses-used-out"]
    define(ledger, RetireReservation("uid-r"))
    assert given(ledger, Pod("later", "u3", "c3")) == ip
    assert story(engine, ip) == ["allocated", "withheld", "rebound", "released", "readmitted", "allocated"]
    check(engine)


def test_a_reservation_counts_in_every_pool_it_touches_and_not_in_the_other_family(
    ledger: Ledger, engine: Engine
) -> None:
    define(ledger, POOL, a_pool("b", "10.1.1.1-10.1.1.9"), a_pool("six", "fd00::1-fd00::9"))
    define(ledger, a_reservation("r", "10.1.0.5-10.1.1.2"))
    assert journal(engine)[-1].details["available"] == {"1": 4, "2": 7}
    define(ledger, a_reservation("r", "10.1.1.2-10.1.1.3"))
    assert journal(engine)[-1].details["available"] == {"1": 9, "2": 7}
    check(engine)


# Closing, retiring, coming back -------------------------------------------------------------------


def test_a_closed_pool_keeps_its_holders_and_gives_nothing(ledger: Ledger, engine: Engine) -> None:
    define(ledger, POOL)
    holder, gone = pods(2)
    ips = [given(ledger, pod) for pod in (holder, gone)]
    one(ledger, delete(gone))
    define(ledger, close("a"))
    assert counted(engine, "extent") == 0
    assert given(ledger, holder.new("c2")) == ips[0]
    assert shown(one(ledger, add(ledger.definition(), gone.new("c3")))) == "all-addresses-used-out"
    assert one(ledger, delete(holder.new("c2"), stamp=2**40)) == Done(freed=1)
    assert all_given(ledger, 1) == ["all-addresses-used-out"]
    check(engine)


def test_a_closed_pool_opens_again_with_all_it_had(ledger: Ledger, engine: Engine) -> None:
    define(ledger, a_pool("a", "10.1.0.1-10.1.0.3"))
    holder, gone = pods(2)
    given(ledger, holder), given(ledger, gone)
    one(ledger, delete(gone))
    define(ledger, close("a"), a_pool("a", "10.1.0.1-10.1.0.3"))
    assert row(engine, "10.1.0.1").withheld is False
    assert given(ledger, holder) == "10.1.0.1"
    assert all_given(ledger, 3) == ["10.1.0.2", "10.1.0.3", "all-addresses-used-out"]
    check(engine)


@pytest.mark.parametrize("closed_before", [True, False])
def test_a_pool_is_retired_only_when_nobody_holds_anything(ledger: Ledger, engine: Engine, closed_before: bool) -> None:
    define(ledger, POOL, *([close("a")] if closed_before else []))
    if closed_before:
        define(ledger, POOL)
    pod = Pod()
    given(ledger, pod)
    if closed_before:
        define(ledger, close("a"))
    version = ledger.definition().version
    with pytest.raises(StillHeldError, match="IPPool a still has holders"):
        try_define(ledger, RetirePool("uid-a"))
    assert ledger.refresh().version == version
    one(ledger, delete(pod))
    assert define(ledger, RetirePool("uid-a")).pools == ()
    check(engine)


def test_the_same_name_with_another_uid_is_another_pool(ledger: Ledger, engine: Engine) -> None:
    define(ledger, POOL, RetirePool("uid-a"), a_pool("a", "10.1.0.1-10.1.0.9", uid="second"))
    assert [(pool.id, pool.uid) for pool in ledger.definition().pools] == [(2, "second")]
    assert counted(engine, "pool") == 2
    check(engine)


def test_an_object_that_comes_back_with_its_uid_goes_on_where_it_was(ledger: Ledger, engine: Engine) -> None:
    reserved = a_reservation("r", "10.1.0.9")
    define(ledger, POOL, reserved)
    pod = Pod()
    given(ledger, pod)
    one(ledger, delete(pod))
    define(ledger, RetirePool("uid-a"), RetireReservation("uid-r"), reserved, POOL)
    definition = ledger.definition()
    assert [(each.id, each.state) for each in (*definition.pools, *definition.reservations)] == [
        (1, State.OPEN), (2, State.OPEN),
    ]  # fmt: skip
    assert all_given(ledger, 9)[0] == "10.1.0.1"
    check(engine)


# Any history --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_the_ledger_stays_true(ledger: Ledger, engine: Engine, seed: int) -> None:
    random = Random(seed)
    users, number = pods(6), 0
    for _ in range(12):
        for _ in range(random.randint(1, 3)):
            define_something(ledger, random)
        definition = ledger.definition()
        requests: list[Request] = []
        for _ in range(random.randint(1, 12)):
            who = random.randrange(len(users))
            number += 1
            users[who] = random.choice([users[who], users[who].new(f"n{number}")])
            requests.append(something(random, definition, users[who]))
        ask(ledger, *requests)
        check(engine)


def define_something(ledger: Ledger, random: Random) -> None:
    """A random change, that may well be refused."""
    name = random.choice("ab")
    low = random.randint(1, 12)
    ips = (f"10.1.{'ab'.index(name)}.{low}-10.1.{'ab'.index(name)}.{low + random.randint(0, 6)}",)
    uid = random.choice(["", f"other-{name}"])
    change = random.choice([
        a_pool(name, *ips, uid=uid, cooling=random.choice([0, 3600])),
        a_pool(name, *ips, uid=uid, exclude_ips=(f"10.1.{'ab'.index(name)}.{low}",)),
        a_reservation("r", ips[0]),
        RetireReservation("uid-r"),
        random.choice([ClosePool, RetirePool])(uid or f"uid-{name}"),
    ])  # fmt: skip
    try:
        try_define(ledger, change)
    except StillHeldError:
        return


def something(random: Random, definition: Any, pod: Pod) -> Request:
    """A random act of this pod."""
    ids = [pool.id for pool in definition.pools]
    random.shuffle(ids)
    tried = ids[: random.randint(0, len(ids))]
    address = random.choice([None, f"10.1.{random.randint(0, 1)}.{random.randint(1, 18)}"])
    exact = random.random() < 0.5
    wants = [want(pod.claim("eth0"), *tried, named=random.choice([ids, tried]), address=address, exact=exact)]
    if random.random() < 0.3:
        wants.append(want(pod.claim("net1"), *tried))
    return random.choice([
        acquire(definition, pod, *wants),
        delete(pod, alive=random.choice(["", pod.uid]), node_time=random.choice([0, 2**61])),
    ])  # fmt: skip
