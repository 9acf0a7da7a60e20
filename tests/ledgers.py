"""Whole ledgers that tests write themselves: a journal, and tables that say what it says, by the words of the design.

A `Past` is made without a database, act by act, from a seed; `events` is its journal and `store` writes all of it, so
that a test can then change one cell. The state is kept in plain sets and dictionaries and not by our code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from sqlalchemy import Connection, Engine, Table, delete, select, update

from ledger import dialects, tables
from ledger.addresses import Family, Ip, family, key, parse, text
from ledger.canonical import canonical
from ledger.claims import Claim, Subject, claim_of, salted
from ledger.dialects import Conflict
from ledger.driver import joined
from ledger.events import EPOCH_SHIFT, VERSION, Event, EventType, sealed
from ledger.images import UNBOUND, Address
from ledger.journal import Mark, page
from ledger.tables import IpKey
from ledger.writing import write

START = 1_700_000_000_000_000
Row = dict[str, Any]


@dataclass
class Change:
    """One transaction: its epoch, its events (their number comes later), and the rows it writes."""

    epoch: int = 1
    events: list[Event] = field(default_factory=list)
    rows: list[Address] = field(default_factory=list)
    extents: set[int] = field(default_factory=set)


@dataclass
class PoolWords:
    """What a pool says."""

    first: Ip
    count: int
    excluded: set[Ip]
    state: str = "open"

    def effective(self) -> set[Ip]:
        return {Ip(self.first + offset) for offset in range(self.count)} - self.excluded


class Past:
    """A ledger's past in the making. Acts go into the last change until `commit` begins another."""

    def __init__(self, salt: bytes = b"salt", seed: int = 0) -> None:
        self.salt, self.random, self.now = salt, Random(seed), START
        self.changes: list[Change] = [Change()]
        self.rows: dict[Ip, Address] = {}
        self.pools: dict[int, PoolWords] = {}
        self.reserved: dict[int, set[Ip]] = {}
        self.unused: dict[int, set[Ip]] = {}
        self.subjects: dict[bytes, str] = {}
        self.pool_rows: dict[int, Row] = {}
        self.reservation_rows: dict[int, Row] = {}
        self.objects: dict[tuple[str, str, str], Row] = {}
        self.holdings: dict[tuple[Ip, int], Row] = {}
        self.occupancy: dict[int, Row] = {}
        self.version = self.stored = 0
        self.ledger: Row = {}

    # The journal -----------------------------------------------------------------------------

    def commit(self) -> None:
        """What comes next is another transaction."""
        if self.changes[-1].events:
            self.changes.append(Change(self.ledger.get("epoch", 1)))

    def events(self) -> list[Event]:
        """The journal as SQLite numbers it: positions without a gap, a transaction's number is its first position."""
        numbered: list[Event] = []
        for change in self.changes:
            tx = change.epoch << EPOCH_SHIFT | len(numbered) + 1
            for event in change.events:
                numbered.append(sealed(event._replace(tx=tx, position=len(numbered) + 1)))
        return numbered

    def _say(self, type_: EventType, data: Row, **cells: Any) -> Event:
        at = cells.pop("at", None) or self._tick()
        cells = {"happened_at": at, "cause": "test", **cells}
        event = Event(
            tx=0, position=0, id=self.random.getrandbits(62), type=type_, version=VERSION, recorded_at=at,
            data=canonical(data), **cells,
        )  # fmt: skip
        self.changes[-1].events.append(event)
        return event

    def _tick(self) -> int:
        self.now += self.random.randint(1, 5_000)
        return self.now

    # The ledger and its objects --------------------------------------------------------------

    def open(self) -> None:
        self._say(EventType.LEDGER_OPENED, {"epoch": 1, "incarnation": "first"})
        self.ledger |= {"incarnation": "first"}

    def doubt(self, incarnation: str) -> None:
        until = self.now + 15_000_000
        self._say(EventType.LEDGER_DOUBTED, {"incarnation": incarnation, "until": until})
        self.ledger |= {"doubted": incarnation, "doubt_until": until}

    def trust(self, incarnation: str) -> None:
        self._say(EventType.LEDGER_TRUSTED, {"incarnation": incarnation})
        self.ledger |= {"incarnation": incarnation, "doubted": None, "doubt_until": None}

    def fence(self, reason: str) -> None:
        self._say(EventType.LEDGER_FENCED, {"reason": reason})
        self.ledger |= {"fenced": reason}

    def restore(self, incarnation: str) -> None:
        epoch = self.ledger.get("epoch", 1) + 1
        self.version = max(self.version + 1, epoch << 32)
        data = {"epoch": epoch, "incarnation": incarnation, "reason": "it was lost"}
        self.changes[-1].epoch = epoch
        self._say(EventType.LEDGER_RESTORED, data, definition=self.version, actor="ada", cause="operator")
        self.ledger |= {"epoch": epoch, "fenced": None, "incarnation": incarnation}
        self.ledger |= {"doubted": None, "doubt_until": None}

    def name(self, kind: str, namespace: str, name: str) -> None:
        row = {"kind": kind, "namespace": namespace, "name": name, "uid": f"uid-{self.random.getrandbits(62)}"}
        self._say(EventType.OBJECT_NAMED, row)
        self.objects[kind, namespace, name] = row

    def leave(self, kind: str, namespace: str, name: str) -> None:
        self._say(EventType.OBJECT_LEFT, self.objects.pop((kind, namespace, name)))

    # Definitions -----------------------------------------------------------------------------

    def define_pool(self, id_: int, first: str, count: int, excluded: Iterable[Ip] = (), state: str = "open") -> None:
        """New, or said anew; closing and retiring are said so too."""
        new = PoolWords(parse(first), count, set(excluded), state)
        type_ = EventType.POOL_REDEFINED if id_ in self.pools else EventType.POOL_DEFINED
        type_ = {"closed": EventType.POOL_CLOSED, "retired": EventType.POOL_RETIRED}.get(state, type_)
        before, self.pools[id_] = self._available(), new
        uid, name = f"pool-uid-{id_}", f"pool-{id_}"
        version = family(new.first)
        last = text(Ip(new.first + count - 1))
        document = {
            "kind": "SpiderIPPool",
            "metadata": {"name": name, "uid": uid},
            "spec": {
                "ipVersion": version, "subnet": f"{first}/{16 if version == 4 else 64}", "ips": [f"{first}-{last}"],
                "excludeIPs": [text(ip) for ip in sorted(new.excluded)],
            },
        }  # fmt: skip
        available = len(self._available()[id_])
        said = {"uid": uid, "name": name, "state": state, "document": document}
        self.version += 1
        self._say(
            type_, {**said, "total": len(new.effective()), "available": available}, pool=id_, definition=self.version,
            family=version, actor="controller",
        )  # fmt: skip
        self.pool_rows[id_] = {"id": id_, **said, "document": canonical(document)}
        self._occupy(id_).update(
            definition=self.version, total=len(new.effective()), withheld=len(new.effective()) - available
        )
        self._redraw(before)

    def redefine_pool(self, id_: int, *, excluded: Iterable[Ip] | None = None, state: str = "open") -> None:
        words = self.pools[id_]
        self.define_pool(id_, text(words.first), words.count, words.excluded if excluded is None else excluded, state)

    def reserve(self, id_: int, ips: Iterable[Ip], state: str = "open") -> None:
        """New, said anew, or retired."""
        ips = sorted(ips)
        type_ = EventType.RESERVATION_REDEFINED if id_ in self.reservation_rows else EventType.RESERVATION_DEFINED
        type_ = EventType.RESERVATION_RETIRED if state == "retired" else type_
        before, self.reserved[id_] = self._available(), set(ips) if state == "open" else set()
        uid, name = f"reserved-uid-{id_}", f"reserved-{id_}"
        document = {
            "kind": "SpiderReservedIP", "metadata": {"name": name, "uid": uid},
            "spec": {"ipVersion": 4, "ips": [text(ip) for ip in ips]},
        }  # fmt: skip
        now = self._available()
        changed = {pool: len(now[pool]) for pool in now if now[pool] != before[pool]}
        said = {"id": id_, "uid": uid, "name": name, "state": state, "document": document}
        self.version += 1
        available = {str(pool): count for pool, count in changed.items()}
        self._say(type_, {**said, "available": available}, definition=self.version, family=4, actor="controller")
        self.reservation_rows[id_] = {**said, "document": canonical(document)}
        for pool, count in changed.items():
            row = self._occupy(pool)
            row.update(definition=self.version, withheld=row["total"] - count)
        self._redraw(before)

    def _available(self) -> dict[int, set[Ip]]:
        reserved: set[Ip] = set().union(*self.reserved.values())
        return {
            id_: words.effective() - reserved if words.state == "open" else set() for id_, words in self.pools.items()
        }

    def _redraw(self, before: dict[int, set[Ip]]) -> None:
        """Rows in what goes are withheld, rows in what comes are readmitted, what was never used is offered."""
        now = self._available()
        for id_ in now:
            gone, come = before.get(id_, set()) - now[id_], now[id_] - before.get(id_, set())
            for ip in sorted(gone & self.rows.keys()):
                if not self.rows[ip].withheld:
                    self._step(ip, EventType.WITHHELD, {}, definition=self.version, withheld=True)
            for ip in sorted(come & self.rows.keys()):
                self._step(ip, EventType.READMITTED, {}, definition=self.version, withheld=False, pool=id_)
            self.unused[id_] = (self.unused.get(id_, set()) & now[id_]) | (come - self.rows.keys())
            if gone or come:
                self.changes[-1].extents.add(id_)

    # Addresses -------------------------------------------------------------------------------

    def allocate(self, ip: Ip, who: Subject, interface: str = "eth0", bound: bool = True) -> None:
        id_ = next(id_ for id_, words in self.pools.items() if words.first <= ip < words.first + words.count)
        claim = Claim(who.cluster, "Pod", who.namespace, who.name, who.uid, interface, _family(ip)).key
        step = self.rows[ip].step + 1 if ip in self.rows else 1
        result = {"pool": f"pool-{id_}", "gateway": "", "routes": [], "vlan": self.random.randint(0, 4000)}
        row = self._step(
            ip, EventType.ALLOCATED, {"choice": "fresh", "result": result}, who, pool=id_, held=True, ready=0,
            holding=step, claim=claim, result=canonical(result), **(self._binding() if bound else dict(UNBOUND)),
        )  # fmt: skip
        self.unused[id_].discard(ip)
        self.changes[-1].extents.add(id_)
        self._occupy(id_)["allocated"] += 1
        self.holdings[ip, step] = {
            "ip": ip, "step": step, "last_step": step, "pool": id_, "claim": salted(self.salt, claim),
            "interface": interface, "subject": row.subject, "container": row.container, "node": row.node,
            "held_from": row.at, "held_until": None, "recorded_from": row.at, "recorded_until": None, "cause": None,
        }  # fmt: skip

    def rebind(self, ip: Ip, who: Subject) -> None:
        row = self._step(ip, EventType.REBOUND, {}, who, **self._binding())
        self.holdings[ip, row.holding or 0].update(
            last_step=row.step, subject=row.subject, container=row.container, node=row.node
        )

    def unbind(self, ip: Ip) -> None:
        self._step(ip, EventType.UNBOUND, {"evidence": {"pod": "alive"}}, node_time=self.now, **UNBOUND)

    def release(self, ip: Ip, *, moved: bool = False, cause: str = "del") -> None:
        before, at = self.rows[ip], self._tick()
        at = max(at, before.at + 1)
        ready = at + self.random.randint(0, 30_000_000)
        happened = self.random.randint(before.at, at)
        data = {"ready": ready, "evidence": {"pod": "gone"}, **({"moved": True} if moved else {})}
        cells: Row = {"held": False, "ready": ready, "holding": None, **UNBOUND}
        cells |= {"claim": None, "subject": None} if moved else {}
        self._step(ip, EventType.RELEASED, data, at=at, happened_at=happened, node_time=at - 7, cause=cause, **cells)
        self._occupy(before.pool)["allocated"] -= 1
        self.holdings[ip, before.holding or 0].update(held_until=happened, recorded_until=at, cause=cause)

    def forget(self, ip: Ip) -> None:
        self._step(ip, EventType.FORGOTTEN, {}, claim=None, subject=None)

    def refuse(self, who: Subject, pools: Sequence[int]) -> None:
        claim = Claim(who.cluster, "Pod", who.namespace, who.name, who.uid, "eth0", 4)
        data = {"reason": "all-addresses-used-out", "text": "none left", "candidates": [], "pools": list(pools)}
        self._say(
            EventType.REFUSED, data, family=4, definition=self.version, claim=salted(self.salt, claim.key),
            interface="eth0", subject=self._subject(who), **_bound(self._binding()),
        )  # fmt: skip
        for pool in pools:
            self._occupy(pool)["refused"] += 1

    def _step(self, ip: Ip, type_: EventType, data: Row, who: Subject | None = None, **cells: Any) -> Address:
        """One step of one address: its row and its event. Cells are the row's, or else the event's."""
        never: Row = {**UNBOUND, "claim": None, "subject": None, "holding": None}
        before = self.rows.get(ip) or Address(ip=ip, pool=0, held=False, withheld=False, ready=0, step=0, at=0,
                                              result="{}", **never)  # fmt: skip
        at = cells.pop("at", None) or max(self._tick(), before.at + 1)
        said = {name: cells.pop(name) for name in ("happened_at", "node_time", "cause", "definition") if name in cells}
        if who is not None:
            cells["subject"] = self._subject(who)
        if cells.get("container"):
            cells["bound_at"] = at
        row = before._replace(step=before.step + 1, at=at, **cells)
        whose = row if type_ is EventType.ALLOCATED else before
        speaker = row if row.container else before
        said = {"definition": self.version, **said}
        self._say(
            type_, data, at=at, ip=ip, family=family(ip), step=row.step, holding=whose.holding, pool=row.pool,
            claim=salted(self.salt, whose.claim) if whose.claim else None,
            interface=claim_of(whose.claim).interface if whose.claim else None,
            subject=row.subject if who else before.subject, **_bound(speaker._asdict()), **said,
        )  # fmt: skip
        self.rows[ip] = row
        self.changes[-1].rows.append(row)
        return row

    def _binding(self) -> Row:
        number = self.random.getrandbits(48)
        return {
            "container": f"c{number:x}", "network": "net", "netns": f"/run/netns/{number:x}",
            "node": f"node-{number % 3}", "stamp": self.now * 1000,
        }  # fmt: skip

    def _subject(self, who: Subject) -> bytes:
        id_ = salted(self.salt, who.document)
        self.subjects[id_] = who.document
        return id_

    def _occupy(self, pool: int) -> Row:
        empty = {"pool": pool, "definition": 0, "total": 0, "withheld": 0, "allocated": 0, "refused": 0}
        return self.occupancy.setdefault(pool, empty)

    # A life ----------------------------------------------------------------------------------

    def live(self, acts: int, alone: float = 0.6) -> None:
        """A random history. How likely is an act to begin a transaction?"""
        for _ in range(acts):
            if self.random.random() < alone:
                self.commit()
            held = [ip for ip, row in self.rows.items() if row.held]
            acts_ = ("allocate", "allocate", "allocate", "rebind", "unbind", "release", "release", "move", "refuse")
            act = self.random.choice(acts_)
            if act == "refuse":
                self.refuse(self.somebody(), self.random.sample(sorted(self.pools), self.random.randint(0, 2)))
            elif act == "allocate" or not held:
                self._allocate_any(self.somebody())
            else:
                self._change_any(act, self.random.choice(held))
        self.commit()

    def somebody(self) -> Subject:
        """A pod that asks, with labels that change."""
        number = self.random.randint(1, 40)
        labels = (("round", str(self.random.randint(1, 3))),)
        return Subject("here", "default", f"web-{number}", f"uid-{number}", "ReplicaSet/web", labels=labels)

    def _allocate_any(self, who: Subject) -> None:
        """An idle or a fresh address, unless the pod holds one; what it had before is forgotten."""
        own = [row for row in self.rows.values() if row.claim and row.claim.split("|")[3] == who.name]
        idle = (ip for ip, row in self.rows.items() if not row.held and not row.withheld)
        free = sorted({*idle, *(ip for unused in self.unused.values() for ip in unused)})
        if free and not any(row.held for row in own):
            ip = self.random.choice(free)
            for row in own:
                if row.ip != ip:
                    self.forget(row.ip)
            self.allocate(ip, who, bound=self.random.random() < 0.8)

    def _change_any(self, act: str, ip: Ip) -> None:
        who = self._holder(ip)
        fresh = sorted(each for unused in self.unused.values() for each in unused if family(each) == family(ip))
        if act == "rebind":
            self.rebind(ip, who._replace(labels=(("round", "rebound"),)))
        elif act == "unbind":
            self.unbind(ip)
        elif act == "move" and fresh:
            self.release(ip, moved=True)
            self.allocate(self.random.choice(fresh), who)
        else:
            self.release(ip)

    def _holder(self, ip: Ip) -> Subject:
        words = json.loads(self.subjects[self.rows[ip].subject or b""])
        return Subject(**{**words, "labels": tuple(words["labels"].items())})


