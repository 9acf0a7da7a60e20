"""Whatever comes in: the real agent answers with a result or a CNI error, or nobody at all, and serves the next.

What one function makes of anything is asked beside it (test_call, test_manifests, test_selection, test_plugin); here
the whole process is asked, by sockets that lie and by folders that nobody meant.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from cni.call import VERSIONS
from cni.http import BODY_BYTES_MAX
from cni.manifests import contents
from cni.server import DESCRIPTORS_KEPT, REQUEST_SECONDS_MAX, Server
from ledger.verify import verify
from tests.agents import CONFIGURATION, RunningAgent, Sandbox
from tests.conftest import Database
from tests.test_agent import NODES, A, Agents, P, agents, cluster, connected, held, pod, received, until, write

__all__ = ["agents", "cluster"]

EXAMPLES = 150
unhurried = settings(
    max_examples=EXAMPLES,
    deadline=None,  # The machine may be busy.
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),  # One agent serves all examples: a failure shows what it was sent.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


on_one = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
"""Of what never gets as far as the database."""


def request_of(variables: dict[str, str], configuration: Any) -> bytes:
    """The body of a request as the plugin sends it."""
    said = {"CNI_COMMAND": "ADD", **A.environment, "SPIDERLEDGER_START": str(time.time_ns()), **variables}
    entries = b"".join(f"{name}={value}\0".encode(errors="surrogatepass") for name, value in said.items())
    document = configuration if isinstance(configuration, bytes) else json.dumps(configuration).encode()
    return entries + b"\0" + document


def http(body: bytes, path: str = "/v1/cni") -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)) + body


def sent(agent: RunningAgent, request: bytes) -> tuple[int, bytes]:
    """The agent's answer: its status and body."""
    answer = b""
    with connected(agent) as client:
        with suppress(ConnectionError):  # It may refuse before it has read all,
            client.sendall(request)
        with suppress(ConnectionError):  # and what it has not read is a reset behind its answer.
            while chunk := client.recv(1 << 16):
                answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    assert int(length.partition(b":")[2]) == len(body), (head, body)
    return int(head.split()[1]), body


def is_answer(agent: RunningAgent, request: bytes) -> None:
    """A result, a CNI error, or a refusal of what is no request; nothing that only a bug brings about."""
    status, body = sent(agent, request)
    if status == 422:
        document = json.loads(body)
        assert isinstance(document["code"], int)
        assert document["msg"]
        assert "internal error" not in document["msg"], (request, agent.log[-4000:])
    elif status == 200:
        assert body == b"" or json.loads(body)["ips"], body
    else:
        assert status in (400, 404), (status, body, request, agent.log[-4000:])


def serves(agent: RunningAgent) -> None:
    """The next one is served, by the thread that commits."""
    assert agent.add(A).addresses, agent.log
    assert "Traceback" not in agent.log, agent.log


@pytest.fixture
def serving(agents: Agents, cluster: Path) -> RunningAgent:
    """An agent on whose folder there is one good pod, and which has given it its address."""
    write(cluster, "pods.yaml", pod("web-0", "uid-0"))
    agent = agents()
    serves(agent)
    return agent


