"""What people write into annotations about the addresses of their pods, read the way Spiderpool reads it.

JSON is read as Go does: keys in any case, unknown ones passed over, of two equal ones the last. What
cannot be read is a `WrongInputError` whose text begins as Spiderpool's users know it. Whether a named
pool exists, and which source counts, is the question of `cni.selection`, which calls this.

Pure.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from cni.call import Section, asked_address, decoded, is_interface, one_of_each_family, problem_of
from cni.errors import shown
from ledger import addresses, ranges
from ledger.addresses import Family, Ip

IPPOOL = "ipam.spidernet.io/ippool"
IPPOOLS = "ipam.spidernet.io/ippools"
SUBNET = "ipam.spidernet.io/subnet"
SUBNETS = "ipam.spidernet.io/subnets"
ROUTES = "ipam.spidernet.io/routes"
DEFAULT_IPV4_IPPOOL = "ipam.spidernet.io/default-ipv4-ippool"
DEFAULT_IPV6_IPPOOL = "ipam.spidernet.io/default-ipv6-ippool"
DEFAULT_NETWORK = "v1.multus-cni.io/default-network"
NETWORKS = "k8s.v1.cni.cncf.io/networks"
ADDRESS = "ipam.spiderledger.io/ip"

FIRST_INTERFACE = "eth0"
"""What runtimes call a pod's own interface; Multus adds the others."""
PATTERN_CHARACTERS_MAX = 253
PATTERNS_MAX = 100
"""In one list. Each is held against every pool; plain names cost nothing and may be as many as there are pools."""


class WrongInputError(ValueError):
    """An annotation that says nothing usable; the message is for the pod's owner."""


class _Written(Section):
    """An object whose keys count in any case."""

    @model_validator(mode="before")
    @classmethod
    def _any_case(cls, given: object) -> object:
        return {str(name).lower(): value for name, value in given.items()} if isinstance(given, dict) else given


class PoolLists(_Written):
    """The names of pools, or patterns of names, for each family."""

    ipv4: tuple[str, ...] = ()
    ipv6: tuple[str, ...] = ()


class InterfacePools(PoolLists):
    """The same for one of several interfaces; it has no name where only the order counts."""

    interface: str = ""
    clean_gateway: bool = Field(default=False, alias="cleangateway")


class _Route(_Written):
    dst: str = ""
    gw: str = ""


class Network(_Written):
    """What Multus attaches to a pod. Without a namespace it is the pod's, without an interface `net<position>`."""

    namespace: str = ""
    name: str = ""
    interface: str = ""


_interface_pools = TypeAdapter(tuple[InterfacePools, ...])
_routes = TypeAdapter(tuple[_Route, ...])
_networks = TypeAdapter(tuple[Network, ...])
_names = TypeAdapter(tuple[str, ...])
_pool_lists = TypeAdapter(PoolLists)
_T = TypeVar("_T")


def interface_pools(text: str, added: Sequence[str], at_hand: str) -> tuple[InterfacePools, ...]:
    """The annotation `ippools`: pools for each interface, the one at hand among them.

    Where no item names its interface, the first is the pod's own, and the others are those that Multus adds, in order.
    """
    items = _read(text, _interface_pools, "Pod", IPPOOLS)
    in_order = (FIRST_INTERFACE, *added, *(f"net{position}" for position in range(len(added) + 1, len(items))))
    interfaces = [item.interface or name for item, name in zip(items, in_order, strict=False)]
    if problem := _interfaces_problem([item.interface for item in items], interfaces, at_hand):
        raise _wrong("Pod", IPPOOLS, problem)
    return tuple(item.model_copy(update={"interface": name}) for item, name in zip(items, interfaces, strict=True))


def _interfaces_problem(written: Sequence[str], interfaces: Sequence[str], at_hand: str) -> str:
    if not written:
        return "value requires at least one item"
    if any(written) and not all(written):
        return "NIC should be either all specified or all unspecified"
    if twice := [name for name, count in Counter(interfaces).items() if count > 1]:
        return f"duplicate interface {twice[0]}"
    if at_hand not in interfaces:
        return f"interface {at_hand} must be specified"
    strange = [name for name in interfaces if not is_interface(name)]
    return f"interface {shown(strange[0])} cannot be the name of one" if strange else ""


def pool_lists(text: str) -> PoolLists:
    """The annotation `ippool`: pools for the interface at hand."""
    return _read(text, _pool_lists, "Pod", IPPOOL)


def unknown_keys(text: str) -> tuple[str, ...]:
    """Keys of a list by interface or of a single one, as read before, that nobody uses: most likely misspelled."""
    said = decoded(text.encode())
    objects = said if isinstance(said, list) else [said]
    known = {"ipv4", "ipv6", "interface", "cleangateway"}
    return tuple(dict.fromkeys(key for each in objects for key in each if key.lower() not in known))


def namespace_pools(annotations: Mapping[str, str]) -> PoolLists:
    """The default pools of a namespace."""
    found = {
        name: _read(annotations[key], _names, "Namespace", key) if key in annotations else ()
        for name, key in (("ipv4", DEFAULT_IPV4_IPPOOL), ("ipv6", DEFAULT_IPV6_IPPOOL))
    }
    return PoolLists(**found)


