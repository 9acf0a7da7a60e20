"""Whether a pool or a reservation may be created or changed as its author wrote it, and what is filled in before.

The same decision serves the webhook, a folder of YAML and the command line. The order of the rules is fixed and is
Spiderpool's, as are the texts, for users search for them. A refusal is returned, never raised. Nothing here asks who
holds which address: whoever finds that an update takes a held one away answers with `refuse_in_use`.

Pure: the pools to compare with, and the families that are switched on, are arguments.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, assert_never

from ledger import addresses, intervals, ranges
from ledger.addresses import Family, Ip
from ledger.intervals import Intervals
from ledger.ranges import Cidr, RangeError
from ledger.resources import (
    AUTO_POOL_AFFINITY_KEYS,
    COOLING_ANNOTATION,
    FINALIZER,
    GROUP,
    POOL_CIDR_LABEL,
    FieldError,
    LabelSelector,
    ReservedIPSpec,
    Route,
    SpiderIPPool,
    SpiderReservedIP,
    SubnetSpec,
)

__all__ = [
    "AdmissionRefused",
    "FieldError",
    "mutated_pool",
    "mutated_reservation",
    "refuse_in_use",
    "refuse_new_pool",
    "refuse_new_reservation",
    "refuse_pool_update",
    "refuse_reservation_update",
]

Reason: TypeAlias = Literal["Invalid", "AlreadyExists", "Forbidden"]
STATUS: Final[dict[Reason, int]] = {"Invalid": 422, "AlreadyExists": 409, "Forbidden": 403}
Resource: TypeAlias = SpiderIPPool | SpiderReservedIP

GATEWAY_REMEDY: Final = "add the gateway IP address to 'spec.excludeIPs' or remove it from 'spec.ips'"
JOINTLY: Final = "total IP addresses of an IPPool are jointly determined by 'spec.ips' and 'spec.excludeIPs'"
LABEL_VALUE: Final = str.maketrans(".:/", "---")
POOL_VERSION_MISSING: Final = "is not generated correctly, 'spec.subnet' may be invalid"
RESERVATION_VERSION_MISSING: Final = "is not generated correctly, 'spec.ips' is empty or 'spec.ips[0]' may be invalid"


@dataclass(frozen=True)
class AdmissionRefused:
    """Why an object may not become what its author wrote; its text is the API server's."""

    kind: str
    name: str
    reason: Reason
    errors: tuple[FieldError, ...] = ()
    message: str = ""

    @property
    def status(self) -> int:
        """The HTTP status of the answer."""
        return STATUS[self.reason]

    def __str__(self) -> str:
        """Kinds are invalid, but resources exist and are forbidden: that is how Kubernetes says it."""
        name = json.dumps(self.name, ensure_ascii=False)
        resource = f"{self.kind.lower()}s.{GROUP} {name}"
        match self.reason:
            case "Invalid":
                return f"{self.kind}.{GROUP} {name} is invalid: {_aggregate(self.errors)}"
            case "AlreadyExists":
                return f"{resource} already exists"
            case "Forbidden":
                return f"{resource} is forbidden: {self.message}"
            case _:
                assert_never(self.reason)


def mutated_pool(pool: SpiderIPPool) -> SpiderIPPool:
    """The pool with its family, its label and its lists merged; untouched where validation has a fault to name."""
    spec = pool.spec
    family = ranges.family_of_cidr(spec.subnet)
    if pool.metadata.terminating or family is None or spec.ip_version not in (None, family):
        return pool
    labels = {**pool.metadata.labels, POOL_CIDR_LABEL: spec.subnet.translate(LABEL_VALUE)}
    filled = {
        "ip_version": family,
        "ips": _merged(spec.ips, family),
        "exclude_ips": _merged(spec.exclude_ips, family),
    }
    metadata = pool.metadata.model_copy(update={"labels": labels})
    return pool.model_copy(update={"metadata": metadata, "spec": spec.model_copy(update=filled)})


def mutated_reservation(reservation: SpiderReservedIP) -> SpiderReservedIP:
    """The reservation with its family, that of its first range, and its list merged."""
    spec = reservation.spec
    if reservation.metadata.terminating or not spec.ips:
        return reservation
    family = ranges.family_of_range(spec.ips[0]) if spec.ip_version is None else spec.family
    if family is None:
        return reservation
    filled = {"ip_version": family, "ips": _merged(spec.ips, family)}
    return reservation.model_copy(update={"spec": spec.model_copy(update=filled)})


