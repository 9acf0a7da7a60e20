"""ADD and DEL from exec to exit, contenders in turn, so that a slow moment of the machine hits all of them alike."""

from __future__ import annotations

import statistics

from benchmarks.parts import HEADING, Contender, contenders, milliseconds, place

WARM_UP = 20


def run(rounds: int) -> None:
    """Measure and print."""
    with place() as at:
        found = contenders(at, "latency")
        for number in range(-WARM_UP, rounds):
            for command in ("ADD", "DEL"):
                for contender in found:
                    taken = contender.run(command, f"bench{number + WARM_UP}")
                    if number >= 0:
                        contender.seconds[command].append(taken)
    print(f"{rounds} rounds in turn, exec to exit\n{'':28}{'':6}{HEADING}{'p50 / host-local':>20}")
    base = next((each for each in found if each.name == "host-local"), None)
    for command in ("ADD", "DEL"):
        for contender in found:
            ratio = _ratio(contender, base, command)
            print(f"{contender.name:28}{command:6}{milliseconds(contender.seconds[command])}{ratio:>20}")


def _ratio(contender: Contender, base: Contender | None, command: str) -> str:
    if base is None:
        return "-"
    return f"{statistics.median(contender.seconds[command]) / statistics.median(base.seconds[command]):.2f}"
