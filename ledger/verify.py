"""Holds every table against the journal: whatever the one says and the other does not is a fault.

It reads the journal below one recorded fence, page by page, each page in a transaction of its own, folds it
(`ledger.fold` knows the rules) and compares. The ledger goes on working meanwhile: a row that is ahead of the fence is
judged when the fold comes to its step, a projection at the checkpoint at which it was read. It changes nothing and
mends nothing. Called by the operator's `spiderledger verify`, and by tests.
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, Row, Table, literal, select, text, tuple_

import migrations
from ledger import addresses, journal, tables, waiting
from ledger.addresses import Ip
from ledger.claims import salted
from ledger.dialects import is_postgresql
from ledger.events import Event
from ledger.fold import DEFINING, Fault, Fold, History, Holding
from ledger.images import Address
from ledger.intervals import Interval, Intervals, normal, size, subtract
from ledger.journal import Mark
from ledger.ranges import range_texts

PAGE_ROWS: Final = 1_000
"""Rows that one transaction reads: some hundredths of a second."""
ROUNDS_MAX: Final = 10
"""How often what changed while it was compared is read again."""
SETTLE_SECONDS: Final = 10.0
"""How long it waits for transactions that were open while rows were read."""
SETTLE_PAUSE: Final = 0.02
RANGES_SHOWN_MAX: Final = 8

END: Final = Mark(1 << 63, 0)
DROPPED: Final = Mark(-1, -1)
"""The checkpoint of a projection whose rows are being deleted, to be made anew."""
REBUILT: Final = "it is being rebuilt"

Key: TypeAlias = tuple[Any, ...]
Cells: TypeAlias = Mapping[Any, Any]


@dataclass(frozen=True)
class Report:
    """What was read, the event up to which journal and tables were held against each other, and every fault in order.

    `unjudged` says what could not be judged and why: a rebuild under way, a transaction that would not end.
    """

    events: int
    addresses: int
    mark: Mark
    faults: tuple[Fault, ...]
    unjudged: tuple[Fault, ...] = ()


def verify(engine: Engine) -> Report:
    """Read everything once and compare. It takes its time, but no transaction of it does."""
    return _Verification(engine).run()


class _Verification:
    """One run: the fold, how far it has come, and the rows that were read ahead of it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ordered = not is_postgresql(engine)
        self.fold = Fold(ordered=self.ordered)
        self.mark = self.highest = self.holdings_at = Mark()
        self.faults: list[Fault] = []
        self.unjudged: list[Fault] = []
        self.misheld: list[Fault] = []
        self.salt: bytes | None = None
        self.changes = 0
        self.reached = True
        self.ahead: dict[Ip, Address] = {}
        self.late: dict[Key, tuple[Holding | None, Holding]] = {}
        self.ended: defaultdict[Ip, array[int]] | None = defaultdict(lambda: array("q"))

    def run(self) -> Report:
        """The whole of it; the faults come in this order."""
        with self.engine.connect() as connection:
            self.salt = connection.execute(select(tables.ledger.c.salt)).scalar()
        if self.salt is None:
            return Report(0, 0, self.mark, (Fault("ledger 1", "expected a row, found none"),))
        self._read_journal()
        mark, events, used = self.mark, self.fold.events, len(self.fold.state.addresses)
        self._subjects()
        self._addresses()
        self._definitions()
        self._extents()
        self._judge_ahead()
        return Report(events, used, mark, tuple(self.faults), tuple(self.unjudged))

    def _judge(self, found: Iterable[Fault]) -> None:
        """Faults, unless a transaction that would not end may still explain them."""
        (self.faults if self.reached else self.unjudged).extend(found)

    # The journal -----------------------------------------------------------------------------

    def _read_journal(self) -> None:
        """To the fence as it stands now, with a stop at each projection's checkpoint."""
        occupancy, rows = self._projected(tables.occupancy)
        self.holdings_at, _ = self._projected(tables.holding, limit=1)
        before = self._fence()
        stops: list[tuple[Mark, Callable[[], None]]] = [
            (self.holdings_at, self._holdings),
            (occupancy, lambda: self._occupancy(occupancy, rows)),
        ]
        for mark, compare in sorted(stops, key=lambda stop: stop[0]):
            self._read(before, mark)
            compare()
        self._read(before)
        # What was recorded while that was read, so that few rows will be ahead.
        self._read(self._fence())
        self.faults += self.fold.settle()
        if not self.ordered:
            self._sequence()

    def _fence(self) -> int:
        with self.engine.connect() as connection:
            return journal.fence(connection)

    def _read(self, before: int, stop: Mark = END) -> None:
        """Fold on, below the fence, as far as the stop."""
        while True:
            with self.engine.connect() as connection:
                page = journal.page(connection, self.mark, before)
            events = [event for event in page if (event.tx, event.position) <= stop]
            for event in events:
                self._take(event)
            self._beside(events)
            if len(events) < journal.PAGE_EVENTS:
                return

    def _take(self, event: Event) -> None:
        self.faults += self.fold.apply(event)
        self.mark = Mark(event.tx, event.position)
        self.highest = max(self.highest, self.mark, key=lambda mark: mark.position)
        self.changes += event.type in DEFINING
        if self.ahead or self.late:
            self._meet(event)

    def _meet(self, event: Event) -> None:
        """Judge what was read ahead, once the fold comes to where it was read."""
        for image in self.fold.passed:
            if image.ip in self.ahead and self.ahead[image.ip].step == image.step:
                self.faults += _differences(_address(image.ip), image, self.ahead.pop(image.ip))
        key = (event.ip, event.holding)
        if key in self.late:
            found = self.late[key][1]
            if found in self.fold.ended or found == self.fold.holding(found.ip, found.step):
                del self.late[key]

    def _beside(self, events: Sequence[Event]) -> None:
        """What these events need in rows that never change afterwards: subjects, and the holdings that ended."""
        cited = {event.subject: event for event in events if event.subject is not None}
        ended, self.fold.ended = self.fold.ended, []
        keys = [(each.ip, each.step) for each in ended] if self.ended is not None else []
        with self.engine.connect() as connection:
            known = {bytes(row.id) for row in _by_key(connection, tables.subject, [(each,) for each in cited])}
            rows = {(row.ip, row.step): Holding._make(row) for row in _by_key(connection, tables.holding, keys)}
        for subject, event in cited.items():
            if subject not in known:
                cites = f"expected a row, which event {event.tx}/{event.position} cites, found none"
                self.faults.append(Fault(f"subject {subject.hex()}", cites))
        if self.ended is not None:
            for each in ended:
                self.ended[each.ip].append(each.step)
                self.misheld += _differences(_holding(each), each, rows.get((each.ip, each.step)))

    def _sequence(self) -> None:
        """PostgreSQL draws the positions: one beyond the last that it drew was written by hand."""
        with self.engine.connect() as connection:
            drawn = connection.execute(text(_LAST_POSITION)).scalar()
        if drawn is not None and self.highest.position > drawn:
            where = f"event {self.highest.tx}/{self.highest.position}"
            self.faults.append(Fault(where, f"its position was never drawn: the last one is {drawn}"))

    def _catch_up(self) -> None:
        """Fold on until every row that has been read so far is below the fence."""
        with self.engine.connect() as connection:
            deadline = time.monotonic() + SETTLE_SECONDS
            self.reached = self.ordered or waiting.settle(connection, deadline, SETTLE_PAUSE)
        self._read(self._fence())
        self.faults += self.fold.settle()

    # Projections -----------------------------------------------------------------------------

    def _projected(self, table: Table, limit: int | None = None) -> tuple[Mark, Sequence[Row[Any]]]:
        """A projection's checkpoint and its rows (at most so many), as of one moment."""
        with self.engine.connect() as connection:
            if not self.ordered:
                connection.execution_options(isolation_level="REPEATABLE READ")
            rows = connection.execute(select(table).limit(limit)).all()
            mark = _checkpoint(connection, table)
            stands = mark in (None, Mark(), DROPPED) or _by_key(connection, tables.event, [mark or ()])
        if mark is None and rows:
            self.faults.append(Fault(f"checkpoint {table.name}", "expected a row, found none"))
        if not stands and mark is not None:
            place = f"{mark.tx}/{mark.position}"
            self.faults.append(Fault(f"checkpoint {table.name}", f"expected the place of an event, found {place}"))
        return mark or Mark(), rows

    def _occupancy(self, mark: Mark, rows: Sequence[Row[Any]]) -> None:
        if mark == DROPPED:
            self.unjudged.append(Fault("occupancy", REBUILT))
            return
        expected = {(pool,): row._asdict() for pool, row in self.fold.state.occupancy.items()}
        self.faults += _compare("occupancy", expected, {(row.pool,): row._mapping for row in rows})

    def _holdings(self) -> None:
        """The open holdings at their checkpoint, and rows that should not be there."""
        ended: Mapping[Ip, array[int]] = self.ended or {}
        self.ended = None
        if self.holdings_at == DROPPED:
            self.unjudged.append(Fault("holding", REBUILT))
            return
        open_ = self.fold.state.holdings
        unseen = set(open_)
        for row in _rows(self.engine, tables.holding):
            found = Holding._make(row)
            image = self.fold.holding(found.ip, found.step)
            if found.ip in open_ and open_[found.ip].step == found.step:
                unseen.discard(found.ip)
            if found != image and (image or found.step not in ended.get(found.ip, ())):
                self.late[found.ip, found.step] = (image, found)
        for ip in sorted(unseen):
            self.misheld += _differences(_holding(open_[ip]), open_[ip], None)

    def _judge_ahead(self) -> None:
        """What is left when the fold has passed whatever was committed when the rows were read."""
        if self.ahead or self.late:
            self._catch_up()
        for ip, row in sorted(self.ahead.items()):
            self._judge(_differences(_address(ip), self.fold.state.addresses.get(ip), row))
        late = [fault for image, row in self.late.values() for fault in _differences(_holding(row), image, row)]
        with self.engine.connect() as connection:
            now = _checkpoint(connection, tables.holding)
        if (self.misheld or late) and now is not None and now < self.holdings_at:
            self.unjudged.append(Fault("holding", REBUILT))
        else:
            self.faults += self.misheld
            self._judge(late)

    # State -----------------------------------------------------------------------------------

    def _subjects(self) -> None:
        """Each stands under the hash of its document, if it still has one; where none does, the salt is another."""
        wrong, right = [], 0
        for row in _rows(self.engine, tables.subject):
            id_, hash_ = bytes(row.id), None if row.document is None else salted(self.salt or b"", row.document)
            right += id_ == hash_
            if hash_ not in (None, id_):
                text_ = f"expected what hashes to {id_.hex()}, found what hashes to {_shown(hash_)}"
                wrong.append(Fault(f"subject {id_.hex()} document", text_))
        if len(wrong) > 1 and not right:
            self.salt = None
            wrong = [Fault("ledger 1 salt", "expected the salt of the subjects' hashes, found another")]
        self.faults += wrong

    def _addresses(self) -> None:
        known = self.fold.state.addresses
        unseen = set(known)
        for row in _rows(self.engine, tables.address):
            image = known.get(row.ip)
            found = self._hidden(Address._make(row), image)
            unseen.discard(found.ip)
            if found.step > (image.step if image else 0):
                self.ahead[found.ip] = found
            else:
                self.faults += _differences(_address(found.ip), image, found)
        for ip in sorted(unseen):
            self.faults += _differences(_address(ip), known[ip], None)

    def _hidden(self, row: Address, image: Address | None) -> Address:
        """The row with the hash of its claim, which without the true salt cannot be judged."""
        claim = image.claim if image else None
        if self.salt is not None:
            claim = None if row.claim is None else salted(self.salt, row.claim).hex()
        return row._replace(claim=claim)

    def _definitions(self) -> None:
        """The tables that definitions and the ledger's standing change. If they do it now, they are read again."""
        for _ in range(ROUNDS_MAX):
            wrong, changes = list(self._misdefined()), self.changes
            if not wrong:
                return
            self._catch_up()
            if self.changes == changes or not self.reached:
                self._judge(wrong)
                return
        self.unjudged.append(Fault("ledger", f"it changed during each of {ROUNDS_MAX} reads"))

    def _misdefined(self) -> Iterator[Fault]:
        state = self.fold.state
        objects = {key: dict(zip(_OBJECT, (*key, uid), strict=True)) for key, uid in state.objects.items()}
        yield from self._differing(tables.ledger, {(1,): {"one": 1, **state.ledger._asdict(), **self._software()}})
        yield from self._differing(tables.pool, _latest(state.pools))
        yield from self._differing(tables.reservation, _latest(state.reservations))
        yield from self._differing(tables.object_uid, objects)

    def _differing(self, table: Table, expected: Mapping[Key, Cells]) -> Iterator[Fault]:
        keys = list(table.primary_key.columns)
        found = {tuple(row._mapping[each] for each in keys): row._mapping for row in _rows(self.engine, table)}
        return _compare(table.name, expected, found)

    def _software(self) -> Cells:
        """The oldest software that the schema admits, as its revision says; nothing where that is not known here."""
        with self.engine.connect() as connection:
            revision = MigrationContext.configure(connection).get_current_revision()
        try:
            script = ScriptDirectory(str(Path(migrations.__file__).parent)).get_revision(revision or "")
        except CommandError:
            return {}
        oldest = getattr(script and script.module, "oldest_software", None)
        return {} if oldest is None else {"oldest_software": oldest}

    def _extents(self) -> None:
        """What is offered is what is available and was never used. Until a new definition it only shrinks."""
        for _ in range(ROUNDS_MAX):
            most, version = self._unused(), self.fold.state.ledger.definition
            found = _offered(self.engine)
            if not any(_misoffered(most, found, most)):
                return
            self._catch_up()
            if self.fold.state.ledger.definition == version:
                self._judge(_misoffered(most, found, self._unused()))
                return
        self.unjudged.append(Fault("extent", f"the definition changed during each of {ROUNDS_MAX} reads"))

    def _unused(self) -> dict[int, Intervals]:
        state = self.fold.state
        definition = state.definition(state.ledger.definition)
        used = normal((ip, ip) for ip in state.addresses)
        return {pool.id: _without(definition.available(pool), used) for pool in definition.pools}


