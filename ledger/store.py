"""The ledger: requests in batches in, answers out, every act and its event in one transaction.

A `Ledger` belongs to one process; any number of them work on one PostgreSQL, exactly one on a SQLite
file. `act` is called by one thread at a time (the one that commits); the other methods by any.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import psycopg
from sqlalchemy import Engine, select
from sqlalchemy.exc import DBAPIError

from ledger import dialects, waiting
from ledger.addresses import Family, Ip
from ledger.admission import AdmissionRefused
from ledger.claims import Claim, Subject, subject_in
from ledger.course import (
    Pending,
    advance,
    answered,
    batch_of,
    begin,
    give_up,
    locked_row,
    plan_of,
)
from ledger.decide import Decision, decide
from ledger.definition import Definition
from ledger.definitions import Defined, define, load
from ledger.driver import transaction
from ledger.events import Event
from ledger.images import Address, Head, Images
from ledger.reading import read, read_head
from ledger.redefine import Change
from ledger.requests import Acquire, Answer, Reason, Refusal, Refuse, Request
from ledger.schema import SchemaError, check_schema
from ledger.standing import Standing, standing
from ledger.tables import address, ledger, subject
from ledger.transitions import Loss, ObjectName, doubt, fence, loss, name_objects, random_ids, restore, trust
from ledger.witness import WitnessFile
from ledger.writing import write

BATCH_MAX: Final = 256
ROUNDS_MAX: Final = 200
"""Batches that one act may take before what is left is told to try again."""
ACT_SECONDS_MAX: Final = 0.9
"""How long an act waits for rows that others have locked."""
SETTLE_POLL_SECONDS: Final = 0.01
REFUSAL_INTERVAL_SECONDS: Final = 60.0
REFUSALS_REMEMBERED_MAX: Final = 10_000
DOUBT_SECONDS: Final = 15.0
LOOK_SECONDS: Final = 5.0
"""How often an agent looks at its ledger when nobody calls; more often where the doubt is short."""
BOTH_FAMILIES: Final[frozenset[Family]] = frozenset((4, 6))

Result = TypeVar("Result")


class LedgerAwayError(Exception):
    """The database does not answer. What was in flight has happened or not; asking again tells."""


class _ContendedError(LedgerAwayError):
    """A constraint, the trigger or the lock timeout stopped a transaction; nothing of it happened."""


@dataclass(frozen=True)
class Settings:
    """What an agent may set. `doubt_seconds` None: the default, and none for SQLite, where no other agent can know."""

    witness: Path | None = None
    doubt_seconds: float | None = None
    families: frozenset[Family] = BOTH_FAMILIES


class Ledger:
    """See the module. Its engine, and with it every connection, is handed in and belongs to whoever made it."""

    def __init__(self, engine: Engine, settings: Settings = Settings()) -> None:
        self._engine = engine
        self._settings = settings
        self._witness = WitnessFile(settings.witness)
        self._definition = Definition(-1)
        self.epoch = 0
        """In which life of the database the definition was read."""
        self._salt = b""
        self._settled = False
        self._fits = False
        self._since: dict[int, int] = {}
        self._refused: dict[tuple[str, Reason], float] = {}
        default = DOUBT_SECONDS if dialects.is_postgresql(engine) else 0.0
        seconds = default if settings.doubt_seconds is None else settings.doubt_seconds
        self._doubt_us = int(seconds * 1_000_000) if dialects.is_postgresql(engine) else 0

    # Acting ----------------------------------------------------------------------------------

    def act(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer every request, in order. What is granted or done is durable when this returns.

        Raises LedgerAwayError when the database does not answer: then nobody knows what happened.
        """
        deadline = time.monotonic() + ACT_SECONDS_MAX
        answers: dict[int, Answer] = {}
        pending = begin(requests)
        if not self._guarded(lambda: self._settle(deadline)):
            answers |= give_up(pending, Reason.BUSY, "an act from before is still in flight; try again")
            pending = []
        for _ in range(ROUNDS_MAX):
            if not pending:
                break
            batch, later = batch_of(pending, BATCH_MAX)
            again, found = self._round(batch, deadline)
            answers |= found
            pending = [*again, *later]
            if time.monotonic() > deadline and again:
                break
        answers |= give_up(pending, Reason.BUSY, "others hold what this needs; try again")
        return [answers[index] for index in range(len(requests))]

    def _round(self, batch: list[Pending], deadline: float) -> tuple[list[Pending], dict[int, Answer]]:
        try:
            return self._guarded(lambda: self._batch(batch))
        except _ContendedError:
            if len(batch) > 1:
                return self._one_by_one(batch, deadline)
            return batch, {}

    def _one_by_one(self, batch: list[Pending], deadline: float) -> tuple[list[Pending], dict[int, Answer]]:
        again: list[Pending] = []
        answers: dict[int, Answer] = {}
        for place, each in enumerate(batch):
            if time.monotonic() > deadline:
                return [*again, *batch[place:]], answers
            more, found = self._round([each], deadline)
            again += more
            answers |= found
        return again, answers

    def _batch(self, batch: list[Pending]) -> tuple[list[Pending], dict[int, Answer]]:
        """One transaction, then, holding nothing, the wait for one row that others have locked."""
        images, decision = self._transact(batch)
        if decision is None:
            return self._stand(images.head, batch)
        again = advance(batch, decision)
        locked = next((row for row in map(locked_row, again) if row is not None), None)
        if locked is not None:
            self._wait(*locked)
        return again, answered(batch, decision)

    def _wait(self, pool: int | None, claim: str | None, ip: Ip | None) -> None:
        """Not to be let in is no fault of what the batch has done before. On SQLite nobody else has locks."""
        if not dialects.is_postgresql(self._engine):
            return
        try:
            with self._engine.connect() as connection:
                waiting.wait(connection, pool, claim, ip)
        except DBAPIError as error:
            if not waiting.contended(error):
                raise

    def _transact(self, batch: list[Pending]) -> tuple[Images, Decision | None]:
        """Read images, decide, write images. No decision where the ledger may not be acted on as we know it."""
        definition = self._definition  # Once: another thread may replace it meanwhile.
        with transaction(self._engine) as own:
            images = read(own, plan_of(batch, self._since), self._witness.latest)
            known = images.head.definition == definition.version
            if not known or standing(images.head, doubt_us=self._doubt_us) is not Standing.OPEN:
                return images, None
            decision = self._decide(batch, images, definition)
            if decision.events:
                write(
                    own,
                    events=decision.events,
                    rows=decision.rows,
                    extents=decision.extents,
                    subjects=decision.subjects,
                )
                own.commit()
        self._committed(batch, images, decision)
        return images, decision

    def _decide(self, batch: list[Pending], images: Images, definition: Definition) -> Decision:
        now = time.monotonic()
        muted = frozenset(key for key, until in self._refused.items() if until > now)
        attempts = [each.attempt for each in batch]
        return decide(attempts, images, definition, self._salt, random_ids(), muted)

    def _committed(self, batch: list[Pending], images: Images, decision: Decision) -> None:
        self._saw(decision.events[-1] if decision.events else None)
        for pool, rows in images.idle.items():
            # Below the readiest row we saw nothing is idle any more, until a batch comes up short and looks again.
            self._since[pool] = rows[0].ready if rows else 0
        for place, answer in decision.answers.items():
            if isinstance(answer, Refusal):
                self._remember(batch[place].attempt.request, answer.reason)

    def _saw(self, event: Event | None) -> None:
        if event is not None:
            self._witness.saw(event)

    def _remember(self, request: Request, reason: Reason) -> None:
        """Equal refusals of one claim leave one trace per interval."""
        if len(self._refused) >= REFUSALS_REMEMBERED_MAX:
            self._refused.clear()
        if isinstance(request, Acquire | Refuse):
            claim = request.claim if isinstance(request, Refuse) else request.wants[0].claim
            now = time.monotonic()
            if self._refused.get((claim.key, reason), now) <= now:
                self._refused[claim.key, reason] = now + REFUSAL_INTERVAL_SECONDS

    # Standing --------------------------------------------------------------------------------

    def _stand(self, head: Head, batch: list[Pending]) -> tuple[list[Pending], dict[int, Answer]]:
        """Record what must be recorded; what can be acted on afterwards comes again."""
        verdict = standing(head, doubt_us=self._doubt_us)
        if verdict is Standing.OPEN:
            self._refresh()
            return batch, {}
        if self._recorded(verdict, head):
            return batch, {}
        refusal = self._closed(verdict, head)
        return [], give_up(batch, refusal.reason, refusal.text)

    def _recorded(self, verdict: Standing, head: Head) -> bool:
        """Whether there was something to record. Another agent may have recorded something else first: look again."""
        match verdict:
            case Standing.NEW | Standing.TRUST:
                trust(self._engine, head)
            case Standing.LOST:
                assert self._witness.latest is not None
                fence(self._engine, head, self._witness.latest)
            case _:
                return False
        return True

    def _closed(self, verdict: Standing, head: Head) -> Refusal:
        """Why nothing may be done now; the first agent that doubts records it."""
        if verdict is Standing.FENCED:
            return Refusal(Reason.FENCED, _FENCED_TEXT.format(head.fenced))
        if verdict is Standing.DOUBT:
            doubt(self._engine, head, head.now + self._doubt_us)
        return Refusal(Reason.DOUBT, _DOUBT_TEXT)

    @property
    def look_seconds(self) -> float:
        """How long nobody may call before `look`: an agent that knows better must be heard before a doubt is over."""
        return min(LOOK_SECONDS, self._doubt_us / 3_000_000 or LOOK_SECONDS)

    def look(self) -> Refusal | None:
        """Look for the witness although there is nothing to do. Why the ledger may not be acted on, if it may not."""
        return self._guarded(self._not_open)

    def loss(self) -> Loss | None:
        """What `restore` would accept; None while the ledger is not fenced."""
        return self._guarded(self._loss)

    def _loss(self) -> Loss | None:
        self._not_open()
        with self._engine.connect() as connection:
            return loss(connection, self._witness.latest)

    def restore(self, epoch: int, *, actor: str, reason: str) -> bool:
        """Open the epoch that `loss` named, and accept that loss. False when the ledger is not as it was then."""
        return self._guarded(lambda: restore(self._engine, epoch, self._witness.latest, actor=actor, reason=reason))

    def _settle(self, deadline: float) -> bool:
        """After a start or a lost connection: wait until whatever was still in flight then has ended."""
        if self._settled:
            return True
        self._check_schema()
        with self._engine.connect() as connection:
            if dialects.is_postgresql(connection) and not waiting.settle(connection, deadline, SETTLE_POLL_SECONDS):
                return False
        self._settled = True
        return True

    def _check_schema(self) -> None:
        if not self._fits:
            try:
                check_schema(self._engine)
            except SchemaError as error:
                raise LedgerAwayError(str(error)) from error
            self._fits = True

    # Definitions -----------------------------------------------------------------------------

    def definition(self) -> Definition:
        """What pools and reservations say, as this process last read it; read now if it never did."""
        if self._definition.version < 0:
            self._guarded(self._refresh)
        return self._definition

    def refresh(self) -> Definition:
        """Read the definition again."""
        self._guarded(self._refresh)
        return self._definition

    def _refresh(self) -> None:
        self._check_schema()
        with self._engine.connect() as connection:
            salt, self.epoch = connection.execute(select(ledger.c.salt, ledger.c.epoch)).one()
            self._salt = bytes(salt)
            self._definition = load(connection)
        self._since.clear()

    def define(self, change: Change, *, actor: str, cause: str) -> Defined | AdmissionRefused | Refusal:
        """Make one change of a pool or reservation; StillHeldError for a retirement that comes too early."""
        return self._guarded(lambda: self._define(change, actor, cause))

    def _define(self, change: Change, actor: str, cause: str) -> Defined | AdmissionRefused | Refusal:
        closed = self._not_open()
        if closed is not None:
            return closed
        outcome = define(
            self._engine,
            change,
            ids=random_ids(),
            salt=self._salt,
            families=self._settings.families,
            actor=actor,
            cause=cause,
        )
        if isinstance(outcome, Defined):
            self._saw(outcome.event)
            self._definition = outcome.definition
            self._since.clear()
        return outcome

    def _not_open(self) -> Refusal | None:
        """Why the ledger may not be acted on, after what can be recorded about it has been."""
        self._check_schema()
        for _ in Standing:
            with transaction(self._engine) as own:
                head = read_head(own, self._witness.latest)
            verdict = standing(head, doubt_us=self._doubt_us)
            if verdict is Standing.OPEN:
                if head.definition != self._definition.version:
                    self._refresh()
                return None
            if not self._recorded(verdict, head):
                return self._closed(verdict, head)
        return Refusal(Reason.BUSY, "the ledger's standing keeps changing; try again")

    # Objects without a uid -------------------------------------------------------------------

    def name_objects(self, present: Collection[ObjectName]) -> dict[ObjectName, str]:
        """The uids of objects that brought none: new ones get theirs, those not present any more lose it.

        LedgerAwayError also while the ledger may not be acted on.
        """
        return self._guarded(lambda: self._name_objects(set(present)))

    def _name_objects(self, present: set[ObjectName]) -> dict[ObjectName, str]:
        closed = self._not_open()
        if closed is not None:
            raise LedgerAwayError(closed.text)
        names, event = name_objects(self._engine, present)
        self._saw(event)
        return names

    # Reading ---------------------------------------------------------------------------------

    def held_by(self, claims: Sequence[Claim]) -> list[Address]:
        """The addresses that these claims hold now."""
        keys = [claim.key for claim in claims]
        return self._addresses(address.c.claim.in_(keys))

    def bound_on(self, node: str, network: str, seconds: float) -> list[Address]:
        """The addresses whose containers on this node and network have spoken for them for longer than this.

        By the clock that stamped the binding, the database's: a node's may be hours away from it.
        """
        old = address.c.bound_at < dialects.clock() - int(seconds * 1_000_000)
        return self._addresses((address.c.node == node) & (address.c.network == network) & old)

    def subjects(self, rows: Sequence[Address]) -> dict[bytes, Subject]:
        """The names behind these rows by their ids, as far as they were not removed."""
        ids = [bytes(row.subject) for row in rows if row.subject is not None]
        query = select(subject.c.id, subject.c.document).where(subject.c.id.in_(ids), subject.c.document.is_not(None))

        def answer() -> dict[bytes, Subject]:
            with self._engine.connect() as connection:
                return {bytes(row.id): subject_in(row.document) for row in connection.execute(query)}

        return self._guarded(answer)

    def held(self, ip: int) -> Address | None:
        """Who holds this address now."""
        return next(iter(self._addresses(address.c.ip == ip)), None)

    def _addresses(self, which: object) -> list[Address]:
        query = select(*(address.c[name] for name in Address._fields)).where(which, address.c.held)  # type: ignore[arg-type]

        def answer() -> list[Address]:
            with self._engine.connect() as connection:
                return [Address._make(row) for row in connection.execute(query.order_by(address.c.ip))]

        return self._guarded(answer)

    # Faults of the database ------------------------------------------------------------------

    def _guarded(self, work: Callable[[], Result]) -> Result:
        """Driver errors in the ledger's own words."""
        try:
            return work()
        except (DBAPIError, psycopg.Error, sqlite3.Error) as error:  # The hot path's errors are the driver's own.
            if waiting.contended(error):
                raise _ContendedError(waiting.first_line(error)) from error
            if waiting.away(error) or getattr(error, "connection_invalidated", False):
                self._settled = False
                self._engine.dispose()
                raise LedgerAwayError(waiting.first_line(error)) from error
            raise


_DOUBT_TEXT = "the database server was restarted or replaced; the ledger waits for its agents to confirm it: try again"
_FENCED_TEXT = "the ledger is fenced: {}; run `spiderledger restore`"
