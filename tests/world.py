"""A small cluster in which the product and its model do the same, step by step, and must say the same after each.

Calls go to real agents; what they answer, and what then stands in the table of addresses, the model must say, too.
Calls that come together may be done in any order, if one order explains all answers and what stands there.
"""

from __future__ import annotations

import copy
import itertools
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import select

from ledger import addresses, tables
from ledger.admission import AdmissionRefused
from ledger.claims import CONTAINER, claim_of
from ledger.definitions import Defined
from ledger.redefine import Change
from ledger.store import Ledger
from tests.conftest import Database
from tests.model import AGAIN, USED_OUT, Call, Claim, Held, Model, Pool
from tests.nodes import Node, answer, body_of
from tests.pods import Pods

MEMORY = Path("/dev/shm")  # A disk's fsync would take most of the time.
NODES = {"sqlite": ("node-1",), "postgresql": ("node-1", "node-2")}  # A SQLite file has one writer.
TICK = 10**6
ROWS = select(tables.address, tables.pool.c.uid.label("owner")).join(
    tables.pool, tables.pool.c.id == tables.address.c.pool
)
NOBODY = Held(None, "")
BUSY = "others hold what this needs"

Outcome = tuple[int, frozenset[str]]


@dataclass(frozen=True)
class Op:
    """One thing done to the product. `told` is how it answered: 0 or a CNI error's code, and an ADD's addresses.

    `there`: GC's valid attachments. `expected`: the addresses of CHECK's previous result.
    """

    command: str
    call: Call
    there: frozenset[tuple[str, str]] = frozenset()
    expected: frozenset[str] = frozenset()
    pool: tuple[str, Pool] | None = None
    change: Change | None = None
    told: Outcome = (0, frozenset())
    text: str = ""


@dataclass(frozen=True)
class Row:
    """An address in the ledger: whether it is held and withheld, and the rest in the model's words."""

    held: bool
    withheld: bool
    said: Held


Rows = dict[str, Row]


