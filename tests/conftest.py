"""Fixtures: real databases, one fresh ledger a test, the same test body for both kinds."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text

from hatch_build import PLUGIN_NAME, compile_plugin
from ledger.database import database_url, open_engine
from ledger.schema import migrate
from tests.postgresql import NoServerError, Server

TEMPLATE = "ledger_template"
_numbers = count(1)
_ran: Counter[str] = Counter()


@dataclass(frozen=True)
class Database:
    """A fresh, migrated ledger."""

    kind: str
    url: str
    engines: list[Engine] = field(default_factory=list)

    def engine(self, *, writes: bool = True, connections: int = 4) -> Engine:
        """A new engine on it, as the product opens one; closed with the test."""
        self.engines.append(open_engine(self.url, writes=writes, connections=connections))
        return self.engines[-1]

    def dispose(self) -> None:
        """Close what the test opened."""
        for engine in self.engines:
            engine.dispose()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The PostgreSQL server that tests share; whoever stops one makes a server of his own."""
    try:
        running = Server().create().start()
    except NoServerError as error:
        pytest.exit(str(error), returncode=1)
    yield running
    running.remove()


@pytest.fixture(scope="session")
def template(server: Server) -> str:
    """A migrated database that tests clone."""
    command(server, f"CREATE DATABASE {TEMPLATE}")
    engine = open_engine(server.url(TEMPLATE))
    migrate(engine)
    engine.dispose()
    return TEMPLATE


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated file that tests copy."""
    path = tmp_path_factory.mktemp("template") / "ledger.db"
    engine = open_engine(f"sqlite:///{path}")
    migrate(engine)
    with engine.connect() as connection:
        connection.exec_driver_sql("COMMIT")
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()
    return path


@contextmanager
def sqlite_ledger(template: Path, folder: Path) -> Iterator[Database]:
    """A fresh ledger in a file of this folder."""
    path = folder / "ledger.db"
    path.write_bytes(template.read_bytes())
    path.chmod(0o600)
    database = Database("sqlite", f"sqlite:///{path}")
    try:
        yield database
    finally:
        database.dispose()


@contextmanager
def postgresql_ledger(server: Server, template: str) -> Iterator[Database]:
    """A fresh ledger on the server."""
    name = f"ledger_{next(_numbers)}"
    command(server, f"CREATE DATABASE {name} TEMPLATE {template}")
    database = Database("postgresql", server.url(name))
    try:
        yield database
    finally:
        database.dispose()
        command(server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def sqlite(sqlite_template: Path, tmp_path: Path) -> Iterator[Database]:
    """A ledger in a file."""
    with sqlite_ledger(sqlite_template, tmp_path) as database:
        yield database


@pytest.fixture
def postgresql(server: Server, template: str) -> Iterator[Database]:
    """A ledger on the server."""
    with postgresql_ledger(server, template) as database:
        yield database


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CNI plugin, compiled as the wheel has it."""
    output = tmp_path_factory.mktemp("plugin") / PLUGIN_NAME
    compile_plugin(output)
    return output


@pytest.fixture(params=["sqlite", "postgresql"])
def ledgers(request: pytest.FixtureRequest) -> Callable[[Path], AbstractContextManager[Database]]:
    """Fresh ledgers of each kind in turn, as many as a test needs; each has a folder to itself."""
    if request.param == "sqlite":
        return partial(sqlite_ledger, request.getfixturevalue("sqlite_template"))
    server, template = request.getfixturevalue("server"), request.getfixturevalue("template")
    return lambda folder: postgresql_ledger(server, template)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Database:
    """Each of the two, in turn."""
    found: Database = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Tell a line also where a test that passes says nothing."""

    def tell(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}", file=sys.stderr, flush=True)  # noqa: T201 - a report that somebody asked for

    return tell


def command(server: Server, statement: str) -> None:
    """What only the server's owner may say, outside of any transaction."""
    engine = create_engine(database_url(server.url()), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(statement))
    engine.dispose()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count what ran on which database."""
    if report.when == "call":
        for kind in ("sqlite", "postgresql"):
            if kind in report.nodeid.partition("[")[2] or kind in report.keywords:
                _ran[kind] += 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with the database that it stands on, by the fixture it asks for."""
    for item in items:
        for kind in ("sqlite", "postgresql"):
            if kind in getattr(item, "fixturenames", ()):
                item.keywords[kind] = True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A run that silently left a database out would prove nothing."""
    terminalreporter.write_line(f"ran on SQLite: {_ran['sqlite']}, on PostgreSQL: {_ran['postgresql']}")
