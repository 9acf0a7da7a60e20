"""From a runtime's call and the cluster's facts to what is asked of the ledger.

Pure: the facts, the definition and the time are handed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cni.call import CniCall
from cni.errors import CniError, Code
from cni.facts import Facts, PodFacts, Settings, claim_for
from cni.selection import select
from ledger.addresses import BITS
from ledger.claims import CONTAINER, POD, Binding, Claim, Span, Subject, claim_of, span
from ledger.definition import Definition
from ledger.images import Address
from ledger.requests import Acquire, Grant, Refusal, Refuse, Release

ADD_AGE_SECONDS_MAX = 120
"""An older ADD has nobody waiting for its answer: kubelet and containerd give up before, and ask again."""
GC_AGE_SECONDS_MIN = 60.0
"""Unless an operator says otherwise: a younger binding may belong to an ADD that the runtime's list does not know."""
NODES_OWN = "v1/Node/"
"""How the owner of a static pod begins: the API server says so of every mirror pod."""
NOT_ITS_OWN = "?"
"""No claim's uid. GC does not tell what the runtime called a static pod; by the uid of its claim it did not."""
NANOSECONDS = 1_000_000_000


@dataclass(frozen=True)
class Order:
    """What this agent knows of the order of things on its node, nanoseconds since 1970: when it started itself, now,
    and the latest DEL that it remembers of the call's container (0: none)."""

    started: int
    now: int
    deleted: int = 0


def too_late(call: CniCall, order: Order) -> CniError | None:
    """Why this ADD may not be served any more: something newer may have happened on the node since it began."""
    if call.start < order.started:
        return _again(call, "this ADD began before the agent did")
    if call.start < order.deleted:
        return _again(call, f"container {call.container} has been deleted since this ADD began")
    if order.now - call.start > ADD_AGE_SECONDS_MAX * NANOSECONDS:
        return _again(call, f"this ADD began more than {ADD_AGE_SECONDS_MAX} seconds ago")
    return None


def _again(call: CniCall, why: str) -> CniError:
    return CniError(Code.TRY_AGAIN, f"{why}: try again", version=call.version)


def is_this_pod(call: CniCall, pod: PodFacts) -> bool:
    """Whether the cluster's pod is the one the runtime means: by its uid, by a static pod's hash, or, of an old runtime
    that sends none, by its name."""
    return call.pod is None or call.pod.uid in ("", pod.uid, pod.config_hash)


def acquire(call: CniCall, facts: Facts, definition: Definition, settings: Settings) -> Acquire | Refuse:
    """The ledger's request for an ADD; a refusal is one too, because it leaves its trace."""
    subject = subject_of(call, facts, settings)
    binding = Binding(call.container, call.network, call.netns, facts.node.name, call.start)
    selection = select(call, facts, definition, settings)
    if isinstance(selection, Refusal):
        claim = claim_for(call, facts, settings, call.interface, 4)
        return Refuse(claim, subject, binding, selection, definition.version)
    return Acquire(selection.wants, call.interface, binding, subject, selection.definition)


def subject_of(call: CniCall, facts: Facts, settings: Settings) -> Subject:
    """The names behind the call, as they are now."""
    pod = facts.pod
    if pod is None:
        return Subject(settings.cluster, facts.node.name, call.network, call.container)
    owner, top = (each.text if each else "" for each in (pod.owner, pod.top_owner))
    if pod.static:
        owner = owner or f"{NODES_OWN}{facts.node.name}"
    return Subject(settings.cluster, pod.namespace, pod.name, pod.uid, owner, top, tuple(sorted(pod.labels.items())))


def span_of(call: CniCall, node: str, settings: Settings) -> Span:
    """All claims that the call's container can speak for."""
    if call.pod is None:
        return span(settings.cluster, CONTAINER, node, call.network, call.container)
    return span(settings.cluster, POD, call.pod.namespace, call.pod.name)


def release(call: CniCall, pod: PodFacts | None, node: str, settings: Settings) -> Release:
    """The ledger's request for a DEL; `pod` is what the cluster shows under its name now."""
    return Release(
        span=span_of(call, node, settings),
        container=call.container,
        interface=call.interface,
        stamp=call.start,
        node_time=call.start // 1_000,
        alive=pod.uid if pod is not None and pod.alive else "",
        sent_uid=call.pod.uid if call.pod else call.container,
        evidence=_seen(pod) if call.pod else {"seen": "the runtime deleted the container"},
    )


def _seen(pod: PodFacts | None) -> dict[str, str]:
    """What the cluster showed that speaks for the end of the claim, or against it."""
    if pod is None:
        return {"seen": "no pod of this name"}
    return {"seen": "the pod lives" if pod.alive else pod.dead_reason or "the pod has ended", "uid": pod.uid}


def collect(call: CniCall, rows: Sequence[Address]) -> list[Address]:
    """Of these bindings, those that a GC call says are gone."""
    there = {(each.container, each.interface) for each in call.attachments}
    return [row for row in rows if (row.container, claim_of(row.claim or "").interface) not in there]


def collected(call: CniCall, row: Address, pod: PodFacts | None, subject: Subject | None) -> Release:
    """The DEL that a binding gets which no attachment stands behind. `subject`: its names, if they are still known."""
    claim = claim_of(row.claim or "")
    # Another pod of its name says nothing about this one.
    its_own = pod if pod is not None and pod.uid == claim.uid else None
    static = its_own.static if its_own else subject is None or subject.owner.startswith(NODES_OWN)
    return Release(
        span=claim.siblings,
        container=row.container or "",
        interface=claim.interface,
        stamp=call.start,
        node_time=call.start // 1_000,
        alive=pod.uid if pod is not None and pod.alive else "",
        sent_uid=NOT_ITS_OWN if claim.kind == POD and static else claim.uid,
        cause="gc",
        evidence={"network": call.network, "valid-attachments": len(call.attachments)}
        | (_seen(pod) if claim.kind == POD else {}),
    )


def grants_of(rows: Sequence[Address], call: CniCall) -> list[Grant]:
    """What this container holds on this interface."""
    mine = (row for row in rows if row.container == call.container)
    return [Grant(claim_of(row.claim or ""), row.ip, {}) for row in mine]


def claims_of(call: CniCall, facts: Facts, settings: Settings) -> list[Claim]:
    """The claims, one a family, that a CHECK is about."""
    return [claim_for(call, facts, settings, call.interface, family) for family in BITS]
