"""A wire between clients and a PostgreSQL server that a test can cut.

Listens on a Unix socket in a folder of its own, as a server does; bytes go through unchanged.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import threading
from pathlib import Path

from tests.postgresql import Server

NAME = ".s.PGSQL.5432"
CHUNK_BYTES = 1 << 16


class Proxy:
    """One wire. Used as a context; nothing of it is left afterwards."""

    def __init__(self, server: Server) -> None:
        self._server = server.folder / NAME
        self.folder = Path(tempfile.mkdtemp(prefix="sl-wire-", dir="/tmp"))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)

    def __enter__(self) -> Proxy:
        self._listener.bind(str(self.folder / NAME))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        shutil.rmtree(self.folder)

    def url(self, database: str) -> str:
        """Where a database of the server is, through this wire."""
        return f"postgresql://owner@/{database}?host={self.folder}"

    def cut(self) -> None:
        """Every connection that is open now breaks; new ones go through."""
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self._server))
                with self._lock:
                    self._open |= {client, server}
                for ends in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(CHUNK_BYTES):
                target.sendall(chunk)
        # The other direction ends with this one; each closes what it has read from.
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._open.discard(source)
            source.close()