def _family(ip: Ip) -> Family:
    return family(ip)


def _bound(cells: Row) -> Row:
    return {name: cells[name] for name in ("container", "network", "netns", "node", "stamp")}


def small(salt: bytes = b"salt", seed: int = 0, acts: int = 60) -> Past:
    """A past in which everything has happened that can: each type of event, both families, each kind of definition."""
    past = Past(salt, seed)
    past.open()
    past.commit()
    past.name("Pod", "default", "web-1")
    past.name("Pod", "default", "web-2")
    past.commit()
    past.define_pool(1, "10.0.1.1", 12)
    past.commit()
    past.define_pool(2, "fd00::1", 12)
    past.live(acts // 2)
    first = parse("10.0.1.1")
    # Its first address follows the last of pool 1.
    past.define_pool(3, "10.0.1.13", 4)
    past.commit()
    past.reserve(4, [Ip(first + 2), Ip(first + 3)])
    past.commit()
    past.reserve(4, [Ip(first + 3), Ip(first + 4)])
    past.commit()
    past.redefine_pool(1, excluded={Ip(first + 11)} - past.rows.keys())
    past.live(acts // 2)
    past.redefine_pool(3, state="closed")
    past.commit()
    past.reserve(5, [Ip(first + 5)])
    past.commit()
    past.reserve(5, [Ip(first + 5)], state="retired")
    past.commit()
    for state in ("open", "closed", "retired"):
        past.define_pool(6, "10.0.6.1", 2, state=state)
        past.commit()
    past.leave("Pod", "default", "web-2")
    past.commit()
    past.doubt("second")
    past.commit()
    past.trust("second")
    past.commit()
    past.refuse(past.somebody(), [1])
    past.commit()
    past.fence("the last event is missing")
    past.commit()
    past.restore("third")
    past.live(acts // 10)
    past.redefine_pool(2)
    past.commit()
    past.fence("another event is missing")
    past.commit()
    return past


def changed_cell(event: Event, column: str) -> Event:
    """The event with another value in this column, and the digest that it had."""
    value = getattr(event, column)
    if isinstance(value, int):
        other: Any = value + (1 if column != "position" else 1 << 40)
    elif isinstance(value, bytes):
        other = bytes([value[0] ^ 1]) + value[1:]
    else:
        other = value.replace("{", '{"added":1,', 1) if column == "data" else value + "x"
    return event._replace(**{column: other})


def inverted(events: Sequence[Event], random: Random) -> list[Event]:
    """The same past with neighbouring transactions in the other order, as PostgreSQL may number them."""
    transactions = [[event for event in events if event.tx == tx] for tx in sorted({event.tx for event in events})]
    place = 0
    while place + 1 < len(transactions):
        pair = transactions[place : place + 2]
        if (
            all(event.ip or event.type == EventType.REFUSED for part in pair for event in part)
            and random.random() < 0.7
        ):
            numbers = pair[0][0].tx, pair[1][0].tx
            for part, number in zip(pair, reversed(numbers), strict=True):
                part[:] = [sealed(event._replace(tx=number)) for event in part]
            place += 1
        place += 1
    return sorted((event for part in transactions for event in part), key=lambda event: (event.tx, event.position))


# Into a database --------------------------------------------------------------------------------


def salt_of(engine: Engine) -> bytes:
    with engine.connect() as connection:
        return bytes(connection.execute(select(tables.ledger.c.salt)).scalar_one())


def store(engine: Engine, past: Past, events: Sequence[Event] | None = None) -> list[Event]:
    """All of it in one transaction; with other events, these. Answers the journal as it stands."""
    journal = past.events() if events is None else list(events)
    transactions = sorted({event.tx for event in journal})
    with engine.begin() as connection:
        for number, tx in enumerate(transactions, 1):
            # On PostgreSQL they must have numbers that the server has used already.
            said = tx if engine.dialect.name == "sqlite" else tx >> EPOCH_SHIFT << EPOCH_SHIFT | number
            write(joined(connection), events=[sealed(event._replace(tx=said)) for event in journal if event.tx == tx])
        write(joined(connection), events=(), rows=list(past.rows.values()), subjects=past.subjects)
        _define(connection, past)
        assert connection.execute(select(dialects.fence())).scalar_one() > said
        _put(connection, tables.object_uid, past.objects.values())
        for pool in past.unused:
            _offer(connection, past, pool)
    past.stored = len(past.changes) - 1
    stored = journal_of(engine)
    project(engine, past, stored[-1] if stored else None)
    return stored


def store_more(engine: Engine, past: Past) -> None:
    """What has happened since, each transaction as one of the database."""
    for change in past.changes[past.stored : -1]:
        with engine.begin() as connection:
            tx = connection.execute(select(dialects.transaction())).scalar_one()
            for row in change.rows:
                write(joined(connection), events=(), rows=[row])
            events = [sealed(event._replace(tx=tx)) for event in change.events]
            write(joined(connection), events=events, subjects=past.subjects)
            if change is past.changes[-2]:
                _define(connection, past)
                for pool in past.unused:
                    _offer(connection, past, pool)
    past.stored = len(past.changes) - 1


def project(engine: Engine, past: Past, last: Event | None) -> None:
    """The projections as they are now, and their checkpoints at this event."""
    with engine.begin() as connection:
        _put(connection, tables.holding, past.holdings.values())
        _put(connection, tables.occupancy, past.occupancy.values())
        if last is not None:
            place = {"tx": last.tx, "position": last.position}
            marks = [{"projection": name, **place} for name in ("holding", "occupancy")]
            _put(connection, tables.checkpoint, marks)


def journal_of(engine: Engine) -> list[Event]:
    """All events that are committed."""
    with engine.connect() as connection:
        return page(connection, Mark(), before=1 << 62, limit=1 << 31)


def _define(connection: Connection, past: Past) -> None:
    _put(connection, tables.pool, past.pool_rows.values())
    _put(connection, tables.reservation, past.reservation_rows.values())
    connection.execute(update(tables.ledger).values(definition=past.version, **past.ledger))


def _offer(connection: Connection, past: Past, pool: int) -> None:
    """The unused addresses in one or two pieces a run, and an extent that is used up."""
    connection.execute(delete(tables.extent).where(tables.extent.c.pool == pool))
    rows = [{"pool": pool, "high": low, "low": Ip(low + 1)} for low in sorted(past.rows)[:1]]
    for low, high in _runs(past.unused[pool]):
        middle = past.random.randint(low, high)
        pieces = ((low, middle), (Ip(middle + 1), high)) if middle < high else ((low, high),)
        rows += [{"pool": pool, "high": last, "low": first} for first, last in pieces]
    _put(connection, tables.extent, rows)


def _runs(unused: set[Ip]) -> list[tuple[Ip, Ip]]:
    starts = sorted(ip for ip in unused if ip - 1 not in unused)
    ends = sorted(ip for ip in unused if ip + 1 not in unused)
    return list(zip(starts, ends, strict=True))


def _put(connection: Connection, table: Table, rows: Iterable[Row]) -> None:
    cells = [tuple(_stored(table, name, row.get(name)) for name in table.columns.keys()) for row in rows]  # noqa: SIM118
    joined(connection).put(table, cells, Conflict.REPLACES)


def _stored(table: Table, name: str, value: Any) -> Any:
    return key(value) if isinstance(table.c[name].type, IpKey) and value is not None else value
