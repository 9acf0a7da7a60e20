"""The demo as somebody starts it: what it says, that nothing of it stays, and its parts on real plugins and folders."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from cni.demo import netlab, scenario
from cni.demo.audit import allocated_at, counted, counts_shown
from cni.demo.netlab import Zone
from cni.demo.place import LOCK, NAME, SCENARIO, taken
from cni.demo.processes import DemoError, Processes, StoppedError
from cni.demo.runner import Attachment, Chain, PluginError, Runner, pod_arguments, read_chain
from cni.manifests import ObjectKey
from ledger.tables import pool
from tests.agents import COMMAND, ROOT
from tests.conftest import Database

DEMO_SECONDS_MAX = 120  # It takes some seconds; this is for a machine that has much else to do.
SIX, SEVEN = ObjectKey("Pod", "default", "test-app-j9ftl"), ObjectKey("Pod", "default", "test-app-nkq5h")
PODS = """
NAME             READY   STATUS    IP            NODE
test-app-j9ftl   1/1     Running   10.6.168.60   controller-node-1
test-app-nkq5h   1/1     Running   10.7.168.60   worker-node-1

"""
POOLS = """
$ spiderledger get pools
NAME            VERSION   SUBNET        ALLOCATED-IP-COUNT   TOTAL-IP-COUNT   DEFAULT   DISABLE
test-ippool-6   4         10.6.0.0/16   %s                    10               false     false
test-ippool-7   4         10.7.0.0/16   1                    10               false     false
"""
LINES = (  # Each must be said once, in this order.
    r"cluster: 2 nodes, 2 pools, 2 pods in \.demo/cluster; ledger: SQLite in \.demo/state",
    r"containers: processes [0-9]+, [0-9]+ wait in their place",
    r"agent: process [0-9]+ answers STATUS after .* s",
    r"ADD test-app-j9ftl on controller-node-1: eth0 has 10\.6\.168\.60/16, default route via 10\.6\.0\.1 \(.*\)",
    r"ADD test-app-nkq5h on worker-node-1: eth0 has 10\.7\.168\.60/16, default route via 10\.7\.0\.1 \(.*\)",
    r"\$ spiderledger get allocations",
    r"default/test-app-nkq5h +eth0 +10\.7\.168\.60/16 +test-ippool-7 +worker-node-1 .*",
    r"Pod default/test-app-j9ftl was taken out of \.demo/cluster/cluster\.yaml; DEL on controller-node-1 succeeded .*",
    r"counted anew from the [0-9]+ events of the log: test-ippool-6 0, test-ippool-7 1",
    r"\$ spiderledger who-held 10\.6\.168\.60 --at 2.*Z",
    r"10\.6\.168\.60 +held +default/test-app-j9ftl .*",
    r"\$ spiderledger who-held 10\.6\.168\.60",
    r"10\.6\.168\.60 +(cooling|free) .*",
    r"\$ spiderledger history 10\.6\.168\.60",
    r"\$ spiderledger verify",
    r"no faults: [0-9]+ events, 2 addresses, .*",
    r"done in .* s; \.demo is removed",
)
NETWORK = (
    r"network: a router with 10\.6\.0\.1/16 to ens192 of controller-node-1, 10\.7\.0\.1/16 to ens192 of worker-node-1",
    r"ping from test-app-j9ftl to 10\.7\.168\.60: 2 of 2 answered, routers on the way: 1",
    r"ping from test-app-nkq5h to 10\.6\.168\.60: 2 of 2 answered, routers on the way: 1",
)
WITHDRAWN = r"PostgreSQL: the demo's pods and pools are withdrawn, their events stay"
TOOLS = ("ip", "unshare", "nsenter", "sh", "cat")
needs_network = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, (*TOOLS, "ping"))) or not Path("/usr/lib/cni/macvlan").exists(),
    reason="needs root, iproute2, iputils-ping and containernetworking-plugins",
)


Begin = Callable[..., subprocess.Popen[str]]

# The whole demo ----------------------------------------------------------------------------------


@pytest.fixture
def begin(plugin: Path, tmp_path: Path) -> Iterator[Begin]:
    """Start the demo in a folder; one that still runs when the test is over is killed."""
    running: list[subprocess.Popen[str]] = []

    def start(folder: Path = tmp_path, **more: str) -> subprocess.Popen[str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        variables = {**kept, "PYTHONPATH": str(ROOT), "CNI_PATH": str(plugin.parent), **more}
        pipe = subprocess.PIPE
        running.append(
            subprocess.Popen([*COMMAND, "demo"], env=variables, cwd=folder, stdout=pipe, stderr=pipe, text=True)
        )
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    """What it said to its end, which must be this one."""
    out, err = process.communicate(timeout=DEMO_SECONDS_MAX)
    assert process.returncode == code, out + err
    return out, err


def read_until(process: subprocess.Popen[str], beginning: str) -> str:
    """All that it says, to the first line that begins so."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith(beginning):
            return "".join(said)
    raise AssertionError(f"it never said {beginning!r}: {said} {process.stderr and process.stderr.read()}")


