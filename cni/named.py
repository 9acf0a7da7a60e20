"""A folder's cluster in which every object has a uid: objects that bring none get theirs from the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from cni.cluster import ClusterAwayError
from cni.facts import NamespaceFacts, NodeFacts, PodFacts
from cni.folder import Changes, Folder, FolderError, Snapshot
from cni.manifests import ObjectKey
from ledger.store import Ledger


class NamedFolder:
    """The agent's cluster (`cni.cluster.Cluster`) when it runs on a folder."""

    def __init__(self, folder: Folder, ledger: Ledger) -> None:
        self._folder = folder
        self._ledger = ledger
        self._uids: Mapping[ObjectKey, str] = {}
        self._named: tuple[int, tuple[ObjectKey, ...]] | None = None
        """Which objects of the folder have their uids, and from which epoch of the ledger."""

    @property
    def synced(self) -> bool:
        """Whether every file has been read at least once."""
        return self._folder.synced

    def refresh(self) -> Changes:
        """Read what has changed, and give uids where they are missing. FolderError, LedgerAwayError."""
        changes = self._folder.refresh()
        if self._folder.synced and (self._ledger.epoch, self._folder.snapshot.without_uid) != self._named:
            self._name()
        return changes

    @property
    def complete(self) -> bool:
        """Whether every file could be read just now."""
        return self._folder.snapshot.complete

    @property
    def snapshot(self) -> Snapshot:
        """The cluster as last read."""
        return self._folder.snapshot.with_uids(self._uids)

    def pod(self, namespace: str, name: str) -> PodFacts | None:
        """The pod as last read."""
        return self._with_uid(self._folder.pod(namespace, name))

    def pod_now(self, namespace: str, name: str) -> PodFacts | None:
        """The pod as the files show it now. ClusterAwayError while the folder cannot be read."""
        try:
            return self._with_uid(self._folder.pod_now(namespace, name))
        except FolderError as error:
            raise ClusterAwayError(str(error)) from error

    def node(self, name: str) -> NodeFacts | None:
        """The node as last read."""
        return self._folder.node(name)

    def namespace(self, name: str) -> NamespaceFacts | None:
        """The namespace as last read."""
        return self._folder.namespace(name)

    def _with_uid(self, pod: PodFacts | None) -> PodFacts | None:
        if pod is None or pod.uid:
            return pod
        key = ObjectKey("Pod", pod.namespace, pod.name)
        if key not in self._uids:
            self._name()
        return replace(pod, uid=self._uids.get(key, ""))

    def _name(self) -> None:
        nameless = self._folder.snapshot.without_uid
        # What cannot be read at the moment may still be there, and keeps its uid.
        kept = () if self.complete else tuple(self._uids)
        uids = self._ledger.name_objects([(key.kind, key.namespace, key.name) for key in (*nameless, *kept)])
        self._uids = {ObjectKey(*name): uid for name, uid in uids.items()}
        self._named = (self._ledger.epoch, nameless)
