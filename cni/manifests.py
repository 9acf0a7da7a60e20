"""The YAML that a user would apply, read as the API server reads it: text becomes manifests, manifests become facts.

Scalars mean what they mean to kubectl, and what JSON cannot say is refused. Stricter than kubectl: a key written twice,
an alias bomb and an empty file are refused, as half a file must never pass for a whole one. Whether a pool makes sense
is the question of `ledger.admission`. `cni.folder` reads the files and is the caller.

Pure.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple, NoReturn, TypeAlias

import yaml
from pydantic import ValidationError

from cni.facts import NamespaceFacts, NodeFacts, Owner, PodFacts
from ledger.resources import GROUP, Applied, ObjectMeta, SpiderIPPool, SpiderReservedIP

FILE_BYTES_MAX: Final = 64 * 1024 * 1024
DEPTH_MAX: Final = 64
_TOO_DEEP: Final = "exceeded maximum nesting depth"
ALIASED_VALUES_MAX: Final = 10_000  # In one document, those inside of what an alias stands for counted.
FIELDS_SHOWN_MAX: Final = 5  # In the text of one error.

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # The C one is 18 times as fast, where it was built.

ClusterObject: TypeAlias = PodFacts | NodeFacts | NamespaceFacts | SpiderIPPool | SpiderReservedIP


class ManifestError(Exception):
    """What is wrong with a file, and on which line, counted from 1 (0: with the file as a whole)."""

    def __init__(self, file: str, line: int, text: str) -> None:
        super().__init__(file, line, text)
        self.file, self.line, self.text = file, line, text

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}" if self.line else f"{self.file}: {self.text}"


class Manifest(NamedTuple):
    """One object as it was written, and the line on which its mapping begins."""

    kind: str
    api_version: str
    document: dict[str, Any]
    line: int


class ObjectKey(NamedTuple):
    """What an object is known by. Only pods have a namespace here."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


class Shown(NamedTuple):
    """An object that we use, and the line on which it begins."""

    key: ObjectKey
    value: ClusterObject
    line: int


class Contents(NamedTuple):
    """What some text says: objects, the kinds that were passed over, and what is wrong."""

    objects: tuple[Shown, ...] = ()
    passed_over: tuple[str, ...] = ()
    problems: tuple[ManifestError, ...] = ()

    def moved(self, lines: int) -> Contents:
        """The same text so many lines further down in its file."""
        objects = tuple([Shown(key, value, line + lines) for key, value, line in self.objects])
        problems = tuple([ManifestError(each.file, each.line + lines, each.text) for each in self.problems])
        return Contents(objects, self.passed_over, problems)


