"""The verb `demo`: sets the stage for the script in `cni.demo.demo`, and says how it ended.

What takes long to import is imported when the demo is asked for. Called by `spiderledger`.
"""

from __future__ import annotations

import os
import sys
import sysconfig
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from ledger.commands import NO, leave

if TYPE_CHECKING:
    from cni.demo.demo import Demo
    from cni.demo.place import Place
    from cni.demo.processes import Processes
    from ledger.database import Database

SOCKET: Final = "agent.sock"
"""Relative to the demo's folder, in which agent and plugins run: a socket's path may have 107 bytes at most."""
PLUGIN: Final = "spiderpool"
USUAL_FOLDERS: Final = (Path("/opt/cni/bin"), Path("/usr/lib/cni"), Path("/usr/libexec/cni"))
STOPPED: Final = 128
"""A shell's exit code for a program that a signal ended is this and the signal's number."""


def add_to(app: typer.Typer) -> None:
    """Give the command line this verb."""
    app.command()(demo)


def demo(context: typer.Context) -> None:
    """Show two network zones at work: ADD and DEL through the real plugin, and the questions of an audit.

    Everything stands in the folder .demo, which is removed at the end, and in a SQLite ledger there; with a PostgreSQL
    address in SPIDERLEDGER_DATABASE in that one, which must have no pools. As root, with `ip`, `ping` and the CNI
    plugin macvlan (looked for in CNI_PATH, too), the pods get real interfaces.

    Exit code: 0 when all went as it must, 1 when something did not, 128 and the signal's number when it was stopped.
    """
    from cni.demo.processes import DemoError, Processes, StoppedError

    began, processes = time.monotonic(), Processes()
    try:
        with processes.stopped_by_signals():
            place = _play(context.obj, processes)
    except DemoError as error:
        leave(f"the demo failed: {error}", NO)
    except StoppedError as error:
        leave(f"the demo was stopped by {error}", STOPPED + error.number)
    except BrokenPipeError:
        raise
    except OSError as error:
        leave(f"the demo failed: {error}", NO)
    left = "is still there" if place.path.exists() else "is removed"
    typer.echo(f"done in {time.monotonic() - began:.1f} s; {place.path.name} {left}")


def _play(database: Database, processes: Processes) -> Place:
    from cni.demo.place import taken

    with ExitStack() as parts:
        place = parts.enter_context(taken(Path.cwd()))
        _demo(database, processes, place, parts).play()
        return place


def _demo(database: Database, processes: Processes, place: Place, parts: ExitStack) -> Demo:
    from cni.demo import scenario
    from cni.demo.audit import CommandLine
    from cni.demo.demo import Demo
    from cni.demo.processes import DemoError, environment
    from cni.demo.runner import Runner, read_chain

    cluster = scenario.read(place.cluster)
    places = {"SPIDERLEDGER_SOCKET": SOCKET, "SPIDERLEDGER_SPOOL": str(place.state / "spool")}
    runner = Runner(processes, _plugin_folders(), place.path, places)
    if runner.find(PLUGIN) is None:
        text = f"no plugin {PLUGIN} in {runner.looked_in}: install spiderledger with pip, which compiles it"
        raise DemoError(text)
    on_server = database.file is None
    secret = {"SPIDERLEDGER_DATABASE": database.address} if on_server else {}
    variables = environment(SPIDERLEDGER_STATE=str(place.state), **places, **secret)
    return Demo(
        place=place,
        parts=parts,
        processes=processes,
        scenario=cluster,
        chain=read_chain(cluster.conflist),
        runner=runner,
        command_line=CommandLine(processes, place, variables, typer.echo),
        say=typer.echo,
        on_server=on_server,
    )


def _plugin_folders() -> list[Path]:
    """Those of CNI_PATH, then where the installation has put ours, before a folder that may have another's."""
    said = [Path(each).absolute() for each in os.environ.get("CNI_PATH", "").split(":") if each]
    ours = [Path(sysconfig.get_path("scripts")), Path(sys.prefix) / "bin"]
    return list(dict.fromkeys([*said, *ours, *USUAL_FOLDERS]))
