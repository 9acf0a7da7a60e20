"""The YAML that a user would apply, read as the API server reads it: text becomes manifests, manifests become facts.

Scalars mean what they mean to kubectl (YAML 1.1 without sexagesimals and timestamps), and what is no JSON is refused.
Stricter than kubectl: a key that is written twice, an alias bomb and an empty file are refused, as half a file must
never pass for a whole one. Whether a pool makes sense is the question of `ledger.admission`, not of this module.
`cni.folder` reads the files and calls it.

Pure.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal, NamedTuple, NoReturn, TypeAlias

import yaml
from pydantic import ValidationError

from cni.facts import NamespaceFacts, NodeFacts, Owner, PodFacts
from ledger.resources import GROUP, Applied, ObjectMeta, SpiderIPPool, SpiderReservedIP

FILE_BYTES_MAX: Final = 64 * 1024 * 1024
DEPTH_MAX: Final = 64
"""Mappings and lists inside each other, in one document."""
ALIASED_VALUES_MAX: Final = 10_000
"""Values that one document may repeat by aliases, those inside of what they point to counted."""
FIELDS_SHOWN_MAX: Final = 5

LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The C one is 18 times as fast, where it was built."""

ClusterObject: TypeAlias = PodFacts | NodeFacts | NamespaceFacts | SpiderIPPool | SpiderReservedIP


class ManifestError(Exception):
    """What is wrong with a file, and on which line, counted from 1 (0: with the file as a whole)."""

    def __init__(self, file: str, line: int, text: str) -> None:
        super().__init__(file, line, text)
        self.file, self.line, self.text = file, line, text

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.text}"


class Document(NamedTuple):
    """A stretch of a file between two document markers, and the line on which it begins."""

    line: int
    text: str


class Manifest(NamedTuple):
    """One object as it was written, and the line on which its mapping begins."""

    kind: str
    api_version: str
    document: dict[str, Any]
    line: int


class ObjectKey(NamedTuple):
    """What an object is known by; the namespace of nodes, namespaces and pools is empty."""

    kind: str
    namespace: str
    name: str

    @property
    def text(self) -> str:
        """How people write it."""
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


class Shown(NamedTuple):
    """An object that we use, and where it stands in its file."""

    key: ObjectKey
    value: ClusterObject
    line: int


class Contents(NamedTuple):
    """All that a document says: objects, kinds that were passed over, and what is wrong."""

    objects: tuple[Shown, ...] = ()
    passed_over: tuple[str, ...] = ()
    problems: tuple[ManifestError, ...] = ()

    def moved(self, lines: int) -> Contents:
        """The same document further down (or up) in its file; not for one with problems."""
        assert not self.problems
        return self._replace(objects=tuple(each._replace(line=each.line + lines) for each in self.objects))


