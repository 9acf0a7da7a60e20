"""Addresses as integers: the standard library's `ipaddress` is the second opinion."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger import addresses
from ledger.addresses import Family, Ip

IPS = st.one_of(
    st.integers(0, 2**32 - 1).map(lambda bits: addresses.make(4, bits)),
    st.integers(0, 2**128 - 1).map(lambda bits: addresses.make(6, bits)),
)


def standard(ip: Ip) -> IPv4Address | IPv6Address:
    return IPv4Address(addresses.bits(ip)) if addresses.family(ip) == 4 else IPv6Address(addresses.bits(ip))


@given(IPS)
def test_the_text_of_an_address_is_read_back_as_the_same_address(ip: Ip) -> None:
    assert addresses.parse(addresses.text(ip)) == ip
    assert ip_address(addresses.text(ip)) == standard(ip)


@given(IPS)
def test_every_text_the_standard_library_writes_is_read_as_it_reads_it(ip: Ip) -> None:
    assert addresses.parse(str(standard(ip))) == ip
    assert addresses.parse(standard(ip).exploded.upper()) == ip


@given(IPS)
def test_the_stored_key_is_read_back_as_the_same_address(ip: Ip) -> None:
    assert addresses.from_key(addresses.key(ip)) == ip
    assert len(addresses.key(ip)) == {4: 5, 6: 17}[addresses.family(ip)]
    assert addresses.key(ip)[0] == addresses.family(ip)


@given(IPS, IPS)
def test_byte_order_in_the_database_is_address_order(one: Ip, other: Ip) -> None:
    assert (addresses.key(one) < addresses.key(other)) == (one < other)


@pytest.mark.parametrize(
    ("text", "family", "bits"),
    [
        ("0.0.0.0", 4, 0),
        ("10.6.0.1", 4, 0x0A060001),
        ("255.255.255.255", 4, 2**32 - 1),
        ("::", 6, 0),
        ("::10.6.0.1", 6, 0x0A060001),
        ("FD00::0001", 6, (0xFD00 << 112) + 1),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 6, 2**128 - 1),
    ],
)
def test_a_text_is_one_family_and_its_bits(text: str, family: Family, bits: int) -> None:
    ip = addresses.parse(text)
    assert (addresses.family(ip), addresses.bits(ip)) == (family, bits)
    assert ip == addresses.make(family, bits)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("10.6.0.1", "10.6.0.1"),
        ("FD00:0:0:0:0:0:0:0A", "fd00::a"),
        ("fd00:0:0:1:0:0:0:1", "fd00:0:0:1::1"),
        ("fd00::1:0:0:1:1", "fd00::1:0:0:1:1"),
    ],
)
def test_text_is_canonical(text: str, canonical: str) -> None:
    assert addresses.text(addresses.parse(text)) == canonical


@pytest.mark.parametrize(
    "text",
    [
        "", "10.6", "10.6.0.256", "10.6.0.01", "10.6.0.1/24", "10.6.0.1 ", " 10.6.0.1", "10.6.0.1\n", "10.6.0.1\0",
        "0x0a.6.0.1", "168165377", "\u0661.2.3.4", "fe80::1%eth0", "fd00:::1", "fd00::1::2", "[fd00::1]", "fd00", "g::",
        "1:2:3:4:5:6:7:8:9", "\ud800",
    ],
)  # fmt: skip
def test_what_is_no_address_is_a_value_error_that_shows_it(text: str) -> None:
    with pytest.raises(ValueError) as refused:
        addresses.parse(text)
    assert str(refused.value) == f"{text!r} is not an IP address"


def test_no_address_of_one_family_follows_the_last_of_the_other() -> None:
    last_v4, first_v6 = addresses.make(4, 2**32 - 1), addresses.make(6, 0)
    assert last_v4 + 1 < first_v6
