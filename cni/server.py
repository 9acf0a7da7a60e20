"""The agent's socket: many clients, one thread that never waits for any of them.

It reads HTTP/1.1 requests, one a connection, hands complete ones over and notices who hangs up. It knows
nothing of what they say. Answers may be given from any thread: the usual small one goes out at once.
"""

from __future__ import annotations

import logging
import os
import resource
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cni.http import HttpRequest, MalformedRequestError, read_request, response

log = logging.getLogger(__name__)

BACKLOG: Final = 4_096
CONNECTIONS_MAX: Final = 4_096
DESCRIPTORS_KEPT: Final = 64
"""Of those that the process may have: clients get the others, and never what database and spool need."""
REQUEST_SECONDS_MAX: Final = 10.0
"""A client that has not sent its whole request by then is shown out."""
ANSWER_SECONDS_MAX: Final = 10.0
SWEEP_SECONDS: Final = 1.0
CHUNK_BYTES: Final = 1 << 16
SOCKET_MODE: Final = 0o600


class Connection:
    """One client. `gone` turns true when it hangs up: from then on nobody waits for its answer."""

    def __init__(self, sock: socket.socket, now: float) -> None:
        self.socket = sock
        self.gone = False
        self.answered = False
        self._received = bytearray()
        self._unsent = b""
        self.handed_over = False
        self.deadline = now + REQUEST_SECONDS_MAX

    def receive(self) -> HttpRequest | None:
        """Read what has come; the request once it is whole. MalformedRequestError when it never will be."""
        try:
            chunk = self.socket.recv(CHUNK_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            chunk = b""
        if not chunk:
            self.gone = True
            return None
        if self.handed_over:
            return None
        self._received += chunk
        request = read_request(self._received)
        self.handed_over = request is not None
        return request

    def send(self, data: bytes) -> bool:
        """Send what the client takes without waiting; whether that was all."""
        self._unsent = data
        self.answered = True
        self.deadline = time.monotonic() + ANSWER_SECONDS_MAX
        return self.flush()

    def flush(self) -> bool:
        """Send on; whether all is out, or nobody reads any more."""
        try:
            self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except BlockingIOError:
            return False
        except OSError:
            self.gone = True
            return True
        return not self._unsent


class Server:
    """See the module. `received` is called on the server's thread and must not wait."""

    def __init__(self, path: Path, received: Callable[[Connection, HttpRequest], None]) -> None:
        self._path = path
        self._received = received
        self._selector = selectors.DefaultSelector()
        self._connections: set[Connection] = set()
        self._finished: deque[tuple[Connection, bool]] = deque()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._stopping = False
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._connections_max = min(CONNECTIONS_MAX, max(allowed - DESCRIPTORS_KEPT, 1))
        self._listener = _listen(path)
        self._heeding = False
        self._exhausted = False
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)

    def start(self) -> None:
        """Take connections from now on."""
        self._thread.start()

    def answer(self, connection: Connection, status: int, body: bytes) -> None:
        """Answer and end the connection."""
        whole = connection.gone or connection.send(response(status, body))
        self._finished.append((connection, whole))
        self._wake()

    def stop_listening(self) -> None:
        """Take no more connections; those that are open are still answered."""
        self._path.unlink(missing_ok=True)
        self._stopping = True
        self._wake()

    def close(self) -> None:
        """End, once every client that is owed an answer has it or has had its time."""
        self.stop_listening()
        if self._thread.is_alive():
            self._thread.join(ANSWER_SECONDS_MAX)
        for descriptor in (self._wake_read, self._wake_write):
            os.close(descriptor)

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            return  # The pipe is full of wake-ups already.

    # The server's thread ---------------------------------------------------------------------

    def _run(self) -> None:
        swept = time.monotonic()
        self._heed_listener()
        while not (self._stopping and not self._connections):
            for key, mask in self._selector.select(SWEEP_SECONDS):
                self._ready(key, mask)
            self._end_finished()
            now = time.monotonic()
            if now - swept > SWEEP_SECONDS:
                self._sweep(now)
                swept = now
            self._heed_listener()
            if self._stopping:
                self._refuse_new()
        self._selector.close()

    def _ready(self, key: selectors.SelectorKey, mask: int) -> None:
        if key.fileobj is self._listener:
            self._accept()
        elif key.fileobj == self._wake_read:
            os.read(self._wake_read, CHUNK_BYTES)
        elif mask & selectors.EVENT_WRITE:
            if key.data.flush():
                self._end(key.data)
        else:
            self._read(key.data)

    def _accept(self) -> None:
        while len(self._connections) < self._connections_max:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                log.warning("no connection can be taken for a while: %s", error)
                self._exhausted = True
                return
            sock.setblocking(False)
            connection = Connection(sock, time.monotonic())
            self._connections.add(connection)
            self._selector.register(sock, selectors.EVENT_READ, connection)
            # What a plugin sends has usually come with the connection: no second look needed.
            self._read(connection)

    def _read(self, connection: Connection) -> None:
        try:
            request = connection.receive()
        except MalformedRequestError as error:
            connection.handed_over = True
            self.answer(connection, 400, f"{error}\n".encode())
            return
        if request is not None:
            self._received(connection, request)
        elif connection.gone:
            # Whoever is at work on its request sees `gone`; there is nothing more to read.
            self._end(connection)

    def _end_finished(self) -> None:
        while self._finished:
            connection, whole = self._finished.popleft()
            if whole:
                self._end(connection)
            elif connection in self._connections:
                self._selector.modify(connection.socket, selectors.EVENT_WRITE, connection)

    def _end(self, connection: Connection) -> None:
        if connection in self._connections:
            self._connections.discard(connection)
            self._selector.unregister(connection.socket)
            connection.socket.close()

    def _heed_listener(self) -> None:
        """Who knocks where there is no room waits in the kernel: it would wake this thread again and again."""
        room = len(self._connections) < self._connections_max and not (self._exhausted or self._stopping)
        if room and not self._heeding:
            self._selector.register(self._listener, selectors.EVENT_READ)
        elif self._heeding and not room:
            self._selector.unregister(self._listener)
        self._heeding = room

    def _refuse_new(self) -> None:
        self._listener.close()
        for connection in [each for each in self._connections if not each.handed_over]:
            self._end(connection)

    def _sweep(self, now: float) -> None:
        self._exhausted = False
        for connection in [each for each in self._connections if now > each.deadline]:
            if connection.answered or not connection.handed_over:
                self._end(connection)


def _listen(path: Path) -> socket.socket:
    """A socket for this user alone. One that nobody answers on any more is taken over; OSError when one does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.setblocking(False)
    _remove_stale(path)
    mask = os.umask(0o777 & ~SOCKET_MODE)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)
    listener.listen(BACKLOG)
    return listener


def _remove_stale(path: Path) -> None:
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise FileExistsError(f"another agent answers on {path}")