def stays(folder: Path) -> list[str]:
    """What of a demo in this folder is still there: files, and processes that work there or name it."""
    files = [str(path) for path in folder.iterdir()]
    processes = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if entry.name.isdecimal() and f"{folder}/" in f"{command} {(entry / 'cwd').readlink()}/":
                processes.append(f"{entry.name} {command}")
    return files + processes


def networks() -> str:
    """The network namespaces that have a name; "" where there is no `ip` to tell."""
    if shutil.which("ip") is None:
        return ""
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


def assert_in_order(said: str, *patterns: str) -> None:
    lines = said.splitlines()
    found = [[number for number, line in enumerate(lines) if re.fullmatch(pattern, line)] for pattern in patterns]
    assert [len(each) for each in found] == [1] * len(patterns), (list(zip(patterns, found, strict=True)), said)
    assert found == sorted(found), said


def pool_states(database: Database) -> set[str]:
    """How the ledger's pools stand."""
    with database.engine(writes=False).connect() as connection:
        return set(connection.execute(select(pool.c.state)).scalars())


def tools(folder: Path, *names: str) -> str:
    """A PATH with these programs alone."""
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(shutil.which(name) or "/nowhere")
    return str(folder)


def test_it_shows_the_scenario_from_add_to_audit_and_nothing_of_it_stays(begin: Begin, tmp_path: Path) -> None:
    before = networks()
    said, complaints = ended(begin())
    assert complaints == ""
    assert_in_order(said, *LINES)
    assert all(part in said for part in (PODS, POOLS % 1, POOLS % 0))
    assert (stays(tmp_path), networks()) == ([], before)


@needs_network
def test_as_root_the_pods_have_interfaces_and_reach_each_other_through_the_router(begin: Begin, tmp_path: Path) -> None:
    before, process = networks(), begin()
    said = read_until(process, "ping from test-app-nkq5h")
    assert_in_order(said, *NETWORK)
    assert "left out" not in said
    process.terminate()
    ended(process, 128 + signal.SIGTERM)
    assert (stays(tmp_path), networks()) == ([], before)


@needs_network
def test_without_ping_one_line_says_what_to_install(begin: Begin, tmp_path: Path) -> None:
    (folder := tmp_path / "work").mkdir()
    process = begin(folder, PATH=tools(tmp_path / "bin", *TOOLS))
    said = read_until(process, "$ spiderledger get pools")
    assert_in_order(said, NETWORK[0], "left out: ping between the pods: install iputils-ping")
    assert "answered" not in said
    process.terminate()
    ended(process, 128 + signal.SIGTERM)


