"""`make fuzz`: the CNI plugin under libFuzzer, the address and the undefined behaviour sanitizer.

It goes on for so many seconds, or for so many inputs, and ends with 0 when every call kept what `plugin.c` checks. An
input that broke it is printed in base64. Nothing stays behind.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from hatch_build import PLUGIN_SOURCE

TARGET = Path(__file__).parent / "plugin.c"
CLANGS = (os.environ.get("CLANG", ""), "clang", *(f"clang-{version}" for version in range(22, 12, -1)))
MISSING = "the fuzzer needs clang with its runtime: install them (Debian: apt-get install clang libclang-rt-dev)"
FLAGS = ("-std=gnu11", "-O1", "-g", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all")
COMPILE_SECONDS_MAX = 120
INPUT_SECONDS_MAX = 10
INPUT_BYTES_MAX = 4096
SEPARATOR = b"\x1e"
COMMANDS = 10

# Seeds: what a runtime sends, what an agent answers, and the limits.
CONFIGURATIONS = (
    b'{"cniVersion":"1.0.0","name":"blue","type":"macvlan","ipam":{"type":"spiderpool"}}',
    b'{"prevResult":{"cniVersion":"0.3.1"},"ipam":{"ipam_unix_socket_path":"\\/run\\/\\u00e9"},"cniVersion":"0.4.0"}',
)
ANSWERS = (
    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 21\r\n\r\n{"cniVersion":"1.0.0"}',
    b'HTTP/1.1 422 No\r\ncontent-length: 11\r\n\r\n{"code":11}',
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"",
)
LIMITS = (b"HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n{", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nX: ")
WORDS = (
    '"cniVersion"', '"ipam"', '"ipam_unix_socket_path"', "null", "\\\\u00", "HTTP/1.1 ", "\\x0d\\x0aContent-Length: ",
    "\\x0d\\x0a\\x0d\\x0a", "1048576", "\\x1e", "..", "\\xff",
)  # fmt: skip


def seeds() -> Iterator[bytes]:
    """One for each command, configuration, answer and padding; the bytes in front are explained in `plugin.c`."""
    for command, said, answer in itertools.product(range(COMMANDS), CONFIGURATIONS, ANSWERS):
        yield seed(bytes((command, 0, 0, 255, 0, 0, 0)), said, answer)
    for command, padding, size, answer in itertools.product((0, 1), (1, 2, 3, 4, 5), range(64), LIMITS):
        yield seed(bytes((command, 0, 0, 255, 0, padding, size)), CONFIGURATIONS[0], answer)
    for fault in range(1, 24):  # The system call that fails, in a DEL that nobody answers.
        yield seed(bytes((1, fault, 3, 255, 32, 0, 0)), CONFIGURATIONS[0], b"")


def seed(choices: bytes, configuration: bytes, answer: bytes) -> bytes:
    """An input."""
    sections = (b"c0ffee", b"eth0", b"K8S_POD_NAME=web-0", b"/run/agent.sock", configuration, answer)
    return choices + SEPARATOR.join(sections)


def compiled(output: Path) -> Path:
    """The fuzz target."""
    clang = next((name for name in CLANGS if name and shutil.which(name)), None)
    if clang is None:
        sys.exit(MISSING)
    command = [clang, *FLAGS, f"-I{PLUGIN_SOURCE.parent}", str(TARGET), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMPILE_SECONDS_MAX)
    if done.returncode:
        sys.exit(f"{MISSING if 'libclang_rt' in done.stderr else 'it does not compile'}\n{done.stderr}")
    return output


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="how long; 0: until the inputs are through")
    parser.add_argument("--runs", type=int, default=-1, help="how many inputs; without: as many as the time allows")
    given = parser.parse_args()
    shared = Path("/dev/shm")  # The spool's syncs cost nothing there.
    with TemporaryDirectory(prefix="spiderledger-fuzz-", dir=shared if shared.is_dir() else None) as name:
        folder = Path(name)
        (folder / "corpus").mkdir()
        for number, text in enumerate(seeds()):
            (folder / "corpus" / f"seed-{number}").write_bytes(text)
        (folder / "words").write_text("".join(f'"{word}"\n' for word in (w.replace('"', '\\"') for w in WORDS)))
        options = {
            "max_total_time": given.seconds, "runs": given.runs, "max_len": INPUT_BYTES_MAX, "dict": "words",
            "timeout": INPUT_SECONDS_MAX, "print_final_stats": 1, "verbosity": 0,
        }  # fmt: skip
        command = [str(compiled(folder / "plugin")), *(f"-{key}={value}" for key, value in options.items()), "corpus"]
        return subprocess.run(command, cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
