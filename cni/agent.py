"""The agent: serves one node's runtime (or a folder's) from one ledger.

Two threads meet here. The server's reads calls and hands them over; the agent's own takes all that have
come, applies what lies in the spool, and commits them together: whatever arrives while a commit is in
flight is the next batch. Decisions are made in `cni.planning` and in the ledger; this only carries.
"""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cni import planning
from cni.call import CniCall, Command, decoded, read_call
from cni.cluster import Cluster, ClusterAwayError
from cni.errors import CniError, Code, refused
from cni.facts import Facts, NamespaceFacts, NodeFacts, PodFacts, Settings
from cni.http import HttpRequest
from cni.planning import Order
from cni.result import check, result
from cni.server import Connection, Server
from cni.spool import Spool, Spooled
from ledger.images import Address
from ledger.operating import perform
from ledger.requests import Answer, Granted, Refusal, Release, Request, Reselect
from ledger.store import BATCH_MAX, Ledger, LedgerAwayError

log = logging.getLogger(__name__)

RESELECTS_MAX: Final = 5
DELETIONS_REMEMBERED_MAX: Final = 10_000
IDLE_SECONDS: Final = 1.0
"""How often the spool is looked at when nobody calls."""

CNI_PATH: Final = "/v1/cni"
OPERATOR_PATH: Final = "/v1/operator"
HEALTH_PATH: Final = "/v1/ipam/healthy"


@dataclass
class Waiting:
    """A call whose client waits for its answer."""

    connection: Connection
    call: CniCall
    body: bytes
    tries: int = 0


@dataclass(frozen=True)
class OperatorOrder:
    """What an operator asks for, through the command line."""

    connection: Connection
    body: bytes


@dataclass(frozen=True)
class Act:
    """A request of the ledger, and whom its answer is for."""

    request: Request
    waiting: Waiting | None = None
    spooled: Spooled | None = None


@dataclass
class Seen:
    """What the agent remembers of its node, in memory: it begins anew with each start."""

    clock: Callable[[], int]
    started: int = field(init=False)
    deletions: OrderedDict[str, int] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self.started = self.clock()

    def deleted(self, call: CniCall) -> None:
        """A DEL of this container was seen."""
        self.deletions[call.container] = max(call.start, self.deletions.pop(call.container, 0))
        while len(self.deletions) > DELETIONS_REMEMBERED_MAX:
            self.deletions.popitem(last=False)

    def order(self, call: CniCall) -> Order:
        """What a late call is judged by."""
        return Order(self.started, self.clock(), self.deletions.get(call.container, 0))


