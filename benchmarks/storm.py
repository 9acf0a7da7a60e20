"""Many ADDs at once: 500 from 32 processes, then a pool of 1,000 addresses filled by 50 at once and emptied again."""

from __future__ import annotations

import os
import time

from benchmarks.parts import Contender, contenders, place

STORM, AT_ONCE = 500, 32
FILL, FILLERS = 1_000, 50
FIRST, LAST = "0.2", "3.233"
"""1,000 addresses: 254 + 256 + 256 + 234. The first of the network is host-local's gateway."""


def run() -> None:
    """Measure and print."""
    with place() as at:
        print(f"{STORM} ADDs, then as many DELs, {AT_ONCE} processes at once; calls per second")
        _tell([(each, _calls(each, STORM, AT_ONCE)) for each in contenders(at, "storm")])
        print(f"\na pool of {FILL} addresses filled by {FILL} ADDs at {FILLERS} at once, and emptied; calls per second")
        _tell([(each, _calls(each, FILL, FILLERS)) for each in contenders(at, "fill", "10.40.0.0/16", FIRST, LAST)])


def _tell(results: list[tuple[Contender, dict[str, tuple[float, int]]]]) -> None:
    floor = next(rates for each, rates in results if each.command)
    print(f"{'':28}{'ADD/s':>10}{'/ floor':>10}{'failed':>8}{'DEL/s':>10}{'/ floor':>10}{'failed':>8}")
    for contender, rates in results:
        cells = "".join(f"{rate:10.0f}{rate / floor[name][0]:10.2f}{bad:8}" for name, (rate, bad) in rates.items())
        print(f"{contender.name:28}{cells}")


def _calls(contender: Contender, number: int, at_once: int) -> dict[str, tuple[float, int]]:
    """Calls per second, and how many failed, for ADD and DEL."""
    return {command: _call_all(contender, command, number, at_once) for command in ("ADD", "DEL")}


def _call_all(contender: Contender, command: str, number: int, at_once: int) -> tuple[float, int]:
    running: set[int] = set()
    failed = 0
    start = time.perf_counter()
    for each in range(number):
        if len(running) >= at_once:
            failed += _one_ended(running)
        running.add(contender.start(command, f"storm{each}"))
    while running:
        failed += _one_ended(running)
    return number / (time.perf_counter() - start), failed


def _one_ended(running: set[int]) -> bool:
    """Whether the one that ended first has failed."""
    process, status = os.wait()
    if process not in running:
        return False
    running.discard(process)
    return os.waitstatus_to_exitcode(status) != 0
