"""The ledger's own verbs (migrate, verify, allocate, release, restore), and how every verb opens a ledger and fails.

A verb leaves with 0 for yes or done, with `NO` for no (a fault, a refusal, nobody), and with `CANNOT` when the question
could not be put. What takes long to import is imported by the verb that needs it: completion starts this program at
each Tab. Called by `spiderledger`.
"""

from __future__ import annotations

import getpass
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from ledger.database import Database

NO: Final = 1
CANNOT: Final = 2
SOCKET: Final = Path("/var/run/spidernet/spiderpool.sock")
OPERATOR_PATH: Final = "/v1/operator"
AGENT_SECONDS_MAX: Final = 30.0
"""How long an agent may take to carry an order out."""
BLAMED_STATES: Final = ("42501", "25006")
"""What a user can mend although the server answers: a role without the right, a standby that only reads."""


def add_to(app: typer.Typer) -> None:
    """Give the command line these verbs."""
    for verb in (migrate, verify, allocate, release, restore):
        app.command()(verb)


def migrate(context: typer.Context) -> None:
    """Bring the database to this software's schema, from nothing or from an older one.

    Exit code: 0 when it is there, 2 when it cannot be brought there.
    """
    database: Database = context.obj
    with explained():
        from ledger.schema import check_schema
        from ledger.schema import migrate as bring_up
        from ledger.writer import WriterLock

        if database.file is not None:
            database.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _released(WriterLock.take(database)), _engine(database, writes=True) as engine:
            revision = bring_up(engine)
            check_schema(engine)
    typer.echo(f"the schema is at revision {revision}")


def verify(context: typer.Context) -> None:
    """Hold every table against the journal, and the journal against its digests. Changes nothing.

    Exit code: 0 when all is right, 1 when there are faults, 2 when something could not be judged.
    """
    with opened(context.obj) as engine:
        from ledger.verify import verify as judge

        report = judge(engine)
    for fault in report.faults:
        typer.echo(printable(f"{fault.where}: {fault.text}"))
    for open_question in report.unjudged:
        typer.echo(printable(f"not judged: {open_question.where}: {open_question.text}"), err=True)
    read = f"{report.events} events, {report.addresses} addresses, up to event {report.mark.tx}/{report.mark.position}"
    if report.faults:
        leave(f"faults: {len(report.faults)} in {read}", NO)
    if report.unjudged:
        leave(f"no fault found, but not everything could be judged: {read}")
    typer.echo(f"no faults: {read}")


Reason = Annotated[str, typer.Option(help="Why; it stays in the journal for ever.", show_default=False)]
Operator = Annotated[str, typer.Option(help="Who orders it; by default whoever is logged in.", show_default=False)]
AgentSocket = Annotated[
    Path,
    typer.Option("--socket", envvar="SPIDERLEDGER_SOCKET", help="The agent's, if one writes to a SQLite ledger."),
]


def allocate(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Who gets it.", show_default=False)],
    pool: Annotated[str, typer.Option(help="The pool it is taken from.", show_default=False)],
    reason: Reason,
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="The namespace of NAME.")] = "default",
    address: Annotated[str, typer.Option(help="Exactly this address.", show_default=False)] = "",
    operator: Operator = "",
    socket_path: AgentSocket = SOCKET,
) -> None:
    """Give NAME an address by hand. It keeps it until `release`; asked again, it gets the same one.

    Exit code: 0 when NAME holds it, 1 when it is refused, 2 when it could not be asked for.
    """
    said = {"name": name, "namespace": namespace, "pool": pool, "address": address or None}
    done = _carry_out(context.obj, {"allocate": {**said, **_signed(operator, reason)}}, socket_path)
    whose = f"{done['namespace']}/{done['name']}"
    typer.echo(printable(f"{done['address']} is held by {whose} (pool {done['pool']})"))


def release(
    context: typer.Context,
    ip: Annotated[str, typer.Argument(metavar="IP", help="The address.", show_default=False)],
    reason: Reason,
    operator: Operator = "",
    socket_path: AgentSocket = SOCKET,
) -> None:
    """Take an address from whoever holds it, by hand. A pod that runs does not notice: be sure that it is gone.

    Exit code: 0 when it is released, 1 when nobody holds it or it is refused, 2 when it could not be asked for.
    """
    done = _carry_out(context.obj, {"release": {"address": ip, **_signed(operator, reason)}}, socket_path)
    from ledger.claims import claim_of

    claim = claim_of(done["claim"])
    typer.echo(printable(f"{done['address']} is released; {claim.namespace}/{claim.name} held it"))


def restore(
    context: typer.Context,
    reason: Reason,
    accept_loss: Annotated[
        bool, typer.Option("--accept-loss", help="Do it. Otherwise it is only told what would be done.")
    ] = False,
    operator: Operator = "",
    socket_path: AgentSocket = SOCKET,
) -> None:
    """Open a fenced ledger again, without the events that its database has lost. First try to bring those back.

    Exit code: 0 when it is open, 1 when nothing was done, 2 when it could not be asked for.
    """
    from ledger.times import rfc3339

    signed = _signed(operator, reason)
    loss = _carry_out(context.obj, {"restore": signed}, socket_path)
    typer.echo(printable(f"the ledger is fenced: {loss['reason']}"))
    for line in _LOSS.format(**{**loss, "at": rfc3339(loss["at"], exact=False)}).splitlines():
        typer.echo(line)
    if not accept_loss:
        leave("nothing was done: say --accept-loss if that is to be", NO)
    _carry_out(context.obj, {"restore": {**signed, "epoch": loss["epoch"]}}, socket_path)
    typer.echo(f"the ledger is open: epoch {loss['epoch']} has begun")


