"""Pools and reservations: reading them as one definition, and changing them in one transaction.

A change locks the ledger's row, then the extents of the pools it touches, then, in a new statement, every
address row inside the ranges that change, held or not, in address order. A batch that had its rows before
is therefore seen, and one that comes after finds them locked, passes over them and sees the new version.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Engine, Integer, bindparam, delete, func, insert, or_, select, update

from ledger import dialects
from ledger.addresses import Family
from ledger.admission import AdmissionRefused, refuse_in_use
from ledger.claims import claim_of
from ledger.definition import Definition, Pool, Reservation, State
from ledger.driver import joined
from ledger.events import Event, EventType
from ledger.images import Address, Extent
from ledger.intervals import Interval
from ledger.redefine import (
    Change,
    DefinePool,
    DefineReservation,
    Move,
    Revision,
    changed_rows,
    definition_event,
    new_extents,
    of_move,
    revise,
    row_events,
    stored,
    taken_away,
    touched,
)
from ledger.resources import SpiderIPPool, SpiderReservedIP
from ledger.tables import address, extent, ledger, pool, reservation
from ledger.writing import write

READ_TRIES: Final = 10
RANGES_PER_READ: Final = 200


class StillHeldError(Exception):
    """A pool cannot be retired while somebody holds an address of it."""


@dataclass(frozen=True)
class Defined:
    """The change is made, by this event, or was made before: the definition from now on."""

    definition: Definition
    event: Event | None = None


def load(connection: Connection) -> Definition:
    """The definition as it stands. A change between two of these reads makes them begin again."""
    for _ in range(READ_TRIES):
        before = _version(connection)
        found = Definition(before, *_objects(connection))
        if _version(connection) == before:
            return found
    raise TimeoutError(f"the definition changed during each of {READ_TRIES} reads")


def define(
    engine: Engine,
    change: Change,
    *,
    ids: Iterator[int],
    salt: bytes,
    families: frozenset[Family],
    actor: str,
    cause: str,
) -> Defined | AdmissionRefused:
    """Make the change, all of it or nothing. StillHeldError for a retirement that comes too early."""
    with engine.begin() as connection:
        connection.execute(select(ledger.c.one).with_for_update())
        old = load(connection)
        revision = revise(old, change, families, _number_for(connection, change))
        if revision is None:
            return Defined(old)
        if isinstance(revision, AdmissionRefused):
            return revision
        outcome = _apply(connection, revision, ids=ids, salt=salt, actor=actor, cause=cause)
        if isinstance(outcome, AdmissionRefused):
            connection.rollback()
        return outcome


def _apply(
    connection: Connection, revision: Revision, *, ids: Iterator[int], salt: bytes, actor: str, cause: str
) -> Defined | AdmissionRefused:
    extents = _lock_extents(connection, [move.pool.id for move in revision.moves])
    rows = _lock_rows(connection, touched(revision.moves))
    if revision.type is EventType.POOL_RETIRED and _held_in(connection, revision.changed.id):
        raise StillHeldError(f"IPPool {revision.changed.name} still has holders")
    tx, now = connection.execute(select(dialects.transaction(), dialects.clock())).one()
    written: list[Address] = []
    for move in revision.moves:
        mine = of_move(move, rows)
        holder = taken_away(move, mine)
        if holder is not None:
            return refuse_in_use(move.pool.object, holder.ip, _name_of(holder))
        _replace_extents(connection, move, extents.get(move.pool.id, ()), mine)
        written += changed_rows(move, mine, now)
    rest: Any = {"tx": tx, "ids": ids, "actor": actor, "cause": cause}
    events = [
        definition_event(revision, now=now, **rest),
        *row_events(written, version=revision.definition.version, salt=salt, **rest),
    ]
    _store(connection, revision.changed)
    connection.execute(update(ledger).values(definition=revision.definition.version))
    write(joined(connection), events=events, rows=written)
    return Defined(revision.definition, events[0])


# Reading ----------------------------------------------------------------------------------------


def _version(connection: Connection) -> int:
    return int(connection.execute(select(ledger.c.definition)).scalar_one())


def _objects(connection: Connection) -> tuple[tuple[Pool, ...], tuple[Reservation, ...]]:
    pools = connection.execute(select(pool).where(pool.c.state != State.RETIRED).order_by(pool.c.id))
    reserved = connection.execute(
        select(reservation).where(reservation.c.state != State.RETIRED).order_by(reservation.c.id)
    )
    return tuple(as_pool(row._mapping) for row in pools), tuple(as_reservation(row._mapping) for row in reserved)


def as_pool(row: Mapping[Any, Any]) -> Pool:
    """A row of `pool` as a value."""
    return Pool(row["id"], row["uid"], State(row["state"]), SpiderIPPool.model_validate(json.loads(row["document"])))


def as_reservation(row: Mapping[Any, Any]) -> Reservation:
    """A row of `reservation` as a value."""
    document = SpiderReservedIP.model_validate(json.loads(row["document"]))
    return Reservation(row["id"], row["uid"], State(row["state"]), document)


def _number_for(connection: Connection, change: Change) -> int:
    """The number for an object that does not stand: the one it had before it was retired, or the next.

    The ledger's row is locked, so nobody else draws it.
    """
    if isinstance(change, DefinePool | DefineReservation):
        table = pool if isinstance(change, DefinePool) else reservation
        before = connection.execute(select(table.c.id).where(table.c.uid == change.object.metadata.uid)).scalar()
        if before is not None:
            return int(before)
    highest = [select(func.coalesce(func.max(table.c.id), 0)).scalar_subquery() for table in (pool, reservation)]
    return int(max(connection.execute(select(*highest)).one())) + 1


def _lock_extents(connection: Connection, pools: Sequence[int]) -> dict[int, list[Extent]]:
    """Every extent of these pools, locked. Waits for batches that have them.

    A batch that was waited for may have split what it had: so until no more are found.
    """
    locked = _find_extents(connection, pools)
    for _ in range(READ_TRIES):
        found = _find_extents(connection, pools)
        if sum(map(len, found.values())) == sum(map(len, locked.values())):
            return found
        locked = found
    raise TimeoutError(f"the extents changed during each of {READ_TRIES} reads")


def _find_extents(connection: Connection, pools: Sequence[int]) -> dict[int, list[Extent]]:
    wanted = extent.c.pool.in_(bindparam("pools", expanding=True))
    cells = (extent.c.pool, extent.c.high, extent.c.low)
    query = select(*cells).where(wanted).order_by(extent.c.pool, extent.c.high).with_for_update()
    found: dict[int, list[Extent]] = {}
    for row in connection.execute(query, {"pools": list(pools)}):
        found.setdefault(row.pool, []).append(Extent(row.pool, row.high, row.low))
    return found


def _lock_rows(connection: Connection, ranges: Sequence[Interval]) -> list[Address]:
    """Every used address in these ranges, locked in address order. Waits for batches that have them."""
    rows: list[Address] = []
    for start in range(0, len(ranges), RANGES_PER_READ):
        part = ranges[start : start + RANGES_PER_READ]
        inside = or_(*(address.c.ip.between(low, high) for low, high in part))
        query = select(*(address.c[name] for name in Address._fields)).where(inside)
        rows += [Address._make(row) for row in connection.execute(query.order_by(address.c.ip).with_for_update())]
    return [row if row.subject is None else row._replace(subject=bytes(row.subject)) for row in rows]


def _held_in(connection: Connection, identity: int) -> bool:
    query = select(address.c.ip).where(address.c.pool == identity, address.c.held).limit(1)
    return connection.execute(query).first() is not None


def _name_of(row: Address) -> str:
    claim = claim_of(row.claim or "")
    return f"{claim.namespace}/{claim.name}"


# Writing ----------------------------------------------------------------------------------------


def _replace_extents(connection: Connection, move: Move, extents: Sequence[Extent], rows: Sequence[Address]) -> None:
    identity = bindparam("identity", type_=Integer)
    connection.execute(delete(extent).where(extent.c.pool == identity), {"identity": move.pool.id})
    write(joined(connection), events=(), extents=new_extents(move, extents, rows))


def _store(connection: Connection, changed: Pool | Reservation) -> None:
    table = pool if isinstance(changed, Pool) else reservation
    cells = {"uid": changed.uid, "name": changed.name, "state": changed.state, "document": stored(changed.object)}
    done = connection.execute(update(table).where(table.c.id == changed.id).values(cells))
    if done.rowcount == 0:
        connection.execute(insert(table), {"id": changed.id, **cells})
