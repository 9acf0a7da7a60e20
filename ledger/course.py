"""Where the requests of one act stand, round after round. Pure; `ledger.store` runs the rounds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ledger.addresses import Ip
from ledger.claims import CONTAINER, Span, both_families, exactly
from ledger.decide import Attempt, Decision, Setback, Unmet, places_of
from ledger.images import DEMANDS_MAX, Asked, Demand, Plan
from ledger.requests import Acquire, Answer, Free, Reason, Refusal, Refuse, Release, Request

EXTENTS_FIRST = 1
EXTENTS_AFTER_SETBACK = 64
FOR_EVER = 2**62
"""Later than any clock: a cooling address is ready by then."""


@dataclass(frozen=True)
class Pending:
    """A request that has no answer yet."""

    index: int
    attempt: Attempt
    setback: Setback | None = None


def begin(requests: Sequence[Request]) -> list[Pending]:
    """All requests at their first place."""
    return [Pending(index, Attempt(request, _first(request))) for index, request in enumerate(requests)]


def _first(request: Request) -> tuple[int, ...]:
    return (0,) * len(request.wants) if isinstance(request, Acquire) else ()


def subject_of(request: Request) -> str:
    """Whom a request is about: one batch carries at most one act for each."""
    match request:
        case Acquire():
            return _whose(request.wants[0].key)
        case Refuse():
            return _whose(request.claim.key)
        case Release():
            return _whose(request.span[0])
        case Free():
            return str(request.ip)


def _whose(key: str) -> str:
    """A pod goes by its name, whatever its uid; outside Kubernetes the container itself is the holder."""
    fields = key.split("|")
    return "|".join(fields[: 5 if fields[1] == CONTAINER else 4])


def batch_of(pending: Sequence[Pending], limit: int) -> tuple[list[Pending], list[Pending]]:
    """What goes into the next batch, and what waits: one act for a pod, and no more pools than a statement takes."""
    now: list[Pending] = []
    later: list[Pending] = []
    whose: set[str] = set()
    pools: set[int] = set()
    for each in pending:
        subject, wanted = subject_of(each.attempt.request), _pools(each.attempt)
        # One request that alone wants more pools than that goes alone.
        fits = not now or len(pools | wanted) <= DEMANDS_MAX
        if len(now) < limit and subject not in whose and fits:
            now.append(each)
            pools |= wanted
        else:
            later.append(each)
        whose.add(subject)
    return now, later


def _pools(attempt: Attempt) -> set[int]:
    return {where[0] for where in _places(attempt)}


def _places(attempt: Attempt) -> list[tuple[int, bool]]:
    if not isinstance(attempt.request, Acquire):
        return []
    wants = zip(attempt.request.wants, attempt.places, strict=True)
    return [where for want, place in wants for where in places_of(want, place, attempt.reach)]


def plan_of(batch: Sequence[Pending], since: dict[int, int]) -> Plan:
    """What this batch must read. `since` is the readiness below which a pool had no idle address lately."""
    spans: list[Span] = []
    asked: list[Asked] = []
    counts: dict[int, int] = {}
    cooling: set[int] = set()
    hard: set[int] = set()
    for each in batch:
        spans += _spans(each.attempt.request)
        asked += _asked(each.attempt.request)
        for pool, cools in _places(each.attempt):
            counts[pool] = counts.get(pool, 0) + 1
            cooling |= {pool} if cools else set()
            hard |= {pool} if each.setback and each.setback.why is not Unmet.NEXT_PLACE else set()
    demands = [
        Demand(
            pool,
            count,
            0 if pool in hard else since.get(pool, 0),
            FOR_EVER if pool in cooling else None,
            min(count, EXTENTS_AFTER_SETBACK) if pool in hard else EXTENTS_FIRST,
        )
        for pool, count in sorted(counts.items())
    ]
    return Plan(spans, demands, asked)


def _spans(request: Request) -> list[Span]:
    match request:
        case Acquire():
            return [exactly(want.key) for want in request.wants]
        case Release():
            return [request.span]
        case Refuse():
            return [exactly(claim.key) for claim in both_families(request.claim)]
        case Free():
            return []


def _asked(request: Request) -> list[Asked]:
    if isinstance(request, Free):
        return [Asked(request.ip, None)]
    if not isinstance(request, Acquire):
        return []
    return [Asked(want.address, pool) for want in request.wants if want.address for pool in want.pools]


def advance(batch: Sequence[Pending], decision: Decision) -> list[Pending]:
    """The requests of the batch that must be tried again, further along where pools are exhausted."""
    return [_further(each, decision.setbacks[place]) for place, each in enumerate(batch) if place in decision.setbacks]


def _further(pending: Pending, setback: Setback) -> Pending:
    attempt = pending.attempt
    if setback.why is Unmet.NEXT_PLACE:
        places = (*attempt.places[: setback.want], setback.place, *attempt.places[setback.want + 1 :])
        # A long list of exhausted pools is passed in few rounds.
        attempt = replace(attempt, places=places, reach=min(2 * attempt.reach, DEMANDS_MAX))
    return Pending(pending.index, attempt, setback)


def answered(batch: Sequence[Pending], decision: Decision) -> dict[int, Answer]:
    """The answers by the request's index in the act."""
    return {batch[place].index: answer for place, answer in decision.answers.items()}


def give_up(pending: Iterable[Pending], reason: Reason, text: str) -> dict[int, Answer]:
    """The same refusal for all that is left."""
    return {each.index: Refusal(reason, text) for each in pending}


def locked_row(pending: Pending) -> tuple[int | None, str | None, Ip | None] | None:
    """The pool, claim or address whose row somebody else has, when that is why it was not met."""
    setback = pending.setback
    if setback is None or setback.why is not Unmet.LOCKED:
        return None
    return setback.pool, setback.claim, setback.ip
