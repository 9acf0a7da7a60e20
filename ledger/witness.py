"""The witness: the last event this agent saw acknowledged, kept on disk beside its spool.

It is written without waiting for the disk: what it protects against is a database that goes back in
time, and after a crash of the node an older witness still tells most such databases from the true one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from ledger.events import Event


class Witness(NamedTuple):
    """Enough to find exactly one event again."""

    tx: int
    id: int


class WitnessFile:
    """One agent's witness. Only its writer thread calls it."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.latest = _read(path) if path else None

    def saw(self, event: Event) -> None:
        """This event was acknowledged."""
        self.latest = Witness(event.tx, event.id)
        if self._path is not None:
            temporary = self._path.with_name(f".{self._path.name}.tmp")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump(self.latest._asdict(), file)
            temporary.replace(self._path)


def _read(path: Path) -> Witness | None:
    """The witness of the run before. A torn file is no witness: better none than one that fences a good ledger."""
    try:
        return Witness(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
