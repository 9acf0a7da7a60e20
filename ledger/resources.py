"""What the user applies: SpiderIPPool and SpiderReservedIP as frozen values, and the label selectors they carry.

These are the shapes. A field nobody knows is dropped, as the API server prunes it, and one of the wrong type is
refused; whether the values make sense is the question of `ledger.admission`. Whoever reads the cluster (watches, a
folder of YAML, the webhook) makes them with `model_validate`; admission, the definition and pool selection read them.
A subnet's fields are those in `SubnetSpec`, which a pool's spec extends by who may use it.

Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator
from pydantic.alias_generators import to_camel

from ledger.addresses import Family

GROUP: Final = "spiderpool.spidernet.io"
FINALIZER: Final = "spiderpool.spidernet.io"
POOL_CIDR_LABEL: Final = "ipam.spidernet.io/ippool-cidr"
OWNER_APPLICATION_NAME_LABEL: Final = "ipam.spidernet.io/owner-application-name"
AUTO_POOL_AFFINITY_KEYS: Final = frozenset(
    f"ipam.spidernet.io/app-{key}" for key in ("api-group", "api-version", "kind", "namespace", "name")
)

COOLING_ANNOTATION: Final = "ipam.spiderledger.io/cooling"
COOLING_DEFAULT: Final = 30
"""Seconds that a pool's addresses rest after a release when its annotation does not say otherwise."""
COOLING_MAX: Final = 30 * 24 * 3600
"""Seconds at most: longer is a typing error, or a wish for a SpiderReservedIP."""

ApiVersion: TypeAlias = Literal["spiderpool.spidernet.io/v2beta1"]
FieldErrorKind: TypeAlias = Literal[
    "Invalid value", "Forbidden", "Unsupported value", "Internal error", "Required value"
]


def _camel(name: str) -> str:
    return to_camel(name).replace("Ips", "IPs")  # The one initialism of these resources that camel case gets wrong.


def _timestamp(given: object) -> object:
    return datetime.fromisoformat(given) if isinstance(given, str) else given


class Applied(BaseModel):
    """A part of an object that somebody applied, under the names that the API uses."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", alias_generator=_camel, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _as_the_api_server_reads(cls, given: object) -> object:
        """What is written as null counts as not written. Lists become tuples here, as strict fields take no list."""
        if not isinstance(given, dict):
            return given
        written = {name: value for name, value in given.items() if value is not None}
        return {name: tuple(value) if isinstance(value, list) else value for name, value in written.items()}


class OwnerReference(Applied):
    """One line of `metadata.ownerReferences`."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool = False


class ObjectMeta(Applied):
    """What we use of an object's `metadata`."""

    name: str
    namespace: str = ""
    uid: str = ""
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}
    finalizers: tuple[str, ...] = ()
    deletion_timestamp: Annotated[datetime, BeforeValidator(_timestamp)] | None = None
    owner_references: tuple[OwnerReference, ...] = ()

    @property
    def terminating(self) -> bool:
        """Whether somebody has asked for its deletion."""
        return self.deletion_timestamp is not None


class LabelRequirement(Applied):
    """One line of a selector's `matchExpressions`."""

    key: str
    operator: str  # Not a Literal: an unknown one can be stored, and is then a problem that the selector names.
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether the labels satisfy it; an absent label satisfies NotIn and DoesNotExist."""
        match self.operator:
            case "In":
                return self.key in labels and labels[self.key] in self.values
            case "NotIn":
                return self.key not in labels or labels[self.key] not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels
            case _:
                raise ValueError(f'"{self.operator}" is not a valid selector operator')

    def errors(self, path: str) -> Iterator[FieldError]:
        """What Kubernetes' own validation says of it."""
        match self.operator:
            case "In" | "NotIn" if not self.values:
                text = "must be specified when `operator` is 'In' or 'NotIn'"
                yield FieldError(f"{path}.values", "Required value", "", text)
            case "Exists" | "DoesNotExist" if self.values:
                text = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
                yield FieldError(f"{path}.values", "Forbidden", "", text)
            case "In" | "NotIn" | "Exists" | "DoesNotExist":
                pass
            case _:
                yield FieldError(f"{path}.operator", "Invalid value", self.operator, "not a valid selector operator")
        for problem in _label_key_problems(self.key):
            yield FieldError(f"{path}.key", "Invalid value", self.key, problem)
        for index, value in enumerate(self.values):
            for problem in _label_value_problems(value):
                yield FieldError(f"{path}.values[{index}]", "Invalid value", value, problem)


