"""Sixteen processes write and several readers follow: none skips an event or reads one twice, and projections end true.

EVENTS makes it longer (`make torture-tail EVENTS=1000000`), SEED repeats a run's choices; both are printed. On SQLite,
where one process writes, the sixteen call one agent, which projects as well, and the readers read beside it.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from sqlalchemy import Engine, select

from ledger import tables
from ledger.addresses import Ip
from ledger.claims import salted
from ledger.events import EventType
from ledger.journal import PAGE_EVENTS, Mark, fence, page
from ledger.store import Ledger, Settings
from projector.projections import PROJECTIONS
from projector.tail import Tail, rebuild
from tests.acts import Pod, a_pool, add, ask, define, granted, until
from tests.agents import RunningAgent
from tests.conftest import Database
from tests.racers import DONE, GRANTED, Place, Wish, ask_in_parts, race
from tests.writers import POOLS, SHARED_PODS, SHARED_POOL, TAKEN, TAKEN_POOL, shared, write_slowly

EVENTS = int(os.environ.get("EVENTS", "40000"))
EVENTS_ON_SQLITE = EVENTS // 10
EVENTS_OF_A_RACE_MAX = 50_000
"""A race has an end of its own, which a slow machine must not reach."""
SEED = int(os.environ.get("SEED") or secrets.randbits(32))
WRITERS = 16
LOOK_SECONDS = 0.01
BEHIND_SECONDS = 5.0
BEHIND_CHANCE = 0.05
STEPS_OF_A_TAIL_MAX = 20
CLUSTER = """
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: a, annotations: {ipam.spiderledger.io/cooling: 0s}}
spec: {subnet: 10.1.0.0/16, ips: [10.1.0.1-10.1.3.254]}
"""


# Readers ------------------------------------------------------------------------------------------


class Readers:
    """All who read while others write, each on a thread of its own. The block ends once they have read everything."""

    def __init__(self, *readers: Callable[[threading.Event], Any]) -> None:
        self._readers, self._stop = readers, threading.Event()
        self._threads = ThreadPoolExecutor(len(readers))

    def __enter__(self) -> Readers:
        self._reading = [self._threads.submit(each, self._stop) for each in self._readers]
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._threads.shutdown()

    @property
    def found(self) -> list[Any]:
        """What each has read."""
        return [each.result() for each in self._reading]


def read_page(engine: Engine, ids: array[int], mark: Mark, limit: int) -> Mark:
    """The next page; answers how far it goes."""
    with engine.connect() as connection:
        found = page(connection, mark, fence(connection), limit)
    ids.extend(event.id for event in found)
    return Mark(found[-1].tx, found[-1].position) if found else mark


def follow(engine: Engine, stop: threading.Event, limit: int, rest: Callable[[bool], float]) -> array[int]:
    """Page by page until there is nothing more after the stop; `rest` says how long between pages, found one or not."""
    ids, mark, more = array("q"), Mark(), True
    while more:
        last = stop.is_set()
        before, mark = mark, read_page(engine, ids, mark, limit)
        more = mark != before or not last
        stop.wait(rest(mark != before))
    return ids


def read_closely(engine: Engine, stop: threading.Event) -> array[int]:
    """Whatever is below the fence, at once."""
    return follow(engine, stop, PAGE_EVENTS, lambda found: 0 if found else LOOK_SECONDS)


def read_with_pauses(engine: Engine, random: Random, stop: threading.Event) -> array[int]:
    """Falls far behind, again and again."""
    return follow(engine, stop, PAGE_EVENTS // 5, lambda found: BEHIND_SECONDS * (random.random() < BEHIND_CHANCE))


def read_anew(engine: Engine, stop: threading.Event) -> list[array[int]]:
    """From the beginning to the fence, by somebody who has just come; again and again, less often as it grows."""
    found: list[array[int]] = []
    at_once = threading.Event()
    at_once.set()
    while not stop.is_set():
        began = time.monotonic()
        found.append(read_closely(engine, at_once))
        stop.wait(1 + 5 * (time.monotonic() - began))
    return found


def project(engine: Engine, random: Random, stop: threading.Event) -> int:
    """The product's own projector, again and again begun anew at its checkpoint; how many events that were."""
    applied, mark, more = 0, Mark(), True
    while more:
        last = stop.is_set()
        tail = Tail(engine, PROJECTIONS)
        applied += sum(tail.step() for _ in range(random.randint(1, STEPS_OF_A_TAIL_MAX)))
        mark, before = tail.mark, mark
        more = mark != before or not last
        stop.wait(LOOK_SECONDS)
    return applied


