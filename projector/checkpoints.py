"""The statements about checkpoints: how far each projection has read, moved only by whoever knows where it stands.

Called by `projector.tail`, which moves them, and by `projector.present`, which reads them.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from sqlalchemy import Connection, bindparam, select, update

from ledger.dialects import Conflict
from ledger.driver import joined
from ledger.journal import Mark
from ledger.tables import checkpoint

BEGINNING: Final = Mark()
DROPPED: Final = Mark(-1, -1)
"""Where a projection stands whose rows are being deleted: what is left of them means nothing."""

_move = (
    update(checkpoint)
    .where(
        checkpoint.c.projection == bindparam("name"),
        checkpoint.c.tx == bindparam("old_tx"),
        checkpoint.c.position == bindparam("old_position"),
    )
    .values(tx=bindparam("new_tx"), position=bindparam("new_position"))
)


class AnotherProjectorError(Exception):
    """Somebody else has moved a checkpoint: this projector must stop, the other one carries on."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the checkpoint of the projection {name} was moved by somebody else: another projector is alive "
            "(or a rebuild is running, or an older database was put in place), and this one stops"
        )
        self.name = name


def marks(connection: Connection, names: Collection[str]) -> dict[str, Mark]:
    """How far is each of them? One that has never run is at the beginning."""
    query = select(checkpoint).where(checkpoint.c.projection.in_(names))
    found = {row.projection: Mark(row.tx, row.position) for row in connection.execute(query)}
    return {name: found.get(name, BEGINNING) for name in names}


def move(connection: Connection, name: str, old: Mark, new: Mark) -> None:
    """From where it is known to be to where it is now; AnotherProjectorError when it is not there any more.

    Until the transaction ends, another projector that moves it waits, and then finds it gone.
    """
    if old == BEGINNING:
        _put(connection, name, BEGINNING, replace=False)
    values = {"name": name, "old_tx": old.tx, "old_position": old.position}
    values |= {"new_tx": new.tx, "new_position": new.position}
    if connection.execute(_move, values).rowcount != 1:
        raise AnotherProjectorError(name)


def reset(connection: Connection, name: str) -> None:
    """Whoever stands there: its rows are to be deleted and made anew."""
    _put(connection, name, DROPPED, replace=True)


def _put(connection: Connection, name: str, mark: Mark, *, replace: bool) -> None:
    conflict = Conflict.REPLACES if replace else Conflict.IGNORED
    joined(connection).put(checkpoint, [(name, *mark)], conflict)
