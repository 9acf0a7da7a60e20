"""Allocations per second out of one hot pool: through the ledger's interface and through the socket, beside pgbench."""

from __future__ import annotations

import multiprocessing
import re
import selectors
import socket
import subprocess
import time
from itertools import count
from pathlib import Path

from benchmarks.agents import serving
from benchmarks.parts import NETWORK, configuration, place, pool
from cni.controller import FolderController
from cni.folder import Folder
from cni.named import NamedFolder
from ledger.claims import CONTAINER, Binding, Claim, Subject
from ledger.database import open_engine
from ledger.requests import Acquire, Granted, Want
from ledger.schema import migrate
from ledger.store import Ledger, Settings
from spiderledger import collect_rarely
from tests.postgresql import Server, binaries

SECONDS = 3.0
WARM = 20
"""Acts before the clock starts: a new connection plans its statements first."""
IN_FLIGHT = (1, 8, 64, 1_024)
PROCESSES = (1, 4, 8)
PGBENCH_CLIENTS = 32
LONE = (8, 32)
HOT = pool("hot", "10.64.0.0/10", "10.64.0.2-10.127.255.254")


def run() -> None:
    """Measure and print."""
    with place() as at:
        server = at.postgresql()
        cluster = at.cluster("rate", HOT)
        base = _pgbench(server)
        print(f"one hot pool; pgbench, {PGBENCH_CLIENTS} clients, one small row a transaction: {base:.0f}/s")
        _define(server.url(), cluster)
        print("\nthe ledger's interface, PostgreSQL")
        print(f"{'processes':>10}{'in flight each':>16}{'per s':>10}{'/ pgbench':>12}")
        for processes in PROCESSES:
            for in_flight in IN_FLIGHT:
                _say(processes, in_flight, _interface(server.url(), processes, in_flight), base)
        for processes in LONE:
            _say(processes, 1, _interface(server.url(), processes, 1), base)
        sqlite = at.sqlite("rate")
        _define(sqlite, cluster)
        print("\nthe ledger's interface, SQLite")
        for in_flight in IN_FLIGHT:
            _say(1, in_flight, _interface(sqlite, 1, in_flight), base)
        for name, address in (("PostgreSQL", server.url()), ("SQLite", at.sqlite("socket"))):
            print(f"\none agent's socket, {name}")
            with serving(at.folder / f"socket-{name}", address, cluster) as environment:
                for in_flight in IN_FLIGHT:
                    _say(1, in_flight, _through(environment["SPIDERLEDGER_SOCKET"], in_flight), base)


def _say(processes: int, in_flight: int, rate: float, base: float) -> None:
    print(f"{processes:10}{in_flight:16}{rate:10.0f}{rate / base:12.2f}")


def _pgbench(server: Server) -> float:
    folder = server.folder
    psql, url = str(binaries() / "psql"), server.url()
    table = "CREATE TABLE one_row (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, said text NOT NULL)"
    subprocess.run([psql, "-q", url, "-c", table], check=True)
    script = folder / "insert.sql"
    script.write_text("INSERT INTO one_row (said) VALUES ('an address was allocated');\n")
    clients = ["-c", str(PGBENCH_CLIENTS), "-j", "2", "-T", str(int(SECONDS)), "-M", "prepared", "-f", str(script)]
    told = subprocess.run(
        [str(binaries() / "pgbench"), "-n", "-h", str(folder), "-U", "owner", *clients, "postgres"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = re.search(r"tps = ([0-9.]+)", told)
    assert found is not None, told
    return float(found[1])


def _ledger(address: str) -> Ledger:
    return Ledger(open_engine(address), Settings(doubt_seconds=0))


def _define(address: str, cluster: Path) -> None:
    engine = open_engine(address)
    migrate(engine)
    store = Ledger(engine, Settings(doubt_seconds=0))
    FolderController(NamedFolder(Folder(cluster), store), store).look_safely()
    engine.dispose()


def _interface(address: str, processes: int, in_flight: int) -> float:
    """So many processes with connections of their own; all begin together."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    with context.Pool(processes, _remember, (barrier,)) as workers:
        return sum(workers.starmap(_work, [(address, number, in_flight) for number in range(processes)], chunksize=1))


def _remember(barrier: object) -> None:
    globals()["_barrier"] = barrier


def _work(address: str, number: int, in_flight: int) -> float:
    store = _ledger(address)
    definition = store.definition()
    mine = frozenset(each.id for each in definition.pools)
    names = (f"{time.time_ns()}-{number}-{each}" for each in count())

    def acquire() -> Acquire:
        name = next(names)
        claim = Claim("", CONTAINER, "node", NETWORK, name, "eth0", 4)
        binding = Binding(name, NETWORK, "/run/netns/none", "node", time.time_ns())
        want = Want(claim, tuple(mine), mine)
        return Acquire((want,), "eth0", binding, Subject("", "node", NETWORK, name), definition.version)

    for _ in range(WARM):
        store.act([acquire()])
    collect_rarely()
    globals()["_barrier"].wait()
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        answers = store.act([acquire() for _ in range(in_flight)])
        done += sum(isinstance(answer, Granted) for answer in answers)
    return done / (time.perf_counter() - start)


def _through(path: str, in_flight: int) -> float:
    """One client process that keeps so many calls open."""
    selector = selectors.DefaultSelector()
    names = count()
    for _ in range(in_flight):
        _call(selector, path, next(names))
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        for key, _ in selector.select():
            answer = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
            done += answer.startswith(b"HTTP/1.1 200")
            selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]
            _call(selector, path, next(names))
    rate = done / (time.perf_counter() - start)
    for each in list(selector.get_map().values()):
        each.fileobj.close()  # type: ignore[union-attr]
    return rate


def _call(selector: selectors.BaseSelector, path: str, number: int) -> None:
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    client.sendall(request("ADD", f"rate{time.time_ns()}-{number}"))
    selector.register(client, selectors.EVENT_READ)


def request(command: str, container: str) -> bytes:
    """What the plugin sends."""
    variables = {
        "CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_NETNS": "/var/run/netns/none",
        "CNI_IFNAME": "eth0", "CNI_PATH": "/usr/lib/cni", "SPIDERLEDGER_START": str(time.time_ns()),
    }  # fmt: skip
    said = "\0".join(f"{name}={value}" for name, value in variables.items()).encode()
    body = said + b"\0\0" + configuration({"type": "spiderpool"})
    return b"POST /v1/cni HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