def decoded(file: str, content: bytes) -> str:
    """The file's text; ManifestError when it is too large, empty, or no text."""
    if len(content) > FILE_BYTES_MAX:
        raise ManifestError(file, 0, f"is larger than {FILE_BYTES_MAX} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ManifestError(file, line, f"is not UTF-8 (byte 0x{error.object[error.start]:02x})") from None
    if not text.strip():
        # A file that is being written anew is empty at first: taken at its word, it would free all its pods' addresses.
        raise ManifestError(file, 0, "is empty; remove the file if its objects are to go")
    return text


def pieces(text: str) -> Iterator[tuple[int, str]]:
    """The text cut at its document markers, each piece with its first line, so that only new ones need be read."""
    cuts = [] if _DIRECTIVE.search(text) else [each.start() for each in _MARKER.finditer(text)]
    line = 1
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        yield line, text[start:end]
        line += text.count("\n", start, end)


def contents(file: str, text: str) -> Contents:
    """What the text says, whole documents of this file. Never raises: what cannot be read is among the problems."""
    objects: list[Shown] = []
    passed_over: dict[str, None] = {}
    problems: list[ManifestError] = []
    try:
        for manifest in manifests(file, text):
            found = _shown(file, manifest)
            if isinstance(found, Shown):
                objects.append(found)
            elif found is None:
                passed_over[f"{manifest.api_version} {manifest.kind}"] = None
            else:
                problems.append(found)
    except ManifestError as problem:
        problems.append(ManifestError(*problem.args))  # Not this one: it holds on to all that was read.
    return Contents(tuple(objects), tuple(passed_over), tuple(problems))


def manifests(file: str, text: str) -> tuple[Manifest, ...]:
    """The objects in the text, lists of them unfolded; ManifestError when it is no YAML or something is no object."""
    if found := _UNPRINTABLE.search(text):
        raise ManifestError(file, text.count("\n", 0, found.start()) + 1, f"U+{ord(found[0]):04X} is not allowed")
    return tuple(_Reader(file, text).manifests())


_MARKER = re.compile(r"^---(?=\s|\Z)", re.MULTILINE)  # In the first column it is one wherever it stands.
_DIRECTIVE = re.compile(r"^%", re.MULTILINE)  # Belongs to the marker after it: such a text stays in one piece.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TYPE = re.compile(r"[-./A-Za-z0-9]{1,253}")
_TAG = "tag:yaml.org,2002:"


class _Reader:
    """Makes plain values of the parser's events, and remembers on which line each mapping began.

    PyYAML's own constructor sees numbers and dates where kubectl sees text, and lets the last of two equal keys win;
    its composer recurses as deep as the text wants.
    """

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._events: Iterator[Any] = iter(yaml.parse(text, Loader=LOADER))
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._lines: dict[int, int] = {}
        self._values = 0
        self._aliased = 0

    def manifests(self) -> Iterator[Manifest]:
        """Each object, in order. Nothing between two markers is nothing to apply."""
        while not isinstance(event := self._next(), yaml.StreamEndEvent):
            if isinstance(event, yaml.DocumentStartEvent):
                self._anchors.clear()
                self._aliased = 0
                root = self._next()
                if (value := self._value(root, 0)) is not None:
                    yield from self._unfolded(value, _line(root))

    def _unfolded(self, value: Any, line: int) -> Iterator[Manifest]:
        """The object, or those in it when it is a list."""
        if not isinstance(value, dict):
            raise ManifestError(self._file, line, "is not an object (a mapping with apiVersion and kind)")
        line = self._lines[id(value)]
        for field in ("apiVersion", "kind"):
            if not isinstance(value.get(field), str) or not _TYPE.fullmatch(value[field]):
                raise ManifestError(self._file, line, f"has no {field}, or an impossible one")
        if value["kind"] != "List":
            yield Manifest(value["kind"], value["apiVersion"], value, line)
            return
        items = value.get("items")
        if not isinstance(items, list | None):
            raise ManifestError(self._file, line, "the items of a List are not a list")
        for item in items or ():
            yield from self._unfolded(item, line)

    def _next(self) -> Any:
        try:
            return next(self._events)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            text = ", ".join(filter(None, (error.context, error.problem)))
            if _TOO_DEEP in text:  # Newer scanners look so far ahead that they find it first.
                text = f"is nested deeper than {DEPTH_MAX}"
            raise ManifestError(self._file, mark.line + 1 if mark else 1, text) from None
        except (yaml.YAMLError, ValueError, OverflowError) as error:  # The Python scanner's chr() of "\UFFFFFFFF".
            raise ManifestError(self._file, 1, " ".join(str(error).split())) from None

    def _refuse(self, event: Any, text: str) -> NoReturn:
        raise ManifestError(self._file, _line(event), text)

    def _value(self, event: Any, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        before = self._values
        self._values += 1
        value = self._scalar(event) if isinstance(event, yaml.ScalarEvent) else self._collection(event, depth + 1)
        if event.anchor is not None:
            self._anchors[event.anchor] = value, self._values - before
        return value

    def _alias(self, event: Any) -> Any:
        """What the anchor stands at. An anchor is known once its value is complete, so nothing can contain itself."""
        if event.anchor not in self._anchors:
            self._refuse(event, f"the alias *{event.anchor} stands for nothing written before it")
        value, size = self._anchors[event.anchor]
        self._values += size
        self._aliased += size
        if self._aliased > ALIASED_VALUES_MAX:
            self._refuse(event, f"aliases repeat more than {ALIASED_VALUES_MAX} values in one document")
        return value

    def _collection(self, event: Any, depth: int) -> Any:
        if depth > DEPTH_MAX:
            self._refuse(event, f"is nested deeper than {DEPTH_MAX}")
        if event.tag not in (None, "!", _TAG + "map", _TAG + "seq"):
            self._refuse(event, f"the tag {event.tag} is not allowed")
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(event, depth)
        values: list[Any] = []
        while not isinstance(each := self._next(), yaml.SequenceEndEvent):
            values.append(self._value(each, depth))
        return values

    def _mapping(self, start: Any, depth: int) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]:
                merged = {**self._merged(event, depth), **merged}
                continue
            key = self._value(event, depth)
            if isinstance(key, int):  # The API server gets `1: a` as {"1": "a"}, and `yes: a` as {"true": "a"}.
                key = json.dumps(key)
            if not isinstance(key, str):
                self._refuse(event, "a key must be text")
            if key in own:
                self._refuse(event, f"the key {json.dumps(key)} stands here twice")
            own[key] = self._value(self._next(), depth)
        whole = {**merged, **own} if merged else own
        self._lines[id(whole)] = _line(start)
        return whole

    def _merged(self, event: Any, depth: int) -> dict[str, Any]:
        value = self._value(self._next(), depth)
        sources = value if isinstance(value, list) else [value]
        if not all(isinstance(each, dict) for each in sources):
            self._refuse(event, "<< takes a mapping or a list of mappings")
        return {key: found for each in reversed(sources) for key, found in each.items()}

    def _scalar(self, event: Any) -> Any:
        text: str = event.value
        if event.tag not in (None, "!", _TAG + "str"):
            self._refuse(event, f"the tag {event.tag} is not allowed")
        value = _resolved(text) if event.implicit[0] else text
        if isinstance(value, float) and not math.isfinite(value):
            self._refuse(event, f"JSON has no number {text}")
        if found := _UNPRINTABLE.search(text):  # Written as an escape: no database keeps "\0".
            self._refuse(event, f"U+{ord(found[0]):04X} is not allowed")
        return value


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


# What plain scalars mean to goyaml.v2, with which kubectl reads: YAML 1.1 without sexagesimals and timestamps. It
# matters where text is asked for, as in labels and annotations.
_WORDS: Final[Mapping[str, bool | float | None]] = {"": None} | {
    word: value
    for words, value in (
        ("y Y yes Yes YES true True TRUE on On ON", True),
        ("n N no No NO false False FALSE off Off OFF", False),
        ("~ null Null NULL", None),
        (".inf .Inf .INF +.inf +.Inf +.INF -.inf -.Inf -.INF .nan .NaN .NAN", math.inf),
    )
    for word in words.split()
}
_INTEGER = re.compile(r"([-+]?)(0[xX][0-9a-fA-F]{1,16}|0[oO]?[0-7]{1,22}|0[bB][01]{1,64}|0|[1-9][0-9]{0,18})")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def _resolved(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "+-.0123456789":
        return text
    plain = text.replace("_", "")
    if found := _INTEGER.fullmatch(plain):
        return int(found[1] + re.sub("^0(?=[0-7])", "0o", found[2]), base=0)
    number = float(plain) if _FLOAT.fullmatch(plain) else math.inf
    return number if math.isfinite(number) else text


class _Spec(Applied):
    node_name: str = ""
    restart_policy: str = "Always"


class _Status(Applied):
    phase: str = ""
    reason: str = ""


class _Core(Applied):
    """A pod, a node or a namespace; of the last two only the metadata counts."""

    api_version: Literal["v1"]
    metadata: ObjectMeta
    spec: _Spec = _Spec()
    status: _Status = _Status()


_Stated: TypeAlias = _Core | SpiderIPPool | SpiderReservedIP
_MODELS: Final[Mapping[tuple[str, str], type[_Stated]]] = {
    **dict.fromkeys((("", "Pod"), ("", "Node"), ("", "Namespace")), _Core),
    (GROUP, "SpiderIPPool"): SpiderIPPool,
    (GROUP, "SpiderReservedIP"): SpiderReservedIP,
}
# Names become parts of claim keys, so that they must be what the API server takes as names.
_SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"(?=.{1,63}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_UID = re.compile(r"[-._A-Za-z0-9]{1,128}")


def _shown(file: str, manifest: Manifest) -> Shown | ManifestError | None:
    """The object that the manifest states; None for a kind that we do not use."""
    model = _MODELS.get((manifest.api_version.rpartition("/")[0], manifest.kind))
    if model is None:
        return None
    try:
        stated = model.model_validate(manifest.document)
    except ValidationError as error:
        return ManifestError(file, manifest.line, f"{manifest.kind}: {_field_errors(error)}")
    namespace = (stated.metadata.namespace or "default") if manifest.kind == "Pod" else ""
    key = ObjectKey(manifest.kind, namespace, stated.metadata.name)
    if problem := _bad_name(key, stated):
        return ManifestError(file, manifest.line, f"{manifest.kind}: {problem}")
    return Shown(key, _value(key, stated), manifest.line)


def _value(key: ObjectKey, stated: _Stated) -> ClusterObject:
    if not isinstance(stated, _Core):
        return stated
    meta = stated.metadata
    match key.kind:
        case "Node":
            return NodeFacts(key.name, meta.labels)
        case "Namespace":  # The API server puts this label on each, whatever was applied.
            return NamespaceFacts(key.name, {**meta.labels, "kubernetes.io/metadata.name": key.name}, meta.annotations)
    owners = [Owner(each.api_version, each.kind, each.name) for each in meta.owner_references if each.controller]
    owner = owners[0] if owners else None  # Nobody here knows who owns a ReplicaSet or a Job: it is its own top owner.
    dead = _dead_reason(stated)
    names = (key.namespace, key.name, meta.uid, stated.spec.node_name)
    return PodFacts(*names, meta.labels, meta.annotations, owner, owner, alive=not dead, dead_reason=dead)


def _dead_reason(pod: _Core) -> str:
    """Why the pod needs no addresses any more ("" while it does): Spiderpool's rule."""
    phase, restarts = pod.status.phase, pod.spec.restart_policy
    if pod.metadata.terminating:
        return "terminating"
    if phase == "Failed" and pod.status.reason == "Evicted":
        return "evicted"
    finished = (phase == "Succeeded" and restarts != "Always") or (phase == "Failed" and restarts == "Never")
    return phase.lower() if finished else ""


def _bad_name(key: ObjectKey, stated: _Stated) -> str:
    """The first field that must be a name and is none."""
    node = stated.spec.node_name if isinstance(stated, _Core) else ""
    for field, text, form in (
        ("metadata.name", key.name, _LABEL if key.kind == "Namespace" else _SUBDOMAIN),
        ("metadata.namespace", key.namespace, _LABEL),
        ("metadata.uid", stated.metadata.uid, _UID),
        ("spec.nodeName", node, _SUBDOMAIN),
    ):
        if not form.fullmatch(text) and (text or field == "metadata.name"):
            return f"{field}: {json.dumps(text[:64])} cannot be one"
    return ""


def _field_errors(error: ValidationError) -> str:
    texts: list[str] = []
    for each in error.errors(include_url=False, include_context=False)[:FIELDS_SHOWN_MAX]:
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in each["loc"])
        texts.append(f"{path[1:]}: {each['msg']}{_instead(each['input'])}")
    return "; ".join(texts)


def _instead(given: object) -> str:
    return f", not {json.dumps(given)}" if isinstance(given, int | float | str) and len(str(given)) < 64 else ""
