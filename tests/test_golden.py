"""Events are for ever: each kind of version 1 as it was once written must be read, and digested, alike for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ledger.addresses import parse, text
from ledger.events import TYPES, Event, current, digest

GOLDEN = Path(__file__).parent / "golden" / "version-1.jsonl"
BYTES = ("claim", "subject", "digest")


def read(line: str) -> Event:
    """A line of the golden file: bytes in hexadecimal, the address as people write it."""
    said: dict[str, Any] = json.loads(line)
    said |= {name: bytes.fromhex(said[name]) for name in BYTES if said[name] is not None}
    return Event(**{**said, "ip": None if said["ip"] is None else parse(said["ip"])})


def written(event: Event) -> str:
    """How a line was made; a released file is never written again."""
    said = event._asdict()
    said |= {name: said[name].hex() for name in BYTES if said[name] is not None}
    return json.dumps({**said, "ip": None if event.ip is None else text(event.ip)})


EVENTS = [read(line) for line in GOLDEN.read_text().splitlines()]


def test_the_golden_file_has_every_kind_of_event() -> None:
    assert {event.type for event in EVENTS} == TYPES


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.type)
def test_an_event_of_version_1_is_read_and_digested_as_ever(event: Event) -> None:
    assert current(event) == event
    assert digest(event) == event.digest
    assert read(written(event)) == event


def test_an_event_of_another_version_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="version 2 is not known"):
        current(EVENTS[0]._replace(version=2))
