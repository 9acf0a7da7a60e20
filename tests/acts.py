"""Small builders for what is asked of a ledger, and a check of what it has remembered.

The check is written by the words of the design, not by our code: it folds the journal with plain dictionaries.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, Engine, create_engine, make_url, select, text
from sqlalchemy import event as listening

from ledger import addresses, tables
from ledger.addresses import Family, Ip
from ledger.admission import AdmissionRefused
from ledger.canonical import canonical
from ledger.claims import CONTAINER, POD, Binding, Claim, Subject, salted, span
from ledger.course import begin, plan_of
from ledger.database import file_identity
from ledger.decide import decide
from ledger.definition import Definition
from ledger.definitions import Defined, load
from ledger.dialects import on_connect_sqlite
from ledger.driver import joined
from ledger.events import Event, digest
from ledger.images import Address
from ledger.intervals import Intervals, normal, size, subtract
from ledger.reading import read
from ledger.redefine import Change, ClosePool, DefinePool, DefineReservation
from ledger.requests import (
    Acquire,
    Answer,
    Candidate,
    Done,
    Granted,
    Refusal,
    Release,
    Request,
    Reselect,
    Want,
)
from ledger.resources import COOLING_ANNOTATION, ObjectMeta, PoolSpec, ReservedIPSpec, SpiderIPPool, SpiderReservedIP
from ledger.store import Ledger
from ledger.transitions import random_ids
from ledger.writing import write
from tests.conftest import Database

CLUSTER = "here"
NODE = "node-1"
PATIENCE_SECONDS = 60
"""How long a test waits for what must come; nothing is measured by it."""

Result = TypeVar("Result")
_stamps = count(1_000)


# What people apply --------------------------------------------------------------------------------


def a_pool(name: str, *ips: str, uid: str = "", cooling: int = 0, subnet: str = "", **spec: Any) -> SpiderIPPool:
    """A pool of these ranges; cooling off unless said."""
    family = 6 if ":" in (ips or (subnet,))[0] else 4
    spec.setdefault("exclude_ips", ())
    return SpiderIPPool(
        metadata=ObjectMeta(name=name, uid=uid or f"uid-{name}", annotations={COOLING_ANNOTATION: f"{cooling}s"}),
        spec=PoolSpec(subnet=subnet or ("10.1.0.0/16" if family == 4 else "fd00::/64"), ips=ips, **spec),
    )


def a_reservation(name: str, *ips: str) -> SpiderReservedIP:
    """Nobody is to get these."""
    return SpiderReservedIP(metadata=ObjectMeta(name=name, uid=f"uid-{name}"), spec=ReservedIPSpec(ips=ips))


def define(ledger: Ledger, *changes: Change | SpiderIPPool | SpiderReservedIP) -> Definition:
    """Make these changes, all of which must succeed."""
    for change in changes:
        outcome = try_define(ledger, change)
        assert isinstance(outcome, Defined), outcome
    return ledger.definition()


def try_define(
    ledger: Ledger, change: Change | SpiderIPPool | SpiderReservedIP
) -> Defined | AdmissionRefused | Refusal:
    """Try this change."""
    if isinstance(change, SpiderIPPool):
        change = DefinePool(change)
    elif isinstance(change, SpiderReservedIP):
        change = DefineReservation(change)
    return ledger.define(change, actor="controller", cause="test")


def close(name: str) -> ClosePool:
    """Close the pool of this name."""
    return ClosePool(f"uid-{name}")


# Who asks -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pod:
    """A pod, with the container that speaks for it now. `new` starts another container of it, later."""

    name: str = "web"
    uid: str = "u1"
    container: str = "c1"
    node: str = NODE
    namespace: str = "default"
    stamp: int = field(default_factory=lambda: next(_stamps))
    kind: str = POD

    def new(self, container: str, **more: Any) -> Pod:
        """Another container of the same pod."""
        return replace(self, **{"container": container, "stamp": next(_stamps), **more})

    def claim(self, interface: str = "eth0", family: Family = 4) -> Claim:
        """What it asks for."""
        return Claim(CLUSTER, self.kind, self.namespace, self.name, self.uid, interface, family)

    @property
    def binding(self) -> Binding:
        """Its container."""
        return Binding(self.container, "net", f"/run/netns/{self.container}", self.node, self.stamp)

    @property
    def subject(self) -> Subject:
        """Its names."""
        return Subject(CLUSTER, self.namespace, self.name, self.uid)


def pods(number: int, prefix: str = "web") -> list[Pod]:
    """So many pods, each with a container."""
    return [Pod(f"{prefix}-{each}", f"u-{prefix}-{each}", f"c-{prefix}-{each}") for each in range(number)]


def outside(node: str, container: str, network: str = "net") -> Pod:
    """A container outside Kubernetes."""
    return Pod(name=network, uid=container, container=container, node=node, namespace=node, kind=CONTAINER)


# What is asked ------------------------------------------------------------------------------------


def want(
    claim: Claim,
    *pools: int,
    named: Iterable[int] | None = None,
    address: str | Ip | None = None,
    exact: bool = False,
    **more: Any,
) -> Want:
    """One address of these pools, which the source names and no other unless said."""
    ip = addresses.parse(address) if isinstance(address, str) else address
    among = tuple(Candidate(f"pool-{each}") for each in pools)
    return Want(claim, pools, frozenset(pools if named is None else named), ip, exact, candidates=among, **more)


def acquire(definition: Definition, pod: Pod, *wants: Want, interface: str = "eth0") -> Acquire:
    """What the agent asks for this pod's container."""
    return Acquire(wants, interface, pod.binding, pod.subject, definition.version)


