"""A storm of calls: one node's runtime with very many containers, and what it was answered.

One thread keeps so many calls of an agent unanswered: ADDs and DELs, repeated ones, DELs that overtake their ADD,
callers that hang up; over the socket, and some DELs by the real plugin. What it knows of each container is only what
it was answered; `calm` asks as a runtime does until nothing is unknown any more.
"""

from __future__ import annotations

import selectors
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from random import Random

from tests.agents import Answer, RunningAgent, Sandbox
from tests.linearizability import Call
from tests.wire import LostError, OpenCall

OPEN_CALLS = 96
PLUGINS_MAX = 4
HELD_WANTED = 64
LOOK_SECONDS = 0.05
PATIENCE_SECONDS = 60
"""How long a test waits for what must come; nothing is measured by it."""
USED_OUT = 101


@dataclass(eq=False)
class Container:
    """What is known of one container by its calls' answers."""

    name: str
    addresses: tuple[str, ...] = ()
    """What an ADD was answered."""
    asked: bool = False
    """Its ADD was called and nobody has said what became of it."""
    ending: bool = False
    """A DEL was called."""
    gone: bool = False
    """A DEL was answered, or the first ADD that was told anything certain was refused."""
    open: int = 0

    @property
    def known(self) -> bool:
        """Whether its runtime knows what it has."""
        return not self.open and (self.gone or (bool(self.addresses) and not self.ending))


@dataclass(eq=False)
class Flight:
    """A call under way."""

    verb: str
    container: Container
    called: float
    wire: OpenCall | None
    plugin: subprocess.Popen[bytes] | None = None

    def fileno(self) -> int:
        if self.wire is not None:
            return self.wire.fileno()
        assert self.plugin is not None
        assert self.plugin.stdout is not None
        return self.plugin.stdout.fileno()

    def receive(self, agent: RunningAgent) -> Answer | None:
        """As `OpenCall.receive`; a plugin that has begun to answer is waited for."""
        if self.wire is not None:
            return self.wire.receive()
        assert self.plugin is not None
        return agent.finish(self.plugin)