def test_without_interfaces_and_in_a_folder_too_deep_for_a_socket_the_rest_is_shown(
    begin: Begin, tmp_path: Path
) -> None:
    folder = tmp_path.joinpath(*["a-folder-with-a-long-name"] * 5)
    folder.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener, pytest.raises(OSError, match="too long"):
        listener.bind(str(folder / NAME / "agent.sock"))
    said, _ = ended(begin(folder, PATH=tools(tmp_path / "bin", "cat")))
    missing = "there is no program ip: install iproute2" if os.geteuid() == 0 else "network namespaces need root.*"
    assert_in_order(said, LINES[0], f"left out: interfaces and ping, .*: {missing}", *LINES[1:])
    assert said.count("left out") == 1
    assert PODS in said
    assert stays(folder) == []


@pytest.mark.parametrize(("moment", "number"), [
    ("cluster:", signal.SIGINT),
    ("agent:", signal.SIGTERM),
    ("ADD test-app-nkq5h", signal.SIGINT),
    ("Pod default/test-app-j9ftl", signal.SIGTERM),
])  # fmt: skip
def test_wherever_it_is_stopped_nothing_stays(
    begin: Begin, tmp_path: Path, moment: str, number: signal.Signals
) -> None:
    before, process = networks(), begin()
    read_until(process, moment)
    process.send_signal(number)
    assert ended(process, 128 + number)[1] == f"spiderledger: the demo was stopped by {number.name}\n"
    assert (stays(tmp_path), networks()) == ([], before)


def test_what_a_killed_one_left_goes_with_the_next_one(begin: Begin, tmp_path: Path) -> None:
    killed = begin()
    read_until(killed, "ADD test-app-j9ftl")
    killed.kill()
    killed.wait()
    assert stays(tmp_path)
    following = begin()
    read_until(following, "ADD test-app-nkq5h")
    following.terminate()
    ended(following, 128 + signal.SIGTERM)
    assert stays(tmp_path) == []


def test_a_failure_is_told_in_one_line_and_nothing_stays(begin: Begin, tmp_path: Path) -> None:
    process = begin()
    line = read_until(process, "agent:").splitlines()[-1]
    os.kill(int(line.split()[2]), signal.SIGKILL)
    _, complaints = ended(process, 1)
    assert complaints.startswith("spiderledger: the demo failed: ")
    assert complaints.count("\n") == 1
    assert stays(tmp_path) == []


def test_a_second_one_in_the_same_folder_is_refused_and_does_not_disturb_the_first(begin: Begin) -> None:
    first = begin()
    read_until(first, "cluster:")
    assert re.search(rf"another demo is using .*/{NAME} \(process {first.pid},", ended(begin(), 1)[1])
    read_until(first, "ADD test-app-nkq5h")
    first.terminate()
    ended(first, 128 + signal.SIGTERM)


def test_on_a_server_it_withdraws_its_pools_and_leaves_their_events(
    begin: Begin, tmp_path: Path, postgresql: Database
) -> None:
    said, _ = ended(begin(SPIDERLEDGER_DATABASE=postgresql.url))
    first, *others = LINES
    assert_in_order(said, first.replace(r"SQLite in \.demo/state", "PostgreSQL"), *others[:-2], WITHDRAWN, LINES[-1])
    assert pool_states(postgresql) == {"retired"}
    again = begin(SPIDERLEDGER_DATABASE=postgresql.url)
    read_until(again, "ADD test-app-nkq5h")
    again.terminate()
    assert re.search(WITHDRAWN, ended(again, 128 + signal.SIGTERM)[0])
    assert pool_states(postgresql) == {"retired"}
    assert stays(tmp_path) == []


def test_on_a_server_it_says_so_when_its_pools_must_stay(begin: Begin, tmp_path: Path, postgresql: Database) -> None:
    process = begin(SPIDERLEDGER_DATABASE=postgresql.url)
    line = read_until(process, "agent:").splitlines()[-1]
    os.kill(int(line.split()[2]), signal.SIGKILL)
    said, _ = ended(process, 1)
    assert "could not be withdrawn from PostgreSQL: the agent has ended with -9" in said
    assert pool_states(postgresql) == {"open"}
    assert stays(tmp_path) == []


