"""The real agent as a process of its own, called through the real plugin: for tests of what a node would see.

    with RunningAgent(plugin, tmp_path / "cluster", tmp_path / "state", database.url) as agent:
        answer = agent.add(Sandbox("c1", pod="web-0", uid="…"))
        assert answer.addresses == ["10.6.168.60/16"]

Whatever ends the test, the process ends with the block. What the agent wrote to its log is in every failure's text.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parent.parent
COMMAND = (sys.executable, "-m", "spiderledger")
START_SECONDS_MAX = 60  # Only reached when something is broken: it takes half a second.
END_SECONDS_MAX = 30
CALL_SECONDS_MAX = 100  # The plugin's own longest deadline is below.
LOOK_SECONDS = 0.02
CONFIGURATION: Mapping[str, Any] = {
    "cniVersion": "1.0.0", "name": "macvlan-conf", "type": "macvlan", "master": "ens192", "mode": "bridge",
    "ipam": {"type": "spiderpool"},
}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """How a call of the plugin (or of the command line) ended, and what it printed."""

    status: int
    out: bytes
    err: bytes = b""

    @property
    def text(self) -> str:
        """What it printed."""
        return self.out.decode()

    @property
    def document(self) -> dict[str, Any]:
        """The JSON object that it printed; nothing printed is an empty one."""
        found = json.loads(self.out or b"{}")
        assert isinstance(found, dict)
        return found

    @property
    def addresses(self) -> list[str]:
        """The result's addresses, with their prefix lengths; asserts that there is a result."""
        assert self.status == 0, self
        return [each["address"] for each in self.document["ips"]]

    @property
    def code(self) -> int:
        """The CNI error's number, 0 for a success."""
        assert (self.status == 0) == ("code" not in self.document), self
        return int(self.document.get("code", 0))


@dataclass(frozen=True)
class Sandbox:
    """A container as the runtime names it: a pod's when `pod` is given."""

    container: str
    pod: str = ""
    uid: str = ""
    namespace: str = "default"
    interface: str = "eth0"
    netns: str = "/var/run/netns/nowhere"

    @property
    def environment(self) -> dict[str, str]:
        """The CNI variables but the command."""
        said = {
            "IgnoreUnknown": "1",
            "K8S_POD_NAMESPACE": self.namespace,
            "K8S_POD_NAME": self.pod,
            "K8S_POD_INFRA_CONTAINER_ID": self.container,
            "K8S_POD_UID": self.uid,
        }
        arguments = {"CNI_ARGS": ";".join(f"{name}={value}" for name, value in said.items())} if self.pod else {}
        return {
            "CNI_CONTAINERID": self.container, "CNI_IFNAME": self.interface, "CNI_NETNS": self.netns, **arguments,
        }  # fmt: skip


