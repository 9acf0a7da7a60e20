"""Whose an address was at a moment, judged from what was read. Pure; `projector.answers` reads it.

Who held it is exact for every moment since the ledger was opened. Whether an address that nobody held was free,
withheld or not ours is judged by the definition as it is now, and whether it was cooling is known of its last release
only: the journal has these facts for the past, no projection does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from ledger.addresses import Ip
from ledger.definition import Definition, Pool, State
from ledger.images import Address
from ledger.intervals import contains
from ledger.ranges import parse_ranges
from projector.projections import Holding


class Standing(StrEnum):
    """What an address can be at a moment."""

    HELD = "held"
    COOLING = "cooling"
    FREE = "free"
    WITHHELD = "withheld"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Known:
    """What was read of one address: its holdings that matter, its row, the definition, and when the ledger began."""

    ip: Ip
    holdings: tuple[Holding, ...]
    row: Address | None
    definition: Definition
    opened: int | None


@dataclass(frozen=True)
class Judgement:
    """The standing; the holding it has, or the last it had by then; the end of it, or of cooling; the pool it is in."""

    standing: Standing
    holding: Holding | None
    until: int | None
    pool: Pool | None


def judge(known: Known, at: int) -> Judgement:
    """Whose the address was at this moment (microseconds since 1970)."""
    pool = _pool_of(known.definition, known.ip)
    if known.opened is None or at < known.opened:
        return Judgement(Standing.UNKNOWN, None, None, pool)
    begun = [each for each in known.holdings if each.held_from is not None and each.held_from <= at]
    last = max(begun, key=lambda each: each.step, default=None)
    if last is not None and (last.held_until is None or at < last.held_until):
        return Judgement(Standing.HELD, last, last.held_until, pool)
    row = known.row
    if row is not None and row.held and at >= row.at:
        # The projection is too far behind to know this holding; the row does.
        return Judgement(Standing.HELD, _holding_of(row), None, pool)
    if (row is None or not row.withheld) and pool is None:
        return Judgement(Standing.UNKNOWN, last, None, None)
    if (row is not None and row.withheld) or not _available(known.definition, pool, known.ip):
        return Judgement(Standing.WITHHELD, last, None, pool)
    if row is not None and _is_latest(last, known.holdings) and at < row.ready:
        return Judgement(Standing.COOLING, last, row.ready, pool)
    return Judgement(Standing.FREE, last, None, pool)


def _holding_of(row: Address) -> Holding:
    return Holding(
        row.ip, row.holding or row.step, row.step, row.pool,
        subject=row.subject, container=row.container, node=row.node,
    )  # fmt: skip


def _is_latest(last: Holding | None, holdings: Iterable[Holding]) -> bool:
    return last is not None and all(each.step <= last.step for each in holdings)


def _pool_of(definition: Definition, ip: Ip) -> Pool | None:
    """The pool that may hand it out; else one that consists of it; else one that names it and excludes it."""
    consists = [pool for pool in definition.pools if contains(pool.effective, ip)]
    open_ones = [pool for pool in consists if pool.state is State.OPEN]
    named = (pool for pool in definition.pools if contains(parse_ranges(pool.object.spec.ips, pool.family), ip))
    return next(iter((*open_ones, *consists)), None) or next(named, None)


def _available(definition: Definition, pool: Pool | None, ip: Ip) -> bool:
    return pool is not None and contains(definition.available(pool), ip)
