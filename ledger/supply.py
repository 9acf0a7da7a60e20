"""What one batch got hold of and has not given away yet. In memory only; `decide` draws on it.

A request that cannot be met whole puts back what it drew: `mark` before it, `undo` to that mark.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from ledger.addresses import Ip
from ledger.images import Address, Extent, Images


class Choice(NamedTuple):
    """An address to be handed out: its row, or none when it was never used; and how it was chosen."""

    ip: Ip
    pool: int
    row: Address | None
    how: str


class Supply:
    """Idle rows, longest idle first, and never-used addresses, by pool."""

    def __init__(self, images: Images) -> None:
        self._now = images.head.now
        self._idle = {pool: deque(rows) for pool, rows in images.idle.items()}
        self._extents = {pool: tuple(extents) for pool, extents in images.extents.items()}
        self._before = {(extent.pool, extent.high): extent for each in images.extents.values() for extent in each}
        self._undo: list[Callable[[], None]] = []
        self.spent: set[Ip] = set()

    def mark(self) -> int:
        """A point to come back to."""
        return len(self._undo)

    def undo(self, mark: int) -> None:
        """Put back all that was drawn since the mark."""
        while len(self._undo) > mark:
            self._undo.pop()()

    def spend(self, ip: Ip) -> None:
        """This batch writes the address's row: nobody else in it may."""
        self.spent.add(ip)
        self._undo.append(lambda: self.spent.discard(ip))

    def draw(self, pool: int, *, cooling: bool) -> Choice | None:
        """The longest idle address, else one never used; else, when cooling yields, the one that cooled longest."""
        found = self._idle_one(pool, cooling=False) or self._fresh_one(pool)
        return found or (self._idle_one(pool, cooling=True) if cooling else None)

    def draw_asked(self, ip: Ip, pool: int) -> Choice | None:
        """This very address out of the extent that holds it, which splits in two."""
        for extent in self._extents.get(pool, ()):
            if extent.low <= ip <= extent.high:
                lower = (Extent(pool, Ip(ip - 1), extent.low),) if extent.low < ip else ()
                self._put(extent, *lower, extent._replace(low=Ip(ip + 1)))
                return Choice(ip, pool, None, "asked")
        return None

    def changed_extents(self) -> list[Extent]:
        """The extents that must be written."""
        now = (extent for extents in self._extents.values() for extent in extents)
        return [extent for extent in now if self._before.get((extent.pool, extent.high)) != extent]

    def _idle_one(self, pool: int, *, cooling: bool) -> Choice | None:
        rows = self._idle.get(pool, deque())
        while rows and rows[0].ip in self.spent:
            self._take_first(rows)
        if not rows or (rows[0].ready > self._now and not cooling):
            return None
        row = self._take_first(rows)
        self.spend(row.ip)
        return Choice(row.ip, pool, row, "idle" if row.ready <= self._now else "cooling")

    def _take_first(self, rows: deque[Address]) -> Address:
        row = rows.popleft()
        self._undo.append(lambda: rows.appendleft(row))
        return row

    def _fresh_one(self, pool: int) -> Choice | None:
        for extent in self._extents.get(pool, ()):
            if extent.low <= extent.high:
                self._put(extent, extent._replace(low=Ip(extent.low + 1)))
                return Choice(extent.low, pool, None, "fresh")
        return None

    def _put(self, extent: Extent, *instead: Extent) -> None:
        """Replace one extent of its pool."""
        before = self._extents[extent.pool]
        place = before.index(extent)
        self._extents[extent.pool] = (*before[:place], *instead, *before[place + 1 :])
        self._undo.append(lambda: self._extents.__setitem__(extent.pool, before))
