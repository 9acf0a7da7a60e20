"""The cluster read from a folder of YAML: pods, nodes, namespaces and pools without an API server.

Only ``*.yaml`` in the folder itself counts. A file that cannot be read keeps what it last said, and says what is wrong.
Nothing is believed that changed less than `SETTLE_SECONDS` ago: in that time whoever writes in place is done, a file
that was moved away and written anew is back, and the next change gets another time stamp. (A writer who pauses longer
in the middle shows half a file: write it beside and rename it.) The agent asks, and calls `refresh` now and then.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

from cni import manifests
from cni.facts import NamespaceFacts, NodeFacts, PodFacts
from cni.manifests import ClusterObject, Contents, ManifestError, ObjectKey, Shown
from ledger.resources import SpiderIPPool, SpiderReservedIP

SETTLE_SECONDS: Final = 0.02  # Longer than the tick of the kernel's file time stamps, which is 10 ms at most.
READ_TRIES: Final = 5
FILES_MAX: Final = 100_000
PROBLEMS_PER_FILE_MAX: Final = 20


class FolderError(Exception):
    """The folder itself cannot be read: nothing is known of what is in it now."""

    def __init__(self, folder: Path, text: str) -> None:
        super().__init__(folder, text)
        self.folder, self.text = folder, text

    def __str__(self) -> str:
        return f"the cluster's folder {self.folder} {self.text}"


@dataclass(frozen=True)
class Snapshot:
    """The cluster at one moment, in the order in which the files show it.

    `complete`: every file has been read at least once. Otherwise an object that is not here may be in a file that
    has not been readable so far, and its absence is no evidence.
    """

    objects: Mapping[ObjectKey, ClusterObject]
    passed_over: frozenset[str] = frozenset()
    problems: tuple[ManifestError, ...] = ()
    complete: bool = False

    def pod(self, namespace: str, name: str) -> PodFacts | None:
        """The pod of this name."""
        found = self.objects.get(ObjectKey("Pod", namespace, name))
        return found if isinstance(found, PodFacts) else None

    def pods_of(self, node: str) -> tuple[PodFacts, ...]:
        """The pods on this node."""
        return tuple(each for each in self.objects.values() if isinstance(each, PodFacts) and each.node == node)

    def node(self, name: str) -> NodeFacts | None:
        """The node of this name."""
        found = self.objects.get(ObjectKey("Node", "", name))
        return found if isinstance(found, NodeFacts) else None

    def namespace(self, name: str) -> NamespaceFacts | None:
        """The namespace of this name."""
        found = self.objects.get(ObjectKey("Namespace", "", name))
        return found if isinstance(found, NamespaceFacts) else None

    def pools(self) -> tuple[SpiderIPPool, ...]:
        """All pools."""
        return tuple(each for each in self.objects.values() if isinstance(each, SpiderIPPool))

    def reservations(self) -> tuple[SpiderReservedIP, ...]:
        """All reserved addresses."""
        return tuple(each for each in self.objects.values() if isinstance(each, SpiderReservedIP))

    @cached_property
    def without_uid(self) -> tuple[ObjectKey, ...]:
        """Pods, pools and reservations that nobody has given a uid."""
        return tuple(key for key, each in self.objects.items() if _uid(each) == "")

    def with_uids(self, uids: Mapping[ObjectKey, str]) -> Snapshot:
        """The same cluster, in which those without a uid have these. A uid that was written stays."""
        named = {key: _named(self.objects[key], uids[key]) for key in self.without_uid if key in uids}
        return replace(self, objects=MappingProxyType({**self.objects, **named}))


@dataclass(frozen=True)
class Changes:
    """What is new since the last `refresh`: objects, problems, and kinds that were passed over for the first time."""

    arrived: tuple[ObjectKey, ...] = ()
    changed: tuple[ObjectKey, ...] = ()
    left: tuple[ObjectKey, ...] = ()
    problems: tuple[ManifestError, ...] = ()
    passed_over: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any((self.arrived, self.changed, self.left, self.problems, self.passed_over))


class Folder:
    """Reads one folder. Whoever asks gets answers out of one snapshot, whatever thread is reading meanwhile."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._read = _UNREAD
        self._told = _UNREAD.snapshot
        self._kinds_told: frozenset[str] = frozenset()
        self._synced = False

    @property
    def snapshot(self) -> Snapshot:
        """The cluster as last read; empty and incomplete before the first `refresh`."""
        return self._read.snapshot

    @property
    def problems(self) -> tuple[ManifestError, ...]:
        """What is wrong now, file by file."""
        return self.snapshot.problems

    @property
    def synced(self) -> bool:
        """Whether there was a moment at which every file had been read. Until then absence means nothing."""
        return self._synced

    def refresh(self) -> Changes:
        """Read what has changed on disk; FolderError when the folder itself cannot be read, and all stays as it was."""
        with self._lock:
            self._read_again()
            before, self._told = self._told, self.snapshot
            kinds, self._kinds_told = self._kinds_told, self._kinds_told | self._told.passed_over
            return _changes(before, self._told, kinds)

    def pod(self, namespace: str, name: str) -> PodFacts | None:
        """The pod of this name, as last read."""
        return self.snapshot.pod(namespace, name)

    def pod_now(self, namespace: str, name: str) -> PodFacts | None:
        """The pod as the files show it now: costs a look at its file and one at the folder while neither has changed.

        Waits until what has just changed is settled. FolderError as in `refresh`, which tells the changes later.
        """
        key = ObjectKey("Pod", namespace, name)
        if not _is_current(self._path, self._read, key):
            with self._lock:
                if not _is_current(self._path, self._read, key):
                    self._read_again()
        return self.pod(namespace, name)

    def node(self, name: str) -> NodeFacts | None:
        """The node of this name, as last read."""
        return self.snapshot.node(name)

    def namespace(self, name: str) -> NamespaceFacts | None:
        """The namespace of this name, as last read."""
        return self.snapshot.namespace(name)

    def _read_again(self) -> None:
        files, folder = _read_files(self._path, self._read.files)
        if files == self._read.files and self._read is not _UNREAD:
            self._read = replace(self._read, folder=folder)
        else:
            snapshot, sources = _merged(files)
            self._read = _Read(snapshot, sources, files, folder)
        self._synced = self._synced or self.snapshot.complete