# The tests ----------------------------------------------------------------------------------------


def test_whoever_reads_while_sixteen_write_slowly_skips_and_repeats_nothing(
    postgresql: Database, say: Callable[[str], None]
) -> None:
    random = Random(SEED)
    engine = postgresql.engine(connections=4)
    before = _prepared(engine)
    ids = array("q")
    with Readers(
        partial(read_closely, engine),
        partial(read_with_pauses, engine, Random(SEED)),
        partial(read_anew, engine),
        partial(project, engine, Random(SEED)),
    ) as readers:
        for number, events in enumerate(_parts(EVENTS - before)):
            share = events // WRITERS
            works = [(write_slowly, f"{number}-{who}", random.getrandbits(32), share) for who in range(WRITERS)]
            for each in race(Place(url=postgresql.url), *works):
                ids.extend(each)
    close, behind, fresh, applied = readers.found
    journal = _journal(engine)
    read = array("q", [row.id for row in journal])
    assert len(set(read)) == len(read) == before + len(ids)
    assert set(ids) == set(read[before:]), "what was committed is there, and nothing else"
    assert (close == read, behind == read, applied) == (True, True, len(read))
    assert [each == read[: len(each)] for each in fresh] == [True] * len(fresh)
    inverted, overtaken = _orders(journal)
    say(f"SEED={SEED}: {len(read)} events, {inverted} steps and {overtaken} positions overtaken, {len(fresh)} fresh")
    # Otherwise there was nothing that a reader could have stumbled over.
    assert inverted > 0
    assert overtaken > 0
    _judge_projections(engine, journal)


def test_whoever_reads_beside_an_agent_that_sixteen_call_skips_and_repeats_nothing(
    sqlite: Database, plugin: Path, tmp_path: Path, say: Callable[[str], None]
) -> None:
    cluster = tmp_path / "cluster"
    cluster.mkdir()
    (cluster / "pools.yaml").write_text(CLUSTER)
    engine = sqlite.engine(writes=False)
    with RunningAgent(plugin, cluster, tmp_path / "state", sqlite.url, ("--node", "node-1")) as agent:
        with Readers(
            partial(read_closely, engine),
            partial(read_with_pauses, engine, Random(SEED)),
            partial(read_anew, engine),
        ) as readers:
            told = race(Place(socket=agent.socket), *((ask_in_parts, _calls(f"w{who}")) for who in range(WRITERS)))
        close, behind, fresh = readers.found
        journal = _journal(engine)
        last = Mark(journal[-1].tx, journal[-1].position)
        until(lambda: _checkpoints(engine) == {last}, "the agent has projected everything")
    assert Counter(each.word for part in told for each in part).keys() == {GRANTED, DONE}
    read = array("q", [row.id for row in journal])
    assert (close == read, behind == read) == (True, True)
    assert [each == read[: len(each)] for each in fresh] == [True] * len(fresh)
    assert [row.position for row in journal] == list(range(1, len(journal) + 1))
    assert _orders(journal) == (0, 0)
    say(f"SEED={SEED}: {len(read)} events, {len(fresh)} fresh")
    _judge_projections(sqlite.engine(), journal)


def _prepared(engine: Engine) -> int:
    """Pools, everybody's pods, and one address that is taken; answers how many events that were."""
    ledger = Ledger(engine, Settings(doubt_seconds=0))
    ranges = dict(zip(POOLS, ("10.1.0.1-10.1.63.254", "10.1.64.1-10.1.127.254"), strict=True))
    ranges |= {TAKEN_POOL: TAKEN, SHARED_POOL: f"10.1.254.1-10.1.254.{SHARED_PODS}"}
    definition = define(ledger, *(a_pool(name, ips) for name, ips in ranges.items()))
    pods = [add(definition, shared(number), SHARED_POOL) for number in range(SHARED_PODS)]
    for answer in ask(ledger, add(definition, Pod("holder"), TAKEN_POOL), *pods):
        granted(answer)
    return len(_journal(engine))


