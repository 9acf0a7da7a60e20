"""The scenario's folder as the demo needs it: what stands in it, which node is in which zone, and a pod that leaves.

The agent reads the same folder for itself; nothing that is found out here reaches it but through the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path
from typing import Final

from cni import manifests
from cni.demo.netlab import Zone
from cni.demo.processes import DemoError
from cni.facts import NodeFacts, PodFacts
from cni.folder import Folder, FolderError, Snapshot
from cni.manifests import ObjectKey

CONFLIST: Final = "conflist.json"


@dataclass(frozen=True)
class Scenario:
    """A cluster's folder, as it was read."""

    path: Path
    snapshot: Snapshot

    @property
    def pods(self) -> tuple[PodFacts, ...]:
        """Its pods, in the order of the files."""
        return tuple(each for each in self.snapshot.objects.values() if isinstance(each, PodFacts))

    @property
    def nodes(self) -> tuple[NodeFacts, ...]:
        """Its nodes, likewise."""
        return tuple(each for each in self.snapshot.objects.values() if isinstance(each, NodeFacts))

    @property
    def conflist(self) -> str:
        """The text of its network's configuration list."""
        return (self.path / CONFLIST).read_text()


def read(path: Path) -> Scenario:
    """What the folder says; DemoError when it cannot be read."""
    folder = Folder(path)
    try:
        folder.refresh()
    except FolderError as error:
        raise DemoError(str(error)) from None
    if folder.problems:
        raise DemoError(str(folder.problems[0]))
    return Scenario(path, folder.snapshot)


def zones(scenario: Scenario) -> tuple[Zone, ...]:
    """Each node with the gateway of the pools that it may use, in the pool's subnet."""
    return tuple(Zone(node.name, gateway) for node in scenario.nodes for gateway in _gateways(scenario, node))


def _gateways(scenario: Scenario, node: NodeFacts) -> Sequence[str]:
    specs = [pool.spec for pool in scenario.snapshot.pools()]
    mine = [each for each in specs if each.node_affinity is None or each.node_affinity.matches(node.labels)]
    return [f"{each.gateway}/{each.subnet.partition('/')[2]}" for each in mine if each.gateway]


def is_in(zone: Zone, address: str) -> bool:
    """Whether the address lies in the zone's subnet."""
    return ip_interface(address).ip in ip_interface(zone.router).network


def remove(scenario: Scenario, *keys: ObjectKey) -> list[Path]:
    """Take these objects out of the files, each file at once; answers which were written anew, or removed."""
    written = []
    for path in sorted(scenario.path.glob("*.yaml")):
        text = path.read_text()
        left = without(text, *keys)
        if left == text:
            continue
        written.append(path)
        if any(manifests.contents(path.name, piece).objects for _, piece in manifests.pieces(left)):
            _replace(path, left)
        else:
            path.unlink()
    return written


def without(text: str, *keys: ObjectKey) -> str:
    """The text less the documents that show one of these objects."""
    kept = [piece for _, piece in manifests.pieces(text) if not _shows(piece, keys)]
    return "".join(kept)


def _shows(piece: str, keys: Sequence[ObjectKey]) -> bool:
    return any(each.key in keys for each in manifests.contents("", piece).objects)


def _replace(path: Path, text: str) -> None:
    """Beside, then renamed: whoever reads meanwhile sees the whole old file or the whole new one."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    beside.replace(path)
