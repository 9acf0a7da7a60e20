"""Pure modules are pure: beside the import contracts, a walk over what they call."""

from __future__ import annotations

import ast
import configparser
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN_NAMES = {"open", "print", "input", "exec", "eval", "breakpoint", "__import__"}
FORBIDDEN_MODULES = {
    "time", "random", "secrets", "os", "sys", "socket", "subprocess", "threading", "logging", "uuid", "tempfile",
    "pathlib", "shutil", "io",
}  # fmt: skip
FORBIDDEN_METHODS = {"now", "utcnow", "today", "read_text", "write_text", "read_bytes", "write_bytes", "urandom"}


def pure_modules() -> list[str]:
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    sections = [name for name in contracts.sections() if ":pure-" in name]
    return [name for section in sections for name in contracts[section]["source_modules"].split()]


def impure(source: str) -> Iterator[str]:
    """Every call or import of something that is not a function of its arguments."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (each.name for each in names if each.name.partition(".")[0] in FORBIDDEN_MODULES)
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in FORBIDDEN_MODULES:
                yield module
            case ast.Call(func=ast.Name(id=name)) if name in FORBIDDEN_NAMES:
                yield f"{name}()"
            case ast.Call(func=ast.Attribute(attr=name)) if name in FORBIDDEN_METHODS:
                yield f".{name}()"
            case ast.Attribute(attr="environ"):
                yield "environ"


@pytest.mark.parametrize("module", pure_modules())
def test_a_pure_module_calls_no_clock_disk_chance_or_environment(module: str) -> None:
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    assert list(impure(path.read_text())) == []


@pytest.mark.parametrize("source", [
    "import time",
    "from os import environ",
    "print(1)",
    "open('x')",
    "datetime.now()",
    "os.environ['X']",
    "import random as r",
])  # fmt: skip
def test_the_walk_finds_what_it_looks_for(source: str) -> None:
    assert list(impure(source))


def test_every_module_of_the_three_packages_is_known_as_pure_or_shell() -> None:
    """A new module must be put on one side; the other side is what touches a database, a file, a socket or a clock."""
    for module in pure_modules():
        assert ROOT.joinpath(*module.split(".")).with_suffix(".py").exists(), module
