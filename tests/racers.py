"""Processes that ask a ledger at the same moment, each through a door of its own, and tell what they were answered.

On PostgreSQL a door is an agent's own ledger with its own connections; on SQLite, where one process writes, it is a
connection to the agent's socket for each call. A race is one fresh process that forks a racer for every work, so that
they begin quickly and share nothing but the barrier where they meet.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Engine

from ledger import store
from ledger.database import open_engine
from ledger.requests import Acquire, Answer, Done, Granted, Reason, Release
from ledger.store import Ledger, Settings
from tests import agents as calls
from tests.acts import (
    NODE,
    PATIENCE_SECONDS,
    HeldBatch,
    acquire,
    delete,
    granted,
    outside,
    patient,
    shown,
    until,
    waiting_for_lock,
    want,
)
from tests.agents import CONFIGURATION, ROOT, Sandbox
from tests.wire import OpenCall

RACE_SECONDS_MAX = 300  # Only reached when something is broken.
GRANTED = "granted"
DONE = "done"
USED_OUT = Reason.USED_OUT.value
WORDS = {0: DONE, 11: Reason.BUSY.value, 101: USED_OUT}


class Wish(NamedTuple):
    """One address for each interface, out of the first of its pools that has one; or, with no pools, the end."""

    container: str
    pools: tuple[tuple[str, ...], ...] = ()

    @property
    def end(self) -> Wish:
        """The container is gone."""
        return Wish(self.container)


class Told(NamedTuple):
    """The word of the answer, what was given, and how long that took (which nothing is judged by)."""

    word: str
    addresses: tuple[str, ...] = ()
    seconds: float = 0.0


class Door(Protocol):
    """A process's way to the ledger."""

    def ask(self, *wishes: Wish) -> list[Told]:
        """All of them at once."""


Work = Callable[..., Any]
"""`work(door, meet, ...)`: `meet()` waits for the others. A function of a module, so that it can be sent."""


# Doors --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where doors open: at a database's address, or at an agent's socket."""

    url: str = ""
    socket: Path | None = None

    @contextmanager
    def door(self) -> Iterator[Door]:
        """One of one's own."""
        if self.socket is not None:
            yield SocketDoor(self.socket)
            return
        engine = open_engine(self.url)
        yield LedgerDoor(engine)
        engine.dispose()


class LedgerDoor:
    """What an agent has: a ledger, with the definition at hand."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.ledger = Ledger(engine, Settings(doubt_seconds=0))
        self.ledger.act([])
        self.ledger.definition()

    def ask(self, *wishes: Wish) -> list[Told]:
        """In one act."""
        began = time.monotonic()
        answers = self.ledger.act([self.request(wish) for wish in wishes])
        seconds = time.monotonic() - began
        return [_told(answer)._replace(seconds=seconds) for answer in answers]

    def request(self, wish: Wish) -> Acquire | Release:
        """The ledger's own."""
        pod, definition = outside(NODE, wish.container), self.ledger.definition()
        if not wish.pools:
            return delete(pod)
        wants = [
            want(pod.claim(f"eth{number}"), *(definition.by_name[name].id for name in names))
            for number, names in enumerate(wish.pools)
        ]
        return acquire(definition, pod, *wants)


def _told(answer: Answer) -> Told:
    if isinstance(answer, Granted):
        return Told(GRANTED, tuple(granted(answer)))
    return Told(DONE if isinstance(answer, Done) else shown(answer))


@dataclass(frozen=True)
class SocketDoor:
    """What a runtime has, without its plugin. One interface only."""

    path: Path

    def ask(self, *wishes: Wish) -> list[Told]:
        """Each over a connection of its own."""
        began = time.monotonic()
        calls = [self._call(wish) for wish in wishes]
        return [_heard(call.answer())._replace(seconds=time.monotonic() - began) for call in calls]

    def _call(self, wish: Wish) -> OpenCall:
        sandbox = Sandbox(wish.container)
        if not wish.pools:
            return OpenCall(self.path, "DEL", sandbox)
        [names] = wish.pools
        ipam = {"type": "spiderpool", "default_ipv4_ippool": list(names)}
        return OpenCall(self.path, "ADD", sandbox, {**CONFIGURATION, "ipam": ipam})