def add(definition: Definition, pod: Pod, *pools: str, interface: str = "eth0", **more: Any) -> Acquire:
    """An ADD for one address of the pools with these names, or of all pools."""
    ids = [definition.by_name[name].id for name in pools] or [each.id for each in definition.pools]
    return acquire(definition, pod, want(pod.claim(interface), *ids, **more), interface=interface)


def delete(pod: Pod, *, alive: str = "", sent: str | None = None, interface: str = "eth0", **more: Any) -> Release:
    """A DEL of the pod's container; the cluster shows a pod of that name alive under the uid `alive`."""
    fields = (CLUSTER, pod.kind, pod.namespace, pod.name)
    return Release(
        span=span(*fields, pod.uid) if pod.kind == CONTAINER else span(*fields),
        container=pod.container,
        interface=interface,
        stamp=more.pop("stamp", pod.stamp),
        node_time=more.pop("node_time", 0),
        alive=alive,
        sent_uid=pod.uid if sent is None else sent,
        evidence={"seen": alive or "gone"},
        **more,
    )


# What is answered ---------------------------------------------------------------------------------


def ask(ledger: Ledger, *requests: Request) -> list[Answer]:
    """The answers, in the order of the requests."""
    return ledger.act(requests)


def one(ledger: Ledger, request: Request) -> Answer:
    """The answer to one request."""
    return ledger.act([request])[0]


def granted(answer: Answer) -> list[str]:
    """The addresses that were given."""
    assert isinstance(answer, Granted), answer
    return [addresses.text(grant.ip) for grant in answer.grants]


def given(ledger: Ledger, pod: Pod, *pools: str, **more: Any) -> str:
    """The one address that an ADD gives."""
    [ip] = granted(one(ledger, add(ledger.definition(), pod, *pools, **more)))
    return ip


def reason(answer: Answer) -> str:
    """Why it was refused."""
    assert isinstance(answer, Refusal), answer
    return answer.reason.value


def shown(answer: Answer) -> str:
    """An answer in a word: addresses, counts or the reason."""
    match answer:
        case Granted():
            return " ".join(granted(answer))
        case Done():
            return f"freed {answer.freed}, unbound {answer.unbound}"
        case Reselect():
            return "reselect"
        case Refusal():
            return answer.reason.value


# What stands in the database ----------------------------------------------------------------------


def row(engine: Engine, ip: str) -> Address:
    """The address's row."""
    query = select(*(tables.address.c[name] for name in Address._fields))
    with engine.connect() as connection:
        found = connection.execute(query.where(tables.address.c.ip == addresses.parse(ip))).one()
    return Address._make(found)


def journal(engine: Engine, *types: str) -> list[Event]:
    """The events, of these types or all, in the order of the journal."""
    cells = [tables.event.c[name] for name in Event._fields]
    with engine.connect() as connection:
        found = connection.execute(select(*cells).order_by(tables.event.c.tx, tables.event.c.position)).all()
    events = [Event._make(each) for each in found]
    return [each for each in events if not types or each.type in types]


def story(engine: Engine, ip: str) -> list[str]:
    """What happened to one address, by step."""
    mine = [event for event in journal(engine) if event.ip == addresses.parse(ip)]
    return [event.type.partition(".")[2] for event in sorted(mine, key=lambda event: event.step or 0)]


def counted(engine: Engine, table: str) -> int:
    """How many rows a table has."""
    with engine.connect() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())


# Whether it is true -------------------------------------------------------------------------------


