"""Whether the ledger may be acted on: is this the server it was, and does it still know what we saw acknowledged?

A restore that nobody announced would hand out live addresses again. So every batch looks for the last event
its agent saw acknowledged (its *witness*), and a server that was started anew is doubted for a while, in
which every agent connects and looks for its own. A witness of an earlier epoch than the ledger's is settled by the
restore that opened this one: it is not looked for. Pure; `ledger.store` makes the transitions, each an event.
"""

from __future__ import annotations

from enum import Enum

from ledger.images import Head


class Standing(Enum):
    """What a batch may do, and what must be recorded first."""

    OPEN = "act"
    NEW = "record that the ledger was opened on this server"
    DOUBT = "record that another server answers, and wait"
    DOUBTED = "wait until the doubt is over"
    TRUST = "record that the doubt is over, then act"
    LOST = "record that an acknowledged event is missing, and stop"
    FENCED = "stop until `restore` opens a new epoch"


def standing(head: Head, *, doubt_us: int) -> Standing:
    """Judge what one batch has read. With no window to wait for, a server that knows our witness is trusted at once."""
    if head.fenced is not None:
        return Standing.FENCED
    if head.incarnation == "":
        return Standing.NEW  # Whatever comes next, a journal begins with being opened.
    if not head.witnessed:
        return Standing.LOST
    if head.incarnation == head.present:
        return Standing.OPEN
    if doubt_us == 0:
        return Standing.TRUST
    if head.doubted != head.present:
        return Standing.DOUBT
    return Standing.TRUST if head.now >= (head.doubt_until or 0) else Standing.DOUBTED
