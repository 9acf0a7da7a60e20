"""Interval arithmetic, against Python's sets: a small universe that has the ends of both families in it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import addresses, intervals
from ledger.addresses import Family, Ip
from ledger.intervals import Interval, Intervals

WIDTH = 24


def _within(family: Family, start: int) -> st.SearchStrategy[Interval]:
    ends = st.tuples(st.integers(start, start + WIDTH), st.integers(start, start + WIDTH))
    return ends.map(lambda pair: (addresses.make(family, min(pair)), addresses.make(family, max(pair))))


INTERVALS: st.SearchStrategy[list[Interval]] = st.lists(
    st.one_of(
        _within(4, 0),
        _within(4, 2**32 - 1 - WIDTH),
        _within(6, 0),
        _within(6, 2**64 - WIDTH // 2),
        _within(6, 2**128 - 1 - WIDTH),
    ),
    max_size=8,
)
NORMAL: st.SearchStrategy[Intervals] = INTERVALS.map(intervals.normal)


def members(given_intervals: Iterable[Interval]) -> set[int]:
    return {ip for low, high in given_intervals for ip in range(low, high + 1)}


def assert_normal(result: Intervals) -> None:
    """Sorted, none empty, and a gap between any two: each set has exactly one form."""
    assert all(low <= high for low, high in result)
    assert all(one[1] + 1 < other[0] for one, other in pairwise(result))


@given(INTERVALS)
def test_normal_keeps_the_set_and_merges_what_touches(given_intervals: list[Interval]) -> None:
    result = intervals.normal(given_intervals)
    assert members(result) == members(given_intervals)
    assert_normal(result)
    assert intervals.normal(reversed(given_intervals)) == result


@given(NORMAL, NORMAL)
def test_union_is_the_union_of_the_sets(first: Intervals, second: Intervals) -> None:
    result = intervals.union(first, second)
    assert members(result) == members(first) | members(second)
    assert_normal(result)


@given(NORMAL, NORMAL)
def test_subtract_is_the_difference_of_the_sets(first: Intervals, second: Intervals) -> None:
    result = intervals.subtract(first, second)
    assert members(result) == members(first) - members(second)
    assert_normal(result)


@given(NORMAL, NORMAL)
def test_intersect_is_the_intersection_of_the_sets(first: Intervals, second: Intervals) -> None:
    result = intervals.intersect(first, second)
    assert members(result) == members(first) & members(second)
    assert_normal(result)
    assert intervals.intersect(second, first) == result


@given(NORMAL)
def test_contains_and_size_agree_with_the_set(given_intervals: Intervals) -> None:
    expected = members(given_intervals)
    assert intervals.size(given_intervals) == len(expected)
    around = {Ip(edge) for low, high in given_intervals for edge in (low - 1, low, high, high + 1)}
    assert {ip for ip in around if intervals.contains(given_intervals, ip)} == around & expected


@given(NORMAL, st.integers(1, 20))
def test_cut_keeps_the_set_in_disjoint_pieces(given_intervals: Intervals, pieces: int) -> None:
    parts = intervals.cut(given_intervals, pieces)
    assert sum(high - low + 1 for low, high in parts) == intervals.size(given_intervals)
    assert intervals.normal(parts) == given_intervals
    assert list(parts) == sorted(parts)


@given(NORMAL, st.integers(1, 8))
def test_cut_makes_that_many_pieces_of_a_set_large_enough(given_intervals: Intervals, pieces: int) -> None:
    """Large enough for certain: from more than pieces * (pieces - 1) addresses on; rounding may cost pieces below."""
    parts = intervals.cut(given_intervals, pieces)
    if intervals.size(given_intervals) > pieces * (pieces - 1):
        assert len(parts) >= pieces
    assert len(parts) <= pieces + len(given_intervals)


def test_a_set_no_larger_than_the_pieces_is_not_cut() -> None:
    whole = ((addresses.make(4, 10), addresses.make(4, 25)),)
    assert intervals.cut(whole, 16) == whole


def test_an_ipv6_network_is_cut_into_equal_pieces_without_walking_it() -> None:
    whole = ((addresses.make(6, 1 << 64), addresses.make(6, (2 << 64) - 1)),)
    parts = intervals.cut(whole, 16)
    assert [high - low + 1 for low, high in parts] == [2**60] * 16


@pytest.mark.parametrize("empty", [intervals.normal([]), intervals.subtract((), ()), intervals.intersect((), ())])
def test_the_empty_set_is_no_intervals(empty: Intervals) -> None:
    assert empty == ()
    assert intervals.size(empty) == 0
    assert not intervals.contains(empty, addresses.make(4, 1))


def test_adjacent_families_are_never_merged() -> None:
    ends = ((addresses.make(4, 2**32 - 1),) * 2, (addresses.make(6, 0),) * 2)
    assert intervals.normal(ends) == ends
