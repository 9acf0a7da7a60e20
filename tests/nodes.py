"""The agent in this very process: the product's own parts put together as `spiderledger agent` does.

Without its threads for folder and projector: a test takes many thousand steps, and says when a folder is looked at.

Calls come as the plugin sends them, each on a connection of its own.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cni.agent import CNI_PATH, OPERATOR_PATH, Agent
from cni.facts import Settings
from cni.folder import Folder
from cni.http import HttpRequest
from cni.named import NamedFolder
from cni.server import Connection, Server
from cni.spool import Spool
from ledger.store import Ledger
from ledger.store import Settings as LedgerSettings
from tests.conftest import Database

CLUSTER = "here"
ANSWER_SECONDS_MAX = 60.0  # Only reached when something is broken.
CHUNK = 1 << 16

Answer = tuple[int, dict[str, Any]]


class Node:
    """One node: its agent, its clock, and the spool into which its plugin writes. It outlives its agents."""

    def __init__(self, database: Database, name: str, cluster: Path, state: Path, clock: Callable[[], int]) -> None:
        self.name, self.clock = name, clock
        self.spool = Spool(state / "spool")
        # One for all its agents: to compile its statements is half of what it takes to start one.
        self._engine = database.engine(connections=2)
        self._cluster, self._state = cluster, state
        self._agent: Agent | None = None

    @property
    def up(self) -> bool:
        """Whether its agent runs."""
        return self._agent is not None

    def start(self, gc_age_seconds: float) -> None:
        """Start a new agent: a new process, as far as one can have that in here."""
        self.ledger = Ledger(self._engine, LedgerSettings(self._state / "witness", doubt_seconds=0))
        self.folder = NamedFolder(Folder(self._cluster), self.ledger)
        self.folder.refresh()
        self._agent = Agent(
            self.ledger,
            self.folder,
            Spool(self._state / "spool"),
            Settings(CLUSTER),
            node=self.name,
            many_nodes=False,
            gc_age_seconds=gc_age_seconds,
            clock=self.clock,
        )
        self._server = Server(self._state / "agent.sock", self._agent.received)
        self._agent.start(self._server)

    def stop(self) -> None:
        """SIGTERM."""
        if self._agent is not None:
            self._agent.stop()
            self._server.close()
            self._agent = None
            self._engine.dispose()

    def send(self, clients: ExitStack, body: bytes, path: str = CNI_PATH) -> socket.socket:
        """Send this from a client that ends with the stack; `answer` waits for what it is answered."""
        assert self._agent is not None
        ours, theirs = map(clients.enter_context, socket.socketpair())
        ours.settimeout(ANSWER_SECONDS_MAX)
        self._agent.received(Connection(theirs, time.monotonic()), HttpRequest("POST", path, body))
        return ours

    def order(self, order: Mapping[str, Any]) -> Answer:
        """What an operator asks for, and gets."""
        with ExitStack() as clients:
            return answer(self.send(clients, json.dumps(order).encode(), OPERATOR_PATH))


def body_of(variables: Mapping[str, str], configuration: Mapping[str, Any]) -> bytes:
    """A request as the plugin writes it."""
    said = b"".join(f"{name}={value}".encode() + b"\0" for name, value in variables.items())
    return said + b"\0" + json.dumps(configuration).encode()


def answer(client: socket.socket) -> Answer:
    """The HTTP status and the document."""
    received = b""
    while not _whole(received):
        received += client.recv(CHUNK)
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body) if body.startswith(b"{") else {}


def _whole(received: bytes) -> bool:
    head, separator, body = received.partition(b"\r\n\r\n")
    return bool(separator) and len(body) >= int(head.rpartition(b"Content-Length: ")[2].split()[0])
