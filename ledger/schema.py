"""The schema's version: bringing a database up to this software's, and refusing one that does not fit.

A revision names the oldest software that may run on it, so that agents of two releases can work side by
side during an upgrade. Called by `spiderledger migrate` and by whatever opens a ledger.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, inspect, select

import migrations
from ledger.dialects import is_postgresql
from ledger.partitions import make_ahead
from ledger.tables import ledger

SOFTWARE = version("spiderledger")


class SchemaError(Exception):
    """This software and this database do not fit together; the text says what to run."""


def migrate(engine: Engine) -> str:
    """Bring the database up to this software's schema, and make the journal's next partitions; answers the revision.

    A database that is ahead is left as it is.
    """
    known = _scripts()
    with engine.begin() as connection:
        present = MigrationContext.configure(connection).get_current_revision()
        if present is not None and not _knows(known, present):
            return present
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    if is_postgresql(engine):
        with engine.begin() as connection:
            make_ahead(connection)
    return str(known.get_current_head())


def check_schema(engine: Engine) -> None:
    """SchemaError when the tables are missing or older than this software, or newer ones refuse it."""
    known = _scripts()
    with engine.connect() as connection:
        present = MigrationContext.configure(connection).get_current_revision()
        if present == known.get_current_head():
            return
        if present is None or not inspect(connection).has_table("ledger"):
            raise SchemaError("this database holds no ledger yet: run `spiderledger migrate`")
        if _knows(known, present):
            older = f"the schema (revision {present}) is older than this software"
            raise SchemaError(f"{older}: run `spiderledger migrate`")
        oldest = connection.execute(select(ledger.c.oldest_software)).scalar_one()
    if _as_numbers(SOFTWARE) < _as_numbers(oldest):
        asks = f"the schema (revision {present}) asks for Spiderledger {oldest} or newer"
        raise SchemaError(f"{asks}; this is {SOFTWARE}: upgrade it")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _knows(scripts: ScriptDirectory, revision: str) -> bool:
    return any(script.revision == revision for script in scripts.walk_revisions())


def _as_numbers(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split(".") if part.isdigit())
