"""Races of processes with connections of their own, released together: what each is told, and what is true afterwards.

On PostgreSQL they are agents at the ledger; on SQLite, where the agent is the one writer by design, they are callers
at its socket, and what concerns locks of several writers has no meaning.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import Engine

from ledger.store import Ledger, Settings
from tests.acts import a_pool, check, define
from tests.agents import RunningAgent
from tests.conftest import Database
from tests.postgresql import Server
from tests.racers import (
    DONE,
    GRANTED,
    USED_OUT,
    Place,
    Told,
    Wish,
    ask_in_parts,
    ask_together,
    ask_while_one_holds,
    hold_while_others_wait,
    race,
)

SEED = int(os.environ.get("SEED") or secrets.randbits(32))
POOL = """---
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {{name: {name}, annotations: {{ipam.spiderledger.io/cooling: {cooling}s}}}}
spec: {{subnet: 10.1.0.0/16, ips: ["{ips}"]}}
"""

Ground = Callable[..., Place]
Say = Callable[[str], None]


@pytest.fixture
def random() -> Random:
    """From a seed that is told when a test fails."""
    print(f"SEED={SEED}")  # noqa: T201 - what a run is repeated with
    return Random(SEED)


@pytest.fixture
def ground(database: Database, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    """Gives pools their addresses, and the place where they are asked for."""
    agents: list[RunningAgent] = []

    def prepare(cooling: int = 0, **pools: str) -> Place:
        if database.kind == "postgresql":
            ledger = Ledger(database.engine(), Settings(doubt_seconds=0))
            define(ledger, *(a_pool(name, ips, cooling=cooling) for name, ips in pools.items()))
            return Place(url=database.url)
        cluster = tmp_path / "cluster"
        cluster.mkdir()
        texts = [POOL.format(name=name, ips=ips, cooling=cooling) for name, ips in pools.items()]
        (cluster / "pools.yaml").write_text("".join(texts))
        plugin = request.getfixturevalue("plugin")
        agents.append(RunningAgent(plugin, cluster, tmp_path / "state", database.url, ("--node", "node-1")))
        return Place(socket=agents[-1].__enter__().socket)

    yield prepare
    for agent in agents:
        agent.__exit__(None, None, None)


@pytest.fixture
def engine(database: Database) -> Engine:
    """To look at what is true."""
    return database.engine(writes=False)


# The five races -----------------------------------------------------------------------------------


def test_forty_who_ask_for_one_claim_get_one_address_and_leave_one_event(ground: Ground, engine: Engine) -> None:
    place = ground(a="10.1.0.1-10.1.0.99")
    wishes = [Wish(f"c{turn}", (("a",),)) for turn in range(10)]
    told = race(place, *((ask_together, wishes) for _ in range(40)))
    assert words(flat(told)) == {GRANTED: 400}
    for turn in range(10):
        assert len({each[turn].addresses for each in told}) == 1
    events = [event for event in check(engine) if event.ip is not None]
    assert [event.type for event in events] == ["address.allocated"] * 10
    # Never used and used are all there is (`check`), so nothing was consumed besides.
    assert len({event.ip for event in events}) == len(set(given(told[0]))) == 10


def test_384_claims_of_256_addresses_are_each_sent_once_and_exactly_the_surplus_is_refused(
    ground: Ground, engine: Engine, random: Random
) -> None:
    place = ground(a="10.1.0.0-10.1.0.255", b="10.1.1.0-10.1.1.255")
    for pool in "ab":
        works = [
            (ask_in_parts, in_parts(random, [Wish(f"{pool}-{who}-{number}", ((pool,),)) for number in range(48)], 16))
            for who in range(8)
        ]
        told = flat(race(place, *works))
        assert words(told) == {GRANTED: 256, USED_OUT: 384 - 256}
        assert len(set(given(told))) == 256
    types = Counter(event.type for event in check(engine))
    assert (types["address.allocated"], types["allocation.refused"]) == (512, 256)


@pytest.mark.parametrize("cooling", [0, 3600])
def test_ten_who_together_want_a_whole_pool_and_change_their_minds_are_never_refused(
    ground: Ground, engine: Engine, random: Random, cooling: int
) -> None:
    place = ground(a="10.1.0.1-10.1.0.80", cooling=cooling)
    plans = [churn(random, f"agent-{who}", (("a",),), holders=8, turns=30) for who in range(10)]
    told = race(place, *((ask_in_parts, plan) for plan in plans))
    assert words(flat(told)).keys() == {GRANTED, DONE}, words(flat(told))
    check(engine)
    held = [address for plan, each in zip(plans, told, strict=True) for address in standing(flat(plan), each)]
    assert (len(held), len(set(held))) == (80, 80)


def test_nearly_full_pools_wanted_in_opposite_orders_stand_in_nobodys_way(
    ground: Ground, engine: Engine, random: Random, say: Say
) -> None:
    place = ground(a="10.1.0.1-10.1.0.13", b="10.1.1.1-10.1.1.13")
    orders = (("a", "b"),), (("b", "a"),)
    plans = [churn(random, f"agent-{who}", orders[who % 2], holders=3, turns=40) for who in range(8)]
    told = flat(race(place, *((ask_in_parts, plan) for plan in plans)))
    say(longest(told))
    # Nobody was told to try again, which is what an act answers before its second is over.
    assert words(told).keys() == {GRANTED, DONE}, words(told)
    check(engine)


def test_two_interfaces_out_of_nearly_full_pools_in_opposite_orders_meet_no_deadlock(
    postgresql: Database, server: Server, random: Random, say: Say
) -> None:
    engine = postgresql.engine()
    pools = a_pool("a", "10.1.0.1-10.1.0.25"), a_pool("b", "10.1.1.1-10.1.1.25")
    define(Ledger(engine, Settings(doubt_seconds=0)), *pools)
    orders = (("a",), ("b",)), (("b",), ("a",))
    plans = [churn(random, f"agent-{who}", orders[who % 2], holders=3, turns=40) for who in range(8)]
    log = server.folder / "log"
    before = log.stat().st_size
    told = flat(race(Place(url=postgresql.url), *((ask_in_parts, plan) for plan in plans)))
    say(longest(told))
    assert words(told).keys() == {GRANTED, DONE}, words(told)
    said = log.read_text()[before:]
    # Nobody has waited for a lock as long as the lock timeout, which is less than a second.
    assert "deadlock" not in said, said
    assert "lock timeout" not in said, said
    check(engine)


@pytest.mark.parametrize("how", ["given back", "kept"])
@pytest.mark.parametrize("where", ["never used", "used before"])
def test_who_waits_for_the_last_addresses_gets_them_when_whoever_has_them_dies_and_not_when_it_commits(
    postgresql: Database, how: str, where: str
) -> None:
    engine = postgresql.engine()
    define(Ledger(engine, Settings(doubt_seconds=0)), a_pool("a", "10.1.0.1-10.1.0.6"))
    place = Place(url=postgresql.url)
    if where == "used before":
        race(place, (ask_in_parts, [wants("before", 6), [each.end for each in wants("before", 6)]]))
    holder = (hold_while_others_wait, wants("holder", 6), 6, how == "given back")
    waiters = [(ask_while_one_holds, wants(f"waiter-{who}", 1)) for who in range(6)]
    held, *waited = race(place, holder, *waiters)
    told = flat(waited)
    if how == "given back":
        assert held is None, "it died"
        assert words(told) == {GRANTED: 6}
        assert len(set(given(told))) == 6
    else:
        assert words(held) == {GRANTED: 6}
        assert words(told) == {USED_OUT: 6}
    check(engine)


# What is planned and what came of it --------------------------------------------------------------


def wants(name: str, number: int) -> list[Wish]:
    """So many containers that want one address of pool a."""
    return [Wish(f"{name}-{each}", (("a",),)) for each in range(number)]


def churn(random: Random, name: str, pools: tuple[tuple[str, ...], ...], holders: int, turns: int) -> list[list[Wish]]:
    """So many containers at once; in each turn some end, and then as many others begin."""
    numbers = count()
    held = [Wish(f"{name}-{next(numbers)}", pools) for _ in range(holders)]
    parts = [list(held)]
    for _ in range(turns):
        random.shuffle(held)
        size = random.randint(1, holders // 2)
        new = [Wish(f"{name}-{next(numbers)}", pools) for _ in range(size)]
        parts += [[each.end for each in held[:size]], new]
        held = held[size:] + new
    return parts


def standing(wishes: Sequence[Wish], told: Sequence[Told]) -> list[str]:
    """The addresses that were given and not given back."""
    held: dict[str, tuple[str, ...]] = {}
    for wish, answer in zip(wishes, told, strict=True):
        held[wish.container] = answer.addresses
    return [address for each in held.values() for address in each]


def in_parts(random: Random, wishes: Sequence[Wish], largest: int) -> list[Sequence[Wish]]:
    """Cut at random."""
    parts = []
    while wishes:
        size = random.randint(1, largest)
        parts.append(wishes[:size])
        wishes = wishes[size:]
    return parts


def words(told: Sequence[Told]) -> Counter[str]:
    return Counter(each.word for each in told)


def longest(told: Sequence[Told]) -> str:
    """For whoever reads: how long a request took at most, on this machine in this hour."""
    return f"{len(told)} requests, {words(told)}, the longest took {max(each.seconds for each in told):.3f} s"


def given(told: Sequence[Told]) -> list[str]:
    return [address for each in told for address in each.addresses]


def flat(parts: Sequence[Sequence[Any]]) -> list[Any]:
    return [each for part in parts for each in part]
