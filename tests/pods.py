"""The pods of a cluster's folder: each a file, as agents read it, and what the runtime calls it.

What is written looks old, so that no agent has to wait until a file is settled.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

from cni.annotations import IPPOOL, IPPOOLS
from tests.model import Call, Pod

HOUR_NS = 3_600 * 10**9
ANNOTATIONS: tuple[Mapping[str, Any], ...] = (
    {},
    {IPPOOL: {"ipv4": ["b", "a"]}},
    {IPPOOL: {"ipv4": ["a"], "ipv6": ["x", "y"]}},
    {
        IPPOOLS: [
            {"interface": "eth0", "ipv4": ["a", "b"]},
            {"interface": "net1", "ipv4": ["b", "a"], "ipv6": ["x"]},
        ]
    },
    {IPPOOLS: [{"interface": "eth0", "ipv4": ["c"]}, {"interface": "net1", "ipv4": ["c", "b"]}]},
)
"""What a pod may ask for: nothing, pools for the interface at hand, or pools for two interfaces."""


@dataclass(frozen=True)
class RealPod:
    """A pod as its file says it is."""

    name: str
    uid: str
    node: str
    static: bool
    annotations: Mapping[str, Any]
    life: str = "lives"

    @property
    def hash(self) -> str:
        """What the runtime sends as its uid."""
        return f"hash-{self.name}" if self.static else self.uid

    @property
    def manifest(self) -> str:
        """Its file: JSON is YAML."""
        annotations = {key: json.dumps(value) for key, value in self.annotations.items()}
        if self.static:
            annotations |= {"kubernetes.io/config.hash": self.hash, "kubernetes.io/config.mirror": "x"}
        metadata = {"name": self.name, "namespace": "default", "uid": self.uid, "annotations": annotations}
        if self.life == "terminating":
            metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        spec = {"nodeName": self.node, "restartPolicy": "Never"}
        status = {"phase": "Succeeded" if self.life == "finished" else "Running"}
        return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status})

    def lists(self, interface: str) -> dict[tuple[str, int], tuple[str, ...]]:
        """The names of the pools that it asks for when this interface is added."""
        alone = [{"interface": interface, **self.annotations.get(IPPOOL, {})}]
        items = self.annotations.get(IPPOOLS, alone)
        families = ((item, family) for item in items for family in (4, 6) if f"ipv{family}" in item)
        return {(item["interface"], family): tuple(item[f"ipv{family}"]) for item, family in families}


class Pods:
    """See the module. `complete`: there is no file that cannot be read."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.now: dict[str, RealPod] = {}
        self.ever: dict[str, list[RealPod]] = {}
        self.complete = True
        self._numbers = count(1)
        self._modified = time.time_ns() - HOUR_NS
        self._write("namespace", '{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}')

    # What befalls them ----------------------------------------------------------------------------

    def come(self, name: str, node: str, annotations: int, *, static: bool = False) -> None:
        """A pod is created, or created anew under its name."""
        pod = RealPod(name, f"u{next(self._numbers)}", node, static, ANNOTATIONS[annotations])
        self.ever.setdefault(name, []).append(pod)
        self._put(pod)

    def change(self, name: str, life: str) -> None:
        """It `lives`, is `terminating` or `finished`."""
        self._put(replace(self.now[name], life=life))

    def annotate(self, name: str, annotations: int) -> None:
        """It asks for other pools."""
        self._put(replace(self.now[name], annotations=ANNOTATIONS[annotations]))

    def go(self, name: str) -> None:
        """Its object is removed."""
        del self.now[name]
        self._remove(name)

    def turn(self, *, readable: bool) -> None:
        """From now on there is a file that cannot be read, or there is none any more."""
        self.complete = readable
        if readable:
            self._remove("broken")
        else:
            (self.folder / "broken.yaml").symlink_to("nowhere")
            self._look_old()

    # What is known of them ------------------------------------------------------------------------

    def shown(self, call: Call) -> Pod | None:
        """What the cluster shows under the name that the call speaks of, in the model's words."""
        real = self.now.get(call.who[1]) if call.who[0] == "pod" else None
        return real and Pod(real.uid, real.hash, real.life == "lives", real.lists(call.interface))

    def proves(self, call: Call) -> bool:
        """Whether what is shown tells about the pod: that one is not seen proves nothing while a file is unread."""
        return self.complete or call.who[0] != "pod" or call.who[1] in self.now

    def uid(self, name: str, sent: str) -> str:
        """What a runtime sends as the pod's uid: the `right` one, `none`, or that of the pod `before`."""
        ever = self.ever.get(name)
        if sent == "none" or not ever:
            return "" if sent == "none" else "u0"
        return ever[-2].uid if sent == "before" and len(ever) > 1 else ever[-1].hash

    def statics(self) -> set[str]:
        """The uids of all static pods that ever were."""
        return {each.uid for ever in self.ever.values() for each in ever if each.static}

    # Files ----------------------------------------------------------------------------------------

    def _put(self, pod: RealPod) -> None:
        self.now[pod.name] = pod
        self._write(pod.name, pod.manifest)

    def _write(self, name: str, text: str) -> None:
        path = self.folder / f"{name}.yaml"
        path.write_text(text)
        self._look_old(path)

    def _remove(self, name: str) -> None:
        (self.folder / f"{name}.yaml").unlink()
        self._look_old()

    def _look_old(self, *changed: Path) -> None:
        self._modified += 10**6
        for path in (*changed, self.folder):
            os.utime(path, ns=(self._modified, self._modified))
