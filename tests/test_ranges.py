"""Range texts: what is read, what is refused with which words, what is printed back, what a pool's lists add up to."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import addresses, intervals, ranges
from ledger.addresses import Family
from ledger.intervals import Interval
from ledger.ranges import RangeError

V4, V6 = "172.18.40.0/24", "fd00::/64"


def interval(first: str, last: str) -> Interval:
    return addresses.parse(first), addresses.parse(last)


@pytest.mark.parametrize(
    ("family", "text", "first", "last"),
    [
        pytest.param(4, "172.18.40.5", "172.18.40.5", "172.18.40.5", id="2.1-one-address-v4"),
        pytest.param(6, "fd00::5", "fd00::5", "fd00::5", id="2.1-one-address-v6"),
        pytest.param(4, "172.18.40.5-172.18.40.9", "172.18.40.5", "172.18.40.9", id="2.1-range-v4"),
        pytest.param(6, "fd00::5-fd00::ff", "fd00::5", "fd00::ff", id="2.1-range-v6"),
        pytest.param(4, "172.18.40.5-172.18.40.5", "172.18.40.5", "172.18.40.5", id="2.1-range-of-one"),
        pytest.param(6, "FD00::0005-fd00:0::00FF", "fd00::5", "fd00::ff", id="2.1-any-spelling-of-v6"),
        pytest.param(6, "::5-::1.2.3.4", "::5", "::102:304", id="2.1-v6-with-dots-is-v6"),
    ],
)
def test_a_range_is_an_address_or_two_with_a_dash(family: Family, text: str, first: str, last: str) -> None:
    assert ranges.parse_range(text, family) == interval(first, last)
    assert ranges.family_of_range(text) == family


@pytest.mark.parametrize(
    ("family", "text"),
    [
        pytest.param(4, "172.18.40.0/24", id="2.1-cidr"),
        pytest.param(6, "fd00::/64", id="2.1-cidr-v6"),
        pytest.param(4, "172.18.40.5-9", id="2.1-short-form"),
        pytest.param(4, "172.18.40.*", id="2.1-star"),
        pytest.param(4, "172.18.40.5,172.18.40.9", id="2.1-comma"),
        pytest.param(4, "172.18.40.5 - 172.18.40.9", id="2.1-blanks"),
        pytest.param(4, " 172.18.40.5", id="2.1-leading-blank"),
        pytest.param(4, "172.18.40.5-172.18.40.6-172.18.40.7", id="2.1-two-dashes"),
        pytest.param(4, "172.18.40.5-", id="2.1-open-end"),
        pytest.param(4, "-", id="2.1-only-a-dash"),
        pytest.param(4, "", id="2.1-nothing"),
        pytest.param(4, "172.18.40.05", id="2.1-leading-zero"),
        pytest.param(4, "172.18.40.9-172.18.40.5", id="2.1-reversed"),
        pytest.param(6, "fd00::ff-fd00::5", id="2.1-reversed-v6"),
        pytest.param(4, "172.18.40.5-fd00::5", id="2.1-two-families"),
        pytest.param(6, "172.18.40.5-fd00::5", id="2.1-two-families-in-v6"),
        pytest.param(4, "fd00::5", id="2.1-the-other-family"),
        pytest.param(6, "172.18.40.5", id="2.1-the-other-family-in-v6"),
        pytest.param(4, "::ffff:172.18.40.5", id="2.1-mapped-in-v4"),
        pytest.param(6, "::ffff:172.18.40.5", id="2.1-mapped-in-v6"),
        pytest.param(6, "::ffff:ac12:2805", id="2.1-mapped-in-hexadecimal"),
        pytest.param(6, "::1-::ffff:0:0", id="2.1-ends-in-mapped"),
        pytest.param(6, "::ffff:ffff:ffff-fd00::", id="2.1-begins-in-mapped"),
        pytest.param(6, "::1-fd00::", id="2.1-goes-across-mapped"),
    ],
)
def test_any_other_range_is_refused_in_the_known_words(family: Family, text: str) -> None:
    with pytest.raises(ValueError) as refused:
        ranges.parse_range(text, family)
    assert str(refused.value) == f"invalid IP range format in IPv{family} '{text}'"


@pytest.mark.parametrize("text", ["::fffe:ffff:ffff", "::1:0:0:0", "::1-::fffe:ffff:ffff", "::1:0:0:0-fd00::"])
def test_ranges_just_beside_the_mapped_addresses_are_read(text: str) -> None:
    assert ranges.family_of_range(text) == 6


@pytest.mark.parametrize("text", ["", "x", "172.18.40.9-172.18.40.5", "::ffff:172.18.40.5"])
def test_what_is_no_range_has_no_family(text: str) -> None:
    assert ranges.family_of_range(text) is None


@pytest.mark.parametrize(
    ("family", "text"),
    [
        pytest.param(4, "172.18.40", id="2.1-ip-short"),
        pytest.param(4, "fd00::1", id="2.1-ip-of-the-other-family"),
        pytest.param(6, "172.18.40.1", id="2.1-ip-of-the-other-family-v6"),
        pytest.param(4, "::ffff:172.18.40.1", id="2.1-ip-mapped-in-v4"),
        pytest.param(6, "::ffff:172.18.40.1", id="2.1-ip-mapped-in-v6"),
        pytest.param(4, "", id="2.1-ip-empty"),
    ],
)
def test_what_is_no_address_is_refused_in_the_known_words(family: Family, text: str) -> None:
    with pytest.raises(ValueError) as refused:
        ranges.parse_address(text, family)
    assert str(refused.value) == f"invalid IP format in IPv{family} '{text}'"


@pytest.mark.parametrize(
    ("family", "text", "canonical"),
    [
        (4, "172.18.40.0/24", "172.18.40.0/24"),
        (4, "172.18.40.7/24", "172.18.40.0/24"),
        (4, "172.18.40.7/024", "172.18.40.0/24"),
        (4, "172.18.40.7/32", "172.18.40.7/32"),
        (4, "172.18.40.7/0", "0.0.0.0/0"),
        (6, "fd00::/64", "fd00::/64"),
        (6, "FD00:0::1/64", "fd00::/64"),
        (6, "fd00::1/128", "fd00::1/128"),
        (6, "::/0", "::/0"),
    ],
)
def test_a_subnet_is_read_with_any_prefix_length_and_printed_canonically(
    family: Family, text: str, canonical: str
) -> None:
    subnet = ranges.parse_cidr(text, family)
    network = ip_network(canonical)
    assert ranges.cidr_text(subnet) == canonical
    assert (subnet.first, subnet.last) == interval(str(network[0]), str(network[-1]))
    assert subnet.family == family
    assert ranges.family_of_cidr(text) == family


@pytest.mark.parametrize(
    ("family", "text"),
    [
        (4, "172.18.40.0"),
        (4, "172.18.40.0/"),
        (4, "172.18.40.0/33"),
        (4, "172.18.40.0/-1"),
        (4, "172.18.40.0/+24"),
        (4, "172.18.40.0/24/24"),
        (4, "172.18.40.0/\u0662\u0664"),
        (4, "172.18.40.0/24\n"),
        (4, "172.18.40.0/255.255.255.0"),
        (4, "172.18.40.0/" + "9" * 5000),
        (4, "172.18.40/24"),
        (4, "fd00::/64"),
        (4, "::ffff:172.18.40.0/120"),
        (6, "::ffff:172.18.40.0/120"),
        (6, "172.18.40.0/24"),
        (6, "fd00::/129"),
        (6, ""),
    ],
)
def test_what_is_no_subnet_is_refused_in_the_known_words(family: Family, text: str) -> None:
    with pytest.raises(ValueError) as refused:
        ranges.parse_cidr(text, family)
    assert str(refused.value) == f"invalid CIDR format in IPv{family} '{text}'"


@pytest.mark.parametrize("text", ["x", "172.18.40.0", "172.18.40.0/33", "::ffff:0:0/96"])
def test_what_is_no_subnet_has_no_family(text: str) -> None:
    assert ranges.family_of_cidr(text) is None


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("10.6.0.0/16", "10.6.0.0/16", True),
        ("10.6.0.0/16", "10.6.255.0/24", True),
        ("10.6.255.0/24", "10.6.0.0/16", True),
        ("10.6.0.0/16", "10.7.0.0/16", False),
        ("10.7.0.0/16", "10.6.0.0/16", False),
        ("0.0.0.0/0", "::/0", False),
    ],
)
def test_subnets_overlap_when_they_share_an_address(one: str, other: str, expected: bool) -> None:
    families = [ranges.family_of_cidr(text) for text in (one, other)]
    assert None not in families
    first, second = (ranges.parse_cidr(text, 6 if ":" in text else 4) for text in (one, other))
    assert ranges.overlapping(first, second) is expected


@pytest.mark.parametrize(
    ("family", "texts", "merged"),
    [
        pytest.param(4, ["10.0.0.2", "10.0.0.1"], ["10.0.0.1-10.0.0.2"], id="2.2-consecutive"),
        pytest.param(4, ["10.0.0.9", "10.0.0.1"], ["10.0.0.1", "10.0.0.9"], id="2.2-isolated-and-sorted"),
        pytest.param(4, ["10.0.0.9", "10.0.0.10"], ["10.0.0.9-10.0.0.10"], id="2.2-sorted-as-numbers"),
        pytest.param(4, ["10.0.0.1", "10.0.0.1"], ["10.0.0.1"], id="2.2-twice-the-same"),
        pytest.param(4, ["10.0.0.1-10.0.0.5", "10.0.0.3-10.0.0.9"], ["10.0.0.1-10.0.0.9"], id="2.2-overlapping"),
        pytest.param(4, ["10.0.0.3", "10.0.0.1-10.0.0.9"], ["10.0.0.1-10.0.0.9"], id="2.2-covered"),
        pytest.param(4, ["10.0.0.255", "10.0.1.0"], ["10.0.0.255-10.0.1.0"], id="2.2-across-a-byte"),
        pytest.param(
            6, ["FD00::00A", "fd00::B-fd00:0::c", "fd00::f"], ["fd00::a-fd00::c", "fd00::f"], id="2.2-canonical-v6"
        ),
        pytest.param(4, [], [], id="2.2-nothing"),
    ],
)
def test_a_list_is_printed_back_merged_and_canonical(
    family: Family, texts: Sequence[str], merged: Sequence[str]
) -> None:
    assert ranges.range_texts(ranges.parse_ranges(texts, family)) == tuple(merged)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 6)), max_size=8), st.sampled_from([4, 6]))
def test_what_is_printed_is_read_back_as_the_same_set(pairs: list[tuple[int, int]], family: Family) -> None:
    base = 0x0A0000F0 if family == 4 else 0xFD00 << 112
    given_set = intervals.normal(
        (addresses.make(family, base + start), addresses.make(family, base + start + length)) for start, length in pairs
    )
    texts = ranges.range_texts(given_set)
    assert ranges.parse_ranges(texts, family) == given_set
    assert ranges.range_texts(ranges.parse_ranges(reversed(texts), family)) == texts


@pytest.mark.parametrize(
    ("subnet", "ips", "exclude_ips", "expected"),
    [
        pytest.param(V4, [], [], [], id="2.3-empty"),
        pytest.param(V4, ["172.18.40.5"], [], ["172.18.40.5"], id="2.3-one"),
        pytest.param(V4, ["172.18.40.0-172.18.40.255"], [], ["172.18.40.0-172.18.40.255"], id="2.3-all-of-the-subnet"),
        pytest.param(
            V4,
            ["172.18.40.1-172.18.40.9"],
            ["172.18.40.4-172.18.40.5", "172.18.40.9"],
            ["172.18.40.1-172.18.40.3", "172.18.40.6-172.18.40.8"],
            id="2.3-4-excluded",
        ),
        pytest.param(V4, ["172.18.40.5"], ["172.18.40.200"], ["172.18.40.5"], id="2.3-4-excluded-outside-ips"),
        pytest.param(
            V4,
            ["172.18.40.5"],
            ["172.18.40.1-172.18.40.9", "172.18.40.5-172.18.40.20"],
            [],
            id="2.3-4-excludes-may-overlap",
        ),
        pytest.param(V4, ["172.18.40.9", "172.18.40.8"], [], ["172.18.40.8-172.18.40.9"], id="2.3-5-any-order"),
        pytest.param(
            V6,
            ["fd00::-fd00::ffff:ffff:ffff:ffff"],
            ["fd00::1"],
            ["fd00::", "fd00::2-fd00::ffff:ffff:ffff:ffff"],
            id="2.3-a-whole-64",
        ),
    ],
)
def test_effective_addresses_are_ips_without_the_excluded(
    subnet: str, ips: Sequence[str], exclude_ips: Sequence[str], expected: Sequence[str]
) -> None:
    result = ranges.effective(subnet, ips, exclude_ips, 6 if ":" in subnet else 4)
    assert ranges.range_texts(result) == tuple(expected)


@pytest.mark.parametrize(
    ("subnet", "element", "problem"),
    [
        pytest.param(V4, "172.18.41.5", "not match base subnet: 172.18.41.5", id="2.3-1-outside"),
        pytest.param(V4, "172.18.39.255-172.18.40.1", "not match base subnet: 172.18.39.255", id="2.3-1-begin-outside"),
        pytest.param(V4, "172.18.40.9-172.18.41.0", "not match base subnet: 172.18.41.0", id="2.3-1-end-outside"),
        pytest.param(V4, "fd00::1", "not match base subnet: fd00::1", id="2.3-1-other-family"),
        pytest.param(V6, "172.18.40.1", "not match base subnet: 172.18.40.1", id="2.3-1-other-family-v6"),
        pytest.param(V4, "172.18.40.0/24", "invalid range: 172.18.40.0/24", id="2.3-cidr"),
        pytest.param(V4, "172.18.40.1-2-3", "invalid range: 172.18.40.1-2-3", id="2.3-two-dashes"),
        pytest.param(V4, "172.18.40.1-9", "invalid IP address: 9", id="2.3-short-form"),
        pytest.param(V4, "172.18.40.1-172.18.40.0/24", "invalid IP address: 172.18.40.0/24", id="2.3-cidr-end"),
        pytest.param(V4, "nonsense", "invalid IP address: nonsense", id="2.3-nonsense"),
        pytest.param(V4, "", "invalid IP address: ", id="2.3-nothing"),
        pytest.param(
            V4,
            "172.18.40.9-172.18.40.5",
            "invalid IP range format in IPv4 '172.18.40.9-172.18.40.5'",
            id="2.3-2-reversed",
        ),
        pytest.param(
            V4, "::ffff:172.18.40.5", "invalid IP range format in IPv4 '::ffff:172.18.40.5'", id="2.1-mapped-in-v4"
        ),
        pytest.param(
            "::/64", "::ffff:1.2.3.4", "invalid IP range format in IPv6 '::ffff:1.2.3.4'", id="2.1-mapped-in-v6"
        ),
    ],
)
@pytest.mark.parametrize("where", ["ips", "excludeIPs"])
def test_an_element_that_does_not_fit_is_named_with_its_list(
    where: str, subnet: str, element: str, problem: str
) -> None:
    good = "fd00::77" if subnet == V6 else "::77" if ":" in subnet else "172.18.40.77"
    lists = {"ips": [good], "excludeIPs": [good]}
    lists[where].append(element)
    with pytest.raises(RangeError) as refused:
        ranges.effective(subnet, lists["ips"], lists["excludeIPs"], 6 if ":" in subnet else 4)
    assert (refused.value.where, refused.value.element, str(refused.value)) == (where, element, problem)


A, B = "172.18.40.10-172.18.40.19", "172.18.40.20"


@pytest.mark.parametrize(
    ("ips", "element", "problem"),
    [
        pytest.param([B, A, "172.18.40.12"], "172.18.40.12", f"range 172.18.40.12 is already covered by {A}", id="one"),
        pytest.param([A, A], A, f"range {A} is already covered by {A}", id="the-same-twice"),
        pytest.param(["172.18.40.12", B, A], A, f"range {A} covers 172.18.40.12", id="covers"),
        pytest.param(
            [A, "172.18.40.10-172.18.40.20"],
            "172.18.40.10-172.18.40.20",
            f"range 172.18.40.10-172.18.40.20 covers {A}",
            id="covers-from-the-same-begin",
        ),
        pytest.param(
            [A, "172.18.40.5-172.18.40.19"],
            "172.18.40.5-172.18.40.19",
            f"range 172.18.40.5-172.18.40.19 covers {A}",
            id="covers-to-the-same-end",
        ),
        pytest.param(
            [A, "172.18.40.15-172.18.40.19"],
            "172.18.40.15-172.18.40.19",
            f"range 172.18.40.15-172.18.40.19 is already covered by {A}",
            id="covered-to-the-same-end",
        ),
        pytest.param(
            [A, "172.18.40.19-172.18.40.25"],
            "172.18.40.19-172.18.40.25",
            f"range 172.18.40.19-172.18.40.25 overlaps with {A}",
            id="overlaps-above",
        ),
        pytest.param(
            [A, "172.18.40.1-172.18.40.10"],
            "172.18.40.1-172.18.40.10",
            f"range 172.18.40.1-172.18.40.10 overlaps with {A}",
            id="overlaps-below",
        ),
        pytest.param(
            ["172.18.40.1-172.18.40.99", "172.18.40.2", "172.18.40.50-172.18.40.60"],
            "172.18.40.2",
            "range 172.18.40.2 is already covered by 172.18.40.1-172.18.40.99",
            id="of-several-the-lowest",
        ),
    ],
)
def test_ranges_of_one_list_that_overlap_are_refused_naming_the_later(
    ips: Sequence[str], element: str, problem: str
) -> None:
    with pytest.raises(RangeError) as refused:
        ranges.effective(V4, ips, [], 4)
    assert (refused.value.where, refused.value.element, str(refused.value)) == ("ips", element, problem)


def test_of_several_faults_ips_come_before_overlaps_and_those_before_exclude_ips() -> None:
    outside, twice = "10.0.0.1", "172.18.40.1"
    faults: list[tuple[list[str], list[str], str]] = [
        ([twice, twice, outside], ["x"], "not match base subnet: 10.0.0.1"),
        ([twice, twice], ["x"], "range 172.18.40.1 is already covered by 172.18.40.1"),
        ([twice], ["x"], "invalid IP address: x"),
    ]
    for ips, exclude_ips, problem in faults:
        with pytest.raises(RangeError) as refused:
            ranges.effective(V4, ips, exclude_ips, 4)
        assert str(refused.value) == problem


def test_a_subnet_that_is_none_is_no_fault_of_the_ranges() -> None:
    with pytest.raises(ValueError) as refused:
        ranges.effective("nonsense", ["x"], [], 4)
    assert not isinstance(refused.value, RangeError)
    assert str(refused.value) == "invalid CIDR format in IPv4 'nonsense'"


@pytest.mark.parametrize(
    ("subnet", "ips", "exclude_ips", "total"),
    [
        pytest.param(V4, [], [], 0, id="2.4-empty"),
        pytest.param(V4, ["172.18.40.0-172.18.40.255"], ["172.18.40.1"], 255, id="2.4-ends-count"),
        pytest.param("fd00::/65", ["fd00::-fd00::7fff:ffff:ffff:ffff"], ["fd00::"], 2**63 - 1, id="2.4-just-fits"),
        pytest.param("fd00::/65", ["fd00::-fd00::7fff:ffff:ffff:ffff"], [], 2**63 - 1, id="2.4-one-too-many"),
        pytest.param("fd00::/48", ["fd00::-fd00::ffff:ffff:ffff:ffff:ffff"], ["fd00::"], 2**63 - 1, id="2.4-D00017"),
        pytest.param("fd00::/65", ["fd00::-fd00::7fff:ffff:ffff:ffff"], ["fd00::-fd00::1"], 2**63 - 2, id="2.4-below"),
    ],
)
def test_the_total_is_the_effective_addresses_saturated(
    subnet: str, ips: Sequence[str], exclude_ips: Sequence[str], total: int
) -> None:
    assert ranges.total_ip_count(ranges.effective(subnet, ips, exclude_ips, 6 if ":" in subnet else 4)) == total


def test_lists_of_whole_ipv6_networks_are_merged_by_their_ends() -> None:
    """Were anything enumerated, this would never return."""
    texts = [f"fd00:{number:x}::-fd00:{number:x}::ffff:ffff:ffff:ffff" for number in range(1000)]
    merged = ranges.parse_ranges([*texts, *texts], 6)
    assert len(merged) == 1000
    assert intervals.size(merged) == 1000 * 2**64
    result = ranges.effective("fd00::/16", texts, [f"fd00:{number:x}::" for number in range(1000)], 6)
    assert intervals.size(result) == 1000 * (2**64 - 1)


@given(st.data(), st.sampled_from([(4, V4), (6, V6)]))
def test_effective_agrees_with_sets_of_addresses(data: st.DataObject, where: tuple[Family, str]) -> None:
    family, subnet = where
    base = ip_network(subnet)[0]
    numbers = st.sets(st.integers(0, 60), max_size=20)
    ips, excluded = data.draw(numbers), data.draw(numbers)
    result = ranges.effective(subnet, [str(base + n) for n in ips], [str(base + n) for n in excluded], family)
    found = {int(ip_address(addresses.text(addresses.Ip(ip)))) for low, high in result for ip in range(low, high + 1)}
    assert found == {int(base) + number for number in ips - excluded}
