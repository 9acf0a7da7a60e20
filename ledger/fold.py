"""The journal folded, event by event, into the state that the tables must show; and whatever in it breaks the rules.

It reads nothing and compares nothing: `ledger.verify` brings the events in the journal's order and holds the state
against the tables. Ended holdings leave through `ended`: what stays is sized by addresses, not by their history.

On SQLite that order is exact. On PostgreSQL a transaction may have its number before it waits for one with a higher
number: the steps of an address may stand inverted, across transactions and never inside one. A step that comes early
waits here for the one before it; below a fence (`settle`) none may be waiting. Definitions take their number under
the lock of the ledger's row, so they stand in the order of their versions.

Pure.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from ledger.addresses import Ip, family, text
from ledger.canonical import canonical
from ledger.claims import Binding
from ledger.definition import Definition, Pool, Reservation, State
from ledger.events import Event, EventType, current, digest
from ledger.images import UNBOUND, Address
from ledger.intervals import Intervals, contains
from ledger.ranges import TOTAL_MAX
from ledger.resources import SpiderIPPool, SpiderReservedIP

INVERSION_US: Final = 60_000_000
"""What was recorded further apart than this cannot come of transactions that overlapped: one of ours lives a second."""
WAITING_MAX: Final = 100
"""Events of one address that may wait for a step; when there are more, the step is missing."""
TEXTS_MAX: Final = 10_000
"""Texts that are kept once for all rows that say them: nodes, networks, interfaces, terms of pools."""

ADDRESS: Final = frozenset(each for each in EventType if each.startswith("address."))
POOL: Final = frozenset(each for each in EventType if each.startswith("pool."))
RESERVATION: Final = frozenset(each for each in EventType if each.startswith("reservation."))
DEFINING: Final = frozenset(EventType) - ADDRESS - {EventType.REFUSED}
"""What changes the ledger's row, the definition or the names of objects."""
OPENING: Final = frozenset({EventType.LEDGER_OPENED, EventType.LEDGER_RESTORED})
"""What begins an epoch."""
HOLDERS: Final = frozenset({EventType.REBOUND, EventType.UNBOUND, EventType.RELEASED})
"""What can happen to a held address only, and through its holder's claim."""
TOLD: Final = frozenset({EventType.ALLOCATED, EventType.REBOUND, EventType.RELEASED})
"""What says something of a holding."""

_NOBODY: Final[Mapping[str, Any]] = UNBOUND
_NEVER_USED: Final = Address(Ip(0), 0, False, False, 0, 0, 0, None, None, None, **_NOBODY, result="")


class Fault(NamedTuple):
    """Something that must not be: where (an event, or a table, a key and a column), and what is wrong there."""

    where: str
    text: str


class Ledger(NamedTuple):
    """What the ledger's row must say."""

    epoch: int = 1
    definition: int = 0
    incarnation: str = ""
    doubted: str | None = None
    doubt_until: int | None = None
    fenced: str | None = None


OPENED: Final = Ledger()
"""As migrations leave it."""


class Holding(NamedTuple):
    """What the row of a holding must say; None is what no event has said yet."""

    ip: Ip
    step: int
    last_step: int = 0
    pool: int | None = None
    claim: bytes | None = None
    interface: str | None = None
    subject: bytes | None = None
    container: str | None = None
    node: str | None = None
    held_from: int | None = None
    held_until: int | None = None
    recorded_from: int | None = None
    recorded_until: int | None = None
    cause: str | None = None


class Occupancy(NamedTuple):
    """What the row of a pool's occupancy must say."""

    pool: int
    definition: int = 0
    total: int = 0
    withheld: int = 0
    allocated: int = 0
    refused: int = 0


class Defined(NamedTuple):
    """What the row of a pool or reservation must say; and its value, unless the document cannot be read."""

    uid: str
    name: str
    state: str
    document: str
    value: Pool | Reservation | None


History = dict[int, dict[int, Defined]]
"""Pools or reservations: by id, then by the version of the definition that changed them, in order."""


