"""Changes of the ledger's own state: trusted, doubted, fenced, restored; and the uids that it gives to objects.

Each is one short transaction with its event. `ledger.store` decides when.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Engine, insert, select, update

from ledger import dialects
from ledger.canonical import canonical
from ledger.definition import State
from ledger.driver import joined
from ledger.events import VERSION, Event, EventType, sealed
from ledger.images import Head
from ledger.tables import event, ledger, object_uid, pool
from ledger.witness import Witness
from ledger.writing import write

ObjectName = tuple[str, str, str]
"""Kind, namespace and name."""

DEFINITION_SHIFT: Final = 32
"""Each epoch numbers its definitions from here on: no agent may take one for another that was lost."""
STANDINGS: Final = (EventType.LEDGER_DOUBTED, EventType.LEDGER_TRUSTED, EventType.LEDGER_FENCED)

_fields = ("kind", "namespace", "name", "uid")


class Loss(NamedTuple):
    """What a restore would accept: why the ledger is fenced, the last event that it knows of its work, and when that
    was recorded; and the epoch that would begin."""

    reason: str
    tx: int
    position: int
    at: int
    epoch: int


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


def fence(engine: Engine, head: Head, lost: Witness) -> None:
    """This database has lost an event: nothing is handed out until `restore` opens a new epoch."""
    reason = f"event {lost.id} of transaction {lost.tx} was acknowledged and is not in the journal any more"
    _transition(engine, EventType.LEDGER_FENCED, head, {"reason": reason, "epoch": lost.epoch}, fenced=reason)


def loss(connection: Connection, witness: Witness | None) -> Loss | None:
    """What a restore would accept now; None while the ledger is not fenced."""
    row = connection.execute(select(ledger.c.epoch, ledger.c.fenced)).one()
    if row.fenced is None:
        return None
    newest = select(event.c.tx, event.c.position, event.c.recorded_at, event.c.data)
    newest = newest.order_by(event.c.tx.desc(), event.c.position.desc()).limit(1)
    last = connection.execute(newest.where(event.c.type.not_in(STANDINGS))).one()
    fenced = connection.execute(newest.where(event.c.type == EventType.LEDGER_FENCED)).first()
    # A life that was lost may have come further than this one: its epochs are not used again.
    lost = json.loads(fenced.data).get("epoch", 0) if fenced else 0
    epoch = 1 + max(row.epoch, lost, witness.epoch if witness else 0)
    return Loss(row.fenced, last.tx, last.position, last.recorded_at, epoch)


def restore(engine: Engine, epoch: int, witness: Witness | None, *, actor: str, reason: str) -> bool:
    """Open this epoch and accept the loss; nothing is adopted. False when that is not what a restore would do now."""
    with engine.begin() as connection:
        dialects.alone(connection)
        found = loss(connection, witness)
        if found is None or found.epoch != epoch:
            return False
        present, version = connection.execute(select(dialects.incarnation(), ledger.c.definition)).one()
        version = max(version + 1, epoch << DEFINITION_SHIFT)
        cells = {"epoch": epoch, "definition": version, "incarnation": present, "doubted": None, "doubt_until": None}
        connection.execute(update(ledger).values(**cells, fenced=None))
        data = {"epoch": epoch, "incarnation": present, "reason": reason}
        said = _events(connection, [(EventType.LEDGER_RESTORED, data)], "operator", actor=actor, definition=version)
        write(joined(connection), events=list(said))
    return True


def _transition(engine: Engine, type_: EventType, head: Head, data: Mapping[str, Any], **cells: Any) -> None:
    """Change the ledger's row and say so, unless another agent has changed it since we looked.

    A server that was loaded from a dump counts its transactions anew: nothing could follow in this journal. So the
    ledger is fenced, by an event that is given the next number.
    """
    with engine.connect() as connection:
        newest = connection.execute(select(event.c.tx).order_by(event.c.tx.desc()).limit(1)).scalar() or 0
    before = (ledger.c.incarnation, ledger.c.doubted, ledger.c.fenced)
    with engine.begin() as connection:
        row = connection.execute(select(*before).with_for_update()).one()
        if tuple(row) != (head.incarnation, head.doubted, head.fenced):
            return
        number = connection.execute(select(dialects.transaction())).scalar_one()
        if number <= newest and type_ is not EventType.LEDGER_FENCED:
            reason = f"the journal has come to transaction {newest}, and this server counts from {number} on"
            type_, data, cells = EventType.LEDGER_FENCED, {"reason": reason, "epoch": head.epoch}, {"fenced": reason}
        connection.execute(update(ledger).values(cells))
        said = _events(connection, [(type_, data)], "standing", tx=max(number, newest + 1))
        write(joined(connection), events=list(said))


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


def _events(
    connection: Connection, said: Iterable[tuple[EventType, Mapping[str, Any]]], cause: str, **cells: Any
) -> Iterator[Event]:
    tx, now = connection.execute(select(dialects.transaction(), dialects.clock())).one()
    ids = random_ids()
    for type_, data in said:
        event_ = Event(tx, 0, next(ids), type_, VERSION, now, now, cause=cause, data=canonical(data))
        yield sealed(event_._replace(**cells))


def random_ids() -> Iterator[int]:
    """Ids that nobody can guess or repeat, 62 bits."""
    while True:
        yield secrets.randbits(62)


def random_uid() -> str:
    """A uid as Kubernetes makes them (RFC 9562 version 4)."""
    bits = secrets.randbits(128) & ~(0xF << 76 | 3 << 62) | 4 << 76 | 2 << 62
    digits = f"{bits:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
