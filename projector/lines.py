"""What answers consist of: frozen values, times in microseconds since 1970 UTC, never text for people.

Made by `projector.answers`; read by the command line and by whoever serves answers over HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ledger.addresses import Ip
from ledger.claims import Claim, Subject
from ledger.events import Event
from ledger.images import Address
from ledger.journal import Mark
from ledger.requests import Candidate
from projector.holders import Standing
from projector.present import AsOf
from projector.projections import Holding


class HoldingLine(NamedTuple):
    """One holding, the name of its pool, and the names behind it (None once they were removed)."""

    holding: Holding
    pool: str
    subject: Subject | None


@dataclass(frozen=True)
class WhoHeld:
    """Whose an address was at a moment.

    `line` is the holding, or the last one before; `until` is its end, or the end of the cooling. What is not held
    was judged by this version of the definition, and `pool` is the one that has the address now.
    """

    ip: Ip
    at: int
    standing: Standing
    line: HoldingLine | None
    until: int | None
    pool: str
    definition: int
    as_of: AsOf


@dataclass(frozen=True)
class History:
    """Holdings, newest first; whether older ones were left out."""

    lines: tuple[HoldingLine, ...]
    more: bool
    as_of: AsOf


class RefusalLine(NamedTuple):
    """One refusal: every pool that was a candidate and why it was passed over ("" when it was tried)."""

    at: int
    interface: str
    reason: str
    text: str
    candidates: tuple[Candidate, ...]
    subject: Subject | None


@dataclass(frozen=True)
class Explanation:
    """What became of a pod's requests, newest first: what it was refused and what it got."""

    lines: tuple[RefusalLine | HoldingLine, ...]
    more: bool
    as_of: AsOf


class PoolLine(NamedTuple):
    """One pool that is not retired: Spiderpool's columns, then its wide ones, then ours."""

    name: str
    version: int
    subnet: str
    allocated: int
    total: int
    default: bool
    disable: bool
    node_name: tuple[str, ...]
    multus_name: tuple[str, ...]
    app_namespace: str
    state: str
    withheld: int
    cooling: int
    refused: int


@dataclass(frozen=True)
class Pools:
    """Every pool, by name."""

    lines: tuple[PoolLine, ...]
    as_of: AsOf


class AllocationLine(NamedTuple):
    """One address that is held now: its row, the claim, the name of its pool, the names behind it."""

    address: Address
    claim: Claim
    pool: str
    subject: Subject | None


@dataclass(frozen=True)
class Allocations:
    """Held addresses in address order; with `more`, ask again after the last one."""

    lines: tuple[AllocationLine, ...]
    more: bool
    as_of: AsOf


class EventLine(NamedTuple):
    """One event, the names of the pools it concerns, the names behind it."""

    event: Event
    pools: tuple[str, ...]
    subject: Subject | None


@dataclass(frozen=True)
class Filter:
    """Which events are wanted; what is not said does not matter. `until` is the first moment that is too late."""

    types: frozenset[str] = frozenset()
    ip: Ip | None = None
    pool: str | None = None
    namespace: str | None = None
    name: str | None = None
    node: str | None = None
    since: int | None = None
    until: int | None = None

    def passes(self, line: EventLine) -> bool:
        """Whether the event is wanted."""
        found, names = line.event, line.subject
        return (
            (not self.types or found.type in self.types)
            and self.ip in (None, found.ip)
            and (self.pool is None or self.pool in line.pools)
            and self.namespace in (None, names.namespace if names else "")
            and self.name in (None, names.name if names else "")
            and self.node in (None, found.node)
            and (self.since is None or found.recorded_at >= self.since)
            and (self.until is None or found.recorded_at < self.until)
        )


@dataclass(frozen=True)
class Events:
    """Wanted events, newest first; `searched_to` is where to ask on, None when the journal's beginning was reached."""

    lines: tuple[EventLine, ...]
    searched_to: Mark | None
    as_of: AsOf
