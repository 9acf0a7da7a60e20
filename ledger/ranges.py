"""The range texts of pools and reservations: reading them, printing them, and what a pool's lists add up to.

A range is one address or ``first-last``; `spec.ips` and `spec.excludeIPs` are lists of them. All arithmetic is that of
`ledger.intervals`, so a /64 costs what one address costs. What cannot be read is a ValueError whose text is the one
Spiderpool's users know and search for. Nothing here knows pools, fields or policies: `ledger.admission` says which
field a problem belongs to, and the definition and the selection of pools ask it for subnets and effective addresses.

Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Final, Literal, NamedTuple

from ledger import addresses, intervals
from ledger.addresses import BITS, Family, Ip
from ledger.intervals import Interval, Intervals

TOTAL_MAX: Final = 2**63 - 1
"""What `status.totalIPCount`, an int64, can say at most."""

# Go reads ::ffff:1.2.3.4 as the IPv4 address 1.2.3.4, Spiderpool's family test takes it for either family, and here it
# would be an IPv6 address: three readings of one text, and two rows for what is one address on the wire. It is refused.
MAPPED: Final[Interval] = (addresses.make(6, 0xFFFF << 32), addresses.make(6, (0x10000 << 32) - 1))

# Leading zeros are read as Go reads them; that a subnet is written canonically is asked elsewhere.
PREFIX_LENGTH: Final = re.compile(r"0*([0-9]{1,3})")


class Cidr(NamedTuple):
    """A subnet: its first and last address and its prefix length."""

    first: Ip
    last: Ip
    prefix: int

    @property
    def family(self) -> Family:
        """4 or 6."""
        return addresses.family(self.first)


class RangeError(ValueError):
    """One element of a pool's `ips` or `excludeIPs` that does not fit; the message says why."""

    def __init__(self, where: Literal["ips", "excludeIPs"], element: str, problem: str) -> None:
        super().__init__(problem)
        self.where = where
        self.element = element


def effective(subnet: str, ips: Sequence[str], exclude_ips: Sequence[str], family: Family) -> Intervals:
    """The addresses a pool consists of: `ips` without `excludeIPs`, which may lie anywhere in the subnet.

    ValueError when the subnet is none; RangeError names the first element that does not fit: those of `ips` one by
    one, then their overlaps, then those of `excludeIPs`, which may overlap each other.
    """
    cidr = parse_cidr(subnet, family)
    included = _inside_each(cidr, "ips", ips)
    _refuse_overlap(ips, included)
    excluded = _inside_each(cidr, "excludeIPs", exclude_ips)
    return intervals.subtract(intervals.normal(included), intervals.normal(excluded))


def total_ip_count(effective_ips: Intervals) -> int:
    """What `status.totalIPCount` says of these addresses: saturated, as an IPv6 /64 has more than it can hold."""
    return min(intervals.size(effective_ips), TOTAL_MAX)


def parse_address(text: str, family: Family) -> Ip:
    """The address of this family that the text writes."""
    try:
        ip = addresses.parse(text)
    except ValueError:
        ip = None
    if ip is None or addresses.family(ip) != family or _mapped((ip, ip)):
        raise ValueError(f"invalid IP format in IPv{family} '{text}'")
    return ip


def parse_range(text: str, family: Family) -> Interval:
    """The interval that ``a`` or ``a-b`` writes; a reversed one is refused, for nobody can tell what was meant."""
    ends = text.split("-")
    try:
        low, high = parse_address(ends[0], family), parse_address(ends[-1], family)
    except ValueError:
        raise _unreadable(text, family) from None
    if len(ends) > 2 or low > high or _mapped((low, high)):
        raise _unreadable(text, family)
    return low, high


def parse_ranges(texts: Iterable[str], family: Family) -> Intervals:
    """The set that a list of ranges writes, overlaps merged."""
    return intervals.normal(parse_range(text, family) for text in texts)