@dataclass
class Storm:
    """See the module."""

    agent: RunningAgent
    random: Random
    history: list[Call] = field(default_factory=list)
    containers: list[Container] = field(default_factory=list)
    refusals: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    _flights: dict[int, Flight] = field(default_factory=dict)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _holding: list[Container] = field(default_factory=list)
    _gone: list[Container] = field(default_factory=list)

    # The weather -----------------------------------------------------------------------------

    def blow(self, seconds: float) -> None:
        """For so long, each answer is followed by another call."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            while len(self._flights) < OPEN_CALLS and self._call_something():
                pass
            self._receive(min(left, LOOK_SECONDS))

    def unanswered(self) -> int:
        """How many calls have no answer, also none that only waits to be read."""
        return len(self._flights) - len(self._selector.select(0))

    def sweep(self) -> int:
        """Read what is there, and call nothing. Answers how many calls were not answered, or never will be."""
        before, lost = None, self.lost
        while before != (before := len(self._flights)):
            self._receive(0)
        return len(self._flights) + self.lost - lost

    def drain(self) -> None:
        """Wait until every call has its answer or has lost it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._flights:
            assert time.monotonic() < deadline, f"{len(self._flights)} calls hang:\n{self.agent.log}"
            self._receive(LOOK_SECONDS)

    def calm(self) -> None:
        """Ask until everything is known: an ADD that was lost is repeated or given up, a DEL is repeated."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        self.drain()
        while unknown := self.unknown():
            assert time.monotonic() < deadline, f"{len(unknown)} containers stay unknown:\n{self.agent.log}"
            for container in unknown[:OPEN_CALLS]:
                self._call("DEL" if container.ending or self.random.random() < 0.4 else "ADD", container)
            self.drain()

    def end(self) -> None:
        """Leave nothing behind, whatever went wrong."""
        for flight in self._flights.values():
            if flight.wire is not None:
                flight.wire.hang_up()
            if flight.plugin is not None:
                flight.plugin.kill()
                self.agent.finish(flight.plugin)
        self._selector.close()

    # What is known ---------------------------------------------------------------------------

    def unknown(self) -> list[Container]:
        """Containers of which nobody can say what they have."""
        return [each for each in self.containers if not each.known]

    def acknowledged(self) -> list[Container]:
        """Containers whose ADD was answered with addresses, whatever became of them later."""
        return [each for each in self.containers if each.addresses]

    # Calls -----------------------------------------------------------------------------------

    def _call_something(self) -> bool:
        """Whether there is an agent to call."""
        dice = self.random.random()
        if dice < 0.02:
            return self._hang_up()
        if dice < 0.06 and self._gone:
            return self._call("DEL", self.random.choice(self._gone))
        if dice < 0.12 and self._holding:
            return self._call("ADD", self.random.choice(self._holding))
        if dice < 0.15 and self._flights:
            flight = self.random.choice(list(self._flights.values()))
            return self._call("DEL", flight.container)
        if self.random.random() < len(self._holding) / (2 * HELD_WANTED):
            return self._call("DEL", self.random.choice(self._holding))
        self.containers.append(Container(f"c{len(self.containers)}"))
        return self._call("ADD", self.containers[-1])

    def _call(self, verb: str, container: Container) -> bool:
        sandbox = Sandbox(container.name)
        flight = Flight(verb, container, time.monotonic(), None)
        plugins = sum(1 for each in self._flights.values() if each.plugin is not None)
        if verb == "DEL" and plugins < PLUGINS_MAX and self.random.random() < 0.1:
            flight.plugin = self.agent.begin(verb, sandbox.environment)
        else:
            try:
                flight.wire = OpenCall(self.agent.socket, verb, sandbox)
            except LostError:
                # It may have been sent before the connection broke.
                self._ask(flight)
                self._lost(flight)
                return False
        self._ask(flight)
        self._flights[flight.fileno()] = flight
        self._selector.register(flight.fileno(), selectors.EVENT_READ, flight)
        return True

    def _ask(self, flight: Flight) -> None:
        flight.container.open += 1
        flight.container.asked |= flight.verb == "ADD"
        flight.container.ending |= flight.verb == "DEL"
        if flight.verb == "DEL" and flight.container in self._holding:
            self._holding.remove(flight.container)

    def _hang_up(self) -> bool:
        flights = [each for each in self._flights.values() if each.wire is not None]
        if flights:
            flight = self.random.choice(flights)
            self._forget(flight)
            assert flight.wire is not None
            flight.wire.hang_up()
            self._lost(flight)
        return True

    # Answers ---------------------------------------------------------------------------------

    def _receive(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            flight: Flight = key.data
            # Closing it frees its number for the next call: it must be forgotten before.
            self._forget(flight)
            try:
                answer = flight.receive(self.agent)
            except LostError:
                self._lost(flight)
                continue
            if answer is None:
                self._flights[flight.fileno()] = flight
                self._selector.register(flight.fileno(), selectors.EVENT_READ, flight)
            else:
                self._answered(flight, answer)

    def _forget(self, flight: Flight) -> None:
        self._selector.unregister(flight.fileno())
        del self._flights[flight.fileno()]

    def _lost(self, flight: Flight) -> None:
        self.lost += 1
        flight.container.open -= 1
        self.history.append(Call(flight.verb, flight.container.name, flight.called))

    def _answered(self, flight: Flight, answer: Answer) -> None:
        container, now = flight.container, time.monotonic()
        container.open -= 1
        if answer.status != 0:
            self._refused(flight, answer)
            return
        if flight.verb == "DEL":
            self.history.append(Call("DEL", container.name, flight.called, now))
            if not container.gone:
                container.gone = True
                self._gone.append(container)
            return
        addresses = tuple(address.partition("/")[0] for address in answer.addresses)
        self.history.append(Call("ADD", container.name, flight.called, now, addresses))
        if not container.addresses and not container.ending:
            self._holding.append(container)
        container.addresses = addresses

    def _refused(self, flight: Flight, answer: Answer) -> None:
        """An error of the kind "try again" may hide an act that was done; the others say that nothing was."""
        self.refusals[answer.code] += 1
        self.history.append(Call(flight.verb, flight.container.name, flight.called))
        assert answer.code in (11, USED_OUT), answer
        if answer.code == USED_OUT:
            assert not flight.container.addresses or flight.container.ending, f"{flight} {answer}"
            flight.container.gone = not flight.container.addresses
