"""Waiting for others while holding nothing: for a locked row, for old transactions; and what driver errors mean."""

from __future__ import annotations

import time
from typing import Any, Final

from sqlalchemy import Connection, Select, bindparam, cast, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.types import BigInteger, Text

from ledger import dialects
from ledger.addresses import Ip
from ledger.tables import address, extent, idle

CONTENDED_CONSTRAINTS: Final = ("one_address_per_claim", "one_row_per_address", "address_step_follows", "extent_key")
CONTENDED_STATES: Final = ("55P03", "40001", "40P01", "26000")
"""Lock not available, serialization failure, deadlock detected, and what we prepared somebody has deallocated."""
AWAY_STATES: Final = ("08", "57P", "53300", "25P03", "25006", "55000")
"""Connection exceptions, shutdown and crash recovery, too many connections, our own idle timeout; and a standby that is
not promoted yet."""
AWAY_SQLITE: Final = (
    "unable to open", "disk I/O", "is locked", "is full", "readonly", "malformed", "not a database", "no such table",
)  # fmt: skip
"""A file that was taken away leaves an empty one to whoever opens it: it has no tables."""


def wait(connection: Connection, pool: int | None, claim: str | None, ip: Ip | None) -> None:
    """Wait until whoever has the row lets go, or the lock timeout passes; then hold nothing.

    The lock ends with its statement, on the server. In a transaction that we had to end, each of many who wait would
    keep the row from all others, and from whoever looks again meanwhile, until its own process had its turn.
    """
    each_alone = connection.execution_options(isolation_level="AUTOCOMMIT")
    for query in _rows(pool, claim, ip):
        found = each_alone.execute(query).first()
        if found is not None:
            each_alone.execute(_lock(found))
            return


def _rows(pool: int | None, claim: str | None, ip: Ip | None) -> list[Select[Any]]:
    row = select(address.c.ip)
    around = select(extent.c.pool, extent.c.high)
    if claim is not None:
        return [row.where(address.c.claim == claim)]
    if ip is not None:
        return [row.where(address.c.ip == ip), around.where(extent.c.low <= ip, extent.c.high >= ip)]
    idlest = row.where(address.c.pool == pool, idle).order_by(address.c.ready).limit(1)
    # One that cools comes last: nobody needs to have locked it, and then there would be nothing to wait for.
    return [
        idlest.where(address.c.ready <= dialects.clock()),
        around.where(extent.c.pool == pool, extent.c.low <= extent.c.high).order_by(extent.c.high).limit(1),
        idlest,
    ]


def _lock(found: Any) -> Select[Any]:
    if "high" in found._mapping:
        mine = (extent.c.pool == found.pool, extent.c.high == found.high)
        return select(extent.c.high).where(*mine).with_for_update()
    return select(address.c.ip).where(address.c.ip == found.ip).with_for_update()


def settle(connection: Connection, deadline: float, pause: float) -> bool:
    """Whether every transaction that was open when this was called has ended before the deadline (PostgreSQL)."""
    current = cast(cast(func.pg_current_xact_id(), Text), BigInteger)
    oldest = cast(cast(func.pg_snapshot_xmin(func.pg_current_snapshot()), Text), BigInteger)
    with connection.begin():
        mine = int(connection.execute(select(current)).scalar_one())
    while True:
        with connection.begin():
            if connection.execute(select(oldest > bindparam("mine", mine))).scalar_one():
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)


def contended(error: Exception) -> bool:
    """Whether somebody else was in the way: nothing has happened, and trying again can succeed."""
    said = _of_driver(error)
    state = getattr(said, "sqlstate", None)
    return state in CONTENDED_STATES or any(name in str(said) for name in CONTENDED_CONSTRAINTS)


def away(error: Exception) -> bool:
    """Whether the database itself is not to be had."""
    said = _of_driver(error)
    if type(said).__module__.startswith("sqlite3"):
        return any(words in str(said) for words in AWAY_SQLITE)
    state = getattr(said, "sqlstate", None)
    # Without a state psycopg had no server to ask.
    return state is None or state.startswith(AWAY_STATES)


def first_line(error: Exception) -> str:
    """What happened, without the statement and its parameters: they may hold people's names."""
    return str(_of_driver(error)).strip().partition("\n")[0]


def _of_driver(error: Exception) -> BaseException:
    """The driver's own error, whether or not it came through SQLAlchemy."""
    return error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