# The socket -----------------------------------------------------------------------------------------

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
ADDRESSES = ("10.9.0.10", "10.9.0.11/24", "::", "fd00::1/64", "0.0.0.0", "255.255.255.255", "10.9.0.0", "", "x")
some_ips = st.lists(st.sampled_from(ADDRESSES), max_size=3) | anything
names = st.sampled_from(("p", "*", "[", "p?", "\\", "nobody", "")) | st.text(max_size=9)
ipams = st.fixed_dictionaries(
    {},
    optional={
        "type": st.just("spiderpool") | anything,
        "default_ipv4_ippool": st.lists(names, max_size=3) | anything,
        "default_ipv6_ippool": st.lists(names, max_size=3) | anything,
        "clean_gateway": st.booleans() | anything,
        "match_master_subnet": st.booleans() | anything,
    },
)
configurations = st.fixed_dictionaries(
    {"cniVersion": st.sampled_from(VERSIONS) | anything, "name": st.just("macvlan-conf") | st.text(max_size=9)},
    optional={
        "ipam": ipams | anything,
        "runtimeConfig": st.fixed_dictionaries({"ips": some_ips}) | anything,
        "args": st.fixed_dictionaries({"cni": st.fixed_dictionaries({"ips": some_ips})}) | anything,
        "prevResult": st.fixed_dictionaries({"ips": st.lists(st.fixed_dictionaries({"address": anything}))}) | anything,
        "cni.dev/valid-attachments": st.lists(st.fixed_dictionaries({"containerID": anything, "ifname": anything})),
    },
)
texts = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co"]), max_size=40)
no_nul = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
variables = st.fixed_dictionaries(
    {"CNI_COMMAND": st.sampled_from(("ADD", "ADD", "DEL", "CHECK", "GC", "STATUS")) | no_nul},
    optional={
        "CNI_CONTAINERID": st.sampled_from(("a1", "other", "x" * 253)) | no_nul,
        "CNI_IFNAME": st.sampled_from(("eth0", "net1", "é" * 7)) | no_nul,
        "CNI_NETNS": no_nul,
        "CNI_ARGS": st.sampled_from(("", "IgnoreUnknown=1", "IP=10.9.0.12", "K8S_POD_NAME=web-0")) | no_nul,
        "SPIDERLEDGER_START": st.integers(0, 1 << 63).map(str) | no_nul,
    },
)


def test_any_call_of_a_runtime_ends_with_a_result_or_a_cni_error(serving: RunningAgent, database: Database) -> None:
    @unhurried
    @given(variables, configurations)
    def ask(said: dict[str, str], configuration: dict[str, Any]) -> None:
        is_answer(serving, http(request_of(said, configuration)))

    ask()
    serves(serving)
    assert not verify(database.engine(writes=False)).faults


@on_one
def test_a_valid_request_with_bytes_changed_ends_the_same_way(serving: RunningAgent) -> None:
    whole = http(request_of({}, CONFIGURATION))

    @unhurried
    @given(
        st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 3), st.binary(max_size=3)), min_size=1,
                 max_size=3)
    )  # fmt: skip
    def ask(changes: Sequence[tuple[int, int, bytes]]) -> None:
        changed = bytearray(whole)
        for at, removed, put in changes:
            changed[at : at + removed] = put
        with connected(serving) as client:
            client.sendall(changed)
            client.shutdown(socket.SHUT_WR)  # What is not whole now never will be: a client that has hung up.
            answer = received(client)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
        assert b"internal error" not in answer, (changed, answer)

    ask()
    serves(serving)


@on_one
def test_a_request_cut_at_any_byte_has_no_effect(agents: Agents, cluster: Path, database: Database) -> None:
    agent = agents("--node", "node-1")
    whole = http(request_of(Sandbox("cut").environment | {"CNI_ARGS": ""}, CONFIGURATION))
    for length in range(len(whole)):
        with connected(agent) as client:
            client.sendall(whole[:length])
    with ExitStack() as open_ones:  # And those that never say that they are gone.
        for length in range(0, len(whole), 7):
            client = open_ones.enter_context(connected(agent))
            client.sendall(whole[:length])
        assert agent.add(Sandbox("next")).code == 0
        assert list(held(database).values()) == ["next"]


@on_one
def test_slow_clients_are_shown_out_and_take_no_descriptor_that_database_and_spool_need(
    agents: Agents, cluster: Path, database: Database
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS_KEPT + 50, hard))  # The agent inherits it.
    try:
        agent = agents("--node", "node-1")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    whole = http(request_of(Sandbox("slow").environment | {"CNI_ARGS": ""}, CONFIGURATION))
    with ExitStack() as slow:
        clients = {slow.enter_context(connected(agent)) for _ in range(60)}  # The last ten wait to be let in.
        add = agent.begin("ADD", Sandbox("c1").environment)
        ends = time.monotonic() + 3 * REQUEST_SECONDS_MAX
        for position in range(len(whole) - 1):
            for client in set(clients):
                try:
                    client.sendall(whole[position : position + 1])
                except OSError:
                    clients.discard(client)
            if len(clients) <= 10 or time.monotonic() > ends:
                break
            time.sleep(REQUEST_SECONDS_MAX / 50)
        assert len(clients) <= 10, "those of the first round are gone"
        assert agent.finish(add).code == 0
        assert agent.delete(Sandbox("c1")).code == 0
    assert agent.add(Sandbox("c2")).code == 0
    assert "Traceback" not in agent.log
    assert list(held(database).values()) == ["c2"]


