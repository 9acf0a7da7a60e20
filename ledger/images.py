"""Rows as values: what one batch has read, and what it will write. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ledger.addresses import Ip
from ledger.claims import Span

DEMANDS_MAX: Final = 16
"""Pools that one batch may draw on; requests for more wait for the next batch."""


class Address(NamedTuple):
    """A row of `address`: an address that was used at least once."""

    ip: Ip
    pool: int
    held: bool
    withheld: bool
    ready: int
    step: int
    at: int
    holding: int | None
    claim: str | None
    subject: bytes | None
    container: str | None
    network: str | None
    netns: str | None
    node: str | None
    stamp: int | None
    bound_at: int | None
    result: str


UNBOUND: dict[str, None] = dict.fromkeys(("container", "network", "netns", "node", "stamp", "bound_at"))


class Extent(NamedTuple):
    """A row of `extent`: never used and to be handed out from `low` on; used up when low > high."""

    pool: int
    high: Ip
    low: Ip


class Head(NamedTuple):
    """The ledger's one row, the database's clock and this transaction, as one batch saw them."""

    tx: int
    now: int
    epoch: int
    definition: int
    incarnation: str
    present: str
    doubted: str | None
    doubt_until: int | None
    fenced: str | None
    witnessed: bool


class Demand(NamedTuple):
    """What a batch may need of one pool: so many addresses, idle since before `until` (None: the clock)."""

    pool: int
    addresses: int
    since: int
    until: int | None
    extents: int


class Asked(NamedTuple):
    """An exact address, looked for in this pool (None: only its row)."""

    ip: Ip
    pool: int | None


@dataclass(frozen=True)
class Plan:
    """What to read, and lock, for one batch."""

    spans: Sequence[Span] = ()
    demands: Sequence[Demand] = ()
    asked: Sequence[Asked] = ()


@dataclass(frozen=True)
class Images:
    """What was read. `own`, `idle`, `extents` and `asked` are locked by this batch; `seen…` is what a plain read saw
    (`seen_fresh`: asked addresses that lie in some extent).

    `left` names the pools where a plain read found more that could be handed out than this batch got
    hold of: others have locked it. A pool that came up short and is not in `left` is exhausted.
    """

    head: Head
    own: Sequence[Address] = ()
    seen: Sequence[Address] = ()
    idle: Mapping[int, Sequence[Address]] = field(default_factory=dict)
    extents: Mapping[int, Sequence[Extent]] = field(default_factory=dict)
    asked: Mapping[Ip, Address] = field(default_factory=dict)
    seen_asked: Mapping[Ip, Address] = field(default_factory=dict)
    seen_fresh: frozenset[Ip] = frozenset()
    left: frozenset[int] = frozenset()
