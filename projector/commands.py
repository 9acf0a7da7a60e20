"""The verbs that carry facts out: the projector itself, and the questions of `get` and of an audit.

They read and print; what an answer says is made in `projector.answers`, how it looks in `projector.printing`. What
takes long to import is imported by the verb that needs it. Called by `spiderledger`.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ledger.commands import NO, leave, opened, printable, stop_on_signals

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from ledger.addresses import Ip
    from ledger.journal import Mark
    from projector.lines import AllocationLine, Allocations
    from projector.present import AsOf
    from projector.printing import Document, Since, Table


class Output(StrEnum):
    """How an answer is printed."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


LINES_DEFAULT: Final = 1_000
LINES_MAX: Final = 1_000_000
NAMESPACE_DEFAULT: Final = "default"

OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How it is printed.")]
LimitOption = Annotated[int, typer.Option(min=1, max=LINES_MAX, help="Lines at most, the newest.")]
PodArgument = Annotated[
    str, typer.Argument(metavar="POD", help="NAMESPACE/NAME, or NAME in default.", show_default=False)
]
_TIMES_HELP: Final = "RFC 3339 with its zone, -2h30m, or now"


def add_to(app: typer.Typer) -> None:
    """Give the command line these verbs."""
    get = typer.Typer(help="Print pools, allocations or events.", no_args_is_help=True)
    for question in (pools, allocations, events):
        get.command()(question)
    app.add_typer(get, name="get")
    for verb in (who_held, history, explain, projector):
        app.command()(verb)


# What there is ----------------------------------------------------------------------------------


