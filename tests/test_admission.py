"""Pools and reservations as users write them: their shapes, what is filled in, and every refusal in its order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ledger import addresses
from ledger.addresses import Family
from ledger.admission import (
    AdmissionRefused,
    FieldError,
    mutated_pool,
    mutated_reservation,
    refuse_in_use,
    refuse_new_pool,
    refuse_new_reservation,
    refuse_pool_update,
    refuse_reservation_update,
)
from ledger.resources import LabelSelector, ObjectMeta, PoolSpec, SpiderIPPool, SpiderReservedIP

BOTH: frozenset[Family] = frozenset({4, 6})
JOINTLY = "total IP addresses of an IPPool are jointly determined by 'spec.ips' and 'spec.excludeIPs'"
FINALIZER = "spiderpool.spidernet.io"
DELETED = "2026-07-08T12:00:00Z"
COOLING = "ipam.spiderledger.io/cooling"
AUTO = {"ipam.spidernet.io/owner-application-name": "web"}
AUTO_KEYS = {f"ipam.spidernet.io/app-{key}": "x" for key in ("api-group", "api-version", "kind", "namespace", "name")}

Written = Mapping[str, Any]


def as_written(name: str = "p", metadata: Written | None = None, **spec: Any) -> SpiderIPPool:
    """A pool as its author wrote it, in 10.6.0.0/16 unless that says otherwise."""
    whole = {"metadata": {"name": name, **(metadata or {})}, "spec": {"subnet": "10.6.0.0/16", **spec}}
    return SpiderIPPool.model_validate(whole)


def pool(name: str = "p", metadata: Written | None = None, **spec: Any) -> SpiderIPPool:
    """The same pool as the rules see it."""
    return mutated_pool(as_written(name, metadata, **spec))


def reserved_as_written(metadata: Written | None = None, **spec: Any) -> SpiderReservedIP:
    return SpiderReservedIP.model_validate({"metadata": {"name": "r", **(metadata or {})}, "spec": spec})


def reservation(metadata: Written | None = None, **spec: Any) -> SpiderReservedIP:
    return mutated_reservation(reserved_as_written(metadata, **spec))


def errors(refusal: AdmissionRefused | None) -> list[str]:
    return [] if refusal is None else [str(error) for error in refusal.errors]


# --- What is filled in


@pytest.mark.parametrize(
    ("spec", "filled"),
    [
        pytest.param({}, {"ip_version": 4}, id="3-family-of-an-ipv4-subnet"),
        pytest.param({"subnet": "fd00::/64"}, {"ip_version": 6}, id="3-family-of-an-ipv6-subnet"),
        pytest.param({"ips": ["10.6.0.2", "10.6.0.1"]}, {"ips": ("10.6.0.1-10.6.0.2",)}, id="6-ips-merged"),
        pytest.param({"excludeIPs": ["10.6.0.2"] * 2}, {"exclude_ips": ("10.6.0.2",)}, id="6-excludeIPs-merged"),
        pytest.param(
            {"subnet": "fd00::/64", "ips": ["FD00::000A"]}, {"ips": ("FD00::000A",)}, id="6-a-single-one-stays-as-typed"
        ),
        pytest.param(
            {"ips": ["10.6.0.2", "x", "10.6.0.1"], "excludeIPs": ["10.6.0.4", "10.6.0.3"]},
            {"ips": ("10.6.0.2", "x", "10.6.0.1"), "exclude_ips": ("10.6.0.3-10.6.0.4",)},
            id="6-an-unreadable-list-is-left-alone",
        ),
        pytest.param({"ips": ["10.6.0.1", "fd00::1"]}, {"ips": ("10.6.0.1", "fd00::1")}, id="6-so-is-a-mixed-one"),
        pytest.param({"ips": ["10.9.0.2", "10.9.0.1"]}, {"ips": ("10.9.0.1-10.9.0.2",)}, id="6-merged-where-ever"),
    ],
)
def test_a_pool_is_filled_in(spec: Written, filled: Written) -> None:
    result = pool(**spec).spec
    assert {name: getattr(result, name) for name in filled} == filled


@pytest.mark.parametrize(
    ("metadata", "spec"),
    [
        pytest.param({"deletionTimestamp": DELETED}, {"ips": ["10.6.0.2", "10.6.0.1"]}, id="1-terminating"),
        pytest.param({}, {"subnet": "nonsense", "ips": ["10.6.0.2", "10.6.0.1"]}, id="3-no-subnet"),
        pytest.param({}, {"ipVersion": 6, "ips": ["fd00::2", "fd00::1"]}, id="4-a-subnet-of-another-family"),
        pytest.param({}, {"ipVersion": 0}, id="4-an-impossible-family-is-not-corrected"),
    ],
)
def test_a_pool_is_left_as_written(metadata: Written, spec: Written) -> None:
    assert pool(metadata=metadata, **spec) == as_written(metadata=metadata, **spec)


@pytest.mark.parametrize(
    ("subnet", "label"),
    [
        pytest.param("172.18.40.0/24", "172-18-40-0-24", id="4-v4"),
        pytest.param("fd00::/64", "fd00---64", id="4-v6"),
        pytest.param("1:2:3:4:5:6:7:0/112", "1-2-3-4-5-6-7-0-112", id="4-v6-all-groups"),
    ],
)
def test_a_pool_is_labelled_with_its_subnet(subnet: str, label: str) -> None:
    labels = {"ipam.spidernet.io/ippool-cidr": "stale", "mine": "kept"}
    result = pool(metadata={"labels": labels}, subnet=subnet).metadata.labels
    assert result == {"ipam.spidernet.io/ippool-cidr": label, "mine": "kept"}


def test_nothing_else_of_a_pool_is_changed() -> None:
    spec: Written = {"gateway": "10.6.0.1", "routes": [], "default": True, "nodeName": ["n"], "podAffinity": {}}
    before = as_written(metadata={"uid": "u", "annotations": {"a": "b"}}, **spec)
    after = mutated_pool(before)
    assert after.spec.model_copy(update={"ip_version": None}) == before.spec
    assert after.metadata.model_copy(update={"labels": {}}) == before.metadata


@given(
    st.lists(st.sampled_from(["10.6.0.1", "10.6.0.2-10.6.0.4", "10.6.0.9", "10.6.0.3-10.6.0.8", "x"]), max_size=5),
    st.sampled_from(["10.6.0.0/16", "fd00::/64", "nonsense"]),
)
def test_filling_in_twice_is_filling_in_once(ips: list[str], subnet: str) -> None:
    once = pool(subnet=subnet, ips=ips, excludeIPs=ips)
    assert mutated_pool(once) == once
    reserved = reservation(ips=ips)
    assert mutated_reservation(reserved) == reserved


@pytest.mark.parametrize(
    ("metadata", "spec", "ip_version", "ips"),
    [
        pytest.param({}, {"ips": ["10.6.0.1"]}, 4, ("10.6.0.1",), id="1.3-v4"),
        pytest.param({}, {"ips": ["FD00::000a"]}, 6, ("FD00::000a",), id="1.3-v6-a-single-one-stays-as-typed"),
        pytest.param({}, {"ips": ["10.6.0.2", "10.6.0.1"]}, 4, ("10.6.0.1-10.6.0.2",), id="1.3-merged"),
        pytest.param({}, {"ips": ["10.6.0.2", "x"]}, 4, ("10.6.0.2", "x"), id="1.3-unreadable-is-left-alone"),
        pytest.param({}, {"ips": ["x", "10.6.0.2"]}, None, ("x", "10.6.0.2"), id="1.3-the-first-says-the-family"),
        pytest.param(
            {}, {"ipVersion": 6, "ips": ["10.6.0.2", "10.6.0.1"]}, 6, ("10.6.0.2", "10.6.0.1"), id="1.3-given-family"
        ),
        pytest.param({}, {"ipVersion": 6, "ips": ["fd00::2", "fd00::1"]}, 6, ("fd00::1-fd00::2",), id="1.3-given-v6"),
        pytest.param({}, {"ipVersion": 5, "ips": ["10.6.0.2"]}, 5, ("10.6.0.2",), id="1.3-impossible-family"),
        pytest.param({}, {}, None, (), id="1.3-empty"),
        pytest.param({"deletionTimestamp": DELETED}, {"ips": ["10.6.0.1"]}, None, ("10.6.0.1",), id="1.3-terminating"),
    ],
)
def test_a_reservation_is_filled_in(
    metadata: Written, spec: Written, ip_version: int | None, ips: tuple[str, ...]
) -> None:
    result = reservation(metadata, **spec).spec
    assert (result.ip_version, result.ips) == (ip_version, ips)


# --- A new pool

SUBNET_6 = {"subnet": "fd00::/64"}


@pytest.mark.parametrize(
    ("spec", "others", "expected"),
    [
        pytest.param(
            {"subnet": "nonsense"},
            [],
            "spec.ipVersion: Invalid value: null: is not generated correctly, 'spec.subnet' may be invalid",
            id="1",
        ),
        pytest.param(
            {"ipVersion": 5}, [], 'spec.ipVersion: Unsupported value: 5: supported values: "4", "6"', id="2-five"
        ),
        pytest.param(
            {"ipVersion": 0}, [], 'spec.ipVersion: Unsupported value: 0: supported values: "4", "6"', id="2-zero"
        ),
        pytest.param(
            {"ipVersion": 6},
            [],
            "spec.subnet: Invalid value: \"10.6.0.0/16\": invalid CIDR format in IPv6 '10.6.0.0/16'",
            id="4-other-family",
        ),
        pytest.param(
            {"ipVersion": 4, "subnet": "10.6.0.0"},
            [],
            "spec.subnet: Invalid value: \"10.6.0.0\": invalid CIDR format in IPv4 '10.6.0.0'",
            id="4-no-cidr",
        ),
        pytest.param(
            {"subnet": "10.6.0.1/16"},
            [],
            'spec.subnet: Invalid value: "10.6.0.1/16": unformatted subnet 10.6.0.1/16, '
            "please change it to 10.6.0.0/16",
            id="5-host-bits",
        ),
        pytest.param(
            {"subnet": "FD00::/64"},
            [],
            'spec.subnet: Invalid value: "FD00::/64": unformatted subnet FD00::/64, please change it to fd00::/64',
            id="5-not-canonical",
        ),
        pytest.param(
            {"subnet": "10.6.0.0/016"},
            [],
            'spec.subnet: Invalid value: "10.6.0.0/016": unformatted subnet 10.6.0.0/016, '
            "please change it to 10.6.0.0/16",
            id="5-leading-zero",
        ),
        pytest.param(
            {},
            [pool("far", subnet="10.8.0.0/16"), pool("big", subnet="10.0.0.0/8")],
            "spec.subnet: Invalid value: \"10.6.0.0/16\": overlap with IPPool big which 'spec.subnet' is 10.0.0.0/8",
            id="6-larger",
        ),
        pytest.param(
            {},
            [pool("small", subnet="10.6.255.0/24"), pool("big", subnet="10.0.0.0/8")],
            'spec.subnet: Invalid value: "10.6.0.0/16": overlap with IPPool small which '
            "'spec.subnet' is 10.6.255.0/24",
            id="6-smaller-and-the-first-is-named",
        ),
        pytest.param(
            {},
            [as_written("broken", ipVersion=4, subnet="x")],
            "spec.subnet: Internal error: failed to compare whether 'spec.subnet' overlaps: "
            "invalid CIDR format in IPv4 'x'",
            id="6-no-comparison",
        ),
        pytest.param(
            {"ips": ["10.6.0.1-2-3"]},
            [],
            'spec.ips: Invalid value: "10.6.0.1-2-3": invalid range: 10.6.0.1-2-3',
            id="7-range",
        ),
        pytest.param(
            {"ips": ["10.6.0.1", "x"]}, [], 'spec.ips: Invalid value: "x": invalid IP address: x', id="7-address"
        ),
        pytest.param(
            {"ips": ["10.6.0.1-10.7.0.1"]},
            [],
            'spec.ips: Invalid value: "10.6.0.1-10.7.0.1": not match base subnet: 10.7.0.1',
            id="7-outside",
        ),
        pytest.param(
            {"ips": ["10.6.0.9-10.6.0.1"]},
            [],
            "spec.ips: Invalid value: \"10.6.0.9-10.6.0.1\": invalid IP range format in IPv4 '10.6.0.9-10.6.0.1'",
            id="7-reversed",
        ),
        pytest.param(
            {"ips": ["10.6.0.1"], "excludeIPs": ["10.7.0.1"]},
            [],
            'spec.excludeIPs: Invalid value: "10.7.0.1": not match base subnet: 10.7.0.1',
            id="7-the-field-is-excludeIPs",
        ),
        pytest.param(
            {"ips": ["10.6.0.1-10.6.0.9"]},
            [pool("q", ips=["10.6.0.9-10.6.0.19"])],
            f"spec.ips: Forbidden: overlap with IPPool q in IP ranges [10.6.0.9-10.6.0.19], {JOINTLY}",
            id="8",
        ),
        pytest.param(
            {"ips": ["10.6.0.1-10.6.0.9"]},
            [pool("o", ips=["10.6.0.99"]), pool("q", ips=["10.6.0.2", "10.6.0.5", "10.6.0.7-10.6.0.19", "10.6.1.1"])],
            "spec.ips: Forbidden: overlap with IPPool q in IP ranges "
            f"[10.6.0.2 10.6.0.5 10.6.0.7-10.6.0.19], {JOINTLY}",
            id="8-their-raw-ranges",
        ),
        pytest.param(
            {"ips": ["10.6.0.1-10.6.0.9"]},
            [pool("q", ips=["10.6.0.1-10.6.0.5", "10.6.0.7-10.6.0.9"], excludeIPs=["10.6.0.1-10.6.0.8"])],
            f"spec.ips: Forbidden: overlap with IPPool q in IP ranges [10.6.0.7-10.6.0.9], {JOINTLY}",
            id="8-only-what-is-effective",
        ),
        pytest.param(
            {"ips": ["10.6.0.1"]},
            [as_written("q", ipVersion=4, ips=["10.6.0.1"])],
            f"spec.ips: Forbidden: overlap with IPPool q in IP ranges [10.6.0.1], {JOINTLY}",
            id="8-a-lost-label-hides-nobody",
        ),
        pytest.param(
            {"ips": ["10.6.0.1"]},
            [pool("q", ips=["10.6.0.9-10.6.0.5"])],
            "spec.ips: Internal error: failed to assemble the total IP addresses of the existing IPPool q: "
            "invalid IP range format in IPv4 '10.6.0.9-10.6.0.5'",
            id="8-no-comparison",
        ),
        pytest.param(
            {"gateway": "x"}, [], "spec.gateway: Invalid value: \"x\": invalid IP format in IPv4 'x'", id="9a-none"
        ),
        pytest.param(
            {"gateway": ""}, [], "spec.gateway: Invalid value: \"\": invalid IP format in IPv4 ''", id="9a-empty"
        ),
        pytest.param(
            {"gateway": "fd00::1"},
            [],
            "spec.gateway: Invalid value: \"fd00::1\": invalid IP format in IPv4 'fd00::1'",
            id="9a-other-family",
        ),
        pytest.param(
            {"gateway": "10.7.0.1"},
            [],
            "spec.gateway: Invalid value: \"10.7.0.1\": not pertains to the 'spec.subnet' 10.6.0.0/16 of IPPool",
            id="9b",
        ),
        pytest.param(
            {"gateway": "10.6.0.5", "ips": ["10.6.0.1", "10.6.0.3-10.6.0.9"]},
            [],
            "spec.ips[1]: Invalid value: \"10.6.0.3-10.6.0.9\": conflicts with 'spec.gateway' 10.6.0.5, "
            "add the gateway IP address to 'spec.excludeIPs' or remove it from 'spec.ips'",
            id="9c-range",
        ),
        pytest.param(
            {**SUBNET_6, "gateway": "fd00::1", "ips": ["fd00::0001"], "excludeIPs": ["fd00::2"]},
            [],
            "spec.ips[0]: Invalid value: \"fd00::0001\": conflicts with 'spec.gateway' fd00::1, "
            "add the gateway IP address to 'spec.excludeIPs' or remove it from 'spec.ips'",
            id="9c-single-by-its-number",
        ),
        *(
            pytest.param(
                {"subnet": subnet, "routes": [{"dst": dst, "gw": "x"}]},
                [],
                f'spec.routes[0].dst: Invalid value: "{dst}": '
                "please specify 'spec.gateway' to configure the default route",
                id=f"10a-{dst}",
            )
            for subnet, dst in [
                ("10.6.0.0/16", "0.0.0.0/0"),
                ("10.6.0.0/16", "0.0.0.0/00"),
                ("10.6.0.0/16", "10.1.2.3/0"),
                ("fd00::/64", "::/0"),
                ("fd00::/64", "::0/0"),
                ("fd00::/64", "0:0:0:0:0:0:0:0/000"),
            ]
        ),
        pytest.param(
            {"routes": [{"dst": "10.1.0.0/16", "gw": "10.6.0.1"}, {"dst": "10.1.0.0/16", "gw": "x"}]},
            [],
            'spec.routes[1].dst: Invalid value: "10.1.0.0/16": duplicate route with the same dst',
            id="10b",
        ),
        pytest.param(
            {"routes": [{"dst": "10.1.0.0/16", "gw": "10.6.0.1"}, {"dst": "10.1.0.0", "gw": "x"}]},
            [],
            "spec.routes[1].dst: Invalid value: \"10.1.0.0\": invalid CIDR format in IPv4 '10.1.0.0'",
            id="10c",
        ),
        pytest.param(
            {"routes": [{"dst": "::/0", "gw": "10.6.0.1"}]},
            [],
            "spec.routes[0].dst: Invalid value: \"::/0\": invalid CIDR format in IPv4 '::/0'",
            id="10c-default-of-the-other-family",
        ),
        pytest.param(
            {"routes": [{"dst": "10.1.0.0/16", "gw": "x"}]},
            [],
            "spec.routes[0].gw: Invalid value: \"x\": invalid IP format in IPv4 'x'",
            id="10d-no-address",
        ),
        pytest.param(
            {"routes": [{"dst": "10.1.0.0/16", "gw": "10.6.0.1"}, {"dst": "10.2.0.0/16", "gw": "10.7.0.1"}]},
            [],
            "spec.routes[1].gw: Invalid value: \"10.7.0.1\": not pertains to the 'spec.subnet' 10.6.0.0/16 of IPPool",
            id="10d-outside",
        ),
    ],
)
def test_a_new_pool_is_refused(spec: Written, others: Sequence[SpiderIPPool], expected: str) -> None:
    refusal = refuse_new_pool(pool(**spec), others, BOTH)
    assert errors(refusal) == [expected]
    assert refusal is not None
    assert (refusal.kind, refusal.name, refusal.reason, refusal.status) == ("SpiderIPPool", "p", "Invalid", 422)


@pytest.mark.parametrize(
    ("subnet", "on", "off"),
    [
        pytest.param("10.6.0.0/16", 4, 6, id="3-IPv4"),
        pytest.param("fd00::/64", 6, 4, id="3-IPv6"),
    ],
)
def test_a_family_that_is_switched_off_is_refused(subnet: str, on: Family, off: Family) -> None:
    disabled = f"spec.ipVersion: Forbidden: IPv{on} is disabled"
    new = pool(subnet=subnet)
    assert errors(refuse_new_pool(new, [], frozenset({off}))) == [disabled]
    assert errors(refuse_pool_update(new, new, [], frozenset({off}))) == [disabled]
    assert refuse_new_pool(new, [], frozenset({on})) is None


@pytest.mark.parametrize(
    "others",
    [
        pytest.param([pool("p", subnet="10.8.0.0/16")], id="6-same-family"),
        pytest.param([pool("p", subnet="fd00::/64")], id="6-a-name-is-taken-in-any-family"),
        pytest.param([pool("q", subnet="10.0.0.0/8"), pool("p")], id="6-before-any-overlap"),
    ],
)
def test_a_name_that_is_taken_is_a_conflict(others: Sequence[SpiderIPPool]) -> None:
    refusal = refuse_new_pool(pool("p"), others, BOTH)
    assert refusal is not None
    assert (refusal.reason, refusal.status, refusal.errors) == ("AlreadyExists", 409, ())
    assert str(refusal) == 'spiderippools.spiderpool.spidernet.io "p" already exists'


@pytest.mark.parametrize(
    ("metadata", "spec", "others"),
    [
        pytest.param({}, {}, [], id="no-ips"),
        pytest.param({}, {"subnet": "0.0.0.0/0", "ips": ["10.6.0.1"]}, [], id="4-any-prefix-length"),
        pytest.param({}, {"ips": ["10.6.0.1"]}, [pool("q", ips=["10.6.0.2"])], id="6-identical-subnet"),
        pytest.param(
            {}, {"subnet": "10.6.0.0/16"}, [as_written("q", ipVersion=4, subnet="10.6.0.9/16")], id="6-same-to-the-bit"
        ),
        pytest.param({}, {"subnet": "::/0"}, [pool("q", subnet="0.0.0.0/0")], id="6-other-family"),
        pytest.param(
            {}, {"ips": ["10.6.0.1"]}, [as_written("q", subnet="nonsense")], id="6-8-a-pool-without-family-is-not-there"
        ),
        pytest.param({}, {"ips": ["10.6.0.1", "10.6.0.1-10.6.0.9"]}, [], id="7-overlaps-were-merged"),
        pytest.param({}, {"ips": ["10.6.0.1"], "excludeIPs": ["10.6.9.9"]}, [], id="7-excluded-outside-ips"),
        pytest.param(
            {},
            {"ips": ["10.6.0.1-10.6.0.9"], "excludeIPs": ["10.6.0.5"]},
            [pool("q", ips=["10.6.0.5"])],
            id="8-excluded-here",
        ),
        pytest.param(
            {},
            {"ips": ["10.6.0.5"]},
            [pool("q", ips=["10.6.0.1-10.6.0.9"], excludeIPs=["10.6.0.5"])],
            id="8-excluded-there",
        ),
        pytest.param({}, {}, [pool("q", ips=["10.6.0.9-10.6.0.5"])], id="8-nothing-to-compare"),
        pytest.param(
            {},
            {"ips": ["10.6.0.1"]},
            [pool("q", subnet="10.8.0.0/16", ips=["10.8.0.9-10.8.0.5"])],
            id="8-a-broken-pool-elsewhere",
        ),
        pytest.param({}, {"gateway": "10.6.0.1", "ips": ["10.6.0.2-10.6.0.9"]}, [], id="9-gateway-beside"),
        pytest.param(
            {},
            {"gateway": "10.6.0.1", "ips": ["10.6.0.1-10.6.0.9"], "excludeIPs": ["10.6.0.0-10.6.0.2"]},
            [],
            id="9c-gateway-excluded",
        ),
        pytest.param(
            {},
            {**SUBNET_6, "gateway": "fd00::1", "ips": ["fd00::1-fd00::9"], "excludeIPs": ["fd00::0001"]},
            [],
            id="9c-gateway-excluded-by-its-number",
        ),
        pytest.param(
            {},
            {
                "routes": [
                    {"dst": "10.1.0.0/16", "gw": "10.6.0.1"},
                    {"dst": "10.2.0.0/16", "gw": "10.6.0.1"},
                    {"dst": "10.1.0.0/016", "gw": "10.6.0.1"},
                    {"dst": "0.0.0.0/1", "gw": "10.6.0.1"},
                ]
            },
            [],
            id="10-routes",
        ),
        pytest.param({"labels": AUTO}, {"podAffinity": {"matchLabels": AUTO_KEYS}}, [], id="11-the-five-keys"),
        pytest.param({"labels": AUTO}, {"podAffinity": {}}, [], id="11-an-empty-one"),
        pytest.param({}, {"podAffinity": {"matchLabels": {"a/b": ""}}}, [], id="12-valid"),
        pytest.param(
            {},
            {"nodeAffinity": {"matchExpressions": [{"key": "a", "operator": "Equals"}]}, "namespaceAffinity": {}},
            [],
            id="12-other-affinities-are-not-judged",
        ),
        pytest.param({"annotations": {COOLING: "5m"}}, {}, [], id="cooling"),
    ],
)
def test_a_new_pool_is_accepted(metadata: Written, spec: Written, others: Sequence[SpiderIPPool]) -> None:
    assert errors(refuse_new_pool(pool(metadata=metadata, **spec), others, BOTH)) == []
    assert refuse_new_pool(pool(metadata=metadata, **spec), others, BOTH) is None


NAME_RULE = (
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character "
    "(e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
VALUE_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
PREFIX_RULE = (
    "prefix part a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and "
    "must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    r"'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)


def labels(key: str, value: str = "v") -> Written:
    return {"matchLabels": {key: value}}


def expression(operator: str, *values: str, key: str = "k") -> Written:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


FAULTY_SELECTORS = [
    pytest.param(
        expression("Equals", "v"),
        ['.matchExpressions[0].operator: Invalid value: "Equals": not a valid selector operator'],
        id="12-operator",
    ),
    *(
        pytest.param(
            expression(operator),
            [".matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'"],
            id=f"12-{operator}-without-values",
        )
        for operator in ("In", "NotIn")
    ),
    *(
        pytest.param(
            expression(operator, "v"),
            [
                ".matchExpressions[0].values: Forbidden: "
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
            ],
            id=f"12-{operator}-with-values",
        )
        for operator in ("Exists", "DoesNotExist")
    ),
    pytest.param(
        expression("Exists", key="-k"),
        [f'.matchExpressions[0].key: Invalid value: "-k": name part {NAME_RULE}'],
        id="12-expression-key",
    ),
    pytest.param(
        expression("In", "v", "v v", "w\n"),
        [
            f'.matchExpressions[0].values[1]: Invalid value: "v v": {VALUE_RULE}',
            f'.matchExpressions[0].values[2]: Invalid value: "w\\n": {VALUE_RULE}',
        ],
        id="12-expression-values",
    ),
    pytest.param(labels("k k"), [f'.matchLabels: Invalid value: "k k": name part {NAME_RULE}'], id="12-key"),
    pytest.param(
        labels(""),
        [
            '.matchLabels: Invalid value: "": name part must be non-empty',
            f'.matchLabels: Invalid value: "": name part {NAME_RULE}',
        ],
        id="12-no-key",
    ),
    pytest.param(
        labels("k" * 64),
        [f'.matchLabels: Invalid value: "{"k" * 64}": name part must be no more than 63 characters'],
        id="12-long-key",
    ),
    pytest.param(labels("/k"), ['.matchLabels: Invalid value: "/k": prefix part must be non-empty'], id="12-no-prefix"),
    pytest.param(labels("A/k"), [f'.matchLabels: Invalid value: "A/k": {PREFIX_RULE}'], id="12-prefix"),
    pytest.param(
        labels("a" * 254 + "/k"),
        [f'.matchLabels: Invalid value: "{"a" * 254}/k": prefix part must be no more than 253 characters'],
        id="12-long-prefix",
    ),
    pytest.param(
        labels("a/b/k"),
        [
            f'.matchLabels: Invalid value: "a/b/k": a qualified name {NAME_RULE} '
            "with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
        ],
        id="12-two-prefixes",
    ),
    pytest.param(labels("k", "v-"), [f'.matchLabels: Invalid value: "v-": {VALUE_RULE}'], id="12-value"),
    pytest.param(
        labels("k", "v" * 64),
        [f'.matchLabels: Invalid value: "{"v" * 64}": must be no more than 63 characters'],
        id="12-long-value",
    ),
    pytest.param(
        {**labels("k", "-"), **expression("Equals", key="")},
        [
            f'.matchLabels: Invalid value: "-": {VALUE_RULE}',
            '.matchExpressions[0].operator: Invalid value: "Equals": not a valid selector operator',
            '.matchExpressions[0].key: Invalid value: "": name part must be non-empty',
            f'.matchExpressions[0].key: Invalid value: "": name part {NAME_RULE}',
        ],
        id="12-all-of-them",
    ),
]


@pytest.mark.parametrize(("selector", "expected"), FAULTY_SELECTORS)
def test_a_pod_affinity_that_is_no_selector_is_refused_with_all_its_faults(
    selector: Written, expected: Sequence[str]
) -> None:
    refusal = refuse_new_pool(pool(podAffinity=selector), [], BOTH)
    assert errors(refusal) == [f"spec.podAffinity{error}" for error in expected]


AUTO_TEXT = "it's invalid to add additional podAffinity {} for auto-created SpiderIPPool"
ANOTHER_KEY = f'{{"matchLabels":{{"k":"v"}}}}: {AUTO_TEXT.format("matchLabels")}'
AN_EXPRESSION = '{"matchExpressions":[{"key":"k","operator":"Exists"}]}: ' + AUTO_TEXT.format("matchExpressions")


@pytest.mark.parametrize(
    ("metadata", "selector", "expected"),
    [
        pytest.param({"labels": AUTO}, labels("k"), [ANOTHER_KEY], id="11-another-key"),
        pytest.param({"labels": AUTO}, expression("Exists"), [AN_EXPRESSION], id="11-an-expression"),
        pytest.param({}, {}, ["{}: empty podAffinity is invalid for SpiderIPPool"], id="12-empty"),
    ],
)
def test_a_pod_affinity_of_the_wrong_extent_is_refused(
    metadata: Written, selector: Written, expected: Sequence[str]
) -> None:
    refusal = refuse_new_pool(pool(metadata=metadata, podAffinity=selector), [], BOTH)
    assert errors(refusal) == [f"spec.podAffinity: Invalid value: {error}" for error in expected]


def test_both_faults_of_an_auto_created_pools_affinity_are_named() -> None:
    selector = {"matchLabels": {**AUTO_KEYS, "k": "v"}, **expression("Exists")}
    refusal = refuse_new_pool(pool(metadata={"labels": AUTO}, podAffinity=selector), [], BOTH)
    assert refusal is not None
    assert [error.text for error in refusal.errors] == [
        AUTO_TEXT.format("matchLabels"),
        AUTO_TEXT.format("matchExpressions"),
    ]


# --- The cooling period

COOLING_RULE = "must be whole seconds or a duration such as 30s, 5m or 1h30m, and at most 720h (30 days)"


@pytest.mark.parametrize(
    ("annotations", "seconds"),
    [
        ({}, 30),
        ({"another": "5m"}, 30),
        ({COOLING: "0"}, 0),
        ({COOLING: "0s"}, 0),
        ({COOLING: "45"}, 45),
        ({COOLING: "30s"}, 30),
        ({COOLING: "5m"}, 300),
        ({COOLING: "2h"}, 7200),
        ({COOLING: "1h30m"}, 5400),
        ({COOLING: "1h0m1s"}, 3601),
        ({COOLING: "90m90s"}, 5490),
        ({COOLING: "720h"}, 2592000),
        ({COOLING: "2592000"}, 2592000),
    ],
)
def test_the_cooling_period_is_what_the_annotation_says(annotations: Written, seconds: int) -> None:
    assert pool(metadata={"annotations": annotations}).cooling_seconds == seconds


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "30 s", "-1", "-30s", "+5", "1.5s", "1.5", "30sec", "5M", "1s1h", "s", "m", "1d", "500ms", "1m30",
        "\u0663\u0660", "30s\n", "forever", "2592001", "720h1s", "43201m", "9" * 10, "9" * 5000 + "h",
    ],
)  # fmt: skip
def test_a_cooling_period_that_says_nothing_readable_is_refused(text: str) -> None:
    new = pool(metadata={"annotations": {COOLING: text}})
    with pytest.raises(ValueError, match="must be whole seconds"):
        _ = new.cooling_seconds
    expected = [FieldError(f"metadata.annotations[{COOLING}]", "Invalid value", text, COOLING_RULE)]
    for refusal in (refuse_new_pool(new, [], BOTH), refuse_pool_update(new, pool(), [], BOTH)):
        assert refusal is not None
        assert list(refusal.errors) == expected


# --- The order of refusals

FAULTS_OF_A_POOL: Written = {
    "name": "p",
    "metadata": {"annotations": {COOLING: "long"}},
    "families": frozenset({6}),
    "others": [pool("big", subnet="10.0.0.0/8"), pool("p"), pool("q", ips=["10.6.0.5-10.6.0.9"])],
    "ipVersion": None,
    "subnet": "nonsense",
    "ips": ["10.7.0.1"],
    "excludeIPs": ["10.7.0.2"],
    "gateway": "nonsense",
    "routes": [{"dst": "0.0.0.0/0", "gw": "nonsense"}],
    "podAffinity": {},
}
TO_THE_SAME = {"dst": "10.1.0.0/16", "gw": "10.6.0.1"}
LAST_FAULTS = [
    "spec.podAffinity: Invalid value: {}: empty podAffinity is invalid for SpiderIPPool",
    f'metadata.annotations[{COOLING}]: Invalid value: "long": {COOLING_RULE}',
]

# What is named first, and what its author then mends.
WALK_OF_A_POOL: list[tuple[str, str, Written]] = [
    ("1", "spec.ipVersion: Invalid value: null", {"ipVersion": 5}),
    ("2", "spec.ipVersion: Unsupported value: 5", {"ipVersion": 4}),
    ("3", "spec.ipVersion: Forbidden: IPv4 is disabled", {"families": BOTH}),
    ("4", 'spec.subnet: Invalid value: "nonsense": invalid CIDR format in IPv4', {"subnet": "10.6.0.1/16"}),
    ("5", 'spec.subnet: Invalid value: "10.6.0.1/16": unformatted subnet', {"subnet": "10.6.0.0/16"}),
    ("6", 'spiderippools.spiderpool.spidernet.io "p" already exists', {"name": "new"}),
    (
        "6",
        'spec.subnet: Invalid value: "10.6.0.0/16": overlap with IPPool big',
        {"others": FAULTS_OF_A_POOL["others"][1:]},
    ),
    ("7", 'spec.ips: Invalid value: "10.7.0.1": not match base subnet', {"ips": ["10.6.0.1-10.6.0.9"]}),
    ("7", 'spec.excludeIPs: Invalid value: "10.7.0.2": not match base subnet', {"excludeIPs": ["10.6.0.2"]}),
    ("8", "spec.ips: Forbidden: overlap with IPPool q in IP ranges [10.6.0.5-10.6.0.9]", {"others": []}),
    ("9a", 'spec.gateway: Invalid value: "nonsense": invalid IP format', {"gateway": "10.7.0.1"}),
    ("9b", 'spec.gateway: Invalid value: "10.7.0.1": not pertains', {"gateway": "10.6.0.1"}),
    ("9c", 'spec.ips[0]: Invalid value: "10.6.0.1-10.6.0.9": conflicts', {"gateway": "10.6.0.2"}),
    (
        "10a",
        'spec.routes[0].dst: Invalid value: "0.0.0.0/0": please specify',
        {"routes": [TO_THE_SAME, {"dst": "10.1.0.0/16", "gw": "nonsense"}]},
    ),
    (
        "10b",
        'spec.routes[1].dst: Invalid value: "10.1.0.0/16": duplicate',
        {"routes": [{"dst": "nonsense", "gw": "nonsense"}]},
    ),
    (
        "10c",
        'spec.routes[0].dst: Invalid value: "nonsense": invalid CIDR format',
        {"routes": [{"dst": "10.1.0.0/16", "gw": "nonsense"}]},
    ),
    ("10d", 'spec.routes[0].gw: Invalid value: "nonsense": invalid IP format', {"routes": [TO_THE_SAME]}),
    ("12", LAST_FAULTS[0], {"podAffinity": {"matchLabels": {"app": "web"}}}),
    ("cooling", LAST_FAULTS[1], {"metadata": {}}),
]


def _refusal(written: Written) -> AdmissionRefused | None:
    spec = {key: value for key, value in written.items() if key not in ("families", "others")}
    return refuse_new_pool(pool(**spec), written["others"], written["families"])


def test_a_pool_with_every_fault_is_refused_for_the_first_and_mended_for_the_next() -> None:
    written = dict(FAULTS_OF_A_POOL)
    walked = []
    for rule, expected, mend in WALK_OF_A_POOL:
        refusal = _refusal(written)
        first = (errors(refusal) or [str(refusal)])[0]
        assert first.startswith(expected), rule
        walked.append((rule, errors(refusal)[1:]))
        written |= mend
    assert _refusal(written) is None
    assert [(rule, rest) for rule, rest in walked if rest] == [
        *((rule, LAST_FAULTS) for rule in ("7", "7", "8", "9a", "9b", "9c", "10a", "10b", "10c", "10d")),
        ("12", LAST_FAULTS[1:]),
    ]


WALK_OF_AN_UPDATE: list[tuple[str, str, Written]] = [
    ("a", "is forbidden: cannot update a terminating IPPool", {"metadata": {"annotations": {COOLING: "long"}}}),
    ("b", "spec.ipVersion: Forbidden: is not changeable", {"ipVersion": 4}),
    ("b", "spec.subnet: Forbidden: is not changeable", {"subnet": "10.6.0.0/16"}),
    ("c", "spec.ipVersion: Forbidden: IPv4 is disabled", {"families": BOTH}),
    ("d", 'spec.ips: Invalid value: "10.7.0.1": not match base subnet: 10.7.0.1', {"ips": ["10.6.0.5"]}),
    ("d", f"spec.ips: Forbidden: overlap with IPPool q in IP ranges [10.6.0.5], {JOINTLY}", {"ips": ["10.6.0.1"]}),
    ("d", "spec.gateway: Invalid value: \"x\": invalid IP format in IPv4 'x'", {"gateway": "10.6.0.2"}),
    ("d", "spec.routes[0].dst: Invalid value: \"x\": invalid CIDR format in IPv4 'x'", {"routes": []}),
    ("e", f"[{', '.join(LAST_FAULTS)}]", {"podAffinity": None, "metadata": {}}),
]


def test_an_update_with_every_fault_is_refused_for_the_first_and_mended_for_the_next() -> None:
    written: dict[str, Any] = {
        "metadata": {"deletionTimestamp": DELETED, "finalizers": [FINALIZER], "annotations": {COOLING: "long"}},
        "families": frozenset({6}),
        "ipVersion": 5,
        "subnet": "10.8.0.0/16",
        "ips": ["10.7.0.1"],
        "gateway": "x",
        "routes": [{"dst": "x", "gw": "x"}],
        "podAffinity": {},
    }
    old = pool(ips=["10.6.0.1"])
    others = [old, pool("q", ips=["10.6.0.5"]), pool("big", subnet="10.0.0.0/8")]
    for rule, expected, mend in WALK_OF_AN_UPDATE:
        spec = {key: value for key, value in written.items() if key != "families"}
        refusal = refuse_pool_update(pool(**spec), old, others, written["families"])
        assert str(refusal).endswith(expected), rule
        written |= mend
    written.pop("families")
    assert refuse_pool_update(pool(**written), old, others, BOTH) is None


# --- The change of a pool


def test_a_terminating_pool_takes_no_change_but_the_loss_of_our_finalizer() -> None:
    old = pool(metadata={"deletionTimestamp": DELETED, "finalizers": ["other", FINALIZER]})
    refusal = refuse_pool_update(old, old, [], BOTH)
    assert refusal is not None
    assert (refusal.reason, refusal.status, refusal.errors) == ("Forbidden", 403, ())
    assert str(refusal) == (
        'spiderippools.spiderpool.spidernet.io "p" is forbidden: cannot update a terminating IPPool'
    )
    let_go = pool(metadata={"deletionTimestamp": DELETED, "finalizers": ["other"]}, ips=["nonsense"])
    assert refuse_pool_update(let_go, old, [], frozenset()) is None


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        pytest.param(
            as_written(ipVersion=6), as_written(ipVersion=4), "spec.ipVersion: Forbidden: is not changeable", id="b-ipv"
        ),
        pytest.param(pool(subnet="10.6.0.0/17"), pool(), "spec.subnet: Forbidden: is not changeable", id="b-subnet"),
        pytest.param(
            as_written(subnet="x"),
            as_written(subnet="x"),
            "spec.ipVersion: Invalid value: null: is not generated correctly, 'spec.subnet' may be invalid",
            id="c-1",
        ),
        pytest.param(
            as_written(ipVersion=5),
            as_written(ipVersion=5),
            'spec.ipVersion: Unsupported value: 5: supported values: "4", "6"',
            id="c-2",
        ),
        pytest.param(
            as_written(ipVersion=4, subnet="x"),
            as_written(ipVersion=4, subnet="x"),
            "spec.subnet: Invalid value: \"x\": invalid CIDR format in IPv4 'x'",
            id="d-7-of-a-pool-that-never-passed-the-webhook",
        ),
    ],
)
def test_a_change_of_a_pool_is_refused(new: SpiderIPPool, old: SpiderIPPool, expected: str) -> None:
    assert errors(refuse_pool_update(new, old, [], BOTH)) == [expected]


@pytest.mark.parametrize(
    ("new", "old", "others"),
    [
        pytest.param(pool(), as_written(), [], id="b-a-family-filled-in"),
        pytest.param(as_written(ipVersion=4, subnet="10.6.0.9/16"), as_written(subnet="10.6.0.9/16"), [], id="no-5"),
        pytest.param(pool(), pool(), [pool("big", subnet="10.0.0.0/8")], id="no-6"),
        pytest.param(pool(), pool(), [as_written("x", ipVersion=4, subnet="x")], id="no-6-unreadable"),
        pytest.param(
            pool(ips=["10.6.0.1"]), pool(), [as_written("x", ipVersion=4, subnet="x")], id="d-8-unreadable-neighbour"
        ),
        pytest.param(
            pool(ips=["10.6.0.1-10.6.0.9"]), pool(ips=["10.6.0.1"]), [pool(ips=["10.6.0.1"])], id="d-8-itself"
        ),
        pytest.param(pool(ips=[]), pool(ips=["10.6.0.1"]), [], id="shrinking-is-judged-by-use"),
    ],
)
def test_a_change_of_a_pool_is_accepted(new: SpiderIPPool, old: SpiderIPPool, others: Sequence[SpiderIPPool]) -> None:
    assert refuse_pool_update(new, old, others, BOTH) is None


def test_a_pool_that_overlaps_one_of_a_wider_subnet_cannot_grow_into_it() -> None:
    wide = pool("wide", subnet="10.0.0.0/8", ips=["10.6.0.5"])
    refusal = refuse_pool_update(pool(ips=["10.6.0.1-10.6.0.9"]), pool(), [wide], BOTH)
    assert errors(refusal) == [f"spec.ips: Forbidden: overlap with IPPool wide in IP ranges [10.6.0.5], {JOINTLY}"]


def test_taking_a_held_address_away_is_refused_naming_its_pod() -> None:
    refusal = refuse_in_use(pool(), addresses.parse("10.6.0.7"), "default/web-0")
    assert refusal.status == 422
    assert str(refusal) == (
        'SpiderIPPool.spiderpool.spidernet.io "p" is invalid: spec.ips: Forbidden: '
        f"remove an IP address 10.6.0.7 that is being used by Pod default/web-0, {JOINTLY}"
    )


# --- Reservations

VERSION_MISSING = (
    "spec.ipVersion: Invalid value: null: is not generated correctly, "
    "'spec.ips' is empty or 'spec.ips[0]' may be invalid"
)


@pytest.mark.parametrize(
    ("spec", "families", "expected"),
    [
        pytest.param({}, BOTH, VERSION_MISSING, id="1.3-empty"),
        pytest.param({"ips": ["x"]}, BOTH, VERSION_MISSING, id="1.3-first-unreadable"),
        pytest.param(
            {"ipVersion": 5, "ips": ["10.6.0.1"]},
            BOTH,
            'spec.ipVersion: Unsupported value: 5: supported values: "4", "6"',
            id="1.3-as-rule-2",
        ),
        pytest.param({"ips": ["10.6.0.1"]}, {6}, "spec.ipVersion: Forbidden: IPv4 is disabled", id="1.3-as-rule-3"),
        pytest.param(
            {"ips": ["10.6.0.1", "10.6.0.9-10.6.0.5", "x"]},
            BOTH,
            "spec.ips[1]: Invalid value: \"10.6.0.9-10.6.0.5\": invalid IP range format in IPv4 '10.6.0.9-10.6.0.5'",
            id="1.3-range-v4",
        ),
        pytest.param(
            {"ips": ["fd00::1", "10.6.0.1"]},
            BOTH,
            "spec.ips[1]: Invalid value: \"10.6.0.1\": invalid IP range format in IPv6 '10.6.0.1'",
            id="1.3-range-v6",
        ),
    ],
)
def test_a_reservation_is_refused(spec: Written, families: Sequence[Family], expected: str) -> None:
    new = reservation(**spec)
    refusal = refuse_new_reservation(new, frozenset(families))
    assert errors(refusal) == [expected]
    assert refusal is not None
    assert (refusal.kind, refusal.name, refusal.status) == ("SpiderReservedIP", "r", 422)
    assert refuse_reservation_update(new, new, frozenset(families)) == refusal


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"ips": ["10.6.0.1", "10.6.0.1-10.6.0.9"]}, id="1.3-v4"),
        pytest.param({"ips": ["fd00::-fd00::ffff:ffff:ffff:ffff"]}, id="1.3-v6"),
        pytest.param({"ipVersion": 4}, id="1.3-empty-with-a-family"),
    ],
)
def test_a_reservation_is_accepted(spec: Written) -> None:
    new = reservation(**spec)
    assert refuse_new_reservation(new, BOTH) is None
    assert refuse_reservation_update(new, reserved_as_written(), BOTH) is None


def test_an_update_of_a_reservation_is_refused_in_order() -> None:
    old = reservation({"deletionTimestamp": DELETED}, ipVersion=4, ips=["10.6.0.1"])
    new = reservation(ipVersion=6, ips=["x"])
    refusal = refuse_reservation_update(new, old, frozenset({4}))
    assert refusal is not None
    assert refusal.status == 403
    assert str(refusal) == (
        'spiderreservedips.spiderpool.spidernet.io "r" is forbidden: cannot update a terminating ReservedIP'
    )
    old = reservation(ipVersion=4, ips=["10.6.0.1"])
    assert errors(refuse_reservation_update(new, old, frozenset({4}))) == [
        "spec.ipVersion: Forbidden: is not changeable"
    ]
    old = reservation(ipVersion=6, ips=["fd00::1"])
    assert errors(refuse_reservation_update(new, old, frozenset({4}))) == [
        "spec.ipVersion: Forbidden: IPv6 is disabled"
    ]
    assert errors(refuse_reservation_update(new, old, BOTH)) == [
        "spec.ips[0]: Invalid value: \"x\": invalid IP range format in IPv6 'x'"
    ]


@pytest.mark.parametrize(
    ("finalizers", "ips", "accepted"),
    [
        pytest.param([], ["10.6.0.1"], True, id="1.3-the-last-finalizer-goes"),
        pytest.param(["b"], ["10.6.0.1"], True, id="1.3-a-finalizer-goes"),
        pytest.param(["a", "b"], ["10.6.0.1"], False, id="1.3-none-goes"),
        pytest.param(["b", "c"], ["10.6.0.1"], False, id="1.3-one-goes-and-one-comes"),
        pytest.param([], ["10.6.0.2"], False, id="1.3-the-addresses-change-too"),
    ],
)
def test_a_terminating_reservation_takes_no_change_but_the_loss_of_a_finalizer(
    finalizers: list[str], ips: list[str], accepted: bool
) -> None:
    old = reservation({"deletionTimestamp": DELETED, "finalizers": ["a", "b"]}, ipVersion=4, ips=["10.6.0.1"])
    new = reservation({"deletionTimestamp": DELETED, "finalizers": finalizers}, ipVersion=4, ips=ips)
    assert (refuse_reservation_update(new, old, frozenset()) is None) is accepted


# --- How refusals are printed


def test_a_refusal_prints_as_the_api_server_prints_it() -> None:
    error = FieldError("spec.subnet", "Invalid value", "10.6.0.0/16", "overlap with IPPool q")
    assert str(error) == 'spec.subnet: Invalid value: "10.6.0.0/16": overlap with IPPool q'
    other = FieldError("spec.ips", "Forbidden", "", "no")
    assert str(other) == "spec.ips: Forbidden: no"
    named = 'SpiderIPPool.spiderpool.spidernet.io "p" is invalid: '
    assert str(AdmissionRefused("SpiderIPPool", "p", "Invalid", (error,))) == f"{named}{error}"
    assert str(AdmissionRefused("SpiderIPPool", "p", "Invalid", (error, other))) == f"{named}[{error}, {other}]"
    assert str(AdmissionRefused("SpiderIPPool", "p", "Invalid", (error, error))) == f"{named}{error}"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FieldError("f", "Invalid value", 'a "b" \u00fc\n', "t"), 'f: Invalid value: "a \\"b\\" \u00fc\\n": t'),
        (FieldError("f", "Unsupported value", 5, "t"), "f: Unsupported value: 5: t"),
        (FieldError("f", "Invalid value", None, "t"), "f: Invalid value: null: t"),
        (FieldError("f", "Required value", "", "t"), "f: Required value: t"),
        (FieldError("f", "Internal error", "", "t"), "f: Internal error: t"),
        (
            FieldError("f", "Invalid value", LabelSelector.model_validate(expression("In", "v")), "t"),
            'f: Invalid value: {"matchExpressions":[{"key":"k","operator":"In","values":["v"]}]}: t',
        ),
    ],
)
def test_values_are_printed_as_json(error: FieldError, text: str) -> None:
    assert str(error) == text


# --- Label selectors


@pytest.mark.parametrize(
    ("selector", "given_labels", "expected"),
    [
        pytest.param({}, {}, True, id="empty-selects-everything"),
        pytest.param(labels("k"), {"k": "v", "l": "w"}, True, id="label"),
        pytest.param(labels("k"), {"k": "w"}, False, id="label-of-another-value"),
        pytest.param(labels("k"), {}, False, id="label-absent"),
        pytest.param(labels("k", ""), {"k": ""}, True, id="label-empty"),
        pytest.param(labels("k", ""), {}, False, id="label-empty-is-not-absent"),
        pytest.param({"matchLabels": {"k": "v", "l": "w"}}, {"k": "v"}, False, id="all-labels"),
        pytest.param(expression("In", "v", "w"), {"k": "w"}, True, id="In"),
        pytest.param(expression("In", "v", "w"), {"k": "x"}, False, id="In-another-value"),
        pytest.param(expression("In", ""), {}, False, id="In-absent"),
        pytest.param(expression("NotIn", "v"), {"k": "w"}, True, id="NotIn"),
        pytest.param(expression("NotIn", "v", "w"), {"k": "w"}, False, id="NotIn-that-value"),
        pytest.param(expression("NotIn", "v"), {}, True, id="NotIn-absent"),
        pytest.param(expression("Exists"), {"k": ""}, True, id="Exists"),
        pytest.param(expression("Exists"), {"l": "v"}, False, id="Exists-absent"),
        pytest.param(expression("DoesNotExist"), {}, True, id="DoesNotExist"),
        pytest.param(expression("DoesNotExist"), {"k": "v"}, False, id="DoesNotExist-present"),
        pytest.param({**labels("l"), **expression("Exists")}, {"k": "", "l": "v"}, True, id="both"),
        pytest.param({**labels("l"), **expression("Exists")}, {"k": ""}, False, id="both-label-fails"),
        pytest.param({**labels("l"), **expression("Exists")}, {"l": "v"}, False, id="both-expression-fails"),
        pytest.param(
            {"matchExpressions": [{"key": "k", "operator": "Exists"}, {"key": "l", "operator": "Exists"}]},
            {"k": ""},
            False,
            id="all-expressions",
        ),
    ],
)
def test_a_selector_matches_as_in_kubernetes(
    selector: Written, given_labels: Mapping[str, str], expected: bool
) -> None:
    read = LabelSelector.model_validate(selector)
    assert read.problem() is None
    assert read.matches(given_labels) is expected


@pytest.mark.parametrize(("selector", "expected"), FAULTY_SELECTORS)
def test_a_selector_that_cannot_be_evaluated_says_why_whatever_the_labels(
    selector: Written, expected: Sequence[str]
) -> None:
    read = LabelSelector.model_validate(selector)
    assert read.problem() == f"labelSelector{expected[0]}"
    for given_labels in ({}, {"k": "v"}):
        with pytest.raises(ValueError) as refused:
            read.matches(given_labels)
        assert str(refused.value) == f"labelSelector{expected[0]}"


def test_a_requirement_with_an_unknown_operator_matches_nothing_silently() -> None:
    requirement = LabelSelector.model_validate(expression("Equals", "v")).match_expressions[0]
    with pytest.raises(ValueError, match='"Equals" is not a valid selector operator'):
        requirement.matches({"k": "v"})


# --- Shapes


def test_a_pool_is_read_under_the_names_of_the_api() -> None:
    read = SpiderIPPool.model_validate(
        {
            "apiVersion": "spiderpool.spidernet.io/v2beta1",
            "kind": "SpiderIPPool",
            "metadata": {
                "name": "p",
                "uid": "u",
                "labels": {"a": "b"},
                "annotations": {"c": "d"},
                "finalizers": [FINALIZER],
                "deletionTimestamp": DELETED,
                "creationTimestamp": None,
                "ownerReferences": [
                    {"apiVersion": "v1", "kind": "K", "name": "n", "uid": "o", "controller": True, "more": 1}
                ],
                "managedFields": [{}],
            },
            "spec": {
                "ipVersion": 4,
                "subnet": "10.6.0.0/16",
                "ips": ["10.6.0.1"],
                "excludeIPs": ["10.6.0.2"],
                "gateway": "10.6.0.3",
                "routes": [{"dst": "10.1.0.0/16", "gw": "10.6.0.4"}],
                "podAffinity": labels("p"),
                "namespaceAffinity": labels("n"),
                "namespaceName": ["ns"],
                "nodeAffinity": expression("In", "v"),
                "nodeName": ["node"],
                "multusName": ["kube-system/m"],
                "default": True,
                "disable": True,
                "vlan": 7,
            },
            "status": {"totalIPCount": 1},
        }
    )
    assert read.metadata == ObjectMeta.model_validate(
        {
            "name": "p",
            "uid": "u",
            "labels": {"a": "b"},
            "annotations": {"c": "d"},
            "finalizers": (FINALIZER,),
            "deletion_timestamp": datetime(2026, 7, 8, 12, tzinfo=UTC),
            "owner_references": ({"api_version": "v1", "kind": "K", "name": "n", "uid": "o", "controller": True},),
        }
    )
    assert read.metadata.terminating
    assert read.spec == PoolSpec.model_validate(
        {
            "ip_version": 4,
            "subnet": "10.6.0.0/16",
            "ips": ("10.6.0.1",),
            "exclude_ips": ("10.6.0.2",),
            "gateway": "10.6.0.3",
            "routes": ({"dst": "10.1.0.0/16", "gw": "10.6.0.4"},),
            "pod_affinity": labels("p"),
            "namespace_affinity": labels("n"),
            "namespace_name": ("ns",),
            "node_affinity": expression("In", "v"),
            "node_name": ("node",),
            "multus_name": ("kube-system/m",),
            "default": True,
            "disable": True,
        }
    )
    assert SpiderIPPool.model_validate_json(read.model_dump_json(by_alias=True)) == read
    assert set(read.model_dump(by_alias=True)["spec"]) == {
        *("ipVersion", "subnet", "ips", "excludeIPs", "gateway", "routes", "podAffinity", "namespaceAffinity"),
        *("namespaceName", "nodeAffinity", "nodeName", "multusName", "default", "disable"),
    }


def test_what_is_not_written_or_null_has_the_defaults_of_the_api() -> None:
    plain = SpiderIPPool.model_validate({"metadata": {"name": "p"}, "spec": {"subnet": "10.6.0.0/16"}})
    nulls = as_written(
        metadata={"labels": None, "annotations": None, "deletionTimestamp": None, "finalizers": None},
        ips=None,
        routes=None,
        default=None,
    )
    assert nulls == plain
    assert plain.metadata == ObjectMeta(name="p", namespace="", uid="", labels={}, annotations={})
    assert not plain.metadata.terminating
    assert (plain.spec.ips, plain.spec.routes, plain.spec.default, plain.spec.disable) == ((), None, False, False)
    assert as_written(routes=[]).spec.routes == ()


@pytest.mark.parametrize(
    ("metadata", "spec"),
    [
        ({"name": 7}, {}),
        ({"labels": {"a": True}}, {}),
        ({"labels": ["a"]}, {}),
        ({"annotations": {COOLING: 30}}, {}),
        ({"deletionTimestamp": 5}, {}),
        ({"deletionTimestamp": "yesterday"}, {}),
        ({}, {"subnet": None}),
        ({}, {"ipVersion": "4"}),
        ({}, {"ipVersion": True}),
        ({}, {"ips": "10.6.0.1"}),
        ({}, {"ips": [1]}),
        ({}, {"ips": {"10.6.0.1": 1}}),
        ({}, {"ips": {"10.6.0.1"}}),
        ({}, {"gateway": 7}),
        ({}, {"routes": {"dst": "x", "gw": "x"}}),
        ({}, {"routes": [{"dst": "10.1.0.0/16"}]}),
        ({}, {"routes": [{"gw": "10.6.0.1"}]}),
        ({}, {"default": "true"}),
        ({}, {"disable": 1}),
        ({}, {"nodeName": "node"}),
        ({}, {"podAffinity": []}),
        ({}, {"podAffinity": {"matchLabels": {"a": 1}}}),
        ({}, {"podAffinity": {"matchExpressions": [{"key": "a"}]}}),
    ],
)
def test_a_field_of_the_wrong_type_is_refused(metadata: Written, spec: Written) -> None:
    with pytest.raises(ValidationError):
        as_written(metadata=metadata, **spec)


@pytest.mark.parametrize(
    "whole",
    [
        {"kind": "SpiderSubnet"},
        {"apiVersion": "spiderpool.spidernet.io/v1"},
        {"metadata": {}},
        {"spec": None},
        {"metadata": None},
    ],
)
def test_another_kind_of_object_is_refused(whole: Written) -> None:
    right = {"metadata": {"name": "p"}, "spec": {"subnet": "10.6.0.0/16"}}
    assert SpiderIPPool.model_validate(right)
    assert SpiderReservedIP.model_validate(right)
    for model in (SpiderIPPool, SpiderReservedIP):
        with pytest.raises(ValidationError):
            model.model_validate({**right, **whole})
    with pytest.raises(ValidationError):
        SpiderIPPool.model_validate("p")


def test_what_was_applied_or_refused_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        pool().spec.subnet = "10.7.0.0/16"
    refusal = refuse_in_use(pool(), addresses.parse("10.6.0.7"), "default/web-0")
    for refused, field in ((refusal, "name"), (refusal.errors[0], "text")):
        with pytest.raises(FrozenInstanceError):
            setattr(refused, field, "x")
