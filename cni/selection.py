"""Which pools a container's interfaces may draw from, in which order, and why the others were passed over.

The steps and their order are Spiderpool's: one source names the pools of both families, wildcards are
expanded, every name must exist, each pool is tested, and what is left is sorted; the texts are those
its users search for. Unlike there the user's own order breaks ties, and an interface does without
Multus where nobody speaks of Multus. Which address a pool gives is the ledger's business.

Pure. The agent calls `select` before it asks the ledger, with facts it has gathered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

from cni import annotations as written
from cni.annotations import FIRST_INTERFACE, Network, PoolLists, WrongInputError
from cni.call import CniCall, one_of_each_family
from cni.facts import Facts, NamespaceFacts, Owner, PodFacts, Settings, claim_for
from ledger import addresses
from ledger.addresses import Family, Ip
from ledger.definition import Definition, Pool, State
from ledger.requests import Candidate, Reason, Refusal, Want
from ledger.resources import LabelSelector

TEXT_MAX = 4096
"""Of a refusal, in characters: annotations may be long, and the journal keeps the text for ever."""
VALUE_MAX = 253
NO_POOL_AVAILABLE = "no IPPool available"


@dataclass(frozen=True)
class Selection:
    """What to ask of the ledger, all of it or nothing, judged by this version of the definition."""

    wants: tuple[Want, ...]
    definition: int
    source: str


class Named(NamedTuple):
    """The pools that a source names for one family of one interface."""

    interface: str
    family: Family
    pools: tuple[str, ...]
    clean_gateway: bool


Verdicts: TypeAlias = Sequence[tuple[Pool, str]]  # Each named pool, and why it is passed over ("" where it is not).


def select(call: CniCall, facts: Facts, definition: Definition, settings: Settings) -> Selection | Refusal:
    """The wants of this ADD, those of the interface at hand among them; or why there are none.

    A call that names a pod is judged without one if the facts have none: whether that may be, the caller knows.
    """
    try:
        return _Case(call, facts, definition, settings).selection()
    except _RefusedError as error:
        return error.refusal
    except WrongInputError as error:
        return Refusal(Reason.WRONG_INPUT, _cut(str(error), TEXT_MAX))


class _RefusedError(Exception):
    """Inside this module only: gives the selection up."""

    def __init__(
        self, reason: Reason, text: str, candidates: Iterable[Candidate] = (), named: Iterable[Pool] = ()
    ) -> None:
        super().__init__(text)
        self.refusal = Refusal(reason, _cut(text, TEXT_MAX), tuple(candidates), frozenset(pool.id for pool in named))


@dataclass(frozen=True)
class _Case:
    """One ADD, and all there is to judge it by."""

    call: CniCall
    facts: Facts
    definition: Definition
    settings: Settings

    @cached_property
    def pod(self) -> PodFacts:
        """The pod; outside Kubernetes one that says nothing."""
        return self.facts.pod or PodFacts("", "", "", self.facts.node.name)

    @cached_property
    def namespace(self) -> NamespaceFacts:
        """The pod's namespace; one that says nothing where there is none."""
        return self.facts.namespace or NamespaceFacts(self.pod.namespace)

    def selection(self) -> Selection:
        """The steps, in the order in which they refuse."""
        if not self.pod.alive:
            why = f": {self.pod.dead_reason}" if self.pod.dead_reason else ""
            text = f"dead Pod {self.pod.namespace}/{self.pod.name}, we cannot allocate IP addresees to it"
            raise _RefusedError(Reason.DEAD_POD, text + why)
        routes = written.routes(self.pod.annotations)
        asked = written.asked_addresses(self.pod.annotations)
        source, named = _named(self)
        named = tuple(each for each in named if each.pools and each.family in self.settings.families)
        if not any(each.interface == self.call.interface for each in named):
            raise _RefusedError(Reason.NO_POOL, _nothing_named(self, source))
        pools = _existing(self.definition, named)
        exact = self._exact(asked, named)
        judged = [
            (each, [(pool, _passed_over(self, each, pool)) for pool in found])
            for each, found in zip(named, pools, strict=True)
        ]
        _refuse_filtered(judged)
        wants = tuple(self._want(each, verdicts, exact, routes) for each, verdicts in judged)
        return Selection(wants, self.definition.version, source)

    @cached_property
    def networks(self) -> tuple[Network, ...] | str | None:
        """What Multus adds to the pod; None where nobody says so, a text where it cannot be read."""
        try:
            return written.networks(self.pod.annotations, self.pod.namespace)
        except ValueError as error:
            return str(error)

    @cached_property
    def added(self) -> tuple[str, ...]:
        """The interfaces that Multus adds, as far as anybody can tell."""
        networks = self.networks
        return tuple(each.interface for each in networks) if isinstance(networks, tuple) else ()

    def _exact(self, asked: Sequence[Ip], named: Sequence[Named]) -> dict[tuple[str, Family], Ip]:
        """The addresses that must be given, by interface and family.

        The pod's annotation speaks for its own interface; those that Multus adds have Multus's convention for it.
        """
        own = FIRST_INTERFACE if any(each.interface == FIRST_INTERFACE for each in named) else self.call.interface
        asked_for = {self.call.interface: self.call.exact}
        if own not in self.added:
            asked_for[own] = (*asked_for.get(own, ()), *asked)
        found: dict[tuple[str, Family], Ip] = {}
        for interface, wanted in asked_for.items():
            try:
                found |= {(interface, addresses.family(ip)): ip for ip in one_of_each_family(wanted)}
            except ValueError as error:
                texts = _listed(map(addresses.text, wanted))
                raise WrongInputError(f"wrong input, {interface} {error}: {texts}") from None
        for interface, family in sorted(found.keys() - {(each.interface, each.family) for each in named}):
            text = f"no IPv{family} IPPool of {interface} is named, and it must have"
            raise _RefusedError(Reason.ADDRESS_OUTSIDE, f"{text} {addresses.text(found[interface, family])}")
        return found

    def _want(
        self,
        named: Named,
        verdicts: Verdicts,
        exact: Mapping[tuple[str, Family], Ip],
        routes: tuple[tuple[str, str], ...],
    ) -> Want:
        left = sorted((pool for pool, why in verdicts if not why), key=_rank)
        wished = self.call.preferred if named.interface == self.call.interface else None
        if wished is not None and addresses.family(wished) != named.family:
            wished = None
        return Want(
            claim=claim_for(self.call, self.facts, self.settings, named.interface, named.family),
            pools=tuple(pool.id for pool in left),
            named=frozenset(pool.id for pool, _ in verdicts),
            address=exact.get((named.interface, named.family), wished),
            exact=(named.interface, named.family) in exact,
            clean_gateway=named.clean_gateway,
            routes=routes,
            candidates=(*(Candidate(pool.name) for pool in left), *_candidates(verdicts)),
        )


