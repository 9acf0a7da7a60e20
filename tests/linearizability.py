"""Whether a history of calls can be true: at no time did two claims hold one address, nor one claim two.

The checker knows calls, their answers and when both passed the client, nothing of the ledger or its database. An
ADD that was granted took effect at some moment between its call and its answer, and what it gave ended at the
earliest when the first DEL that can concern it was called. So the claim held the address *for certain* from that
answer to that call; when the DEL was called before the answer had come, only at some moment between the two.

What is not known proves nothing: an ADD without an answer, or refused, holds nothing for certain; a DEL may take effect
at any later time (one that is answered may only have been written down), but never on an ADD that was called after its
answer. So every conflict found here is real, and none is missed that calls and answers alone can show: where there is
none, the certain parts by themselves are a true history.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from math import inf
from typing import NamedTuple


@dataclass(frozen=True)
class Call:
    """An ADD or DEL of a claim, by one clock. `answered` is infinite when nobody can say what became of it.

    An ADD that was granted has `addresses`; one without any holds nothing that could be named.
    """

    verb: str
    claim: str
    called: float
    answered: float = inf
    addresses: tuple[str, ...] = ()


class Hold(NamedTuple):
    """The claim held the address from `since` to `until`; at one moment from `until` to `since` when that is later."""

    address: str
    claim: str
    since: float
    until: float


class Conflict(NamedTuple):
    """Two holds that cannot both be true."""

    first: Hold
    second: Hold


def conflicts(history: Iterable[Call]) -> list[Conflict]:
    """All pairs that cannot both be true; none when the history can be."""
    found = holds(history)
    twice_held = _overlaps(found, lambda hold: hold.address, lambda hold: hold.claim)
    two_held = _overlaps(found, lambda hold: (hold.claim, ":" in hold.address), lambda hold: hold.address)
    return [*twice_held, *two_held]


def holds(history: Iterable[Call]) -> list[Hold]:
    """What each granted ADD proves."""
    adds, dels = [], defaultdict(list)
    for call in history:
        if call.verb == "DEL":
            dels[call.claim].append(call)
        elif call.addresses:
            adds.append(call)
    return [
        Hold(address, add.claim, add.answered, _until(add, dels[add.claim]))
        for add in adds
        for address in add.addresses
    ]


def _until(add: Call, dels: Iterable[Call]) -> float:
    """When the hold may have ended: a DEL that was answered before the ADD was called has ended an earlier one."""
    return min((max(add.called, each.called) for each in dels if each.answered >= add.called), default=inf)


def _overlaps(
    found: Iterable[Hold], same: Callable[[Hold], Hashable], other: Callable[[Hold], str]
) -> Iterator[Conflict]:
    """Holds with the same of the one, and different of the other, that exclude each other."""
    groups = defaultdict(list)
    for hold in found:
        groups[same(hold)].append(hold)
    for group in groups.values():
        lasting: list[Hold] = []
        for hold in sorted(group, key=lambda hold: hold.since):
            # Whatever ended before this one began, ended before each that comes later.
            lasting = [each for each in lasting if each.until > hold.since]
            # A moment is excluded by what lasted from before its earliest until after its latest.
            yield from (
                Conflict(each, hold) for each in lasting if each.since < hold.until and other(each) != other(hold)
            )
            lasting.append(hold)