def check(engine: Engine) -> list[Event]:
    """Everything that must be true of a ledger at rest; answers its events."""
    events = journal(engine)
    with engine.connect() as connection:
        salt, version = connection.execute(select(tables.ledger.c.salt, tables.ledger.c.definition)).one()
        rows = {each.ip: Address._make(each) for each in connection.execute(select(tables.address))}
        extents = connection.execute(select(tables.extent)).all()
        definition = load(connection)
    _check_order(events, sqlite=engine.dialect.name == "sqlite")
    assert version == max((event.definition or 0 for event in events), default=0)
    lives: dict[Ip, list[Event]] = defaultdict(list)
    for event in events:
        if event.ip is not None:
            lives[event.ip].append(event)
    assert lives.keys() == rows.keys()
    for ip, life in lives.items():
        _check_row(rows[ip], _folded(sorted(life, key=lambda event: event.step or 0)), bytes(salt))
    holders = [each.claim for each in rows.values() if each.held]
    assert len(holders) == len(set(holders))
    _check_ranges(definition, rows, extents)
    return events


def _check_order(events: Sequence[Event], *, sqlite: bool) -> None:
    assert len({event.id for event in events}) == len(events)
    assert all(digest(event) == bytes(event.digest) for event in events)
    for event in events:
        said = json.loads(event.data)
        assert isinstance(said, dict), f"{event.type}: {said}"
        assert canonical(said) == event.data
    if sqlite:
        assert [event.position for event in events] == list(range(1, len(events) + 1))
    inside: dict[tuple[int, Ip], int] = {}
    for event in events:
        if event.ip is not None and event.step is not None:
            assert event.step > inside.get((event.tx, event.ip), 0), "inverted inside one transaction"
            inside[event.tx, event.ip] = event.step


def _folded(life: Sequence[Event]) -> dict[str, Any]:
    """The address's state by its events alone."""
    state: dict[str, Any] = {"held": False, "withheld": False, "claim": None, "holding": None, "container": None}
    at, held_from = 0, 0
    for step, event in enumerate(life, start=1):
        kind, details = event.type.partition(".")[2], json.loads(event.data)
        assert event.step == step, f"step {event.step} where {step} follows"
        assert event.recorded_at > at
        at = event.recorded_at
        assert state["held"] == (kind in ("rebound", "unbound", "released")) or kind in ("withheld", "readmitted")
        if kind == "allocated":
            assert not state["withheld"]
            held_from = event.happened_at
            result = canonical(details["result"])
            state |= {"held": True, "holding": step, "claim": event.claim, "ready": 0, "result": result}
        if kind in ("allocated", "rebound"):
            state |= {"container": event.container, "node": event.node, "stamp": event.stamp, "subject": event.subject}
        elif kind in ("unbound", "released"):
            state |= {"container": None, "node": None, "stamp": None}
        if state["holding"] is not None:
            assert (event.holding, event.claim) == (state["holding"], state["claim"])
        if kind == "released":
            assert held_from <= event.happened_at <= event.recorded_at
            state |= {"held": False, "holding": None, "ready": details["ready"]}
        if kind == "forgotten" or details.get("moved"):
            state |= {"claim": None, "subject": None}
        if kind in ("withheld", "readmitted"):
            assert state["withheld"] == (kind == "readmitted")
            state["withheld"] = kind == "withheld"
        state |= {"step": step, "at": at, "pool": event.pool}
    return state


def _check_row(found: Address, folded: dict[str, Any], salt: bytes) -> None:
    told = {**found._asdict(), "claim": None if found.claim is None else salted(salt, found.claim)}
    assert {name: told[name] for name in folded} == folded, addresses.text(found.ip)


def _check_ranges(definition: Definition, rows: dict[Ip, Address], extents: Sequence[Any]) -> None:
    """Never used, used and withheld together are what the definition says, none of it twice."""
    used: Intervals = normal((ip, ip) for ip in rows)
    fresh: dict[int, list[tuple[Ip, Ip]]] = defaultdict(list)
    for each in extents:
        if each.low <= each.high:
            fresh[each.pool].append((each.low, each.high))
    assert fresh.keys() <= definition.by_id.keys()
    for pool in definition.pools:
        available = definition.available(pool)
        assert size(normal(fresh[pool.id])) == sum(high - low + 1 for low, high in fresh[pool.id]), "extents overlap"
        assert normal(fresh[pool.id]) == normal(subtract(available, used)), pool.name
    belongs = {ip: pool.id for pool in definition.pools for ip in rows if _inside(definition.available(pool), ip)}
    for ip, found in rows.items():
        assert found.withheld == (ip not in belongs), addresses.text(ip)
        assert belongs.get(ip, found.pool) == found.pool, addresses.text(ip)


def _inside(ranges: Intervals, ip: Ip) -> bool:
    return any(low <= ip <= high for low, high in ranges)


# Engines, threads and sessions --------------------------------------------------------------------