@dataclass
class Folded:
    """The state after the events so far. Of an address's claim only the salted hash stands here (hexadecimal)."""

    ledger: Ledger = OPENED
    pools: History = field(default_factory=dict)
    reservations: History = field(default_factory=dict)
    objects: dict[tuple[str, str, str], str] = field(default_factory=dict)
    addresses: dict[Ip, Address] = field(default_factory=dict)
    holdings: dict[Ip, Holding] = field(default_factory=dict)
    occupancy: dict[int, Occupancy] = field(default_factory=dict)

    def definition(self, version: int) -> Definition:
        """All pools and reservations as they stood at this version."""
        values = [*_at(self.pools, version), *_at(self.reservations, version)]
        pools = tuple(each for each in values if isinstance(each, Pool))
        return Definition(version, pools, tuple(each for each in values if isinstance(each, Reservation)))


def _at(history: History, version: int) -> Iterator[Pool | Reservation]:
    for versions in history.values():
        last = max((each for each in versions if each <= version), default=None)
        value = None if last is None else versions[last].value
        if value is not None:
            yield value


class Fold:
    """Applies events to a state. `passed` are the images that addresses took on in the last event's turn."""

    def __init__(self, *, ordered: bool) -> None:
        self.state = Folded()
        self.events = 0
        self.passed: list[Address] = []
        self.ended: list[Holding] = []
        self._ordered = ordered
        self._faults: list[Fault] = []
        self._positions = _Positions()
        self._tx = 0
        self._ids: set[int] = set()
        self._defined_by = (0, 0)
        self._waiting: dict[Ip, dict[int, Event]] = {}
        self._holders: dict[bytes, Ip] = {}
        self._second: dict[bytes, tuple[Ip, Event]] = {}
        self._available: dict[tuple[int, int], Intervals] = {}
        self._texts: dict[str, str] = {}

    def apply(self, event: Event) -> list[Fault]:
        """Take the next event of the journal; answers what is wrong with it."""
        self.passed.clear()
        self._place(event)
        if event.digest != digest(event):
            self._fault(event, "its digest is not that of what it says")
        try:
            details = current(event).details
            wrong = _misshapen(event, details)
        except ValueError as error:
            wrong = str(error)
        if wrong:
            self._fault(event, f"it cannot be read: {wrong}")
        else:
            self._take(EventType(event.type), event, details)
        self.events += 1
        return self._found()

    def settle(self) -> list[Fault]:
        """All transactions before this point have ended: whatever is outstanding is wrong, and taken as it is."""
        for ip in sorted(self._waiting):
            self._pass_over_gap(ip)
        self._judge_seconds()
        return self._found()

    def holding(self, ip: Ip, step: int) -> Holding | None:
        """An open holding as the journal has told it so far, with what waits here for its turn."""
        open_ = self.state.holdings.get(ip)
        image = open_ if open_ is not None and open_.step == step else None
        for event in self._waiting.get(ip, {}).values():
            if event.holding == step and event.type in TOLD:
                image = told(image or Holding(ip, step), event)
        return image

    def _fault(self, event: Event, wrong: str) -> None:
        self._faults.append(Fault(f"event {event.tx}/{event.position}", wrong))

    def _found(self) -> list[Fault]:
        found, self._faults = self._faults, []
        return found

    # The journal, the ledger, definitions ----------------------------------------------------

    def _place(self, event: Event) -> None:
        if event.tx != self._tx:
            self._tx, self._ids = event.tx, set()
            if self._ordered:
                self._judge_seconds()
        if self.events == 0 and event.type != EventType.LEDGER_OPENED:
            self._fault(event, f"the journal begins with {event.type}, not with {EventType.LEDGER_OPENED}")
        if event.id in self._ids:
            self._fault(event, f"its id {event.id} stands twice in one transaction")
        self._ids.add(event.id)
        last = self._positions.last
        if not self._positions.add(event.position):
            self._fault(event, f"its position {event.position} stands twice")
        elif self._ordered and event.position != last + 1:
            self._fault(event, f"its position {event.position} does not follow {last}")
        if event.type not in OPENING and event.epoch != self.state.ledger.epoch:
            self._fault(event, f"its epoch {event.epoch} is not {self.state.ledger.epoch}")
        if event.happened_at > event.recorded_at:
            self._fault(event, f"it happened at {event.happened_at}, after it was recorded at {event.recorded_at}")

    def _take(self, type_: EventType, event: Event, details: dict[str, Any]) -> None:
        self._occupy(type_, event, details)
        if type_ in ADDRESS:
            self._step(event, details)
        elif type_ in POOL:
            self._define(event, details, self.state.pools, event.pool)
        elif type_ in RESERVATION:
            self._define(event, details, self.state.reservations, details["id"])
        elif type_ in (EventType.OBJECT_NAMED, EventType.OBJECT_LEFT):
            self._name(event, details)
        elif type_ is not EventType.REFUSED:
            self._stand(event, details)

    def _stand(self, event: Event, details: dict[str, Any]) -> None:
        row = self.state.ledger
        match event.type:
            case EventType.LEDGER_OPENED:
                if details["epoch"] != event.epoch or self.events:
                    self._fault(event, f"it opens epoch {details['epoch']} after {row.epoch}")
                row = Ledger(details["epoch"], row.definition, details["incarnation"])
            case EventType.LEDGER_RESTORED:
                if details["epoch"] != event.epoch or event.epoch <= row.epoch:
                    self._fault(event, f"it opens epoch {details['epoch']} after {row.epoch}")
                if row.fenced is None:
                    self._fault(event, "it restores a ledger that is not fenced")
                if (event.definition or 0) <= row.definition:
                    self._fault(event, f"definition {event.definition} follows {row.definition}")
                row = Ledger(details["epoch"], event.definition or 0, details["incarnation"])
            case EventType.LEDGER_DOUBTED:
                row = row._replace(doubted=details["incarnation"], doubt_until=details["until"])
            case EventType.LEDGER_TRUSTED:
                row = row._replace(incarnation=details["incarnation"], doubted=None, doubt_until=None)
            case EventType.LEDGER_FENCED:
                row = row._replace(fenced=details["reason"])
        self.state.ledger = row

    def _name(self, event: Event, details: dict[str, Any]) -> None:
        key, leaves = (details["kind"], details["namespace"], details["name"]), event.type == EventType.OBJECT_LEFT
        known = self.state.objects.pop(key, None)
        if known != (details["uid"] if leaves else None):
            self._fault(event, f"{event.type} {'/'.join(key)} {details['uid']}, but it was {known}")
        if not leaves:
            self.state.objects[key] = details["uid"]

    def _define(self, event: Event, details: dict[str, Any], all_: History, id_: Any) -> None:
        version, before = event.definition or 0, self.state.ledger.definition
        if (event.tx, version) != self._defined_by:
            if event.tx == self._defined_by[0]:
                self._fault(event, f"definition {version} is made in the transaction of {before}")
            elif version != before + 1:
                self._fault(event, f"definition {version} follows {before}")
            self._defined_by = (event.tx, version)
        value = _value(id_, event, details)
        if value is None:
            self._fault(event, "its document cannot be read")
        self.state.ledger = self.state.ledger._replace(definition=max(before, version))
        cells = (details["uid"], details["name"], details["state"], canonical(details["document"]))
        all_.setdefault(id_, {})[version] = Defined(*cells, value)
        self._available.clear()

    # Addresses -------------------------------------------------------------------------------

    def _step(self, event: Event, details: dict[str, Any]) -> None:
        ip, step = Ip(event.ip or 0), event.step or 0
        if event.type == EventType.ALLOCATED:
            self._judge_pool(ip, event)
        waiting = self._waiting.get(ip, {})
        last = self._row(ip).step
        if step <= last or step in waiting:
            self._fault(event, f"step {step} of {text(ip)} comes again, after step {last}")
            return
        if any(other.tx == event.tx and each > step for each, other in waiting.items()):
            self._fault(event, f"step {step} of {text(ip)} comes after a later one in its own transaction")
        if step == last + 1:
            self._advance(event, details)
            self._go_on(ip)
            return
        self._waiting.setdefault(ip, {})[step] = event
        if self._ordered or len(self._waiting[ip]) > WAITING_MAX:
            self._pass_over_gap(ip)

    def _row(self, ip: Ip) -> Address:
        return self.state.addresses.get(ip) or _NEVER_USED._replace(ip=ip)

    def _go_on(self, ip: Ip) -> None:
        """Take what waited for the step that has come now."""
        waiting = self._waiting.get(ip, {})
        while (event := waiting.pop(self._row(ip).step + 1, None)) is not None:
            self._advance(event, event.details)
        if not waiting:
            self._waiting.pop(ip, None)

    def _pass_over_gap(self, ip: Ip) -> None:
        while ip in self._waiting:
            row, there = self._row(ip), min(self._waiting[ip])
            missing = f"step {row.step + 1}" if there == row.step + 2 else f"steps {row.step + 1} to {there - 1}"
            event = self._waiting[ip][there]
            self._fault(event, f"step {there} of {text(ip)} stands in the journal without {missing} before it")
            self.state.addresses[ip] = row._replace(step=there - 1)
            self._go_on(ip)

    def _advance(self, event: Event, details: Mapping[str, Any]) -> None:
        once = self._once
        event = event._replace(node=once(event.node), network=once(event.network), interface=once(event.interface))
        before = self._row(Ip(event.ip or 0))
        open_ = self.state.holdings.get(before.ip)
        for wrong in broken_rules(before, open_, event):
            self._fault(event, f"{text(before.ip)} {wrong}")
        after = after_event(before, event, details)
        self.state.addresses[before.ip] = after = after._replace(result=once(after.result) or "")
        self.passed.append(after)
        self._hold(before.ip, open_, event)
        if event.type == EventType.ALLOCATED and event.claim is not None:
            self._claim(event.claim, before.ip, event)
        elif event.type == EventType.RELEASED and before.claim is not None:
            self._let_go(bytes.fromhex(before.claim), before.ip, event)

    def _once(self, said: str | None) -> str | None:
        """The same text, as the object that other rows share."""
        if len(self._texts) > TEXTS_MAX:
            self._texts.clear()
        return None if said is None else self._texts.setdefault(said, said)

    def _hold(self, ip: Ip, open_: Holding | None, event: Event) -> None:
        if event.type == EventType.ALLOCATED:
            if open_ is not None:
                self.ended.append(open_)
            open_ = Holding(ip, event.holding or 0)
        if open_ is None or open_.step != event.holding or event.type not in TOLD:
            return
        self.state.holdings[ip] = told(open_, event)
        if event.type == EventType.RELEASED:
            self.ended.append(self.state.holdings.pop(ip))

    def _judge_pool(self, ip: Ip, event: Event) -> None:
        version, pool = event.definition or 0, event.pool or 0
        if version > self.state.ledger.definition:
            self._fault(event, f"it cites definition {version}, after {self.state.ledger.definition}")
            return
        if (version, pool) not in self._available:
            definition = self.state.definition(version)
            found = definition.by_id.get(pool)
            self._available[version, pool] = definition.available(found) if found else ()
        if not contains(self._available[version, pool], ip):
            self._fault(event, f"{text(ip)} was not available in pool {pool} at definition {version}")

    # Claims ----------------------------------------------------------------------------------

    def _claim(self, claim: bytes, ip: Ip, event: Event) -> None:
        """A second address is judged later: the first one's release may stand behind it, and yet have come before."""
        other = self._holders.get(claim)
        if other is not None and other != ip:
            if claim in self._second:
                self._judge(claim)
            self._second[claim] = (other, event)
        self._holders[claim] = ip

    def _let_go(self, claim: bytes, ip: Ip, event: Event) -> None:
        if claim not in self._second:
            if self._holders.get(claim) == ip:
                del self._holders[claim]
            return
        other, second = self._second[claim]
        if event.recorded_at > second.recorded_at + INVERSION_US:
            self._judge(claim)
        del self._second[claim]
        if ip != other:
            self._holders[claim] = other

    def _judge_seconds(self) -> None:
        for claim in self._second:
            self._judge(claim)
        self._second.clear()

    def _judge(self, claim: bytes) -> None:
        other, event = self._second[claim]
        held = f"{text(Ip(event.ip or 0))} is allocated to claim {claim.hex()}"
        self._fault(event, f"{held}, which holds {text(other)}")

    def _occupy(self, type_: EventType, event: Event, details: dict[str, Any]) -> None:
        """Counted in the order of the journal, as the projector does: a count does not mind inverted steps."""
        rows = self.state.occupancy
        for pool in _pools(type_, event, details):
            rows[pool] = counted(rows.get(pool) or Occupancy(pool), type_, event, details)