class Signature(NamedTuple):
    """What changes when a file (or the list of a folder's files) does."""

    modified_ns: int
    changed_ns: int
    size: int
    inode: int
    device: int


Seen: TypeAlias = Signature | str | None
"""How a file looked when it was read, why it could not be read, or None: it has to be read again."""


@dataclass(frozen=True, eq=False)
class _File:
    """One file: what it last said (None: nothing yet), piece by piece so that only new pieces need be read again."""

    seen: Seen = None
    objects: tuple[Shown, ...] | None = None
    passed_over: frozenset[str] = frozenset()
    pieces: Mapping[str, Contents] = field(default_factory=dict)
    problems: tuple[ManifestError, ...] = ()

    def broken(self, seen: Seen, *problems: ManifestError) -> _File:
        """What it last said stays; what is wrong is new."""
        return replace(self, seen=seen, problems=tuple(_first(problems)))


@dataclass(frozen=True)
class _Read:
    """All that was read, swapped in one piece; `folder` is None when it had changed just before."""

    snapshot: Snapshot
    sources: Mapping[ObjectKey, str]
    files: Mapping[str, _File]
    folder: Signature | None


_UNREAD: Final = _Read(Snapshot({}), {}, {}, None)


def _is_current(path: Path, read: _Read, key: ObjectKey) -> bool:
    """Whether the disk still is as it was when this object was read."""
    source = read.sources.get(key)
    if source is None:
        return False
    try:
        return (_signature(path.stat()), _signature((path / source).stat())) == (read.folder, read.files[source].seen)
    except OSError:
        return False


def _read_files(path: Path, known: Mapping[str, _File]) -> tuple[dict[str, _File], Signature | None]:
    """All files as they are now, those that have not changed as they were known, and the folder once it is settled."""
    files = dict(known)
    missing = set(files)
    for attempt in range(READ_TRIES):
        if attempt:
            time.sleep(SETTLE_SECONDS)
        folder, looks = _listed(path)
        absent = files.keys() - looks.keys()
        missing &= absent  # From every look so far: then a folder in which others write all the time need not settle.
        gone = absent if folder else missing if attempt + 1 == READ_TRIES else set()
        for name in gone:
            del files[name]
        for name, look in looks.items():
            if name not in files or files[name].seen != look:
                files[name] = _read_file(path / name, look, files.get(name, _File()))
        waiting = {name for name, file in files.items() if file.seen is None}
        if not waiting and gone == absent:
            return files, folder
    for name in waiting:
        problem = ManifestError(_printable(name), 0, "was being written each time it was looked at")
        files[name] = files[name].broken(None, problem)
    return files, None


def _listed(path: Path) -> tuple[Signature | None, dict[str, Signature | str]]:
    """How the folder looks (None while it is not settled, or when it changes meanwhile), and each of its files."""
    try:
        before = _signature(path.stat())
        settled = _is_settled(before)
        with os.scandir(path) as entries:
            names = [each for each in entries if each.name.endswith(".yaml") and not each.name.startswith(".")]
        looks = {each.name: look for each in names if (look := _look(each)) is not None}
        settled = settled and _signature(path.stat()) == before
    except FileNotFoundError:
        raise FolderError(path, "does not exist") from None
    except NotADirectoryError:
        raise FolderError(path, "is not a folder") from None
    except OSError as error:
        raise FolderError(path, f"cannot be read: {error.strerror}") from error
    if len(looks) > FILES_MAX:
        raise FolderError(path, f"holds more than {FILES_MAX} files")
    return (before if settled else None), looks


