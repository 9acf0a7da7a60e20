"""Calls of the agent without the plugin's process: the same bytes on the same socket, as many at once as one likes."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.agents import CONFIGURATION, Answer, Sandbox

CHUNK_BYTES = 1 << 16


class LostError(Exception):
    """The connection ended without a whole answer: nobody knows what became of the call."""


class OpenCall:
    """A call that was sent and not answered yet; the plugin's request with a start stamp of now unless said."""

    def __init__(
        self,
        path: Path,
        command: str,
        sandbox: Sandbox,
        configuration: Mapping[str, Any] = CONFIGURATION,
        start: int | None = None,
    ) -> None:
        self._received = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(str(path))
            self._socket.sendall(_request(command, sandbox, configuration, time.time_ns() if start is None else start))
        except OSError as error:
            self._socket.close()
            raise LostError(str(error)) from error

    def fileno(self) -> int:
        """To wait for several."""
        return self._socket.fileno()

    def receive(self) -> Answer | None:
        """Read what has come, or wait for something; the answer once it is whole. LostError when it never will be."""
        try:
            chunk = self._socket.recv(CHUNK_BYTES)
        except ConnectionError:
            chunk = b""
        self._received += chunk
        head, whole, body = self._received.partition(b"\r\n\r\n")
        if whole and len(body) == int(_field(head, "Content-Length")):
            self.hang_up()
            return Answer(0 if head.split()[1] == b"200" else 1, body)
        if not chunk:
            self.hang_up()
            raise LostError("no whole answer came")
        return None

    def answer(self) -> Answer:
        """Wait for it."""
        while (found := self.receive()) is None:
            pass
        return found

    def hang_up(self) -> None:
        """Nobody waits for the answer any more."""
        self._socket.close()


def _request(command: str, sandbox: Sandbox, configuration: Mapping[str, Any], start: int) -> bytes:
    variables = {"CNI_COMMAND": command, **sandbox.environment, "SPIDERLEDGER_START": str(start)}
    body = b"".join(f"{name}={value}".encode() + b"\0" for name, value in variables.items()) + b"\0"
    body += json.dumps(configuration).encode()
    return b"POST /v1/cni HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def _field(head: bytes, name: str) -> str:
    fields = (line.partition(":") for line in head.decode("ascii").split("\r\n")[1:])
    return next(value for found, _, value in fields if found == name).strip()
