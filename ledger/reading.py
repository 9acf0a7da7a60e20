"""The one statement that reads, and locks, all that a batch may touch.

Its rows are wide and of several kinds, so that a batch costs one round trip. Locks are taken with SKIP
LOCKED: a batch never waits here. The statement's text depends only on how many pools are asked for
(rounded up) and whether exact addresses are, so a handful of texts is prepared once and for all.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    FromClause,
    Integer,
    Select,
    Text,
    bindparam,
    case,
    cast,
    exists,
    false,
    func,
    literal_column,
    null,
    select,
    union_all,
)
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.expression import CTE, CompoundSelect

from ledger import dialects
from ledger.addresses import Ip, from_key, key
from ledger.driver import Driver
from ledger.events import EPOCH_SHIFT
from ledger.images import Address, Demand, Extent, Head, Images, Plan
from ledger.tables import IpKey, address, event, extent, idle, ledger

NO_POOL: Final = -1

_cells = [address.c[name] for name in Address._fields]
_span_columns = (Column("lo", Text), Column("hi", Text))
_asked_columns = (Column("ip", IpKey), Column("pool", Integer))


def read(driver: Driver, plan: Plan, witness: tuple[int, int] | None) -> Images:
    """What the plan names, locked where others have not locked it, and the ledger's row."""
    size = _rounded_up(len(plan.demands))
    statement = _statement(driver.name, size, bool(plan.asked))
    rows = [_Row._make(row) for row in driver.fetch(statement, _parameters(plan, size, witness))]
    return _images(rows, [demand.pool for demand in plan.demands])


def read_head(driver: Driver, witness: tuple[int, int] | None) -> Head:
    """The ledger's row alone. It draws no transaction number: agents look often, and a server has to keep count."""
    [row] = driver.fetch(_alone(), _sought(witness))
    return _read_head(_Row._make(row))


def _rounded_up(pools: int) -> int:
    """To a power of two, so that there are few texts."""
    return pools and 1 << (pools - 1).bit_length()


@cache
def _statement(dialect: str, size: int, asked: bool) -> CompoundSelect[Any]:
    parts = _claims(dialect)
    for number in range(size):
        parts += _demand(number)
    if asked:
        parts += _asked(dialect)
    return union_all(*parts, _head(dialects.transaction()))


@cache
def _alone() -> Select[Any]:
    return _head(literal_column("0", BigInteger))


def _sought(witness: tuple[int, int] | None) -> dict[str, Any]:
    return {"witness_tx": witness[0] if witness else None, "witness_id": witness[1] if witness else None}


def _parameters(plan: Plan, size: int, witness: tuple[int, int] | None) -> dict[str, Any]:
    empty = Demand(NO_POOL, 0, 0, 0, 0)
    parameters: dict[str, Any] = {
        "spans": json.dumps([{"lo": low, "hi": high} for low, high in plan.spans]),
        **_sought(witness),
    }
    if plan.asked:
        parameters["asked"] = json.dumps([{"ip": key(each.ip).hex(), "pool": each.pool} for each in plan.asked])
    for number in range(size):
        demand = plan.demands[number] if number < len(plan.demands) else empty
        parameters |= {f"{name}_{number}": value for name, value in demand._asdict().items()}
    return parameters


# Parts of the statement -------------------------------------------------------------------------


def _wide(kind: str, source: FromClause | None = None, slot: int = 0, **cells: ColumnElement[Any]) -> Select[Any]:
    """A part of the union: the address's cells from a row of that shape, or NULL where nothing is said."""
    found = {} if source is None else {name: source.c[name] for name in Address._fields if name in source.c}
    columns = [
        cells.get(name, found.get(name, cast(null(), address.c[name].type))).label(name) for name in Address._fields
    ]
    high = cells.get("high", cast(null(), IpKey))
    kind_, slot_ = literal_column(f"'{kind}'", Text), literal_column(str(slot), Integer)
    return select(kind_.label("kind"), slot_.label("slot"), *columns, high.label("high"))


def _claims(dialect: str) -> list[Select[Any]]:
    spans, (low, high) = dialects.json_rows(dialect, "spans", _span_columns)
    rows = select(*_cells).select_from(spans.join(address, (address.c.claim >= low) & (address.c.claim < high)))
    seen = rows.subquery("seen")
    # Duplicates (overlapping spans) are harmless: the rows are equal.
    own = rows.with_for_update(skip_locked=True, of=address).cte("own")
    # SQLite's writer is alone: nothing is locked by others, and a plain read sees the same.
    return [_wide("seen", seen), _wide("own", own)] if dialect == dialects.POSTGRESQL else [_wide("own", own)]


def _demand(number: int) -> list[Select[Any]]:
    pool = bindparam(f"pool_{number}", type_=Integer)
    count = bindparam(f"addresses_{number}", type_=BigInteger)
    until = func.coalesce(bindparam(f"until_{number}", type_=BigInteger), dialects.clock())
    ready = [address.c.pool == pool, idle, address.c.ready <= until]
    rows = (
        select(*_cells)
        .where(*ready, address.c.ready >= bindparam(f"since_{number}", type_=BigInteger))
        .order_by(address.c.ready)
        .limit(count)
        .with_for_update(skip_locked=True)
        .cte(f"idle_{number}")
    )
    fresh = [extent.c.pool == pool, extent.c.low <= extent.c.high]
    extents = (
        select(extent.c.pool, extent.c.high, extent.c.low)
        .where(*fresh)
        .order_by(extent.c.high)
        .limit(bindparam(f"extents_{number}", type_=BigInteger))
        .with_for_update(skip_locked=True)
        .cte(f"extents_{number}")
    )
    return [
        _wide("idle", rows, number),
        _wide("extent", extents, number, ip=extents.c.low, high=extents.c.high),
        _wide("left", None, number, held=_left(ready, fresh, rows, extents, count)),
    ]