# What one event does to one row -----------------------------------------------------------------


def after_event(row: Address, event: Event, details: Mapping[str, Any]) -> Address:
    """The row of an address after the next of its events."""
    row = row._replace(pool=event.pool or 0, step=event.step or 0, at=event.recorded_at)
    match event.type:
        case EventType.ALLOCATED:
            claim = None if event.claim is None else event.claim.hex()
            row = row._replace(held=True, ready=0, holding=event.step, claim=claim, result=canonical(details["result"]))
            return row._replace(subject=event.subject, **_binding(event))
        case EventType.REBOUND:
            return row._replace(subject=event.subject, **_binding(event))
        case EventType.UNBOUND:
            return row._replace(**_NOBODY)
        case EventType.RELEASED:
            row = row._replace(held=False, ready=details["ready"], holding=None, **_NOBODY)
            return row._replace(claim=None, subject=None) if details.get("moved") else row
        case EventType.FORGOTTEN:
            return row._replace(claim=None, subject=None)
    return row._replace(withheld=event.type == EventType.WITHHELD)


def _binding(event: Event) -> Mapping[str, Any]:
    if event.container is None:
        return _NOBODY
    return {**{name: getattr(event, name) for name in Binding._fields}, "bound_at": event.recorded_at}


def broken_rules(row: Address, open_: Holding | None, event: Event) -> Iterator[str]:
    """Why this cannot be the next event of the address."""
    if event.type == EventType.ALLOCATED and (row.held or row.withheld):
        yield "is allocated while it is " + ("held" if row.held else "withheld")
    if event.type == EventType.FORGOTTEN and row.held:
        yield "is forgotten while it is held"
    if event.type in HOLDERS and not row.held:
        yield f"is {event.type.partition('.')[2]} while it is not held"
    elif event.type in HOLDERS and event.claim is not None and event.claim.hex() != row.claim:
        yield f"is {event.type.partition('.')[2]} by claim {event.claim.hex()}, but {row.claim} holds it"
    holding = event.step if event.type == EventType.ALLOCATED else row.holding
    if event.holding != holding:
        yield f"is in holding {holding}, but the event says {event.holding}"
    if event.recorded_at <= row.at:
        yield f"had its last event recorded at {row.at}, and this one at {event.recorded_at}"
    began = open_.held_from if open_ is not None else None
    earliest = event.recorded_at if event.type == EventType.ALLOCATED else began
    if earliest is not None and event.happened_at < earliest:
        yield f"has an event that happened at {event.happened_at}, before {earliest}"


