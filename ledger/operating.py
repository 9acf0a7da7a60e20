"""What an operator asks for by hand: an address given or taken back, a fenced ledger opened; each an event that says
who and why.

`perform` takes and gives plain JSON values, because on SQLite the only writer is the agent and the order
reaches it through its socket.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ledger.addresses import Ip, parse, text
from ledger.claims import Binding, Claim, Subject
from ledger.definition import Definition, Pool
from ledger.requests import Acquire, Answer, Candidate, Done, Free, Granted, Refusal, Reselect, Want
from ledger.store import Ledger

OPERATOR: Final = "Operator"
"""The kind of a claim that a person made. It has no uid: only a person ends it."""
NAME_MAX: Final = 253
"""Names become part of a claim's key, and that stands in an index, whose entries have a limit."""
TRIES_MAX: Final = 5


class OperatorError(ValueError):
    """The order cannot be carried out; the text says why."""


class _Order(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    operator: str = Field(min_length=1)
    reason: str = Field(min_length=1)


class Allocate(_Order):
    """Give this name an address of the pool."""

    name: str = Field(min_length=1, max_length=NAME_MAX, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    namespace: str = Field(default="", max_length=NAME_MAX, pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]*)?$")
    pool: str
    address: str | None = None


class Release(_Order):
    """Take this address from whoever holds it."""

    address: str


class Restore(_Order):
    """Open this epoch of a fenced ledger and accept what was lost. Without an epoch: say what that would be."""

    epoch: int | None = None


def perform(ledger: Ledger, order: object) -> dict[str, Any]:
    """Carry out `{"allocate": {…}}`, `{"release": {…}}` or `{"restore": {…}}`. OperatorError when it cannot be."""
    try:
        match order:
            case {"allocate": dict() as said}:
                return _allocate(ledger, Allocate.model_validate(said))
            case {"release": dict() as said}:
                return _release(ledger, Release.model_validate(said))
            case {"restore": dict() as said}:
                return _restore(ledger, Restore.model_validate(said))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise OperatorError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    raise OperatorError("an order is `allocate`, `release` or `restore`")


def _allocate(ledger: Ledger, order: Allocate) -> dict[str, Any]:
    for _ in range(TRIES_MAX):
        answer = ledger.act([_wanted(ledger.refresh(), order)])[0]
        if not isinstance(answer, Reselect):
            break
    if not isinstance(answer, Granted):
        raise OperatorError(_why(answer))
    grant = answer.grants[0]
    if order.address and grant.ip != _address(order.address):
        raise OperatorError(f"{order.name} holds {text(grant.ip)} already: release it first")
    return {"address": text(grant.ip), "pool": grant.terms["pool"], "name": order.name, "namespace": order.namespace}


def _wanted(definition: Definition, order: Allocate) -> Acquire:
    pool = definition.by_name.get(order.pool)
    if pool is None:
        raise OperatorError(f"there is no IPPool {order.pool}")
    claim = Claim("", OPERATOR, order.namespace, order.name, "", "", pool.family)
    address = _address(order.address) if order.address else None
    want = Want(
        claim, (pool.id,), frozenset({pool.id}), address, exact=address is not None, candidates=(_candidate(pool),)
    )
    nobody = Binding("", "", "", "", 0)
    # Of no interface: nothing is bound, as no container speaks for the claim.
    subject = Subject("", order.namespace, order.name, "", owner=OPERATOR)
    return Acquire((want,), "-", nobody, subject, definition.version, order.operator, order.reason)


def _candidate(pool: Pool) -> Candidate:
    return Candidate(pool.name)


def _release(ledger: Ledger, order: Release) -> dict[str, Any]:
    ip = _address(order.address)
    for _ in range(TRIES_MAX):
        row = ledger.held(ip)
        if row is None:
            raise OperatorError(f"nobody holds {order.address}")
        answer = ledger.act([Free(ip, row.step, order.operator, "operator", {"reason": order.reason})])[0]
        if isinstance(answer, Refusal):
            raise OperatorError(answer.text)
        if isinstance(answer, Done) and answer.freed:
            return {"address": text(ip), "claim": row.claim}
    raise OperatorError(f"{order.address} keeps changing hands; look again")


def _restore(ledger: Ledger, order: Restore) -> dict[str, Any]:
    loss = ledger.loss()
    if loss is None:
        raise OperatorError("the ledger is not fenced: there is nothing to restore")
    if order.epoch is not None and not ledger.restore(order.epoch, actor=order.operator, reason=order.reason):
        raise OperatorError("the ledger has changed since it was looked at; look again")
    return loss._asdict()


def _address(said: str) -> Ip:
    try:
        return parse(said)
    except ValueError as error:
        raise OperatorError(str(error)) from None


def _why(answer: Answer) -> str:
    return answer.text if isinstance(answer, Refusal) else "the pools' definition keeps changing; try again"
