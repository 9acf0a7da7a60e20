"""Journals that tests write themselves: valid events with their rows, and what projections must say of them.

The expectation is kept in plain dictionaries, act by act, by the words of the design and not by our code.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

from sqlalchemy import Connection, Engine, select, update
from sqlalchemy.dialects import postgresql, sqlite

from ledger import dialects, tables
from ledger.addresses import Family, Ip, family, parse, text
from ledger.canonical import canonical
from ledger.claims import Claim, Subject, salted
from ledger.driver import joined
from ledger.events import VERSION, Event, EventType, sealed
from ledger.images import UNBOUND, Address
from ledger.tables import ledger
from ledger.writing import write

START = 1_700_000_000_000_000
"""When these journals begin unless a test says otherwise: a Tuesday in 2023."""

Holdings = dict[tuple[Ip, int], dict[str, Any]]
Occupancies = dict[int, dict[str, int]]


def pod(name: str = "web-0", namespace: str = "default", uid: str = "u1", **more: Any) -> Subject:
    """Somebody who asks."""
    return Subject("here", namespace, name, uid, **more)


def claim_key(who: Subject, version: Family = 4) -> str:
    """The key of the claim that this pod makes for eth0."""
    return Claim(who.cluster, "Pod", who.namespace, who.name, who.uid, "eth0", version).key


@dataclass
class Journal:
    """A ledger's past in the making, by one writer; others may write with other pools and addresses."""

    engine: Engine
    random: Random = field(default_factory=lambda: Random(0))
    now: int = START
    rows: dict[Ip, Address] = field(default_factory=dict)
    pools: dict[int, list[Ip]] = field(default_factory=dict)
    total: dict[int, int] = field(default_factory=dict)
    holdings: Holdings = field(default_factory=dict)
    occupancy: Occupancies = field(default_factory=dict)
    events: int = 0

    def __post_init__(self) -> None:
        with self.engine.connect() as connection:
            self.salt = bytes(connection.execute(select(ledger.c.salt)).scalar_one())

    @contextmanager
    def transaction(self, delay: float = 0) -> Iterator[Transaction]:
        """One transaction; its number is drawn at once, and it waits before it commits."""
        with self.engine.begin() as connection:
            tx = connection.execute(select(dialects.transaction())).scalar_one()
            writing = Transaction(self, connection, tx)
            yield writing
            write(joined(connection), events=writing.events)
            time.sleep(delay)
        self.events += len(writing.events)

    def tick(self) -> int:
        """A later moment."""
        self.now += self.random.randint(1, 5_000)
        return self.now

    def held(self) -> list[Ip]:
        """The addresses that somebody holds."""
        return [ip for ip, row in self.rows.items() if row.held]

    def idle(self) -> list[Ip]:
        """The addresses that could be handed out."""
        every = (ip for addresses in self.pools.values() for ip in addresses)
        return [ip for ip in every if ip not in self.rows or not (self.rows[ip].held or self.rows[ip].withheld)]

    def write(self, acts: int, per_transaction: int = 4, delay: float = 0) -> None:
        """A random history."""
        while acts > 0:
            part = min(acts, self.random.randint(1, per_transaction))
            with self.transaction(self.random.uniform(0, delay)) as writing:
                for _ in range(part):
                    writing.anything()
            acts -= part