def _left(
    ready: Sequence[ColumnElement[bool]],
    fresh: Sequence[ColumnElement[bool]],
    rows: CTE,
    extents: CTE,
    count: ColumnElement[int],
) -> ColumnElement[bool]:
    """Whether a plain read finds more to hand out than was locked. Looked up only by a batch that came up short."""
    more_idle = exists(select(address.c.ip).where(*ready, address.c.ip.not_in(select(rows.c.ip))))
    more_fresh = exists(select(extent.c.high).where(*fresh, extent.c.high.not_in(select(extents.c.high))))
    enough = select(func.count()).select_from(rows).scalar_subquery() >= count
    return case((enough, false()), else_=more_idle | more_fresh)


def _asked(dialect: str) -> list[Select[Any]]:
    wanted, (ip, pool) = dialects.json_rows(dialect, "asked", _asked_columns)
    rows = select(*_cells).select_from(wanted.join(address, address.c.ip == ip))
    around = (extent.c.pool == pool) & (extent.c.high >= ip) & (extent.c.low <= ip)
    cells = (extent.c.pool, extent.c.high, extent.c.low, ip.label("ip"))
    extents = select(*cells).select_from(wanted.join(extent, around))
    locked = rows.with_for_update(skip_locked=True, of=address).cte("asked_rows")
    split = extents.with_for_update(skip_locked=True, of=extent).cte("asked_extents")
    return [
        _wide("seen_asked", rows.subquery("seen_rows")),
        _wide("asked", locked),
        _wide("seen_fresh", extents.subquery("seen_extents")),
        _wide("asked_extent", split, ip=split.c.low, high=split.c.high),
    ]


def _head(number: ColumnElement[int]) -> Select[Any]:
    witness_tx, witness_id = bindparam("witness_tx", type_=BigInteger), bindparam("witness_id", type_=BigInteger)
    seen = exists(select(event.c.position).where(event.c.tx == witness_tx, event.c.id == witness_id))
    # What an earlier epoch knew and this one does not, was settled when the ledger was restored.
    settled = witness_tx < cast(ledger.c.epoch, BigInteger).op("<<")(literal_column(str(EPOCH_SHIFT)))
    head = _wide(
        "head",
        None,
        held=witness_tx.is_(None) | settled | seen,
        ready=dialects.clock(),
        step=ledger.c.definition,
        at=number,
        holding=cast(ledger.c.epoch, BigInteger),
        claim=ledger.c.incarnation,
        container=dialects.incarnation(),
        network=ledger.c.doubted,
        netns=ledger.c.fenced,
        stamp=ledger.c.doubt_until,
    )
    return head.select_from(ledger)


# What came back ---------------------------------------------------------------------------------


class _Row(NamedTuple):
    """What the driver gives: the cells of an address between what kind of row it is and an extent's end."""

    kind: str
    slot: int
    ip: bytes
    pool: int
    held: Any
    withheld: Any
    ready: int
    step: int
    at: int
    holding: Any
    claim: Any
    subject: Any
    container: Any
    network: Any
    netns: Any
    node: Any
    stamp: Any
    bound_at: Any
    result: Any
    high: bytes


def _images(rows: Sequence[_Row], pools: Sequence[int]) -> Images:
    by_kind: defaultdict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        by_kind[row.kind].append(row)
    idle_rows: dict[int, list[Address]] = {pool: [] for pool in pools}
    extents: dict[int, dict[Ip, Extent]] = {pool: {} for pool in pools}
    for row in by_kind["idle"]:
        idle_rows[row.pool].append(_address(row))
    for row in (*by_kind["extent"], *by_kind["asked_extent"]):
        high = from_key(row.high)
        extents.setdefault(row.pool, {})[high] = Extent(row.pool, high, from_key(row.ip))
    return Images(
        head=_read_head(by_kind["head"][0]),
        own=_addresses(by_kind["own"]),
        seen=_addresses(by_kind["seen"] or by_kind["own"]),
        idle=idle_rows,
        extents={pool: tuple(found.values()) for pool, found in extents.items()},
        asked={row.ip: row for row in _addresses(by_kind["asked"])},
        seen_asked={row.ip: row for row in _addresses(by_kind["seen_asked"])},
        seen_fresh=frozenset(from_key(row.ip) for row in by_kind["seen_fresh"]),
        left=frozenset(pools[row.slot] for row in by_kind["left"] if row.held and row.slot < len(pools)),
    )


def _addresses(rows: Sequence[_Row]) -> tuple[Address, ...]:
    """Each address once, however many spans it lies in."""
    return tuple({row.ip: _address(row) for row in rows}.values())


def _address(row: _Row) -> Address:
    """The driver's values as ours: SQLite has no booleans, PostgreSQL's bytes may come as a view."""
    return Address(
        from_key(row.ip),
        row.pool,
        bool(row.held),
        bool(row.withheld),
        *row[6:11],
        None if row.subject is None else bytes(row.subject),
        *row[12:19],
    )


def _read_head(row: _Row) -> Head:
    return Head(
        tx=row.at,
        now=row.ready,
        epoch=row.holding,
        definition=row.step,
        incarnation=row.claim,
        present=row.container,
        doubted=row.network,
        doubt_until=row.stamp,
        fenced=row.netns,
        witnessed=bool(row.held),
    )
