"""What pools and reserved addresses say, all under one version number.

A `Definition` is an immutable snapshot. An agent selects pools by it, and the ledger refuses to act
on a selection that was judged by another version. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from ledger.addresses import Family, parse
from ledger.intervals import Intervals, normal, subtract
from ledger.ranges import Cidr, effective, parse_cidr, parse_ranges
from ledger.resources import SpiderIPPool, SpiderReservedIP


class State(StrEnum):
    """The life of a pool or reservation: closed = hands nothing out, holders stay; retired = closed and nobody held."""

    OPEN = "open"
    CLOSED = "closed"
    RETIRED = "retired"


@dataclass(frozen=True)
class Pool:
    """Addresses that an operator gave us, known by the uid of the object that says so."""

    id: int
    uid: str
    state: State
    object: SpiderIPPool

    @property
    def name(self) -> str:
        """The object's name."""
        return self.object.metadata.name

    @cached_property
    def family(self) -> Family:
        """4 or 6."""
        return 6 if self.object.spec.ip_version == 6 else 4

    @cached_property
    def subnet(self) -> Cidr:
        """The subnet, whose prefix length an address is written with."""
        return parse_cidr(self.object.spec.subnet, self.family)

    def in_subnet(self, address: str) -> bool:
        """Whether this text is an address of the subnet."""
        try:
            return self.subnet.first <= parse(address) <= self.subnet.last
        except ValueError:
            return False

    @cached_property
    def effective(self) -> Intervals:
        """`ips` without `excludeIPs`."""
        return effective(self.object.spec.subnet, self.object.spec.ips, self.object.spec.exclude_ips, self.family)

    @cached_property
    def cooling_us(self) -> int:
        """How long a released address rests before anybody else gets it, microseconds."""
        return int(self.object.cooling_seconds * 1_000_000)


@dataclass(frozen=True)
class Reservation:
    """Addresses that no pool hands out while it stands."""

    id: int
    uid: str
    state: State
    object: SpiderReservedIP

    @property
    def name(self) -> str:
        """The object's name."""
        return self.object.metadata.name

    @cached_property
    def family(self) -> Family:
        """4 or 6."""
        return 6 if self.object.spec.ip_version == 6 else 4

    @cached_property
    def ranges(self) -> Intervals:
        """The reserved addresses."""
        return parse_ranges(self.object.spec.ips, self.family)


@dataclass(frozen=True)
class Definition:
    """All pools and reservations that are not retired, in the order in which they came."""

    version: int
    pools: tuple[Pool, ...] = ()
    reservations: tuple[Reservation, ...] = ()

    @cached_property
    def by_id(self) -> dict[int, Pool]:
        """The pools by the ledger's number."""
        return {pool.id: pool for pool in self.pools}

    @cached_property
    def by_name(self) -> dict[str, Pool]:
        """The pools by their object's name."""
        return {pool.name: pool for pool in self.pools}

    @cached_property
    def reserved(self) -> Intervals:
        """Every reserved address, both families."""
        standing = (each for each in self.reservations if each.state is State.OPEN)
        return normal(interval for each in standing for interval in each.ranges)

    def available(self, pool: Pool) -> Intervals:
        """What this pool may hand out, held or not: nothing once it is closed."""
        return subtract(pool.effective, self.reserved) if pool.state is State.OPEN else ()