def test_a_server_with_somebodys_pools_is_left_alone(begin: Begin, tmp_path: Path, postgresql: Database) -> None:
    """An agent on the demo's folder would close them."""
    from tests.acts import a_pool, define
    from tests.test_cli import writer

    with writer(postgresql) as ledger:
        define(ledger, a_pool("production", "10.1.0.1-10.1.0.9"))
    _, complaints = ended(begin(SPIDERLEDGER_DATABASE=postgresql.url), 1)
    assert "has pools (production), which the demo would close: give it an empty database" in complaints
    assert pool_states(postgresql) == {"open"}
    assert stays(tmp_path) == []


# The folder --------------------------------------------------------------------------------------


def a_file(path: Path) -> None:
    path.write_text("mine")


def a_folder_of_mine(path: Path) -> None:
    path.mkdir()
    (path / "thesis").write_text("mine")


def a_link(path: Path) -> None:
    (path.parent / "elsewhere").mkdir()
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("make", [a_file, a_folder_of_mine, a_link])
def test_what_the_demo_has_not_made_it_does_not_touch(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / NAME
    make(path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DemoError, match="move it away"), taken(tmp_path):
        pass
    assert sorted(tmp_path.rglob("*")) == before


def a_folder_without_lock(path: Path) -> None:
    path.mkdir()


def a_folder_with_a_dead_owner(path: Path) -> None:
    path.mkdir()
    (path / LOCK).write_text("999999999\n")
    (path / "state").mkdir()
    (path / "state" / "ledger.db").write_text("old")


@pytest.mark.parametrize("make", [a_folder_without_lock, a_folder_with_a_dead_owner])
def test_what_a_demo_has_left_over_is_replaced(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / NAME)
    with taken(tmp_path) as place:
        assert sorted(path.name for path in place.path.iterdir()) == ["cluster", LOCK]
        assert (place.cluster / "cluster.yaml").read_bytes() == (SCENARIO / "cluster.yaml").read_bytes()
    assert not (tmp_path / NAME).exists()


def test_a_folder_in_use_is_refused_by_its_owners_number(tmp_path: Path) -> None:
    with taken(tmp_path) as place:
        with pytest.raises(DemoError, match=rf"another demo is using .* \(process {os.getpid()},"), taken(tmp_path):
            pass
        assert place.cluster.exists()


# The scenario's files ----------------------------------------------------------------------------


def test_the_zones_are_those_of_the_pools_that_a_node_may_use() -> None:
    found = scenario.zones(scenario.read(SCENARIO))
    assert found == (Zone("controller-node-1", "10.6.0.1/16"), Zone("worker-node-1", "10.7.0.1/16"))
    assert [scenario.is_in(zone, "10.7.168.60/16") for zone in found] == [False, True]


A, B, C = (f"apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default}}\n" for name in "abc")


@pytest.mark.parametrize(("text", "left"), [
    (f"{A}---\n{B}---\n{C}", f"{A}---\n{C}"),
    (f"{B}---\n{A}", f"---\n{A}"),
    (f"{A}---\n{B}", A),
    (f"# first\n{A}---\n# b is here\n{B}", f"# first\n{A}"),
    (A, A),
    (B.replace("default", "other"), B.replace("default", "other")),
    (B, ""),
])  # fmt: skip
def test_one_pods_document_goes_and_every_other_byte_stays(text: str, left: str) -> None:
    assert scenario.without(text, ObjectKey("Pod", "default", "b")) == left


def test_a_file_whose_last_object_goes_is_removed_and_the_others_are_untouched(tmp_path: Path) -> None:
    path = Path(shutil.copytree(SCENARIO, tmp_path / "cluster"))
    others = {each.name: each.read_bytes() for each in path.glob("*.yaml") if each.name != "ippools.yaml"}
    pools = [ObjectKey("SpiderIPPool", "", name) for name in ("test-ippool-6", "test-ippool-7")]
    assert scenario.remove(scenario.read(path), *pools) == [path / "ippools.yaml"]
    assert {each.name: each.read_bytes() for each in path.glob("*.yaml")} == others


# Counting ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("events", "held"), [
    ("", {}),
    ("allocated p", {"p": 1}),
    ("allocated p, allocated q, allocated p", {"p": 2, "q": 1}),
    ("released p, allocated p", {"p": 0}),
    ("allocated p, rebound p, unbound p", {"p": 1}),
])  # fmt: skip
def test_counts_follow_from_the_events_alone(events: str, held: dict[str, int]) -> None:
    said = [each.split() for each in events.split(", ") if each]
    assert counted([{"type": f"address.{kind}", "pools": [name]} for kind, name in said]) == held