# Rows -------------------------------------------------------------------------------------------

_OBJECT: Final = ("kind", "namespace", "name", "uid")
_LAST_POSITION: Final = "SELECT last_value FROM pg_sequences WHERE sequencename = 'event_position_seq'"


def _rows(engine: Engine, table: Table) -> Iterator[Row[Any]]:
    """All rows in the order of the key, each page in a transaction of its own."""
    keys = list(table.primary_key.columns)
    query = following = select(table).order_by(*keys).limit(PAGE_ROWS)
    while True:
        with engine.connect() as connection:
            page = connection.execute(following).all()
        yield from page
        if len(page) < PAGE_ROWS:
            return
        last = (literal(page[-1]._mapping[each], each.type) for each in keys)
        following = query.where(tuple_(*keys) > tuple_(*last))


def _by_key(connection: Connection, table: Table, keys: Collection[Key]) -> Sequence[Row[Any]]:
    """The rows that exist under these keys."""
    found = tuple_(*table.primary_key.columns).in_(keys)
    return connection.execute(select(table).where(found)).all() if keys else []


def _checkpoint(connection: Connection, table: Table) -> Mark | None:
    mine = tables.checkpoint.c.projection == table.name
    row = connection.execute(select(tables.checkpoint.c.tx, tables.checkpoint.c.position).where(mine)).first()
    return None if row is None else Mark(*row)


