"""The folder's pools become the ledger's; what cannot be read at the moment proves nothing about them."""

from __future__ import annotations

from pathlib import Path

from cni.controller import FolderController
from cni.folder import Folder
from cni.named import NamedFolder
from ledger.store import Ledger, Settings
from tests.conftest import Database
from tests.test_agent import cluster

__all__ = ["cluster"]


def test_a_pool_is_not_closed_while_it_may_stand_in_a_file_that_cannot_be_read(
    database: Database, cluster: Path
) -> None:
    ledger = Ledger(database.engine(), Settings(doubt_seconds=0))
    controller = FolderController(NamedFolder(Folder(cluster), ledger), ledger)
    controller.look()
    assert [pool.name for pool in ledger.refresh().pools] == ["p"]
    (cluster / "pool.yaml").unlink()
    (cluster / "other.yaml").symlink_to("nowhere")
    controller.look()
    assert [pool.name for pool in ledger.refresh().pools] == ["p"]
    (cluster / "other.yaml").unlink()
    controller.look()
    assert ledger.refresh().pools == ()
