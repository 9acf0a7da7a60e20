"""The demo's questions: the real command line as a child, and the pools' counts made anew from what the log says.

Counting again here is the point: it shows that the numbers of `get pools` follow from the events alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cni.demo.place import Place
from cni.demo.processes import DemoError, Processes
from ledger.events import EventType

COMMAND: Final = (sys.executable, "-P", "-m", "spiderledger")
"""Never out of the current folder: what lies there by chance is not ours."""
COMMAND_SECONDS_MAX: Final = 60.0
EVENTS_MAX: Final = 1_000_000
_CHANGE: Final = {EventType.ALLOCATED: 1, EventType.RELEASED: -1}


@dataclass(frozen=True)
class CommandLine:
    """Runs `spiderledger` on the demo's ledger."""

    processes: Processes
    place: Place
    variables: Mapping[str, str]
    say: Callable[[str], None]

    def show(self, *words: str, expected: int = 0) -> None:
        """Say the command and what it answers."""
        answer = self._run(*words, expected=expected)
        self.say(f"$ spiderledger {' '.join(words)}")
        self.say(answer)

    def ask(self, *words: str) -> Any:
        """What the command answers in JSON."""
        return json.loads(self._run(*words, "--output", "json"))

    def run(self, *words: str) -> None:
        """Run the command, and say nothing."""
        self._run(*words)

    def _run(self, *words: str, expected: int = 0) -> str:
        finished = self.processes.run(
            [*COMMAND, *words], folder=self.place.path, variables=self.variables, seconds_max=COMMAND_SECONDS_MAX
        )
        if finished.status != expected:
            because = f"exit code {finished.status} instead of {expected}"
            raise DemoError(f"`spiderledger {' '.join(words)}`: {because}: {finished.complaint}")
        return finished.out


def pool_counts(command_line: CommandLine) -> dict[str, int]:
    """How many addresses of each pool are held, as `get pools` says."""
    return {each["name"]: each["allocated"] for each in command_line.ask("get", "pools")["items"]}


def recounted(command_line: CommandLine) -> tuple[int, dict[str, int]]:
    """How many events the log has, and how many addresses of each pool are held by them."""
    events = command_line.ask("get", "events", "--limit", str(EVENTS_MAX))["items"]
    return len(events), counted(events)


def counted(events: list[Mapping[str, Any]]) -> dict[str, int]:
    """How many addresses of each pool are held after these events, whatever their order."""
    held: dict[str, int] = {}
    for event in events:
        for pool in event["pools"]:
            held[pool] = held.get(pool, 0) + _CHANGE.get(event["type"], 0)
    return held


def since(command_line: CommandLine, address: str) -> str:
    """Since when the address is held, by the ledger's clock; DemoError when nobody holds it."""
    lines = command_line.ask("get", "allocations")["items"]
    found = [each["since"] for each in lines if each["ip"] == address]
    if not found:
        raise DemoError(f"`get allocations` does not show {address}")
    return str(found[0])
