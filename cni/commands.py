"""The verb that puts the CNI plugin where the container runtime looks for it.

The plugin is a program that was compiled when this software was installed; here it is only copied. Called by
`spiderledger`.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Annotated, Final

import typer

from ledger.commands import leave

PLUGIN_NAME: Final = "spiderpool"
"""As CNI configurations call it: `"ipam": {"type": "spiderpool"}`."""
PLUGIN_MODE: Final = 0o755


def add_to(app: typer.Typer) -> None:
    """Give the command line this verb."""
    app.command()(install_plugin)


def install_plugin(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The runtime's plugin folder, often /opt/cni/bin.", show_default=False)
    ],
) -> None:
    """Copy the CNI plugin `spiderpool` into DIR. One that is there is replaced at once, also while it runs.

    Exit code: 0 when it is there, 2 when it cannot be put there.
    """
    plugin = _plugin()
    if not folder.is_dir():
        leave(f"{folder} is not a folder")
    target = folder / PLUGIN_NAME
    try:
        _put(plugin, target)
    except OSError as error:
        leave(f"{target} could not be written: {error.strerror}")
    typer.echo(f"installed {target}")


def _plugin() -> Path:
    """Where the installation has put it: among its scripts."""
    folders = dict.fromkeys((Path(sysconfig.get_path("scripts")), Path(sys.prefix) / "bin"))
    found = [folder / PLUGIN_NAME for folder in folders if (folder / PLUGIN_NAME).is_file()]
    if not found:
        looked = " nor in ".join(map(str, folders))
        leave(f"no plugin {PLUGIN_NAME} in {looked}: install spiderledger with pip, which compiles it")
    return found[0]


def _put(plugin: Path, target: Path) -> None:
    """All of it or nothing: the runtime may start the plugin at any moment."""
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as copy, plugin.open("rb") as original:
            shutil.copyfileobj(original, copy)
            copy.flush()
            os.fchmod(copy.fileno(), PLUGIN_MODE)
            os.fsync(copy.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
