"""Engines for the two databases. Called once per process by whoever composes it; nothing else opens a connection."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError

from ledger.dialects import (
    CONNECT_TIMEOUT_S,
    TCP_USER_TIMEOUT_MS,
    on_connect_postgresql,
    on_connect_sqlite,
)

APPLICATION = "spiderledger"


@dataclass(frozen=True)
class Database:
    """Where the ledger is: what `spiderledger` hands to every verb."""

    address: str
    state: Path

    @property
    def file(self) -> Path | None:
        """The SQLite file, if it is one."""
        url = database_url(self.address)
        return Path(str(url.database)).absolute() if url.get_backend_name() == "sqlite" else None

    def open(self, *, writes: bool = False, connections: int = 2) -> Engine:
        """An engine that connects when first used."""
        return open_engine(self.address, writes=writes, connections=connections)


class DatabaseAddressError(ValueError):
    """The database's address cannot be used; the text says why, without the secret in it."""


def database_url(address: str) -> URL:
    """`postgresql://…` or `sqlite:///PATH`; a bare path is a SQLite file. DatabaseAddressError for anything else."""
    if "://" not in address and "@" in address:
        # Somebody's password would become a file's name.
        raise DatabaseAddressError("the database address has an @ and no postgresql:// before it")
    if "://" not in address:
        address = f"sqlite:///{address}"
    try:
        url = make_url(address)
    except (ArgumentError, ValueError):
        raise DatabaseAddressError("the database address is not a URL (postgresql://… or sqlite:///PATH)") from None
    if url.get_backend_name() == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
        return url
    raise DatabaseAddressError(f"{url.get_backend_name()} is not PostgreSQL, nor SQLite in a file")


def open_engine(address: str, *, writes: bool = True, connections: int = 2) -> Engine:
    """An engine that connects when first used. On SQLite the one that writes has exactly one connection."""
    url = database_url(address)
    if url.get_backend_name() == "sqlite":
        return _sqlite(url, writes=writes, connections=connections)
    timeouts = {"connect_timeout": CONNECT_TIMEOUT_S, "tcp_user_timeout": TCP_USER_TIMEOUT_MS}
    engine = create_engine(
        url,
        isolation_level="READ COMMITTED",
        pool_size=connections,
        max_overflow=0,
        # psycopg would deallocate at every rollback what it has prepared, and with it what `ledger.pipeline` has.
        connect_args={"application_name": APPLICATION, "prepare_threshold": None, **timeouts},
    )
    on_connect_postgresql(engine)
    return engine


def _sqlite(url: URL, *, writes: bool, connections: int) -> Engine:
    path = Path(str(url.database)).absolute()
    options: dict[str, Any] = {"check_same_thread": False}
    if writes:
        connections = 1
        _create_private(path)
    engine = create_engine(
        URL.create("sqlite", database=str(path)), pool_size=connections, max_overflow=0, connect_args=options
    )
    on_connect_sqlite(engine, lambda: file_identity(path), now_us, writes=writes)
    return engine


def _create_private(path: Path) -> None:
    """Names of people's pods stand in it: nobody else may read the file (WAL and SHM inherit its mode)."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise DatabaseAddressError(f"the ledger's file {path}: {error.strerror}") from error


def file_identity(path: Path) -> str:
    """Which file lies at this path: a restored one is another."""
    try:
        status = path.stat()
    except OSError:
        return "gone"
    return f"{status.st_dev}:{status.st_ino}"


def now_us() -> int:
    """The writer's clock, microseconds since 1970 UTC."""
    return time.time_ns() // 1000