_LOSS: Final = """\
its journal ends with event {tx}/{position}, recorded at {at}
addresses that were given after that are not known here: who has one keeps it, and it may be given to others as well
epoch {epoch} begins with this journal: nothing is adopted, and what agents saw before does not fence the ledger again
"""


# Ending -----------------------------------------------------------------------------------------


def stop_on_signals() -> threading.Event:
    """An event that SIGTERM and SIGINT set. To be called before any other thread is started.

    A thread of its own waits for them. A handler would run in the main thread, between two steps of its `wait` for this
    very event, and `set` would then wait for a lock that is never given back.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    stop = threading.Event()

    def wait() -> None:
        signal.sigwait(_STOPPING)
        stop.set()

    threading.Thread(target=wait, name="signals", daemon=True).start()
    return stop


_STOPPING: Final = frozenset((signal.SIGTERM, signal.SIGINT))


# Opening a ledger -------------------------------------------------------------------------------


@contextmanager
def opened(database: Database, *, writes: bool = False) -> Iterator[Engine]:
    """An engine on a ledger that this software fits; one line and exit code 2 where there is none."""
    with explained():
        from ledger.schema import check_schema

        _must_exist(database)
        with _engine(database, writes=writes) as engine:
            check_schema(engine)
            yield engine


@contextmanager
def explained() -> Iterator[None]:
    """Whatever is not this software's fault is one line and exit code 2; a bug keeps its traceback."""
    from sqlalchemy.exc import DBAPIError

    from ledger.database import DatabaseAddressError
    from ledger.schema import SchemaError
    from ledger.store import LedgerAwayError
    from ledger.waiting import away, contended, first_line
    from ledger.writer import AnotherWriterError

    try:
        yield
    except (DatabaseAddressError, SchemaError, AnotherWriterError) as error:
        leave(str(error))
    except LedgerAwayError as error:
        leave(f"the ledger's database does not answer: {error}")
    except DBAPIError as error:
        if contended(error):
            leave(f"others are at work on the ledger, try again: {first_line(error)}")
        if not away(error) and getattr(error.orig, "sqlstate", None) not in BLAMED_STATES:
            raise
        leave(f"the ledger's database does not answer: {first_line(error)}")
    except BrokenPipeError:
        raise
    except OSError as error:
        leave(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def leave(text: str, code: int = CANNOT) -> NoReturn:
    """Say why in one line, and end."""
    typer.echo(f"spiderledger: {printable(text)}", err=True)
    raise typer.Exit(code)


def printable(text: str) -> str:
    """The text in one line, safe for a terminal: names and reasons come from people, and control characters too."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _must_exist(database: Database) -> None:
    """Opening a SQLite file that is not there would make an empty one."""
    if database.file is not None and not database.file.exists():
        leave(f"there is no ledger at {database.file}: run `spiderledger migrate`")


@contextmanager
def _engine(database: Database, *, writes: bool) -> Iterator[Engine]:
    engine = database.open(writes=writes)
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def _released(lock: Any) -> Iterator[None]:
    try:
        yield
    finally:
        lock.release()


# Orders by hand ---------------------------------------------------------------------------------


def _signed(operator: str, reason: str) -> dict[str, str]:
    return {"operator": operator or os.environ.get("USER") or _login(), "reason": reason}


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        leave("nobody is logged in here: say who orders it with --operator")


def _carry_out(database: Database, order: Mapping[str, Any], agent: Path) -> dict[str, Any]:
    """On PostgreSQL directly, on SQLite as its only writer, and through the writer where there is one already."""
    with explained():
        from ledger.writer import AnotherWriterError, WriterLock

        _must_exist(database)
        try:
            lock = WriterLock.take(database)
        except AnotherWriterError as error:
            return _ask(agent, order, str(error))
        with _released(lock), opened(database, writes=True) as engine:
            return _perform(database, engine, order)


def _perform(database: Database, engine: Engine, order: Mapping[str, Any]) -> dict[str, Any]:
    from ledger.operating import OperatorError, perform
    from ledger.store import Ledger, Settings

    # Who holds the lock of a SQLite file stands in for its agent, and knows what that one saw acknowledged. On
    # PostgreSQL the witness of this node belongs to an agent that may be running.
    witness = database.state / "witness" if database.file is not None and database.state.is_dir() else None
    try:
        return perform(Ledger(engine, Settings(witness=witness)), order)
    except OperatorError as error:
        leave(str(error), NO)


def _ask(path: Path, order: Mapping[str, Any], why: str) -> dict[str, Any]:
    """The agent's answer to the order. It alone writes."""
    with closing(HTTPConnection("localhost", timeout=AGENT_SECONDS_MAX)) as agent:
        agent.sock = socket.socket(socket.AF_UNIX)
        agent.sock.settimeout(AGENT_SECONDS_MAX)
        try:
            agent.sock.connect(str(path))
        except OSError as error:
            leave(f"{why}, and no agent answers on {path} ({error.strerror or error}): name its socket with --socket")
        try:
            agent.request("POST", OPERATOR_PATH, json.dumps(order), {"Content-Type": "application/json"})
            response = agent.getresponse()
            status, body = response.status, response.read().decode(errors="replace").strip()
        except (OSError, HTTPException) as error:
            leave(
                f"the agent on {path} did not answer ({error or type(error).__name__}): look what became of the order"
            )
    if status != 200:
        leave(body, NO if status == 422 else CANNOT)
    done: dict[str, Any] = json.loads(body)
    return done
