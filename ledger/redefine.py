"""What a change of a pool or reservation means: the new definition, the ranges that come and go, rows and events.

Pure. `ledger.definitions` does the locking, reading and writing around it, in one transaction.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from ledger.addresses import Family, family
from ledger.admission import (
    AdmissionRefused,
    mutated_pool,
    mutated_reservation,
    refuse_new_pool,
    refuse_new_reservation,
    refuse_pool_update,
    refuse_reservation_update,
)
from ledger.canonical import canonical
from ledger.claims import claim_of, salted
from ledger.definition import Definition, Pool, Reservation, State
from ledger.events import VERSION, Event, EventType, sealed
from ledger.images import Address, Extent
from ledger.intervals import Intervals, contains, cut, intersect, size, subtract, union
from ledger.ranges import total_ip_count
from ledger.resources import SpiderIPPool, SpiderReservedIP

EXTENTS_PER_POOL: Final = 64
"""Agents take addresses from different extents of a hot pool, so that they do not queue for one row."""
EXTENT_ADDRESSES_MIN: Final = 16
"""A smaller extent is not worth its row."""
KEPT_ANNOTATIONS: Final = ("ipam.spidernet.io/", "ipam.spiderledger.io/")


@dataclass(frozen=True)
class DefinePool:
    """This object says this now. An unknown uid is a new pool, a closed one opens again."""

    object: SpiderIPPool


@dataclass(frozen=True)
class ClosePool:
    """Hand nothing out any more; holders stay."""

    uid: str


@dataclass(frozen=True)
class RetirePool:
    """Closed, and nobody holds anything: the pool has no more part in anything."""

    uid: str


@dataclass(frozen=True)
class DefineReservation:
    """No pool hands these out; holders keep theirs until they release."""

    object: SpiderReservedIP


@dataclass(frozen=True)
class RetireReservation:
    """They may be handed out again."""

    uid: str


Change: TypeAlias = DefinePool | ClosePool | RetirePool | DefineReservation | RetireReservation


@dataclass(frozen=True)
class Move:
    """What one pool loses and gains. An edit of the pool itself may not take a held address away (`strict`)."""

    pool: Pool
    gone: Intervals
    come: Intervals
    strict: Intervals = ()


@dataclass(frozen=True)
class Revision:
    """A change that may be made: its definition, its one changed thing, its event, and every pool it touches."""

    definition: Definition
    changed: Pool | Reservation
    type: EventType
    moves: tuple[Move, ...]


def revise(
    old: Definition, change: Change, families: frozenset[Family], next_id: int
) -> Revision | AdmissionRefused | None:
    """What the change makes of the definition; None when it changes nothing."""
    match change:
        case DefinePool(object=given):
            return _define_pool(old, mutated_pool(given), families, next_id)
        case DefineReservation(object=given_reservation):
            return _define_reservation(old, mutated_reservation(given_reservation), families, next_id)
        case ClosePool(uid=uid):
            return _state_of_pool(old, uid, State.CLOSED, EventType.POOL_CLOSED)
        case RetirePool(uid=uid):
            return _state_of_pool(old, uid, State.RETIRED, EventType.POOL_RETIRED)
        case RetireReservation(uid=uid):
            return _retire_reservation(old, uid)


def _define_pool(
    old: Definition, given: SpiderIPPool, families: frozenset[Family], next_id: int
) -> Revision | AdmissionRefused | None:
    before = next((pool for pool in old.pools if pool.uid == given.metadata.uid), None)
    others = [pool.object for pool in old.pools if pool is not before]
    if before is None:
        refused = refuse_new_pool(given, others, families)
        after = Pool(next_id, given.metadata.uid, State.OPEN, given)
    else:
        refused = refuse_pool_update(given, before.object, others, families)
        after = Pool(before.id, before.uid, State.OPEN, given)
    if refused:
        return refused
    if before is not None and before.state is State.OPEN and stored(before.object) == stored(given):
        return None
    pools = tuple(after if pool is before else pool for pool in old.pools) if before else (*old.pools, after)
    new = replace(old, version=old.version + 1, pools=pools)
    shrunk = subtract(before.effective, after.effective) if before else ()
    type_ = EventType.POOL_REDEFINED if before else EventType.POOL_DEFINED
    return Revision(new, after, type_, _moves(old, new, {after.id: shrunk}))


def _define_reservation(
    old: Definition, given: SpiderReservedIP, families: frozenset[Family], next_id: int
) -> Revision | AdmissionRefused | None:
    before = next((each for each in old.reservations if each.uid == given.metadata.uid), None)
    if before is None:
        refused = refuse_new_reservation(given, families)
    else:
        refused = refuse_reservation_update(given, before.object, families)
    if refused:
        return refused
    if before is not None and stored(before.object) == stored(given):
        return None
    after = Reservation(before.id if before else next_id, given.metadata.uid, State.OPEN, given)
    kept = tuple(each for each in old.reservations if each is not before)
    new = replace(old, version=old.version + 1, reservations=(*kept, after))
    type_ = EventType.RESERVATION_REDEFINED if before else EventType.RESERVATION_DEFINED
    return Revision(new, after, type_, _moves(old, new, {}))


def _state_of_pool(old: Definition, uid: str, state: State, type_: EventType) -> Revision | None:
    before = next((pool for pool in old.pools if pool.uid == uid), None)
    if before is None or before.state is state:
        return None
    after = replace(before, state=state)
    living = tuple(after if pool is before else pool for pool in old.pools)
    pools = tuple(pool for pool in living if pool.state is not State.RETIRED)
    new = replace(old, version=old.version + 1, pools=pools)
    return Revision(new, after, type_, _moves(old, new, {}))


def _retire_reservation(old: Definition, uid: str) -> Revision | None:
    before = next((each for each in old.reservations if each.uid == uid), None)
    if before is None:
        return None
    kept = tuple(each for each in old.reservations if each is not before)
    new = replace(old, version=old.version + 1, reservations=kept)
    after = replace(before, state=State.RETIRED)
    return Revision(new, after, EventType.RESERVATION_RETIRED, _moves(old, new, {}))


def _moves(old: Definition, new: Definition, strict: Mapping[int, Intervals]) -> tuple[Move, ...]:
    moves = []
    for identity in sorted({*old.by_id, *new.by_id}):
        before, after = old.by_id.get(identity), new.by_id.get(identity)
        had = old.available(before) if before else ()
        has = new.available(after) if after else ()
        move = Move(after or before, subtract(had, has), subtract(has, had), strict.get(identity, ()))  # type: ignore[arg-type]
        if move.gone or move.come or move.strict:
            moves.append(move)
    return tuple(moves)


# What it does to rows ---------------------------------------------------------------------------


def taken_away(move: Move, rows: Sequence[Address]) -> Address | None:
    """The first held address that an edit of the pool would take from its holder."""
    return next((row for row in rows if row.held and contains(move.strict, row.ip)), None)


def new_extents(move: Move, extents: Sequence[Extent], rows: Sequence[Address]) -> list[Extent]:
    """The pool's extents afterwards: what stays of the old, and of what comes whatever was never used."""
    fresh: Intervals = union((), tuple((each.low, each.high) for each in extents if each.low <= each.high))
    used = union((), tuple((row.ip, row.ip) for row in rows))
    left = union(subtract(fresh, move.gone), subtract(move.come, used))
    pieces = min(EXTENTS_PER_POOL, max(1, size(left) // EXTENT_ADDRESSES_MIN))
    return [Extent(move.pool.id, high, low) for low, high in cut(left, pieces)]


def changed_rows(move: Move, rows: Sequence[Address], now: int) -> list[Address]:
    """The used addresses whose standing changes: withheld in what goes, to be handed out again in what comes."""
    changed = []
    for row in rows:
        comes = contains(move.come, row.ip)
        if not comes and not contains(move.gone, row.ip):
            continue
        if row.withheld == (not comes) and (not comes or row.pool == move.pool.id):
            continue
        pool = move.pool.id if comes else row.pool
        at = max(now, row.at + 1)
        changed.append(row._replace(withheld=not comes, pool=pool, step=row.step + 1, at=at))
    return changed


# What it says -----------------------------------------------------------------------------------


def row_events(
    rows: Sequence[Address], *, tx: int, version: int, salt: bytes, ids: Iterator[int], actor: str, cause: str
) -> Iterator[Event]:
    """One event for each changed address."""
    for row in rows:
        yield sealed(Event(
            tx=tx,
            position=0,
            id=next(ids),
            type=EventType.WITHHELD if row.withheld else EventType.READMITTED,
            version=VERSION,
            recorded_at=row.at,
            happened_at=row.at,
            ip=row.ip,
            family=family(row.ip),
            step=row.step,
            holding=row.holding,
            pool=row.pool,
            definition=version,
            claim=None if row.claim is None else salted(salt, row.claim),
            interface=None if row.claim is None else claim_of(row.claim).interface,
            subject=row.subject,
            container=row.container,
            network=row.network,
            netns=row.netns,
            node=row.node,
            stamp=row.stamp,
            actor=actor,
            cause=cause,
        ))  # fmt: skip


def definition_event(revision: Revision, *, tx: int, now: int, ids: Iterator[int], actor: str, cause: str) -> Event:
    """The change itself, with the object as it stands from now on."""
    changed, new = revision.changed, revision.definition
    data: dict[str, Any] = {
        "uid": changed.uid,
        "name": changed.name,
        "state": changed.state,
        "document": json.loads(stored(changed.object)),
    }
    if isinstance(changed, Pool):
        total = total_ip_count(changed.effective)
        data |= {"total": total, "available": total_ip_count(new.available(changed))}
    else:
        touched = {str(move.pool.id): total_ip_count(new.available(move.pool)) for move in revision.moves}
        data |= {"id": changed.id, "available": touched}
    return sealed(Event(
        tx=tx,
        position=0,
        id=next(ids),
        type=revision.type,
        version=VERSION,
        recorded_at=now,
        happened_at=now,
        family=changed.family,
        pool=changed.id if isinstance(changed, Pool) else None,
        definition=new.version,
        actor=actor,
        cause=cause,
        data=canonical(data),
    ))  # fmt: skip


def stored(given: SpiderIPPool | SpiderReservedIP) -> str:
    """The canonical JSON that the ledger keeps of an object: what we use of it, under the API's names."""
    document = given.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    metadata = {key: value for key, value in document["metadata"].items() if key in ("name", "uid", "labels")}
    kept = {key: text for key, text in given.metadata.annotations.items() if key.startswith(KEPT_ANNOTATIONS)}
    if kept:
        metadata["annotations"] = kept
    return canonical({"kind": given.kind, "metadata": metadata, "spec": document.get("spec", {})})


def touched(moves: Sequence[Move]) -> Intervals:
    """Every range in which a row may change or stop the change, all pools together."""
    ranges: Intervals = ()
    for move in moves:
        ranges = union(ranges, union(union(move.gone, move.come), move.strict))
    return ranges


def of_move(move: Move, rows: Sequence[Address]) -> list[Address]:
    """The rows in the ranges of one move."""
    mine = touched([move])
    return [row for row in rows if intersect(mine, ((row.ip, row.ip),))]
