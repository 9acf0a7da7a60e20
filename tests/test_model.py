"""The product beside a model of what it promises: any calls, and whatever befalls a cluster, on both databases.

The rules are `Machine`'s, the promises are `tests/model.py`, and `tests/world.py` holds one against the other: after
each step the table of addresses must say what the model says; at the end `verify` must be clean and the projections
must have counted right. All that a rule draws comes from a fixed range, whatever has happened before, so that a run
can be repeated although the product is free in what it does with calls that come together.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from sqlalchemy import select

from ledger import tables
from ledger.definitions import Defined, StillHeldError
from ledger.redefine import Change, ClosePool, DefineReservation, RetirePool, RetireReservation
from ledger.verify import verify
from projector.projections import PROJECTIONS
from projector.tail import Tail
from tests.acts import a_reservation
from tests.conftest import Database
from tests.model import Call
from tests.wishes import (
    AT_FIRST,
    NO_CALL,
    PODS,
    POOLS,
    REACH,
    UNIVERSE,
    Calls,
    Edit,
    Wish,
    annotations,
    commands,
    edits,
    networks,
    nodes,
    often,
    places,
    pods,
    pool_of,
    wishes,
)
from tests.world import Op, World, told_by

STEPS = int(os.environ.get("MODEL_STEPS", "2000"))
SEED = int(os.environ.get("MODEL_SEED", "1"))
STEPS_PER_LEDGER = 100
LEDGERS_PER_SEED = 20  # Hypothesis remembers whatever it has tried.
SECOND = 10**9
SKEWS = (0, 3_600 * SECOND, -3_600 * SECOND)
GC_AGES = (0, 1_800)  # Everything is old enough, or nothing that an example makes.
STARTED_LATE = 20 * 10**6


class Machine(RuleBasedStateMachine):
    """See the module. `fired` counts, over all examples, which rules were taken and how the product answered."""

    def __init__(self, fresh: Callable[[Path], AbstractContextManager[Database]], fired: Counter[str]) -> None:
        super().__init__()
        self.fired = fired
        self.world = World(fresh, fired)
        self.calls = Calls(self.world)
        self.generation = dict.fromkeys(POOLS, 0)
        self.tail = Tail(self.world.engine, PROJECTIONS)

    @initialize(skews=st.tuples(often(SKEWS), often(SKEWS)), ages=st.tuples(often(GC_AGES), often(GC_AGES)))
    def begin(self, skews: Sequence[int], ages: Sequence[int]) -> None:
        self.world.begin(skews, ages)
        for name, mask in AT_FIRST.items():
            self._redefine(Edit(name, mask))

    def teardown(self) -> None:
        with self.world.parts:
            if self.world.sound:
                self.project()
                report = verify(self.world.engine)
                assert not (report.faults or report.unjudged), report

    # Pods and agents ------------------------------------------------------------------------------

    @rule(slot=pods, node=nodes, said=annotations, static=often((False, False, False, True)), unseen=st.booleans())
    def pod_comes(self, slot: int, node: int, said: int, static: bool, unseen: bool) -> None:
        """A pod is created, or created anew under its name; agents that have seen the old one may not know it yet."""
        name = f"web-{slot}"
        self.world.look()
        known = name in self.world.pods.now
        self.world.pods.come(name, self.world.node(node).name, said, static=static)
        self.world.unseen = name if unseen and known else ""
        self.fired["pod_comes"] += 1
        self.world.flush()

    @rule(slot=pods, how=often(("terminating", "terminating", "finished", "lives", "gone", "gone")))
    def pod_changes(self, slot: int, how: str) -> None:
        """It begins to end, ends, comes back to life, or its object is removed."""
        name = f"web-{slot}"
        if name not in self.world.pods.now:
            return
        if how == "gone":
            self.world.pods.go(name)
        else:
            self.world.pods.change(name, how)
        self.fired[f"pod_changes: {how}"] += 1
        self.world.flush()

    @rule(slot=pods, said=annotations)
    def pod_annotated(self, slot: int, said: int) -> None:
        """Its pools are others from now on."""
        if f"web-{slot}" in self.world.pods.now:
            self.world.pods.annotate(f"web-{slot}", said)
            self.fired["pod_annotated"] += 1

    @rule(node=nodes, age=often(GC_AGES), off=often((False, False, True)))
    def agent_restarts(self, node: int, age: int, off: bool) -> None:
        """It stops; most often another is started at once."""
        name = self.world.node(node).name
        stays_off = self.world.node(node).up and off
        self.world.node(node).stop()
        self.fired["agent_stops" if stays_off else "agent_starts"] += 1
        if not stays_off:
            self.world.start(name, age)
            self.world.do(self.world.poke(name))

    @rule(seconds=often((1, 100, 130)))
    def time_passes(self, seconds: int) -> None:
        """On the nodes; calls that have been under way for that long are late."""
        self.world.now += seconds * SECOND
        self.fired["time_passes"] += 1

    @rule(readable=st.booleans())
    def folder_changes(self, readable: bool) -> None:
        """There is a file in the cluster's folder that cannot be read, or there is none any more."""
        if readable != self.world.pods.complete:
            self.world.pods.turn(readable=readable)
            self.world.look()
            self.world.flush()
            self.fired["folder_readable" if readable else "folder_unreadable"] += 1

    # Calls ----------------------------------------------------------------------------------------

    @rule(
        begun=st.lists(
            st.tuples(commands, wishes, often((True, True, True, False)), annotations), min_size=1, max_size=8
        )
    )
    def call(self, begun: Sequence[tuple[str, Wish, bool, int]]) -> None:
        """ADD, DEL or CHECK, one after another; its pod comes with an ADD, as a rule."""
        for command, wish, comes, said in begun:
            name = f"web-{wish.slot}"
            if command == "ADD" and wish.slot < PODS and comes and name not in self.world.pods.now:
                self.world.pods.come(name, self.world.node(wish.node).name, said)
                self.world.flush()
            self.world.do(self.calls.begin(command, wish))
            self.fired["call"] += 1

    call_too = call_as_well = call  # A rule is taken the more often the more names it has.

    @rule(wish=wishes)
    def delete_late(self, wish: Wish) -> None:
        """DEL that the plugin could not bring to its agent in time: it lies in the spool when the next call comes."""
        self.world.spool(self.calls.begin("DEL", wish))
        self.world.flush()
        self.fired["delete_late"] += 1

    @rule(command=commands, wish=wishes)
    def begin_call(self, command: str, wish: Wish) -> None:
        """A call begins, and is on its way for a while."""
        self.calls.begin(command, wish)
        self.fired["begin_call"] += 1

    @rule(which=places)
    def again(self, which: int) -> None:
        """A call arrives again, or late, after others that began later."""
        if op := self.calls.again(which):
            self.world.do(op)
            self.fired["again"] += 1

    @rule(which=places)
    def check_later(self, which: int) -> None:
        """A runtime asks about a container that it spoke of before."""
        if op := self.calls.again(which):
            self.world.do(self.calls.check(op.call))
            self.fired["check_later"] += 1

    @rule(node=nodes, network=networks, mask=st.integers(0, 255), late=often((False, False, True)))
    def collect(self, node: int, network: str, mask: int, late: bool) -> None:
        """GC: some of the attachments are still there."""
        name = self.world.node(node).name
        held = [each for each in self.world.model.held.values() if (each.node, each.network) == (name, network)]
        known = sorted((each.container, each.claim.interface) for each in held)
        there = frozenset(each for place, each in enumerate(known) if mask >> place & 1)
        stamp = self.world.stamp(name) - (STARTED_LATE if late else 0)
        call = Call(("container", name, network, ""), "", "", "", name, network, stamp, {}, {})
        self.world.do(Op("GC", call, there))
        self.fired["collect"] += 1

    @rule(
        wanted=st.lists(st.tuples(commands, wishes) | places, min_size=2, max_size=4),
        edit=st.none() | st.none() | edits,
    )
    def at_once(self, wanted: Sequence[tuple[str, Wish] | int], edit: Edit | None) -> None:
        """Several calls come together, and perhaps a pool changes meanwhile."""
        begun = (self.calls.begin(*each) if isinstance(each, tuple) else self.calls.again(each) for each in wanted)
        self._together([op for op in begun if op], edit)
        self.fired["at_once"] += 1

    # Pools ----------------------------------------------------------------------------------------

    def _uid_of_pool(self, name: str) -> str:
        return f"{name}.{self.generation[name]}"

    def _redefine(self, edit: Edit) -> None:
        self._together([], edit)

    def _together(self, ops: Sequence[Op], edit: Edit | None) -> None:
        """A pool that is made anew and comes is from now on the one of its name."""
        anew = self.generation[edit.name] + edit.anew if edit else 0
        change = pool_of(edit, f"{edit.name}.{anew}") if edit and self.world.ledger else None
        done = self.world.do(*ops, change=change)
        if edit and change and done[0].told[0] == 0:
            self.generation[edit.name] = anew

    @rule(edit=edits)
    def define_pool(self, edit: Edit) -> None:
        """It grows, shrinks, excludes, is disabled, comes back, or another comes under its name."""
        self._redefine(edit)
        self.fired["define_pool"] += 1

    @rule(name=often(POOLS))
    def close_pool(self, name: str) -> None:
        """Its object is deleted: nothing is handed out any more."""
        uid, pools = self._uid_of_pool(name), self.world.model.pools
        if self._changed(ClosePool(uid)):
            pools |= {uid: pools[uid]._replace(open=False)} if uid in pools else {}
            self.world.compare()
            self.fired["close_pool"] += 1

    @rule(name=often(POOLS))
    def retire_pool(self, name: str) -> None:
        """It goes for good, if nobody holds an address of it."""
        uid, model = self._uid_of_pool(name), self.world.model
        held = any(each.pool == uid for each in model.held.values())
        try:
            if not self._changed(RetirePool(uid)):
                return
            assert not held
            model.pools.pop(uid, None)
        except StillHeldError:
            assert held
        self.world.compare()
        self.fired["retire_pool → held" if held else "retire_pool → gone"] += 1

    @rule(name=often(("r4", "s4", "r6")), begin=st.integers(0, 12), size=st.integers(0, 3))
    def reserve(self, name: str, begin: int, size: int) -> None:
        """Addresses are reserved, others, or none any more."""
        ips = UNIVERSE[int(name[1])][begin : begin + size]
        change = DefineReservation(a_reservation(name, *ips)) if ips else RetireReservation(f"uid-{name}")
        if self._changed(change):
            self.world.model.reserved[name] = frozenset(ips)
            self.world.compare()
            self.fired["reserve" if ips else "unreserve"] += 1

    def _changed(self, change: Change) -> bool:
        """Whether there was an agent to make this change, which cannot be refused."""
        if self.world.ledger is None:
            return False
        self.world.sound = False
        assert isinstance(self.world.ledger.define(change, actor="controller", cause="test"), Defined)
        return True

    # Operators and projections --------------------------------------------------------------------

    @rule(node=nodes, place=st.integers(0, 19))
    def operator_releases(self, node: int, place: int) -> None:
        """Somebody takes an address from whoever holds it."""
        ip, model = [*UNIVERSE[4], *UNIVERSE[6]][place], self.world.model
        held = ip in model.held
        status = self._ordered(node, {"release": {"operator": "me", "reason": "test", "address": ip}})
        if status is None:
            return
        assert (status == 200) == (ip in model.held), ip
        if held:
            model.moment += 1
            model.release(ip)
        self.world.compare()
        self.fired[f"operator_releases → {status}"] += 1

    @rule(node=nodes, name=often(("door", "printer")), pool=often(POOLS), place=st.none() | st.integers(0, 12))
    def operator_allocates(self, node: int, name: str, pool: str, place: int | None) -> None:
        """Somebody gives an address to a thing that is no pod."""
        family = REACH[pool][0]
        exact = None if place is None else UNIVERSE[family][place % len(UNIVERSE[family])]
        order = {"operator": "me", "reason": "test", "name": name, "pool": pool, "address": exact}
        status = self._ordered(node, {"allocate": order})
        if status is None:
            return
        given = self._given(("operator", name), pool, family, exact)
        assert (status == 200) == (given is not None and exact in (None, given)), given
        self.world.compare()
        self.fired[f"operator_allocates → {status}"] += 1

    def _given(self, who: tuple[str, str], pool: str, family: int, exact: str | None) -> str | None:
        """What the model gives to a thing that is no pod."""
        model = self.world.model
        uid = next((uid for uid, each in model.pools.items() if each.name == pool), None)
        if uid is None:
            return None
        wants = {("", family): [uid]}
        call = NO_CALL._replace(who=who, interface="-", exact={("", family): exact} if exact else {})
        outcome = model.give(call, None, wants, wants, told_by(self.world.rows()))
        return None if isinstance(outcome, int) else next(iter(outcome.values()))

    def _ordered(self, node: int, order: dict[str, Any]) -> int | None:
        """The HTTP status of the answer; None where no agent is there to carry it out."""
        if not self.world.node(node).up:
            return None
        self.world.look()
        self.world.flush()
        self.world.sound = False
        return self.world.node(node).order(order)[0]

    @rule()
    def project(self) -> None:
        """The projections catch up; then they count as the model does."""
        while self.tail.step():
            pass
        pool, occupancy, model = tables.pool, tables.occupancy, self.world.model
        with self.world.engine.connect() as connection:
            rows = connection.execute(select(pool.c.uid, occupancy).join(pool, pool.c.id == occupancy.c.pool))
            found = {row.uid: (row.total, row.withheld, row.allocated) for row in rows}
        for uid, each in model.pools.items():
            held = sum(holder.pool == uid for holder in model.held.values())
            assert found[uid] == (len(each.ips), len(each.ips) - len(model.available(uid)), held), uid
        self.fired["project"] += 1


def test_the_product_does_what_the_model_says(
    ledgers: Callable[[Path], AbstractContextManager[Database]],
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    fired: Counter[str] = Counter()
    for number, left in enumerate(range(max(1, STEPS // STEPS_PER_LEDGER), 0, -LEDGERS_PER_SEED)):
        machine = seed(SEED + number)(lambda: Machine(ledgers, fired))
        run_state_machine_as_test(machine, settings=_settings(min(left, LEDGERS_PER_SEED)))
    with capsys.disabled():
        print(f"\n{request.node.name}: " + ", ".join(f"{name} {count}" for name, count in sorted(fired.items())))  # noqa: T201


def _settings(ledgers: int) -> settings:
    return settings(
        max_examples=ledgers,
        stateful_step_count=STEPS_PER_LEDGER,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
