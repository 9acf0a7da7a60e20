"""The rules of one batch: from requests and the rows that were read to answers, rows and events.

Pure: the clock and the transaction come with the images, random ids are handed in. What cannot be
decided on these rows is *unmet*: `ledger.store` reads again, further on, or waits for a row that
somebody else has locked, while it holds nothing.

Refusals are checked in a fixed order: superseded, address outside the pools, address taken, used out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, assert_never

from ledger.addresses import Ip, family, text
from ledger.canonical import canonical, composed
from ledger.claims import POD, Binding, Claim, Subject, both_families, claim_of, salted
from ledger.definition import Definition, Pool
from ledger.events import VERSION, Event, EventType, sealed
from ledger.images import UNBOUND, Address, Extent, Head, Images
from ledger.intervals import contains
from ledger.requests import (
    Acquire,
    Answer,
    Done,
    Free,
    Grant,
    Granted,
    Reason,
    Refusal,
    Refuse,
    Release,
    Request,
    Reselect,
    Want,
)
from ledger.supply import Choice, Supply

MICROSECOND = 1
NANOSECONDS = 1_000


class Unmet(Enum):
    """Why a request must be tried again."""

    LOCKED = "others have locked what it needs"
    STIRRED = "this batch itself freed what it needs"
    NEXT_PLACE = "its present pool is exhausted"


@dataclass(frozen=True)
class Attempt:
    """A request, how far each of its wants has come along its places, and how many it looks at now (`places_of`)."""

    request: Request
    places: tuple[int, ...] = ()
    reach: int = 1


@dataclass(frozen=True)
class Setback:
    """Why this attempt was not met; for a want, which and in which pool; for a claim or address, which row.

    `place` is where the want goes on, if that is further along.
    """

    why: Unmet
    want: int = 0
    pool: int | None = None
    place: int = 0
    claim: str | None = None
    ip: Ip | None = None


@dataclass
class Decision:
    """What to write, what to answer, and what to try again (both by the attempt's index)."""

    rows: list[Address] = field(default_factory=list)
    extents: list[Extent] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    subjects: dict[bytes, str] = field(default_factory=dict)
    answers: dict[int, Answer] = field(default_factory=dict)
    setbacks: dict[int, Setback] = field(default_factory=dict)


class Terms(NamedTuple):
    """What a claim is told besides the address, and its canonical text."""

    value: dict[str, Any]
    text: str


class RefusedError(Exception):
    """Inside `decide` only: gives one request up."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


class SetbackError(Exception):
    """Inside `decide` only: this request must be tried again."""

    def __init__(self, setback: Setback) -> None:
        super().__init__(setback.why.value)
        self.setback = setback


def places_of(want: Want, first: int, reach: int) -> list[tuple[int, bool]]:
    """Where a want is tried: each pool in order, then each again with its cooling addresses; none when all were.

    The cooling period yields last of all: it keeps traffic from reaching the wrong pod, which is worth more
    than the order of the list, but less than a pod that cannot start. One look goes never into both halves.
    """
    count = len(want.pools)
    end = count if first < count else 2 * count
    return [(want.pools[number % count], number >= count) for number in range(first, min(first + reach, end))]


def decide(
    attempts: Sequence[Attempt],
    images: Images,
    definition: Definition,
    salt: bytes,
    ids: Iterator[int],
    muted: frozenset[tuple[str, Reason]] = frozenset(),
) -> Decision:
    """Decide what can be decided. Claims that hold or held something come first: their own row is theirs."""
    draft = _Draft(images, definition, salt, ids, muted)
    known = {row.claim for row in images.own}
    order = sorted(range(len(attempts)), key=lambda index: not _concerns(attempts[index].request, known))
    for index in order:
        draft.attempt(index, attempts[index])
    draft.decision.extents = draft.supply.changed_extents()
    # In one order in every process: two that bring the same names then wait for each other, never in a circle.
    draft.decision.subjects = dict(sorted(draft.decision.subjects.items()))
    # What becomes free is written first, so that a claim's new row never meets its old one; then in key order.
    draft.decision.rows.sort(key=lambda row: (row.held, row.claim or "", row.ip))
    return draft.decision


def _concerns(request: Request, known: set[str | None]) -> bool:
    return not isinstance(request, Acquire) or any(want.key in known for want in request.wants)


class _Draft:
    """A decision in the making."""

    def __init__(
        self,
        images: Images,
        definition: Definition,
        salt: bytes,
        ids: Iterator[int],
        muted: frozenset[tuple[str, Reason]],
    ) -> None:
        self.images = images
        self.head: Head = images.head
        self.definition = definition
        self.salt = salt
        self.ids = ids
        self.muted = muted
        self.supply = Supply(images)
        self.decision = Decision()
        self.own: Mapping[str | None, Address] = {row.claim: row for row in images.own}
        self.seen: Mapping[str | None, Address] = {row.claim: row for row in images.seen}
        self.stirred: set[int] = set()
        self.together: set[str] = set()
        """The claims of the request at hand."""
        self.terms: dict[tuple[int, bool, tuple[tuple[str, str], ...]], Terms] = {}
        self.names: dict[Subject, tuple[bytes, str]] = {}

    # One request -----------------------------------------------------------------------------

    def attempt(self, index: int, attempt: Attempt) -> None:
        mark, rows, events = self.supply.mark(), len(self.decision.rows), len(self.decision.events)
        try:
            self.decision.answers[index] = self._answer(attempt)
            self.stirred.update(row.pool for row in self.decision.rows[rows:] if not row.held)
            return
        except SetbackError as error:
            self.decision.setbacks[index] = error.setback
        except RefusedError as error:
            self.decision.answers[index] = error.refusal
        self.supply.undo(mark)
        del self.decision.rows[rows:]
        del self.decision.events[events:]
        if index in self.decision.answers:
            self._refused(attempt.request, self.decision.answers[index])

    def _answer(self, attempt: Attempt) -> Answer:
        request = attempt.request
        match request:
            case Acquire():
                if request.definition != self.head.definition:
                    return Reselect(self.head.definition)
                grants = self._grants(attempt, request)
                self._subject(request.subject)
                return Granted(grants)
            case Release():
                return self._release(request)
            case Free():
                return self._free(request)
            case Refuse():
                return self._refuse(request)
            case _:
                assert_never(request)

    # Acquire ---------------------------------------------------------------------------------

    def _grants(self, attempt: Attempt, request: Acquire) -> tuple[Grant, ...]:
        """One for each want. What one holds or held no fellow may draw, and what one asks for none draws before it."""
        numbers = range(len(request.wants))
        for number in numbers:
            own = self.own.get(request.wants[number].key)
            if own is not None:
                self._unstirred(own, number)
            if own is not None and not own.held:
                self.supply.spend(own.ip)
        self.together = {want.key for want in request.wants}
        order = sorted(numbers, key=lambda number: request.wants[number].address is None)
        found = {number: self._want(attempt, request, number) for number in order}
        return tuple(found[number] for number in numbers)

    def _want(self, attempt: Attempt, request: Acquire, number: int) -> Grant:
        want = request.wants[number]
        key = want.key
        own = self.own.get(key)
        bound = request.binding if want.claim.interface == request.interface else None
        if own is None and key in self.seen:
            if bound is None or not _is_bound(self.seen[key], bound):
                raise SetbackError(Setback(Unmet.LOCKED, number, claim=key))
            # What a container has was its own when this was read, whatever whoever has locked the row makes of it.
            return _grant(want.claim, self.seen[key])
        if own is None:
            return self._allocate(request, want, bound, self._choose(attempt, want, number))
        if own.held:
            return self._keep(attempt, request, number, bound, own)
        if _suits(want, own):
            return self._allocate(request, want, bound, Choice(own.ip, own.pool, own, "own"))
        self._change(own, EventType.FORGOTTEN, request.actor, request.cause, claim=None, subject=None)
        return self._allocate(request, want, bound, self._choose(attempt, want, number))

    def _keep(self, attempt: Attempt, request: Acquire, number: int, bound: Binding | None, own: Address) -> Grant:
        """The claim holds an address: the same answer, another container for it, or a move."""
        want = request.wants[number]
        if bound is None or _is_bound(own, bound):
            return _grant(want.claim, own)
        self._refuse_superseded(own, bound)
        if own.pool in want.named and not (want.exact and want.address != own.ip):
            self._change(own, EventType.REBOUND, request.actor, request.cause, bound, request.subject)
            return _grant(want.claim, own)
        choice = self._choose(attempt, want, number)
        self._free_row(own, request.actor, request.cause, {}, self.head.now, moved=True)
        return self._allocate(request, want, bound, choice)

    def _choose(self, attempt: Attempt, want: Want, number: int) -> Choice:
        if want.address is not None:
            choice = self._asked(want, number, want.address)
            if choice is not None:
                return choice
        places = places_of(want, attempt.places[number], attempt.reach)
        if not places:
            raise RefusedError(_used_out(want))
        for pool, cooling in places:
            choice = self.supply.draw(pool, cooling=cooling)
            if choice is not None:
                return choice
            shortage = self._shortage(pool)
            if shortage is not Unmet.NEXT_PLACE:
                raise SetbackError(Setback(shortage, number, pool))
        raise SetbackError(Setback(Unmet.NEXT_PLACE, number, place=attempt.places[number] + len(places)))

    def _unstirred(self, row: Address, number: int = 0) -> None:
        """A row that a fellow of the batch has changed is not what was read any more: the next batch reads it anew."""
        if row.ip in self.supply.spent:
            raise SetbackError(Setback(Unmet.STIRRED, number))

    def _shortage(self, pool: int) -> Unmet:
        if pool in self.images.left:
            return Unmet.LOCKED
        return Unmet.STIRRED if pool in self.stirred else Unmet.NEXT_PLACE

    def _asked(self, want: Want, number: int, ip: Ip) -> Choice | None:
        """The address itself; None when it was only preferred and is not to be had."""
        pool = next((each for each in want.pools if contains(self.definition.by_id[each].effective, ip)), None)
        if pool is None:
            _refuse_exact(want, Reason.ADDRESS_OUTSIDE, f"{text(ip)} is in none of the IPPools of this request")
            return None
        row = self.images.asked.get(ip)
        if row is None and ip in self.images.seen_asked:
            raise SetbackError(Setback(Unmet.LOCKED, number, ip=ip))
        mine = row is not None and row.claim == want.key
        fellows = row is not None and not mine and row.claim in self.together
        if row is not None and not mine and not fellows:
            self._unstirred(row, number)
        if row is not None and (row.held or row.withheld or fellows):
            why = "is withheld" if row.withheld and not row.held else "is already allocated"
            _refuse_exact(want, Reason.ADDRESS_TAKEN, f"{text(ip)} {why}")
            return None
        if row is not None:
            self.supply.spend(ip)
            return Choice(ip, pool, row, "asked")
        fresh = self.supply.draw_asked(ip, pool)
        if fresh is None and ip in self.images.seen_fresh:
            raise SetbackError(Setback(Unmet.LOCKED, number, ip=ip))
        if fresh is None:
            _refuse_exact(want, Reason.ADDRESS_TAKEN, f"{text(ip)} is not to be handed out")
        return fresh

    def _allocate(self, request: Acquire, want: Want, bound: Binding | None, choice: Choice) -> Grant:
        terms = self._terms(choice.pool, want)
        row = choice.row or _never_used(choice)
        step = row.step + 1
        after = self._change(
            row,
            EventType.ALLOCATED,
            request.actor,
            request.cause,
            bound,
            request.subject,
            composed(choice=canonical(choice.how), result=terms.text),
            claim=want.key,
            pool=choice.pool,
            held=True,
            ready=0,
            holding=step,
            result=terms.text,
        )
        return Grant(want.claim, after.ip, terms.value)

    def _refuse(self, request: Refuse) -> Granted | Reselect:
        """Whoever holds an address keeps it; for anybody else the refusal stands."""
        if request.definition != self.head.definition:
            return Reselect(self.head.definition)
        grants = []
        for claim in both_families(request.claim):
            own = self.own.get(claim.key)
            if own is None and claim.key in self.seen:
                raise SetbackError(Setback(Unmet.LOCKED, claim=claim.key))
            if own is not None:
                self._unstirred(own)
            if own is not None and own.held:
                grants.append(self._stay(claim, own, request))
        if not grants:
            raise RefusedError(request.refusal)
        return Granted(tuple(grants))

    def _stay(self, claim: Claim, own: Address, request: Refuse) -> Grant:
        if not _is_bound(own, request.binding):
            if own.pool not in request.refusal.named:
                raise RefusedError(request.refusal)
            self._refuse_superseded(own, request.binding)
            self._change(own, EventType.REBOUND, "agent", "add", request.binding, request.subject)
            self._subject(request.subject)
        return _grant(claim, own)

    def _refuse_superseded(self, own: Address, bound: Binding) -> None:
        """An ADD that is older than the container which speaks for the claim now, on the same node's clock."""
        if own.container is not None and own.node == bound.node and bound.stamp < (own.stamp or 0):
            raise RefusedError(
                Refusal(Reason.SUPERSEDED, f"a newer container than {bound.container} already speaks for this pod")
            )

    # Release ---------------------------------------------------------------------------------

    def _release(self, request: Release) -> Done:
        mine = [row for row in self.images.own if self._in_span(row, request)]
        if any(row.claim not in self.own for row in self.images.seen if self._in_span(row, request)):
            raise SetbackError(Setback(Unmet.LOCKED, claim=self._first_locked(request)))
        for row in mine:
            self._unstirred(row)
        freed = unbound = 0
        ended: set[str] = set()
        for row in mine:
            if not self._speaks(row, request):
                continue
            claim = claim_of(row.claim or "")
            if _lives(claim, request):
                self._change(row, EventType.UNBOUND, request.actor, request.cause, data=_evidence(request), **UNBOUND)
                unbound += 1
                continue
            self._free_row(row, request.actor, request.cause, request.evidence, request.node_time)
            ended.add(claim.uid)
            freed += 1
        if request.sent_uid and request.sent_uid != request.alive:
            ended.add(request.sent_uid)
        for row in mine:
            if row.held and row.container is None and _ended(row, ended):
                self._free_row(row, request.actor, request.cause, request.evidence, request.node_time)
                freed += 1
        return Done(freed, unbound)

    def _in_span(self, row: Address, request: Release) -> bool:
        return row.claim is not None and request.span[0] <= row.claim < request.span[1]

    def _first_locked(self, request: Release) -> str | None:
        locked = (row.claim for row in self.images.seen if self._in_span(row, request) and row.claim not in self.own)
        return next(locked, None)

    def _speaks(self, row: Address, request: Release) -> bool:
        """Whether the row is bound to the container that is being deleted, and not by a later start of it."""
        if not row.held or row.container != request.container:
            return False
        if claim_of(row.claim or "").interface != request.interface:
            return False
        # A container lives on one node: both stamps are of its clock.
        return request.stamp >= (row.stamp or 0)

    def _free(self, request: Free) -> Done:
        row = self.images.asked.get(request.ip)
        if row is None and request.ip in self.images.seen_asked:
            raise SetbackError(Setback(Unmet.LOCKED, ip=request.ip))
        if row is None or not row.held or row.step != request.step or row.ip in self.supply.spent:
            return Done()
        self._free_row(row, request.actor, request.cause, request.evidence, self.head.now)
        return Done(freed=1)

    def _free_row(
        self, row: Address, actor: str, cause: str, evidence: Mapping[str, Any], node_time: int, *, moved: bool = False
    ) -> None:
        recorded_at = self._recorded_at(row)
        pool = self.definition.by_id.get(row.pool)
        ready = recorded_at + (pool.cooling_us if pool else 0)
        data: dict[str, Any] = {"ready": ready, "evidence": dict(evidence)}
        cells: dict[str, Any] = {"held": False, "ready": ready, "holding": None, **UNBOUND}
        if moved:
            data["moved"] = True
            cells |= {"claim": None, "subject": None}
        self._change(row, EventType.RELEASED, actor, cause, data=canonical(data), node_time=node_time, **cells)

    # Rows and events -------------------------------------------------------------------------

    def _recorded_at(self, row: Address) -> int:
        return max(self.head.now, row.at + MICROSECOND)

    def _change(
        self,
        row: Address,
        type_: EventType,
        actor: str,
        cause: str,
        bound: Binding | None = None,
        who: Subject | None = None,
        data: str = "{}",
        node_time: int | None = None,
        **cells: Any,
    ) -> Address:
        """One step of one address: its new row and its event."""
        at = self._recorded_at(row)
        if who is not None:
            cells["subject"] = self._names(who)[0]
        if bound is not None:
            cells |= {**bound._asdict(), "bound_at": at}
        after = row._replace(step=row.step + 1, at=at, **cells)
        speaker = after if bound is not None else row
        whose = after if type_ is EventType.ALLOCATED else row
        self.supply.spend(row.ip)
        self.decision.rows.append(after)
        self.decision.events.append(sealed(Event(
            tx=self.head.tx,
            position=0,
            id=next(self.ids),
            type=type_.value,
            version=VERSION,
            recorded_at=at,
            happened_at=at if node_time is None else min(max(node_time, row.bound_at or row.at), at),
            node_time=node_time,
            ip=row.ip,
            family=family(row.ip),
            step=after.step,
            holding=whose.holding,
            pool=after.pool,
            definition=self.head.definition,
            claim=None if whose.claim is None else salted(self.salt, whose.claim),
            interface=None if whose.claim is None else claim_of(whose.claim).interface,
            subject=after.subject if who is not None else row.subject,
            container=speaker.container,
            network=speaker.network,
            netns=speaker.netns,
            node=speaker.node,
            stamp=speaker.stamp,
            actor=actor,
            cause=cause,
            data=data,
        )))  # fmt: skip
        return after

    def _terms(self, pool: int, want: Want) -> Terms:
        """Fellows of a batch mostly have the same."""
        key = (pool, want.clean_gateway, want.routes)
        if key not in self.terms:
            value = _terms_of(self.definition.by_id[pool], want)
            self.terms[key] = Terms(value, canonical(value))
        return self.terms[key]

    def _names(self, subject: Subject) -> tuple[bytes, str]:
        """Under which id the ledger keeps them, and their document."""
        if subject not in self.names:
            document = subject.document
            self.names[subject] = salted(self.salt, document), document
        return self.names[subject]

    def _subject(self, subject: Subject) -> None:
        if self.decision.events:
            id_, document = self._names(subject)
            self.decision.subjects[id_] = document

    def _refused(self, request: Request, answer: Answer) -> None:
        """A refusal leaves a trace that changes nothing; equal ones of a claim are muted for a while."""
        if not isinstance(answer, Refusal) or not isinstance(request, Acquire | Refuse):
            return
        claim = request.claim if isinstance(request, Refuse) else request.wants[0].claim
        if (claim.key, answer.reason) in self.muted:
            return
        pools = sorted({pool for want in getattr(request, "wants", ()) for pool in want.pools})
        subject, document = self._names(request.subject)
        self.decision.subjects[subject] = document
        self.decision.events.append(sealed(Event(
            tx=self.head.tx,
            position=0,
            id=next(self.ids),
            type=EventType.REFUSED,
            version=VERSION,
            recorded_at=self.head.now,
            happened_at=self.head.now,
            family=claim.family,
            definition=self.head.definition,
            claim=salted(self.salt, claim.key),
            interface=claim.interface,
            subject=subject,
            **request.binding._asdict(),
            cause="add",
            data=canonical({
                "reason": answer.reason,
                "text": answer.text,
                "candidates": [[each.pool, each.passed_over] for each in answer.candidates],
                "pools": pools,
            }),
        )))  # fmt: skip


def _is_bound(row: Address, binding: Binding) -> bool:
    """Whether this very container speaks for the address already."""
    return row.held and (row.container, row.node) == (binding.container, binding.node)


def _suits(want: Want, own: Address) -> bool:
    """Whether a claim that holds nothing may have its last address back, cooling or not."""
    return not own.withheld and own.pool in want.pools and not (want.exact and want.address != own.ip)


def _never_used(choice: Choice) -> Address:
    return Address(choice.ip, choice.pool, False, False, 0, 0, 0, None, None, None, **UNBOUND, result="{}")


def _grant(claim: Claim, row: Address) -> Grant:
    return Grant(claim, row.ip, json.loads(row.result))


def _terms_of(pool: Pool, want: Want) -> dict[str, Any]:
    """What the claim is told besides the address: the pool's words, and the pod's own routes that fit its subnet."""
    spec = pool.object.spec
    routes = [[route.dst, route.gw] for route in spec.routes or ()]
    routes += [[dst, gw] for dst, gw in want.routes if pool.in_subnet(gw)]
    return {
        "pool": pool.name,
        "prefix": pool.subnet.prefix,
        "gateway": spec.gateway or "",
        "routes": routes,
        "vlan": 0,
        "mac": "",
        "clean_gateway": want.clean_gateway,
    }


def _refuse_exact(want: Want, reason: Reason, why: str) -> None:
    if want.exact:
        raise RefusedError(Refusal(reason, why, want.candidates))


def _used_out(want: Want) -> Refusal:
    names = " ".join(each.pool for each in want.candidates if not each.passed_over)
    who = f"IPv{want.claim.family} IP address to NIC {want.claim.interface} from IPPools [{names}]"
    return Refusal(Reason.USED_OUT, f"failed to allocate any {who}: all IP addresses used out", want.candidates)


def _evidence(request: Release) -> str:
    return canonical({"evidence": dict(request.evidence)})


def _lives(claim: Claim, request: Release) -> bool:
    """Whether the claim outlives this container: fixed, of a pod shown alive, or of a static pod (whose mirror proves
    nothing by its absence: the runtime calls such a pod by another uid than the API)."""
    if claim.fixed:
        return True
    if claim.kind != POD:
        return False
    static = request.sent_uid not in ("", claim.uid)
    return claim.uid == request.alive or (static and not request.alive)


def _ended(row: Address, ended: set[str]) -> bool:
    claim = claim_of(row.claim or "")
    return not claim.fixed and claim.uid in ended