def _latest(history: History) -> dict[Key, Cells]:
    """The rows of pools or reservations as the last definition that changed them left them."""
    last = {id_: versions[max(versions)] for id_, versions in history.items()}
    names = ("uid", "name", "state", "document")
    return {(id_,): {"id": id_, **{name: getattr(row, name) for name in names}} for id_, row in last.items()}


def _offered(engine: Engine) -> dict[int, list[Interval]]:
    offered: dict[int, list[Interval]] = {}
    for row in _rows(engine, tables.extent):
        if row.low <= row.high:
            offered.setdefault(row.pool, []).append((row.low, row.high))
    return offered


def _without(available: Intervals, used: Intervals) -> Intervals:
    """What is available and not used. Of the used ones only those around are looked at: there are many."""
    if not available:
        return ()
    first, last = (bisect_left(used, (ip, Ip(0))) for ip in (available[0][0], Ip(available[-1][1] + 1)))
    return subtract(available, used[max(first - 1, 0) : last])


# Differences ------------------------------------------------------------------------------------


def _misoffered(
    most: Mapping[int, Intervals], found: Mapping[int, Sequence[Interval]], least: Mapping[int, Intervals]
) -> Iterator[Fault]:
    for pool in sorted({*most, *found}):
        rows = found.get(pool, ())
        offered = normal(rows)
        more = subtract(offered, most.get(pool, ()))
        less = subtract(least.get(pool, ()), offered)
        if more:
            yield Fault(f"extent {pool}", f"expected nothing that is used or not available, found {_ranges(more)}")
        if less:
            yield Fault(f"extent {pool}", f"expected all that is available and unused, found none of {_ranges(less)}")
        if size(tuple(rows)) > size(offered):
            yield Fault(f"extent {pool}", f"expected each address once, found some twice in {_ranges(tuple(rows))}")


