"""DELs that could not be applied yet: one file each, written by the plugin, or by the agent while the database is away.

The name is `<container id>:<interface>`, the content the plugin's request body. The first file of a name stays:
it carries the time at which the container really ended.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final, NamedTuple

FILES_MAX: Final = 10_000
HALF_WRITTEN_SECONDS_MAX: Final = 300
FILE_MODE: Final = 0o600
FOLDER_MODE: Final = 0o700
UNREADABLE: Final = ".unreadable"
"""A file that is no request is set aside under this ending: it is evidence, and must not stop the others."""


class Spooled(NamedTuple):
    """One DEL that waits."""

    path: Path
    body: bytes


class SpoolFullError(OSError):
    """There is no room for another DEL: the caller must say so, and the runtime will ask again."""


class Spool:
    """One agent's spool. The plugin writes into it whenever it likes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        self._sweep()

    def waiting(self, limit: int) -> list[Spooled]:
        """What waits, oldest first, at most `limit`."""
        with os.scandir(self.folder) as entries:
            names = [entry.path for entry in entries if _is_request(entry.name)]
        paths = sorted(map(Path, names), key=_age)[:limit]
        return [Spooled(path, body) for path in paths if (body := _read(path)) is not None]

    def has(self, container: str) -> bool:
        """Whether a DEL of this container waits."""
        with os.scandir(self.folder) as entries:
            return any(entry.name.startswith(f"{container}:") for entry in entries if _is_request(entry.name))

    def keep(self, container: str, interface: str, body: bytes) -> None:
        """Write a DEL down, durably. SpoolFullError, or OSError from the disk, when that failed."""
        final = self.folder / f"{container}:{interface}"
        with os.scandir(self.folder) as entries:
            if sum(1 for _ in entries) >= FILES_MAX:
                raise SpoolFullError(f"{self.folder} holds {FILES_MAX} DELs already")
        temporary = self.folder / f".tmp-agent-{os.getpid()}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, FILE_MODE)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, final)
        except FileExistsError:
            return
        finally:
            temporary.unlink()
        self._sync()

    def applied(self, done: Spooled) -> None:
        """It is in the ledger now. Should the removal be lost, applying it again does nothing."""
        done.path.unlink(missing_ok=True)

    def set_aside(self, bad: Spooled) -> None:
        """It is no request."""
        bad.path.replace(bad.path.with_name(bad.path.name + UNREADABLE))

    def _sweep(self) -> None:
        """Remove what a crash left half written; a plugin at work right now is younger."""
        for path in self.folder.glob(".tmp-*"):
            if time.time() - path.stat().st_mtime > HALF_WRITTEN_SECONDS_MAX:
                path.unlink(missing_ok=True)

    def _sync(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _is_request(name: str) -> bool:
    return not name.startswith(".") and not name.endswith(UNREADABLE)


def _age(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
