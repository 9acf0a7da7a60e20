"""Calls of a runtime: what is read, what is refused with which number, and that nothing else ever comes out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cni.call import NAME_MAX, VERSIONS, Attachment, CniCall, Command, PodName, read_call
from cni.errors import CODE_OF_REASON, CniError, Code, refused
from ledger import addresses
from ledger.requests import Candidate, Reason, Refusal

POD = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=5b1c"
VARIABLES = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/blue",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": POD,
    "CNI_PATH": "/opt/cni/bin",
    "SPIDERLEDGER_START": "1700000000000000000",
}
CONFIGURATION = {"cniVersion": "1.1.0", "name": "blue", "type": "macvlan", "ipam": {"type": "spiderpool"}}
PREVIOUS = {"prevResult": {"ips": [{"address": "10.6.0.5/16"}]}}
NOTHING: dict[str, Any] = {}
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # The machine may be busy.


def body(variables: dict[str, str] = NOTHING, configuration: dict[str, Any] = NOTHING) -> bytes:
    """A good request, with these changes; an empty variable is left out."""
    said = {name: value for name, value in {**VARIABLES, **variables}.items() if value}
    entries = b"".join(f"{name}={value}\0".encode() for name, value in said.items())
    return entries + b"\0" + json.dumps({**CONFIGURATION, **configuration}).encode()


def raw(configuration: bytes) -> bytes:
    return body().partition(b"\0\0")[0] + b"\0\0" + configuration


def refusal(request: bytes) -> CniError:
    with pytest.raises(CniError) as caught:
        read_call(request)
    return caught.value


def texts(call: CniCall) -> list[str]:
    return list(map(addresses.text, call.exact))


def test_an_add_is_read_whole() -> None:
    pools = {"default_ipv4_ippool": ["a", "b"], "default_ipv6_ippool": ["c"], "clean_gateway": True}
    asked = {"runtimeConfig": {"ips": ["10.6.0.9/16"]}, "args": {"cni": {"ips": ["fd00::9", "10.6.0.9"]}}}
    call = read_call(
        body({"CNI_ARGS": POD + ";IP=10.6.0.7"}, {"ipam": {**pools, "match_master_subnet": True}, **asked})
    )
    assert (call.command, call.version, call.network) == (Command.ADD, "1.1.0", "blue")
    assert (call.container, call.interface, call.netns) == ("c1", "eth0", "/run/netns/blue")
    assert call.start == 1_700_000_000_000_000_000
    assert call.pod == PodName("default", "web-0", "5b1c")
    assert (call.ipam.default_ipv4_ippool, call.ipam.default_ipv6_ippool) == (("a", "b"), ("c",))
    assert (call.ipam.clean_gateway, call.ipam.match_master_subnet) == (True, True)
    assert texts(call) == ["10.6.0.9", "fd00::9"]
    assert call.preferred == addresses.parse("10.6.0.7")


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("ADD", ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "SPIDERLEDGER_START"]),
        ("DEL", ["CNI_CONTAINERID", "CNI_IFNAME", "SPIDERLEDGER_START"]),
        ("CHECK", ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "SPIDERLEDGER_START"]),
        ("GC", ["SPIDERLEDGER_START"]),
        ("STATUS", ["SPIDERLEDGER_START"]),
    ],
)
def test_each_command_needs_its_variables_and_no_others(command: str, missing: list[str]) -> None:
    everything = dict.fromkeys(VARIABLES, "") | {"CNI_COMMAND": command}
    assert refusal(body(everything, PREVIOUS)).msg == f"required env variables [{','.join(missing)}] missing"
    enough = {name: VARIABLES[name] for name in missing}
    assert read_call(body(everything | enough, PREVIOUS)).command == command


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("CNI_COMMAND", "", "one of ADD, DEL, CHECK, GC, STATUS"),
        ("CNI_COMMAND", "VERSION", '"VERSION"'),
        ("CNI_COMMAND", "add", '"add"'),
        ("CNI_CONTAINERID", "-c1", '"-c1"'),
        ("CNI_CONTAINERID", "c/1", '"c/1"'),
        ("CNI_CONTAINERID", "c" * (NAME_MAX + 1), "is no container id"),
        ("CNI_IFNAME", "sixteen-letters-", '"sixteen-letters-"'),
        ("CNI_IFNAME", "ééééééééa", "is no interface name"),
        ("CNI_IFNAME", ".", '"."'),
        ("CNI_IFNAME", "..", '".."'),
        ("CNI_IFNAME", "a/b", '"a/b"'),
        ("CNI_IFNAME", "a:b", '"a:b"'),
        ("CNI_IFNAME", "a b", '"a b"'),
        ("CNI_IFNAME", "a\u2003b", "is no interface name"),
        ("SPIDERLEDGER_START", "soon", '"soon"'),
        ("SPIDERLEDGER_START", "-1", '"-1"'),
        ("SPIDERLEDGER_START", "9223372036854775808", "no time"),
        ("CNI_ARGS", "K8S_POD_NAME", '"K8S_POD_NAME"'),
        ("CNI_ARGS", "FOO=1", '["FOO"]'),
        ("CNI_ARGS", "IgnoreUnknown=0;FOO=1", '["FOO"]'),
        ("CNI_ARGS", "IgnoreUnknown=yes;FOO=1", "IgnoreUnknown=yes"),
        ("CNI_ARGS", "K8S_POD_NAME=web-0", "K8S_POD_NAMESPACE is missing"),
        ("CNI_ARGS", "K8S_POD_NAMESPACE=default", "K8S_POD_NAME is missing"),
        ("CNI_ARGS", "K8S_POD_NAMESPACE=a|b;K8S_POD_NAME=web-0", 'K8S_POD_NAMESPACE="a|b"'),
        ("CNI_ARGS", "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;K8S_POD_UID=c d", 'K8S_POD_UID="c d"'),
    ],
)
def test_a_bad_variable_is_named_with_what_it_says(variable: str, value: str, words: str) -> None:
    error = refusal(body({variable: value}))
    assert error.code == Code.BAD_ENVIRONMENT
    assert variable in error.msg
    assert words in error.msg


@pytest.mark.parametrize(
    ("entry", "words"), [(b"CNI_ARGS=\xff", "CNI_ARGS is not UTF-8"), (b"CNI_ARGS", "CNI_ARGS has no value")]
)
def test_a_variable_must_be_a_name_and_utf_8(entry: bytes, words: str) -> None:
    error = refusal(body().replace(b"\0\0", b"\0" + entry + b"\0\0"))
    assert (error.code, error.msg, error.version) == (4, f"invalid environment variable: {words}", "1.1.0")


@pytest.mark.parametrize(
    ("arguments", "pod"),
    [
        ("", None),
        ("IgnoreUnknown=1", None),
        ("IgnoreUnknown=TRUE;FOO=1", None),
        ("K8S_POD_NAMESPACE=a;K8S_POD_NAME=b", PodName("a", "b", "")),
        ("K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;", PodName("a", "b", "")),
        ("IgnoreUnknown=true;K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;K8S_POD_UID=c;FOO=1", PodName("a", "b", "c")),
    ],
)
def test_the_pod_is_who_the_arguments_name(arguments: str, pod: PodName | None) -> None:
    assert read_call(body({"CNI_ARGS": arguments})).pod == pod


@pytest.mark.parametrize("wish", ["nonsense", "10.6.0.7/99", "", "1" * 5000, "10.6.0.7,10.6.0.8"])
def test_an_unreadable_preferred_address_fails_nobody(wish: str) -> None:
    assert read_call(body({"CNI_ARGS": f"IP={wish}"})).preferred is None


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_has_its_commands(version: str) -> None:
    oldest = {"ADD": "0.3.0", "DEL": "0.3.0", "CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
    for command, first in oldest.items():
        request = body({"CNI_COMMAND": command}, {"cniVersion": version, **PREVIOUS})
        if VERSIONS.index(version) >= VERSIONS.index(first):
            assert read_call(request).version == version
        else:
            error = refusal(request)
            assert (error.code, error.version) == (Code.INCOMPATIBLE_VERSION, version)
            assert command in error.msg


@pytest.mark.parametrize(
    ("version", "echoed"),
    [("0.1.0", "0.1.0"), ("0.2.0", "0.2.0"), ("9.9.9", "9.9.9"), ("", "1.1.0"), ("1.0.0 ", "1.1.0"), (None, "1.1.0")],
)
def test_a_foreign_version_is_refused_and_echoed_where_it_is_one(version: str | None, echoed: str) -> None:
    error = refusal(body(configuration={"cniVersion": version}))
    assert (error.code, error.version) == (Code.INCOMPATIBLE_VERSION, echoed)
    assert error.msg.startswith("unsupported specified CNI version")


@pytest.mark.parametrize(
    ("command", "changes", "field", "value"),
    [
        ("ADD", {"cniVersion": 1}, "cniVersion", "1"),
        ("ADD", {"name": ["blue"]}, "name", '["blue"]'),
        ("ADD", {"name": None}, "name: is missing", '""'),
        ("ADD", {"name": "-blue"}, "name: is no network name", '"-blue"'),
        ("ADD", {"name": "b" * (NAME_MAX + 1)}, "name", "bbb"),
        ("ADD", {"ipam": "spiderpool"}, "ipam", '"spiderpool"'),
        ("ADD", {"ipam": {"type": 1}}, "ipam.type", "1"),
        ("ADD", {"ipam": {"ipam_unix_socket_path": 1}}, "ipam.ipam_unix_socket_path", "1"),
        ("ADD", {"ipam": {"default_ipv4_ippool": "a"}}, "ipam.default_ipv4_ippool", '"a"'),
        ("ADD", {"ipam": {"default_ipv6_ippool": ["a", 7]}}, "ipam.default_ipv6_ippool.1", "7"),
        ("ADD", {"ipam": {"clean_gateway": "yes"}}, "ipam.clean_gateway", '"yes"'),
        ("ADD", {"ipam": {"match_master_subnet": 1}}, "ipam.match_master_subnet", "1"),
        ("ADD", {"ipam": {"log_level": "loud"}}, "ipam.log_level", '"loud"'),
        ("ADD", {"ipam": {"log_file_path": []}}, "ipam.log_file_path", "[]"),
        ("ADD", {"ipam": {"log_file_max_size": True}}, "ipam.log_file_max_size", "true"),
        ("ADD", {"ipam": {"log_file_max_age": 1.5}}, "ipam.log_file_max_age", "1.5"),
        ("ADD", {"runtimeConfig": {"ips": "10.6.0.1"}}, "runtimeConfig.ips", '"10.6.0.1"'),
        ("ADD", {"runtimeConfig": {"ips": ["10.6.0"]}}, "runtimeConfig.ips.0", '"10.6.0"'),
        ("ADD", {"args": {"cni": {"ips": ["fd00::1/129"]}}}, "args.cni.ips.0", '"fd00::1/129"'),
        ("ADD", {"args": {"cni": {"ips": [5]}}}, "args.cni.ips.0", "5"),
        ("ADD", {"args": {"cni": {"ips": ["10.6.0.1", "10.6.0.2"]}}}, "args.cni.ips", "10.6.0.2"),
        ("CHECK", {}, "prevResult", "cniVersion"),
        ("CHECK", {"prevResult": {"ips": [{}]}}, "prevResult.ips.0.address", "{}"),
        ("CHECK", {"prevResult": {"ips": [{"address": "x/16"}]}}, "prevResult.ips.0.address", '"x/16"'),
        ("CHECK", {"prevResult": {"ips": [{"address": "10.6.0.5/16", "interface": "0"}]}}, "ips.0.interface", '"0"'),
        ("GC", {"cni.dev/valid-attachments": {}}, "cni.dev/valid-attachments", "{}"),
        ("GC", {"cni.dev/valid-attachments": [{"containerID": "c1"}]}, "attachments.0.ifname", "c1"),
        ("GC", {"cni.dev/valid-attachments": [{"containerID": 1, "ifname": "eth0"}]}, "0.containerID", "1"),
    ],
)
def test_a_bad_field_is_named_with_its_value(command: str, changes: dict[str, Any], field: str, value: str) -> None:
    error = refusal(body({"CNI_COMMAND": command}, changes))
    assert error.code == Code.INVALID_CONFIGURATION
    assert field in error.msg
    assert value in error.details


def test_what_is_null_or_unknown_is_as_if_it_were_not_there() -> None:
    ipam = dict.fromkeys(("type", "default_ipv4_ippool", "clean_gateway", "log_level", "log_file_max_size"))
    changes = {"ipam": {**ipam, "vlan": {}}, "runtimeConfig": {"mac": 1, "ips": None}, "args": None, "prevResult": 1}
    assert read_call(body(configuration=changes)) == read_call(body(configuration={"ipam": None}))


@pytest.mark.parametrize("size", [0, -1, 100, "100", "100MB"])
def test_a_log_size_may_be_a_number_or_a_text(size: int | str) -> None:
    assert read_call(body(configuration={"ipam": {"log_file_max_size": size}})).ipam.log_file_max_size == str(size)


@pytest.mark.parametrize("command", ["DEL", "STATUS"])
def test_a_broken_pool_list_does_not_keep_a_del_from_its_work(command: str) -> None:
    broken = {"ipam": {"default_ipv4_ippool": 5}, "prevResult": 5, "cni.dev/valid-attachments": 5}
    assert read_call(body({"CNI_COMMAND": command}, broken)).command == command


@pytest.mark.parametrize(
    ("listed", "attachments"),
    [
        ({}, ()),
        ({"cni.dev/valid-attachments": None}, ()),
        ({"cni.dev/valid-attachments": []}, ()),
        ({"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]}, (("c1", "eth0"),)),
    ],
)
def test_gc_lists_what_is_left_and_a_missing_list_is_an_empty_one(
    listed: dict[str, Any], attachments: tuple[tuple[str, str], ...]
) -> None:
    expected = tuple(Attachment(containerID=container, ifname=interface) for container, interface in attachments)
    assert read_call(body({"CNI_COMMAND": "GC"}, listed)).attachments == expected


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({}, []),
        ({"ips": [{"address": "10.6.0.5/16"}, {"address": "fd00::5/64"}]}, ["10.6.0.5", "fd00::5"]),
        ({"ips": [{"address": "10.6.0.5/16", "interface": 0}], "interfaces": [{"name": "eth0"}]}, ["10.6.0.5"]),
        ({"ips": [{"address": "10.6.0.5/16", "interface": 0}], "interfaces": [{"name": "veth0"}]}, []),
        ({"ips": [{"address": "10.6.0.5/16", "interface": 9}]}, ["10.6.0.5"]),
    ],
)
def test_a_check_expects_the_addresses_of_its_interface(result: dict[str, Any], expected: list[str]) -> None:
    call = read_call(body({"CNI_COMMAND": "CHECK"}, {"prevResult": result}))
    assert list(map(addresses.text, call.previous)) == expected


@pytest.mark.parametrize(
    "configuration",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"{", id="half"),
        pytest.param(b"[]", id="no-object"),
        pytest.param(b"{} {}", id="two"),
        pytest.param(b"\xef\xbb\xbf{}", id="byte-order-mark"),
        pytest.param("{}".encode("utf-16"), id="utf-16"),
        pytest.param(b'{"a": "\xff"}', id="not-utf-8"),
        pytest.param(b"[" * 200_000, id="deep-array"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, id="deep-object"),
        pytest.param(b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}", id="deeper-than-may-be"),
        pytest.param(b'{"a": ' + b"9" * 10_000 + b"}", id="huge-number"),
        pytest.param(b'{"a": NaN}', id="nan"),
        pytest.param(b'{"a": -Infinity}', id="infinity"),
        pytest.param(b'{"name": "blue", "name": "red"}', id="twice"),
        pytest.param(b'{"ipam": {"a": {"b": 1, "b": 2}}}', id="twice-inside"),
        pytest.param(rb'{"a": "\ud800"}', id="half-a-surrogate-pair"),
        pytest.param(rb'{"\udc00": 1}', id="half-a-pair-as-key"),
        pytest.param(rb'{"a": "\u0000"}', id="nul"),
    ],
)
def test_what_is_no_json_object_is_undecodable(configuration: bytes) -> None:
    error = refusal(raw(configuration))
    assert (error.code, error.version) == (Code.UNDECODABLE, "1.1.0")
    assert error.details


def test_a_body_without_variables_is_undecodable() -> None:
    assert refusal(b'{"cniVersion":"1.0.0"}').code == Code.UNDECODABLE
    assert refusal(b"").code == Code.UNDECODABLE
    assert refusal(b"\0{}").code == Code.BAD_ENVIRONMENT


def test_faults_are_found_in_a_fixed_order() -> None:
    variables = {"CNI_COMMAND": "?", "CNI_NETNS": "", "CNI_ARGS": "x", "CNI_IFNAME": "a b", "CNI_CONTAINERID": "!"}
    configuration: dict[str, Any] = {"cniVersion": "0.2.0", "name": "!", "ipam": 5}
    for code, words, mended in [
        (Code.BAD_ENVIRONMENT, "CNI_COMMAND", "CNI_COMMAND"),
        (Code.BAD_ENVIRONMENT, "[CNI_NETNS] missing", "CNI_NETNS"),
        (Code.BAD_ENVIRONMENT, "CNI_ARGS", "CNI_ARGS"),
        (Code.BAD_ENVIRONMENT, "CNI_IFNAME", "CNI_IFNAME"),
        (Code.BAD_ENVIRONMENT, "CNI_CONTAINERID", "CNI_CONTAINERID"),
        (Code.INCOMPATIBLE_VERSION, "0.2.0", "cniVersion"),
        (Code.INVALID_CONFIGURATION, "name:", "name"),
        (Code.INVALID_CONFIGURATION, "ipam:", "ipam"),
    ]:
        error = refusal(body(variables, configuration))
        assert (error.code, words in error.msg) == (code, True), error
        variables.pop(mended, None)
        configuration.pop(mended, None)
    assert read_call(body(variables, configuration)).command == Command.ADD


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["10.6.0.1/16", "fd00::1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
fields = {
    **dict.fromkeys(("type", "runtimeConfig", "args"), json_values),
    **dict.fromkeys(("prevResult", "cni.dev/valid-attachments"), json_values),
}
ipam_fields = dict.fromkeys(("type", "default_ipv4_ippool", "clean_gateway", "log_level"), json_values)
ipam = json_values | st.fixed_dictionaries({}, optional=ipam_fields)
configurations = st.fixed_dictionaries({}, optional={**fields, "ipam": ipam})


def read_or_refused(request: bytes) -> None:
    """Whatever is answered can be kept and sent: it has one text in JSON and in UTF-8."""
    try:
        call = read_call(request)
    except CniError as error:
        assert json.loads(json.dumps(error.document)) == error.document
        assert str(error).encode()
    else:
        assert repr(call).encode()
        assert "\0" not in call.network + call.container + call.interface + call.netns


@unhurried
@given(st.binary())
@example(b"\0")
@example(b"\0\0\0\0")
def test_any_bytes_are_a_call_or_a_cni_error(request: bytes) -> None:
    read_or_refused(request)


@unhurried
@given(st.sampled_from(list(Command)), configurations)
def test_any_configuration_is_a_call_or_a_cni_error(command: Command, configuration: dict[str, Any]) -> None:
    read_or_refused(body({"CNI_COMMAND": command}, configuration))


@unhurried
@given(st.sampled_from(sorted(VARIABLES)), st.text().map(lambda text: text.replace("\0", "")))
def test_any_variable_is_read_or_a_cni_error(variable: str, value: str) -> None:
    read_or_refused(body({variable: value.encode(errors="ignore").decode()}))


@unhurried
@given(st.integers(0), st.binary(min_size=1, max_size=3))
def test_a_request_with_some_bytes_changed_is_a_call_or_a_cni_error(where: int, changed: bytes) -> None:
    request = body(configuration=PREVIOUS)
    at = where % len(request)
    read_or_refused(request[:at] + changed + request[at + len(changed) :])


def test_the_numbers_of_errors_never_change() -> None:
    assert " ".join(f"{code.name}={code.value}" for code in Code) == (
        "INCOMPATIBLE_VERSION=1 UNSUPPORTED_FIELD=2 UNKNOWN_CONTAINER=3 BAD_ENVIRONMENT=4 IO=5 UNDECODABLE=6 "
        "INVALID_CONFIGURATION=7 TRY_AGAIN=11 NOT_AVAILABLE=50 LIMITED_CONNECTIVITY=51 NO_POOL=100 USED_OUT=101 "
        "ADDRESS_TAKEN=102 ADDRESS_OUTSIDE=103 WRONG_INPUT=104 DEAD_POD=105 GC_NEEDS_NODE=106 RESERVATION_GONE=107"
    )


def test_every_reason_has_a_number_and_what_passes_by_itself_says_try_again() -> None:
    assert set(CODE_OF_REASON) == set(Reason)
    again = {reason for reason, code in CODE_OF_REASON.items() if code == Code.TRY_AGAIN}
    assert again == {Reason.SUPERSEDED, Reason.BUSY, Reason.DOUBT, Reason.FENCED}


def test_a_refusal_tells_the_runtime_each_pool_and_why_it_was_passed_over() -> None:
    looked_at = (Candidate("a", "disabled IPPool a"), Candidate("b"))
    error = refused(Refusal(Reason.USED_OUT, "all IP addresses used out", looked_at), "0.4.0")
    assert error.document == {
        "cniVersion": "0.4.0",
        "code": 101,
        "msg": "spiderpool IP allocation error: all IP addresses used out",
        "details": "a: disabled IPPool a; b: tried",
    }