class World:
    """See the module. `fired` counts how the product answered; `sound`: the last comparison held."""

    def __init__(self, fresh: Callable[[Path], AbstractContextManager[Database]], fired: Counter[str]) -> None:
        self.fired = fired
        self.parts = ExitStack()
        self.home = Path(tempfile.mkdtemp(prefix="spiderledger-", dir=MEMORY if MEMORY.is_dir() else None))
        self.parts.callback(shutil.rmtree, self.home)
        self.database = self.parts.enter_context(fresh(self.home))
        self.engine = self.database.engine()
        self.pods = Pods(self.home / "cluster")
        self.model = Model()
        self.now = time.time_ns()
        self.sound = True
        self.unseen = ""
        self.nodes: dict[str, Node] = {}
        self.gc_ages: dict[str, int] = {}
        self.synced: dict[str, bool] = {}

    # Nodes ----------------------------------------------------------------------------------------

    def begin(self, skews: Sequence[int], gc_ages: Sequence[int]) -> None:
        """Each node has an agent, and a clock that is wrong by so much."""
        for name, skew, gc_age in zip(NODES[self.database.kind], skews, gc_ages, strict=False):
            state = self.home / name
            state.mkdir()
            self.nodes[name] = Node(self.database, name, self.pods.folder, state, self._clock(skew))
            self.parts.callback(self.nodes[name].stop)
            self.start(name, gc_age)

    def _clock(self, skew: int) -> Callable[[], int]:
        return lambda: self.now + skew

    def start(self, name: str, gc_age: int) -> None:
        """A new agent, which remembers nothing."""
        self.now += TICK
        self.nodes[name].start(gc_age)
        self.gc_ages[name], self.synced[name] = gc_age, self.pods.complete
        self.model.ended = {key: stamp for key, stamp in self.model.ended.items() if key[0] != name}
        self.model.ended[name, ""] = self.nodes[name].clock()

    def node(self, number: int) -> Node:
        """One of the nodes."""
        return self.nodes[NODES[self.database.kind][number % len(self.nodes)]]

    @property
    def ledger(self) -> Ledger | None:
        """Of an agent that runs: the last one, so that the others have to notice that a definition has changed."""
        return next((node.ledger for node in reversed(self.nodes.values()) if node.up), None)

    def stamp(self, node: str) -> int:
        """When a call begins now, by this node's clock."""
        self.now += TICK
        return self.nodes[node].clock()

    def look(self) -> None:
        """The agents look at the cluster's folder."""
        self.unseen = ""
        for name, node in self.nodes.items():
            if node.up:
                node.folder.refresh()
                self.synced[name] |= self.pods.complete

    def flush(self) -> None:
        """A call comes by where DELs wait, and what can be judged of them is applied: an agent would do so unasked."""
        for name in sorted({call.node for call in self.model.waiting.values()}):
            if self.nodes[name].up:
                self.do(self.poke(name))

    def poke(self, node: str) -> Op:
        """A CHECK of nothing."""
        who, stamp = ("container", node, "net-1", "poke"), self.stamp(node)
        return Op("CHECK", Call(who, "poke", "eth0", "poke", node, "net-1", stamp, {}, {}))

    # One step of the product, and of the model ----------------------------------------------------

    def do(self, *ops: Op, change: Op | None = None) -> tuple[Op, ...]:
        """Have these done together, and hold what came of it against the model. The operations with their answers."""
        self.sound = False
        if not all(op.command == "ADD" and self._seen_by_its_uid(op.call) for op in ops):
            self.look()
        ops = tuple(self._possible(op) for op in ops if self._arrives(op))
        if len(ops) + bool(change) > 1:
            self.flush()
        ops = self._answered(ops, change)
        rows = self.rows()
        if len(ops) > 1:
            self._settle_together(ops, rows)
        else:
            self._settle_alone(ops, rows)
        self.compare(rows)
        self.fired.update(f"{op.command} → {op.told[0] or 'done'}" for op in ops)
        return ops

    def _seen_by_its_uid(self, call: Call) -> bool:
        """Whether the call itself tells the agent that the pod it knows under this name is not the one."""
        pod = self.pods.now.get(self.unseen)
        return pod is not None and (call.who, call.uid) == (("pod", pod.name), pod.uid)

    def _arrives(self, op: Op) -> bool:
        """Whether the agent is there; where it is not the plugin keeps a DEL for it."""
        if not self.nodes[op.call.node].up and op.command == "DEL":
            self.spool(op)
        return self.nodes[op.call.node].up

    def spool(self, op: Op) -> None:
        """The plugin writes the DEL down. Of two of one container's interface the first says when it ended."""
        call = op.call
        self.nodes[call.node].spool.keep(call.container, call.interface, _body(op))
        self.model.waiting.setdefault((call.node, call.container, call.interface), call)
        self.fired["DEL → spooled"] += 1

    def _possible(self, op: Op) -> Op:
        """What a call asks for exactly is of a family that it gets at all."""
        pod = self.pods.shown(op.call)
        lists = (pod and pod.lists) or op.call.lists
        exact = {want: ip for want, ip in op.call.exact.items() if want in lists}
        return replace(op, call=op.call._replace(exact=exact))

    def _answered(self, ops: Sequence[Op], change: Op | None) -> tuple[Op, ...]:
        """The product does it: first all is sent, then all answers are read."""
        with ExitStack() as clients:
            sent = [(op, self.nodes[op.call.node].send(clients, _body(op))) for op in ops]
            done = [self._redefined(change)] if change else []
            done += [_told(op, answer(client)) for op, client in sent]
            if len(done) > 1:  # A DEL that others were for too long in the way of lies in the spool.
                for node in {op.call.node for op in ops}:
                    answer(self.nodes[node].send(clients, _body(self.poke(node))))
            return tuple(done)

    def _redefined(self, op: Op) -> Op:
        """The product's answer to a change of a pool: 0 or 1."""
        assert self.ledger and op.change
        outcome = self.ledger.define(op.change, actor="controller", cause="test")
        assert isinstance(outcome, Defined | AdmissionRefused), outcome
        return replace(op, told=(0 if isinstance(outcome, Defined) else 1, frozenset()))

    # What the model says of it --------------------------------------------------------------------

    def _settle_alone(self, ops: Iterable[Op], rows: Rows) -> None:
        for op in ops:
            before = self.model.moment
            if op.command != "DEFINE":
                self._apply_spool(op.call.node)
            expected = self._expected(self.model, op, rows)
            assert op.told == expected, f"{op}: expected {expected}"
            _level(self.model, before)

    def _settle_together(self, ops: Sequence[Op], rows: Rows) -> None:
        why = []
        for order in itertools.permutations(ops):
            model = _twin(self.model)
            model.in_order = False
            wrong = [(op, said) for op in order if op.told != (said := self._expected_among(model, op, rows))]
            why.append(wrong or differences(model, rows))
            if not why[-1]:
                _level(model, self.model.moment)
                # What two agents release at once may each have its time before the other's is seen.
                model.in_order = self.model.in_order and len({op.call.node for op in ops if op.call.node}) == 1
                self.model = model
                return
        raise AssertionError(f"no order explains what was answered: {why}")

    def _expected_among(self, model: Model, op: Op, rows: Rows) -> Outcome:
        """A request may also have found each pool used up when it looked at it, or others for too long in its way."""
        return op.told if op.told[0] == USED_OUT or BUSY in op.text else self._expected(model, op, rows)

    def _expected(self, model: Model, op: Op, rows: Rows) -> Outcome:
        """What the model answers; it does it, too."""
        match op.command:
            case "DEFINE":
                assert op.pool
                return (0 if model.define(*op.pool) else 1), frozenset()
            case "ADD":
                return self._expected_of_add(model, op, rows)
            case "DEL":
                self._delete(model, op.call)
                return 0, frozenset()
            case "CHECK":
                return model.check(op.call, self.pods.shown(op.call), op.expected), frozenset()
        return self._expected_of_gc(model, op), frozenset()

    def _expected_of_add(self, model: Model, op: Op, rows: Rows) -> Outcome:
        call = op.call
        if not self.synced[call.node]:
            return AGAIN, frozenset()
        outcome = model.add(call, self.pods.shown(call), told_by(rows), self.nodes[call.node].clock())
        if isinstance(outcome, int):
            return outcome, frozenset()
        return 0, frozenset(ip for claim, ip in outcome.items() if claim.interface == call.interface)

    def _expected_of_gc(self, model: Model, op: Op) -> int:
        """GC is the DEL that these bindings did not get; it does not know by which uid the runtime called a pod."""
        call = op.call
        if not self.synced[call.node] or self.gc_ages[call.node]:
            return 0 if self.synced[call.node] else AGAIN
        failed, statics = 0, self.pods.statics()
        for claim, _, container, *where in [each for each in model.held.values() if _is_stale(each, op)]:
            uid = "its hash" if claim.uid in statics else claim.uid
            del_ = Call(claim.who, uid, claim.interface, container, *where[:2], call.stamp, {}, {})
            if self.pods.proves(del_):
                model.delete(del_, self.pods.shown(del_))
            else:
                failed = AGAIN
        return failed

    def _apply_spool(self, node: str) -> None:
        for key, call in list(self.model.waiting.items()):
            if call.node == node and self.synced[node]:
                if self.pods.proves(call):
                    del self.model.waiting[key]
                self._delete(self.model, call)

    def _delete(self, model: Model, call: Call) -> None:
        """A DEL that cannot be judged waits."""
        key = call.node, call.container
        model.ended[key] = max(call.stamp, model.ended.get(key, 0))
        if self.synced[call.node] and self.pods.proves(call):
            model.delete(call, self.pods.shown(call))
        else:
            model.waiting.setdefault((*key, call.interface), call)

    # What stands there ----------------------------------------------------------------------------

    def rows(self) -> Rows:
        """The table of addresses, in the model's words."""
        with self.engine.connect() as connection:
            rows = connection.execute(ROWS).all()
        return {addresses.text(row.ip): Row(bool(row.held), bool(row.withheld), _said(row)) for row in rows}

    def compare(self, rows: Rows | None = None) -> None:
        """The table says what the model says."""
        assert not (wrong := differences(self.model, rows or self.rows())), wrong
        self.sound = True