@dataclass
class Transaction:
    """Acts of one transaction. Rows are written at once, events together at the end."""

    journal: Journal
    connection: Connection
    tx: int
    events: list[Event] = field(default_factory=list)

    def open(self) -> None:
        """The first event of a journal."""
        self._say(EventType.LEDGER_OPENED, data={"epoch": 1, "incarnation": "test"})

    def define_pool(
        self, number: int, *, addresses: int = 16, withheld: int = 0, state: str = "open", name: str = "",
        type_: EventType = EventType.POOL_DEFINED, labels: dict[str, str] | None = None, **spec: Any,
    ) -> list[Ip]:  # fmt: skip
        """10.<number>.0.1 and so many more, some at the end excluded or reserved."""
        first = parse(f"10.{number}.0.1")
        last = Ip(first + addresses - 1)
        name = name or f"pool-{number}"
        document = {
            "kind": "SpiderIPPool",
            "metadata": {"name": name, "uid": f"uid-{number}", "labels": labels or {}},
            "spec": {"subnet": f"10.{number}.0.0/16", "ipVersion": 4, "ips": [f"{text(first)}-{text(last)}"], **spec},
        }
        row = {"id": number, "uid": f"uid-{number}", "name": name, "state": state, "document": canonical(document)}
        _put(self.connection, tables.pool, row)
        available = addresses - withheld if state == "open" else 0
        data = {**row, "document": document, "total": addresses, "available": available}
        version = self._define(type_, number, {key: value for key, value in data.items() if key != "id"})
        self.journal.pools[number] = [Ip(first + offset) for offset in range(addresses)]
        self.journal.total[number] = addresses
        self._occupy(number).update(definition=version, total=addresses, withheld=addresses - available)
        return self.journal.pools[number]

    def reserve(self, number: int, ips: Sequence[str], available: dict[int, int]) -> None:
        """A reservation: so many addresses are available in these pools from now on."""
        document = {
            "kind": "SpiderReservedIP",
            "metadata": {"name": f"reserved-{number}", "uid": f"reserved-uid-{number}"},
            "spec": {"ipVersion": 4, "ips": list(ips)},
        }
        row = {"id": number, "uid": f"reserved-uid-{number}", "name": f"reserved-{number}", "state": "open"}
        _put(self.connection, tables.reservation, {**row, "document": canonical(document)})
        counts = {str(pool): count for pool, count in available.items()}
        data = {**row, "document": document, "available": counts}
        version = self._define(EventType.RESERVATION_DEFINED, None, data)
        for pool, count in available.items():
            self._occupy(pool).update(definition=version, withheld=self.journal.total[pool] - count)

    def allocate(self, ip: Ip, who: Subject, container: str | None = "c1", node: str = "node-1") -> None:
        """An address for somebody; without a container, for an interface that asks later."""
        before = self.journal.rows.get(ip) or self._fresh(ip)
        key = claim_key(who, family(ip))
        bound = self._binding(container, node) if container else dict(UNBOUND)
        cells = {"held": True, "ready": 0, "holding": before.step + 1, "claim": key, **bound}
        row = self._step(before, EventType.ALLOCATED, who, said=bound, data={"choice": "fresh", "result": {}}, **cells)
        self._occupy(row.pool)["allocated"] += 1
        self.journal.holdings[ip, row.step] = {
            "ip": ip, "step": row.step, "last_step": row.step, "pool": row.pool,
            "claim": salted(self.journal.salt, key), "interface": "eth0",
            "subject": row.subject, "container": container, "node": row.node,
            "held_from": row.at, "held_until": None, "recorded_from": row.at, "recorded_until": None, "cause": None,
        }  # fmt: skip

    def rebind(self, ip: Ip, container: str, node: str = "node-1", who: Subject | None = None) -> None:
        """Another container speaks for the claim, perhaps of another pod of its name."""
        before = self.journal.rows[ip]
        bound = self._binding(container, node)
        row = self._step(before, EventType.REBOUND, who, said=bound, **bound)
        self._holding(row).update(last_step=row.step, subject=row.subject, container=container, node=node)

    def unbind(self, ip: Ip) -> None:
        """Nobody speaks for the claim any more; it keeps the address."""
        before = self.journal.rows[ip]
        cells: dict[str, Any] = dict(UNBOUND)
        self._step(before, EventType.UNBOUND, None, said=before._asdict(), data={"evidence": {}}, **cells)

    def release(self, ip: Ip, cooling: int = 0, cause: str = "del", early: int = 0) -> None:
        """The holding ends, `early` microseconds before it is recorded; the address rests for so long."""
        before = self.journal.rows[ip]
        ready = max(self.journal.now, before.at) + cooling
        cells: dict[str, Any] = {"held": False, "ready": ready, "holding": None, **UNBOUND}
        data = {"ready": ready, "evidence": {}}
        said = before._asdict()
        row = self._step(before, EventType.RELEASED, None, said=said, data=data, cause=cause, early=early, **cells)
        self._occupy(row.pool)["allocated"] -= 1
        happened = self.events[-1].happened_at
        self._holding(before).update(held_until=happened, recorded_until=row.at, cause=cause)

    def withhold(self, ip: Ip, withheld: bool = True) -> None:
        """Not to be handed out, or to be handed out again; held or not."""
        before = self.journal.rows[ip]
        type_ = EventType.WITHHELD if withheld else EventType.READMITTED
        self._step(before, type_, None, said=before._asdict(), cause="define", withheld=withheld)

    def refuse(
        self, who: Subject, pools: Sequence[int], reason: str = "all-addresses-used-out",
        candidates: Sequence[tuple[str, str]] = (),
    ) -> None:  # fmt: skip
        """Somebody gets nothing."""
        data = {"reason": reason, "text": f"no address: {reason}", "candidates": candidates, "pools": list(pools)}
        key = claim_key(who)
        said = {**self._binding("c9", "node-1"), "interface": "eth0", "claim": salted(self.journal.salt, key)}
        self._say(EventType.REFUSED, subject=self._subject(who), data=data, cause="add", **said)
        for pool in pools:
            self._occupy(pool)["refused"] += 1

    def anything(self) -> None:
        """One act that is possible now."""
        random, journal = self.journal.random, self.journal
        held, idle, used = journal.held(), journal.idle(), list(journal.rows)
        who = pod(f"pod-{random.randint(1, 9)}", uid=f"u{random.getrandbits(62)}")
        container, node = f"c{random.getrandbits(30)}", f"node-{random.randint(1, 3)}"
        choice = random.choice(("allocate", "allocate", "rebind", "unbind", "release", "release", "withhold", "refuse"))
        if choice == "allocate" and idle:
            self.allocate(random.choice(idle), who, random.choice((container, container, None)), node)
        elif choice == "rebind" and held:
            self.rebind(random.choice(held), container, node, random.choice((who, None)))
        elif choice == "unbind" and held:
            self.unbind(random.choice(held))
        elif choice == "release" and held:
            self.release(random.choice(held), random.randint(0, 50_000), random.choice(("del", "gc")), early=40)
        elif choice == "withhold" and used:
            ip = random.choice(used)
            self.withhold(ip, not journal.rows[ip].withheld)
        else:
            self.refuse(who, random.sample(sorted(journal.pools), random.randint(0, len(journal.pools))))

    def _fresh(self, ip: Ip) -> Address:
        pool = next(pool for pool, addresses in self.journal.pools.items() if ip in addresses)
        return Address(ip, pool, False, False, 0, 0, 0, None, None, None, **UNBOUND, result="{}")

    def _step(
        self, before: Address, type_: EventType, who: Subject | None, *, said: dict[str, Any],
        data: dict[str, Any] | None = None, cause: str = "add", early: int = 0, **cells: Any,
    ) -> Address:  # fmt: skip
        at = max(self.journal.tick(), before.at + 1)
        if who is not None:
            cells["subject"] = self._subject(who)
        if cells.get("container"):
            cells["bound_at"] = at
        row = before._replace(step=before.step + 1, at=at, **cells)
        whose = row if type_ is EventType.ALLOCATED else before
        write(joined(self.connection), events=(), rows=[row])
        self.journal.rows[row.ip] = row
        happened = max(at - early, before.at)
        binding = {key: said[key] for key in ("container", "network", "netns", "node", "stamp")}
        self._say(
            type_, at=at, happened_at=happened, ip=row.ip, family=family(row.ip), step=row.step, pool=row.pool,
            holding=whose.holding, claim=salted(self.journal.salt, whose.claim) if whose.claim else None,
            interface="eth0" if whose.claim else None, subject=row.subject, cause=cause, data=data or {}, **binding,
        )  # fmt: skip
        return row

    def _say(self, type_: EventType, *, data: dict[str, Any], at: int = 0, **cells: Any) -> None:
        at = at or self.journal.tick()
        cells = {"happened_at": at, "cause": "test", **cells}
        identity = self.journal.random.getrandbits(62)
        self.events.append(sealed(Event(
            tx=self.tx, position=0, id=identity, type=type_, version=VERSION, recorded_at=at,
            data=canonical(data), **cells,
        )))  # fmt: skip

    def _define(self, type_: EventType, pool: int | None, data: dict[str, Any]) -> int:
        version = self.connection.execute(select(ledger.c.definition)).scalar_one() + 1
        self.connection.execute(update(ledger).values(definition=version))
        self._say(type_, family=4, pool=pool, definition=version, actor="controller", data=data)
        return int(version)

    def _subject(self, who: Subject) -> bytes:
        identity = salted(self.journal.salt, who.document)
        write(joined(self.connection), events=(), subjects={identity: who.document})
        return identity

    def _binding(self, container: str, node: str) -> dict[str, Any]:
        return {"container": container, "network": "net", "netns": f"/run/{container}", "node": node, "stamp": 1}

    def _occupy(self, pool: int) -> dict[str, int]:
        empty = {"pool": pool, "definition": 0, "total": 0, "withheld": 0, "allocated": 0, "refused": 0}
        return self.journal.occupancy.setdefault(pool, empty)

    def _holding(self, row: Address) -> dict[str, Any]:
        assert row.holding is not None
        return self.journal.holdings[row.ip, row.holding]


def started(engine: Engine, pools: int = 2, addresses: int = 16, seed: int = 0) -> Journal:
    """A journal that was opened and has so many pools."""
    journal = Journal(engine, Random(seed))
    with journal.transaction() as writing:
        writing.open()
    for number in range(1, pools + 1):
        with journal.transaction() as writing:
            writing.define_pool(number, addresses=addresses)
    return journal


def projected(engine: Engine) -> tuple[Holdings, Occupancies]:
    """What the projections' tables hold."""
    with engine.connect() as connection:
        holdings = [dict(row._mapping) for row in connection.execute(select(tables.holding))]
        occupancies = [dict(row._mapping) for row in connection.execute(select(tables.occupancy))]
    return {(row["ip"], row["step"]): row for row in holdings}, {row["pool"]: row for row in occupancies}


def _put(connection: Connection, table: Any, row: dict[str, Any]) -> None:
    build: Any = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    changed = {key: value for key, value in row.items() if key != "id"}
    connection.execute(build(table).values(row).on_conflict_do_update(index_elements=["id"], set_=changed))
