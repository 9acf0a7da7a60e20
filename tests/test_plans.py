"""Every batch costs the same, however large the ledger is: each hot statement finds its rows by the index meant for it.

On a ledger that nobody has ever analyzed, and on one full of released addresses after ANALYZE. `make plans` does the
second with a million addresses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import count

import pytest
from sqlalchemy import text

from ledger import addresses
from ledger.addresses import Ip
from ledger.database import open_engine
from ledger.requests import Done, Granted, Request
from ledger.schema import migrate
from ledger.store import BATCH_MAX, Ledger, Settings
from tests.acts import Pod, a_pool, add, define, delete, pods
from tests.conftest import Database, command
from tests.plans import AUTO_EXPLAIN, Watched, WatchedPostgresql, WatchedSqlite, Work
from tests.postgresql import Server

DATABASE = "planned"
POOLS = 64
SMALL = 1_000
"""Addresses of the ledger whose batches the others are compared with."""
GROWN = 100_000
"""Addresses of the ledger that nobody analyzes."""
GROWN_SQLITE = 8_000
RELEASED = int(os.environ.get("SPIDERLEDGER_PLAN_ROWS", "10000"))
"""Addresses of the ledger in which nine of ten are released."""
MEASURED = 32
"""Requests of a batch whose work is looked at."""
WARM_UP = 8
"""After so many executions PostgreSQL has settled for custom plans or a generic one."""
COST_GROWTH_MAX = 1.75
"""From 10^3 to 10^6 addresses indexes grow by two levels, which is half as much again where a request is one lookup;
anything that reads the table, or a pool of it, is far above that."""
ROWS_MAX = 8 * MEASURED
"""Rows that one part of a plan may look at for one batch."""

EVERY = {"one_address_per_claim", "event_order"}
CHANGES = EVERY | {"one_row_per_address"}
GIVES = CHANGES | {"address_ready", "extent_key", "subject_key"}
INDEXES = {
    "postgresql": {
        "ADD": GIVES, "lone ADD": GIVES, "ADD of one exact address": GIVES, "DEL": CHANGES, "DEL of one": CHANGES,
        "DEL of nobody": EVERY,
    },
    "sqlite": {
        "lone ADD": {"address_ready", "sqlite_autoindex_address_2", "extent's primary key", "event's primary key"},
        "DEL of one": {"sqlite_autoindex_address_2", "event's primary key"},
    },
}  # fmt: skip


LAST = addresses.parse("10.0.255.254")
"""Of a pool that is filled from its other end: from here on down, addresses are asked for exactly."""
_turns = count()


@pytest.fixture(scope="module")
def explaining() -> Iterator[Server]:
    """A server that tells its plans, and on which nothing is analyzed but by us."""
    options = [part for name, value in AUTO_EXPLAIN.items() for part in ("-c", f"{name}={value}")]
    server = Server(options=("-c", "autovacuum=off", *options)).create().start()
    yield server
    server.remove()


@pytest.fixture
def fresh(explaining: Server) -> Iterator[Callable[[], WatchedPostgresql]]:
    """Each call is another session of the same ledger, which is new."""
    made: list[WatchedPostgresql] = []
    command(explaining, f"CREATE DATABASE {DATABASE}")
    engine = open_engine(explaining.url(DATABASE))
    migrate(engine)
    engine.dispose()

    def session() -> WatchedPostgresql:
        made.append(WatchedPostgresql(explaining.url(DATABASE)))
        return made[-1]

    yield session
    for each in made:
        each.engine.dispose()
    command(explaining, f"DROP DATABASE {DATABASE} WITH (FORCE)")


class Filling:
    """A ledger that is filled and emptied by the product's own batches, as evenly over its pools as it comes."""

    def __init__(self, watched: Watched, last: Ip = LAST) -> None:
        self.watched = watched
        self.last = last
        self.ledger = Ledger(watched.engine, Settings(doubt_seconds=0))
        self.held: list[Pod] = []
        self.names = [f"p{number}" for number in range(POOLS)]
        self.ledger.refresh()

    def define(self) -> None:
        ranges = [(f"10.{number}.0.0/16", f"10.{number}.0.1-10.{number}.255.254") for number in range(POOLS)]
        define(self.ledger, *(a_pool(n, ips, subnet=net) for n, (net, ips) in zip(self.names, ranges, strict=True)))

    def grow(self, to: int) -> None:
        while len(self.held) < to:
            new = pods(min(BATCH_MAX, to - len(self.held)), f"grown-{len(self.held)}")
            self.act(self.adds(new), Granted)
            self.held += new

    def release(self, number: int) -> None:
        for first in range(0, number, BATCH_MAX):
            gone = self.held[first : min(first + BATCH_MAX, number)]
            self.act([delete(pod) for pod in gone], Done)
        del self.held[:number]

    def adds(self, new: Sequence[Pod]) -> list[Request]:
        return [add(self.ledger.definition(), pod, self.names[n % POOLS]) for n, pod in enumerate(new)]

    def act(self, requests: Sequence[Request], answer: type[Granted | Done]) -> None:
        answers = self.ledger.act(requests)
        assert {type(each) for each in answers} == {answer}, answers

    def measured(self) -> dict[str, Work]:
        """The work of a batch of each kind; afterwards all is held as before."""
        for turn in range(WARM_UP):
            for requests, answer in self._kinds(f"warm-{turn}").values():
                self.act(requests, answer)
        found: dict[str, Work] = {}
        for kind, (requests, answer) in self._kinds("measured").items():
            with self.watched.looking() as found[kind]:
                self.act(requests, answer)
        return found

    def _kinds(self, prefix: str) -> dict[str, tuple[Sequence[Request], type[Granted | Done]]]:
        new = pods(MEASURED, f"{prefix}-{next(_turns)}")
        again = [pod.new(f"{pod.container}-again") for pod in new]
        exact = self._exact(again[0])
        return {
            "ADD": (self.adds(new), Granted),
            "ADD of a held claim": (self.adds(again), Granted),
            "DEL": ([delete(pod) for pod in again], Done),
            "DEL of nobody": ([delete(pod) for pod in again], Done),
            "ADD of one exact address": ([exact], Granted),
            "DEL of one": ([delete(again[0])], Done),
            "lone ADD": (self.adds(new[1:2]), Granted),
            "DEL of a lone": ([delete(new[1])], Done),
        }

    def _exact(self, pod: Pod) -> Request:
        self.last = Ip(self.last - 1)
        return add(self.ledger.definition(), pod, "p0", address=self.last, exact=True)


