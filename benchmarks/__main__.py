"""ADD and DEL, from exec to exit: our plugin on both databases beside host-local and a program that does nothing.

The contenders take turns, so that a slow moment of the machine hits all of them alike. Figures are this
machine's; the ratios are what to quote. Usage: `make bench BENCH="--rounds 300"`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.agents import serving
from hatch_build import compile_plugin
from tests.postgresql import Server

HOST_LOCAL = ("/usr/lib/cni/host-local", "/opt/cni/bin/host-local")
WARM_UP = 20
PERCENTILES = (50, 90, 99)

POOL = """
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {name: bench, annotations: {ipam.spiderledger.io/cooling: 0s}}
spec: {subnet: 10.20.0.0/16, ips: [10.20.0.2-10.20.255.254], gateway: 10.20.0.1, default: true}
"""


@dataclass
class Contender:
    """A program that is run again and again, and how long each run took, seconds."""

    name: str
    program: str
    configuration: bytes
    environment: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"ADD": [], "DEL": []})

    def run(self, command: str, number: int, *, counted: bool) -> None:
        """One call of the runtime."""
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": f"bench{number}",
            "CNI_NETNS": "/var/run/netns/none",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/usr/lib/cni",
            **self.environment,
        }
        read, write = os.pipe()
        os.write(write, self.configuration)
        os.close(write)
        null = os.open(os.devnull, os.O_WRONLY)
        actions = [(os.POSIX_SPAWN_DUP2, read, 0), (os.POSIX_SPAWN_DUP2, null, 1)]
        start = time.perf_counter()
        process = os.posix_spawn(self.program, [self.program], environment, file_actions=actions)
        _, status = os.waitpid(process, 0)
        taken = time.perf_counter() - start
        os.close(read)
        os.close(null)
        if os.waitstatus_to_exitcode(status) != 0:
            raise SystemExit(f"{self.name}: {command} failed")
        if counted:
            self.seconds[command].append(taken)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="sl-bench-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        contenders = list(_contenders(stack, folder))
        for number in range(-WARM_UP, rounds):
            for command in ("ADD", "DEL"):
                for contender in contenders:
                    contender.run(command, number + WARM_UP, counted=number >= 0)
        _print(contenders, rounds, folder)


def _contenders(stack: ExitStack, folder: Path) -> Iterator[Contender]:
    plugin = folder / "spiderpool"
    compile_plugin(plugin)
    yield Contender("nothing (/bin/true)", "/bin/true", b"{}")
    host_local = next((path for path in HOST_LOCAL if Path(path).exists()), None)
    if host_local is None:
        print("host-local is not on this machine (Debian: containernetworking-plugins): left out")
    else:
        yield Contender("host-local", host_local, _host_local(folder))
    cluster = folder / "cluster"
    cluster.mkdir()
    (cluster / "pool.yaml").write_text(POOL)
    for name, address in _databases(stack, folder):
        environment = stack.enter_context(serving(folder / name.lower(), address, cluster))
        yield Contender(f"Spiderledger, {name}", str(plugin), _ours(), environment)


def _databases(stack: ExitStack, folder: Path) -> Iterator[tuple[str, str]]:
    yield "SQLite", f"sqlite:///{folder / 'ledger.db'}"
    # The tests' server runs without fsync; this one has every acknowledged commit on the disk.
    server = Server(options=("-c", "fsync=on", "-c", "synchronous_commit=on"))
    stack.callback(server.remove)
    server.create().start()
    yield "PostgreSQL", server.url()


def _ours() -> bytes:
    return json.dumps({"cniVersion": "1.0.0", "name": "bench", "ipam": {"type": "spiderpool"}}).encode()


def _host_local(folder: Path) -> bytes:
    ranges = [[{"subnet": "10.20.0.0/16", "gateway": "10.20.0.1"}]]
    ipam = {"type": "host-local", "dataDir": str(folder / "host-local"), "ranges": ranges}
    return json.dumps({"cniVersion": "1.0.0", "name": "bench", "ipam": ipam}).encode()


def _print(contenders: list[Contender], rounds: int, folder: Path) -> None:
    print(f"{platform.platform()}, {os.cpu_count()} processors, {_file_system(folder)}; {rounds} rounds in turn")
    print("durability: host-local writes files without fsync; SQLite WAL with synchronous=FULL; PostgreSQL fsync=on,")
    print("synchronous_commit=on\n")
    heading = "".join(f"{f'p{each} ms':>10}" for each in PERCENTILES)
    print(f"{'':28}{'':6}{heading}{'p50 / host-local':>20}")
    base = {each.name: each for each in contenders}.get("host-local")
    for command in ("ADD", "DEL"):
        for contender in contenders:
            figures = "".join(f"{_percentile(contender.seconds[command], each) * 1e3:10.2f}" for each in PERCENTILES)
            ratio = _ratio(contender, base, command)
            print(f"{contender.name:28}{command:6}{figures}{ratio:>20}")


def _ratio(contender: Contender, base: Contender | None, command: str) -> str:
    if base is None:
        return "-"
    return f"{statistics.median(contender.seconds[command]) / statistics.median(base.seconds[command]):.2f}"


def _percentile(values: list[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def _file_system(folder: Path) -> str:
    done = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=False)
    return f"files on {done.stdout.strip()}"


if __name__ == "__main__":
    main()
