"""The demo's script: an agent on a copy of the scenario, its pods through the real plugin, the questions of an audit.

Every line it says was computed, and what turns out otherwise than it must ends the demo with the reason. It decides
nothing about addresses: the agent does, and the answers are those of the command line. Called by `cni.demo.command`.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cni.demo import netlab, scenario
from cni.demo.audit import COMMAND, CommandLine, Event, allocated_at, counted, counts_shown, read_log
from cni.demo.netlab import Netlab, NoNetworkError, Sandbox, Zone
from cni.demo.place import Place
from cni.demo.processes import LOOK_SECONDS, DemoError, Processes
from cni.demo.runner import Attachment, Chain, Document, PluginError, Runner, pod_arguments
from cni.demo.scenario import Scenario
from cni.errors import Code
from cni.facts import PodFacts
from cni.manifests import ObjectKey

START_SECONDS_MAX: Final = 60.0
WITHDRAWAL_SECONDS_MAX: Final = 20.0
INTERFACE: Final = "eth0"
DEFAULT_ROUTE: Final = "0.0.0.0/0"


@dataclass(frozen=True)
class Added:
    """A pod that has its network: what is needed to take it away again."""

    pod: PodFacts
    sandbox: Sandbox
    attachment: Attachment
    result: Document

    @property
    def cidr(self) -> str:
        """Its address with the prefix length."""
        return str(self.result["ips"][0]["address"])

    @property
    def address(self) -> str:
        """Its address."""
        return self.cidr.partition("/")[0]

    @property
    def gateway(self) -> str:
        """Where its default route leads."""
        return ", ".join(each["gw"] for each in self.result["routes"] if each["dst"] == DEFAULT_ROUTE) or "nobody"

    @property
    def key(self) -> ObjectKey:
        """The pod, as the folder knows it."""
        return ObjectKey("Pod", self.pod.namespace, self.pod.name)

    @property
    def row(self) -> tuple[str, ...]:
        """Its line among the pods. A process that waits stands for its one container."""
        running = self.sandbox.running
        return self.pod.name, f"{int(running)}/1", "Running" if running else "Failed", self.address, self.pod.node


@dataclass
class Demo:
    """One run on this place. Whatever it opens ends with `parts`."""

    place: Place
    parts: ExitStack
    processes: Processes
    scenario: Scenario
    chain: Chain
    runner: Runner
    command_line: CommandLine
    say: Callable[[str], None]
    on_server: bool
    lab: Netlab | None = None
    added: list[Added] = field(default_factory=list)

    def play(self) -> None:
        """The whole script."""
        self._describe()
        self._lay_network()
        sandboxes = self._open_sandboxes()
        if self.on_server:
            self._prepare_server()
        self._start_agent()
        for pod, sandbox in zip(self.scenario.pods, sandboxes, strict=True):
            self._add(pod, sandbox)
        self._show_pods()
        self._ping_each_other()
        self.command_line.show("get", "pools")
        self.command_line.show("get", "allocations")
        self._audit_first()
        self.command_line.show("verify")

    # The stage -------------------------------------------------------------------------------

    def _describe(self) -> None:
        snapshot = self.scenario.snapshot
        counts = f"{len(self.scenario.nodes)} nodes, {len(snapshot.pools())} pools, {len(self.scenario.pods)} pods"
        ledger = "PostgreSQL" if self.on_server else f"SQLite in {_shown(self.place.state)}"
        self.say(f"cluster: {counts} in {_shown(self.place.cluster)}; ledger: {ledger}")

    def _lay_network(self) -> None:
        reason = netlab.missing(self.runner, self.chain)
        if reason is None:
            try:
                self._open_network()
            except NoNetworkError as error:
                reason = f"it needs a kernel with veth and macvlan, and the right to make namespaces ({error})"
        if reason is not None:
            self.chain = self.chain.addresses_only
            self.say(f"left out: interfaces and ping, the plugin is asked for addresses alone: {reason}")

    def _open_network(self) -> None:
        zones = scenario.zones(self.scenario)
        interface = str(self.chain.steps[0].part["master"])
        self.lab = self.parts.enter_context(netlab.netlab(self.processes, zones, interface))
        ends = ", ".join(f"{zone.router} to {interface} of {zone.node}" for zone in zones)
        self.say(f"network: a router with {ends}")

    def _open_sandboxes(self) -> list[Sandbox]:
        isolated = self.lab is not None
        opened = [
            self.parts.enter_context(netlab.sandbox(self.processes, isolated=isolated)) for _ in self.scenario.pods
        ]
        waiting = ", ".join(str(each.process.pid) for each in opened)
        self.say(f"containers: processes {waiting} wait in their place")
        return opened

    def _prepare_server(self) -> None:
        """An agent on a folder closes every pool that the folder does not show: none may be there but the demo's."""
        self.command_line.ask("migrate")
        pools = ", ".join(self._pools_left())
        if pools:
            text = f"the ledger in SPIDERLEDGER_DATABASE has pools ({pools}), which the demo would close"
            raise DemoError(f"{text}: give it an empty database")

    def _start_agent(self) -> None:
        command, began = [*COMMAND, "agent", "--cluster", str(self.place.cluster)], time.monotonic()
        agent = self.parts.enter_context(
            self.processes.running(
                command, log=self.place.log, folder=self.place.path, variables=self.command_line.variables,
                keep=(self.place.lock,),
            )
        )  # fmt: skip
        while not self._agent_serves():
            if agent.poll() is not None:
                raise DemoError(f"the agent ended with {agent.returncode}: {self.place.last_words}")
            if time.monotonic() > began + START_SECONDS_MAX:
                raise DemoError(f"the agent does not serve after {START_SECONDS_MAX:g} s: {self.place.last_words}")
            time.sleep(LOOK_SECONDS)
        if self.on_server:
            self.parts.callback(self._withdraw, agent)
        self.say(f"agent: process {agent.pid} answers STATUS after {time.monotonic() - began:.1f} s")

    def _agent_serves(self) -> bool:
        try:
            self.runner.status(self.chain.addresses_only)
        except PluginError as error:
            if error.code != Code.NOT_AVAILABLE:
                raise
            return False
        return True

    # The pods --------------------------------------------------------------------------------

    def _add(self, pod: PodFacts, sandbox: Sandbox) -> None:
        container = f"{pod.name}-sandbox"
        arguments = pod_arguments(pod.namespace, pod.name, pod.uid, container)
        attachment = Attachment(container, sandbox.netns, INTERFACE, arguments)
        began = time.monotonic()
        result = self.runner.add(self.chain, attachment, self._node_of(pod))
        took = _milliseconds(began)
        added = Added(pod, sandbox, attachment, result)
        self.added.append(added)
        node = self._zone_of(added).node
        said = f"{INTERFACE} has {added.cidr}, default route via {added.gateway}"
        self.say(f"ADD {pod.name} on {node}: {said} ({took})")

    def _zone_of(self, added: Added) -> Zone:
        """The zone of its node, in whose subnet its address must lie."""
        for zone in scenario.zones(self.scenario):
            if zone.node == added.pod.node and scenario.is_in(zone, added.cidr):
                return zone
        raise DemoError(f"{added.pod.name} got {added.cidr}, which is in no subnet of its node {added.pod.node}")

    def _node_of(self, pod: PodFacts) -> Sequence[str]:
        """What puts a plugin into the network of the pod's node."""
        return self.lab.nodes[pod.node].inside if self.lab else ()

    def _show_pods(self) -> None:
        rows = [("NAME", "READY", "STATUS", "IP", "NODE"), *(each.row for each in self.added)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        self.say("\n".join(["", *map(str.rstrip, lines), ""]))

    def _ping_each_other(self) -> None:
        pairs = [(one, other) for one in self.added for other in self.added if one is not other]
        if self.lab is None:
            return
        for source, target in pairs:
            ping = self.lab.ping(source.sandbox, target.address)
            if ping is None:
                self.say(f"left out: ping between the pods: install {netlab.PING_PACKAGE}")
                break
            said = f"ping from {source.pod.name} to {target.address}: {ping.answered} of {ping.sent} answered"
            if ping.answered == 0:
                raise DemoError(said)
            self.say(f"{said}, routers on the way: {ping.routers}")
        self.say("")

    # One pod goes ----------------------------------------------------------------------------

    def _audit_first(self) -> None:
        """Whose was the address before its pod went, and whose is it now?"""
        gone = self.added[0]
        self._delete(gone)
        self.say("")
        shown = counts_shown(self.command_line.show("get", "pools"))
        events = read_log(self.command_line)
        self._count_anew(shown, events)
        self.command_line.show("who-held", gone.address, "--at", allocated_at(events, gone.address))
        self.command_line.show("who-held", gone.address, expected=1)
        self.command_line.show("history", gone.address)

    def _delete(self, gone: Added) -> None:
        """The pod leaves the cluster, then its sandbox is taken down: the order in which a node learns it."""
        files = ", ".join(map(_shown, scenario.remove(self.scenario, gone.key)))
        began = time.monotonic()
        self.runner.delete(self.chain, gone.attachment, gone.result, self._node_of(gone.pod))
        self.added.remove(gone)
        self.say(f"{gone.key} was taken out of {files}; DEL on {gone.pod.node} succeeded ({_milliseconds(began)})")

    def _count_anew(self, shown: Mapping[str, int], events: Sequence[Event]) -> None:
        """The counts as the events alone give them: a read model that was lost could be made again."""
        found = counted(events)
        counts = {name: found.get(name, 0) for name in shown}
        if counts != shown:
            raise DemoError(f"`get pools` says {shown}, but by the {len(events)} events of the log it is {counts}")
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        self.say(f"counted anew from the {len(events)} events of the log: {said}\n")

    def _withdraw(self, agent: subprocess.Popen[str]) -> None:
        """A server's ledger outlives the demo: its pods and pools go, their events stay."""
        self.processes.end()
        try:
            if agent.poll() is not None:
                raise DemoError(f"the agent has ended with {agent.returncode}")
            for each in list(self.added):
                self._delete(each)
            pools = [ObjectKey("SpiderIPPool", "", pool.metadata.name) for pool in self.scenario.snapshot.pools()]
            scenario.remove(self.scenario, *pools)
            self._wait_until_no_pool_is_left()
        except DemoError as error:
            self.say(f"the demo's pods and pools could not be withdrawn from PostgreSQL: {error}")

    def _wait_until_no_pool_is_left(self) -> None:
        deadline = time.monotonic() + WITHDRAWAL_SECONDS_MAX
        while pools := self._pools_left():
            if time.monotonic() > deadline:
                raise DemoError(f"after {WITHDRAWAL_SECONDS_MAX:g} s there still is {', '.join(pools)}")
        self.say("PostgreSQL: the demo's pods and pools are withdrawn, their events stay")

    def _pools_left(self) -> list[str]:
        return sorted(counts_shown(self.command_line.ask("get", "pools")))


def _shown(path: Path) -> str:
    """The path as somebody in the current folder writes it."""
    return str(path.relative_to(Path.cwd()))


def _milliseconds(began: float) -> str:
    return f"{(time.monotonic() - began) * 1_000:.0f} ms"