def _heard(answer: calls.Answer) -> Told:
    if answer.out and answer.status == 0:
        return Told(GRANTED, tuple(address.partition("/")[0] for address in answer.addresses))
    return Told(WORDS.get(answer.code, f"error {answer.code}"))


# Processes ----------------------------------------------------------------------------------------


def race(place: Place, *works: tuple[Any, ...]) -> list[Any]:
    """Run each (work, argument, …) in a process of its own; what they returned, None for one that was killed."""
    command = [sys.executable, "-c", f"from {__name__} import serve; serve()"]
    asked = pickle.dumps((place, works))
    done = subprocess.run(command, input=asked, capture_output=True, cwd=ROOT, timeout=RACE_SECONDS_MAX, check=False)
    assert done.returncode == 0, done.stderr.decode()
    told: list[Any] = pickle.loads(done.stdout)
    return told


def serve() -> None:
    """In a process that has no threads and no connections: fork the racers, and hand on what they tell."""
    place, works = pickle.load(sys.stdin.buffer)
    context = multiprocessing.get_context("fork")
    meet = context.Barrier(len(works), timeout=PATIENCE_SECONDS).wait
    pipes = [context.Pipe(duplex=False) for _ in works]
    racers = [
        context.Process(target=_run, args=(telling, place, meet, *work), daemon=True)
        for (_, telling), work in zip(pipes, works, strict=True)
    ]
    for racer, (_, telling) in zip(racers, pipes, strict=True):
        racer.start()
        telling.close()
    told = [_heard_from(hearing) for hearing, _ in pipes]
    sys.stdout.buffer.write(pickle.dumps(told))
    for racer in racers:
        racer.join()
    sys.exit(any((racer.exitcode or 0) > 0 for racer in racers))


def _run(telling: Pipe, place: Place, meet: Callable[[], object], work: Work, *arguments: Any) -> None:
    with place.door() as door:
        telling.send(work(door, meet, *arguments))


def _heard_from(hearing: Pipe) -> Any:
    """What it told before its end."""
    try:
        return hearing.recv()
    except EOFError:
        return None


# Works --------------------------------------------------------------------------------------------


def ask_together(door: Door, meet: Callable[[], object], wishes: Sequence[Wish]) -> list[Told]:
    """Each wish at the same moment as the others theirs."""
    told = []
    for wish in wishes:
        meet()
        told += door.ask(wish)
    return told


def ask_in_parts(door: Door, meet: Callable[[], object], parts: Sequence[Sequence[Wish]]) -> list[Told]:
    """One part after the other; only the first waits."""
    meet()
    return [told for part in parts for told in door.ask(*part)]


def hold_while_others_wait(
    door: LedgerDoor, meet: Callable[[], object], wishes: Sequence[Wish], others: int, dies: bool
) -> list[Told]:
    """An agent between its last write and its commit, to which it comes only when all others wait for it, or never."""
    engine, ledger = _patient(door)
    meet()
    batch = HeldBatch(engine, ledger.definition(), *map(door.request, wishes)).read().write()
    meet()
    until(lambda: waiting_for_lock(engine) == others, "all others wait")
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    return list(map(_told, batch.commit()))


def ask_while_one_holds(door: LedgerDoor, meet: Callable[[], object], wishes: Sequence[Wish]) -> list[Told]:
    """Begun before that one began, for agents wait for whatever was open when they came; asked when it holds."""
    _patient(door)
    meet()
    meet()
    return door.ask(*wishes)


def _patient(door: LedgerDoor) -> tuple[Engine, Ledger]:
    """In this process alone, nothing is given up however long others take."""
    store.ACT_SECONDS_MAX = PATIENCE_SECONDS  # type: ignore[misc]
    engine = patient(door.engine)
    engine.dispose()
    return engine, door.ledger