def decoded(file: str, content: bytes) -> str:
    """The file's text; ManifestError when it is too large, empty, or no text."""
    if len(content) > FILE_BYTES_MAX:
        raise ManifestError(file, 0, f"is larger than {FILE_BYTES_MAX} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ManifestError(file, line, f"is not UTF-8: byte 0x{content[error.start]:02x}") from None
    if not text.strip():
        # Between `open` and `write` every file is empty. To take that for "all pods are gone" would free addresses.
        raise ManifestError(file, 0, "is empty; remove the file if its objects are to go")
    return text


def documents(text: str) -> Iterator[Document]:
    """The text, cut where a document begins, so that whoever has read it before reads only what is new.

    A marker in the first column is one wherever it stands. A directive belongs to the marker after it: then the text
    stays in one piece.
    """
    starts = [] if _DIRECTIVE.search(text) else [each.start() for each in _MARKER.finditer(text)]
    line = 1
    for start, end in zip([0, *starts], [*starts, len(text)], strict=True):
        yield Document(line, text[start:end])
        line += text.count("\n", start, end)


def contents(file: str, document: Document) -> Contents:
    """What the document says. Nothing is raised: what cannot be read is among the problems."""
    objects: list[Shown] = []
    passed_over: list[str] = []
    problems: list[ManifestError] = []
    try:
        for manifest in _manifests(file, document):
            try:
                found = shown(file, manifest)
            except ManifestError as problem:
                problems.append(problem)
                continue
            if found is None:
                passed_over.append(f"{manifest.api_version} {manifest.kind}")
            else:
                objects.append(found)
    except ManifestError as problem:
        problems.append(problem)
    return Contents(tuple(objects), tuple(dict.fromkeys(passed_over)), tuple(problems))


def manifests(file: str, text: str) -> tuple[Manifest, ...]:
    """All objects of a file, lists unfolded; ManifestError when one cannot be read."""
    return tuple(each for document in documents(text) for each in _manifests(file, document))


def shown(file: str, manifest: Manifest) -> Shown | None:
    """The manifest as the fact that it states, None for a kind that we do not use; ManifestError names the field."""
    model = _MODELS.get((manifest.api_version.rpartition("/")[0], manifest.kind))
    if model is None:
        return None
    try:
        applied = model.model_validate(manifest.document)
    except ValidationError as error:
        raise ManifestError(file, manifest.line, f"{_title(manifest)}: {_field_errors(error)}") from None
    value = _value(applied)
    if bad := next(_bad_names(applied), None):
        raise ManifestError(file, manifest.line, f"{_title(manifest)}: {bad}")
    return Shown(_key(manifest.kind, value), value, manifest.line)


# --- From text to manifests ---

_MARKER = re.compile(r"^---(?=\s|\Z)", re.MULTILINE)
_DIRECTIVE = re.compile(r"^%", re.MULTILINE)
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def _manifests(file: str, document: Document) -> Iterator[Manifest]:
    if found := _UNPRINTABLE.search(document.text):
        line = document.line + document.text.count("\n", 0, found.start())
        raise ManifestError(file, line, f"the character U+{ord(found[0]):04X} is not allowed")
    reader = _Reader(file, document)
    for value, line in reader.roots():
        if value is not None:  # Nothing between two markers is nothing to apply.
            yield from reader.unfolded(value, line)


class _Reader:
    """Reads one document's events into plain values, and remembers on which line each mapping began.

    Not PyYAML's constructor: that one sees sexagesimals and dates where kubectl sees text, and lets the last of two
    equal keys win. The depth is bounded before anything recurses.
    """

    def __init__(self, file: str, document: Document) -> None:
        self._file = file
        self._first_line = document.line
        self._events: Iterator[Any] = iter(yaml.parse(document.text, Loader=LOADER))
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._lines: dict[int, int] = {}
        self._values = 0
        self._aliased = 0

    def roots(self) -> Iterator[tuple[Any, int]]:
        """Each document's value and line, as there can be several without a marker in the first column."""
        while not isinstance(event := self._next(), yaml.StreamEndEvent):
            if isinstance(event, yaml.DocumentStartEvent):
                self._anchors.clear()
                self._aliased = 0
                root = self._next()
                yield self._value(root, 0), self._line(root)

    def unfolded(self, value: Any, line: int) -> Iterator[Manifest]:
        """The object, or what is in it if it is a list of objects."""
        if not isinstance(value, dict):
            raise ManifestError(self._file, line, "is not an object (a mapping with apiVersion and kind)")
        line = self._lines.get(id(value), line)
        api_version, kind = (self._word(value, field, line) for field in ("apiVersion", "kind"))
        if not kind.endswith("List") or "items" not in value:
            yield Manifest(kind, api_version, value, line)
            return
        items = value["items"]
        if not isinstance(items, list | None):
            raise ManifestError(self._file, line, f"{kind}: items is not a list")
        for item in items or ():
            # The API leaves both out of the objects in a list of one kind.
            named = kind == "List" or not isinstance(item, dict) or "kind" in item
            whole = item if named else self._same_place({"apiVersion": api_version, "kind": kind[:-4], **item}, item)
            yield from self.unfolded(whole, line)

    def _same_place(self, value: dict[str, Any], original: dict[str, Any]) -> dict[str, Any]:
        self._lines[id(value)] = self._lines[id(original)]
        return value

    def _word(self, value: dict[str, Any], field: str, line: int) -> str:
        word = value.get(field)
        if not isinstance(word, str) or not word:
            raise ManifestError(self._file, line, f"has no {field}")
        return word

    def _next(self) -> Any:
        try:
            return next(self._events)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            text = ", ".join(filter(None, (error.context, error.problem)))
            raise ManifestError(self._file, self._first_line + (mark.line if mark else 0), text) from None
        except (yaml.YAMLError, ValueError) as error:  # The Python scanner lets chr() fail on "\UFFFFFFFF".
            raise ManifestError(self._file, self._first_line, str(error)) from None

    def _line(self, event: Any) -> int:
        return self._first_line + int(event.start_mark.line)

    def _refuse(self, event: Any, text: str) -> NoReturn:
        raise ManifestError(self._file, self._line(event), text)

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
        """What the anchor stands on. An anchor is known once its value is complete, so nothing can contain itself."""
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
        mapping = isinstance(event, yaml.MappingStartEvent)
        if event.tag not in (None, "!", _TAG + ("map" if mapping else "seq")):
            self._refuse(event, f"the tag {event.tag} is not allowed")
        return self._mapping(event, depth) if mapping else self._list(depth)

    def _list(self, depth: int) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            values.append(self._value(event, depth))
        return values

    def _mapping(self, start: Any, depth: int) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]:
                merged = {**self._merged(event, depth), **merged}
                continue
            key = self._name(event, self._value(event, depth))
            if key in own:
                self._refuse(event, f"the key {json.dumps(key)} stands here twice")
            own[key] = self._value(self._next(), depth)
        whole = {**merged, **own} if merged else own
        self._lines[id(whole)] = self._line(start)
        return whole

    def _merged(self, event: Any, depth: int) -> dict[str, Any]:
        value = self._value(self._next(), depth)
        sources = value if isinstance(value, list) else [value]
        if not all(isinstance(each, dict) for each in sources):
            self._refuse(event, "<< takes a mapping or a list of mappings")
        return {key: found for each in reversed(sources) for key, found in each.items()}

    def _name(self, event: Any, key: Any) -> str:
        match key:
            case str():
                return key
            case bool() | int():  # As the API server gets it: `1: a` is {"1": "a"}.
                return json.dumps(key)
            case _:
                self._refuse(event, "a key must be text")

    def _scalar(self, event: Any) -> Any:
        text: str = event.value
        if event.tag in (None, "!"):
            value = _resolved(text) if event.implicit[0] else text
        elif event.tag in _TAGGED:
            value = _TAGGED[event.tag](text)
            if value is _WRONG:
                self._refuse(event, f"{json.dumps(text)} is not what the tag {event.tag} says")
        else:
            self._refuse(event, f"the tag {event.tag} is not allowed")
        if isinstance(value, float) and not math.isfinite(value):
            self._refuse(event, f"{text} is no number that JSON can say")
        if not text.isascii() and _SURROGATE.search(text):  # Only the Python scanner lets "\ud800" pass.
            self._refuse(event, "half a surrogate pair is no character")
        return value