def refuse_new_pool(
    pool: SpiderIPPool, others: Sequence[SpiderIPPool], families: frozenset[Family]
) -> AdmissionRefused | None:
    """Why this pool, already mutated, may not be created beside the others.

    A fault in the family or the subnet is named alone; of the addresses, the gateway and the routes the first fault is
    named, and with it every fault of the affinity and the cooling period.
    """
    error = _version_error(pool.spec.ip_version, families, POOL_VERSION_MISSING) or _subnet_error(pool.spec)
    if error:
        return _invalid(pool, error)
    if any(other.metadata.name == pool.metadata.name for other in others):
        return AdmissionRefused(pool.kind, pool.metadata.name, "AlreadyExists")
    if error := _subnet_overlap(pool.spec, others):
        return _invalid(pool, error)
    return _invalid(pool, _spec_error(pool, others), *_affinity_errors(pool), *_cooling_errors(pool))


def refuse_pool_update(
    new: SpiderIPPool, old: SpiderIPPool, others: Sequence[SpiderIPPool], families: frozenset[Family]
) -> AdmissionRefused | None:
    """Why the old pool may not become the new one, already mutated; the pool itself may be among the others.

    A terminating pool takes one change, losing our finalizer, and no rule stands in the way of that.
    """
    if new.metadata.terminating:
        return _forbidden(new, "cannot update a terminating IPPool") if FINALIZER in new.metadata.finalizers else None
    error = (
        _changed("spec.ipVersion", new.spec.ip_version, old.spec.ip_version)
        or _changed("spec.subnet", new.spec.subnet, old.spec.subnet)
        or _version_error(new.spec.ip_version, families, POOL_VERSION_MISSING)
        or _spec_error(new, others)
    )
    if error:
        return _invalid(new, error)
    return _invalid(new, *_affinity_errors(new), *_cooling_errors(new))


def refuse_in_use(pool: SpiderIPPool, address: Ip, holder: str) -> AdmissionRefused:
    """The refusal of an update that takes this address away from the pod `namespace/name` which holds it."""
    text = f"remove an IP address {addresses.text(address)} that is being used by Pod {holder}, {JOINTLY}"
    return AdmissionRefused(pool.kind, pool.metadata.name, "Invalid", (FieldError("spec.ips", "Forbidden", "", text),))


def refuse_new_reservation(reservation: SpiderReservedIP, families: frozenset[Family]) -> AdmissionRefused | None:
    """Why this reservation, already mutated, may not be created; it may overlap anything, and nobody need be asked."""
    error = _version_error(reservation.spec.ip_version, families, RESERVATION_VERSION_MISSING)
    return _invalid(reservation, error or _reserved_ips_error(reservation))


def refuse_reservation_update(
    new: SpiderReservedIP, old: SpiderReservedIP, families: frozenset[Family]
) -> AdmissionRefused | None:
    """Why the old reservation may not become the new one, already mutated."""
    if old.metadata.terminating:
        return None if _finalizer_removed(new, old) else _forbidden(new, "cannot update a terminating ReservedIP")
    if error := _changed("spec.ipVersion", new.spec.ip_version, old.spec.ip_version):
        return _invalid(new, error)
    return refuse_new_reservation(new, families)


def _finalizer_removed(new: SpiderReservedIP, old: SpiderReservedIP) -> bool:
    """The one change a terminating reservation takes: without it a deletion in the foreground would never end."""
    return set(new.metadata.finalizers) < set(old.metadata.finalizers) and new.spec == old.spec


def _merged(texts: tuple[str, ...], family: Family) -> tuple[str, ...]:
    """A list of one stays as typed, and one that cannot be read is left for validation to name."""
    if len(texts) <= 1:
        return texts
    try:
        return ranges.range_texts(ranges.parse_ranges(texts, family))
    except ValueError:
        return texts


def _version_error(ip_version: int | None, families: frozenset[Family], missing: str) -> FieldError | None:
    if ip_version is None:
        return FieldError("spec.ipVersion", "Invalid value", None, missing)
    if ip_version not in (4, 6):
        return FieldError("spec.ipVersion", "Unsupported value", ip_version, 'supported values: "4", "6"')
    if ip_version not in families:
        return FieldError("spec.ipVersion", "Forbidden", "", f"IPv{ip_version} is disabled")
    return None