def told_by(rows: Rows) -> dict[Claim, str]:
    """Which address the product has chosen for each claim."""
    return {row.said.claim: ip for ip, row in rows.items() if row.said.claim}


def differences(model: Model, rows: Rows) -> list[tuple[str, Any, Any]]:
    """Where the table of addresses says otherwise than the model: where, what the model says, and what stands there."""
    available = frozenset().union(*map(model.available, model.pools))
    used = model.held.keys() | model.idle.keys()
    ours: dict[Any, Any] = {ip: Row(ip in model.held, ip not in available, model.held.get(ip, NOBODY)) for ip in used}
    theirs: dict[Any, Any] = {ip: row if row.held else replace(row, said=NOBODY) for ip, row in rows.items()}
    ours |= model.last
    theirs |= told_by(rows)
    both = [(each, ours.get(each), theirs.get(each)) for each in ours.keys() | theirs.keys()]
    return [(str(where), said, stands) for where, said, stands in both if said != stands]


def _said(row: Any) -> Held:
    """The row's holder, or last holder, in the model's words."""
    claim = None
    if row.claim is not None:
        key = claim_of(row.claim)
        outside = ("container", key.namespace, key.name, key.uid)
        who = outside if key.kind == CONTAINER else (key.kind.lower(), key.name)
        claim = Claim(who, key.uid, key.interface, key.family)
    return Held(claim, row.owner, row.container or "", row.node or "", row.network or "", row.stamp or 0)