def test_a_refusal_that_names_pools_counts_nothing() -> None:
    assert counted([{"type": "allocation.refused", "pools": ["p", "q"]}]) == {"p": 0, "q": 0}


def test_the_counts_shown_are_read_from_the_table_that_people_read() -> None:
    table = (POOLS % 7).partition("spiderledger get pools\n")[2]
    assert counts_shown(table) == {"test-ippool-6": 7, "test-ippool-7": 1}
    assert counts_shown("") == {}


def test_the_last_allocation_of_an_address_tells_since_when_it_is_held() -> None:
    said = [("allocated", "10.0.0.1", "T1"), ("released", "10.0.0.1", "T4"), ("allocated", "10.0.0.1", "T3")]
    events = [{"type": f"address.{kind}", "ip": ip, "happened_at": at} for kind, ip, at in said]
    assert allocated_at(events, "10.0.0.1") == "T3"
    with pytest.raises(DemoError, match=r"does not show that 10\.0\.0\.2 was allocated"):
        allocated_at(events, "10.0.0.2")


# The runner --------------------------------------------------------------------------------------

CONFLIST = {
    "cniVersion": "1.0.0",
    "name": "blue",
    "plugins": [
        {"type": "first", "master": "ens192", "ipam": {"type": "addresses", "ranges": []}},
        {"type": "second", "sysctl": {}},
    ],
}
CHAIN = read_chain(json.dumps(CONFLIST))
POD = pod_arguments("default", "web", "u1", "c1")
ATTACHMENT = Attachment("c1", "/proc/1/ns/net", "eth0", POD)