def _changed(path: str, new: str | int | None, old: str | int | None) -> FieldError | None:
    """Filling in what an object that never passed the webhook lacks is no change."""
    return None if new == old or None in (new, old) else FieldError(path, "Forbidden", "", "is not changeable")


def _subnet_error(spec: SubnetSpec) -> FieldError | None:
    try:
        canonical = ranges.cidr_text(_subnet(spec))
    except ValueError as problem:
        return FieldError("spec.subnet", "Invalid value", spec.subnet, str(problem))
    if spec.subnet == canonical:
        return None
    text = f"unformatted subnet {spec.subnet}, please change it to {canonical}"
    return FieldError("spec.subnet", "Invalid value", spec.subnet, text)


def _subnet_overlap(spec: SubnetSpec, others: Sequence[SpiderIPPool]) -> FieldError | None:
    """Pools may share a subnet, but no two subnets may share an address."""
    subnet = _subnet(spec)
    for other in others:
        if other.spec.family != spec.family:
            continue
        try:
            theirs = _subnet(other.spec)
        except ValueError as problem:
            text = f"failed to compare whether 'spec.subnet' overlaps: {problem}"
            return FieldError("spec.subnet", "Internal error", "", text)
        if theirs != subnet and ranges.overlapping(theirs, subnet):
            text = f"overlap with IPPool {other.metadata.name} which 'spec.subnet' is {other.spec.subnet}"
            return FieldError("spec.subnet", "Invalid value", spec.subnet, text)
    return None


def _spec_error(pool: SpiderIPPool, others: Sequence[SpiderIPPool]) -> FieldError | None:
    """The first fault of addresses, gateway and routes. The subnet of an update was judged when it was created."""
    spec = pool.spec
    try:
        subnet = _subnet(spec)
        mine = _effective(spec)
    except RangeError as refused:
        return FieldError(f"spec.{refused.where}", "Invalid value", refused.element, str(refused))
    except ValueError as problem:
        return FieldError("spec.subnet", "Invalid value", spec.subnet, str(problem))
    return _ranges_overlap(pool, mine, others) or _gateway_error(spec, subnet) or _routes_error(spec, subnet)


def _ranges_overlap(pool: SpiderIPPool, mine: Intervals, others: Sequence[SpiderIPPool]) -> FieldError | None:
    """An address belongs to one pool at most. Which pools lie in one subnet, their subnets say, not their labels."""
    for other in others:
        if other.metadata.name == pool.metadata.name or not mine or not _near(pool.spec, other.spec):
            continue
        name = other.metadata.name
        try:
            common = intervals.intersect(mine, _effective(other.spec))
        except ValueError as problem:
            text = f"failed to assemble the total IP addresses of the existing IPPool {name}: {problem}"
            return FieldError("spec.ips", "Internal error", "", text)
        if common:
            text = f"overlap with IPPool {name} in IP ranges [{_sharing(other.spec, common)}], {JOINTLY}"
            return FieldError("spec.ips", "Forbidden", "", text)
    return None


def _near(spec: SubnetSpec, other: SubnetSpec) -> bool:
    """Whether an address could be in both; a subnet that cannot be read is named when a pool is created."""
    try:
        return other.family == spec.family and ranges.overlapping(_subnet(spec), _subnet(other))
    except ValueError:
        return False


def _sharing(spec: SubnetSpec, common: Intervals) -> str:
    """The elements of `ips`, as written, that hold some of the common addresses; printed as Go prints a list."""
    shared = (text for text in spec.ips if intervals.intersect(common, (ranges.parse_range(text, _of(spec)),)))
    return " ".join(shared)


def _gateway_error(spec: SubnetSpec, subnet: Cidr) -> FieldError | None:
    """The gateway may stand among the addresses only if it is excluded from them."""
    if spec.gateway is None:
        return None
    if error := _outside("spec.gateway", spec.gateway, spec, subnet):
        return error
    gateway = ranges.parse_address(spec.gateway, subnet.family)
    if intervals.contains(ranges.parse_ranges(spec.exclude_ips, subnet.family), gateway):
        return None
    for index, text in enumerate(spec.ips):
        if intervals.contains((ranges.parse_range(text, subnet.family),), gateway):
            conflict = f"conflicts with 'spec.gateway' {spec.gateway}, {GATEWAY_REMEDY}"
            return FieldError(f"spec.ips[{index}]", "Invalid value", text, conflict)
    return None