def told(holding: Holding, event: Event) -> Holding:
    """What an event adds to its holding. They may come in any order: the highest step says who speaks for it."""
    happened, recorded, step = event.happened_at, event.recorded_at, event.step or 0
    if event.type == EventType.RELEASED:
        return holding._replace(held_until=happened, recorded_until=recorded, cause=event.cause)
    if event.type == EventType.ALLOCATED:
        holding = holding._replace(pool=event.pool, claim=event.claim, interface=event.interface)
        holding = holding._replace(held_from=happened, recorded_from=recorded)
    if step <= holding.last_step:
        return holding
    return holding._replace(last_step=step, subject=event.subject, container=event.container, node=event.node)


def _pools(type_: EventType, event: Event, details: Mapping[str, Any]) -> set[int]:
    """The pools whose occupancy the event changes."""
    if type_ is EventType.REFUSED:
        return set(details["pools"])
    if type_ in RESERVATION:
        return {int(pool) for pool in details["available"]}
    return {event.pool or 0} if type_ in POOL | {EventType.ALLOCATED, EventType.RELEASED} else set()


def counted(row: Occupancy, type_: EventType, event: Event, details: Mapping[str, Any]) -> Occupancy:
    """The occupancy of one pool after an event that concerns it."""
    match type_:
        case EventType.REFUSED:
            return row._replace(refused=row.refused + 1)
        case EventType.ALLOCATED:
            return row._replace(allocated=row.allocated + 1)
        case EventType.RELEASED:
            return row._replace(allocated=row.allocated - 1)
    pools = type_ in POOL
    total = min(details["total"], TOTAL_MAX) if pools else row.total
    available = details["available"] if pools else details["available"][str(row.pool)]
    return row._replace(definition=event.definition or 0, total=total, withheld=max(total - available, 0))


