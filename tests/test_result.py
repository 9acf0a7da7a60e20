"""What a runtime is told: the shape of a result in each version, and when a CHECK finds it true no more."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cni.call import VERSIONS, CniCall, Command
from cni.errors import Code
from cni.result import check, result
from ledger import addresses
from ledger.claims import Claim
from ledger.requests import Grant, Granted

TERMS: dict[str, Any] = {"pool": "p", "prefix": 16, "gateway": "10.6.0.1", "routes": [], "vlan": 0, "mac": ""}
TERMS |= {"clean_gateway": False}
TERMS_V6: dict[str, Any] = {**TERMS, "prefix": 64, "gateway": "fd00::1"}


def grant(ip: str, interface: str = "eth0", **terms: Any) -> Grant:
    parsed = addresses.parse(ip)
    family = addresses.family(parsed)
    claim = Claim("c", "Pod", "default", "web-0", "5b1c", interface, family)
    return Grant(claim, parsed, {**(TERMS if family == 4 else TERMS_V6), **terms})


def call(version: str = "1.0.0", previous: tuple[str, ...] = ()) -> CniCall:
    expected = tuple(map(addresses.parse, previous))
    return CniCall(Command.ADD, version, "blue", 1, container="c1", interface="eth0", previous=expected)


def answered(*grants: Grant, version: str = "1.0.0") -> dict[str, Any]:
    return result(Granted(grants), call(version))


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_gets_exactly_its_shape(version: str) -> None:
    before_1 = version in ("0.3.0", "0.3.1", "0.4.0")
    v4 = {"address": "10.6.168.60/16", "gateway": "10.6.0.1"} | ({"version": "4"} if before_1 else {})
    v6 = {"address": "fd00::5/64", "gateway": "fd00::1"} | ({"version": "6"} if before_1 else {})
    answer = answered(grant("10.6.168.60"), grant("fd00::5"), version=version)
    assert answer == {
        "cniVersion": version,
        "ips": [v4, v6],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.6.0.1"}, {"dst": "::/0", "gw": "fd00::1"}],
        "dns": {},
    }
    assert json.loads(json.dumps(answer)) == answer


def test_only_the_interface_at_hand_is_told() -> None:
    answer = answered(grant("10.6.0.5"), grant("10.6.0.6", "net1", routes=[["10.8.0.0/16", "10.6.0.9"]]))
    assert [each["address"] for each in answer["ips"]] == ["10.6.0.5/16"]
    assert answer["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.6.0.1"}]


@pytest.mark.parametrize(
    ("terms", "gateway", "routes"),
    [
        pytest.param({}, "10.6.0.1", ["0.0.0.0/0"], id="default-route"),
        pytest.param({"clean_gateway": True}, "10.6.0.1", [], id="A00011-no-default-route-but-the-gateway-is-told"),
        pytest.param({"gateway": ""}, None, [], id="no-gateway"),
        pytest.param(
            {"routes": [["10.8.0.0/16", "10.6.0.9"], ["10.9.0.0/16", "10.6.0.9"]]},
            "10.6.0.1",
            ["10.8.0.0/16", "10.9.0.0/16", "0.0.0.0/0"],
            id="A00002-the-default-route-comes-last",
        ),
        pytest.param(
            {"routes": [["10.8.0.0/16", "10.6.0.9"]], "clean_gateway": True},
            "10.6.0.1",
            ["10.8.0.0/16"],
            id="A00011-other-routes-stay",
        ),
        pytest.param({"routes": [["0.0.0.0/0", "10.6.0.1"]]}, "10.6.0.1", ["0.0.0.0/0"], id="none-twice"),
    ],
)
def test_routes_are_the_grants_own_and_then_the_default_one(
    terms: dict[str, Any], gateway: str | None, routes: list[str]
) -> None:
    answer = answered(grant("10.6.0.5", **terms))
    assert answer["ips"][0].get("gateway") == gateway
    assert [each["dst"] for each in answer["routes"]] == routes


def test_each_family_has_its_own_gateway() -> None:
    v4 = grant("10.6.0.5", routes=[["10.8.0.0/16", "10.6.0.9"]])
    answer = answered(v4, grant("fd00::5", clean_gateway=True))
    assert answer["routes"] == [{"dst": "10.8.0.0/16", "gw": "10.6.0.9"}, {"dst": "0.0.0.0/0", "gw": "10.6.0.1"}]


@pytest.mark.parametrize(
    ("previous", "held"),
    [
        ((), ["10.6.0.5"]),
        (("10.6.0.5",), ["10.6.0.5"]),
        (("10.6.0.5",), ["10.6.0.5", "fd00::5"]),
        (("fd00::5", "10.6.0.5"), ["10.6.0.5", "fd00::5"]),
    ],
)
def test_a_check_passes_while_all_it_lists_is_held(previous: tuple[str, ...], held: list[str]) -> None:
    assert check(call(previous=previous), list(map(grant, held))) is None


@pytest.mark.parametrize(
    ("previous", "held", "text"),
    [
        ((), [], "container c1 holds no address on eth0"),
        (("10.6.0.5",), [], "container c1 holds no address on eth0"),
        (("10.6.0.5",), ["10.6.0.6"], "container c1 does not hold 10.6.0.5 on eth0; it holds 10.6.0.6"),
        (("10.6.0.5", "fd00::5"), ["fd00::5"], "container c1 does not hold 10.6.0.5 on eth0; it holds fd00::5"),
    ],
)
def test_a_check_names_what_is_gone(previous: tuple[str, ...], held: list[str], text: str) -> None:
    error = check(call("0.4.0", previous), list(map(grant, held)))
    assert error is not None
    assert (error.code, error.version, str(error)) == (Code.RESERVATION_GONE, "0.4.0", text)