class Plugins:
    """Small programs that write down how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"

    def make(self, name: str, *, says: str | None = None, status: int = 0, first: str = "") -> Plugins:
        """A plugin with this name, which prints this (its own name as a result) and ends so."""
        said = json.dumps({"cniVersion": "1.0.0", "by": name}) if says is None else says
        path = self.folder / name
        path.write_text(
            f"#!/bin/sh\n{first}\n"
            f"printf '%s\\n' {name} >>{self.log}\n"
            f"env | grep -e ^CNI_ -e ^PLACE >{path}.$CNI_COMMAND.env\n"
            f"cat >{path}.$CNI_COMMAND.json\n"
            f"printf '%s' '{said}'\nexit {status}\n"
        )
        path.chmod(0o755)
        return self

    @property
    def runner(self) -> Runner:
        """A runner that finds them."""
        return Runner(Processes(), [self.folder / "empty", self.folder], self.folder, {"PLACE": "here"})

    @property
    def called(self) -> list[str]:
        """In the order of the calls."""
        return self.log.read_text().split() if self.log.exists() else []

    def given(self, name: str, command: str) -> dict[str, Any]:
        """The configuration that it got."""
        found: dict[str, Any] = json.loads((self.folder / f"{name}.{command}.json").read_text())
        return found

    def variables(self, name: str, command: str) -> Mapping[str, str]:
        """The variables that it got."""
        lines = (self.folder / f"{name}.{command}.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def plugins(tmp_path: Path) -> Plugins:
    """A folder for plugins, with the two of the chain."""
    return Plugins(tmp_path).make("first").make("second")


def test_an_add_goes_through_the_chain_and_hands_each_result_on(plugins: Plugins) -> None:
    assert plugins.runner.add(CHAIN, ATTACHMENT) == {"cniVersion": "1.0.0", "by": "second"}
    assert plugins.called == ["first", "second"]
    identity = {"cniVersion": "1.0.0", "name": "blue"}
    first, second = CONFLIST["plugins"]
    assert plugins.given("first", "ADD") == {**first, **identity}  # type: ignore[dict-item]
    assert plugins.given("second", "ADD") == {
        **second, **identity, "prevResult": {"cniVersion": "1.0.0", "by": "first"},  # type: ignore[dict-item]
    }  # fmt: skip


def test_a_del_goes_backwards_with_the_adds_last_result(plugins: Plugins) -> None:
    plugins.runner.delete(CHAIN, ATTACHMENT, {"by": "second"})
    assert plugins.called == ["second", "first"]
    assert [plugins.given(name, "DEL")["prevResult"] for name in plugins.called] == [{"by": "second"}] * 2


def test_a_plugin_gets_the_variables_of_a_runtime_and_none_of_ours(
    plugins: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CNI_NETNS_OVERRIDE", "true")
    plugins.runner.add(CHAIN, ATTACHMENT)
    assert plugins.variables("second", "ADD") == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/proc/1/ns/net",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;"
        "K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u1",
        "CNI_PATH": f"{plugins.folder}/empty:{plugins.folder}",
        "PLACE": "here",
    }


def test_without_interfaces_the_address_plugin_gets_its_plugins_whole_configuration(plugins: Plugins) -> None:
    plugins.make("addresses")
    assert plugins.runner.add(CHAIN.addresses_only, ATTACHMENT)["by"] == "addresses"
    assert plugins.called == ["addresses"]
    assert plugins.given("addresses", "ADD")["type"] == "first"
    assert plugins.given("addresses", "ADD")["master"] == "ens192"


def test_plugins_are_run_by_the_command_that_puts_them_into_their_node(plugins: Plugins) -> None:
    plugins.runner.add(CHAIN, ATTACHMENT, ["env", "PLACE=there"])
    assert plugins.variables("first", "ADD")["PLACE"] == "there"


def test_status_is_asked_in_a_version_that_has_it(plugins: Plugins) -> None:
    plugins.runner.status(CHAIN)
    assert plugins.given("first", "STATUS")["cniVersion"] == "1.1.0"
    assert "CNI_CONTAINERID" not in plugins.variables("first", "STATUS")


def test_a_plugins_refusal_ends_the_chain_with_its_words(plugins: Plugins) -> None:
    plugins.make("first", says='{"code":11,"msg":"no address is left","details":"in blue"}', status=1)
    with pytest.raises(PluginError) as refused:
        plugins.runner.add(CHAIN, ATTACHMENT)
    assert str(refused.value) == "ADD failed in plugin first: code 11: no address is left (in blue)"
    assert (refused.value.code, plugins.called) == (11, ["first"])


@pytest.mark.parametrize(("says", "status", "text"), [
    ("", 0, "ADD: plugin first printed no result"),
    ("[]", 0, "ADD: plugin first printed no result"),
    ("Segmentation fault", 139, "ADD: plugin first ended with 139: Segmentation fault"),
    ("", 3, "ADD: plugin first ended with 3: exit code 3"),
    ("[1]", 1, "ADD: plugin first ended with 1: [1]"),
])  # fmt: skip
def test_a_plugin_that_says_nothing_usable_is_named(plugins: Plugins, says: str, status: int, text: str) -> None:
    plugins.make("first", says=says, status=status)
    with pytest.raises(DemoError, match=re.escape(text)):
        plugins.runner.add(CHAIN, ATTACHMENT)


def test_a_plugin_that_is_nowhere_is_named_with_the_folders(plugins: Plugins) -> None:
    (plugins.folder / "second").chmod(0o644)
    with pytest.raises(DemoError, match=f"there is no plugin second in {plugins.folder}/empty:{plugins.folder}"):
        plugins.runner.add(CHAIN, ATTACHMENT)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name":"n","cniVersion":"1.0.0","plugins":[{}]}', '{"plugins":[]}'])
def test_what_is_no_configuration_list_is_refused(text: str) -> None:
    with pytest.raises(DemoError, match="no CNI configuration list"):
        read_chain(text)


def test_a_network_of_no_plugin_gives_no_result(plugins: Plugins) -> None:
    with pytest.raises(DemoError, match="network none has no plugin"):
        plugins.runner.add(Chain("none", "1.0.0", ()), ATTACHMENT)


# Signals and limits ------------------------------------------------------------------------------


def ends(pid: str) -> bool:
    """Whether this process ends, or has ended: the kernel takes its time over one that was killed."""
    deadline = time.monotonic() + DEMO_SECONDS_MAX
    with suppress(FileNotFoundError, ProcessLookupError):
        # What only waits to be buried has ended.
        while Path("/proc", pid.strip(), "stat").read_text().rpartition(")")[2].split()[0] != "Z":
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
    return True


@contextmanager
def told_to_stop(processes: Processes) -> Iterator[None]:
    with processes.stopped_by_signals(), pytest.raises(StoppedError, match="SIGTERM"):
        yield


def test_a_signal_ends_the_plugin_that_is_waited_for_and_its_children(tmp_path: Path) -> None:
    processes, child = Processes(), tmp_path / "child"
    script = f"sleep 600 & echo $! >{child}; kill -TERM $PPID; wait"
    with told_to_stop(processes):
        processes.run(["sh", "-c", script], seconds_max=DEMO_SECONDS_MAX)
    assert ends(child.read_text())


def test_after_a_signal_nothing_more_is_started_until_cleaning_up(tmp_path: Path) -> None:
    processes = Processes()
    with told_to_stop(processes):
        os.kill(os.getpid(), signal.SIGTERM)
        processes.run(["touch", str(tmp_path / "never")], seconds_max=DEMO_SECONDS_MAX)
    processes.end()
    processes.run(["touch", str(tmp_path / "cleaned")], seconds_max=DEMO_SECONDS_MAX)
    assert [path.name for path in tmp_path.iterdir()] == ["cleaned"]


def test_what_does_not_end_is_ended_and_named(tmp_path: Path) -> None:
    child = tmp_path / "child"
    with pytest.raises(DemoError, match=r"`sh -c .*` did not end within 0\.1 s"):
        Processes().run(["sh", "-c", f"echo $$ >{child}; sleep 600; true"], seconds_max=0.1)
    assert not child.exists() or ends(child.read_text())


def test_the_handlers_of_before_are_back_afterwards() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with Processes().stopped_by_signals():
        assert [signal.getsignal(number) for number in numbers] != before
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(DemoError, match="no-such-program cannot be started: No such file or directory"):
        Processes().run(["no-such-program"], seconds_max=DEMO_SECONDS_MAX)


# What a machine lacks ----------------------------------------------------------------------------


@needs_network
@pytest.mark.parametrize(("programs", "names", "lacks"), [
    (TOOLS, ["first", "second"], None),
    (TOOLS[1:], ["first", "second"], "there is no program ip: install iproute2"),
    (TOOLS[:2], ["first", "second"], "there is no program nsenter: install util-linux"),
    (TOOLS, ["first"], "there is no CNI plugin second in .*: install containernetworking-plugins"),
])  # fmt: skip
def test_what_a_machine_lacks_for_a_network_is_named_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: tuple[str, ...], names: list[str], lacks: str | None
) -> None:
    (folder := tmp_path / "plugins").mkdir()
    found = Plugins(folder)
    for name in names:
        found.make(name)
    monkeypatch.setenv("PATH", tools(tmp_path / "bin", *programs))
    said = netlab.missing(found.runner, CHAIN)
    assert said is None if lacks is None else re.fullmatch(lacks, said or "")