class LabelSelector(Applied):
    """A Kubernetes label selector: everything in it must hold, so an empty one matches whatever there is."""

    match_labels: Mapping[str, str] = {}
    match_expressions: tuple[LabelRequirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether it selects what has these labels; ValueError when it is no valid selector, whatever the labels."""
        if problem := self.problem():
            raise ValueError(problem)
        return all(labels.get(key) == value for key, value in self.match_labels.items()) and all(
            requirement.matches(labels) for requirement in self.match_expressions
        )

    def problem(self) -> str | None:
        """Why it cannot be evaluated, if it cannot: the first of its errors."""
        return next((str(error) for error in self.errors("labelSelector")), None)

    def errors(self, path: str) -> Iterator[FieldError]:
        """What Kubernetes' own validation says of it, in its order."""
        for key, value in self.match_labels.items():
            for problem in _label_key_problems(key):
                yield FieldError(f"{path}.matchLabels", "Invalid value", key, problem)
            for problem in _label_value_problems(value):
                yield FieldError(f"{path}.matchLabels", "Invalid value", value, problem)
        for index, requirement in enumerate(self.match_expressions):
            yield from requirement.errors(f"{path}.matchExpressions[{index}]")


class Route(Applied):
    """A route that pods get with an address."""

    dst: str
    gw: str


class ReservedIPSpec(Applied):
    """Addresses that no pod is to get."""

    ip_version: int | None = None
    ips: tuple[str, ...] = ()

    @property
    def family(self) -> Family | None:
        """`ipVersion`, once it is 4 or 6."""
        return _family(self.ip_version)


class SubnetSpec(Applied):
    """Where addresses lie and how they are reached."""

    ip_version: int | None = None
    subnet: str
    ips: tuple[str, ...] = ()
    exclude_ips: tuple[str, ...] = ()
    gateway: str | None = None
    routes: tuple[Route, ...] | None = None  # Written as [] it forbids inheriting the subnet's; unwritten it does not.

    @property
    def family(self) -> Family | None:
        """`ipVersion`, once it is 4 or 6."""
        return _family(self.ip_version)


class PoolSpec(SubnetSpec):
    """Addresses for pods, and which pods may have them."""

    pod_affinity: LabelSelector | None = None
    namespace_affinity: LabelSelector | None = None
    namespace_name: tuple[str, ...] = ()
    node_affinity: LabelSelector | None = None
    node_name: tuple[str, ...] = ()
    multus_name: tuple[str, ...] = ()
    default: bool = False
    disable: bool = False


class SpiderIPPool(Applied):
    """A pool as an operator applied it."""

    api_version: ApiVersion = "spiderpool.spidernet.io/v2beta1"
    kind: Literal["SpiderIPPool"] = "SpiderIPPool"
    metadata: ObjectMeta
    spec: PoolSpec

    @property
    def auto_created(self) -> bool:
        """Whether it was made for one application, out of a subnet."""
        return OWNER_APPLICATION_NAME_LABEL in self.metadata.labels

    @property
    def cooling_seconds(self) -> int:
        """How long its addresses rest after a release; ValueError when its annotation says nothing readable."""
        written = self.metadata.annotations.get(COOLING_ANNOTATION)
        return COOLING_DEFAULT if written is None else parse_cooling(written)


class SpiderReservedIP(Applied):
    """A reservation as an operator applied it."""

    api_version: ApiVersion = "spiderpool.spidernet.io/v2beta1"
    kind: Literal["SpiderReservedIP"] = "SpiderReservedIP"
    metadata: ObjectMeta
    spec: ReservedIPSpec


@dataclass(frozen=True)
class FieldError:
    """What is wrong with one field; its text is the one Kubernetes gives."""

    field: str
    kind: FieldErrorKind
    value: str | int | LabelSelector | None
    text: str

    def __str__(self) -> str:
        """Forbidden, Internal error and Required value show no value."""
        shown = f": {self._value_json()}" if self.kind in ("Invalid value", "Unsupported value") else ""
        return f"{self.field}: {self.kind}{shown}: {self.text}"

    def _value_json(self) -> str:
        if isinstance(self.value, LabelSelector):
            return self.value.model_dump_json(by_alias=True, exclude_defaults=True)
        return json.dumps(self.value, ensure_ascii=False)


def parse_cooling(text: str) -> int:
    """The seconds that the annotation means: a bare number of them, or hours, minutes and seconds as Go writes them."""
    found = _SECONDS.fullmatch(text) or _DURATION.fullmatch(text)
    hours, minutes, seconds = (int(count or 0) for count in found.group("h", "m", "s")) if found else (0, 0, 0)
    period = hours * 3600 + minutes * 60 + seconds
    if not found or period > COOLING_MAX:
        raise ValueError("must be whole seconds or a duration such as 30s, 5m or 1h30m, and at most 720h (30 days)")
    return period


# At most nine digits, as Python refuses to read thousands of them.
_SECONDS = re.compile(r"(?P<h>)(?P<m>)(?P<s>[0-9]{1,9})")
_DURATION = re.compile(r"(?=.)(?:(?P<h>[0-9]{1,9})h)?(?:(?P<m>[0-9]{1,9})m)?(?:(?P<s>[0-9]{1,9})s)?")

# Kubernetes' rules for label keys and values, and its texts.
_LABEL_MAX = 63
_PREFIX_MAX = 253
_NAME = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_CHARACTERS = "alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character"
_NAME_PROBLEM = (
    f"must consist of {_CHARACTERS} (e.g. 'MyName',  or 'my.name',  or '123-abc', "
    f"regex used for validation is '{_NAME.pattern}')"
)
_VALUE_PROBLEM = (
    f"a valid label must be an empty string or consist of {_CHARACTERS} (e.g. 'MyValue',  or 'my_value',  or '12345', "
    f"regex used for validation is '({_NAME.pattern})?')"
)
_PREFIX_PROBLEM = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start "
    f"and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '{_SUBDOMAIN.pattern}')"
)


def _label_key_problems(key: str) -> Iterator[str]:
    prefix, slash, name = key.rpartition("/")
    if "/" in prefix:
        with_prefix = "with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
        yield f"a qualified name {_NAME_PROBLEM} {with_prefix}"
        return
    if slash and not prefix:
        yield "prefix part must be non-empty"
    elif slash:
        if len(prefix) > _PREFIX_MAX:
            yield f"prefix part must be no more than {_PREFIX_MAX} characters"
        if not _SUBDOMAIN.fullmatch(prefix):
            yield f"prefix part {_PREFIX_PROBLEM}"
    if not name:
        yield "name part must be non-empty"
    elif len(name) > _LABEL_MAX:
        yield f"name part must be no more than {_LABEL_MAX} characters"
    if not _NAME.fullmatch(name):
        yield f"name part {_NAME_PROBLEM}"


def _label_value_problems(value: str) -> Iterator[str]:
    if len(value) > _LABEL_MAX:
        yield f"must be no more than {_LABEL_MAX} characters"
    if value and not _NAME.fullmatch(value):
        yield _VALUE_PROBLEM


def _family(ip_version: int | None) -> Family | None:
    match ip_version:
        case 4 | 6:
            return ip_version
        case _:
            return None