def _value(id_: int, event: Event, details: Mapping[str, Any]) -> Pool | Reservation | None:
    try:
        state = State(details["state"])
        if event.type in POOL:
            pool = Pool(id_, details["uid"], state, SpiderIPPool.model_validate(details["document"]))
            return pool if pool.effective is not None else None
        reservation = Reservation(id_, details["uid"], state, SpiderReservedIP.model_validate(details["document"]))
        return reservation if reservation.ranges is not None else None
    except ValueError:
        return None


# Reading ----------------------------------------------------------------------------------------


_ID: Final = re.compile(r"0|[1-9][0-9]{0,9}")


def _whole(value: Any) -> bool:
    return isinstance(value, int)


def _words(value: Any) -> bool:
    return isinstance(value, str)


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _ids(value: Any) -> bool:
    return isinstance(value, list) and all(map(_whole, value))


def _by_pool(value: Any) -> bool:
    return isinstance(value, dict) and all(_ID.fullmatch(key) and _whole(count) for key, count in value.items())


_NAMED = {"kind": _words, "namespace": _words, "name": _words, "uid": _words}
_DEFINED = {"uid": _words, "name": _words, "state": _words, "document": _object}
_POOL_DEFINED = {**_DEFINED, "total": _whole, "available": _whole}
_RESERVED = {**_DEFINED, "id": _whole, "available": _by_pool}
_SHAPES: Final[Mapping[str, Mapping[str, Callable[[Any], bool]]]] = {
    EventType.ALLOCATED: {"result": _object},
    EventType.RELEASED: {"ready": _whole},
    EventType.REFUSED: {"pools": _ids},
    **dict.fromkeys(POOL, _POOL_DEFINED),
    **dict.fromkeys(RESERVATION, _RESERVED),
    **dict.fromkeys((EventType.OBJECT_NAMED, EventType.OBJECT_LEFT), _NAMED),
    EventType.LEDGER_OPENED: {"epoch": _whole, "incarnation": _words},
    EventType.LEDGER_DOUBTED: {"incarnation": _words, "until": _whole},
    EventType.LEDGER_TRUSTED: {"incarnation": _words},
    EventType.LEDGER_FENCED: {"reason": _words},
    EventType.LEDGER_RESTORED: {"epoch": _whole, "incarnation": _words, "reason": _words},
}
"""What the details of each type must hold for the fold to go on."""
_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(ADDRESS, ("ip", "family", "step", "pool")),
    **dict.fromkeys(POOL, ("pool", "definition")),
    **dict.fromkeys(RESERVATION, ("definition",)),
    EventType.LEDGER_RESTORED: ("definition",),
    EventType.ALLOCATED: ("ip", "family", "step", "pool", "holding", "definition", "claim"),
}


