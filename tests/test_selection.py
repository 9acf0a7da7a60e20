"""The choice of pools: who names them, what is refused with which words, in which order the rest are tried."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cni import annotations as keys
from cni.call import CniCall, Command, Ipam
from cni.facts import Facts, NamespaceFacts, NodeFacts, Owner, PodFacts, Settings
from cni.selection import TEXT_MAX, Selection, select
from ledger import addresses
from ledger.addresses import Ip
from ledger.claims import Claim
from ledger.definition import Definition, Pool, State
from ledger.requests import Candidate, Reason, Refusal, Want
from ledger.resources import OWNER_APPLICATION_NAME_LABEL, SpiderIPPool

NONE: dict[str, Any] = {}
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # The machine may be busy.
V6: dict[str, Any] = {"subnet": "fd00::/64", "ipVersion": 6}


def pool(name: str, labels: Mapping[str, str] = NONE, state: State = State.OPEN, **spec: Any) -> Pool:
    """An IPv4 pool, unless its spec says otherwise; numbered by `ask`."""
    document = {
        "metadata": {"name": name, "labels": dict(labels)},
        "spec": {"subnet": "10.6.0.0/16", "ipVersion": 4, **spec},
    }
    return Pool(0, name, state, SpiderIPPool.model_validate(document))


def ask(
    *pools: Pool,
    said: Mapping[str, Any] = NONE,
    pod: Mapping[str, Any] | None = NONE,
    namespace: Mapping[str, Any] | None = NONE,
    ipam: Mapping[str, Any] = NONE,
    settings: Settings | None = None,
    node: Mapping[str, str] = NONE,
    master: tuple[str, ...] | None = None,
    **call: Any,
) -> Selection | Refusal:
    """What a pod gets that says this in its annotations (what is no text there is written as JSON)."""
    written = {key: value if isinstance(value, str) else json.dumps(value) for key, value in said.items()}
    facts = Facts(
        NodeFacts("node-1", node),
        None if pod is None else PodFacts("default", "web-0", "5b1c", "node-1", **{"annotations": written, **pod}),
        None if namespace is None else NamespaceFacts("default", **namespace),
        master,
    )
    asked = CniCall(
        Command.ADD, "1.0.0", "blue", 1, **{"container": "c1", "interface": "eth0", "ipam": Ipam(**ipam), **call}
    )
    numbered = (Pool(number, each.uid, each.state, each.object) for number, each in enumerate(pools))
    return select(asked, facts, Definition(7, tuple(numbered)), settings or Settings("c"))


def refused(answer: object) -> Refusal:
    assert isinstance(answer, Refusal), answer
    return answer


def wants(answer: object) -> dict[tuple[str, int], Want]:
    assert isinstance(answer, Selection), answer
    return {(want.claim.interface, want.claim.family): want for want in answer.wants}


def tried(answer: object) -> dict[tuple[str, int], list[str]]:
    """The pools that may be used, in the order of trial, for each interface and family."""
    return {key: [each.pool for each in want.candidates if not each.passed_over] for key, want in wants(answer).items()}


def ip(text: str) -> Ip:
    return addresses.parse(text)


# Sources (4.2) -------------------------------------------------------------------------------

FIVE = [pool("by-ippools"), pool("by-ippool"), pool("by-namespace"), pool("by-netconf"), pool("default", default=True)]
SIX = [*FIVE, pool("default-6", default=True, **V6)]


def test_the_first_source_that_speaks_is_the_only_one() -> None:
    said: dict[str, Any] = {keys.IPPOOLS: [{"interface": "eth0", "ipv4": ["by-ippools"]}]}
    said[keys.IPPOOL] = {"ipv4": ["by-ippool"]}
    rest: dict[str, Any] = {"namespace": {"annotations": {keys.DEFAULT_IPV4_IPPOOL: '["by-namespace"]'}}}
    rest["ipam"] = {"default_ipv4_ippool": ("by-netconf",)}
    for name, source in [("by-ippools", keys.IPPOOLS), ("by-ippool", keys.IPPOOL)]:
        assert tried(ask(*SIX, said=said, **rest)) == {("eth0", 4): [name]}
        del said[source]
    for name, source in [("by-namespace", "namespace"), ("by-netconf", "ipam")]:
        assert tried(ask(*SIX, said=said, **rest)) == {("eth0", 4): [name]}
        del rest[source]
    assert tried(ask(*SIX)) == {("eth0", 4): ["default"], ("eth0", 6): ["default-6"]}
    nothing = refused(ask(*FIVE[:-1]))
    assert (nothing.reason, nothing.text) == (
        Reason.NO_POOL,
        "no IPPool available, no pool selection rules of any type are specified",
    )


@pytest.mark.parametrize(
    ("said", "words"),
    [
        pytest.param({keys.IPPOOL: NONE}, "Pod annotation 'ipam.spidernet.io/ippool' names no IPPool", id="presence"),
        pytest.param({keys.IPPOOL: {"ipv4": []}}, "names no IPPool", id="empty-list"),
        pytest.param({keys.IPPOOL: {"ipv4": ["no-*"]}}, "names no IPPool", id="nothing-matches"),
        pytest.param(
            {keys.IPPOOL: {"ipv4": [], "ipv44": ["by-ippool"]}}, "(it has unknown keys: ipv44)", id="A00003-misspelled"
        ),
        pytest.param({keys.IPPOOLS: [{"IPv4s": ["a"]}]}, "(it has unknown keys: IPv4s)", id="A00003-in-ippools"),
        pytest.param({keys.IPPOOL: {"ipv4": ["by-ippool", "gone"]}}, "failed to get original IPPool gone", id="one"),
    ],
)
def test_a_source_without_usable_pools_is_not_helped_by_the_next(said: dict[str, Any], words: str) -> None:
    answer = refused(ask(*SIX, said=said, ipam={"default_ipv4_ippool": ("by-netconf",)}))
    assert answer.reason == Reason.NO_POOL
    assert words in answer.text


def test_empty_lists_of_a_namespace_or_configuration_say_nothing() -> None:
    empty = {"annotations": {keys.DEFAULT_IPV4_IPPOOL: "[]", keys.DEFAULT_IPV6_IPPOOL: "null"}}
    assert tried(ask(*FIVE, namespace=empty, ipam={"default_ipv4_ippool": ()})) == {("eth0", 4): ["default"]}


def test_one_family_named_means_one_family_given() -> None:
    assert tried(ask(*SIX, said={keys.IPPOOL: {"ipv6": ["default-6"]}})) == {("eth0", 6): ["default-6"]}


@pytest.mark.parametrize("key", [keys.SUBNET, keys.SUBNETS])
def test_subnets_are_refused_while_there_are_no_automatic_pools(key: str) -> None:
    answer = refused(ask(*FIVE, said={key: {"ipv4": ["s"]}}))
    assert (answer.reason, answer.text) == (
        Reason.WRONG_INPUT,
        "it's invalid to use 'ipam.spidernet.io/subnets' or 'ipam.spidernet.io/subnet' annotation "
        "when Auto-Pool feature is disabled",
    )


def test_the_gateway_flag_comes_from_the_configuration_except_with_ippools() -> None:
    item = {"interface": "eth0", "ipv4": ["by-ippools"], "cleanGateway": True}
    assert wants(ask(*FIVE, ipam={"clean_gateway": True}))["eth0", 4].clean_gateway
    assert wants(ask(*FIVE, said={keys.IPPOOLS: [item]}))["eth0", 4].clean_gateway
    del item["cleanGateway"]
    assert not wants(ask(*FIVE, said={keys.IPPOOLS: [item]}, ipam={"clean_gateway": True}))["eth0", 4].clean_gateway


def test_outside_kubernetes_configuration_and_defaults_speak_for_a_container() -> None:
    picky: dict[str, Any] = {"podAffinity": {"matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]}}
    pools = (pool("a"), pool("b", default=True), pool("c", default=True, **picky))
    outside: dict[str, Any] = {"pod": None, "namespace": None, "interface": "net7"}
    want = wants(ask(*pools, ipam={"default_ipv4_ippool": ("a",)}, **outside))["net7", 4]
    assert want.claim == Claim("c", "Container", "node-1", "blue", "c1", "net7", 4)
    assert want.candidates == (Candidate("a"),)
    by_default = wants(ask(*pools, **outside))["net7", 4].candidates
    assert by_default == (Candidate("b"), Candidate("c", "unmatched Pod affinity of IPPool c"))


# Formats (4.1) -------------------------------------------------------------------------------

EACH = [{"interface": "eth0", "ipv4": ["a"]}, {"interface": "net1", "ipv4": ["b"], "ipv6": ["c"]}]


@pytest.mark.parametrize(
    ("key", "value", "tail"),
    [
        (keys.IPPOOLS, [], "value requires at least one item"),
        (keys.IPPOOLS, [{"interface": "eth0"}, NONE], "NIC should be either all specified or all unspecified"),
        (keys.IPPOOLS, [{"interface": "eth0"}, {"interface": "eth0"}], "duplicate interface eth0"),
        (keys.IPPOOLS, [{"interface": "net1"}], "interface eth0 must be specified"),
        (keys.IPPOOLS, [{"interface": "eth0"}, {"interface": "a/b"}], 'interface "a/b" cannot be the name of one'),
        (keys.IPPOOLS, {"ipv4": ["a"]}, "valid list"),
        (keys.IPPOOLS, [{"interface": "eth0", "cleangateway": "false"}], "0.cleangateway"),
        (keys.IPPOOLS, [{"interface": 1}], "0.interface"),
        (keys.IPPOOL, "ipv4: [a]", "line 1 column 1"),
        (keys.IPPOOL, ["a"], "valid dictionary"),
        (keys.IPPOOL, {"ipv4": "a"}, "ipv4"),
        (keys.IPPOOL, {"ipv4": ["a", 5]}, "ipv4.1"),
        (keys.ROUTES, [{"dst": "10.0.0.0/8", "gw": "fd00::1"}], "invalid route format 'dst: 10.0.0.0/8, gw: fd00::1'"),
        (keys.ROUTES, [{"dst": "10.0.0.0", "gw": "10.6.0.1"}], "invalid route format 'dst: 10.0.0.0, gw: 10.6.0.1'"),
        (keys.ROUTES, [{"dst": "10.0.0.0/8"}], "invalid route format 'dst: 10.0.0.0/8, gw: '"),
        (keys.ROUTES, {"dst": "10.0.0.0/8"}, "valid list"),
        (keys.ADDRESS, "10.6.0", "invalid IP format in IPv4 '10.6.0'"),
        (keys.ADDRESS, "", "invalid IP format in IPv4 ''"),
        (keys.ADDRESS, "10.6.0.1,10.6.0.2", "asks for more than one address of a family"),
        (keys.ADDRESS, '["10.6.0.1"', "line 1"),
    ],
)
def test_an_unusable_annotation_is_named_with_what_is_wrong(key: str, value: Any, tail: str) -> None:
    answer = refused(ask(pool("a", default=True), said={key: value}))
    assert answer.reason == Reason.WRONG_INPUT
    assert answer.text.startswith(f"wrong input, invalid format of Pod annotation '{key}': ")
    assert tail in answer.text


def test_an_unusable_annotation_of_a_namespace_is_named_too() -> None:
    answer = refused(ask(pool("a"), namespace={"annotations": {keys.DEFAULT_IPV6_IPPOOL: "a"}}))
    assert answer.reason == Reason.WRONG_INPUT
    assert f"Namespace annotation '{keys.DEFAULT_IPV6_IPPOOL}'" in answer.text


def test_keys_count_in_any_case_and_the_last_of_two_equal_ones() -> None:
    said = {keys.IPPOOLS: '[{"Interface":"eth0","IPv4":["b"],"IPV4":["a"],"other":{}}]'}
    assert tried(ask(pool("a"), pool("b"), said=said)) == {("eth0", 4): ["a"]}
    assert tried(ask(pool("a"), said={keys.IPPOOL: '{"ipv4":["b"],"ipv4":["a"],"ipv6":null}'})) == {("eth0", 4): ["a"]}


def test_a_list_by_interface_is_all_asked_for_at_once() -> None:
    networks = {keys.NETWORKS: "red"}
    answer = ask(pool("a"), pool("b"), pool("c", **V6), said={keys.IPPOOLS: EACH, **networks})
    assert tried(answer) == {("eth0", 4): ["a"], ("net1", 4): ["b"], ("net1", 6): ["c"]}
    assert isinstance(answer, Selection)
    assert [want.claim.uid for want in answer.wants] == ["5b1c"] * 3
    assert (answer.definition, answer.source) == (7, "Pod annotation 'ipam.spidernet.io/ippools'")


@pytest.mark.parametrize(
    ("networks", "interfaces"),
    [
        pytest.param(None, ["eth0", "net1", "net2"], id="by-default"),
        pytest.param("red@storage, other/green", ["eth0", "storage", "net2"], id="short-form"),
        pytest.param([{"name": "red"}, {"name": "g", "interface": "mgmt"}], ["eth0", "net1", "mgmt"], id="json"),
    ],
)
def test_interfaces_without_names_are_the_pods_own_and_those_of_multus(networks: Any, interfaces: list[str]) -> None:
    said = {keys.IPPOOLS: [{"ipv4": ["a"]}, {"ipv4": ["b"]}, {"ipv4": ["c"]}]}
    answer = ask(pool("a"), pool("b"), pool("c"), said=said | ({keys.NETWORKS: networks} if networks else {}))
    assert tried(answer) == {(name, 4): [each] for name, each in zip(interfaces, "abc", strict=True)}


# Wildcards (4.3) and precheck (4.4) ----------------------------------------------------------

POOLS = [pool("blue-2"), pool("blue-1"), pool("red-1"), pool("blue-6", **V6), pool("green", state=State.CLOSED)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["blue-?"], ["blue-2", "blue-1"]),
        (["*-1"], ["blue-1", "red-1"]),
        (["red-1", "blue-*"], ["red-1", "blue-2", "blue-1"]),
        (["[b]lue-[0-1]"], ["blue-1"]),
        (["[^b]*", "no-such-*"], ["red-1"]),
        (["*"], ["blue-2", "blue-1", "red-1"]),
    ],
)
def test_wildcards_stand_for_the_pools_of_their_family(names: list[str], expected: list[str]) -> None:
    for answer in (
        ask(*POOLS, said={keys.IPPOOL: {"ipv4": names}}),
        ask(*POOLS, said={keys.IPPOOLS: [{"interface": "eth0", "ipv4": names}]}),
        ask(*POOLS, namespace={"annotations": {keys.DEFAULT_IPV4_IPPOOL: json.dumps(names)}}),
        ask(*POOLS, ipam={"default_ipv4_ippool": tuple(names)}),
    ):
        assert tried(answer) == {("eth0", 4): expected}
        assert "blue-6" not in [each.pool for each in wants(answer)["eth0", 4].candidates]


@pytest.mark.parametrize(
    ("names", "reason", "text"),
    [
        (["a", "a"], Reason.WRONG_INPUT, "wrong input, duplicate IPPool a specified for NIC eth0"),
        (["a", "*"], Reason.WRONG_INPUT, "wrong input, duplicate IPPool a specified for NIC eth0"),
        (
            ["[a"],
            Reason.WRONG_INPUT,
            "failed to match wildcard: IPv4 PoolName pattern '[a', character 'a', error: syntax error in pattern",
        ),
        (["*"] * 101, Reason.WRONG_INPUT, "wrong input, more than 100 IPv4 PoolName patterns"),
        (
            ["a", "b"],
            Reason.NO_POOL,
            'failed to get original IPPool b: SpiderIPPool.spiderpool.spidernet.io "b" not found',
        ),
        ([""], Reason.NO_POOL, 'failed to get original IPPool : SpiderIPPool.spiderpool.spidernet.io "" not found'),
    ],
)
def test_a_name_that_is_missing_double_or_broken_fails_everything(names: list[str], reason: Reason, text: str) -> None:
    answer = refused(ask(pool("a"), said={keys.IPPOOL: {"ipv4": names}}))
    assert (answer.reason, answer.text) == (reason, text)


@pytest.mark.parametrize("names", [["b", "gone"], ["b", "b"]])
def test_whoever_holds_an_address_of_a_named_pool_keeps_it_when_another_name_is_wrong(names: list[str]) -> None:
    said = {keys.IPPOOL: {"ipv4": ["a"], "ipv6": names}}
    assert refused(ask(pool("a"), pool("b", **V6), pool("c"), said=said)).named == {0, 1}


def test_whoever_holds_an_address_of_a_named_pool_keeps_it_when_all_are_filtered_out() -> None:
    said = {keys.IPPOOL: {"ipv4": ["a"], "ipv6": ["b"]}}
    assert refused(ask(pool("a"), pool("b", disable=True, **V6), pool("c"), said=said)).named == {0, 1}


def test_a_family_that_is_switched_off_is_dropped_before_anything_is_looked_up() -> None:
    said = {keys.IPPOOL: {"ipv4": ["a"], "ipv6": ["gone"]}}
    only_v4 = Settings("c", families=frozenset({4}))
    assert tried(ask(pool("a"), said=said, settings=only_v4)) == {("eth0", 4): ["a"]}
    nothing = refused(ask(pool("a"), said=said, settings=Settings("c", families=frozenset())))
    assert nothing.text.startswith("no IPPool available, the Pod annotation")


GO_MATCHES = [
    ("abc", "abc", True), ("abc", "abcd", False), ("*", "abc", True), ("*c", "abc", True), ("a*", "a", True),
    ("a*b*c", "axxbyyc", True), ("a*b*c", "axxbyy", False), ("*b*b", "ab", False), ("*ab", "aab", True),
    ("a?c", "abc", True), ("a?c", "ac", False), ("a.c", "abc", False), ("[a-c]x", "bx", True),
    ("[a-c]x", "dx", False), ("[^a-c]x", "dx", True), ("[^a-c]x", "ax", False), ("[ab-]x", "ax", None),
    ("[-a]x", "ax", None), ("[]a]", "]", None), ("[\\]a]x", "]x", True), ("[\\-]", "-", True), ("a\\*", "a*", True),
    ("a\\*", "ab", False), ("a\\", "a", None), ("[", "[", None), ("[^]", "^", None), ("[c-a]", "b", False),
    ("[^c-a]", "b", True), ("[!a]", "!", True), ("]", "]", True), ("[" * 9 + "]", "[", True),
    ("*a" * 60, "a" * 200 + "b", False), ("x" * 254, "x", None),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "name", "matches"), GO_MATCHES)
def test_patterns_are_those_of_go(pattern: str, name: str, matches: bool | None) -> None:
    if matches is None:
        with pytest.raises(ValueError, match=r"syntax error in pattern|longer than 253"):
            keys.pattern(pattern)
    else:
        assert (keys.pattern(pattern).fullmatch(name) is not None) == matches


@unhurried
@given(st.text("ab*?", max_size=9), st.text("ab", max_size=9))
def test_stars_and_question_marks_mean_what_trying_everything_finds(pattern: str, name: str) -> None:
    def matches(left: str, rest: str) -> bool:
        if not left:
            return not rest
        if left[0] == "*":
            return any(matches(left[1:], rest[taken:]) for taken in range(len(rest) + 1))
        return bool(rest) and left[0] in ("?", rest[0]) and matches(left[1:], rest[1:])

    assert (keys.pattern(pattern).fullmatch(name) is not None) == matches(pattern, name)


# Filters (4.5) -------------------------------------------------------------------------------

AFFINITY = {"matchLabels": {"zone": "blue"}}
BROKEN = {"matchExpressions": [{"key": "zone", "operator": "Near", "values": ["blue"]}]}
APPLICATION = {"api-group": "apps", "api-version": "v1", "kind": "Deployment", "namespace": "default", "name": "web"}
AUTO: dict[str, Any] = {"labels": {OWNER_APPLICATION_NAME_LABEL: "web"}}
AUTO |= {"podAffinity": {"matchLabels": {f"ipam.spidernet.io/app-{key}": value for key, value in APPLICATION.items()}}}
DEPLOYMENT = Owner("apps/v1", "Deployment", "web")
NET1: dict[str, Any] = {"interface": "net1"}
RED = {"multusName": ["red"]}
OURS = Settings("c", own_namespace="spider")
SPIDER_RED = {keys.DEFAULT_NETWORK: "spider/red"}
MISMATCH = "the spec.multusName [red] in the IPPool p used by the Pod interface"


@pytest.mark.parametrize(
    ("spec", "facts", "why"),
    [
        pytest.param({"state": State.CLOSED}, NONE, "terminating IPPool p", id="2-terminating"),
        pytest.param({"disable": True}, NONE, "disabled IPPool p", id="3-disabled"),
        pytest.param({"ipVersion": None}, NONE, "nil ippool ipVersion", id="4-no-version"),
        pytest.param(V6, NONE, "expect an IPv4 IPPool, but the version of the IPPool p is IPv6", id="5-family"),
        pytest.param({"nodeName": ["node-1"]}, NONE, "", id="6-node-named"),
        pytest.param({"nodeName": ["NODE-1", "n"]}, NONE, "unmatched Node name of IPPool p", id="6-node-not-named"),
        pytest.param({"nodeAffinity": AFFINITY}, {"node": {"zone": "blue"}}, "", id="6-node-matches"),
        pytest.param({"nodeAffinity": AFFINITY}, NONE, "unmatched Node affinity of IPPool p", id="6-node-mismatch"),
        pytest.param({"nodeAffinity": NONE}, NONE, "", id="6-empty-selector-matches"),
        pytest.param({"nodeAffinity": AFFINITY, "nodeName": ["node-1"]}, NONE, "", id="6-D00013-name-wins"),
        pytest.param(
            {"nodeAffinity": AFFINITY, "nodeName": ["n"]},
            {"node": {"zone": "blue"}},
            "unmatched Node name of IPPool p",
            id="6-name-wins-against-it-too",
        ),
        pytest.param(
            {"nodeAffinity": BROKEN},
            NONE,
            'invalid Node affinity of IPPool p: labelSelector.matchExpressions[0].operator: Invalid value: "Near": '
            "not a valid selector operator",
            id="6-broken-selector",
        ),
        pytest.param({"namespaceName": ["default"]}, NONE, "", id="7-namespace-named"),
        pytest.param({"namespaceName": ["x"]}, NONE, "unmatched Namespace name of IPPool p", id="7-not-named"),
        pytest.param({"namespaceAffinity": AFFINITY}, {"namespace": {"labels": {"zone": "blue"}}}, "", id="7-matches"),
        pytest.param(
            {"namespaceAffinity": AFFINITY}, NONE, "unmatched Namespace affinity of IPPool p", id="7-mismatch"
        ),
        pytest.param({"namespaceAffinity": AFFINITY, "namespaceName": ["default"]}, NONE, "", id="7-D00016-name-wins"),
        pytest.param(
            {"namespaceAffinity": AFFINITY},
            {"namespace": None},
            "unmatched Namespace affinity of IPPool p",
            id="7-none",
        ),
        pytest.param(AUTO, {"pod": {"top_owner": DEPLOYMENT}}, "", id="8a-own-application"),
        pytest.param(AUTO, NONE, "unmatched Pod annifity of auto-created IPool p", id="8a-no-owner"),
        pytest.param(
            AUTO,
            {"pod": {"top_owner": Owner("apps/v1", "Deployment", "other")}},
            "unmatched Pod annifity of auto-created IPool p",
            id="8a-other-application",
        ),
        pytest.param(AUTO | RED, {"pod": {"top_owner": DEPLOYMENT}}, "", id="8a-accepts-at-once"),
        pytest.param({"podAffinity": AFFINITY}, {"pod": {"labels": {"zone": "blue"}}}, "", id="8b-pod-matches"),
        pytest.param({"podAffinity": AFFINITY}, NONE, "unmatched Pod affinity of IPPool p", id="8b-pod-mismatch"),
        pytest.param(NONE, NONE, "", id="9a-nobody-speaks-of-multus"),
        pytest.param(NONE, NET1, "", id="9b-nobody-speaks-of-multus"),
        pytest.param(
            RED,
            NONE,
            "cluster-network multus isn't set, the IPPool p specified multusName [red] unmatched",
            id="9a-unset",
        ),
        pytest.param(RED, {"said": SPIDER_RED}, "", id="9a-annotation"),
        pytest.param(RED, {"said": {keys.DEFAULT_NETWORK: "red"}}, "", id="9a-of-our-namespace"),
        pytest.param(RED, {"said": {keys.DEFAULT_NETWORK: "spider/red@eth0"}}, "", id="9a-with-interface"),
        pytest.param(RED, {"settings": Settings("c", frozenset({4}), "spider/red", "spider")}, "", id="9a-setting"),
        pytest.param(
            RED,
            {"said": {keys.DEFAULT_NETWORK: "a/b/c"}},
            "failed to parse Annotation 'v1.multus-cni.io/default-network' value 'a/b/c', error: \"a/b/c\" is not "
            "written as namespace/name@interface, in lower case letters, digits and -",
            id="9a-unreadable",
        ),
        pytest.param(
            RED,
            {"said": {keys.DEFAULT_NETWORK: "kube-system/red"}},
            f"{MISMATCH} eth0 is not matched with the multusCR kube-system/red specified by the Pod",
            id="9c-D00010-other-namespace",
        ),
        pytest.param(
            {"multusName": ["x", "kube-system/red"]},
            {"said": {keys.DEFAULT_NETWORK: "kube-system/red"}},
            "",
            id="9c-any",
        ),
        pytest.param(RED, {"said": {keys.NETWORKS: "spider/red"}, **NET1}, "", id="9b-by-position"),
        pytest.param(RED, {"said": {keys.NETWORKS: "x, spider/red@store"}, "interface": "store"}, "", id="9b-by-name"),
        pytest.param(
            RED,
            {"said": {keys.NETWORKS: "red"}, **NET1},
            f"{MISMATCH} net1 is not matched with the multusCR default/red specified by the Pod",
            id="9b-of-the-pods-namespace",
        ),
        pytest.param(
            RED,
            NET1,
            "unknown: no matched multus object for NIC 'net1'. The multus network-attachments: ",
            id="9b-no-annotation",
        ),
        pytest.param(
            NONE,
            {"said": {keys.NETWORKS: "red@store"}, **NET1},
            "unknown: no matched multus object for NIC 'net1'. The multus network-attachments: red@store",
            id="9b-unknown-interface",
        ),
        pytest.param(
            NONE,
            {"said": {keys.NETWORKS: '[{"name": 5}]'}, **NET1},
            "failed to parse pod network annotation: 0.name: Input should be a valid string, and it is 5",
            id="9b-unreadable",
        ),
        pytest.param(
            NONE,
            {"ipam": {"match_master_subnet": True}},
            "filterPoolCandidatesByPfSubnet: no address of the parent interface is known in the subnet 10.6.0.0/16 of "
            "IPPool p: nobody could look",
            id="10-unknown",
        ),
        pytest.param(
            NONE,
            {"ipam": {"match_master_subnet": True}, "master": ("10.7.0.9/16",)},
            "filterPoolCandidatesByPfSubnet: no address of the parent interface is known in the subnet 10.6.0.0/16 of "
            "IPPool p: it has [10.7.0.9/16]",
            id="10-elsewhere",
        ),
        pytest.param(
            NONE, {"ipam": {"match_master_subnet": True}, "master": ("fd00::9/64", "10.6.0.9/16")}, "", id="10-inside"
        ),
        pytest.param(RED, {"ipam": {"match_master_subnet": True}, "said": SPIDER_RED}, "", id="9c-accepts-at-once"),
    ],
)
def test_a_pool_is_passed_over_for_the_first_reason_against_it(
    spec: dict[str, Any], facts: dict[str, Any], why: str
) -> None:
    said = {keys.IPPOOL: {"ipv4": ["p"]}, **facts.get("said", NONE)}
    answer = ask(pool("p", **spec), **{"settings": OURS, **facts, "said": said})
    if why:
        interface = facts.get("interface", "eth0")
        nothing = refused(answer)
        assert nothing.text == f"no IPPool available, all IPv4 IPPools [p] of {interface} filtered out: {why}"
        assert (nothing.reason, nothing.candidates) == (Reason.NO_POOL, (Candidate("p", why),))
    else:
        assert [want.pools for want in wants(answer).values()] == [(0,)]


def test_the_reasons_are_looked_for_in_a_fixed_order() -> None:
    spec: dict[str, Any] = {"disable": True, **V6, "nodeName": ["n"], "namespaceName": ["n"], "podAffinity": AFFINITY}
    spec |= {"state": State.CLOSED, **RED}
    order: list[tuple[str, dict[str, Any]]] = [
        ("terminating", {"state": State.OPEN}),
        ("disabled", {"disable": False}),
        ("expect an IPv4", {"ipVersion": 4, "subnet": "10.6.0.0/16"}),
        ("unmatched Node name", {"nodeName": [], "nodeAffinity": AFFINITY}),
        ("unmatched Node affinity", {"nodeAffinity": None}),
        ("unmatched Namespace name", {"namespaceName": [], "namespaceAffinity": AFFINITY}),
        ("unmatched Namespace affinity", {"namespaceAffinity": None}),
        ("unmatched Pod affinity", {"podAffinity": None}),
        ("cluster-network multus", {"multusName": []}),
        ("filterPoolCandidatesByPfSubnet", {}),
    ]
    for words, mended in order:
        ipam = {"match_master_subnet": True}
        answer = refused(ask(pool("p", **spec), said={keys.IPPOOL: {"ipv4": ["p"]}}, ipam=ipam))
        assert answer.candidates[0].passed_over.startswith(words), answer
        spec |= mended
    assert wants(ask(pool("p", **spec), said={keys.IPPOOL: {"ipv4": ["p"]}}))


def test_what_is_passed_over_is_told_with_what_is_tried() -> None:
    pools = (pool("a", disable=True), pool("b"), pool("c", nodeName=["n"]), pool("d", nodeName=["node-1"]))
    want = wants(ask(*pools, said={keys.IPPOOL: {"ipv4": ["a", "b", "c", "d"]}}))["eth0", 4]
    assert (want.pools, want.named) == ((3, 1), frozenset({0, 1, 2, 3}))
    assert want.candidates == (
        Candidate("d"),
        Candidate("b"),
        Candidate("a", "disabled IPPool a"),
        Candidate("c", "unmatched Node name of IPPool c"),
    )


ALL_V4 = "all IPv4 IPPools [a] of eth0 filtered out: disabled IPPool a"
ALL_V6 = "all IPv6 IPPools [b c] of eth0 filtered out: [disabled IPPool b, disabled IPPool c]"


@pytest.mark.parametrize(("disabled", "text"), [("a", ALL_V4), ("bc", ALL_V6), ("abc", f"[{ALL_V4}, {ALL_V6}]")])
def test_a_family_of_which_nothing_is_left_fails_all(disabled: str, text: str) -> None:
    families = {"a": NONE, "b": V6, "c": V6}
    pools = [pool(name, disable=name in disabled, **family) for name, family in families.items()]
    answer = refused(ask(*pools, said={keys.IPPOOL: {"ipv4": ["a"], "ipv6": ["b", "c"]}}))
    assert answer.text == f"no IPPool available, {text}"
    assert [each.pool for each in answer.candidates] == list(disabled)


def test_one_interface_without_pools_fails_the_others() -> None:
    answer = refused(
        ask(
            pool("a"),
            pool("b", disable=True),
            said={keys.IPPOOLS: [EACH[0], {**EACH[0], "interface": "net1", "ipv4": ["b"]}]},
        )
    )
    assert answer.text.endswith("IPPools [b] of net1 filtered out: disabled IPPool b")


# Sort (4.6) ----------------------------------------------------------------------------------

DEMANDS: list[dict[str, Any]] = [
    {"podAffinity": {"matchLabels": {"app": "web"}}},
    {"nodeName": ["node-1"]},
    {"nodeAffinity": NONE},
    {"namespaceName": ["default"]},
    {"namespaceAffinity": NONE},
    {"multusName": ["spider/red"]},
    {},
]


@pytest.mark.parametrize("reverse", [False, True])
def test_demanding_pools_come_first_and_the_earlier_demand_outweighs_all_later_ones(reverse: bool) -> None:
    later = [{key: value for each in DEMANDS[number + 1 :] for key, value in each.items()} for number in range(6)]
    pools = [pool(str(number), **demand) for number, demand in enumerate(DEMANDS)]
    names = sorted((each.name for each in pools), reverse=reverse)
    said = {keys.IPPOOL: {"ipv4": names}, **SPIDER_RED}
    facts: dict[str, Any] = {"pod": {"labels": {"app": "web"}}, "settings": OURS}
    assert tried(ask(*pools, said=said, **facts))["eth0", 4] == list("0123456")
    for demand, others in zip(DEMANDS, later, strict=False):
        two = (pool("others", **others), pool("one", **demand))
        ordered = tried(ask(*two, said={**said, keys.IPPOOL: {"ipv4": ["others", "one"]}}, **facts))
        assert ordered["eth0", 4] == ["one", "others"]


@unhurried
@given(st.permutations("abcdef"))
def test_equals_stay_in_the_order_of_the_list(names: list[str]) -> None:
    pools = [pool(name) for name in "abcdef"]
    assert tried(ask(*pools, said={keys.IPPOOL: {"ipv4": names}}))["eth0", 4] == names
    assert tried(ask(*pools, ipam={"default_ipv4_ippool": tuple(names)}))["eth0", 4] == names


# Pods, addresses, routes ---------------------------------------------------------------------


def test_a_dead_pod_gets_nothing() -> None:
    dead = {"alive": False, "dead_reason": "Evicted"}
    answer = refused(ask(pool("a", default=True), pod=dead))
    text = "dead Pod default/web-0, we cannot allocate IP addresees to it: Evicted"
    assert (answer.reason, answer.text) == (Reason.DEAD_POD, text)


def test_refusals_before_the_pools_come_in_a_fixed_order() -> None:
    said: dict[str, Any] = {keys.ROUTES: "x", keys.ADDRESS: "x", keys.SUBNET: "x", keys.IPPOOLS: "x"}
    alive = {"alive": False}
    order: list[tuple[str, dict[str, Any]]] = [
        ("dead Pod", {}),
        (keys.ROUTES, {keys.ROUTES: "[]"}),
        (keys.ADDRESS, {keys.ADDRESS: "fd00::1"}),
        (keys.SUBNETS, {keys.SUBNET: None}),
        (keys.IPPOOLS, {keys.IPPOOLS: [{"ipv4": ["a", "a", "gone"]}]}),
        ("duplicate IPPool a", {keys.IPPOOLS: [{"ipv4": ["a", "gone"]}]}),
        ("failed to get original IPPool gone", {keys.IPPOOLS: [{"ipv4": ["a"]}]}),
        ("no IPv6 IPPool of eth0", {keys.ADDRESS: "10.6.0.1"}),
        ("no IPPool available", {}),
    ]
    for text, mended in order:
        assert text in refused(ask(pool("a", disable=True), said=said, pod=alive)).text
        alive = {"alive": True}
        said = {key: value for key, value in (said | mended).items() if value is not None}


@pytest.mark.parametrize("written", ["10.6.0.9,fd00::9", '["10.6.0.9/16", "fd00::9/64"]', " fd00::0:9 , 10.6.0.9"])
def test_an_address_that_must_be_had_goes_to_its_family(written: str) -> None:
    found = wants(ask(pool("a", default=True), pool("b", default=True, **V6), said={keys.ADDRESS: written}))
    asked = {family: (want.address, want.exact) for (_, family), want in found.items()}
    assert asked == {4: (ip("10.6.0.9"), True), 6: (ip("fd00::9"), True)}


def test_the_runtime_and_the_pod_may_ask_for_the_same_address_but_not_for_two() -> None:
    pools, said = (pool("a", default=True), pool("b", default=True, **V6)), {keys.ADDRESS: "10.6.0.9"}
    both = wants(ask(*pools, said=said, exact=(ip("10.6.0.9"), ip("fd00::9"))))
    assert {want.address for want in both.values()} == {ip("10.6.0.9"), ip("fd00::9")}
    answer = refused(ask(*pools, said=said, exact=(ip("10.6.0.8"),)))
    assert answer.reason == Reason.WRONG_INPUT
    assert answer.text == "wrong input, eth0 asks for more than one address of a family: [10.6.0.8 10.6.0.9]"


def test_an_address_of_a_family_without_pools_is_refused() -> None:
    answer = refused(ask(pool("a", default=True), exact=(ip("fd00::9"),)))
    assert answer.reason == Reason.ADDRESS_OUTSIDE
    assert answer.text == "no IPv6 IPPool of eth0 is named, and it must have fd00::9"


@pytest.mark.parametrize(
    ("preferred", "exact", "expected"),
    [
        ("10.6.0.7", (), (ip("10.6.0.7"), False)),
        ("fd00::7", (), (None, False)),
        ("10.6.0.7", (ip("10.6.0.9"),), (ip("10.6.0.9"), True)),
    ],
)
def test_a_preferred_address_is_a_wish_that_gives_way(preferred: str, exact: Any, expected: Any) -> None:
    want = wants(ask(pool("a", default=True), preferred=ip(preferred), exact=exact))["eth0", 4]
    assert (want.address, want.exact) == expected


@pytest.mark.parametrize("interface", ["eth0", "net1"])
def test_each_interface_keeps_its_own_address_whichever_asks(interface: str) -> None:
    said = {keys.IPPOOLS: EACH, keys.NETWORKS: "red", keys.ADDRESS: "10.6.0.9"}
    call: dict[str, Any] = {"interface": interface, "exact": (ip("fd00::9"),) if interface == "net1" else ()}
    found = wants(ask(pool("a"), pool("b"), pool("c", **V6), said=said, **call))
    assert {key: want.address for key, want in found.items()} == {
        ("eth0", 4): ip("10.6.0.9"),
        ("net1", 4): None,
        ("net1", 6): ip("fd00::9") if interface == "net1" else None,
    }


def test_the_pods_address_is_not_for_an_interface_that_multus_adds() -> None:
    said = {keys.NETWORKS: "red", keys.ADDRESS: "10.6.0.9"}
    assert wants(ask(pool("a", default=True), said=said, interface="net1"))["net1", 4].address is None
    del said[keys.NETWORKS]
    assert wants(ask(pool("a", default=True), said=said, interface="net1"))["net1", 4].address == ip("10.6.0.9")


def test_routes_are_read_into_canonical_text() -> None:
    routes = [{"dst": "10.9.1.1/16", "gw": "10.6.0.1"}, {"Dst": "::/0", "GW": "FD00::0:1"}]
    want = wants(ask(pool("a", default=True), said={keys.ROUTES: routes}))["eth0", 4]
    assert want.routes == (("10.9.0.0/16", "10.6.0.1"), ("::/0", "fd00::1"))


# Whatever people write -----------------------------------------------------------------------

KEYS = [keys.IPPOOL, keys.IPPOOLS, keys.ROUTES, keys.ADDRESS, keys.NETWORKS, keys.DEFAULT_NETWORK]
words = st.sampled_from(
    ["ipv4", "ipv6", "interface", "cleangateway", "dst", "gw", "name", "eth0", "net1", "a", "b*", "["]
)
words |= st.sampled_from(["10.6.0.1", "10.6.0.0/16", "fd00::1", "spider/red@net1", "*"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.text(), inner, max_size=4),
    max_leaves=8,
)
texts = st.text(st.characters(codec=None)) | values.map(json.dumps) | words


@unhurried
@given(
    st.dictionaries(st.sampled_from(KEYS), texts), st.dictionaries(st.sampled_from([keys.DEFAULT_IPV4_IPPOOL]), texts)
)
def test_whatever_is_written_ends_in_a_selection_or_a_refusal(pod: dict[str, str], namespace: dict[str, str]) -> None:
    pools = (pool("a", default=True, multusName=["spider/red"]), pool("b", **V6), pool("c", default=True))
    answer = ask(*pools, said=pod, namespace={"annotations": namespace}, settings=OURS)
    if isinstance(answer, Refusal):
        assert len(answer.text) <= TEXT_MAX
        assert (answer.text + str(answer.candidates)).encode()
    else:
        assert {want.claim.interface for want in answer.wants} >= {"eth0"}
        assert all(want.pools and set(want.pools) <= want.named for want in answer.wants)


@pytest.mark.parametrize("long", ["[" * 100_000, '{"a":' * 9_999, "x," * 50_000, json.dumps({"ipv4": ["é" * 99_999]})])
@pytest.mark.parametrize("key", KEYS)
def test_a_long_annotation_makes_no_long_refusal(key: str, long: str) -> None:
    answer = ask(pool("a", default=True, multusName=["red"]), said={key: long}, interface="eth0")
    assert len(refused(answer).text) <= TEXT_MAX
    assert all(len(each.passed_over) <= TEXT_MAX for each in refused(answer).candidates)
