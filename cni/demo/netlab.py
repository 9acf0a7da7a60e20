"""Two network zones on one machine: a router, nodes and pods as network namespaces, joined by veth pairs.

Each namespace belongs to one waiting process and has no name, so nothing of it is left when that process ends, even if
the demo is killed. A node's interface is one end of a pair whose other end is the router's. Addresses of pods are not
made here: the CNI plugins do that. Needs root and `ip`; without them the demo goes on without a network.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final

from cni.demo.processes import DemoError, Processes
from cni.demo.runner import Chain, Runner

COMMAND_SECONDS_MAX: Final = 20.0
PINGS: Final = 2
PING_PAUSE_SECONDS: Final = 0.2
PING_WAIT_SECONDS: Final = 5
TTL_FIRST: Final = 64
"""What Linux sends with; each router on the way takes one off."""
TOOLS: Final = {"ip": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}
"""Programs, and the packages that have them."""
PLUGINS_PACKAGE: Final = "containernetworking-plugins"
PING_PACKAGE: Final = "iputils-ping"
FORWARD: Final = "echo 1 >/proc/sys/net/ipv4/ip_forward"


class NoNetworkError(DemoError):
    """There is no network to be had on this machine."""


@dataclass(frozen=True)
class Zone:
    """A node, and the router's address (with its prefix length) in the subnet that the node reaches."""

    node: str
    router: str


@dataclass(frozen=True)
class Sandbox:
    """A process that stands for a container, in a network of its own if there is a network lab."""

    process: subprocess.Popen[str]
    isolated: bool

    @property
    def netns(self) -> str:
        """Its network namespace, as CNI_NETNS wants it."""
        return f"/proc/{self.process.pid}/ns/net"

    @property
    def inside(self) -> tuple[str, ...]:
        """The command that runs another one in its network."""
        return ("nsenter", f"--net={self.netns}") if self.isolated else ()

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self.process.poll() is None


@contextmanager
def sandbox(processes: Processes, *, isolated: bool) -> Iterator[Sandbox]:
    """A new one, which lives as long as this does; NoNetworkError when it gets no network of its own."""
    with processes.waiting(["unshare", "--net", "cat"] if isolated else ["cat"]) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            # Its echo tells that it is where it should be.
            process.stdin.write("\n")
            process.stdin.flush()
            there = process.stdout.readline()
        except BrokenPipeError:
            there = ""
        if not there:
            raise NoNetworkError(process.stderr.readline().strip() or "a process that waits could not be started")
        yield Sandbox(process, isolated)


def missing(runner: Runner, chain: Chain) -> str | None:
    """What this machine lacks for a network, in one line that says what to do; None when nothing is known to."""
    if os.geteuid() != 0:
        return "network namespaces need root: run it with sudo"
    for program, package in TOOLS.items():
        if shutil.which(program) is None:
            return f"there is no program {program}: install {package}"
    for step in chain.steps:
        if runner.find(step.program) is None:
            return f"there is no CNI plugin {step.program} in {runner.looked_in}: install {PLUGINS_PACKAGE}"
    return None


@dataclass(frozen=True)
class Ping:
    """How many were sent, how many were answered, and how many routers were between."""

    sent: int
    answered: int
    routers: int


@dataclass
class Netlab:
    """The router and the nodes."""

    processes: Processes
    router: Sandbox
    nodes: dict[str, Sandbox] = field(default_factory=dict)

    def ping(self, source: Sandbox, address: str) -> Ping | None:
        """From one pod to another's address; None when this machine has no `ping`."""
        if shutil.which("ping") is None:
            return None
        options = ["-n", "-c", str(PINGS), "-i", str(PING_PAUSE_SECONDS), "-W", str(PING_WAIT_SECONDS)]
        finished = self.processes.run([*source.inside, "ping", *options, address], seconds_max=COMMAND_SECONDS_MAX)
        counts = re.search(r"([0-9]+) packets transmitted, ([0-9]+)", finished.out)
        if counts is None:
            raise DemoError(f"ping: {finished.complaint}")
        ttl = re.search(r"ttl=([0-9]+)", finished.out)
        return Ping(int(counts[1]), int(counts[2]), TTL_FIRST - int(ttl[1]) if ttl else 0)


@contextmanager
def netlab(processes: Processes, zones: Sequence[Zone], interface: str) -> Iterator[Netlab]:
    """The network for these zones; NoNetworkError when this machine cannot have it."""
    with ExitStack() as parts:
        lab = Netlab(processes, parts.enter_context(sandbox(processes, isolated=True)))
        _inside(processes, lab.router, "sh", "-c", FORWARD)
        for number, zone in enumerate(zones, 1):
            node = lab.nodes[zone.node] = parts.enter_context(sandbox(processes, isolated=True))
            _join(processes, lab.router, f"zone{number}", node, interface)
            _inside(processes, lab.router, "ip", "address", "add", zone.router, "dev", f"zone{number}")
        _try_macvlan(processes, node, interface)
        yield lab


def _join(processes: Processes, router: Sandbox, port: str, node: Sandbox, interface: str) -> None:
    """Lay a cable. It is made on the router's side, where no name can be taken yet."""
    far = ("peer", "name", interface, "netns", str(node.process.pid))
    _inside(processes, router, "ip", "link", "add", "name", port, "type", "veth", *far)
    _inside(processes, router, "ip", "link", "set", port, "up")
    _inside(processes, node, "ip", "link", "set", interface, "up")


def _try_macvlan(processes: Processes, node: Sandbox, interface: str) -> None:
    """Not every kernel has it, and the plugin's own complaint would come too late to do without."""
    name = "probe"
    _inside(processes, node, "ip", "link", "add", "name", name, "link", interface, "type", "macvlan", "mode", "bridge")
    _inside(processes, node, "ip", "link", "delete", name)


def _inside(processes: Processes, where: Sandbox, *command: str) -> None:
    finished = processes.run([*where.inside, *command], seconds_max=COMMAND_SECONDS_MAX)
    if finished.status != 0:
        raise NoNetworkError(f"`{' '.join(command)}`: {finished.complaint}")
