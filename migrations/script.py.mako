"""${message}."""

from __future__ import annotations

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
oldest_software = "?"


def upgrade() -> None:
    """Forward only: what a ledger has recorded is never taken back."""