def _named(case: _Case) -> tuple[str, tuple[Named, ...]]:
    """What the first source that says anything names, for both families: sources are never mixed."""
    of_pod = case.pod.annotations
    if written.SUBNETS in of_pod or written.SUBNET in of_pod:
        text = f"it's invalid to use '{written.SUBNETS}' or '{written.SUBNET}' annotation when Auto-Pool feature is"
        raise _RefusedError(Reason.WRONG_INPUT, f"{text} disabled")
    if written.IPPOOLS in of_pod:
        return f"Pod annotation '{written.IPPOOLS}'", _by_interface(case, of_pod[written.IPPOOLS])
    if written.IPPOOL in of_pod:
        lists = written.pool_lists(of_pod[written.IPPOOL])
        return f"Pod annotation '{written.IPPOOL}'", _at_hand(case, lists)
    lists = written.namespace_pools(case.namespace.annotations)
    if lists.ipv4 or lists.ipv6:
        return f"annotations of Namespace {case.namespace.name}", _at_hand(case, lists)
    ipam = case.call.ipam
    if ipam.default_ipv4_ippool or ipam.default_ipv6_ippool:
        lists = PoolLists(ipv4=ipam.default_ipv4_ippool, ipv6=ipam.default_ipv6_ippool)
        return f"CNI network configuration {case.call.network}", _at_hand(case, lists)
    return "cluster default IPPools", _at_hand(case, _defaults(case.definition))


def _defaults(definition: Definition) -> PoolLists:
    default = [pool for pool in definition.pools if pool.object.spec.default]
    if not default:
        raise _RefusedError(Reason.NO_POOL, f"{NO_POOL_AVAILABLE}, no pool selection rules of any type are specified")
    v4, v6 = (tuple(pool.name for pool in default if pool.object.spec.family == family) for family in (4, 6))
    return PoolLists(ipv4=v4, ipv6=v6)


def _at_hand(case: _Case, lists: PoolLists) -> tuple[Named, ...]:
    """The lists, for the interface of this call."""
    return tuple(_expanded(case, case.call.interface, lists, case.call.ipam.clean_gateway))


def _by_interface(case: _Case, text: str) -> tuple[Named, ...]:
    items = written.interface_pools(text, case.added, case.call.interface)
    return tuple(each for item in items for each in _expanded(case, item.interface, item, item.clean_gateway))


