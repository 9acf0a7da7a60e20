"""The demo's questions: the real command line as a child, and the pools' counts made anew from what the log says.

Counting again here is the point: it shows that the numbers of `get pools` follow from the events alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cni.demo.place import Place
from cni.demo.processes import DemoError, Processes
from ledger.events import EventType

COMMAND: Final = (sys.executable, "-P", "-m", "spiderledger")
"""Never out of the current folder: what lies there by chance is not ours."""
COMMAND_SECONDS_MAX: Final = 60.0
EVENTS_MAX: Final = 1_000_000
Event = Mapping[str, Any]
"""One of the log, as `get events` writes it in JSON."""
_CHANGE: Final = {EventType.ALLOCATED: 1, EventType.RELEASED: -1}


@dataclass(frozen=True)
class CommandLine:
    """Runs `spiderledger` on the demo's ledger."""

    processes: Processes
    place: Place
    variables: Mapping[str, str]
    say: Callable[[str], None]

    def show(self, *words: str, expected: int = 0) -> str:
        """Say the command and what it answers, and hand the answer back."""
        answer = self.ask(*words, expected=expected)
        self.say(f"$ spiderledger {' '.join(words)}\n{answer}")
        return answer

    def ask(self, *words: str, expected: int = 0) -> str:
        """What the command answers; DemoError when it ends otherwise than it must."""
        finished = self.processes.run(
            [*COMMAND, *words], folder=self.place.path, variables=self.variables, seconds_max=COMMAND_SECONDS_MAX
        )
        if finished.status != expected:
            because = f"exit code {finished.status} instead of {expected}"
            raise DemoError(f"`spiderledger {' '.join(words)}`: {because}: {finished.complaint}")
        return finished.out


def counts_shown(pools: str) -> dict[str, int]:
    """How many addresses of each pool are held, by the table that `get pools` prints."""
    heading, *rows = [line.split() for line in pools.splitlines()] or [[]]
    return {row[heading.index("NAME")]: int(row[heading.index("ALLOCATED-IP-COUNT")]) for row in rows}


def read_log(command_line: CommandLine) -> list[Event]:
    """Every event of the ledger."""
    events: list[Event] = json.loads(command_line.ask("get", "events", "--limit", str(EVENTS_MAX), "-o", "json"))[
        "items"
    ]
    return events


def counted(events: Sequence[Event]) -> dict[str, int]:
    """How many addresses of each pool are held after these events, whatever their order."""
    held: dict[str, int] = {}
    for event in events:
        for pool in event["pools"]:
            held[pool] = held.get(pool, 0) + _CHANGE.get(event["type"], 0)
    return held


def allocated_at(events: Sequence[Event], address: str) -> str:
    """When the address was last allocated, by the ledger's clock; DemoError when it never was."""
    times = [each["happened_at"] for each in events if (each["type"], each["ip"]) == (EventType.ALLOCATED, address)]
    if not times:
        raise DemoError(f"`get events` does not show that {address} was allocated")
    return str(max(times))
