"""What the benchmarks share: a folder, both databases with real durability, the contenders, how figures are told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.agents import serving
from hatch_build import compile_plugin
from tests.postgresql import Server

HOST_LOCAL = ("/usr/lib/cni/host-local", "/opt/cni/bin/host-local")
PERCENTILES = (50, 90, 99)
NETWORK = "bench"
SUBNET = "10.20.0.0/16"

POOL = """
apiVersion: spiderpool.spidernet.io/v2beta1
kind: SpiderIPPool
metadata: {{name: {name}, annotations: {{ipam.spiderledger.io/cooling: 0s}}}}
spec: {{subnet: "{subnet}", ips: [{ips}], default: {default}}}
"""


def pool(name: str, subnet: str, ips: str, *, default: bool = True) -> str:
    """The YAML of a pool without a cooling period."""
    return POOL.format(name=name, subnet=subnet, ips=f'"{ips}"', default=str(default).lower())


@dataclass(frozen=True)
class Place:
    """A folder of this run's own, and what must be ended with it."""

    folder: Path
    stack: ExitStack

    def cluster(self, name: str, *pools: str) -> Path:
        """A folder with these pools."""
        cluster = self.folder / f"cluster-{name}"
        cluster.mkdir()
        (cluster / "pools.yaml").write_text("---".join(pools))
        return cluster

    def sqlite(self, name: str) -> str:
        """The address of a new SQLite ledger (WAL, synchronous=FULL)."""
        return f"sqlite:///{self.folder / name}.db"

    def postgresql(self) -> Server:
        """A server that has every acknowledged commit on the disk; the tests' own runs without fsync."""
        server = Server(options=("-c", "fsync=on", "-c", "synchronous_commit=on"))
        self.stack.callback(server.remove)
        return server.create().start()

    def plugin(self) -> str:
        """The plugin, compiled as `pip install` does."""
        path = self.folder / "spiderpool"
        if not path.exists():
            compile_plugin(path)
        return str(path)


@contextmanager
def place() -> Iterator[Place]:
    """Nothing of it stays behind."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="sl-bench-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield Place(folder, stack)


@dataclass
class Contender:
    """A program that a runtime executes, and how long each run took, seconds."""

    name: str
    program: str
    configuration: bytes
    environment: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    """Said instead of ADD and DEL: what costs the least."""
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"ADD": [], "DEL": []})

    def start(self, command: str, container: str) -> int:
        """Execute it for one call of the runtime; its process."""
        environment = {
            "CNI_COMMAND": self.command or command,
            "CNI_CONTAINERID": container,
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
        process = os.posix_spawn(self.program, [self.program], environment, file_actions=actions)
        os.close(read)
        os.close(null)
        return process

    def run(self, command: str, container: str) -> float:
        """One call from exec to exit, seconds."""
        start = time.perf_counter()
        _, status = os.waitpid(self.start(command, container), 0)
        taken = time.perf_counter() - start
        if os.waitstatus_to_exitcode(status) != 0:
            raise SystemExit(f"{self.name}: {command} failed")
        return taken


def contenders(at: Place, name: str, subnet: str = SUBNET, first: str = "2", last: str = "255.254") -> list[Contender]:
    """Everybody, each with a pool of these addresses of its own."""
    base = subnet.split("/")[0].removesuffix(".0")
    if base.endswith(".0"):
        base = base.removesuffix(".0")
    low, high = f"{base}.{first if '.' in first else '0.' + first}", f"{base}.{last}"
    plugin, ours = at.plugin(), configuration({"type": "spiderpool"})
    found = [
        Contender("nothing (/bin/true)", "/bin/true", b"{}"),
        Contender("our plugin, VERSION", plugin, ours, command="VERSION"),
    ]
    host_local = next((path for path in HOST_LOCAL if Path(path).exists()), None)
    if host_local is None:
        print("host-local is not on this machine (Debian: containernetworking-plugins): left out")
    else:
        ranges = [[{"subnet": subnet, "rangeStart": low, "rangeEnd": high}]]
        ipam = {"type": "host-local", "dataDir": str(at.folder / f"host-local-{name}"), "ranges": ranges}
        found.append(Contender("host-local", host_local, configuration(ipam)))
    cluster = at.cluster(name, pool("bench", subnet, f"{low}-{high}"))
    for database, address in (("SQLite", at.sqlite(name)), ("PostgreSQL", at.postgresql().url())):
        environment = at.stack.enter_context(serving(at.folder / f"{name}-{database.lower()}", address, cluster))
        found.append(Contender(f"Spiderledger, {database}", plugin, ours, environment))
    return found


def configuration(ipam: Mapping[str, object]) -> bytes:
    """What a runtime sends on stdin."""
    return json.dumps({"cniVersion": "1.0.0", "name": NETWORK, "ipam": ipam}).encode()


def percentile(values: Sequence[float], percent: int) -> float:
    """The value below which so many percent of them lie."""
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def milliseconds(values: Sequence[float]) -> str:
    """The usual percentiles, in columns."""
    return "".join(f"{percentile(values, each) * 1e3:10.2f}" for each in PERCENTILES)


HEADING = "".join(f"{f'p{each} ms':>10}" for each in PERCENTILES)


def file_system(folder: Path) -> str:
    """What the files lie on."""
    done = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=False)
    return f"files on {done.stdout.strip()}"