# --- What plain scalars mean: the rules of goyaml.v2, which kubectl reads with ---

_TAG = "tag:yaml.org,2002:"
_WRONG: Final = object()
_WORDS: Final[Mapping[str, bool | float | None]] = {
    form: value
    for words, value in (
        ("y yes true on", True),
        ("n no false off", False),
        ("null", None),
        (".inf +.inf", math.inf),
        ("-.inf", -math.inf),
        (".nan", math.nan),
    )
    for word in words.split()
    for form in (word, word.upper(), word.capitalize(), word.replace("inf", "Inf"), word.replace("nan", "NaN"))
} | {"": None, "~": None}
_INTEGER = re.compile(
    r"(?P<sign>[-+]?)(?:0[xX](?P<x>[0-9a-fA-F]{1,16})|0[oO]?(?P<o>[0-7]{1,22})|0[bB](?P<b>[01]{1,64})|(?P<d>0|[1-9][0-9]{0,19}))"
)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_BASES: Final[Mapping[str, int]] = {"x": 16, "o": 8, "b": 2, "d": 10}


def _resolved(text: str) -> Any:
    if text in _WORDS:
        return _WORDS[text]
    if text[0] not in "+-.0123456789":
        return text
    plain = text.replace("_", "")
    if found := _INTEGER.fullmatch(plain):
        base = str(found.lastgroup)
        return int(found["sign"] + found[base], _BASES[base])
    number = float(plain) if _FLOAT.fullmatch(plain) else math.inf
    return number if math.isfinite(number) else text


def _tagged(*types: type) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        value = _resolved(text)
        return value if type(value) in types else _WRONG

    return read


_TAGGED: Final[Mapping[str, Callable[[str], Any]]] = {
    _TAG + "str": str,
    _TAG + "int": _tagged(int),
    _TAG + "float": _tagged(float, int),
    _TAG + "bool": _tagged(bool),
    _TAG + "null": _tagged(type(None)),
}


# --- From manifests to facts ---


class _PodSpec(Applied):
    node_name: str = ""
    restart_policy: str = "Always"


class _PodStatus(Applied):
    phase: str = ""
    reason: str = ""


class _Pod(Applied):
    api_version: Literal["v1"]
    metadata: ObjectMeta
    spec: _PodSpec = _PodSpec()
    status: _PodStatus = _PodStatus()


class _Node(Applied):
    api_version: Literal["v1"]
    metadata: ObjectMeta


class _Namespace(Applied):
    api_version: Literal["v1"]
    metadata: ObjectMeta


_MODELS: Final[Mapping[tuple[str, str], type[Applied]]] = {
    ("", "Pod"): _Pod,
    ("", "Node"): _Node,
    ("", "Namespace"): _Namespace,
    (GROUP, "SpiderIPPool"): SpiderIPPool,
    (GROUP, "SpiderReservedIP"): SpiderReservedIP,
}