def judge(small: dict[str, Work], large: dict[str, Work], kind: str = "") -> None:
    """By index name, by what no index bounds, and by the work."""
    told = "\n".join(f"{kind} {name}: {small[name].cost} -> {work}" for name, work in large.items())
    print(told)  # noqa: T201 - what was measured: shown with -s, and with a failure
    for name, work in large.items():
        assert work.unbounded == [], told
        assert work.rows <= ROWS_MAX, told
        assert work.cost <= COST_GROWTH_MAX * small[name].cost, told
    for name, indexes in INDEXES[kind].items():
        assert large[name].indexes == indexes, told


def analyzed(watched: Watched) -> int:
    """How many tables somebody has analyzed."""
    query = "SELECT count(*) FROM pg_stat_user_tables WHERE last_analyze IS NOT NULL OR last_autoanalyze IS NOT NULL"
    with watched.engine.connect() as connection:
        return int(connection.execute(text(query)).scalar_one())


def test_batches_cost_the_same_while_a_ledger_that_nobody_analyzes_grows(
    fresh: Callable[[], WatchedPostgresql],
) -> None:
    filling = Filling(fresh())
    filling.define()
    filling.grow(SMALL)
    small = filling.measured()
    filling.grow(GROWN)
    judge(small, filling.measured(), "postgresql")
    # A new session plans on what has grown; it makes each plan once, whatever the parameters.
    session = fresh()
    judge(small, Filling(session, filling.last).measured(), "postgresql")
    assert session.generic_plans() > 0
    assert analyzed(filling.watched) == 0


def test_batches_cost_the_same_when_most_addresses_are_released(fresh: Callable[[], WatchedPostgresql]) -> None:
    filling = Filling(fresh())
    filling.define()
    filling.grow(SMALL)
    small = filling.measured()
    filling.grow(RELEASED)
    filling.release(RELEASED * 9 // 10)
    with filling.watched.engine.begin() as connection:
        connection.execute(text("ANALYZE"))
    assert analyzed(filling.watched) > 0
    judge(small, filling.measured(), "postgresql")
    judge(small, Filling(fresh(), filling.last).measured(), "postgresql")


def test_batches_cost_the_same_while_a_file_grows(sqlite: Database) -> None:
    filling = Filling(WatchedSqlite(sqlite.url))
    filling.define()
    filling.grow(SMALL)
    small = filling.measured()
    filling.grow(GROWN_SQLITE)
    filling.release(GROWN_SQLITE // 2)
    judge(small, filling.measured(), "sqlite")
    filling.watched.engine.dispose()