def _parts(events: int) -> list[int]:
    number = -(-events // EVENTS_OF_A_RACE_MAX)
    return [-(-events // number)] * number


def _calls(name: str) -> list[list[Wish]]:
    """Of one caller: ADDs and DELs, a few at once."""
    containers = [Wish(f"{name}-{number}", (("a",),)) for number in range(EVENTS_ON_SQLITE // WRITERS // 2)]
    groups = [containers[first : first + 4] for first in range(0, len(containers), 4)]
    return [part for group in groups for part in (group, [each.end for each in group])]


# What is true -------------------------------------------------------------------------------------

_event = tables.event.c
_journal_rows = select(
    _event.tx, _event.position, _event.id, _event.type, _event.ip, _event.step, _event.holding, _event.happened_at,
    _event.subject, _event.container, _event.node, _event.data,
).order_by(_event.tx, _event.position)  # fmt: skip


def _journal(engine: Engine) -> Sequence[Any]:
    with engine.connect() as connection:
        return connection.execute(_journal_rows).all()


def _checkpoints(engine: Engine) -> set[Mark]:
    with engine.connect() as connection:
        return {Mark(row.tx, row.position) for row in connection.execute(select(tables.checkpoint))}


def _orders(journal: Sequence[Any]) -> tuple[int, int]:
    """How many steps stand behind a later one of their address, and how many positions behind a higher one.

    Whatever their order, the steps of an address are all there, once; inside one transaction they are in order.
    """
    steps: defaultdict[Ip, list[int]] = defaultdict(list)
    inside: dict[Ip, tuple[int, int]] = {}
    overtaken = highest = 0
    for row in journal:
        overtaken, highest = overtaken + (row.position < highest), max(highest, row.position)
        if row.ip is not None:
            tx, step = inside.get(row.ip, (0, 0))
            assert tx != row.tx or step < row.step, row
            inside[row.ip] = row.tx, row.step
            steps[row.ip].append(row.step)
    assert all(sorted(each) == list(range(1, len(each) + 1)) for each in steps.values())
    return sum(b < a for each in steps.values() for a, b in pairwise(each)), overtaken


def _judge_projections(engine: Engine, journal: Sequence[Any]) -> None:
    """They are what the journal says of the past and the address table of now; and what a rebuild makes of it."""
    projected = _projected(engine)
    holdings = {(row.ip, row.step): row for row in projected["holding"]}
    spoken = sorted((row for row in journal if row.type in (EventType.ALLOCATED, EventType.REBOUND)), key=_step)
    # Of each holding the last in the order of steps.
    assert {key: _speaker(row) for key, row in holdings.items()} == {_key(row): _speaker(row) for row in spoken}
    released = {_key(row): row.happened_at for row in journal if row.type == EventType.RELEASED}
    assert {key: row.held_until for key, row in holdings.items() if row.held_until is not None} == released
    with engine.connect() as connection:
        salt = bytes(connection.execute(select(tables.ledger.c.salt)).scalar_one())
        held = connection.execute(select(tables.address).where(tables.address.c.held)).all()
    open_ = {key: bytes(row.claim) for key, row in holdings.items() if row.held_until is None}
    assert open_ == {_key(row): salted(salt, row.claim) for row in held}
    assert all(_speaker(row) == _speaker(holdings[_key(row)]) for row in held if row.container is not None)
    allocated = Counter(row.pool for row in held)
    said = (json.loads(row.data)["pools"] for row in journal if row.type == EventType.REFUSED)
    refused = Counter(pool for pools in said for pool in pools)
    counts = {row.pool: (row.allocated, row.refused) for row in projected["occupancy"]}
    assert counts == {pool: (allocated[pool], refused[pool]) for pool in counts}
    assert counts.keys() >= allocated.keys() | refused.keys()
    for each in PROJECTIONS:
        rebuild(engine, each.name)
    assert _projected(engine) == projected


def _key(row: Any) -> tuple[Ip, int]:
    return row.ip, row.holding


def _step(row: Any) -> int:
    return int(row.step)


def _speaker(row: Any) -> tuple[bytes, str | None, str | None]:
    return bytes(row.subject), row.container, row.node


def _projected(engine: Engine) -> dict[str, list[Any]]:
    with engine.connect() as connection:
        made = {each.name: tables.metadata.tables[each.name] for each in PROJECTIONS}
        return {
            name: list(connection.execute(select(table).order_by(*table.primary_key.columns)).all())
            for name, table in made.items()
        }