@dataclass
class RunningAgent:
    """See the module. Without `cluster` it serves bare containers; without `database` it has a file in `state`.

    `arguments` go to the verb `agent`, `environment` to its process. May be stopped, killed and started again.
    """

    plugin: Path
    cluster: Path | None
    state: Path
    database: str = ""
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    log_path: Path | None = None

    def __enter__(self) -> RunningAgent:
        try:
            return self.start()
        except BaseException:
            self.kill()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            status = self.stop()
        finally:
            self.kill()
        if kind is None:
            assert status in (None, 0), f"the agent ended with {status}:\n{self.log}"
        elif error is not None:
            error.add_note(f"the agent's log:\n{self.log}")

    # Places ----------------------------------------------------------------------------------

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.state / "agent.sock"

    @property
    def spool(self) -> Path:
        """Where DELs wait for it."""
        return self.state / "spool"

    @property
    def spooled(self) -> list[str]:
        """The DELs that wait, by name; what an agent was writing when it was killed is none."""
        names = [path.name for path in self.spool.iterdir()] if self.spool.exists() else []
        return sorted(name for name in names if not name.startswith("."))

    @property
    def log(self) -> str:
        """All that it has said, over all its starts."""
        return self._log_file.read_text() if self._log_file.exists() else ""

    @property
    def _log_file(self) -> Path:
        return self.log_path or self.state.with_name(self.state.name + ".log")

    # Life ------------------------------------------------------------------------------------

    def launch(self) -> RunningAgent:
        """Start it without waiting for anything."""
        assert self.process is None, "it runs already"
        cluster = ["--cluster", str(self.cluster)] if self.cluster else []
        command = [*COMMAND, "agent", *cluster, *self.arguments]
        with self._log_file.open("ab") as log:
            self.process = subprocess.Popen(
                command, env=self._environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        return self

    def start(self) -> RunningAgent:
        """Start it, and return once STATUS is answered well: its folder is read, its pools are in the ledger."""
        self.launch()
        return self.wait_until_it_serves()

    def wait_until_it_serves(self) -> RunningAgent:
        """Ask for STATUS until it is answered well."""
        assert self.process is not None
        deadline = time.monotonic() + START_SECONDS_MAX
        while (answer := self.status()).status != 0:
            assert self.process.poll() is None, f"the agent ended with {self.process.returncode}:\n{self.log}"
            assert time.monotonic() < deadline, f"the agent does not serve: {answer}\n{self.log}"
            time.sleep(LOOK_SECONDS)
        return self

    def stop(self) -> int | None:
        """SIGTERM, and wait for its end: the exit code, None when it was not running."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        self._end(signal.SIGKILL)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal (SIGSTOP makes it silent, SIGCONT lets it go on)."""
        assert self.process is not None
        self.process.send_signal(number)

    def _end(self, number: signal.Signals) -> int | None:
        if self.process is None:
            return None
        self.process.send_signal(number)
        status = self.process.wait(END_SECONDS_MAX)
        self.process = None
        return status

    # Questions -------------------------------------------------------------------------------

    def ask(self, *words: str) -> Answer:
        """What the command line answers on the same ledger, as an operator beside the agent uses it."""
        done = subprocess.run(
            [*COMMAND, *words], env=self._environment(), stdin=subprocess.DEVNULL, capture_output=True,
            timeout=CALL_SECONDS_MAX, check=False,
        )  # fmt: skip
        return Answer(done.returncode, done.stdout, done.stderr)

    def beside(self, *words: str) -> subprocess.Popen[bytes]:
        """A verb of the command line that runs on the same ledger for longer; into the same log. The caller ends it."""
        with self._log_file.open("ab") as log:
            return subprocess.Popen(
                [*COMMAND, *words], env=self._environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _environment(self) -> dict[str, str]:
        said = {"SPIDERLEDGER_STATE": str(self.state), "PYTHONPATH": str(ROOT), **self.environment}
        said["SPIDERLEDGER_SOCKET"] = str(self.socket)
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return {**inherited, **({"SPIDERLEDGER_DATABASE": self.database} if self.database else {}), **said}

    # Calls -----------------------------------------------------------------------------------

    def add(self, sandbox: Sandbox, **configuration: Any) -> Answer:
        """ADD with the usual configuration, changed as said."""
        return self.call("ADD", sandbox.environment, {**CONFIGURATION, **configuration})

    def delete(self, sandbox: Sandbox, **configuration: Any) -> Answer:
        """DEL, likewise."""
        return self.call("DEL", sandbox.environment, {**CONFIGURATION, **configuration})

    def check(self, sandbox: Sandbox, added: Answer, **configuration: Any) -> Answer:
        """CHECK of what an ADD answered."""
        document = {**CONFIGURATION, "prevResult": added.document, **configuration}
        return self.call("CHECK", sandbox.environment, document)

    def collect(self, *there: Sandbox, **configuration: Any) -> Answer:
        """GC: only these attachments are still there."""
        attachments = [{"containerID": each.container, "ifname": each.interface} for each in there]
        document = {"cni.dev/valid-attachments": attachments, **CONFIGURATION, "cniVersion": "1.1.0", **configuration}
        return self.call("GC", {}, document)

    def status(self) -> Answer:
        """STATUS."""
        return self.call("STATUS", {}, {**CONFIGURATION, "cniVersion": "1.1.0"})

    def call(
        self, command: str, environment: Mapping[str, str], configuration: Mapping[str, Any] | bytes = CONFIGURATION
    ) -> Answer:
        """One call through the real plugin, with no more environment than a runtime gives."""
        return self.finish(self.begin(command, environment, configuration))

    def begin(
        self, command: str, environment: Mapping[str, str], configuration: Mapping[str, Any] | bytes = CONFIGURATION
    ) -> subprocess.Popen[bytes]:
        """A call whose answer is fetched later with `finish`: for several at once, or to kill the plugin."""
        stdin = configuration if isinstance(configuration, bytes) else json.dumps(configuration).encode()
        places = {"SPIDERLEDGER_SOCKET": str(self.socket), "SPIDERLEDGER_SPOOL": str(self.spool)}
        pipe = subprocess.PIPE
        called = subprocess.Popen(
            [self.plugin], stdin=pipe, stdout=pipe, stderr=pipe, env={"CNI_COMMAND": command, **places, **environment}
        )
        assert called.stdin is not None
        called.stdin.write(stdin)
        called.stdin.close()
        called.stdin = None
        return called

    def finish(self, called: subprocess.Popen[bytes]) -> Answer:
        """The answer to a call that was begun."""
        try:
            out, err = called.communicate(timeout=CALL_SECONDS_MAX)
        finally:
            called.kill()
        return Answer(called.returncode, out, err)
