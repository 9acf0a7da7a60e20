"""Sets of addresses as sorted, disjoint, closed intervals of integers.

Nothing here ever walks through addresses: an IPv6 /64 costs what a single address costs. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from ledger.addresses import Ip

Interval: TypeAlias = tuple[Ip, Ip]
Intervals: TypeAlias = tuple[Interval, ...]


def normal(intervals: Iterable[Interval]) -> Intervals:
    """The same set, sorted, with whatever touches or overlaps merged."""
    merged: list[Interval] = []
    for low, high in sorted(intervals):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def union(first: Intervals, second: Intervals) -> Intervals:
    """What is in either."""
    return normal((*first, *second))


def subtract(first: Intervals, second: Intervals) -> Intervals:
    """What is in the first and not in the second (both normal)."""
    left: list[Interval] = []
    cuts = iter(second)
    cut = next(cuts, None)
    for low, high in first:
        while cut is not None and cut[1] < low:
            cut = next(cuts, None)
        rest = low
        while cut is not None and cut[0] <= high:
            if cut[0] > rest:
                left.append((rest, Ip(cut[0] - 1)))
            rest = Ip(cut[1] + 1)
            if rest > high:
                break
            cut = next(cuts, None)
        if rest <= high:
            left.append((rest, high))
    return tuple(left)


def intersect(first: Intervals, second: Intervals) -> Intervals:
    """What is in both (both normal)."""
    common: list[Interval] = []
    others = iter(second)
    other = next(others, None)
    for low, high in first:
        while other is not None and other[0] <= high:
            if other[1] >= low:
                common.append((max(low, other[0]), min(high, other[1])))
            if other[1] > high:
                break
            other = next(others, None)
    return tuple(common)


def contains(intervals: Intervals, ip: Ip) -> bool:
    """Whether the address is in the set."""
    return any(low <= ip <= high for low, high in intervals)


def size(intervals: Intervals) -> int:
    """How many addresses there are."""
    return sum(high - low + 1 for low, high in intervals)


def cut(intervals: Intervals, pieces: int) -> Intervals:
    """The same set in at least `pieces` intervals where it is large enough, larger intervals cut into more."""
    total = size(intervals)
    if total <= pieces:
        return intervals
    share = -(-total // pieces)
    parts: list[Interval] = []
    for low, high in intervals:
        count = -(-(high - low + 1) // share)
        step = -(-(high - low + 1) // count)
        for start in range(low, high + 1, step):
            parts.append((Ip(start), Ip(min(start + step - 1, high))))
    return tuple(parts)