def _is_stale(held: Held, op: Op) -> bool:
    here = (held.node, held.network) == (op.call.node, op.call.network)
    return here and (held.container, held.claim.interface) not in op.there


def _told(op: Op, answered: tuple[int, dict[str, Any]]) -> Op:
    status, document = answered
    assert (status == 200) == ("code" not in document), (op, status, document)
    ips = frozenset(each["address"].partition("/")[0] for each in document.get("ips", ()))
    return replace(op, told=(document.get("code", 0), ips), text=document.get("msg", ""))


def _twin(model: Model) -> Model:
    twin = copy.copy(model)
    vars(twin).update({name: value.copy() for name, value in vars(model).items() if isinstance(value, dict)})
    return twin


def _level(model: Model, before: int) -> None:
    """What one step released may have been released in one moment."""
    idle = model.idle.items()
    model.idle = {ip: (cools, model.moment if since > before else since) for ip, (cools, since) in idle}


def _body(op: Op) -> bytes:
    """The call as the plugin writes it."""
    call = op.call
    variables = {"CNI_COMMAND": op.command, "SPIDERLEDGER_START": str(call.stamp)}
    if op.command != "GC":
        variables |= {"CNI_CONTAINERID": call.container, "CNI_IFNAME": call.interface, "CNI_NETNS": "/run/netns/x"}
    if call.who[0] == "pod":
        pod = {"K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": call.who[1], "K8S_POD_UID": call.uid}
        variables["CNI_ARGS"] = ";".join(f"{name}={value}" for name, value in {"IgnoreUnknown": "1", **pod}.items())
    return body_of(variables, _configuration(op))


def _configuration(op: Op) -> dict[str, Any]:
    call = op.call
    lists = {f"default_ipv{family}_ippool": names for (_, family), names in call.lists.items()}
    ips = [{"address": f"{ip}/{64 if ':' in ip else 24}", "interface": 0} for ip in sorted(op.expected)]
    configuration = {
        "cniVersion": "1.1.0",
        "name": call.network,
        "ipam": {"type": "spiderpool", **lists},
        "runtimeConfig": {"ips": list(call.exact.values())},
        "prevResult": {"cniVersion": "1.1.0", "interfaces": [{"name": call.interface}], "ips": ips},
    }
    if op.command == "GC":
        there = [{"containerID": container, "ifname": interface} for container, interface in sorted(op.there)]
        configuration["cni.dev/valid-attachments"] = there
    return configuration