def _misshapen(event: Event, details: Any) -> str:
    """What an event lacks that its type needs."""
    if not isinstance(details, dict) or canonical(details) != event.data:
        return "its data is no object in canonical JSON"
    lacking = [name for name in _COLUMNS.get(event.type, ()) if getattr(event, name) is None]
    shape = _SHAPES.get(event.type, {})
    lacking += [f"data.{name}" for name, fits in shape.items() if not fits(details.get(name))]
    if lacking:
        return f"it lacks {', '.join(lacking)}"
    if event.type not in ADDRESS:
        extra = [name for name in ("ip", "step", "holding") if getattr(event, name) is not None]
        return f"{event.type} has no {', '.join(extra)}" if extra else ""
    assert event.ip is not None
    return "" if event.family == family(event.ip) else f"{text(event.ip)} is not of family {event.family}"


class _Positions:
    """The positions so far, as runs without a gap: few, as only what was rolled back leaves one."""

    def __init__(self) -> None:
        self.last = 0
        self._runs: list[tuple[int, int]] = []

    def add(self, position: int) -> bool:
        """Whether it is new."""
        self.last = position
        at = bisect_right(self._runs, (position, position + 1))
        before = at > 0 and self._runs[at - 1][1] >= position - 1
        if before and self._runs[at - 1][1] >= position:
            return False
        after = at < len(self._runs) and self._runs[at][0] == position + 1
        low = self._runs[at - 1][0] if before else position
        high = self._runs[at][1] if after else position
        self._runs[at - before : at + after] = [(low, high)]
        return True
