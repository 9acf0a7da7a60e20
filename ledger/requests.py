"""What is asked of the ledger and what it answers: the whole interface between an agent and the ledger.

Frozen values in batches; no connection, row or engine crosses it, so that one process can serve a
ledger to the agents of several nodes. Refusals are answers, not exceptions. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, TypeAlias

from ledger.addresses import Ip
from ledger.claims import Binding, Claim, Span, Subject


@dataclass(frozen=True)
class Candidate:
    """A pool that was looked at, and why it was passed over ("" when it was not)."""

    pool: str
    passed_over: str = ""


@dataclass(frozen=True)
class Want:
    """One address for one claim.

    `pools` are the candidates in the order of trial; `named` are all pools that the claim's source
    names before any filter: a holder stays in any of them. An exact address is that one or none.
    """

    claim: Claim
    pools: tuple[int, ...]
    named: frozenset[int]
    address: Ip | None = None
    exact: bool = False
    clean_gateway: bool = False
    routes: tuple[tuple[str, str], ...] = ()
    candidates: tuple[Candidate, ...] = ()

    @cached_property
    def key(self) -> str:
        """The claim's."""
        return self.claim.key


@dataclass(frozen=True)
class Acquire:
    """All of these or nothing. Wants of `interface` are bound to the container, the others wait for their own ADD."""

    wants: tuple[Want, ...]
    interface: str
    binding: Binding
    subject: Subject
    definition: int
    actor: str = "agent"
    cause: str = "add"


@dataclass(frozen=True)
class Release:
    """This container does not speak for its claims any more.

    `alive` is the uid under which the cluster still shows the pod alive ("" when it does not): such
    claims, and fixed ones, are only unbound. `sent_uid` is what the runtime called the pod; when it
    is not the claim's own, the pod is a static one, whose absence from the API is no evidence.
    """

    span: Span
    container: str
    interface: str
    stamp: int
    node_time: int
    alive: str = ""
    sent_uid: str = ""
    actor: str = "agent"
    cause: str = "del"
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Free:
    """An operator's release of one address, whoever holds it, if it is still at this step."""

    ip: Ip
    step: int
    actor: str
    cause: str
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Refuse:
    """A refusal that was decided before the ledger was asked. It leaves its trace in the journal.

    But who holds an address keeps it, whatever became of the pools: its container gets the same answer, and a new
    container speaks for it where the address's pool is among the refusal's `named`. The claim stands for both families.
    """

    claim: Claim
    subject: Subject
    binding: Binding
    refusal: Refusal
    definition: int


Request: TypeAlias = Acquire | Release | Free | Refuse


class Reason(StrEnum):
    """Why an allocation is refused. The names are kept for ever."""

    NO_POOL = "no-pool-available"
    USED_OUT = "all-addresses-used-out"
    ADDRESS_TAKEN = "address-taken"
    ADDRESS_OUTSIDE = "address-outside-pools"
    WRONG_INPUT = "wrong-input"
    DEAD_POD = "dead-pod"
    SUPERSEDED = "superseded"
    BUSY = "busy"
    DOUBT = "ledger-in-doubt"
    FENCED = "ledger-fenced"


@dataclass(frozen=True)
class Grant:
    """One address held by one claim, and the terms under which it was given."""

    claim: Claim
    ip: Ip
    terms: dict[str, Any]


@dataclass(frozen=True)
class Granted:
    """One grant for each want, in the order of the wants."""

    grants: tuple[Grant, ...]


@dataclass(frozen=True)
class Refusal:
    """Nothing was given. `text` is for people and keeps what they search for.

    `named` are the pools that were named before any filter: whoever holds an address of one keeps it all the same.
    """

    reason: Reason
    text: str
    candidates: tuple[Candidate, ...] = ()
    named: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Done:
    """A release was applied: how many addresses it freed and unbound (0 and 0 when there was nothing to do)."""

    freed: int = 0
    unbound: int = 0


@dataclass(frozen=True)
class Reselect:
    """The selection was judged by another definition than the ledger's: read it again and select anew."""

    definition: int


Answer: TypeAlias = Granted | Refusal | Done | Reselect
