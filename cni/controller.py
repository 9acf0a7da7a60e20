"""From a folder's objects to the ledger's definitions: pools and reservations as events, uids for those without.

A thread of the agent. What the ledger refuses is reported once for each wording, and tried again when the object
changes; what it could not be asked is tried again at the next look.
"""

from __future__ import annotations

import logging
import threading
from typing import Final

from cni.folder import FolderError, Snapshot
from cni.named import NamedFolder
from ledger.admission import AdmissionRefused
from ledger.definition import State
from ledger.definitions import Defined, StillHeldError
from ledger.redefine import Change, ClosePool, DefinePool, DefineReservation, RetirePool, RetireReservation
from ledger.requests import Refusal
from ledger.store import Ledger, LedgerAwayError

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.25
"""How often the folder is looked at."""
ACTOR: Final = "controller"


class FolderController:
    """See the module. `look` may also be called by hand."""

    def __init__(self, folder: NamedFolder, ledger: Ledger) -> None:
        self._folder = folder
        self._ledger = ledger
        self._put_all_in = -1
        """In which epoch everything was put to the ledger: what came back from a backup may lack some of it."""
        self._told: set[str] = set()

    def run(self, stop: threading.Event) -> None:
        """Look until told to stop."""
        while not stop.wait(LOOK_SECONDS):
            self.look_safely()

    def look_safely(self) -> None:
        """Look; what goes wrong is told, and left to the next look."""
        try:
            self.look()
        except LedgerAwayError as error:
            self._tell(f"the folder waits for the ledger: {error}")
        except Exception:
            # The loop must outlive a bug in one look: the agent goes on with what it has.
            log.exception("a look at the folder failed")

    def look(self) -> None:
        """Read the folder, and bring the ledger to what it says."""
        try:
            changes = self._folder.refresh()
        except FolderError as error:
            self._tell(str(error))
            return
        for problem in changes.problems:
            log.warning("%s", problem)
        for kind in changes.passed_over:
            log.info("objects of kind %s are passed over", kind)
        if changes:
            self._put_all_in = -1
        # What is not there may be in a file that cannot be read at the moment: it is looked for when that is over.
        if self._folder.complete and self._put_all_in != self._ledger.epoch:
            self._put_all_in = self._ledger.epoch if self._define_all(self._folder.snapshot) else -1
        self._retire_closed()

    def _define_all(self, snapshot: Snapshot) -> bool:
        """Whether everything was put to the ledger. What ends comes first: its ranges may be another's now."""
        pools = [pool for pool in snapshot.pools() if not pool.metadata.terminating]
        reservations = [each for each in snapshot.reservations() if not each.metadata.terminating]
        there = {pool.metadata.uid for pool in pools} | {each.metadata.uid for each in reservations}
        definition = self._ledger.refresh()
        changes: list[Change] = []
        changes += [RetireReservation(each.uid) for each in definition.reservations if each.uid not in there]
        changes += [ClosePool(pool.uid) for pool in definition.pools if pool.uid not in there]
        changes += [DefineReservation(each) for each in reservations]
        changes += [DefinePool(pool) for pool in pools]
        judged = [self._put(change) for change in changes]
        return all(judged)

    def _retire_closed(self) -> None:
        closed = [pool.uid for pool in self._ledger.definition().pools if pool.state is State.CLOSED]
        for uid in closed:
            self._put(RetirePool(uid))
        if not {pool.uid for pool in self._ledger.definition().pools}.issuperset(closed):
            # What was refused while it stood, by its name or its addresses, may be defined now.
            self._put_all_in = -1

    def _put(self, change: Change) -> bool:
        """Whether the ledger has judged it, one way or the other."""
        try:
            outcome = self._ledger.define(change, actor=ACTOR, cause="folder")
        except StillHeldError:
            return True
        if isinstance(outcome, Refusal):
            self._tell(outcome.text)
            return False
        if isinstance(outcome, AdmissionRefused):
            self._tell(str(outcome))
        assert isinstance(outcome, Defined | AdmissionRefused)
        return True

    def _tell(self, problem: str) -> None:
        if problem not in self._told:
            self._told.add(problem)
            log.warning("%s", problem)
