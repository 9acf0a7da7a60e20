"""A real agent for the time of a benchmark."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_SECONDS_MAX = 30.0


@contextmanager
def serving(state: Path, database: str, cluster: Path) -> Iterator[dict[str, str]]:
    """An agent on this database and folder; gives the environment in which the plugin finds it."""
    state.mkdir(mode=0o700)
    socket = state / "agent.sock"
    environment = {**os.environ, "SPIDERLEDGER_DATABASE": database, "SPIDERLEDGER_STATE": str(state)}
    command = [sys.executable, "-m", "spiderledger"]
    subprocess.run([*command, "migrate"], env=environment, check=True, stdout=subprocess.DEVNULL)
    with (state / "log").open("wb") as log:
        agent = subprocess.Popen(
            [*command, "agent", "--cluster", str(cluster), "--socket", str(socket)], env=environment, stderr=log
        )
    try:
        _wait_for(socket, agent, state / "log")
        yield {
            "SPIDERLEDGER_SOCKET": str(socket), "SPIDERLEDGER_SPOOL": str(state / "spool"), "PID": str(agent.pid),
        }  # fmt: skip
    finally:
        agent.terminate()
        agent.wait()


def _wait_for(socket: Path, agent: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while not socket.exists():
        if agent.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the agent did not start:\n{log.read_text()}")
        time.sleep(0.05)