def _look(entry: os.DirEntry[str]) -> Signature | str | None:
    """How the file looks, or why it cannot be read; None when it is gone again."""
    try:
        status = entry.stat()
    except FileNotFoundError:
        return "is a link to nothing" if entry.is_symlink() else None
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not S_ISREG(status.st_mode):
        return "is a folder" if S_ISDIR(status.st_mode) else "is not a regular file"
    return _signature(status)


def _read_file(path: Path, look: Signature | str, before: _File) -> _File:
    """The file as it is now; not `seen` when it is not settled, changes while it is read, or has gone."""
    name, unread = _printable(path.name), replace(before, seen=None)
    if isinstance(look, str):
        return before.broken(look, ManifestError(name, 0, look))
    if not _is_settled(look):
        return unread
    try:
        # Without waiting for a writer, should the file have become a pipe. More than its size is a change as well.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            content = file.read(min(look.size, manifests.FILE_BYTES_MAX) + 1)
            return _judged(name, content, look, before) if _signature(os.fstat(file.fileno())) == look else unread
    except FileNotFoundError:
        return unread
    except OSError as error:
        text = f"cannot be read: {error.strerror}"
        return before.broken(text, ManifestError(name, 0, text))


def _signature(status: os.stat_result) -> Signature:
    return Signature(status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev)


def _is_settled(look: Signature) -> bool:
    # A time stamp far ahead is another machine's clock, and says nothing.
    return abs(time.time_ns() - look.modified_ns) >= SETTLE_SECONDS * 1e9


def _printable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _judged(name: str, content: bytes, look: Signature, before: _File) -> _File:
    """The file as its content says, or as it was and what is wrong."""
    try:
        text = manifests.decoded(name, content)
    except ManifestError as problem:
        return before.broken(look, ManifestError(*problem.args))  # Not this one: it holds on to what was read.
    found: dict[str, Contents] = {}
    whole: list[Contents] = []
    for line, piece in manifests.pieces(text):
        found[piece] = before.pieces.get(piece) or manifests.contents(name, piece)
        whole.append(found[piece].moved(line - 1))
    if problems := [problem for each in whole for problem in each.problems]:
        return before.broken(look, *problems)
    passed_over = frozenset(kind for each in whole for kind in each.passed_over)
    return _File(look, tuple(shown for each in whole for shown in each.objects), passed_over, found)


def _first(problems: Sequence[ManifestError]) -> Iterable[ManifestError]:
    """The first problems of one file, and how many more there are."""
    yield from problems[:PROBLEMS_PER_FILE_MAX]
    if more := problems[PROBLEMS_PER_FILE_MAX:]:
        yield ManifestError(more[0].file, more[0].line, f"and {len(more)} more from here on")


def _merged(files: Mapping[str, _File]) -> tuple[Snapshot, Mapping[ObjectKey, str]]:
    """All that the files say. What stands in two places counts where it stands first, by the files' names."""
    objects: dict[ObjectKey, ClusterObject] = {}
    places: dict[ObjectKey, tuple[str, int]] = {}
    problems: list[ManifestError] = []
    for name in sorted(files):
        twice: list[ManifestError] = []
        for key, value, line in files[name].objects or ():
            if key in objects:
                file, first = places[key]
                text = f"{key} already stands in {_printable(file)}:{first}, and that one counts"
                twice.append(ManifestError(_printable(name), line, text))
            else:
                objects[key] = value
                places[key] = name, line
        problems += [*files[name].problems, *_first(twice)]
    passed_over = frozenset(kind for file in files.values() for kind in file.passed_over)
    complete = all(file.objects is not None for file in files.values())
    snapshot = Snapshot(MappingProxyType(objects), passed_over, tuple(problems), complete)
    return snapshot, {key: name for key, (name, _) in places.items()}


def _changes(before: Snapshot, after: Snapshot, kinds_told: frozenset[str]) -> Changes:
    old, new = before.objects, after.objects
    known = {problem.args for problem in before.problems}
    return Changes(
        arrived=tuple(key for key in new if key not in old),
        changed=tuple(key for key, value in new.items() if key in old and old[key] is not value and old[key] != value),
        left=tuple(key for key in old if key not in new),
        problems=tuple(problem for problem in after.problems if problem.args not in known),
        passed_over=tuple(sorted(after.passed_over - kinds_told)),
    )


def _uid(value: ClusterObject) -> str | None:
    match value:
        case PodFacts():
            return value.uid
        case SpiderIPPool() | SpiderReservedIP():
            return value.metadata.uid
        case NodeFacts() | NamespaceFacts():
            return None


def _named(value: ClusterObject, uid: str) -> ClusterObject:
    match value:
        case PodFacts():
            return replace(value, uid=uid)
        case SpiderIPPool() | SpiderReservedIP():
            return value.model_copy(update={"metadata": value.metadata.model_copy(update={"uid": uid})})
        case NodeFacts() | NamespaceFacts():
            return value
