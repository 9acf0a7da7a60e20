"""On SQLite exactly one process writes: whoever holds the lock beside the file.

The lock is the kernel's and goes with the process, however that ends.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ledger.database import Database


class AnotherWriterError(Exception):
    """Another process writes to this ledger."""


class WriterLock:
    """Held from `take` until `release`, or the end of the process."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, database: Database) -> WriterLock:
        """The lock of a SQLite ledger; PostgreSQL needs none. AnotherWriterError when somebody has it."""
        if database.file is None:
            return cls(None)
        path = lock_path(database.file)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise AnotherWriterError(f"another process writes to {database.file} (it holds {path})") from None
        return cls(descriptor)

    def release(self) -> None:
        """Let others write."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def lock_path(file: Path) -> Path:
    """Beside the database, so that whoever names the file differently still meets the same lock."""
    real = file.resolve()
    return real.with_name(real.name + ".lock")
