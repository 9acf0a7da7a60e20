"""How a time is written and read by people: RFC 3339 in UTC, from and to microseconds since 1970. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_US: Final = -62_135_596_800_000_000
LAST_US: Final = 253_402_300_799_999_999
"""The years 1 to 9999 are all that RFC 3339 can write."""


def rfc3339(at: int | None, *, exact: bool = True) -> str:
    """Microseconds since 1970 as RFC 3339 in UTC; "" for no time. Inexact ones are cut to the second."""
    if at is None:
        return ""
    moment = EPOCH + timedelta(microseconds=min(max(at, FIRST_US), LAST_US))
    return moment.isoformat(timespec="microseconds" if exact else "seconds").replace("+00:00", "Z")


def moment(said: str, now: int) -> int:
    """What `now`, `-2h30m` or an RFC 3339 time with its zone means; ValueError with what would be understood."""
    if said == "now" or _AGO.fullmatch(said):
        ago = sum(int(count) * _SECONDS[unit] for count, unit in _PART.findall(said))
        return max(now - ago * 1_000_000, 0)
    if not _RFC3339.fullmatch(said):
        raise ValueError(f"{said!r} is not a time with its zone: {_TIMES}")
    try:
        return (datetime.fromisoformat(said.upper()) - EPOCH) // timedelta(microseconds=1)
    except ValueError as error:
        raise ValueError(f"{said!r} is not a time ({error}): {_TIMES}") from None


# At most nine digits, as Python refuses to read thousands of them.
_AGO: Final = re.compile(r"-(?:[0-9]{1,9}[dhms])+")
_PART: Final = re.compile(r"([0-9]+)([dhms])")
_SECONDS: Final = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_DAY, _CLOCK, _ZONE = "[0-9]{4}-[0-9]{2}-[0-9]{2}", r"[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?", "[+-][0-9]{2}:[0-9]{2}"
_RFC3339: Final = re.compile(f"{_DAY}[Tt ]{_CLOCK}(?:[Zz]|{_ZONE})")
_TIMES: Final = "say 2026-03-31T14:03:00Z or 2026-03-31T16:03:00+02:00 (RFC 3339), -2h30m, or now"