def set_at_connect(engine: Engine, **settings: str) -> Engine:
    """The same engine; its PostgreSQL connections say this after all that the product says."""

    @listening.listens_for(engine, "connect")
    def apply(connection: Any, record: Any) -> None:
        with connection.cursor() as cursor:
            for name, value in settings.items():
                cursor.execute("SELECT set_config(%s, %s, false)", (name, value))
        connection.commit()

    return engine


def patient(engine: Engine) -> Engine:
    """The same engine; it waits for locks and holds transactions for as long as a test needs."""
    return set_at_connect(engine, lock_timeout="0", idle_in_transaction_session_timeout="0")


def file_of(database: Database) -> Path:
    """Where a SQLite ledger is."""
    return Path(str(make_url(database.url).database))


def copy_of(path: Path, target: Path) -> Path:
    """A consistent copy of a SQLite file, as a backup makes one."""
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(target)) as copy:
        source.backup(copy)
    return target


def put_in_place(copy: Path, path: Path) -> None:
    """As a restore does: the file is another one, and what belonged to the old one goes."""
    for beside in ("-wal", "-shm"):
        path.with_name(path.name + beside).unlink(missing_ok=True)
    copy.replace(path)


def sqlite_engine(path: Path, now_us: Callable[[], int]) -> Engine:
    """An engine on a SQLite file, for a writer with this clock."""
    engine = create_engine(f"sqlite:///{path}", pool_size=1, max_overflow=0, connect_args={"check_same_thread": False})
    on_connect_sqlite(engine, lambda: file_identity(path), now_us, writes=True)
    return engine


class Task(threading.Thread, Generic[Result]):
    """A call on a thread of its own; `result` waits for it, and raises what it raised."""

    def __init__(self, work: Callable[[], Result]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._outcome: list[Result] = []
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._outcome.append(self._work())
        except BaseException as error:
            self._error = error

    def result(self) -> Result:
        self.join(PATIENCE_SECONDS)
        assert not self.is_alive(), "it has not ended"
        if self._error is not None:
            raise self._error
        return self._outcome[0]


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that must come true."""
    pause = threading.Event()
    for _ in range(PATIENCE_SECONDS * 200):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError(f"never: {what}")


def waiting_for_lock(engine: Engine, words: str = "") -> int:
    """How many sessions of this database wait for a lock in a statement with these words."""
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
        "AND query LIKE '%' || :words || '%'"
    )
    with engine.connect() as connection:
        return int(connection.execute(query, {"words": words}).scalar_one())


def until_waiting(engine: Engine, task: Task[Any], sessions: int = 1) -> None:
    """Wait until so many sessions wait for locks; the task must be among them and not have ended instead."""
    until(lambda: waiting_for_lock(engine) >= sessions or not task.is_alive(), "a session waits for a lock")
    assert task.is_alive(), task.result()


class HeldBatch:
    """A batch of another agent, taken step by step through the ledger's own statements."""

    def __init__(self, engine: Engine, definition: Definition, *requests: Request) -> None:
        self._connection = engine.connect()
        self._definition = definition
        self._pending = begin(requests)
        self._transaction = self._connection.begin()
        self._salt = bytes(self._connection.execute(select(tables.ledger.c.salt)).scalar_one())
        # It has its transaction id; its locks are still to come.
        self._connection.execute(text("SELECT pg_current_xact_id()"))

    def read(self) -> HeldBatch:
        """From here on it has its locks."""
        self._images = read(joined(self._connection), plan_of(self._pending, {}), None)
        return self

    def write(self) -> HeldBatch:
        """From here on only the commit is missing."""
        attempts = [each.attempt for each in self._pending]
        self.decision = decide(attempts, self._images, self._definition, self._salt, random_ids())
        done = self.decision
        into = joined(self._connection)
        write(into, events=done.events, rows=done.rows, extents=done.extents, subjects=done.subjects)
        return self

    def commit(self) -> list[Answer]:
        """The answers, now true."""
        answers = self.commit_some()
        assert not self.decision.setbacks
        return [answers[index] for index in range(len(self._pending))]

    def commit_some(self) -> Mapping[int, Answer]:
        """The answers by the request's place, but for those that need rows which others have locked."""
        self._transaction.commit()
        self._connection.close()
        return self.decision.answers

    def roll_back(self) -> None:
        """As if it had never been."""
        self._transaction.rollback()
        self._connection.close()


@contextmanager
def session(engine: Engine) -> Iterator[Connection]:
    """A transaction of somebody else, rolled back at the end unless it was committed."""
    with engine.connect() as connection, connection.begin():
        yield connection
        if connection.in_transaction():
            connection.rollback()
