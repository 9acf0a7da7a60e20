"""How far behind a reader of the journal is, and whose open transaction keeps it there.

The fence is the oldest open transaction of the whole server: one that was forgotten in *another* database stops
every reader. Only a transaction that has a number does (PostgreSQL's `backend_xid`); one that merely looks at an
old snapshot (`backend_xmin`) does not, and is never named. Called by `projector.tail`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from sqlalchemy import BigInteger, Connection, Text, bindparam, select, text, tuple_

from ledger import dialects
from ledger.events import EPOCH_SHIFT
from ledger.journal import Mark, fence
from ledger.tables import event

LAG_WARNING_US: Final = 2_000_000
"""How old the oldest unread event may be before somebody is told."""

_oldest = (
    select(event.c.tx, event.c.recorded_at, dialects.clock().label("now"))
    .where(
        event.c.tx >= bindparam("tx"),
        tuple_(event.c.tx, event.c.position) > tuple_(bindparam("tx"), bindparam("position")),
    )
    .order_by(event.c.tx, event.c.position)
    .limit(1)
)
_session = text(
    "SELECT pid, datname AS database, usename AS role, application_name AS application, "
    "(extract(epoch FROM xact_start) * 1000000)::bigint AS since "
    "FROM pg_stat_activity WHERE backend_xid = CAST(:xid AS xid) "
    "UNION ALL SELECT NULL, database, owner, 'prepared transaction ' || gid, "
    "(extract(epoch FROM prepared) * 1000000)::bigint "
    "FROM pg_prepared_xacts WHERE transaction = CAST(:xid AS xid)"
).columns(database=Text(), role=Text(), application=Text(), since=BigInteger())


class Session(NamedTuple):
    """Who has the oldest open transaction of the server. `since` is not told to every role, and a prepared
    transaction has no process."""

    pid: int | None
    database: str
    role: str
    application: str
    since: int | None

    def __str__(self) -> str:
        process = "no process" if self.pid is None else f"process {self.pid}"
        return f"{process}, database {self.database}, role {self.role}, application {self.application!r}"


class Lag(NamedTuple):
    """The oldest unread event was recorded then, and is so old; the session that holds the fence, when one does."""

    recorded_at: int
    age_us: int
    session: Session | None

    def __str__(self) -> str:
        seconds = self.age_us / 1_000_000
        cause = f"held up by an open transaction: {self.session}" if self.session else "still reading"
        return f"the projections are {seconds:.1f} s behind the journal, {cause}"


def lag(connection: Connection, mark: Mark) -> Lag | None:
    """Whether a reader that stands at the mark is too far behind, and who is to blame for it."""
    before = fence(connection)
    oldest = connection.execute(_oldest, mark._asdict()).first()
    if oldest is None or oldest.now - oldest.recorded_at < LAG_WARNING_US:
        return None
    held_up = oldest.tx >= before and dialects.is_postgresql(connection)
    session = _holder(connection, before) if held_up else None
    return Lag(oldest.recorded_at, oldest.now - oldest.recorded_at, session)


def _holder(connection: Connection, before: int) -> Session | None:
    # A session knows its transaction by the lower 32 bits of the number.
    xid = before & ((1 << EPOCH_SHIFT) - 1) & 0xFFFF_FFFF
    row = connection.execute(_session, {"xid": str(xid)}).first()
    return None if row is None else Session._make(row)