def _expanded(case: _Case, interface: str, lists: PoolLists, clean_gateway: bool) -> Iterator[Named]:
    families: tuple[tuple[Family, tuple[str, ...]], ...] = ((4, lists.ipv4), (6, lists.ipv6))
    for family, names in families:
        known = (pool.name for pool in case.definition.pools if pool.object.spec.family == family)
        yield Named(interface, family, written.without_patterns(names, known, family), clean_gateway)


def _nothing_named(case: _Case, source: str) -> str:
    text = f"{NO_POOL_AVAILABLE}, the {source} names no IPPool of an enabled family for {case.call.interface}"
    of_pod = case.pod.annotations
    if unknown := written.unknown_keys(of_pod.get(written.IPPOOLS, of_pod.get(written.IPPOOL, "[]"))):
        text += f" (it has unknown keys: {', '.join(unknown)})"
    return text


def _existing(definition: Definition, named: Sequence[Named]) -> list[tuple[Pool, ...]]:
    """The named pools. One that is missing or named twice fails all: nobody can tell what was meant."""
    known = definition.by_name
    holders_stay = [known[name] for each in named for name in each.pools if name in known]
    for each in named:
        seen: set[str] = set()
        for name in each.pools:
            if name in seen:
                text = f"wrong input, duplicate IPPool {name} specified for NIC {each.interface}"
                raise _RefusedError(Reason.WRONG_INPUT, text, named=holders_stay)
            if name not in known:
                text = f'failed to get original IPPool {name}: SpiderIPPool.spiderpool.spidernet.io "{name}" not found'
                raise _RefusedError(Reason.NO_POOL, text, [Candidate(name, "not found")], holders_stay)
            seen.add(name)
    return [tuple(known[name] for name in each.pools) for each in named]


def _refuse_filtered(judged: Sequence[tuple[Named, Verdicts]]) -> None:
    """An interface's family of which no pool is left fails everything."""
    empty = [(named, verdicts) for named, verdicts in judged if all(why for _, why in verdicts)]
    texts = [
        f"all IPv{named.family} IPPools {_listed(named.pools)} of {named.interface} filtered out: "
        + _together(why for _, why in verdicts)
        for named, verdicts in empty
    ]
    if texts:
        candidates = [each for _, verdicts in empty for each in _candidates(verdicts)]
        holders_stay = [pool for _, verdicts in judged for pool, _ in verdicts]
        raise _RefusedError(Reason.NO_POOL, f"{NO_POOL_AVAILABLE}, {_together(texts)}", candidates, holders_stay)


def _candidates(verdicts: Verdicts) -> list[Candidate]:
    return [Candidate(pool.name, why) for pool, why in verdicts if why]


def _together(texts: Iterable[str]) -> str:
    different = list(dict.fromkeys(texts))
    return different[0] if len(different) == 1 else f"[{', '.join(different)}]"


def _passed_over(case: _Case, named: Named, pool: Pool) -> str:
    """The first reason against the pool, in the order in which Spiderpool looks for one."""
    for test in (_itself, _node, _namespace):
        if why := test(case, named, pool):
            return why
    spec = pool.object.spec
    if spec.pod_affinity is not None and pool.object.auto_created:
        return _application(case, pool, spec.pod_affinity)
    if why := _pod(case, pool) or _multus(case, named, pool):
        return why
    return "" if spec.multus_name else _master(case, pool)


def _itself(case: _Case, named: Named, pool: Pool) -> str:
    spec = pool.object.spec
    if pool.state is not State.OPEN:
        return f"terminating IPPool {pool.name}"
    if spec.disable:
        return f"disabled IPPool {pool.name}"
    if spec.family is None:
        return "nil ippool ipVersion"
    if spec.family != named.family:
        return f"expect an IPv{named.family} IPPool, but the version of the IPPool {pool.name} is IPv{spec.family}"
    return ""


def _node(case: _Case, named: Named, pool: Pool) -> str:
    spec = pool.object.spec
    if spec.node_name:
        return "" if case.facts.node.name in spec.node_name else f"unmatched Node name of IPPool {pool.name}"
    return _affinity("Node", spec.node_affinity, case.facts.node.labels, pool)


def _namespace(case: _Case, named: Named, pool: Pool) -> str:
    spec = pool.object.spec
    if spec.namespace_name:
        return "" if case.pod.namespace in spec.namespace_name else f"unmatched Namespace name of IPPool {pool.name}"
    return _affinity("Namespace", spec.namespace_affinity, case.namespace.labels, pool)


