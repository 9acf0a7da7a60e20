"""The rules of one batch as tables: what is read in, what is written and answered out. No database."""

from __future__ import annotations

