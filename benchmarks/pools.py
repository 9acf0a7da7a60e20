"""Whether an ADD takes the same time whatever its pool is: small, huge, IPv6, nearly full, used a million times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

from benchmarks.parts import NETWORK, Place, place, pool
from cni.controller import FolderController
from cni.folder import Folder
from cni.named import NamedFolder
from ledger.claims import CONTAINER, Binding, Claim, Subject, span
from ledger.database import open_engine
from ledger.requests import Acquire, Granted, Release, Request, Want
from ledger.schema import migrate
from ledger.store import BATCH_MAX, Ledger, Settings

ROUNDS = 300
POOLS = (
    ("an empty /24", pool("small", "10.1.0.0/24", "10.1.0.2-10.1.0.254")),
    ("10.0.0.0/8", pool("huge", "11.0.0.0/8", "11.0.0.2-11.255.255.254")),
    ("an IPv6 /64", pool("v6", "fd00::/64", "fd00::2-fd00::ffff:ffff:ffff:fffe")),
    ("a /20, 90 % full", pool("full", "10.2.0.0/20", "10.2.0.2-10.2.15.254")),
    ("after the releases", pool("used", "10.3.0.0/16", "10.3.0.2-10.3.255.254")),
)
FULL = 3_686
_names = (f"pools{number}" for number in count())


def run(releases: int) -> None:
    """Measure and print."""
    with place() as at:
        for name, address in (("SQLite", at.sqlite("pools")), ("PostgreSQL", at.postgresql().url())):
            print(f"{name}: p50 of {ROUNDS} lone ADDs through the ledger's interface, in turn; {releases:,} releases")
            _measure(at, name, address, releases)


def _measure(at: Place, name: str, address: str, releases: int) -> None:
    store = _ledger(at.cluster(f"pools-{name}", *(text for _, text in POOLS)), address)
    ids = {each.name: each for each in store.definition().pools}
    order = ("small", "huge", "v6", "full", "used")
    _fill(store, lambda: _acquire(store, ids["full"].id, 4)[0], FULL)
    for _ in range(0, releases, BATCH_MAX):
        asked = [_acquire(store, ids["used"].id, 4) for _ in range(BATCH_MAX)]
        store.act([each for each, _ in asked])
        store.act([_release(each) for _, each in asked])
    taken: dict[str, list[float]] = {each: [] for each in order}
    for _ in range(ROUNDS):
        for each in order:
            request, who = _acquire(store, ids[each].id, ids[each].family)
            start = time.perf_counter()
            (answer,) = store.act([request])
            taken[each].append(time.perf_counter() - start)
            assert isinstance(answer, Granted), answer
            store.act([_release(who)])
    first = statistics.median(taken[order[0]])
    for (said, _), each in zip(POOLS, order, strict=True):
        p50 = statistics.median(taken[each])
        print(f"  {said:24}{p50 * 1e3:8.2f} ms{p50 / first:8.2f}")


def _ledger(cluster: Path, address: str) -> Ledger:
    engine = open_engine(address)
    migrate(engine)
    store = Ledger(engine, Settings(doubt_seconds=0))
    FolderController(NamedFolder(Folder(cluster), store), store).look_safely()
    return store


def _fill(store: Ledger, one: Callable[[], Request], number: int) -> None:
    for start in range(0, number, BATCH_MAX):
        store.act([one() for _ in range(min(BATCH_MAX, number - start))])


def _acquire(store: Ledger, pool_id: int, family: int) -> tuple[Acquire, Claim]:
    name = next(_names)
    claim = Claim("", CONTAINER, "node", NETWORK, name, "eth0", 6 if family == 6 else 4)
    binding = Binding(name, NETWORK, "/run/netns/none", "node", time.time_ns())
    want = Want(claim, (pool_id,), frozenset((pool_id,)))
    subject = Subject("", "node", NETWORK, name)
    return Acquire((want,), "eth0", binding, subject, store.definition().version), claim


def _release(claim: Claim) -> Release:
    now = time.time_ns()
    return Release(span("", CONTAINER, "node", NETWORK, claim.uid), claim.uid, "eth0", now, now // 1_000)
