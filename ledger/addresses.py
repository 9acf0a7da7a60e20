"""IP addresses as plain integers that know their family.

An `Ip` is the family's number (4 or 6) followed by the address's bits: ``4 << 32 | bits`` or
``6 << 128 | bits``. Whatever compares, adds or cuts intervals works on ordinary integers, and an
interval can never run from one family into the other. In the database an address is the same
number as big-endian bytes (5 or 17 of them), so that byte order is address order.

Pure. Parsing and printing are netaddr's.
"""

from __future__ import annotations

from typing import Literal, NewType

from netaddr import INET_PTON, AddrFormatError, IPAddress

Ip = NewType("Ip", int)
Family = Literal[4, 6]

BITS: dict[Family, int] = {4: 32, 6: 128}
FIRST_V6 = 6 << 128


def make(family: Family, bits: int) -> Ip:
    """The address with these bits."""
    return Ip(family << BITS[family] | bits)


def family(ip: Ip) -> Family:
    """4 or 6."""
    return 6 if ip >= FIRST_V6 else 4


def bits(ip: Ip) -> int:
    """The address's own bits, without the family."""
    return ip & ((1 << BITS[family(ip)]) - 1)


def parse(text: str) -> Ip:
    """The address that this text writes; ValueError when it writes none (inet_pton's rules, RFC 4291 §2.2)."""
    try:
        address = IPAddress(text, flags=INET_PTON)
    except (AddrFormatError, ValueError, TypeError) as error:
        raise ValueError(f"{text!r} is not an IP address") from error
    return make(6 if address.version == 6 else 4, int(address))


def text(ip: Ip) -> str:
    """The canonical text (RFC 5952 for IPv6)."""
    return str(IPAddress(bits(ip), family(ip)))


def key(ip: Ip) -> bytes:
    """The address as the database keeps it."""
    return ip.to_bytes(17 if ip >= FIRST_V6 else 5, "big")


def from_key(stored: bytes) -> Ip:
    """The address that `key` wrote."""
    return Ip(int.from_bytes(stored, "big"))