def _ranges(found: Intervals) -> str:
    rest = len(found) - RANGES_SHOWN_MAX
    return ", ".join(range_texts(found[:RANGES_SHOWN_MAX])) + (f" and {rest} more" if rest > 0 else "")


def _address(ip: Ip) -> str:
    return f"address {addresses.text(ip)}"


def _holding(row: Holding) -> str:
    return f"holding {addresses.text(row.ip)}/{row.step}"


def _compare(table: str, expected: Mapping[Key, Cells], found: Mapping[Key, Cells]) -> Iterator[Fault]:
    for key in sorted({*expected, *found}):
        yield from _cells(f"{table} {'/'.join(map(str, key))}", expected.get(key), found.get(key))


def _differences(where: str, expected: Holding | Address | None, found: Holding | Address | None) -> Iterator[Fault]:
    if expected != found:
        yield from _cells(where, expected and expected._asdict(), found and found._asdict())


def _cells(where: str, expected: Cells | None, found: Cells | None) -> Iterator[Fault]:
    """Column by column what differs."""
    if expected is None or found is None:
        yield Fault(where, "expected no row, found one" if expected is None else "expected a row, found none")
        return
    for column, value in expected.items():
        if found[column] != value:
            yield Fault(f"{where} {column}", f"expected {_shown(value)}, found {_shown(found[column])}")


def _shown(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else repr(value)
