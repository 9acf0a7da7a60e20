"""The command `spiderledger`: it alone knows all three packages, opens databases, and puts the parts together."""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

import cni.commands
import cni.demo.command
import ledger.commands
import projector.commands
from ledger.commands import CANNOT, SOCKET, leave, stop_on_signals
from ledger.database import Database, DatabaseAddressError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from cni.agent import Agent
    from cni.named import NamedFolder
    from ledger.store import Ledger

log = logging.getLogger("spiderledger")

STATE: Final = Path("/var/lib/spiderledger")
PRIVATE: Final = 0o077
"""Files, folders and the socket are their user's alone, whatever umask this was started with."""
SWITCH_SECONDS: Final = 0.0005
"""A lone ADD must not wait the usual five milliseconds for a background thread to give the interpreter up."""
YOUNG_OBJECTS_MAX: Final = 50_000
"""The collector looks at new objects after so many: after the usual 700 it would at every single ADD."""
AGENT_CONNECTIONS: Final = 2
"""One commits, the other reads the definition."""
LEAVE_SECONDS_MAX: Final = 5.0
PROJECTOR_PAUSE_SECONDS: Final = 1.0

app = typer.Typer(
    name="spiderledger",
    help="IP addresses for Kubernetes underlay networks, kept in a ledger that can prove who had which when.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for part in (ledger.commands, cni.commands, projector.commands, cni.demo.command):
    part.add_to(app)


@app.callback()
def spiderledger(
    context: typer.Context,
    database_file: Annotated[
        Path | None, typer.Option(help="A file whose first line is the database's address.", dir_okay=False)
    ] = None,
    state: Annotated[
        Path, typer.Option(envvar="SPIDERLEDGER_STATE", help="The agent's own folder: spool, witness, SQLite ledger.")
    ] = STATE,
) -> None:
    """The database is SPIDERLEDGER_DATABASE (postgresql://… or sqlite:///PATH), else the state folder's ledger.db."""
    os.umask(PRIVATE)
    # Not an option: a password on a command line is everybody's.
    address = os.environ.get("SPIDERLEDGER_DATABASE") or str(state / "ledger.db")
    if database_file is not None:
        try:
            address = database_file.read_text().partition("\n")[0].strip()
        except OSError as error:
            leave(f"{database_file}: {error.strerror}")
    context.obj = Database(address, state)


@app.command()
def agent(
    context: typer.Context,
    cluster: Annotated[
        Path | None, typer.Option(help="A folder with the cluster's objects as YAML, instead of an API server.")
    ] = None,
    node: Annotated[
        str, typer.Option(envvar="SPIDERPOOL_NODE_NAME", help="This node's name; a folder's agent serves all without")
    ] = "",
    socket_path: Annotated[
        Path, typer.Option("--socket", envvar="SPIDERLEDGER_SOCKET", help="Where the plugin finds the agent.")
    ] = SOCKET,
    cluster_name: Annotated[str, typer.Option(help="Part of every claim, where clusters share a ledger.")] = "",
    namespace: Annotated[
        str, typer.Option(envvar="SPIDERPOOL_POD_NAMESPACE", help="Spiderledger's own, for multusName.")
    ] = "kube-system",
    multus_network: Annotated[
        str, typer.Option(envvar="MULTUS_CLUSTER_NETWORK", help="What eth0 is attached to when a pod does not say.")
    ] = "",
    doubt: Annotated[
        float | None, typer.Option(help="Seconds in which a restarted PostgreSQL server is doubted (15).", min=0)
    ] = None,
    gc_min_age: Annotated[
        float | None, typer.Option(help="Seconds in which a new binding is safe from a GC that lacks it (60).", min=0)
    ] = None,
    log_level: Annotated[
        str, typer.Option(envvar="SPIDERPOOL_LOG_LEVEL", help="debug, info, warning or error.")
    ] = "info",
) -> None:
    """Serve the CNI plugin of this node until SIGTERM. On SQLite it also hosts the projector."""
    # Nothing of this is needed by the other verbs, nor by a shell that completes their names.
    from cni.agent import Agent
    from cni.cluster import NoCluster
    from cni.facts import Settings
    from cni.planning import GC_AGE_SECONDS_MIN
    from cni.spool import Spool

    _log(log_level)
    sys.setswitchinterval(SWITCH_SECONDS)
    database: Database = context.obj
    database.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    stop = stop_on_signals()
    with ExitStack() as parts:
        store, engine = _open_ledger(parts, database, doubt)
        folder = _follow(parts, cluster, store, stop) if cluster else None
        if database.file is not None:
            _host_projector(parts, database, engine, stop)
        served = Agent(
            store,
            folder or NoCluster(),
            Spool(database.state / "spool"),
            Settings(cluster_name, multus_cluster_network=multus_network, own_namespace=namespace),
            node=node or socket.gethostname(),
            many_nodes=folder is not None and not node,
            gc_age_seconds=GC_AGE_SECONDS_MIN if gc_min_age is None else gc_min_age,
        )
        _listen(parts, served, socket_path)
        collect_rarely()
        log.info("serving on %s", socket_path)
        stop.wait()
        log.info("finishing what has come in, then leaving")


def _log(level: str) -> None:
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _open_ledger(parts: ExitStack, database: Database, doubt: float | None) -> tuple[Ledger, Engine]:
    """The ledger; a SQLite file is this process's alone, and brought up to date by it."""
    from ledger.schema import migrate
    from ledger.store import Ledger, Settings
    from ledger.writer import AnotherWriterError, WriterLock

    try:
        parts.callback(WriterLock.take(database).release)
    except AnotherWriterError as error:
        leave(str(error))
    engine = database.open(writes=True, connections=AGENT_CONNECTIONS)
    parts.callback(engine.dispose)
    if database.file is not None:
        migrate(engine)
    return Ledger(engine, Settings(witness=database.state / "witness", doubt_seconds=doubt)), engine


def _follow(parts: ExitStack, cluster: Path, store: Ledger, stop: threading.Event) -> NamedFolder:
    """The cluster's folder, read once before anybody calls and then followed."""
    from cni.controller import FolderController
    from cni.folder import Folder
    from cni.named import NamedFolder

    folder = NamedFolder(Folder(cluster), store)
    controller = FolderController(folder, store)
    controller.look_safely()
    _in_background(parts, "folder", lambda: controller.run(stop))
    return folder


def _host_projector(parts: ExitStack, database: Database, engine: Engine, stop: threading.Event) -> None:
    reader = database.open()
    parts.callback(reader.dispose)
    _in_background(parts, "projector", lambda: _project(engine, reader, stop))


def _project(engine: Engine, reader: Engine, stop: threading.Event) -> None:
    """Follow the journal; should somebody else have rebuilt a projection meanwhile, begin where that ended."""
    from projector.checkpoints import AnotherProjectorError
    from projector.projections import PROJECTIONS
    from projector.tail import Tail

    while not stop.is_set():
        try:
            Tail(engine, PROJECTIONS, reader=reader).run(stop)
        except AnotherProjectorError as error:
            log.warning("%s", error)
            stop.wait(PROJECTOR_PAUSE_SECONDS)


def _listen(parts: ExitStack, served: Agent, path: Path) -> None:
    from cni.server import Server

    try:
        server = Server(path, served.received)
    except OSError as error:
        leave(f"no socket at {path}: {error}")
    parts.callback(server.close)
    served.start(server)
    parts.callback(served.stop)


def collect_rarely() -> None:
    """An ADD must not wait while the collector looks at what was loaded until now: it is never garbage."""
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS_MAX)


def _in_background(parts: ExitStack, name: str, run: Callable[[], None]) -> None:
    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    parts.callback(thread.join, LEAVE_SECONDS_MAX)


def main() -> None:
    """Run the command line. What the user can mend is one line on stderr and exit code 2."""
    try:
        app()
    except DatabaseAddressError as error:
        print(f"spiderledger: {error}", file=sys.stderr)  # noqa: T201 - there is no table to print it in
        sys.exit(CANNOT)


if __name__ == "__main__":
    main()
