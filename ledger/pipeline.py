"""PostgreSQL's pipeline mode (libpq, "Pipeline Mode"): statements that travel together and are answered together.

psycopg's cursors take five times the processor time of the libpq calls below them, which for a lone ADD was more than
all that the ledger itself does. Here each statement is prepared once a connection, and only its parameters travel.
"""

from __future__ import annotations

import select
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import psycopg
from psycopg.adapt import Transformer
from psycopg.errors import InvalidSqlStatementName, error_from_result
from psycopg.pq import ConnStatus, ExecStatus, Format, TransactionStatus
from psycopg.pq.abc import PGresult

Row: TypeAlias = tuple[Any, ...]
Parameter: TypeAlias = str | int | None

_GOOD: Final = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)


class Pipeline:
    """One connection's. `send` waits for nothing, `results` for everything that was sent. Errors are psycopg's."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._libpq = connection.pgconn
        self._transformer = Transformer(connection)
        self._prepared: dict[str, bytes] = {}
        self._unsure: list[str] = []
        self._names = 0
        self._syncs = 0
        self._ready = select.poll()

    @property
    def idle(self) -> bool:
        """Whether no transaction is open, and nothing under way."""
        return self._libpq.transaction_status == TransactionStatus.IDLE

    @property
    def broken(self) -> bool:
        """Whether nothing can be said any more."""
        return self._libpq.status == ConnStatus.BAD

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Within, the connection is the pipeline's; before and after, anybody's."""
        self._libpq.enter_pipeline_mode()
        try:
            yield
        finally:
            if not self.broken:
                self._libpq.exit_pipeline_mode()

    def send(self, statement: str, parameters: Sequence[Parameter] = ()) -> None:
        """The next statement, with its parameters as text."""
        name = self._prepared.get(statement) or self._prepare(statement)
        values = [None if value is None else str(value).encode() for value in parameters]
        self._libpq.send_query_prepared(name, values, result_format=Format.BINARY)

    def _prepare(self, statement: str) -> bytes:
        """Under a name of its own each time: of one that travelled with a failure nobody knows whether it is taken."""
        self._names += 1
        name = self._prepared[statement] = b"ledger_%d" % self._names
        self._unsure.append(statement)
        self._libpq.send_prepare(name, statement.encode())
        return name

    def results(self) -> list[Row]:
        """The rows of all that was sent since the last time.

        Raises the first error once the server has answered the rest, and can be spoken to again, or is away.
        """
        self._libpq.pipeline_sync()
        self._syncs += 1
        try:
            answers = self._answers()
        except InvalidSqlStatementName:
            # Somebody has deallocated what was prepared: a pooler, between the server and us.
            self._prepared.clear()
            raise
        except BaseException:
            for statement in self._unsure:
                del self._prepared[statement]
            raise
        finally:
            self._unsure.clear()
        return [row for answer in answers for row in self._rows(answer)]

    def _answers(self) -> list[PGresult]:
        """All that come before the last Sync, without what comes before one that somebody did not wait for."""
        good: list[PGresult] = []
        error: psycopg.Error | None = None
        self._flush()
        while self._syncs:
            try:
                answer = self._answer()
            except psycopg.OperationalError as lost:
                # What the server said before it went says more.
                raise error or lost from None
            if answer is None:
                continue  # A statement ends.
            if answer.status == ExecStatus.PIPELINE_SYNC:
                self._syncs -= 1
                good, error = ([], None) if self._syncs else (good, error)
            elif answer.status in _GOOD:
                good.append(answer)
            elif answer.status != ExecStatus.PIPELINE_ABORTED:
                error = error or error_from_result(answer)
        if error:
            raise error
        return good

    def _answer(self) -> PGresult | None:
        while self._libpq.is_busy():
            self._wait(select.POLLIN)
        answer = self._libpq.get_result()
        if answer is None and self.broken:
            raise psycopg.OperationalError("the server has closed the connection")
        return answer

    def _flush(self) -> None:
        """A server whose answers nobody takes stops reading."""
        while self._libpq.flush():
            self._wait(select.POLLIN | select.POLLOUT)

    def _wait(self, events: int) -> None:
        self._ready.register(self._libpq.socket, events)
        if any(found & ~select.POLLOUT for _, found in self._ready.poll()):
            self._libpq.consume_input()

    def _rows(self, answer: PGresult) -> list[Row]:
        self._transformer.set_pgresult(answer, set_loaders=True, format=Format.BINARY)
        return self._transformer.load_rows(0, answer.ntuples, tuple)