def _routes_error(spec: SubnetSpec, subnet: Cidr) -> FieldError | None:
    seen: set[str] = set()
    for index, route in enumerate(spec.routes or ()):
        path = f"spec.routes[{index}]"
        if problem := _destination_problem(route, seen, subnet.family):
            return FieldError(f"{path}.dst", "Invalid value", route.dst, problem)
        if error := _outside(f"{path}.gw", route.gw, spec, subnet):
            return error
        seen.add(route.dst)
    return None


def _destination_problem(route: Route, seen: set[str], family: Family) -> str | None:
    """Any text of length 0 is the default route, as it is to the kernel: Spiderpool lets 0.0.0.0/00 and ::0/0 pass.

    Of equal destinations only equal texts are refused, as in Spiderpool: the second does no harm in the pod.
    """
    try:
        destination = ranges.parse_cidr(route.dst, family)
    except ValueError as problem:
        return str(problem)
    if destination.prefix == 0:
        return "please specify 'spec.gateway' to configure the default route"
    return "duplicate route with the same dst" if route.dst in seen else None


def _outside(path: str, text: str, spec: SubnetSpec, subnet: Cidr) -> FieldError | None:
    try:
        ip = ranges.parse_address(text, subnet.family)
    except ValueError as problem:
        return FieldError(path, "Invalid value", text, str(problem))
    if ranges.inside(subnet, ip):
        return None
    return FieldError(path, "Invalid value", text, f"not pertains to the 'spec.subnet' {spec.subnet} of IPPool")


def _affinity_errors(pool: SpiderIPPool) -> Iterator[FieldError]:
    """Only the affinity to pods is judged: what is wrong with the others shows when pools are filtered."""
    affinity = pool.spec.pod_affinity
    if affinity is None:
        return
    path = "spec.podAffinity"
    if pool.auto_created:
        yield from _auto_affinity_errors(path, affinity)
        return
    yield from affinity.errors(path)
    if not affinity.match_labels and not affinity.match_expressions:
        yield FieldError(path, "Invalid value", affinity, "empty podAffinity is invalid for SpiderIPPool")


def _auto_affinity_errors(path: str, affinity: LabelSelector) -> Iterator[FieldError]:
    text = "it's invalid to add additional podAffinity {} for auto-created SpiderIPPool"
    if not AUTO_POOL_AFFINITY_KEYS.issuperset(affinity.match_labels):
        yield FieldError(path, "Invalid value", affinity, text.format("matchLabels"))
    if affinity.match_expressions:
        yield FieldError(path, "Invalid value", affinity, text.format("matchExpressions"))


def _cooling_errors(pool: SpiderIPPool) -> Iterator[FieldError]:
    try:
        _ = pool.cooling_seconds
    except ValueError as problem:
        written = pool.metadata.annotations[COOLING_ANNOTATION]
        yield FieldError(f"metadata.annotations[{COOLING_ANNOTATION}]", "Invalid value", written, str(problem))


def _reserved_ips_error(reservation: SpiderReservedIP) -> FieldError | None:
    for index, text in enumerate(reservation.spec.ips):
        try:
            ranges.parse_range(text, _of(reservation.spec))
        except ValueError as problem:
            return FieldError(f"spec.ips[{index}]", "Invalid value", text, str(problem))
    return None


def _of(spec: SubnetSpec | ReservedIPSpec) -> Family:
    assert spec.family is not None  # The version is judged before all that asks for it.
    return spec.family


def _subnet(spec: SubnetSpec) -> Cidr:
    return ranges.parse_cidr(spec.subnet, _of(spec))


def _effective(spec: SubnetSpec) -> Intervals:
    return ranges.effective(spec.subnet, spec.ips, spec.exclude_ips, _of(spec))


def _invalid(resource: Resource, *errors: FieldError | None) -> AdmissionRefused | None:
    """The refusal for these errors, if there are any."""
    found = tuple(error for error in errors if error is not None)
    return AdmissionRefused(resource.kind, resource.metadata.name, "Invalid", found) if found else None


def _forbidden(resource: Resource, message: str) -> AdmissionRefused:
    return AdmissionRefused(resource.kind, resource.metadata.name, "Forbidden", message=message)


def _aggregate(errors: Sequence[FieldError]) -> str:
    """Equal errors once, and several in brackets: Kubernetes' way of printing a list of them."""
    texts = tuple(dict.fromkeys(str(error) for error in errors))
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
