"""Who asks for an address: claims, the containers that speak for them, and the people's names behind them.

A claim's key is one text, so that all claims of a pod are a prefix of the key and one index finds them. Pure.
"""

from __future__ import annotations

import hashlib
import json
from typing import NamedTuple

from ledger.addresses import Family
from ledger.canonical import canonical

POD = "Pod"
CONTAINER = "Container"
HASH_BYTES = 16

Span = tuple[str, str]
"""A half-open interval of claim keys."""


class Claim(NamedTuple):
    """Who asks. Fixed exactly when the uid is empty: then the name alone is the identity."""

    cluster: str
    kind: str
    namespace: str
    name: str
    uid: str
    interface: str
    family: Family

    @property
    def key(self) -> str:
        """The text under which the ledger knows the claim."""
        return "|".join((*self[:6], str(self.family)))

    @property
    def fixed(self) -> bool:
        """Whether the claim outlives the pods that carry its name."""
        return self.uid == ""

    @property
    def siblings(self) -> Span:
        """All claims of its pod, whatever its uid; outside Kubernetes of its container."""
        own = (self.uid,) if self.kind == CONTAINER else ()
        return span(self.cluster, self.kind, self.namespace, self.name, *own)


def both_families(claim: Claim) -> tuple[Claim, Claim]:
    """The same claim for an IPv4 and for an IPv6 address."""
    return claim._replace(family=4), claim._replace(family=6)


def claim_of(key: str) -> Claim:
    """The claim that has this key. Only the interface may contain the separator (CNI forbids it no more than that)."""
    cluster, kind, namespace, name, uid, rest = key.split("|", 5)
    interface, family = rest.rsplit("|", 1)
    return Claim(cluster, kind, namespace, name, uid, interface, 6 if family == "6" else 4)


def span(*prefix: str) -> Span:
    """All keys that begin with these whole fields."""
    start = "|".join(prefix)
    return start + "|", start + chr(ord("|") + 1)


def exactly(key: str) -> Span:
    """Just this key."""
    return key, key + "\x01"


class Binding(NamedTuple):
    """Which container on which node speaks for a claim now; the stamp is the plugin's start, by the node's clock, in
    nanoseconds since 1970 UTC."""

    container: str
    network: str
    netns: str
    node: str
    stamp: int


class Subject(NamedTuple):
    """The names of people's things behind a claim, as they were when it asked."""

    cluster: str
    namespace: str
    name: str
    uid: str
    owner: str = ""
    top_owner: str = ""
    labels: tuple[tuple[str, str], ...] = ()

    @property
    def document(self) -> str:
        """The canonical JSON that the ledger keeps."""
        return canonical({**self._asdict(), "labels": dict(self.labels)})


def subject_in(document: str) -> Subject:
    """The names that this document says."""
    said = json.loads(document)
    return Subject(**{**said, "labels": tuple(sorted(said["labels"].items()))})


def salted(salt: bytes, text: str) -> bytes:
    """What events cite instead of a name. The salt keeps short names from being guessed."""
    return hashlib.blake2b(text.encode(), key=salt, digest_size=HASH_BYTES).digest()