class CountingServer(Server):
    """How often it looked, and what it was asked."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, lambda connection, request: self.asked.append(request.path))
        self.asked: list[str] = []
        self.looks = 0
        self._select = self._selector.select
        self._selector.select = self._counted  # type: ignore[method-assign]

    def _counted(self, timeout: float | None = None) -> Any:
        self.looks += 1
        return self._select(timeout)

    def looks_while_somebody_knocks(self) -> int:
        before = self.looks
        time.sleep(0.2)
        return self.looks - before


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[CountingServer]:
    server = CountingServer(tmp_path / "socket")
    yield server
    server.close()


LOOKS_MAX = 3
"""Not once for each look that the knocking would allow; a sweep may fall into the time."""


def test_a_full_server_is_not_woken_by_who_knocks_and_lets_him_in_once_somebody_leaves(
    tmp_path: Path, counting: CountingServer
) -> None:
    counting._connections_max = 2
    counting.start()
    with ExitStack() as clients:
        first, second, third = (clients.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(3))
        for client in (first, second, third):
            client.connect(str(tmp_path / "socket"))
        third.sendall(b"GET /third HTTP/1.1\r\n\r\n")
        until(lambda: len(counting._connections) == 2)
        assert counting.looks_while_somebody_knocks() <= LOOKS_MAX
        assert counting.asked == []
        first.close()
        until(lambda: counting.asked == ["/third"])


def test_a_server_without_descriptors_waits_a_while_and_lets_in_who_has_knocked(
    tmp_path: Path, counting: CountingServer
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as client:
        counting.start()
        lowest_free = os.dup(client.fileno())
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
        try:
            client.connect(str(tmp_path / "socket"))
            client.sendall(b"GET /late HTTP/1.1\r\n\r\n")
            until(lambda: counting._exhausted)
            assert counting.looks_while_somebody_knocks() <= LOOKS_MAX
            assert counting.asked == []
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        until(lambda: counting.asked == ["/late"])


@on_one
@pytest.mark.parametrize("garbage", [
    pytest.param(b"\xff" * (1 << 20), id="bytes"),
    pytest.param(b"\r\n" * (1 << 19), id="lines"),
    pytest.param(b"POST /v1/cni HTTP/1.1\r\n" + b"X: y\r\n" * (1 << 17), id="fields"),
    pytest.param(http(b"\0" * (1 << 20)), id="zeros"),
    pytest.param(http(b"CNI_COMMAND=ADD\0" * (1 << 16)), id="variables"),
    pytest.param(http(b"CNI_COMMAND=ADD\0\0" + b"[" * (1 << 20)), id="brackets"),
    pytest.param(http(b"CNI_COMMAND=ADD\0\0" + b'{"a":' * (1 << 17)), id="objects"),
    pytest.param(http(b"[" * (1 << 20), "/v1/operator"), id="operator-brackets"),
    pytest.param(http(b'{"a":' * (1 << 17), "/v1/operator"), id="operator-objects"),
    pytest.param(http(b"9" * (1 << 20), "/v1/operator"), id="operator-digits"),
])  # fmt: skip
def test_a_megabyte_of_garbage_is_refused(serving: RunningAgent, garbage: bytes) -> None:
    assert len(garbage) < BODY_BYTES_MAX
    assert sent(serving, garbage)[0] in (400, 422)
    serves(serving)


orders = st.fixed_dictionaries({}, optional={
    "allocate": st.fixed_dictionaries({}, optional={
        "name": st.sampled_from(("by-hand", "x" * 100_000)) | st.text(), "namespace": st.just("default") | st.text(),
        "pool": st.just("p") | st.text(), "address": st.sampled_from(ADDRESSES) | st.none() | st.text(),
        "operator": st.just("me") | st.text(), "reason": st.just("why") | st.text(),
    }),
    "release": st.fixed_dictionaries({}, optional={
        "address": st.sampled_from(ADDRESSES), "operator": st.text(), "reason": st.text(),
    }),
})  # fmt: skip
WORDS = {"name": "n", "pool": "p", "operator": "me", "reason": "why"}


def test_any_order_of_an_operator_is_carried_out_or_refused(serving: RunningAgent, database: Database) -> None:
    @unhurried
    @given(orders | anything)
    @example({"allocate": {**WORDS, "reason": "a\0b"}})
    @example({"allocate": {**WORDS, "operator": "\0"}})
    @example({"allocate": {**WORDS, "name": "x" * 100_000}})
    @example({"allocate": {**WORDS, "reason": "half a pair: \ud800"}})
    @example({"release": {"address": "10.9.0.10", "operator": "\0", "reason": "\0"}})
    def ask(order: Any) -> None:
        status, body = sent(serving, http(json.dumps(order).encode(), "/v1/operator"))
        assert status in (200, 422), (status, body, order, serving.log[-3000:])

    ask()
    assert "Traceback" not in serving.log, serving.log[-4000:]
    assert not verify(database.engine(writes=False)).faults


# The folder -----------------------------------------------------------------------------------------

keys = st.sampled_from([
    "ipam.spidernet.io/ippool", "ipam.spidernet.io/ippools", "ipam.spidernet.io/routes", "ipam.spiderledger.io/ip",
    "ipam.spidernet.io/subnet", "ipam.spidernet.io/subnets", "k8s.v1.cni.cncf.io/networks",
    "v1.multus-cni.io/default-network",
])  # fmt: skip
pool_lists = st.fixed_dictionaries({}, optional={
    "ipv4": st.lists(names, max_size=3) | anything, "ipv6": st.lists(names, max_size=3) | anything,
    "interface": st.sampled_from(("eth0", "net1", "net1", "")) | anything, "cleangateway": anything,
})  # fmt: skip
routes = st.lists(st.fixed_dictionaries({"dst": st.sampled_from(("10.0.0.0/8", "::/0", "x")), "gw": some_ips}))
values = (pool_lists | st.lists(pool_lists, max_size=3) | routes | some_ips | anything).map(json.dumps)
annotations = st.dictionaries(keys, values | texts, min_size=1, max_size=3)


def test_any_annotation_of_a_pod_ends_with_a_result_or_a_cni_error(
    serving: RunningAgent, cluster: Path, database: Database
) -> None:
    """Many pods with one file: the folder is looked at once, and each is asked for."""
    found: list[dict[str, str]] = []

    @settings(unhurried, max_examples=300)
    @given(annotations)
    def collect(said: dict[str, str]) -> None:
        found.append(said)

    collect()
    for number, said in enumerate(found):  # A file with one unreadable object would be read by none.
        write(cluster, f"hostile-{number}.yaml", _hostile_pod(number, said))
    until(lambda: serving.add(Sandbox("h", pod="hostile-0", uid="h-0")).code != 11)
    for number in range(len(found)):
        box = Sandbox(f"h{number}", pod=f"hostile-{number}", uid=f"h-{number}")
        is_answer(serving, http(request_of(box.environment, CONFIGURATION)))
        is_answer(serving, http(request_of({**box.environment, "CNI_COMMAND": "DEL"}, CONFIGURATION)))
    serves(serving)
    assert not verify(database.engine(writes=False)).faults


def _hostile_pod(number: int, said: dict[str, str]) -> str:
    metadata = {"name": f"hostile-{number}", "namespace": "default", "uid": f"h-{number}", "annotations": said}
    document = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"nodeName": "node-1"}}
    return "---\n" + json.dumps(document) + "\n"


ranges = st.lists(
    st.sampled_from((
        "10.9.1.9", "10.9.1.1-10.9.1.30", "10.9.1.9-10.9.1.2", "fd00::1-fd00::ffff:ffff:ffff", "::-ffff::",
        "10.0.0.0/0", "10.9.1.3-10.9.1.3", "0.0.0.0-255.255.255.255", "010.9.1.1", "fd00::1%eth0", "x", "",
    )) | texts,
    max_size=3,
)  # fmt: skip
selectors = st.fixed_dictionaries({}, optional={
    "matchLabels": st.dictionaries(texts, texts, max_size=2),
    "matchExpressions": st.lists(st.fixed_dictionaries({
        "key": texts, "operator": st.sampled_from(("In", "NotIn", "Exists", "DoesNotExist", "x")),
        "values": st.lists(texts, max_size=2),
    }), max_size=2),
})  # fmt: skip
specs = st.fixed_dictionaries(
    {"subnet": st.sampled_from(("10.9.1.0/24", "fd00::/64", "0.0.0.0/0", "::/0", "10.9.1.1/32", "x")) | texts},
    optional={
        "ips": ranges, "excludeIPs": ranges, "gateway": st.sampled_from(ADDRESSES) | texts,
        "vlan": st.integers(), "ipVersion": st.sampled_from((4, 6)) | st.integers(),
        "routes": st.lists(st.fixed_dictionaries(dict.fromkeys(("dst", "gw"), st.sampled_from(ADDRESSES)))),
        "podAffinity": selectors, "nodeAffinity": selectors, "namespaceAffinity": selectors,
        "nodeName": st.lists(texts, max_size=2), "multusName": st.lists(names, max_size=2),
        "disable": st.booleans(), "default": st.booleans(),
    },
)  # fmt: skip
cooling = st.dictionaries(
    st.just("ipam.spiderledger.io/cooling"), texts | st.sampled_from(("1s", "-1s", "9" * 99 + "h"))
)
metas = st.fixed_dictionaries({}, optional={
    "labels": st.dictionaries(texts, texts, max_size=2), "annotations": cooling,
    "deletionTimestamp": st.just("2026-01-01T00:00:00Z"),
})  # fmt: skip
kinds = st.sampled_from(("SpiderIPPool", "SpiderIPPool", "SpiderReservedIP"))
READABLE_MIN = 50


def test_any_pool_in_the_folder_is_taken_or_refused_and_the_good_ones_stay(
    serving: RunningAgent, cluster: Path, database: Database
) -> None:
    """All at once: one that breaks a look at the folder would hide all those that come after it."""
    found: list[str] = []

    @settings(unhurried, max_examples=300)
    @given(kinds, metas, specs)
    def collect(kind: str, meta: dict[str, Any], spec: dict[str, Any]) -> None:
        metadata = {**meta, "name": f"a-{len(found)}"}
        version = "spiderpool.spidernet.io/v2beta1"
        text = json.dumps({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec})
        if not contents("a.yaml", text).problems:  # Before a file has been read at all, no pool of the folder changes.
            found.append(f"---\n{text}\n")

    collect()
    assert len(found) >= READABLE_MIN
    later = P.replace("name: p,", "name: later,").replace("10.9.0", "10.77.0")
    write(cluster, "pods.yaml", pod("web-0", "uid-0") + pod("web-1", "uid-1"))
    write(cluster, "z-later.yaml", "".join(found) + "---" + later)
    box = Sandbox("b1", pod="web-1", uid="uid-1")
    of_later = {"type": "spiderpool", "default_ipv4_ippool": ["later"]}
    until(lambda: serving.add(box, ipam=of_later).code == 0)
    serves(serving)
    assert not verify(database.engine(writes=False)).faults


yamlish = st.lists(
    st.sampled_from(("---", "...", "a: &a [*a]", "<<: *a", "- x", "\t", "kind: Pod", "? [a]", "!!python/object:os.x y",
                     "apiVersion: v1", "metadata: {name: x}", "\x85", "'", "{", "%YAML 9.9")) | texts,
    max_size=8,
).map("\n".join)  # fmt: skip


@on_one
def test_any_text_in_the_folder_harms_nobody(serving: RunningAgent, cluster: Path) -> None:
    found: list[bytes] = []

    @settings(unhurried, max_examples=200)
    @given(yamlish.map(lambda text: text.encode(errors="replace")) | st.binary())
    def collect(content: bytes) -> None:
        found.append(content)

    collect()
    for number, content in enumerate(found):
        (cluster / f"hostile-{number}.yaml").write_bytes(content)
    write(cluster, "more.yaml", NODES.replace("node-", "other-").replace("default", "more") + pod("more", "uid-more"))
    until(lambda: serving.add(Sandbox("m1", pod="more", uid="uid-more")).code == 0)
    serves(serving)
