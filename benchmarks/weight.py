"""What an agent weighs: memory idle, with 250 pods, after 10,000 ADDs; processor time when idle; how it starts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.agents import serving
from benchmarks.parts import place, pool
from benchmarks.trips import call

PODS = 250
ADDS = 10_000
IDLE_SECONDS = 10.0
STARTS = 10

POD = """
apiVersion: v1
kind: Pod
metadata: {{name: web-{number}, namespace: default, uid: uid-{number}, labels: {{app: web}}}}
spec: {{nodeName: node-1}}
"""


def run() -> None:
    """Measure and print."""
    with place() as at:
        cluster = at.cluster("weight", pool("bench", "10.20.0.0/16", "10.20.0.2-10.20.255.254"))
        with serving(at.folder / "weight", at.sqlite("weight"), cluster) as environment:
            process = int(environment["PID"])
            path = environment["SPIDERLEDGER_SOCKET"]
            print(f"agent on SQLite, resident: idle {_resident(process)}", end="")
            before = _processor_seconds(process)
            time.sleep(IDLE_SECONDS)
            idle = (_processor_seconds(process) - before) / IDLE_SECONDS
            (cluster / "pods.yaml").write_text("---".join(POD.format(number=each) for each in range(PODS)))
            time.sleep(2)
            print(f", with {PODS} pods {_resident(process)}", end="")
            for number in range(ADDS):
                call(path, "ADD", f"weight{number}")
            print(f", after {ADDS:,} ADDs {_resident(process)}; idle it takes {idle:.1%} of a processor")
    starts = [_start() for _ in range(STARTS)]
    print(f"spiderledger --help: {min(starts):.2f} s")


def _resident(process: int) -> str:
    fields = Path(f"/proc/{process}/statm").read_text().split()
    return f"{int(fields[1]) * os.sysconf('SC_PAGE_SIZE') / 1e6:.0f} MB"


def _processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _start() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "spiderledger", "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start