def pools(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Print how full each pool is, by name.

    Exit code: 0, also when there is none; 2 when it could not be told.
    """
    from projector import answers, printing

    with opened(context.obj) as engine:
        found = answers.pools(engine)
    if not found.as_of.complete:
        _note(printing.up_to(found.as_of))
    _print(
        output,
        lambda wide: printing.pool_table(found.lines, wide=wide),
        lambda: printing.listed(map(printing.pool_document, found.lines), found.as_of),
    )


def allocations(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Print who holds which address now, in the order of addresses.

    Exit code: 0, also when there is none; 2 when it could not be told.
    """
    from projector import printing

    with opened(context.obj) as engine:
        lines, since, as_of = _all_allocations(engine)
    _print(
        output,
        lambda wide: printing.allocation_table(lines, since, wide=wide),
        lambda: printing.listed((printing.allocation_document(line, since) for line in lines), as_of),
    )


def events(
    context: typer.Context,
    output: OutputOption = Output.TABLE,
    limit: LimitOption = LINES_DEFAULT,
    types: Annotated[list[str] | None, typer.Option("--type", help="Of this type; may be said again.")] = None,
    ip: Annotated[str, typer.Option(help="Of this address.", show_default=False)] = "",
    pool: Annotated[str, typer.Option(help="Of this pool.", show_default=False)] = "",
    pod: Annotated[str, typer.Option(help="Of this pod.", show_default=False)] = "",
    node: Annotated[str, typer.Option(help="On this node.", show_default=False)] = "",
    since: Annotated[str, typer.Option(help=f"Recorded then or later ({_TIMES_HELP}).", show_default=False)] = "",
    until: Annotated[str, typer.Option(help="Recorded before.", show_default=False)] = "",
    before: Annotated[str, typer.Option(help="Before this event, as `-o wide` calls it.", show_default=False)] = "",
) -> None:
    """Print what has happened, newest first.

    Exit code: 0, also when nothing has; 2 when it could not be told.
    """
    from projector import answers, printing
    from projector.lines import Filter

    namespace, name = _pod(pod) if pod else (None, None)
    with opened(context.obj) as engine:
        wanted = Filter(
            types=_types(types or ()),
            ip=_ip(ip) if ip else None,
            pool=pool or None,
            namespace=namespace,
            name=name,
            node=node or None,
            since=_moment(engine, since) if since else None,
            until=_moment(engine, until) if until else None,
        )
        found = answers.events(engine, limit, wanted, _mark(before) if before else None)
    searched = found.searched_to
    _print(
        output,
        lambda wide: printing.event_table(found.lines, wide=wide),
        lambda: printing.listed(
            map(printing.event_document, found.lines),
            found.as_of,
            searched_to=None if searched is None else searched._asdict(),
        ),
    )
    if searched is not None:
        _note(f"There may be older ones: ask on with --before {searched.tx}/{searched.position}.")


def _all_allocations(engine: Engine) -> tuple[list[AllocationLine], Since, AsOf]:
    """Every page. What the first one's `as_of` promises holds for all: the later ones are newer."""
    from projector import answers

    page = answers.allocations(engine)
    lines, since, as_of = [*page.lines], _since(engine, page), page.as_of
    while page.more:
        page = answers.allocations(engine, after=lines[-1].address.ip)
        lines += page.lines
        since |= _since(engine, page)
    return lines, since, as_of


def _since(engine: Engine, page: Allocations) -> dict[Ip, int | None]:
    """When these holdings began: the row of an address only tells its last event."""
    from projector import images
    from projector.present import present, snapshot
    from projector.projections import HOLDING

    keys = {(line.address.ip, line.address.holding) for line in page.lines if line.address.holding is not None}
    with snapshot(engine) as connection:
        now = present(connection, HOLDING)
        held = now.over(images.read(connection, HOLDING, keys))
    return {held[key].ip: held[key].held_from for key in keys if key in held}


# The audit --------------------------------------------------------------------------------------


def who_held(
    context: typer.Context,
    ip: Annotated[str, typer.Argument(metavar="IP", help="The address.", show_default=False)],
    at: Annotated[str, typer.Option(metavar="T", help=f"When: {_TIMES_HELP}.")] = "now",
    output: OutputOption = Output.TABLE,
) -> None:
    """Print who held an address at a moment, and up to which event and time that holds.

    Exit code: 0 when somebody held it; 1 when nobody did (it was free, cooling, withheld or unknown); 2 when it could
    not be told.
    """
    from projector import answers, printing
    from projector.holders import Standing

    asked = _ip(ip)
    with opened(context.obj) as engine:
        found = answers.who_held(engine, asked, None if at == "now" else _past(engine, at))
    _print(
        output,
        lambda wide: printing.who_held_table(found, wide=wide),
        lambda: printing.who_held_document(found),
        lambda: printing.who_held_sentences(found),
    )
    if found.standing is not Standing.HELD:
        raise typer.Exit(NO)


def history(
    context: typer.Context,
    whose: Annotated[str, typer.Argument(metavar="IP|POD", help="An address, or a pod.", show_default=False)],
    output: OutputOption = Output.TABLE,
    limit: LimitOption = LINES_DEFAULT,
) -> None:
    """Print who has had an address, or which addresses a pod has had, newest first.

    Exit code: 0 when there was a holding, 1 when there was none, 2 when it could not be told.
    """
    from projector import answers, printing

    ip = _address(whose)
    with opened(context.obj) as engine:
        if ip is not None:
            found = answers.history_of_ip(engine, ip, limit)
        else:
            found = answers.history_of_pod(engine, *_pod(whose), limit)
    _print(
        output,
        lambda wide: printing.history_table(found.lines, wide=wide),
        lambda: printing.listed(map(printing.holding_document, found.lines), found.as_of, more=found.more),
        lambda: [printing.up_to(found.as_of)],
    )
    _end(found.lines, more=found.more)


def explain(
    context: typer.Context,
    pod: PodArgument,
    output: OutputOption = Output.TABLE,
    limit: LimitOption = LINES_DEFAULT,
) -> None:
    """Print what a pod was refused and why, pool by pool, and what it got, newest first.

    Exit code: 0 when it ever asked, 1 when it never did, 2 when it could not be told.
    """
    from projector import answers, printing

    with opened(context.obj) as engine:
        found = answers.explain(engine, *_pod(pod), limit)
    _print(
        output,
        lambda wide: printing.explanation_table(found.lines),
        lambda: printing.listed(map(printing.explanation_document, found.lines), found.as_of, more=found.more),
        lambda: [printing.up_to(found.as_of)],
    )
    _end(found.lines, more=found.more)


# The projector ----------------------------------------------------------------------------------


def projector(
    context: typer.Context,
    log_level: Annotated[
        str, typer.Option(envvar="SPIDERPOOL_LOG_LEVEL", help="debug, info, warning or error.")
    ] = "info",
    anew: Annotated[
        str,
        typer.Option("--rebuild", metavar="NAME", help="Make holding or occupancy anew from the journal; end."),
    ] = "",
) -> None:
    """Keep the projections up to date until SIGTERM. A ledger needs one; on SQLite the agent has it in itself.

    A projector that is alive stops when a projection is rebuilt under it: start it again afterwards.

    Exit code: 0 after SIGTERM or a rebuild; 2 when it could not begin, or when another projector is alive.
    """
    from ledger.writer import AnotherWriterError, WriterLock
    from projector.checkpoints import AnotherProjectorError
    from projector.projections import PROJECTIONS
    from projector.tail import Tail, rebuild

    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    stop = stop_on_signals()
    known = [each.name for each in PROJECTIONS]
    if anew and anew not in known:
        leave(f"there is no projection {anew}: choose {' or '.join(known)}")
    with opened(context.obj) as reader, ExitStack() as parts:
        try:
            parts.callback(WriterLock.take(context.obj).release)
            engine = parts.enter_context(opened(context.obj, writes=True))
            if anew:
                rebuild(engine, anew, reader=reader)
            else:
                Tail(engine, PROJECTIONS, reader=reader).run(stop)
        except (AnotherWriterError, AnotherProjectorError) as error:
            leave(str(error))


# What is asked ----------------------------------------------------------------------------------


def _ip(said: str) -> Ip:
    ip = _address(said)
    if ip is None:
        leave(f"{said!r} is not an IP address")
    return ip


def _address(said: str) -> Ip | None:
    """The address, also with the prefix that `get allocations` prints behind it."""
    from ledger.addresses import parse

    address, _, prefix = said.partition("/")
    try:
        return parse(address) if prefix.isdecimal() or "/" not in said else None
    except ValueError:
        return None


def _pod(said: str) -> tuple[str, str]:
    namespace, slash, name = said.rpartition("/")
    if not name or "/" in namespace:
        leave(f"{said!r} names no pod: say NAMESPACE/NAME, or NAME for one in {NAMESPACE_DEFAULT}")
    return (namespace if slash else NAMESPACE_DEFAULT), name


def _types(said: Iterable[str]) -> frozenset[str]:
    from ledger.events import TYPES

    unknown = frozenset(said) - TYPES
    if unknown:
        leave(f"there is no type {', '.join(sorted(unknown))}: choose from {', '.join(sorted(TYPES))}")
    return frozenset(said)


def _mark(said: str) -> Mark:
    from ledger.journal import Mark

    found = re.fullmatch(r"([0-9]{1,18})/([0-9]{1,18})", said)
    if found is None:
        leave(f"{said!r} is not an event: say it as `-o wide` prints it, for example 17592186044417/12")
    return Mark(int(found[1]), int(found[2]))


def _past(engine: Engine, said: str) -> int:
    at = _moment(engine, said)
    if at > _clock(engine):
        leave(f"{said} lies in the future, of which the ledger knows nothing: ask for now")
    return at


def _moment(engine: Engine, said: str) -> int:
    from ledger.times import moment

    try:
        return moment(said, _clock(engine))
    except ValueError as error:
        leave(str(error))


def _clock(engine: Engine) -> int:
    """The database's, which is the authority."""
    from projector.present import as_of, snapshot

    with snapshot(engine) as connection:
        return as_of(connection).read_at


# What is printed --------------------------------------------------------------------------------


def _print(
    output: Output,
    table: Callable[[bool], Table],
    document: Callable[[], Document],
    sentences: Callable[[], list[str]] = list,
) -> None:
    """The one of the three that is wanted; the sentences stand below a table, on the same stream."""
    from projector import printing

    if output in (Output.JSON, Output.YAML):
        typer.echo(printing.written(document(), as_yaml=output is Output.YAML))
        return
    drawn = table(output is Output.WIDE)
    said = [printable(sentence) for sentence in sentences()]
    if not drawn.rows:
        typer.echo("\n".join(["No resources found.", *said]), err=True)
        return
    heading, *lines = printing.laid_out(drawn._replace(rows=[tuple(map(printable, row)) for row in drawn.rows]))
    _print_heading(heading)
    typer.echo("\n".join([*lines, *([""] if said else []), *said]))


def _print_heading(heading: str) -> None:
    if not sys.stdout.isatty():
        typer.echo(heading)
        return
    from rich.console import Console
    from rich.text import Text

    Console(highlight=False).print(Text(heading, style="bold"), soft_wrap=True)


def _end(lines: tuple[object, ...], *, more: bool) -> None:
    if more:
        _note("There are older ones: ask for more with --limit.")
    if not lines:
        raise typer.Exit(NO)


def _note(sentence: str) -> None:
    typer.echo(printable(sentence), err=True)
