"""The witness: the last event this agent saw acknowledged, kept on disk beside its spool.

It is written without waiting for the disk: what it protects against is a database that goes back in
time, and after a crash of the node an older witness still tells most such databases from the true one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final, NamedTuple

from ledger.events import EPOCH_SHIFT, Event

RECORD_BYTES: Final = 128


class Witness(NamedTuple):
    """Enough to find exactly one event again."""

    tx: int
    id: int

    @property
    def epoch(self) -> int:
        """The life of the database in which it was recorded."""
        return self.tx >> EPOCH_SHIFT


class WitnessFile:
    """One agent's witness, written over in place. Of two threads that saw an event, either may be the last."""

    def __init__(self, path: Path | None) -> None:
        self.latest = _read(path) if path else None
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600) if path else None

    def saw(self, event: Event) -> None:
        """This event was acknowledged."""
        self.latest = Witness(event.tx, event.id)
        if self._descriptor is not None:
            # One short write, padded: renaming a new file over the old would cost a lone ADD a millisecond.
            os.pwrite(self._descriptor, json.dumps(self.latest._asdict()).ljust(RECORD_BYTES).encode(), 0)


def _read(path: Path) -> Witness | None:
    """The witness of the run before. A torn file is no witness: better none than one that fences a good ledger."""
    try:
        return Witness(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
