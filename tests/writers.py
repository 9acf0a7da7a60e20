"""Agents that write slowly: in the product's own batches, with random pauses wherever others can come in between.

A writer is a racer's work (`tests.racers`): a process with a ledger of its own. It pauses when its transaction has its
number and no lock yet, and again between its writes and its commit, now and then for much longer. So transactions
commit in another order than that of their numbers, positions are drawn long before they can be read, and of two writers
that rebind one address the later number may have the earlier step. Pods of its own come and go; others are everybody's.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from random import Random

from ledger.requests import Request
from tests.acts import HeldBatch, Pod, add, delete, patient
from tests.racers import LedgerDoor

POOLS = ("a", "b")
SHARED_POOL = "shared"
"""It has an address for each shared pod, which is therefore always its own."""
TAKEN_POOL, TAKEN = "taken", "10.1.255.1"
OWN_PODS = 100
SHARED_PODS = 32
SHARED_EACH_MAX = 16
SHARED_END_CHANCE = 0.4
CHANGES_EACH_MAX = 16
PAUSE_SECONDS_MAX = 0.05
PAUSE_CHANCE = 0.4
LONG_PAUSE_SECONDS = 0.3
LONG_PAUSE_CHANCE = 0.02
UNDONE_CHANCE = 0.02


def shared(number: int) -> Pod:
    """A pod whose containers come from every writer."""
    return Pod(f"shared-{number}", f"uid-shared-{number}", f"first-{number}")


def write_slowly(door: LedgerDoor, meet: Callable[[], object], name: str, seed: int, events: int) -> array[int]:
    """At least so many events in transactions that commit; answers their ids, in the order in which it wrote them."""
    writer, ids = Writer(door, name, Random(seed)), array("q")
    meet()
    while len(ids) < events:
        ids.extend(writer.transact())
    return ids


class Writer:
    """See the module."""

    def __init__(self, door: LedgerDoor, name: str, random: Random) -> None:
        self.name, self.random = name, random
        # On a busy machine a pause is longer than the product's transactions may be idle.
        self.engine, self.definition = patient(door.engine), door.ledger.definition()
        self.engine.dispose()
        self._gone = [self._pod(f"own-{number}") for number in range(OWN_PODS)]
        self._there: list[Pod] = []
        self._shared: dict[int, Pod] = {}
        self._containers = 0

    def transact(self) -> Sequence[int]:
        """One transaction; answers the ids of its events. Rows that others have locked stay as they are."""
        ends, begins = self._some(self._there), [self._with_container(pod) for pod in self._some(self._gone)]
        requests = [delete(pod) for pod in ends] + [self._add(pod) for pod in begins] + self._besides()
        batch = HeldBatch(self.engine, self.definition, *requests)
        self._pause()
        batch.read().write()
        self._pause()
        if self.random.random() < UNDONE_CHANCE:
            batch.roll_back()
            return ()
        done = batch.commit_some()
        for place, pod in enumerate((*ends, *begins)):
            if place in done:
                before, after = (self._there, self._gone) if place < len(ends) else (self._gone, self._there)
                before[:] = [each for each in before if each.name != pod.name]
                after.append(pod)
        return [event.id for event in batch.decision.events]

    def _besides(self) -> list[Request]:
        """Everybody's pods get a container here, or lose the one they had here; somebody is refused what is taken."""
        numbers = self.random.sample(range(SHARED_PODS), self.random.randint(0, SHARED_EACH_MAX))
        late = self._with_container(self._pod("late"))
        return [*map(self._share, numbers), add(self.definition, late, TAKEN_POOL, address=TAKEN, exact=True)]

    def _share(self, number: int) -> Request:
        mine = self._shared.get(number)
        if mine is not None and self.random.random() < SHARED_END_CHANCE:
            return delete(mine, alive=self.random.choice(("", mine.uid)))
        self._shared[number] = self._with_container(shared(number))
        return add(self.definition, self._shared[number], SHARED_POOL)

    def _some(self, pods: Sequence[Pod]) -> list[Pod]:
        return self.random.sample(pods, self.random.randint(0, min(CHANGES_EACH_MAX, len(pods))))

    def _pod(self, name: str) -> Pod:
        return Pod(f"{self.name}-{name}", f"uid-{self.name}-{name}", node=f"node-{self.name}")

    def _with_container(self, pod: Pod) -> Pod:
        self._containers += 1
        return pod.new(f"{self.name}-{self._containers}", node=f"node-{self.name}")

    def _add(self, pod: Pod) -> Request:
        return add(self.definition, pod, *self.random.sample(POOLS, len(POOLS)))

    def _pause(self) -> None:
        dice = self.random.random()
        short = self.random.uniform(0, PAUSE_SECONDS_MAX) if dice < PAUSE_CHANCE else 0
        time.sleep(LONG_PAUSE_SECONDS if dice < LONG_PAUSE_CHANCE else short)
