"""A small CNI runner: takes a container through a plain configuration list, as a container runtime would.

It executes the plugins of the chain in order, each with the result of the one before, and for a DEL backwards. It
makes no network namespace and keeps nothing: what a DEL needs of its ADD the caller hands in again. Where there are no
interfaces to make, the address plugin of each plugin is executed instead, with the configuration that it would get.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cni.demo.processes import DemoError, Processes, environment

CALL_SECONDS_MAX: Final = 120.0
"""Longer than any plugin of ours waits."""
STATUS_VERSION: Final = "1.1.0"
"""The oldest version of CNI that has STATUS."""

Document = Mapping[str, Any]


class PluginError(DemoError):
    """A plugin refused."""

    def __init__(self, plugin: str, command: str, error: Document) -> None:
        details = f" ({error['details']})" if error.get("details") else ""
        super().__init__(f"{command} failed in plugin {plugin}: code {error.get('code')}: {error.get('msg')}{details}")
        self.code = error.get("code")


@dataclass(frozen=True)
class Step:
    """One plugin of a chain: the program, and its part of the list."""

    program: str
    part: Document


@dataclass(frozen=True)
class Chain:
    """A network: what its configuration list says, as far as a runner needs it."""

    name: str
    version: str
    steps: tuple[Step, ...]

    @property
    def addresses_only(self) -> Chain:
        """Only what the plugins would execute for addresses, with the whole configuration of each, as they pass it."""
        parts = [step.part for step in self.steps if "ipam" in step.part]
        return Chain(self.name, self.version, tuple(Step(part["ipam"]["type"], part) for part in parts))


@dataclass(frozen=True)
class Attachment:
    """A container's interface on a network, as the runtime names it."""

    container: str
    netns: str
    interface: str
    arguments: Mapping[str, str]

    @property
    def variables(self) -> dict[str, str]:
        """The CNI variables that say so."""
        pairs = {"IgnoreUnknown": "1", **self.arguments}
        return {
            "CNI_CONTAINERID": self.container,
            "CNI_NETNS": self.netns,
            "CNI_IFNAME": self.interface,
            "CNI_ARGS": ";".join(f"{name}={value}" for name, value in pairs.items()),
        }


def pod_arguments(namespace: str, name: str, uid: str, container: str) -> dict[str, str]:
    """What a kubelet's runtime says of a pod."""
    return {
        "K8S_POD_NAMESPACE": namespace,
        "K8S_POD_NAME": name,
        "K8S_POD_INFRA_CONTAINER_ID": container,
        "K8S_POD_UID": uid,
    }


def read_chain(text: str) -> Chain:
    """The chain that a configuration list says; DemoError when it says none."""
    try:
        said = json.loads(text)
        steps = tuple(Step(part["type"], part) for part in said["plugins"])
        return Chain(said["name"], said["cniVersion"], steps)
    except (ValueError, KeyError, TypeError) as error:
        raise DemoError(f"this is no CNI configuration list: {error!r}") from None


class Runner:
    """Executes plugins found in these folders, with these variables beside CNI's own."""

    def __init__(self, processes: Processes, path: Sequence[Path], folder: Path, variables: Mapping[str, str]) -> None:
        self._processes = processes
        self._path = tuple(path)
        self._folder = folder
        self._variables = variables

    def find(self, program: str) -> Path | None:
        """The first plugin of this name."""
        places = [folder / program for folder in self._path]
        return next((place for place in places if place.is_file() and os.access(place, os.X_OK)), None)

    @property
    def looked_in(self) -> str:
        """The folders, as CNI_PATH says them."""
        return ":".join(map(str, self._path))

    def add(self, chain: Chain, attachment: Attachment, within: Sequence[str] = ()) -> Document:
        """ADD: the last plugin's result. `within` is the command that puts a plugin into its node's network."""
        result: Document | None = None
        for step in chain.steps:
            result = self._call("ADD", chain, step, attachment, result, within)
            if not result:
                raise DemoError(f"ADD: plugin {step.program} printed no result")
        if result is None:
            raise DemoError(f"network {chain.name} has no plugin")
        return result

    def delete(self, chain: Chain, attachment: Attachment, result: Document, within: Sequence[str] = ()) -> None:
        """DEL of what an ADD answered with this result."""
        for step in reversed(chain.steps):
            self._call("DEL", chain, step, attachment, result, within)

    def status(self, chain: Chain) -> None:
        """STATUS of the chain's plugins, each of which must know it; PluginError when one cannot take an ADD now."""
        for step in chain.steps:
            self._call("STATUS", Chain(chain.name, STATUS_VERSION, chain.steps), step, None, None)

    def _call(
        self, command: str, chain: Chain, step: Step, attachment: Attachment | None, result: Document | None,
        within: Sequence[str] = (),
    ) -> Document:  # fmt: skip
        place = self.find(step.program)
        if place is None:
            raise DemoError(f"there is no plugin {step.program} in {self.looked_in}")
        previous = {} if result is None else {"prevResult": result}
        configuration = {**step.part, "cniVersion": chain.version, "name": chain.name, **previous}
        said = {"CNI_COMMAND": command, "CNI_PATH": self.looked_in, **(attachment.variables if attachment else {})}
        finished = self._processes.run(
            [*within, str(place)], stdin=json.dumps(configuration), folder=self._folder, seconds_max=CALL_SECONDS_MAX,
            variables=environment(**self._variables, **said),
        )  # fmt: skip
        document = _read(finished.out)
        if finished.status != 0 and "code" not in document:
            raise DemoError(f"{command}: plugin {step.program} ended with {finished.status}: {finished.complaint}")
        if finished.status != 0:
            raise PluginError(step.program, command, document)
        return document


def _read(text: str) -> Document:
    """What a plugin printed, if that is an object."""
    try:
        document = json.loads(text)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
