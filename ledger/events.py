"""The journal's vocabulary: every kind of event, its version, its canonical form and its digest.

Events are for ever. A stored name is a chosen string, never a Python path; a field is never renamed
or removed; a change is a new version and a pure upcaster to it (`current`). One golden file per
released version stands in ``tests/golden``. Pure.
"""

from __future__ import annotations

import hashlib
import json
from enum import StrEnum
from typing import Any, Final, NamedTuple

from ledger.addresses import Ip
from ledger.canonical import canonical

VERSION: Final = 1
DIGEST_BYTES: Final = 16
EPOCH_SHIFT: Final = 44
"""A transaction's number is ``epoch << 44 | the database's own transaction id``."""


class EventType(StrEnum):
    """What can happen. The first group concerns one address and carries its step."""

    ALLOCATED = "address.allocated"
    REBOUND = "address.rebound"
    UNBOUND = "address.unbound"
    RELEASED = "address.released"
    FORGOTTEN = "address.forgotten"
    WITHHELD = "address.withheld"
    READMITTED = "address.readmitted"
    REFUSED = "allocation.refused"
    POOL_DEFINED = "pool.defined"
    POOL_REDEFINED = "pool.redefined"
    POOL_CLOSED = "pool.closed"
    POOL_RETIRED = "pool.retired"
    RESERVATION_DEFINED = "reservation.defined"
    RESERVATION_REDEFINED = "reservation.redefined"
    RESERVATION_RETIRED = "reservation.retired"
    OBJECT_NAMED = "object.named"
    OBJECT_LEFT = "object.left"
    LEDGER_OPENED = "ledger.opened"
    LEDGER_DOUBTED = "ledger.doubted"
    LEDGER_TRUSTED = "ledger.trusted"
    LEDGER_FENCED = "ledger.fenced"
    LEDGER_RESTORED = "ledger.restored"


TYPES: Final = frozenset(each.value for each in EventType)


class Event(NamedTuple):
    """One fact. Times are microseconds since 1970 UTC; `holding` is the step of the holding's first event."""

    tx: int
    position: int
    id: int
    type: str
    version: int
    recorded_at: int
    happened_at: int
    node_time: int | None = None
    ip: Ip | None = None
    family: int | None = None
    step: int | None = None
    holding: int | None = None
    pool: int | None = None
    definition: int | None = None
    claim: bytes | None = None
    interface: str | None = None
    subject: bytes | None = None
    container: str | None = None
    network: str | None = None
    netns: str | None = None
    node: str | None = None
    stamp: int | None = None
    actor: str = "agent"
    cause: str = ""
    data: str = "{}"
    digest: bytes = b""

    @property
    def epoch(self) -> int:
        """The life of the database in which it was recorded."""
        return self.tx >> EPOCH_SHIFT

    @property
    def details(self) -> dict[str, Any]:
        """The canonical JSON, read."""
        details: dict[str, Any] = json.loads(self.data)
        return details


def digest(event: Event) -> bytes:
    """Over all that was decided: everything but the position, which the database draws, and the digest itself."""
    plain = [value.hex() if isinstance(value, bytes) else value for value in (event.tx, *event[2:-1])]
    return hashlib.blake2b(canonical(plain).encode(), digest_size=DIGEST_BYTES).digest()


def sealed(event: Event) -> Event:
    """The same event with its digest."""
    return Event(*event[:-1], digest(event))


def current(event: Event) -> Event:
    """The event as its newest version says it; ValueError for one that this software does not know."""
    if event.version != VERSION or event.type not in TYPES:
        raise ValueError(f"event {event.tx}/{event.position}: {event.type} version {event.version} is not known here")
    return event
