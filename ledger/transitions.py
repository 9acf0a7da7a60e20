"""Changes of the ledger's own state: trusted, doubted, fenced; and the uids it gives to objects that bring none.

Each is one short transaction with its event. `ledger.store` decides when.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, Engine, insert, select, update

from ledger import dialects
from ledger.canonical import canonical
from ledger.definition import State
from ledger.driver import joined
from ledger.events import VERSION, Event, EventType, sealed
from ledger.images import Head
from ledger.tables import ledger, object_uid, pool
from ledger.writing import write

ObjectName = tuple[str, str, str]
"""Kind, namespace and name."""

_fields = ("kind", "namespace", "name", "uid")


def trust(engine: Engine, head: Head) -> None:
    """This server is the ledger's from now on; the very first time that opens the journal."""
    data: dict[str, Any] = {"incarnation": head.present}
    type_ = EventType.LEDGER_TRUSTED
    if head.incarnation == "":
        type_, data = EventType.LEDGER_OPENED, {"epoch": head.epoch, **data}
    _transition(engine, type_, head, data, incarnation=head.present, doubted=None, doubt_until=None)


def doubt(engine: Engine, head: Head, until: int) -> None:
    """Another server answers than before: no address is handed out until then (microseconds since 1970)."""
    data = {"incarnation": head.present, "until": until}
    _transition(engine, EventType.LEDGER_DOUBTED, head, data, doubted=head.present, doubt_until=until)


def fence(engine: Engine, head: Head, reason: str) -> None:
    """This database has lost events: nothing is handed out until `restore` opens a new epoch."""
    _transition(engine, EventType.LEDGER_FENCED, head, {"reason": reason}, fenced=reason)


def _transition(engine: Engine, type_: EventType, head: Head, data: Mapping[str, Any], **cells: Any) -> None:
    """Change the ledger's row and say so, unless another agent has changed it since we looked."""
    before = (ledger.c.incarnation, ledger.c.doubted, ledger.c.fenced)
    with engine.begin() as connection:
        row = connection.execute(select(*before).with_for_update()).one()
        if tuple(row) == (head.incarnation, head.doubted, head.fenced):
            connection.execute(update(ledger).values(cells))
            write(joined(connection), events=list(_events(connection, [(type_, data)], "standing")))


def name_objects(engine: Engine, present: set[ObjectName]) -> tuple[dict[ObjectName, str], Event | None]:
    """The uids of these objects: new ones get theirs, and those that are known but not present lose it.

    Also an event that says so, if anything has changed.
    """
    events: list[Event] = []
    with engine.begin() as connection:
        known = {(row.kind, row.namespace, row.name): row.uid for row in connection.execute(select(object_uid))}
        new = {name: random_uid() for name in sorted(present - known.keys())}
        # A pool keeps its uid until it is retired, so that one that comes back meanwhile is the same pool.
        living = set(connection.execute(select(pool.c.uid).where(pool.c.state != State.RETIRED)).scalars())
        gone = {name: uid for name, uid in sorted(known.items()) if name not in present and uid not in living}
        if new or gone:
            events = _write_names(connection, new, gone)
    return {name: uid for name, uid in (known | new).items() if name in present}, events[0] if events else None


def _write_names(connection: Connection, new: Mapping[ObjectName, str], gone: Mapping[ObjectName, str]) -> list[Event]:
    for kind, namespace, name in gone:
        mine = (object_uid.c.kind == kind, object_uid.c.namespace == namespace, object_uid.c.name == name)
        connection.execute(object_uid.delete().where(*mine))
    named, left = list(_named(new)), list(_named(gone))
    if named:
        connection.execute(insert(object_uid), named)
    said = [(EventType.OBJECT_LEFT, each) for each in left] + [(EventType.OBJECT_NAMED, each) for each in named]
    events = list(_events(connection, said, "folder"))
    write(joined(connection), events=events)
    return events


def _named(objects: Mapping[ObjectName, str]) -> Iterator[dict[str, str]]:
    for name, uid in objects.items():
        yield dict(zip(_fields, (*name, uid), strict=True))


def _events(connection: Connection, said: Iterable[tuple[EventType, Mapping[str, Any]]], cause: str) -> Iterator[Event]:
    tx, now = connection.execute(select(dialects.transaction(), dialects.clock())).one()
    ids = random_ids()
    for type_, data in said:
        yield sealed(Event(
            tx=tx, position=0, id=next(ids), type=type_, version=VERSION, recorded_at=now, happened_at=now,
            cause=cause, data=canonical(data),
        ))  # fmt: skip


def random_ids() -> Iterator[int]:
    """Ids that nobody can guess or repeat, 62 bits."""
    while True:
        yield secrets.randbits(62)


def random_uid() -> str:
    """A uid as Kubernetes makes them (RFC 9562 version 4)."""
    bits = secrets.randbits(128) & ~(0xF << 76 | 3 << 62) | 4 << 76 | 2 << 62
    digits = f"{bits:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