class Agent:
    """See the module. `clock` is the host's, by which the plugin stamps its calls."""

    def __init__(
        self,
        ledger: Ledger,
        cluster: Cluster,
        spool: Spool,
        settings: Settings,
        *,
        node: str,
        many_nodes: bool,
        gc_age_seconds: float,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._ledger = ledger
        self._cluster = cluster
        self._spool = spool
        self._settings = settings
        self._node = node
        self._many_nodes = many_nodes
        self._gc_age_seconds = gc_age_seconds
        self._inbox: queue.SimpleQueue[Waiting | OperatorOrder | None] = queue.SimpleQueue()
        self._seen = Seen(clock)
        self._next_look = 0.0
        self._told = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agent", daemon=True)
        self.server: Server | None = None
        self.ready = False

    # Life ------------------------------------------------------------------------------------

    def start(self, server: Server) -> None:
        """Serve what this server brings."""
        self.server = server
        self._thread.start()
        server.start()

    def received(self, connection: Connection, request: HttpRequest) -> None:
        """A client's request has come in whole (on the server's thread): what needs no ledger is answered at once."""
        if request.path == CNI_PATH:
            self._received_call(connection, request.body)
        elif request.path == OPERATOR_PATH:
            self._inbox.put(OperatorOrder(connection, request.body))
        elif request.path == HEALTH_PATH:
            self._answer(connection, 200, b"")
        else:
            self._answer(connection, 404, f"no such path: {request.path}\n".encode())

    def _received_call(self, connection: Connection, body: bytes) -> None:
        try:
            call = read_call(body)
        except CniError as error:
            self._fail(connection, error)
            return
        if call.command is Command.STATUS and self.ready:
            # Ready once, ready for good: a NotReady node evicts healthy pods, which no lost database is worth.
            self._answer(connection, 200, b"")
            return
        self._inbox.put(Waiting(connection, call, body))

    def stop(self) -> None:
        """Take no more calls, finish those that have come, then end."""
        if self.server is not None:
            self.server.stop_listening()
        self._stopping.set()
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            arrived = self._arrived()
            try:
                self._serve(arrived)
            except Exception:
                # Whatever is wrong with one batch, the node's next pod needs an agent.
                log.exception("a batch failed")
            if self._stopping.is_set() and not arrived and self._inbox.empty():
                return

    def _arrived(self) -> list[Waiting | OperatorOrder]:
        """All that has come; waits a while when nothing has."""
        arrived: list[Waiting | OperatorOrder] = []
        try:
            item = self._inbox.get(timeout=IDLE_SECONDS)
            while True:
                if item is not None and not item.connection.gone:
                    arrived.append(item)
                if len(arrived) >= BATCH_MAX:
                    break
                item = self._inbox.get_nowait()
        except queue.Empty:
            pass
        return arrived

    # One batch -------------------------------------------------------------------------------

    def _serve(self, arrived: Sequence[Waiting | OperatorOrder]) -> None:
        calls = [each for each in arrived if isinstance(each, Waiting)]
        if not arrived:
            self._look()
        try:
            self._apply_spool()
            for order in arrived:
                if isinstance(order, OperatorOrder):
                    self._operate(order)
            self._commit([act for waiting in calls if (act := self._planned(waiting)) is not None])
        except LedgerAwayError as error:
            self._away(arrived, str(error))
        except Exception:
            # A bug must not take the node's network down with it: whoever waits is told, and the log has the rest.
            log.exception("a batch failed")
            self._away(arrived, "internal error; the agent's log has the details")

    def _look(self) -> None:
        """Nobody calls: see whether the ledger is what it was, or an address that was given here may be given again."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + self._ledger.look_seconds
        try:
            closed = self._ledger.look()
            said = closed.text if closed else ""
        except LedgerAwayError as error:
            self._next_look = 0.0
            said = f"the ledger's database does not answer: {error}"
        if said != self._told:
            log.warning("%s", said or "the ledger may be acted on again")
            self._told = said

    def _operate(self, order: OperatorOrder) -> None:
        try:
            self._answer(order.connection, 200, _json(perform(self._ledger, decoded(order.body))))
        except ValueError as error:
            self._answer(order.connection, 422, f"{error}\n".encode())

    def _planned(self, waiting: Waiting) -> Act | None:
        """The act that a call asks for; None when it has its answer already."""
        call = waiting.call
        try:
            match call.command:
                case Command.ADD:
                    return Act(self._add(call), waiting)
                case Command.DEL:
                    return self._del_act(waiting)
                case Command.CHECK:
                    self._check(call)
                case Command.GC:
                    self._collect(call)
                case Command.STATUS:
                    self._status(call)
        except CniError as error:
            self._fail(waiting.connection, error)
            return None
        except ClusterAwayError as error:
            self._fail(waiting.connection, CniError(Code.TRY_AGAIN, f"{error}: try again", version=call.version))
            return None
        self._answer(waiting.connection, 200, b"")
        return None

    def _commit(self, acts: Sequence[Act]) -> None:
        """Act, answer, and select anew where the definition had changed under the selection."""
        for _ in range(RESELECTS_MAX):
            live = [act for act in acts if act.waiting is None or not act.waiting.connection.gone]
            if not live:
                return
            requests = [act.request for act in live]
            answers = self._ledger.act(requests)
            self.ready = True
            acts = self._answered(live, answers)

    def _answered(self, acts: Sequence[Act], answers: Sequence[Answer]) -> list[Act]:
        """Tell everybody; those that must select anew come back."""
        again = []
        for act, answer in zip(acts, answers, strict=True):
            if act.spooled is not None:
                self._spool_answered(act.spooled, answer)
            elif isinstance(answer, Reselect) and act.waiting is not None:
                again += self._reselected(act.waiting)
            elif act.waiting is not None:
                self._tell(act.waiting, answer)
        return again

    def _reselected(self, waiting: Waiting) -> list[Act]:
        waiting.tries += 1
        if waiting.tries >= RESELECTS_MAX:
            text = "the pools' definition changed each time it was judged: try again"
            self._fail(waiting.connection, CniError(Code.TRY_AGAIN, text, version=waiting.call.version))
            return []
        self._ledger.refresh()
        act = self._planned(waiting)
        return [act] if act else []

    def _tell(self, waiting: Waiting, answer: Answer) -> None:
        call = waiting.call
        if isinstance(answer, Granted):
            self._answer(waiting.connection, 200, _json(result(answer, call)))
        elif isinstance(answer, Refusal) and call.command is Command.DEL:
            self._put_off(waiting, answer.text)
        elif isinstance(answer, Refusal):
            self._fail(waiting.connection, refused(answer, call.version))
        else:
            self._answer(waiting.connection, 200, b"")

    # Commands --------------------------------------------------------------------------------

    def _add(self, call: CniCall) -> Request:
        self._must_be_synced(call)
        late = planning.too_late(call, self._seen.order(call))
        if late is not None:
            raise late
        if self._spool.has(call.container):
            text = f"a DEL of container {call.container} waits to be applied: try again"
            raise CniError(Code.TRY_AGAIN, text, version=call.version)
        return planning.acquire(call, self._facts(call), self._ledger.definition(), self._settings)

    def _del_act(self, waiting: Waiting) -> Act | None:
        """A DEL is judged by what the cluster shows; while that cannot be told, it waits in the spool."""
        self._seen.deleted(waiting.call)
        try:
            return Act(self._del(waiting.call), waiting)
        except ClusterAwayError as error:
            self._put_off(waiting, str(error))
            return None

    def _del(self, call: CniCall) -> Release:
        if not self._cluster.synced:
            raise ClusterAwayError("the agent has not read the cluster yet")
        pod = self._pod_now(call.pod.namespace, call.pod.name) if call.pod else None
        return planning.release(call, pod, self._node_of(pod), self._settings)

    def _check(self, call: CniCall) -> None:
        claims = planning.claims_of(call, self._facts(call), self._settings)
        error = check(call, planning.grants_of(self._ledger.held_by(claims), call))
        if error is not None:
            raise error

    def _collect(self, call: CniCall) -> None:
        """GC speaks for this node and this network alone. Goes on after a failure and reports it at the end."""
        if self._many_nodes:
            text = "GC speaks for one node, and this agent serves several: start it with --node"
            raise CniError(Code.GC_NEEDS_NODE, text, version=call.version)
        self._must_be_synced(call)
        stale = planning.collect(call, self._ledger.bound_on(self._node, call.network, self._gc_age_seconds))
        releases, failed = self._collected(call, stale)
        failed += [answer.text for answer in self._ledger.act(releases) if isinstance(answer, Refusal)]
        if failed:
            text = f"{len(failed)} of {len(stale)} stale attachments could not be released: {failed[0]}"
            raise CniError(Code.TRY_AGAIN, text, version=call.version)

    def _collected(self, call: CniCall, stale: Sequence[Address]) -> tuple[list[Release], list[str]]:
        """What is asked of the ledger, and why the rest cannot be judged now."""
        subjects = self._ledger.subjects(stale)
        releases: list[Release] = []
        failed: list[str] = []
        for row in stale:
            try:
                pod = self._pod_behind(row.claim or "")
                releases.append(planning.collected(call, row, pod, subjects.get(row.subject or b"")))
            except ClusterAwayError as error:
                failed.append(str(error))
        return releases, failed

    def _status(self, call: CniCall) -> None:
        """Asked before the agent was ready for the first time: now is the moment to see whether it is."""
        if not self._cluster.synced:
            text = "the agent has not read the cluster yet"
            raise CniError(Code.NOT_AVAILABLE, text, version=call.version)
        try:
            self._ledger.refresh()
        except LedgerAwayError as error:
            text = f"the agent has not reached its database yet: {error}"
            raise CniError(Code.NOT_AVAILABLE, text, version=call.version) from None
        self.ready = True

    # Facts -----------------------------------------------------------------------------------

    def _must_be_synced(self, call: CniCall) -> None:
        if not self._cluster.synced:
            raise CniError(Code.TRY_AGAIN, "the agent has not read the cluster yet: try again", version=call.version)

    def _facts(self, call: CniCall) -> Facts:
        if call.pod is None:
            return Facts(self._cluster.node(self._node) or NodeFacts(self._node))
        pod = self._pod_of(call)
        node = self._node_of(pod)
        namespace = self._cluster.namespace(pod.namespace) or NamespaceFacts(pod.namespace)
        return Facts(self._cluster.node(node) or NodeFacts(node), pod, namespace)

    def _pod_of(self, call: CniCall) -> PodFacts:
        """The pod that the runtime means. One that memory does not have, or has by another uid, is looked up first."""
        assert call.pod is not None
        pod = self._cluster.pod(call.pod.namespace, call.pod.name)
        if pod is None or not planning.is_this_pod(call, pod):
            pod = self._cluster.pod_now(call.pod.namespace, call.pod.name)
        name = f"{call.pod.namespace}/{call.pod.name}"
        if pod is None:
            raise CniError(Code.TRY_AGAIN, f"failed to get pod {name}: not found in the cluster", version=call.version)
        if not planning.is_this_pod(call, pod):
            text = f"dead Pod {name}: the cluster shows uid {pod.uid} under this name, not {call.pod.uid}"
            raise CniError(Code.DEAD_POD, text, version=call.version)
        return pod

    def _pod_behind(self, claim: str) -> PodFacts | None:
        _, kind, namespace, name, *_ = claim.split("|")
        return self._pod_now(namespace, name) if kind == "Pod" else None

    def _pod_now(self, namespace: str, name: str) -> PodFacts | None:
        """The pod, looked up again: what an address may be taken away on."""
        pod = self._cluster.pod_now(namespace, name)
        if pod is None and not self._cluster.complete:
            raise ClusterAwayError("part of the cluster cannot be read: that a pod is not seen proves nothing")
        return pod

    def _node_of(self, pod: PodFacts | None) -> str:
        return pod.node if pod is not None and pod.node and self._many_nodes else self._node

    # Spool -----------------------------------------------------------------------------------

    def _apply_spool(self) -> None:
        """What lies in the spool comes before anything else. What cannot be applied keeps its container waiting."""
        while self._cluster.synced and (waiting := self._spool.waiting(BATCH_MAX)):
            acts = [act for spooled in waiting if (act := self._spooled(spooled)) is not None]
            self._answered(acts, self._ledger.act([act.request for act in acts]))
            if self._spool.waiting(len(waiting)) == waiting:
                return

    def _spooled(self, spooled: Spooled) -> Act | None:
        try:
            call = read_call(spooled.body)
        except CniError as error:
            log.error("%s is no DEL and was set aside: %s", spooled.path, error)
            self._spool.set_aside(spooled)
            return None
        self._seen.deleted(call)
        try:
            return Act(self._del(call), spooled=spooled)
        except ClusterAwayError as error:
            log.warning("%s waits on: %s", spooled.path, error)
            return None

    def _spool_answered(self, spooled: Spooled, answer: Answer) -> None:
        if isinstance(answer, Refusal):
            log.warning("%s waits on: %s", spooled.path, answer.text)
            return
        self._spool.applied(spooled)

    def _put_off(self, waiting: Waiting, why: str) -> None:
        """A DEL that cannot be applied now is written down, and that is success."""
        call = waiting.call
        try:
            self._spool.keep(call.container, call.interface, waiting.body)
        except OSError as error:
            text = f"DEL can neither be applied ({why}) nor spooled ({error})"
            self._fail(waiting.connection, CniError(Code.IO, text, version=call.version))
            return
        log.warning("DEL of container %s was spooled: %s", call.container, why)
        self._answer(waiting.connection, 200, b"")

    # Answers ---------------------------------------------------------------------------------

    def _away(self, arrived: Sequence[Waiting | OperatorOrder], why: str) -> None:
        """Nobody knows what became of this batch: DELs are spooled, everybody else asks again."""
        log.error("the ledger does not answer: %s", why)
        text = f"the ledger's database does not answer: {why}: try again"
        for each in arrived:
            if each.connection.answered:
                continue
            if isinstance(each, OperatorOrder):
                self._answer(each.connection, 503, f"{text}\n".encode())
            elif each.call.command is Command.DEL:
                self._put_off(each, why)
            else:
                code = Code.NOT_AVAILABLE if each.call.command is Command.STATUS else Code.TRY_AGAIN
                self._fail(each.connection, CniError(code, text, version=each.call.version))

    def _fail(self, connection: Connection, error: CniError) -> None:
        self._answer(connection, 422, _json(error.document))

    def _answer(self, connection: Connection, status: int, body: bytes) -> None:
        assert self.server is not None
        self.server.answer(connection, status, body)


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
