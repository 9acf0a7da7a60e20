"""What the cluster says about a pod when its addresses are chosen: frozen values, gathered before anything is decided.

Nothing here knows where a fact came from. Whoever watches the cluster, or reads it from a folder, makes
them; the choice of pools reads them, and the agent names claims by them.

Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from cni.call import CniCall
from ledger.addresses import Family
from ledger.claims import CONTAINER, POD, Claim

CONFIG_HASH_ANNOTATION = "kubernetes.io/config.hash"
CONFIG_MIRROR_ANNOTATION = "kubernetes.io/config.mirror"


class Owner(NamedTuple):
    """An object that made a pod, directly or through others."""

    api_version: str
    kind: str
    name: str

    @property
    def text(self) -> str:
        """How the journal names it."""
        return f"{self.api_version}/{self.kind}/{self.name}"


@dataclass(frozen=True)
class PodFacts:
    """A pod as the cluster shows it. `owner` is its controller, `top_owner` that one's own, if any, else the same."""

    namespace: str
    name: str
    uid: str
    node: str
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    owner: Owner | None = None
    top_owner: Owner | None = None
    alive: bool = True
    dead_reason: str = ""

    @property
    def static(self) -> bool:
        """Whether it only mirrors a pod that a kubelet runs from a file: its absence is never evidence."""
        return CONFIG_MIRROR_ANNOTATION in self.annotations

    @property
    def config_hash(self) -> str:
        """What the runtime sends as the uid of a static pod ("" for any other)."""
        return self.annotations.get(CONFIG_HASH_ANNOTATION, "")


@dataclass(frozen=True)
class NodeFacts:
    """The node on which the container runs. Outside Kubernetes it has a name and no labels."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NamespaceFacts:
    """The pod's namespace."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """All there is to know about one call. Without a pod (outside Kubernetes) there is no namespace either.

    `master_subnets` are the parent interface's addresses with their prefix lengths; None when nobody could look.
    """

    node: NodeFacts
    pod: PodFacts | None = None
    namespace: NamespaceFacts | None = None
    master_subnets: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Settings:
    """What the agent was started with, as far as pools are chosen by it."""

    cluster: str
    families: frozenset[Family] = frozenset({4, 6})
    multus_cluster_network: str = ""
    own_namespace: str = ""


def claim_for(call: CniCall, facts: Facts, settings: Settings, interface: str, family: Family) -> Claim:
    """Who asks: the pod, or outside Kubernetes the container on its network."""
    if pod := facts.pod:
        return Claim(settings.cluster, POD, pod.namespace, pod.name, pod.uid, interface, family)
    return Claim(settings.cluster, CONTAINER, facts.node.name, call.network, call.container, interface, family)