def _affinity(kind: str, selector: LabelSelector | None, labels: Mapping[str, str], pool: Pool) -> str:
    try:
        matched = selector is None or selector.matches(labels)
    except ValueError as error:
        return f"invalid {kind} affinity of IPPool {pool.name}: {error}"
    return "" if matched else f"unmatched {kind} affinity of IPPool {pool.name}"


def _pod(case: _Case, pool: Pool) -> str:
    affinity = pool.object.spec.pod_affinity
    if affinity is not None and case.facts.pod is None:
        return f"unmatched Pod affinity of IPPool {pool.name}"
    return _affinity("Pod", affinity, case.pod.labels, pool)


def _application(case: _Case, pool: Pool, affinity: LabelSelector) -> str:
    """A pool that was made for one application is for it alone, and nothing else counts."""
    owner = case.pod.top_owner or Owner("v1", "Pod", case.pod.name)
    group, _, version = owner.api_version.rpartition("/")
    said = (group, version, owner.kind, case.pod.namespace, owner.name)
    keys = (f"ipam.spidernet.io/app-{key}" for key in ("api-group", "api-version", "kind", "namespace", "name"))
    matched = all(affinity.match_labels.get(key) == value for key, value in zip(keys, said, strict=True))
    return "" if matched else f"unmatched Pod annifity of auto-created IPool {pool.name}"


def _multus(case: _Case, named: Named, pool: Pool) -> str:
    """Whether the pool is for the network that Multus attaches here; where nobody speaks of Multus it need not be."""
    wanted = pool.object.spec.multus_name
    first = named.interface == FIRST_INTERFACE
    if not wanted and (first or case.networks is None):
        return ""
    try:
        network = _first_network(case, pool) if first else _added_network(case, named.interface)
    except ValueError as error:
        return str(error)
    if not wanted or network in (name if "/" in name else f"{case.settings.own_namespace}/{name}" for name in wanted):
        return ""
    used = f"the spec.multusName {_listed(wanted)} in the IPPool {pool.name} used by"
    return f"{used} the Pod interface {named.interface} is not matched with the multusCR {network} specified by the Pod"


def _first_network(case: _Case, pool: Pool) -> str:
    text = case.pod.annotations.get(written.DEFAULT_NETWORK) or case.settings.multus_cluster_network
    if not text:
        specified = f"the IPPool {pool.name} specified multusName {_listed(pool.object.spec.multus_name)} unmatched"
        raise ValueError(f"cluster-network multus isn't set, {specified}")
    try:
        network = written.network(text)
    except ValueError as error:
        value = f"'{written.DEFAULT_NETWORK}' value '{_cut(text)}'"
        raise ValueError(f"failed to parse Annotation {value}, error: {error}") from None
    return f"{network.namespace or case.settings.own_namespace}/{network.name}"


def _added_network(case: _Case, interface: str) -> str:
    if isinstance(case.networks, str):
        raise ValueError(f"failed to parse pod network annotation: {case.networks}")
    for each in case.networks or ():
        if each.interface == interface:
            return f"{each.namespace}/{each.name}"
    said = _cut(case.pod.annotations.get(written.NETWORKS, ""))
    raise ValueError(f"unknown: no matched multus object for NIC '{interface}'. The multus network-attachments: {said}")


def _master(case: _Case, pool: Pool) -> str:
    """For SR-IOV: the parent interface must itself have an address in the pool's subnet."""
    known = case.facts.master_subnets
    if not case.call.ipam.match_master_subnet or any(pool.in_subnet(each.partition("/")[0]) for each in known or ()):
        return ""
    why = "nobody could look" if known is None else f"it has {_listed(known)}"
    subnet = f"the subnet {pool.object.spec.subnet} of IPPool {pool.name}"
    return f"filterPoolCandidatesByPfSubnet: no address of the parent interface is known in {subnet}: {why}"


def _rank(pool: Pool) -> tuple[bool, ...]:
    """What a pool demands decides, the earlier the more; equals stay in the user's order."""
    spec = pool.object.spec
    of_pod_and_node = (spec.pod_affinity is None, not spec.node_name, spec.node_affinity is None)
    return (*of_pod_and_node, not spec.namespace_name, spec.namespace_affinity is None, not spec.multus_name)


def _cut(text: str, length: int = VALUE_MAX) -> str:
    """The text within bounds, and without half a surrogate pair, which no database takes."""
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= length else text[: length - 3] + "..."


def _listed(names: Iterable[str]) -> str:
    return f"[{' '.join(names)}]"