def parse_cidr(text: str, family: Family) -> Cidr:
    """The subnet that ``address/length`` writes; host bits are dropped, so compare `cidr_text` where they matter."""
    address, _, digits = text.partition("/")
    length = PREFIX_LENGTH.fullmatch(digits)
    try:
        ip = parse_address(address, family)
    except ValueError:
        length = None
    if length is None or int(length[1]) > BITS[family]:
        raise ValueError(f"invalid CIDR format in IPv{family} '{text}'")
    prefix = int(length[1])
    host_bits = (1 << (BITS[family] - prefix)) - 1
    return Cidr(Ip(ip & ~host_bits), Ip(ip | host_bits), prefix)


def family_of_cidr(text: str) -> Family | None:
    """The family in which the text is a subnet, if in any."""
    return _family_in_which(parse_cidr, text)


def family_of_range(text: str) -> Family | None:
    """The family in which the text is a range, if in any."""
    return _family_in_which(parse_range, text)


def range_texts(merged: Intervals) -> tuple[str, ...]:
    """The set in canonical text, one range for each interval: ``first-last``, or the address where it is alone."""
    return tuple(
        addresses.text(low) if low == high else f"{addresses.text(low)}-{addresses.text(high)}" for low, high in merged
    )


def cidr_text(subnet: Cidr) -> str:
    """The subnet in canonical text."""
    return f"{addresses.text(subnet.first)}/{subnet.prefix}"


def inside(subnet: Cidr, ip: Ip) -> bool:
    """Whether the subnet contains the address (one of the other family is never inside)."""
    return subnet.first <= ip <= subnet.last


def overlapping(one: Cidr, other: Cidr) -> bool:
    """Whether the subnets share an address."""
    return inside(one, other.first) or inside(other, one.first)


def _family_in_which(parse: Callable[[str, Family], object], text: str) -> Family | None:
    families: tuple[Family, ...] = (4, 6)
    for family in families:
        with suppress(ValueError):
            parse(text, family)
            return family
    return None


def _inside_each(subnet: Cidr, where: Literal["ips", "excludeIPs"], texts: Sequence[str]) -> list[Interval]:
    found = []
    for text in texts:
        try:
            found.append(_range_inside(subnet, text))
        except ValueError as problem:
            raise RangeError(where, text, str(problem)) from None
    return found


def _range_inside(subnet: Cidr, text: str) -> Interval:
    """The interval of a range in the subnet; each way of not being one has its own text, in Spiderpool's order."""
    ends = text.split("-")
    if len(ends) > 2 or (len(ends) == 1 and "/" in text):
        raise ValueError(f"invalid range: {text}")
    for end in ends:
        try:
            ip = addresses.parse(end)
        except ValueError:
            raise ValueError(f"invalid IP address: {end}") from None
        if not inside(subnet, ip) and not _mapped((ip, ip)):
            raise ValueError(f"not match base subnet: {end}")
    return parse_range(text, subnet.family)


def _refuse_overlap(texts: Sequence[str], found: Sequence[Interval]) -> None:
    """Of the overlapping pair lowest in the subnet, the element later in the list is the one refused.

    Neighbours in address order suffice: the first range to overlap any lower one overlaps the one just below it.
    """
    for one, other in pairwise(sorted(range(len(found)), key=lambda index: found[index])):
        if found[other][0] <= found[one][1]:
            new, old = max(one, other), min(one, other)
            raise RangeError("ips", texts[new], _overlap(texts[new], found[new], texts[old], found[old]))


def _overlap(new_text: str, new: Interval, old_text: str, old: Interval) -> str:
    if old[0] <= new[0] and new[1] <= old[1]:
        return f"range {new_text} is already covered by {old_text}"
    if new[0] <= old[0] and old[1] <= new[1]:
        return f"range {new_text} covers {old_text}"
    return f"range {new_text} overlaps with {old_text}"


def _mapped(interval: Interval) -> bool:
    return interval[0] <= MAPPED[1] and MAPPED[0] <= interval[1]


def _unreadable(text: str, family: Family) -> ValueError:
    return ValueError(f"invalid IP range format in IPv{family} '{text}'")