def routes(annotations: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Destination and gateway of each route that the pod asks for, as canonical text."""
    written = _read(annotations[ROUTES], _routes, "Pod", ROUTES) if ROUTES in annotations else ()
    return tuple(map(_route, written))


def asked_addresses(annotations: Mapping[str, str]) -> tuple[Ip, ...]:
    """The addresses that the pod must have, at most one of each family: one, a comma list or a JSON list."""
    text = annotations.get(ADDRESS)
    if text is None:
        return ()
    listed = text.strip().startswith("[")
    texts = _read(text, _names, "Pod", ADDRESS) if listed else tuple(map(str.strip, text.split(",")))
    try:
        return one_of_each_family(map(asked_address, texts))
    except ValueError as error:
        raise _wrong("Pod", ADDRESS, str(error)) from None


def networks(annotations: Mapping[str, str], namespace: str) -> tuple[Network, ...] | None:
    """What Multus adds to the pod, in order and filled in; None when the pod says nothing; ValueError if unreadable."""
    text = annotations.get(NETWORKS, "").strip()
    if not text:
        return None
    found = _json(text, _networks) if text.startswith("[") else tuple(map(network, text.split(",")))
    return tuple(
        Network(namespace=each.namespace or namespace, name=each.name, interface=each.interface or f"net{position}")
        for position, each in enumerate(found, start=1)
    )


def network(text: str) -> Network:
    """The network that ``namespace/name@interface`` writes; only the name has to be there."""
    if found := _NETWORK.fullmatch(text.strip()):
        return Network(**found.groupdict(default=""))
    raise ValueError(f"{shown(text)} is not written as namespace/name@interface, in lower case letters, digits and -")


def without_patterns(names: Sequence[str], known: Iterable[str], family: Family) -> tuple[str, ...]:
    """The names, each pattern replaced by those known ones that it matches; one that matches nothing disappears."""
    patterns = [name for name in names if any(each in name for each in "*?[")]
    if len(patterns) > PATTERNS_MAX:
        raise WrongInputError(f"wrong input, more than {PATTERNS_MAX} IPv{family} PoolName patterns")
    listed = list(known) if patterns else []
    meant = {name: _matching(name, listed, family) for name in patterns}
    return tuple(each for name in names for each in meant.get(name, (name,)))


def _matching(text: str, known: Sequence[str], family: Family) -> Sequence[str]:
    if not known:
        return ()
    try:
        expression = pattern(text)
    except ValueError as error:
        where = f"IPv{family} PoolName pattern '{text}', character '{known[0]}'"
        raise WrongInputError(f"failed to match wildcard: {where}, error: {error}") from None
    return [name for name in known if expression.fullmatch(name)]


def pattern(text: str) -> re.Pattern[str]:
    """What a pattern matches in full, by the rules of Go's `filepath.Match`; ValueError when it breaks them.

    A star takes as little as lets the part behind it match, and never tries again: no pattern can take long.
    """
    if len(text) > PATTERN_CHARACTERS_MAX:
        raise ValueError(f"longer than {PATTERN_CHARACTERS_MAX} characters")
    first, *rest = _between_stars(text)
    middle = "".join(f"(?>.*?{part})" for part in rest[:-1])
    return re.compile(first + middle + "".join(f".*{part}" for part in rest[-1:]), re.DOTALL)


def _between_stars(text: str) -> list[str]:
    """The regular expressions of what stands between the stars of a pattern."""
    parts, position = [""], 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if not found:
            raise ValueError("syntax error in pattern")
        if found["star"]:
            parts.append("")
        else:
            parts[-1] += _expression(found)
        position = found.end()
    return parts


def _expression(token: re.Match[str]) -> str:
    if token["any"]:
        return "."
    if token["set"] is None:
        return re.escape(token["escaped"] or token["plain"])
    ends = ((low[-1], (high or low)[-1]) for low, high in _RANGE.findall(token["set"]))
    inside = "".join(f"{re.escape(low)}-{re.escape(high)}" for low, high in ends if low <= high)
    if not inside:
        return "." if token["not"] else "(?!)"
    return f"[{token['not']}{inside}]"


def _route(written: _Route) -> tuple[str, str]:
    family: Family = 6 if ":" in written.gw else 4
    try:
        destination = ranges.parse_cidr(written.dst, family)
        return ranges.cidr_text(destination), addresses.text(ranges.parse_address(written.gw, family))
    except ValueError:
        problem = f"invalid route format 'dst: {written.dst}, gw: {written.gw}'"
        raise _wrong("Pod", ROUTES, problem) from None


def _read(text: str, adapter: TypeAdapter[_T], kind: str, key: str) -> _T:
    try:
        return _json(text, adapter)
    except ValueError as error:
        raise _wrong(kind, key, str(error)) from None


def _json(text: str, adapter: TypeAdapter[_T]) -> _T:
    value = decoded(text.encode())
    if value is None or isinstance(value, list):
        value = tuple(value or ())
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError as error:
        field, problem, given = problem_of(error)
        raise ValueError(f"{field or 'value'}: {problem}, and it is {shown(given)}") from None


def _wrong(kind: str, key: str, problem: str) -> WrongInputError:
    return WrongInputError(f"wrong input, invalid format of {kind} annotation '{key}': {problem}")


_LABEL = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_NETWORK = re.compile(rf"(?:(?P<namespace>{_LABEL})\s*/\s*)?(?P<name>{_LABEL})\s*(?:@\s*(?P<interface>{_LABEL}))?")
_UNIT = r"(?:\\.|[^\\\]-])"
_RANGE = re.compile(rf"({_UNIT})(?:-({_UNIT}))?", re.DOTALL)
_TOKEN = re.compile(
    rf"(?P<star>\*)|(?P<any>\?)|\[(?P<not>\^?+)(?P<set>(?:{_UNIT}(?:-{_UNIT})?)+)\]|\\(?P<escaped>.)|(?P<plain>[^\[\\])",
    re.DOTALL,
)
