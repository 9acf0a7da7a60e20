"""The questions of the audit and of `get`: who held this address then, what had this pod, why was it refused.

Read-only, each from one snapshot of the database. What could grow without end is bounded, newest first, and says
that there is more. What an address was when nobody held it is judged in `projector.holders`. Called by the command
line and by whoever serves answers over HTTP; on SQLite with a read-only engine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final

from sqlalchemy import Connection, Engine, Select, bindparam, func, literal_column, select, tuple_

from ledger import dialects, tables
from ledger.addresses import Ip
from ledger.canonical import canonical
from ledger.claims import Subject, claim_of, subject_in
from ledger.definition import Pool
from ledger.definitions import load
from ledger.events import Event, EventType
from ledger.images import Address
from ledger.journal import Mark, as_event
from ledger.requests import Candidate
from projector.holders import Known, judge
from projector.lines import (
    AllocationLine,
    Allocations,
    EventLine,
    Events,
    Explanation,
    Filter,
    History,
    HoldingLine,
    PoolLine,
    Pools,
    RefusalLine,
    WhoHeld,
)
from projector.present import as_of, present, snapshot
from projector.projections import HOLDING, OCCUPANCY, Holding, Key, Occupancy

LINES_MAX: Final = 1_000
"""Lines of one answer, unless less is asked for."""
SUBJECTS_MAX: Final = 10_000
"""Subjects that one name may have: a new one with each uid, owner or set of labels."""
EVENTS_SEARCHED_MAX: Final = 50_000
"""Events that one question looks through; whoever wants older ones asks on from there."""
EVENTS_PER_READ: Final = 1_000
APP_NAMESPACE: Final = "ipam.spidernet.io/app-namespace"
_END: Final = Mark((1 << 63) - 1, (1 << 63) - 1)


def who_held(engine: Engine, ip: Ip, at: int | None = None) -> WhoHeld:
    """Who had this address at this moment (by default now)? If nobody: was it free, cooling, withheld or not ours?"""
    with snapshot(engine) as connection:
        now = present(connection, HOLDING, lambda event: event.ip == ip)
        moment = now.as_of.read_at if at is None else at
        stored = _holdings(connection, _begun_by, ip=ip, at=moment) | _holdings(connection, _of_ip, ip=ip, limit=1)
        holdings = tuple(now.over(stored).values())
        known = Known(ip, holdings, _row_of(connection, ip), load(connection), _opened(connection))
        found = judge(known, moment)
        lines = _holding_lines(connection, [found.holding] if found.holding else [])
    pool = found.pool.name if found.pool else ""
    line = lines[0] if lines else None
    return WhoHeld(ip, moment, found.standing, line, found.until, pool, known.definition.version, now.as_of)


def history_of_ip(engine: Engine, ip: Ip, limit: int = LINES_MAX) -> History:
    """Who has had this address, and from when until when?"""
    with snapshot(engine) as connection:
        now = present(connection, HOLDING, lambda event: event.ip == ip)
        stored = _holdings(connection, _of_ip, ip=ip, limit=limit + 1)
        found = sorted(now.over(stored).values(), key=lambda each: each.step, reverse=True)
        lines = _holding_lines(connection, found[:limit])
    return History(tuple(lines), len(found) > limit, now.as_of)


def history_of_pod(engine: Engine, namespace: str, name: str, limit: int = LINES_MAX) -> History:
    """Which addresses have pods of this name had, and from when until when?"""
    with snapshot(engine) as connection:
        return _history_of(connection, _subjects_named(connection, namespace, name), limit)


def explain(engine: Engine, namespace: str, name: str, limit: int = LINES_MAX) -> Explanation:
    """What was a pod of this name refused, and why, and what did it get?"""
    with snapshot(engine) as connection:
        names = _subjects_named(connection, namespace, name)
        history = _history_of(connection, names, limit)
        wanted = {"subjects": _ids(names), "limit": limit + 1}
        rows = connection.execute(_refusals(connection.dialect.name), wanted).all()
    found: list[RefusalLine | HoldingLine] = [*history.lines]
    found += [_refusal_line(as_event(row), names) for row in rows]
    found.sort(key=_when, reverse=True)
    return Explanation(tuple(found[:limit]), history.more or len(found) > limit, history.as_of)


def pools(engine: Engine) -> Pools:
    """How full is each pool, and what does it say?"""
    with snapshot(engine) as connection:
        now = present(connection, OCCUPANCY)
        stored: dict[Key, Occupancy] = {(row.pool,): Occupancy._make(row) for row in connection.execute(_occupancy)}
        cooling = {row.pool: row.cooling for row in connection.execute(_cooling)}
        definition = load(connection)
    occupied = now.over(stored)
    lines = [
        _pool_line(pool, occupied.get((pool.id,)) or Occupancy(pool.id), cooling.get(pool.id, 0))
        for pool in sorted(definition.pools, key=lambda pool: pool.name)
    ]
    return Pools(tuple(lines), now.as_of)


def allocations(engine: Engine, after: Ip | None = None, limit: int = LINES_MAX) -> Allocations:
    """Which addresses are held now, and by whom? In the order of addresses, from the one after that."""
    with snapshot(engine) as connection:
        wanted = {"after": after or Ip(0), "limit": limit + 1}
        rows = [Address._make(row) for row in connection.execute(_held, wanted)]
        names = _subjects_of(connection, [row.subject for row in rows])
        pool_names = _pool_names(connection)
        settled = as_of(connection)
    lines = [
        AllocationLine(row, claim_of(row.claim or ""), pool_names.get(row.pool, ""), names.get(row.subject or b""))
        for row in rows[:limit]
    ]
    return Allocations(tuple(lines), len(rows) > limit, settled)


def events(engine: Engine, limit: int = LINES_MAX, wanted: Filter | None = None, before: Mark | None = None) -> Events:
    """What has happened, newest first (before that)? Reads page by page, so it looks back as far as it must."""
    wanted, mark = wanted or Filter(), before or _END
    found: list[EventLine] = []
    with snapshot(engine) as connection:
        settled = as_of(connection)
    for _ in range(EVENTS_SEARCHED_MAX // EVENTS_PER_READ):
        with snapshot(engine) as connection:
            page = _event_lines(connection, mark)
        for line in page:
            mark = Mark(line.event.tx, line.event.position)
            if wanted.passes(line):
                found.append(line)
            if len(found) == limit:
                return Events(tuple(found), mark, settled)
        if len(page) < EVENTS_PER_READ:
            return Events(tuple(found), None, settled)
    return Events(tuple(found), mark, settled)


# Holdings ---------------------------------------------------------------------------------------

_holding_cells = select(*(tables.holding.c[name] for name in Holding._fields))
_of_ip = (
    _holding_cells.where(tables.holding.c.ip == bindparam("ip"))
    .order_by(tables.holding.c.step.desc())
    .limit(bindparam("limit"))
)
_begun_by = (
    _holding_cells.where(tables.holding.c.ip == bindparam("ip"), tables.holding.c.held_from <= bindparam("at"))
    .order_by(tables.holding.c.step.desc())
    .limit(1)
)


@cache
def _of_subjects(dialect: str) -> Select[Any]:
    """What have these subjects held?"""
    ids, values = dialects.json_rows(dialect, "subjects", [tables.subject.c.id])
    mine = tables.holding.c.subject.in_(select(*values).select_from(ids))
    newest_first = (tables.holding.c.recorded_from.desc(), tables.holding.c.ip, tables.holding.c.step)
    return _holding_cells.where(mine).order_by(*newest_first).limit(bindparam("limit"))


def _holdings(connection: Connection, query: Select[Any], **wanted: Any) -> dict[Key, Holding]:
    rows = map(Holding._make, connection.execute(query, wanted))
    return {(row.ip, row.step): row for row in rows}


def _history_of(connection: Connection, names: Mapping[bytes, Subject], limit: int) -> History:
    now = present(connection, HOLDING)
    query = _of_subjects(connection.dialect.name)
    stored = _holdings(connection, query, subjects=_ids(names), limit=limit + 1)
    # One that was rebound by somebody else in between is his.
    mine = [each for each in now.over(stored).values() if each.subject in names]
    found = sorted(mine, key=lambda each: (each.held_from or 0, each.ip), reverse=True)
    return History(tuple(_holding_lines(connection, found[:limit])), len(found) > limit, now.as_of)


def _holding_lines(connection: Connection, holdings: Sequence[Holding]) -> list[HoldingLine]:
    names = _subjects_of(connection, [each.subject for each in holdings])
    pool_names = _pool_names(connection)
    return [HoldingLine(each, pool_names.get(each.pool or 0, ""), names.get(each.subject or b"")) for each in holdings]


# Addresses, pools, events -----------------------------------------------------------------------

_address_cells = select(*(tables.address.c[name] for name in Address._fields))
_row = _address_cells.where(tables.address.c.ip == bindparam("ip"))
_held = (
    _address_cells.where(tables.address.c.held, tables.address.c.ip > bindparam("after"))
    .order_by(tables.address.c.ip)
    .limit(bindparam("limit"))
)
_occupancy = select(*(tables.occupancy.c[name] for name in Occupancy._fields))
_cooling = (
    select(tables.address.c.pool, func.count().label("cooling"))
    .where(tables.idle, tables.address.c.ready > dialects.clock())
    .group_by(tables.address.c.pool)
)
_event_cells = select(*(tables.event.c[name] for name in Event._fields))
_before = (
    _event_cells.where(
        tables.event.c.tx <= bindparam("tx"),
        tuple_(tables.event.c.tx, tables.event.c.position) < tuple_(bindparam("tx"), bindparam("position")),
    )
    .order_by(tables.event.c.tx.desc(), tables.event.c.position.desc())
    .limit(EVENTS_PER_READ)
)
_first = select(tables.event.c.recorded_at).order_by(tables.event.c.tx, tables.event.c.position).limit(1)


@cache
def _refusals(dialect: str) -> Select[Any]:
    """What were these subjects refused?"""
    ids, values = dialects.json_rows(dialect, "subjects", [tables.subject.c.id])
    # Written out, for a parameter would not let the database use the index of the refusals.
    refused = tables.event.c.type == literal_column(f"'{EventType.REFUSED.value}'")
    theirs = tables.event.c.subject.in_(select(*values).select_from(ids))
    # All of them before the newest: PostgreSQL would else walk back through the whole journal to find a few.
    found = _event_cells.where(refused, theirs).cte("found").prefix_with("MATERIALIZED", dialect="postgresql")
    newest_first = (found.c.tx.desc(), found.c.position.desc())
    return select(found).order_by(*newest_first).limit(bindparam("limit"))


def _row_of(connection: Connection, ip: Ip) -> Address | None:
    row = connection.execute(_row, {"ip": ip}).first()
    return None if row is None else Address._make(row)


def _opened(connection: Connection) -> int | None:
    return connection.execute(_first).scalar()


def _pool_names(connection: Connection) -> dict[int, str]:
    return {row.id: row.name for row in connection.execute(select(tables.pool.c.id, tables.pool.c.name))}


def _pool_line(pool: Pool, occupancy: Occupancy, cooling: int) -> PoolLine:
    spec = pool.object.spec
    labels = spec.pod_affinity.match_labels if spec.pod_affinity else {}
    return PoolLine(
        name=pool.name,
        version=pool.family,
        subnet=spec.subnet,
        allocated=occupancy.allocated,
        total=occupancy.total,
        default=spec.default,
        disable=spec.disable,
        node_name=spec.node_name,
        multus_name=spec.multus_name,
        app_namespace=labels.get(APP_NAMESPACE, ""),
        state=pool.state,
        withheld=occupancy.withheld,
        cooling=cooling,
        refused=occupancy.refused,
    )


def _event_lines(connection: Connection, before: Mark) -> list[EventLine]:
    found = [as_event(row) for row in connection.execute(_before, before._asdict())]
    names = _subjects_of(connection, [each.subject for each in found])
    pool_names = _pool_names(connection)
    return [
        EventLine(each, tuple(pool_names.get(pool, "") for pool in _pools_of(each)), names.get(each.subject or b""))
        for each in found
    ]


def _pools_of(event: Event) -> Iterable[int]:
    if event.type == EventType.REFUSED:
        return (int(pool) for pool in event.details["pools"])
    return () if event.pool is None else (event.pool,)


def _refusal_line(refused: Event, names: Mapping[bytes, Subject]) -> RefusalLine:
    said = refused.details
    candidates = tuple(Candidate(pool, passed_over) for pool, passed_over in said["candidates"])
    subject = names.get(refused.subject or b"")
    return RefusalLine(refused.recorded_at, refused.interface or "", said["reason"], said["text"], candidates, subject)


def _when(line: RefusalLine | HoldingLine) -> int:
    return line.at if isinstance(line, RefusalLine) else line.holding.held_from or 0


# Subjects ---------------------------------------------------------------------------------------

_subject = tables.subject.c
_documents = select(_subject.id, _subject.document)


@cache
def _by_id(dialect: str) -> Select[Any]:
    """Who are these?"""
    ids, values = dialects.json_rows(dialect, "subjects", [_subject.id])
    return _documents.where(_subject.document.is_not(None), _subject.id.in_(select(*values).select_from(ids)))


def _subjects_of(connection: Connection, ids: Iterable[bytes | None]) -> dict[bytes, Subject]:
    """The names behind them, as far as they were not removed."""
    wanted = _ids({each for each in ids if each is not None})
    rows = connection.execute(_by_id(connection.dialect.name), {"subjects": wanted})
    return {row.id: subject_in(row.document) for row in rows}


def _subjects_named(connection: Connection, namespace: str, name: str) -> dict[bytes, Subject]:
    """Everybody who was a pod of this name. Looks at every subject."""
    if not _is_text(namespace + name):
        return {}
    # Labels can imitate these keys, and SQLite takes capital letters for small ones: this only narrows the search.
    said = [canonical({key: value})[1:-1] for key, value in (("name", name), ("namespace", namespace))]
    query = _documents.where(*(_subject.document.contains(each, autoescape=True) for each in said)).limit(SUBJECTS_MAX)
    found = {row.id: subject_in(row.document) for row in connection.execute(query)}
    return {id_: each for id_, each in found.items() if (each.namespace, each.name) == (namespace, name)}


def _ids(ids: Iterable[bytes]) -> str:
    return json.dumps([{"id": each.hex()} for each in ids])


def _is_text(given: str) -> bool:
    """Whether a database could have stored it: what a shell passes on of broken UTF-8 is not."""
    try:
        given.encode()
    except UnicodeEncodeError:
        return False
    return True
