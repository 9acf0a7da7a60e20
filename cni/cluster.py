"""What the agent asks of a cluster, wherever that is kept: in a folder, or in an API server's watch."""

from __future__ import annotations

from typing import Protocol

from cni.facts import NamespaceFacts, NodeFacts, PodFacts


class ClusterAwayError(Exception):
    """The cluster cannot be asked now; what memory says is no ground to take an address away on."""


class Cluster(Protocol):
    """Answers from memory, but for `pod_now`."""

    @property
    def synced(self) -> bool:
        """Whether everything has been read at least once. Until then absence means nothing."""

    @property
    def complete(self) -> bool:
        """Whether all of it can be read now: whether what is not there does not exist."""

    def pod(self, namespace: str, name: str) -> PodFacts | None:
        """The pod of this name, as last seen."""

    def pod_now(self, namespace: str, name: str) -> PodFacts | None:
        """The pod of this name, looked up again: what an address may be taken away on. ClusterAwayError."""

    def node(self, name: str) -> NodeFacts | None:
        """The node of this name."""

    def namespace(self, name: str) -> NamespaceFacts | None:
        """The namespace of this name."""


class NoCluster:
    """Outside Kubernetes (podman, nerdctl, Nomad) there are containers and no pods."""

    synced = True
    complete = True

    def pod(self, namespace: str, name: str) -> PodFacts | None:
        """None."""
        return None

    pod_now = pod

    def node(self, name: str) -> NodeFacts | None:
        """None: such a node has a name and nothing else."""
        return None

    def namespace(self, name: str) -> NamespaceFacts | None:
        """None."""
        return None
