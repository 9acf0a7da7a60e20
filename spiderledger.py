"""The command `spiderledger`: it alone knows all three packages, opens databases, and puts the parts together."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Final

import typer

import cni.commands
import ledger.commands
import projector.commands
from cni.agent import Agent
from cni.cluster import NoCluster
from cni.controller import FolderController
from cni.facts import Settings
from cni.folder import Folder
from cni.named import NamedFolder
from cni.planning import GC_AGE_SECONDS_MIN
from cni.server import Server
from cni.spool import Spool
from ledger.database import Database, DatabaseAddressError
from ledger.schema import migrate
from ledger.store import BOTH_FAMILIES, DOUBT_SECONDS, Ledger
from ledger.store import Settings as LedgerSettings
from ledger.writer import WriterLock
from projector.projections import PROJECTIONS
from projector.tail import Tail

log = logging.getLogger("spiderledger")

STATE: Final = Path("/var/lib/spiderledger")
SOCKET: Final = Path("/var/run/spidernet/spiderpool.sock")
SWITCH_SECONDS: Final = 0.0005
AGENT_CONNECTIONS: Final = 2
"""One commits, the other reads the definition."""
LEAVE_SECONDS_MAX: Final = 5.0

app = typer.Typer(
    name="spiderledger",
    help="IP addresses for Kubernetes underlay networks, kept in a ledger that can prove who had which when.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for part in (ledger.commands, cni.commands, projector.commands):
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
    # Not an option: a password on a command line is everybody's.
    address = os.environ.get("SPIDERLEDGER_DATABASE") or str(state / "ledger.db")
    if database_file is not None:
        address = database_file.read_text().partition("\n")[0].strip()
    context.obj = Database(address, state)


@app.command()
def agent(
    context: typer.Context,
    cluster: Annotated[
        Path | None, typer.Option(help="A folder with the cluster's objects as YAML, instead of an API server.")
    ] = None,
    node: Annotated[
        str, typer.Option(envvar="SPIDERPOOL_NODE_NAME", help="This node's name; without it a folder's agent serves all.")
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
        float, typer.Option(help="Seconds in which a PostgreSQL server that was restarted is doubted.", min=0)
    ] = DOUBT_SECONDS,
    gc_min_age: Annotated[
        float, typer.Option(help="Seconds for which a new binding is safe from a GC that does not list it.", min=0)
    ] = GC_AGE_SECONDS_MIN,
    log_level: Annotated[
        str, typer.Option(envvar="SPIDERPOOL_LOG_LEVEL", help="debug, info, warning or error.")
    ] = "info",
) -> None:
    """Serve the CNI plugin of this node until SIGTERM. On SQLite it also hosts the projector."""
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # A lone ADD must not wait five milliseconds for a background thread to give the interpreter up.
    sys.setswitchinterval(SWITCH_SECONDS)
    database: Database = context.obj
    database.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings = Settings(cluster_name, BOTH_FAMILIES, multus_network, namespace)
    stop = _stop_on_signals()
    with ExitStack() as parts:
        store, tail = _open_ledger(parts, database, doubt)
        folder = NamedFolder(Folder(cluster), store) if cluster else None
        controller = FolderController(folder, store) if folder else None
        served = Agent(
            store,
            folder or NoCluster(),
            Spool(database.state / "spool"),
            settings,
            node=node or socket.gethostname(),
            many_nodes=folder is not None and not node,
            gc_age_seconds=gc_min_age,
        )
        background = [part for part in (controller, tail) if part is not None]
        if controller is not None:
            controller.look_safely()
        for part in background:
            _in_background(parts, part, stop)
        server = Server(socket_path, served.received)
        parts.callback(server.close)
        served.start(server)
        parts.callback(served.stop)
        log.info("serving on %s", socket_path)
        stop.wait()
        log.info("finishing what has come in, then leaving")


def _open_ledger(parts: ExitStack, database: Database, doubt: float) -> tuple[Ledger, Tail | None]:
    """The ledger, and on SQLite, where this process is the only writer, the projector too."""
    lock = WriterLock.take(database)
    parts.callback(lock.release)
    engine = database.open(writes=True, connections=AGENT_CONNECTIONS)
    parts.callback(engine.dispose)
    if database.file is not None:
        migrate(engine)
    store = Ledger(engine, LedgerSettings(witness=database.state / "witness", doubt_seconds=doubt))
    if database.file is None:
        return store, None
    reader = database.open()
    parts.callback(reader.dispose)
    return store, Tail(engine, PROJECTIONS, reader=reader)


def _in_background(parts: ExitStack, part: FolderController | Tail, stop: threading.Event) -> None:
    thread = threading.Thread(target=part.run, args=(stop,), name=type(part).__name__, daemon=True)
    thread.start()
    parts.callback(thread.join, LEAVE_SECONDS_MAX)


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def main() -> None:
    """Run the command line; errors of the user's are one line and exit code 2."""
    try:
        app()
    except DatabaseAddressError as error:
        sys.exit(f"spiderledger: {error}")


if __name__ == "__main__":
    main()
