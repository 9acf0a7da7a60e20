"""The demo's folder: everything it writes stands in there, and the folder goes when the demo ends.

A lock in it is held by the demo and by its agent, so that a folder left over by a demo that was killed can be told from
one in use. Only a folder with that lock, or an empty one, is ever removed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cni.demo.processes import LOOK_SECONDS, DemoError

NAME: Final = ".demo"
SCENARIO: Final = Path(__file__).parent / "cross-zone"
LOCK: Final = "spiderledger-demo.lock"
PID_BYTES_MAX: Final = 20
LEAVING_SECONDS_MAX: Final = 10.0
"""What the agent of a demo that was killed gets to end: the kernel tells it to."""


@dataclass(frozen=True)
class Place:
    """One demo's folder, and the descriptor of its lock, for the agent to hold as well."""

    path: Path
    lock: int

    @property
    def cluster(self) -> Path:
        """The scenario, copied."""
        return self.path / "cluster"

    @property
    def state(self) -> Path:
        """The agent's own folder, with the ledger if it is in a file."""
        return self.path / "state"

    @property
    def log(self) -> Path:
        """What the agent says."""
        return self.path / "agent.log"

    @property
    def last_words(self) -> str:
        """The last line that the agent has said."""
        lines = self.log.read_text(errors="replace").split("\n") if self.log.exists() else []
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")


@contextmanager
def taken(folder: Path) -> Iterator[Place]:
    """The demo's folder in this one, with a fresh scenario in it; removed at the end. DemoError when it cannot be."""
    path = folder / NAME
    try:
        _clear(path)
        path.mkdir(mode=0o700)
    except OSError as error:
        raise DemoError(f"{error.filename or path}: {error.strerror}") from error
    lock = _lock(path)
    try:
        # Copied without modes: an installation may be read-only.
        shutil.copytree(SCENARIO, path / "cluster", copy_function=shutil.copyfile)
        yield Place(path, lock)
    finally:
        shutil.rmtree(path)
        os.close(lock)


def _clear(path: Path) -> None:
    """Remove what a demo left over that was killed; DemoError when that is still in use, or somebody else's."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise DemoError(f"{path} is not a folder of the demo: move it away, or start in another folder")
    if not path.exists():
        return
    if not any(path.iterdir()):
        path.rmdir()
        return
    if not (path / LOCK).is_file():
        raise DemoError(f"{path} was not made by the demo: move it away, or start in another folder")
    lock = _lock(path)
    try:
        shutil.rmtree(path)
    finally:
        os.close(lock)


def _lock(path: Path) -> int:
    """The lock, which goes with the processes that hold it; DemoError when another demo has it."""
    descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LEAVING_SECONDS_MAX
    while not _locked(descriptor):
        owner = os.pread(descriptor, PID_BYTES_MAX, 0).decode(errors="replace").strip()
        if _lives(owner) or time.monotonic() > deadline:
            os.close(descriptor)
            raise DemoError(f"another demo is using {path} (process {owner}, or the agent that it left)")
        time.sleep(LOOK_SECONDS)
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lives(owner: str) -> bool:
    """Whether there is such a process. One that has not written its number yet has only just begun."""
    return not owner.isdecimal() or Path("/proc", owner).exists()
