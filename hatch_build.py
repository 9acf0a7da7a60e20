"""Compiles the CNI plugin, a static C program, and adds it to the wheel as `bin/spiderpool`.

hatchling runs it for wheels and editable installs alike; the tests compile through `compile_plugin`. It does not
look at what is compiled. Whatever is missing on the machine is said in one sentence that names what to install.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

PLUGIN_NAME = "spiderpool"
PLUGIN_SOURCE = Path(__file__).resolve().parent / "cni" / "plugin" / "spiderpool.c"
COMPILER_NAMES = ("cc", "gcc", "clang")
COMPILER_FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror")
STATIC_FLAGS = ("-static", "-s")
COMPILE_SECONDS_MAX = 120
ELF_MACHINE = slice(0, 20)  # Magic, class, byte order, ABI, type and machine.
ELF_VARIES = slice(7, 18)  # The ABI (GNU or System V) and the type (fixed or relocatable) differ on one machine, too.

INSTALL_COMPILER = "install one (Debian: gcc libc6-dev; Fedora: gcc glibc-static) or name it in CC"
INSTALL_LIBC = "install the static C library (Debian: libc6-dev; Fedora: glibc-static; SUSE: glibc-devel-static)"
PROBE = '#include <stdio.h>\nint main(void) { return puts("") < 0; }\n'


class PluginNotCompiledError(Exception):
    """Why there is no plugin, in one sentence that says what to do."""


class PluginBuildHook(BuildHookInterface[BuilderConfig]):
    """Puts the plugin among the wheel's scripts and tags the wheel for this kind of machine."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles before each build of a wheel; a source distribution carries the source as it is."""
        if self.target_name != "wheel":
            return
        self.folder = TemporaryDirectory(prefix="spiderledger-plugin-")  # It goes when the hook does.
        plugin = Path(self.folder.name) / PLUGIN_NAME
        try:
            compile_plugin(plugin)
            tag = wheel_tag(plugin)
        except PluginNotCompiledError as reason:
            self.app.abort(str(reason))
        build_data["shared_scripts"][str(plugin)] = PLUGIN_NAME
        build_data["pure_python"] = False
        build_data["tag"] = tag


def compile_plugin(output: Path) -> None:
    """Compiles the plugin to this file, static and stripped, or raises PluginNotCompiledError."""
    compiler = find_compiler()
    errors = _compile(compiler, (*STATIC_FLAGS, "-o", str(output), str(PLUGIN_SOURCE)))
    if errors is not None:
        raise PluginNotCompiledError(_why(compiler, errors))


def find_compiler() -> list[str]:
    """The words that call the C compiler: CC's, else the first of the usual names that is there."""
    named = shlex.split(os.environ.get("CC", ""))
    candidates = [named] if named else [[name] for name in COMPILER_NAMES]
    for words in candidates:
        if shutil.which(words[0]):
            return words
    tried = " nor ".join(words[0] for words in candidates)
    raise PluginNotCompiledError(
        f"Spiderledger's CNI plugin needs a C compiler, and there is no {tried}: {INSTALL_COMPILER}."
    )


def wheel_tag(plugin: Path) -> str:
    """The tag of a wheel with this program: any Python 3, but Linux, and the machine of the Python that builds it."""
    platform = next((tag for tag in platform_tags() if tag.startswith("linux_")), None)
    if platform is None:
        raise PluginNotCompiledError("Spiderledger's CNI plugin is a Linux program: build it on Linux.")
    if _machine(plugin) != _machine(Path("/proc/self/exe")):
        raise PluginNotCompiledError(
            "The C compiler builds for another kind of machine than this Python runs on: name a native one in CC."
        )
    return f"py3-none-{platform}"


def _machine(program: Path) -> bytes:
    """What an ELF header says about the machine: word size, byte order, processor."""
    with program.open("rb") as file:
        head = bytearray(file.read(ELF_MACHINE.stop))
    del head[ELF_VARIES]
    return bytes(head)


def _compile(compiler: list[str], arguments: tuple[str, ...], source: str = "") -> str | None:
    """Runs the compiler: None, or its complaint."""
    try:
        done = subprocess.run(
            [*compiler, *COMPILER_FLAGS, *arguments],
            input=source,
            env={**os.environ, "LC_ALL": "C"},  # Its complaint is looked through for "error".
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=COMPILE_SECONDS_MAX,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else done.stderr or f"it ended with {done.returncode}"


def _why(compiler: list[str], errors: str) -> str:
    """Tells a machine that lacks something from a source that is wrong, by a program that must always compile."""
    name = shlex.join(compiler)
    with TemporaryDirectory() as folder:
        probe = ("-o", str(Path(folder) / "probe"), "-x", "c", "-")
        static = _compile(compiler, ("-static", *probe), PROBE) is None
        dynamic = static or _compile(compiler, probe, PROBE) is None
    if static:
        cause = next((line for line in errors.splitlines() if "error" in line), errors.strip())
        return f"Spiderledger's CNI plugin does not compile with {name}: {cause}"
    if dynamic:
        return f"Spiderledger's CNI plugin is static, and {name} finds no static C library: {INSTALL_LIBC}."
    return f"Spiderledger's CNI plugin needs a working C compiler, and {name} compiles nothing: {INSTALL_COMPILER}."
