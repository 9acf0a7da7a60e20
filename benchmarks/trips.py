"""Round trips to PostgreSQL of a lone ADD and DEL, counted at a proxy, and their time when the way there is longer."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

from benchmarks.agents import serving
from benchmarks.parts import HEADING, Place, milliseconds, place, pool
from benchmarks.rate import request

CALLS = 200
WARM_UP = 20
DELAY_SECONDS = 0.001
PORT_FILE = ".s.PGSQL.5432"
CHUNK = 1 << 16


class Proxy:
    """Between an agent and its server. A round trip begins when the agent speaks after the server has spoken."""

    def __init__(self, folder: Path, server: Path, delay: float) -> None:
        self.trips = 0
        self.folder = folder
        self._server = str(server / PORT_FILE)
        self._delay = delay
        folder.mkdir()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / PORT_FILE))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._server)
            last = [""]
            for name, source, target in (("agent", client, server), ("server", server, client)):
                threading.Thread(target=self._carry, args=(name, source, target, last), daemon=True).start()

    def _carry(self, name: str, source: socket.socket, target: socket.socket, last: list[str]) -> None:
        while data := source.recv(CHUNK):
            if name == "agent" and last[0] != "agent":
                self.trips += 1
            last[0] = name
            time.sleep(self._delay)
            target.sendall(data)


def run() -> None:
    """Measure and print."""
    with place() as at:
        server = at.postgresql()
        print(f"PostgreSQL behind a proxy, lone calls at the socket\n{'':28}{'':6}{'round trips':>14}{HEADING}")
        for name, delay in (("as it is", 0.0), ("1 ms longer each way", DELAY_SECONDS)):
            _measure(at, server.folder, name, delay)


def _measure(at: Place, server: Path, name: str, delay: float) -> None:
    proxy = Proxy(at.folder / f"proxy-{delay}", server, delay)
    cluster = at.cluster(f"trips-{delay}", pool("bench", "10.20.0.0/16", "10.20.0.2-10.20.255.254"))
    address = f"postgresql://owner@/postgres?host={proxy.folder}"
    with serving(at.folder / f"trips-{delay}", address, cluster) as environment:
        path = environment["SPIDERLEDGER_SOCKET"]
        for command in ("ADD", "DEL"):
            taken = []
            for number in range(-WARM_UP, CALLS):
                if number == 0:
                    before = proxy.trips
                seconds = call(path, command, f"trip{delay}-{number + WARM_UP}".replace("0.", "d"))
                if number >= 0:
                    taken.append(seconds)
            print(f"{name:28}{command:6}{(proxy.trips - before) / CALLS:14.2f}{milliseconds(taken)}")


def call(path: str, command: str, container: str) -> float:
    """One call at the socket, seconds."""
    start = time.perf_counter()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(request(command, container))
        answer = b""
        while data := client.recv(CHUNK):
            answer += data
    if not answer.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"{command} failed: {answer.decode()}")
    return time.perf_counter() - start
