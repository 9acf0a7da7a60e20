"""The CNI plugin: the real binary against scripted agents, and its code under sanitizers and in virtual time."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import socket
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import hatch_build
from hatch_build import PLUGIN_SOURCE, PluginNotCompiledError, compile_plugin, find_compiler, wheel_tag

CNI_VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
CALL = {"CNI_CONTAINERID": "c0ffee", "CNI_IFNAME": "eth0", "CNI_NETNS": "/var/run/netns/blue"}
CONFIGURATION = b'{"cniVersion":"1.0.0","name":"blue","type":"macvlan","ipam":{"type":"spiderpool"}}'
RESULT = b'{"cniVersion":"1.0.0","ips":[{"address":"10.6.0.7/16"}]}'
REFUSAL = b'{"cniVersion":"1.0.0","code":11,"msg":"no address is left in pool blue","details":""}'
CALL_SECONDS_MAX = 30  # No test leaves the plugin to its own deadline, so a longer call is a bug.
SEED = 20260307
MUTATIONS = 2_000


def constant(name: str) -> int:
    """A limit as the source states it."""
    found = re.search(rf"\b{name} = ([\d <]+),", PLUGIN_SOURCE.read_text())
    assert found is not None, name
    base, _, shift = found[1].partition("<<")
    return int(base) << int(shift or 0)


# The programs ----------------------------------------------------------------------------------------------------

# Each poll takes a second, or the whole wait when nothing comes: deadlines pass without anybody waiting for them.
VIRTUAL_TIME = r"""
#include <poll.h>
#include <stdio.h>
#include <time.h>
static long long milliseconds;
int __real_poll(struct pollfd *, nfds_t, int);
int __real_clock_gettime(clockid_t, struct timespec *);
int __wrap_poll(struct pollfd *watched, nfds_t count, int timeout) {
    int found = __real_poll(watched, count, count > 0 ? 200 : 0);
    milliseconds += found > 0 ? 1000 : timeout;
    return found;
}
int __wrap_clock_gettime(clockid_t clock, struct timespec *now) {
    if (clock != CLOCK_MONOTONIC)
        return __real_clock_gettime(clock, now);
    now->tv_sec = milliseconds / 1000;
    now->tv_nsec = milliseconds % 1000 * 1000000;
    return 0;
}
__attribute__((destructor)) static void tell(void) { fprintf(stderr, "%lld", milliseconds); }
"""

# Takes many texts (length, bytes). Each is scanned in a block of exactly its size, so that the sanitizer sees a read
# past its end, and then goes through the whole program in a process of its own. Tells what was found, and the status.
MANY_TEXTS = r"""
#define main plugin_main
#include "spiderpool.c"
#undef main
#include <sys/mman.h>
#include <sys/wait.h>
static int run_plugin(const char *text, size_t size, const char *command) {
    int input = memfd_create("stdin", 0), status;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (write(input, text, size) != (ssize_t)size || lseek(input, 0, SEEK_SET) != 0 || dup2(input, 0) != 0)
            abort();
        setenv("CNI_COMMAND", command, 1);
        exit(plugin_main());
    }
    waitpid(child, &status, 0);
    close(input);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}
int main(void) {
    static const char *const commands[] = {"VERSION", "ADD", "DEL", "STATUS"};
    unsigned int size;
    for (unsigned int i = 0; read(0, &size, sizeof size) == sizeof size; i++) {
        char *text = malloc(size + 1);
        struct configuration found = {0};
        if (!text || read(0, text, size) != size)
            abort();
        text[size] = '\0';
        scan(text, &found);
        printf("[");
        print_string(found.cni_version);
        printf(",");
        print_string(found.socket);
        printf(",%s]\n", found.socket_refused ? "true" : "false");
        int status = run_plugin(text, size, commands[i % 4]);
        printf("%d\n", status);
        free(text);
    }
}
"""

# Sees nothing in the spool, like a DEL that looks just before another one puts its file there.
BLIND = "int __wrap_faccessat(void); int __wrap_faccessat(void) { return -1; }"

SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
SANITIZER_EXIT = 99  # No other reason gives this status.
SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": f"exitcode={SANITIZER_EXIT}:detect_leaks=0",
    "UBSAN_OPTIONS": f"exitcode={SANITIZER_EXIT}",
}


def compiled(folder: Path, *arguments: str, source: str = "") -> Path:
    """A program for tests, made of the plugin's source and more."""
    program, extra = folder / "program", folder / "extra.c"
    extra.write_text(source)
    command = [*find_compiler(), "-std=gnu11", "-O1", "-Wno-unused", f"-I{PLUGIN_SOURCE.parent}", *arguments]
    subprocess.run([*command, "-o", str(program), str(extra)], check=True, timeout=120)
    return program


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("sanitized"), *SANITIZERS, str(PLUGIN_SOURCE))


@pytest.fixture(scope="session")
def many_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("texts"), *SANITIZERS, source="#define _GNU_SOURCE\n" + MANY_TEXTS)


@pytest.fixture(scope="session")
def timeless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wrapped = ("-U_FORTIFY_SOURCE", "-Wl,--wrap=poll,--wrap=clock_gettime")
    return compiled(tmp_path_factory.mktemp("timeless"), *wrapped, str(PLUGIN_SOURCE), source=VIRTUAL_TIME)


# Calling it ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    status: int
    out: bytes
    err: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The CNI error that it printed; asserts that it is one and nothing else."""
        assert self.status == 1, self
        error = json.loads(self.out)
        assert list(error) == ["cniVersion", "code", "msg", "details"]
        assert isinstance(error, dict)
        return error


def call(
    program: Path, command: str | None, stdin: bytes = CONFIGURATION, extra: Mapping[str, str] | None = None
) -> Outcome:
    """One call, with no more environment than a runtime gives."""
    environment = {**({"CNI_COMMAND": command} if command is not None else {}), **SANITIZER_OPTIONS, **(extra or {})}
    done = subprocess.run(
        [program], input=stdin, env=environment, capture_output=True, timeout=CALL_SECONDS_MAX, check=False
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Node:
    """The places on a host: where an agent would listen, and the spool."""

    socket: Path
    spool: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**CALL, "SPIDERLEDGER_SOCKET": str(self.socket), "SPIDERLEDGER_SPOOL": str(self.spool)}

    @property
    def spooled(self) -> list[str]:
        return sorted(path.name for path in self.spool.iterdir()) if self.spool.exists() else []


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "agent.sock", tmp_path / "spool")


# Scripted agents -------------------------------------------------------------------------------------------------

Script = Callable[[socket.socket], None]


def http(body: bytes, status: str = "200 OK", head: bytes = b"") -> bytes:
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\n%s\r\n%s" % (status.encode(), len(body), head, body)


def says(answer: bytes) -> Script:
    """Says this and hangs up."""
    return lambda peer: peer.sendall(answer)


def silent(peer: socket.socket) -> None:
    """Keeps the connection open until the plugin gives up."""
    while peer.recv(1 << 16):
        pass


def trickles(peer: socket.socket) -> None:
    """Promises more than it will ever have said."""
    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{")
    with suppress(OSError):
        while True:
            peer.sendall(b" ")
            time.sleep(0.005)


def read_request(peer: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        received += peer.recv(1 << 16)
    head, _, _ = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(received) < len(head) + 4 + length:
        received += peer.recv(1 << 16)
    return received


@contextmanager
def agent(path: Path, *scripts: Script) -> Iterator[list[bytes]]:
    """Listens here; each connection's request goes to the list and then its script is played."""
    requests: list[bytes] = []
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()

        def play() -> None:
            for script in scripts:
                try:
                    peer, _ = listener.accept()
                except OSError:  # The test is over before all scripts were asked for.
                    return
                with peer:
                    requests.append(read_request(peer))
                    script(peer)

        thread = threading.Thread(target=play)
        thread.start()
        try:
            yield requests
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()


# VERSION and the environment -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", CNI_VERSIONS)
def test_version_is_answered_without_an_agent(plugin: Path, version: str) -> None:
    outcome = call(plugin, "VERSION", json.dumps({"cniVersion": version}).encode())
    assert (outcome.status, outcome.err) == (0, b"")
    assert json.loads(outcome.out) == {"cniVersion": version, "supportedVersions": list(CNI_VERSIONS)}


@pytest.mark.parametrize("stdin", [b"", b"{}", b"nonsense", b'{"cniVersion":5}', b'{"cniVersion":null}', b'{"cniVer'])
def test_without_a_version_the_newest_is_named(plugin: Path, stdin: bytes) -> None:
    assert json.loads(call(plugin, "VERSION", stdin).out)["cniVersion"] == "1.1.0"


@pytest.mark.parametrize("command", [None, ""])
def test_a_missing_command_is_error_4(plugin: Path, command: str | None) -> None:
    error = call(plugin, command).error
    assert (error["code"], error["cniVersion"]) == (4, "1.0.0")
    assert "CNI_COMMAND" in error["msg"]


def test_whoever_starts_it_by_hand_is_not_kept_waiting(plugin: Path) -> None:
    ours, its = os.openpty()
    with os.fdopen(ours, "rb", 0), os.fdopen(its, "rb", 0) as terminal:
        done = subprocess.run(
            [plugin], stdin=terminal, env={}, capture_output=True, timeout=CALL_SECONDS_MAX, check=False
        )
    assert Outcome(done.returncode, done.stdout, done.stderr).error["code"] == 4


def test_too_large_an_environment_is_error_4(plugin: Path, node: Node) -> None:
    large = dict.fromkeys(("CNI_ARGS", "CNI_PATH", "CNI_NETNS"), "x" * (constant("ENVIRONMENT_MAX") // 2 - 20))
    assert call(plugin, "ADD", extra={**node.environment, **large}).error["code"] == 4
    assert call(plugin, "DEL", extra={**node.environment, **large}).error["code"] == 4
    assert node.spooled == []


def test_an_unreadable_stdin_is_error_5(plugin: Path, tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    done = subprocess.run([plugin], stdin=folder, env={"CNI_COMMAND": "ADD"}, capture_output=True, check=False)
    os.close(folder)
    assert Outcome(done.returncode, done.stdout, done.stderr).error["code"] == 5


@pytest.mark.parametrize("command", ["ADD", "DEL", "STATUS", "VERSION"])
def test_a_stdin_above_the_limit_is_error_6(plugin: Path, node: Node, command: str) -> None:
    stdin = CONFIGURATION.ljust(constant("STDIN_MAX") + 1)
    error = call(plugin, command, stdin, node.environment).error
    assert (error["code"], error["cniVersion"]) == (6, "1.0.0")
    assert node.spooled == []


# A call with an agent --------------------------------------------------------------------------------------------


def test_one_request_carries_the_variables_and_stdin(plugin: Path, node: Node) -> None:
    stdin = CONFIGURATION + b"\0\xff\n"
    extra = {**node.environment, "CNI_ARGS": "K8S_POD_NAME=web", "CNI_PATH": "", "CNI_OTHER": "no", "HOME": "/"}
    with agent(node.socket, says(http(RESULT))) as requests:
        before = time.time_ns()
        outcome = call(plugin, "ADD", stdin, extra)
        after = time.time_ns()
    assert outcome == Outcome(0, RESULT, b"")
    head, _, body = requests[0].partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"POST /v1/cni HTTP/1.1",
        b"Host: spiderledger",
        b"Content-Type: application/vnd.spiderledger.cni",
        b"Content-Length: %d" % len(body),
        b"Connection: close",
    ]
    variables, _, sent = body.partition(b"\0\0")
    *fixed, stamp = variables.split(b"\0")
    assert fixed == [
        b"CNI_COMMAND=ADD",
        b"CNI_CONTAINERID=c0ffee",
        b"CNI_NETNS=/var/run/netns/blue",
        b"CNI_IFNAME=eth0",
        b"CNI_ARGS=K8S_POD_NAME=web",
        b"CNI_PATH=",
    ]
    assert sent == stdin
    name, _, started = stamp.partition(b"=")
    assert name == b"SPIDERLEDGER_START"
    assert before <= int(started) <= after


def test_the_largest_stdin_and_the_largest_answer_pass(plugin: Path, node: Node) -> None:
    stdin, result = CONFIGURATION.ljust(constant("STDIN_MAX")), RESULT.ljust(constant("ANSWER_MAX"))
    with agent(node.socket, says(http(result))) as requests:
        assert call(plugin, "ADD", stdin, node.environment) == Outcome(0, result, b"")
    assert requests[0].endswith(b"\0\0" + stdin)


@pytest.mark.parametrize("command", ["DEL", "CHECK", "GC", "STATUS"])
def test_an_empty_answer_is_success(plugin: Path, node: Node, command: str) -> None:
    with agent(node.socket, says(http(b""))):
        assert call(plugin, command, extra=node.environment) == Outcome(0, b"", b"")
    assert node.spooled == []


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "GC", "STATUS", "NONSENSE"])
@pytest.mark.parametrize("status", ["400 Bad Request", "503 Service Unavailable"])
def test_an_error_is_printed_as_it_came(plugin: Path, node: Node, command: str, status: str) -> None:
    with agent(node.socket, says(http(REFUSAL, status))):
        assert call(plugin, command, extra=node.environment) == Outcome(1, REFUSAL, b"")
    assert node.spooled == []


def test_an_agent_may_refuse_before_it_has_read_all(plugin: Path, node: Node) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(node.socket))
        listener.listen()

        def refuse() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.shutdown(socket.SHUT_RD)  # Whatever the plugin still sends is an EPIPE from here on.
                peer.sendall(http(REFUSAL, "413 Content Too Large"))

        thread = threading.Thread(target=refuse)
        thread.start()
        outcome = call(plugin, "ADD", CONFIGURATION.ljust(constant("STDIN_MAX")), node.environment)
        thread.join()
    assert outcome == Outcome(1, REFUSAL, b"")


def test_an_answer_ends_with_its_length_not_with_the_connection(plugin: Path, node: Node) -> None:
    def answer_and_stay(peer: socket.socket) -> None:
        peer.sendall(http(RESULT) + b"and more")
        silent(peer)

    with agent(node.socket, answer_and_stay):
        assert call(plugin, "ADD", extra=node.environment) == Outcome(0, RESULT, b"")


def test_an_answer_may_come_in_single_bytes(plugin: Path, node: Node) -> None:
    def stutter(peer: socket.socket) -> None:
        for byte in http(RESULT, head=b"Server: x\r\n"):
            peer.sendall(bytes([byte]))

    with agent(node.socket, stutter):
        assert call(plugin, "ADD", extra=node.environment) == Outcome(0, RESULT, b"")


def test_an_answer_that_cannot_be_printed_is_no_success(plugin: Path, node: Node) -> None:
    environment = {"CNI_COMMAND": "ADD", **node.environment}
    with agent(node.socket, says(http(RESULT))), Path("/dev/full").open("wb") as full:
        done = subprocess.run([plugin], input=CONFIGURATION, stdout=full, env=environment, check=False)
    assert done.returncode == 1


# No answer -------------------------------------------------------------------------------------------------------

BAD_ANSWERS = {
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "half a body": http(RESULT)[:-1],
    "no length": b"HTTP/1.1 200 OK\r\n\r\n" + RESULT,
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "bad length": b"HTTP/1.1 200 OK\r\nContent-Length: 2x\r\n\r\n{}",
    "negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}",
    "empty length": b"HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n{}",
    "huge length": b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n{}",
    "too long": http(RESULT.ljust((1 << 20) + 1)),
    "endless head": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 4000,
    "long head": http(RESULT, head=b"X: y\r\n" * 4000),
    "another protocol": http(RESULT).replace(b"HTTP", b"RTSP"),
    "no HTTP": b"220 mail.example.org ESMTP\r\n\r\n",
    "bytes": bytes(range(256)),
    "no status": b"HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
    "a page": http(b"<html>502</html>", "502 Bad Gateway"),
    "empty error": http(b"", "500 Internal Server Error"),
}


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_a_bad_answer_is_none(plugin: Path, node: Node, answer: bytes) -> None:
    def say(peer: socket.socket) -> None:
        with suppress(OSError):  # The plugin may have heard enough.
            peer.sendall(answer)

    with agent(node.socket, say, say, say):
        assert call(plugin, "ADD", extra=node.environment).error["code"] == 11
        assert call(plugin, "STATUS", extra=node.environment).error["code"] == 50
        assert call(plugin, "DEL", extra=node.environment) == Outcome(0, b"", b"")
    assert node.spooled == ["c0ffee:eth0"]


@pytest.mark.parametrize("version", CNI_VERSIONS)
@pytest.mark.parametrize(("command", "code"), [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50), ("OTHER", 11)])
def test_nobody_listens(plugin: Path, node: Node, command: str, code: int, version: str) -> None:
    error = call(plugin, command, json.dumps({"cniVersion": version}).encode(), node.environment).error
    assert (error["code"], error["cniVersion"]) == (code, version)
    assert str(node.socket) in error["msg"]
    assert os.strerror(2) in error["msg"]


def test_a_stale_socket(plugin: Path, node: Node) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as gone:
        gone.bind(str(node.socket))
    assert os.strerror(111) in call(plugin, "ADD", extra=node.environment).error["msg"]
    assert call(plugin, "DEL", extra=node.environment).status == 0


def test_the_default_socket_is_spiderpools(plugin: Path) -> None:
    error = call(plugin, "ADD", extra={"SPIDERLEDGER_SOCKET": ""}).error
    assert "/var/run/spidernet/spiderpool.sock" in error["msg"] + error["details"]


@pytest.mark.parametrize("path", ["/" + "x" * 107, "/tmp/t\u00fcr", '/tmp/"quoted"\\\n'])
def test_an_error_is_json_whatever_the_path(plugin: Path, node: Node, path: str) -> None:
    for raw in (path.encode(), path.encode("latin-1")):
        environment = {**node.environment, "SPIDERLEDGER_SOCKET": os.fsdecode(raw)}
        assert call(plugin, "ADD", extra=environment).error["code"] == 11


def test_a_full_backlog_is_waited_for(plugin: Path, node: Node) -> None:
    environment = {"CNI_COMMAND": "ADD", **node.environment}
    with closing(socket.socket(socket.AF_UNIX)) as listener, backlog(listener, node.socket) as waiting:
        caller = subprocess.Popen([plugin], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert caller.stdin is not None
        caller.stdin.write(CONFIGURATION)
        caller.stdin.flush()
        time.sleep(0.1)  # It meets the full queue; if not, it is still answered.
        for _ in range(waiting):
            listener.accept()[0].close()
        caller.stdin.close()
        caller.stdin = None
        peer, _ = listener.accept()
        with peer:
            read_request(peer)
            peer.sendall(http(RESULT))
        assert caller.communicate(timeout=CALL_SECONDS_MAX)[0] == RESULT
    assert caller.returncode == 0


@contextmanager
def backlog(listener: socket.socket, path: Path) -> Iterator[int]:
    """A listener whose queue is full: nobody else gets in before somebody is accepted."""
    listener.bind(str(path))
    listener.listen(0)
    callers: list[socket.socket] = []
    try:
        with suppress(BlockingIOError):
            while True:
                callers.append(socket.socket(socket.AF_UNIX))
                callers[-1].setblocking(False)
                callers[-1].connect(str(path))
        yield len(callers) - 1
    finally:
        for caller in callers:
            caller.close()


# Deadlines, in virtual time --------------------------------------------------------------------------------------

DEADLINES = {"ADD": 90, "CHECK": 90, "GC": 90, "STATUS": 10, "DEL": 20}


def patience(program: Path, node: Node, command: str, stdin: bytes = CONFIGURATION) -> tuple[Outcome, float]:
    """The outcome, and how many virtual seconds it took."""
    outcome = call(program, command, stdin, node.environment)
    return outcome, int(outcome.err) / 1000


@pytest.mark.parametrize(("command", "seconds"), DEADLINES.items())
def test_an_agent_that_stays_silent_has_until_the_deadline(
    timeless: Path, node: Node, command: str, seconds: int
) -> None:
    with agent(node.socket, silent):
        outcome, took = patience(timeless, node, command)
    assert took == seconds
    assert outcome.status == (0 if command == "DEL" else 1)
    assert node.spooled == (["c0ffee:eth0"] if command == "DEL" else [])


def test_half_an_answer_does_not_prolong_the_call(timeless: Path, node: Node) -> None:
    def half(peer: socket.socket) -> None:
        peer.sendall(http(RESULT)[:-1])
        silent(peer)

    with agent(node.socket, half):
        outcome, took = patience(timeless, node, "ADD")
    assert (outcome.error["code"], took) == (11, DEADLINES["ADD"])


def test_a_head_without_an_end_is_not_waited_for(timeless: Path, node: Node) -> None:
    def talk(peer: socket.socket) -> None:
        with suppress(OSError):
            peer.sendall(BAD_ANSWERS["endless head"])
            silent(peer)

    with agent(node.socket, talk):
        outcome, took = patience(timeless, node, "ADD")
    assert outcome.error["code"] == 11
    assert took < DEADLINES["ADD"]


def test_an_answer_that_trickles_does_not_prolong_the_call(timeless: Path, node: Node) -> None:
    with agent(node.socket, trickles):
        outcome, took = patience(timeless, node, "STATUS")
    assert (outcome.error["code"], took) == (50, DEADLINES["STATUS"])


def test_a_full_backlog_is_waited_for_until_the_deadline(timeless: Path, node: Node) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as listener, backlog(listener, node.socket):
        outcome, took = patience(timeless, node, "STATUS")
    assert (outcome.error["code"], took) == (50, DEADLINES["STATUS"])


def test_a_stdin_without_an_end_is_error_5_at_the_deadline(timeless: Path, node: Node) -> None:
    reader, writer = os.pipe()
    os.write(writer, CONFIGURATION)
    environment = {"CNI_COMMAND": "ADD", **node.environment}
    done = subprocess.run([timeless], stdin=reader, env=environment, capture_output=True, check=False)
    os.close(reader)
    os.close(writer)
    error = Outcome(done.returncode, done.stdout, done.stderr).error
    assert (error["code"], error["cniVersion"], int(done.stderr)) == (5, "1.0.0", 90_000)


# The two strings -------------------------------------------------------------------------------------------------

SCANS = {
    "prevResult first": (b'{"prevResult":{"cniVersion":"0.3.0"},"cniVersion":"1.0.0"}', "1.0.0"),
    "prevResult last": (b'{"cniVersion":"1.0.0","prevResult":{"cniVersion":"0.3.0"}}', "1.0.0"),
    "only prevResult": (b'{"prevResult":{"cniVersion":"0.3.0"}}', "1.1.0"),
    "in a list": (b'[{"cniVersion":"0.3.0"}]', "1.1.0"),
    "in a list of the top": (b'{"plugins":[{"cniVersion":"0.3.0"}],"cniVersion":"0.4.0"}', "0.4.0"),
    "braces in strings": (b'{"a":"}{[\\"","b":"\\\\","cniVersion":"0.4.0"}', "0.4.0"),
    "as a value": (b'{"name":"cniVersion","x":["cniVersion","0.3.0"],"cniVersion":"0.4.0"}', "0.4.0"),
    "white space": (b' {\n\t"cniVersion" :\r\n "0.4.0" } ', "0.4.0"),
    "escapes": (b'{"\\u0063niVersion":"0\\u002E4\\u002e0"}', "0.4.0"),
    "the last of two": (b'{"cniVersion":"0.3.0","cniVersion":"0.4.0"}', "0.4.0"),
    "before a break": (b'{"cniVersion":"0.4.0","ipam":{"a":', "0.4.0"),
    "after the end": (b'{"a":1} {"cniVersion":"0.3.0"}', "1.1.0"),
    "odd": (b'{"cniVersion":"a\\"b\\\\c\\/d\x01"}', 'a"b\\c/d\x01'),
    "no end": (b'{"cniVersion":"0.4.0', "1.1.0"),
    "ends in an escape": (b'{"cniVersion":"0.4.0\\', "1.1.0"),
    "NUL": (b'{"cniVersion":"0.4\\u0000.0"}', "1.1.0"),
    "unknown escape": (b'{"cniVersion":"0.4.0\\n"}', "1.1.0"),
    "too long": (b'{"cniVersion":"' + b"1" * 32 + b'"}', "1.1.0"),
    "as long as it may be": (b'{"cniVersion":"' + b"1" * 31 + b'"}', "1" * 31),
    "very deep": (b"[" * 500_000 + b'{"cniVersion":"0.3.0"}', "1.1.0"),
}


@pytest.mark.parametrize(("stdin", "version"), SCANS.values(), ids=SCANS.keys())
def test_the_version_is_the_top_levels(plugin: Path, stdin: bytes, version: str) -> None:
    assert json.loads(call(plugin, "VERSION", stdin).out)["cniVersion"] == version


SOCKETS = {
    "plain": '{"ipam":{"ipam_unix_socket_path":"PATH"}}',
    "among others": '{"a":{"ipam_unix_socket_path":"/no"},"ipam":{"x":{},"ipam_unix_socket_path":"PATH"},"b":{}}',
    "deeper ones": '{"ipam":{"x":{"ipam_unix_socket_path":"/no"},"ipam_unix_socket_path":"PATH","y":[{"ipam":{}}]}}',
    "after another": '{"x":{"ipam":{"ipam_unix_socket_path":"/no"}},"ipam":{"ipam_unix_socket_path":"PATH"}}',
    "at the top": '{"ipam":{"ipam_unix_socket_path":"PATH"},"ipam_unix_socket_path":"/no"}',
    "ipam as a value": '{"type":"ipam","x":{"ipam_unix_socket_path":"/no"},"ipam":{"ipam_unix_socket_path":"PATH"}}',
}


@pytest.mark.parametrize("text", SOCKETS.values(), ids=SOCKETS.keys())
def test_the_configurations_socket_wins(plugin: Path, node: Node, text: str) -> None:
    environment = {**node.environment, "SPIDERLEDGER_SOCKET": "/no"}
    path = str(node.socket)
    spellings = (path, path.replace("/", "\\/"), "".join(f"\\u{ord(letter):04x}" for letter in path))
    with agent(node.socket, *[says(http(RESULT))] * len(spellings)):
        for spelling in spellings:
            assert call(plugin, "ADD", text.replace("PATH", spelling).encode(), environment).out == RESULT


def test_a_path_beyond_ascii_is_found_escaped_or_not(plugin: Path, tmp_path: Path) -> None:
    path = tmp_path / "tür.sock"
    with agent(path, *[says(http(RESULT))] * 2):
        for ascii_only in (True, False):
            text = json.dumps({"ipam": {"ipam_unix_socket_path": str(path)}}, ensure_ascii=ascii_only)
            assert call(plugin, "ADD", text.encode()).out == RESULT


@pytest.mark.parametrize("value", ['""', "null"])
def test_an_empty_socket_path_is_none(plugin: Path, node: Node, value: str) -> None:
    with agent(node.socket, says(http(RESULT))):
        text = f'{{"ipam":{{"ipam_unix_socket_path":{value}}}}}'
        assert call(plugin, "ADD", text.encode(), node.environment).out == RESULT


@pytest.mark.parametrize("value", ["5", "{}", '"/' + "x" * 107 + '"', '"/a\\u4e2d"', '"/a\\n"', '"/a\\u0000b"'])
def test_an_unusable_socket_path_does_not_lead_to_another_agent(plugin: Path, node: Node, value: str) -> None:
    text = f'{{"ipam":{{"ipam_unix_socket_path":{value}}}}}'.encode()
    with agent(node.socket, says(http(RESULT))) as requests:
        error = call(plugin, "ADD", text, node.environment).error
        assert call(plugin, "DEL", text, node.environment).status == 0
    assert requests == []
    assert error["code"] == 11
    assert "ipam.ipam_unix_socket_path" in error["msg"]
    assert node.spooled == ["c0ffee:eth0"]


# The spool -------------------------------------------------------------------------------------------------------


def test_a_del_without_an_agent_is_kept_as_the_body_that_was_not_sent(plugin: Path, node: Node) -> None:
    assert call(plugin, "DEL", extra=node.environment) == Outcome(0, b"", b"")
    assert node.spooled == ["c0ffee:eth0"]
    kept = node.spool / "c0ffee:eth0"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(node.spool.stat().st_mode) == 0o700
    assert kept.stat().st_nlink == 1
    variables = rb"CNI_COMMAND=DEL\0CNI_CONTAINERID=c0ffee\0CNI_NETNS=/var/run/netns/blue\0CNI_IFNAME=eth0\0"
    assert re.fullmatch(variables + rb"SPIDERLEDGER_START=\d{19}\0\0" + re.escape(CONFIGURATION), kept.read_bytes()), (
        kept.read_bytes()
    )


def test_what_is_kept_is_what_would_have_been_sent(plugin: Path, node: Node) -> None:
    with agent(node.socket, says(b"")) as requests:
        assert call(plugin, "DEL", extra=node.environment).status == 0
    assert (node.spool / "c0ffee:eth0").read_bytes() == requests[0].partition(b"\r\n\r\n")[2]


def test_a_second_del_keeps_the_first(plugin: Path, node: Node) -> None:
    assert call(plugin, "DEL", extra=node.environment).status == 0
    first = (node.spool / "c0ffee:eth0").read_bytes()
    assert call(plugin, "DEL", b"{}", node.environment) == Outcome(0, b"", b"")
    assert (node.spool / "c0ffee:eth0").read_bytes() == first
    assert call(plugin, "DEL", extra={**node.environment, "CNI_IFNAME": "net1"}).status == 0
    assert node.spooled == ["c0ffee:eth0", "c0ffee:net1"]


def test_a_del_that_loses_a_race_keeps_the_first(plugin: Path, node: Node, tmp_path: Path) -> None:
    blind = compiled(tmp_path, "-Wl,--wrap=faccessat", str(PLUGIN_SOURCE), source=BLIND)
    assert call(plugin, "DEL", extra=node.environment).status == 0
    first = (node.spool / "c0ffee:eth0").read_bytes()
    assert call(blind, "DEL", b"{}", node.environment) == Outcome(0, b"", b"")
    assert (node.spool / "c0ffee:eth0").read_bytes() == first
    assert node.spooled == ["c0ffee:eth0"]


def test_equal_dels_at_once_leave_one_whole_file(plugin: Path, node: Node) -> None:
    environment = {"CNI_COMMAND": "DEL", **node.environment}
    callers = [
        subprocess.Popen([plugin], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) for _ in range(12)
    ]
    for caller in callers:  # All wait for the end of their stdin, and go on together.
        assert caller.stdin is not None
        caller.stdin.write(CONFIGURATION)
        caller.stdin.close()
        caller.stdin = None
    for caller in callers:
        assert caller.communicate(timeout=CALL_SECONDS_MAX)[0] == b""
        assert caller.returncode == 0
    assert node.spooled == ["c0ffee:eth0"]
    assert (node.spool / "c0ffee:eth0").read_bytes().endswith(b"\0\0" + CONFIGURATION)


def test_a_full_spool_is_error_5_but_not_for_what_it_has_already(plugin: Path, node: Node) -> None:
    node.spool.mkdir()
    for number in range(constant("SPOOL_FILES_MAX") - 1):
        os.mknod(node.spool / f".tmp-{number}")
    assert call(plugin, "DEL", extra=node.environment).status == 0
    error = call(plugin, "DEL", extra={**node.environment, "CNI_IFNAME": "net1"}).error
    assert error["code"] == 5
    assert f"{node.spool}/c0ffee:net1" in error["msg"]
    assert call(plugin, "DEL", extra=node.environment).status == 0
    assert len(node.spooled) == constant("SPOOL_FILES_MAX")


def test_an_unwritable_spool_is_error_5_with_the_reason(plugin: Path, node: Node) -> None:
    node.socket.touch()
    reasons = {"/no/such/spool": 2, str(node.socket): 20, f"{node.socket}/spool": 20}
    for path, reason in reasons.items():
        error = call(plugin, "DEL", extra={**node.environment, "SPIDERLEDGER_SPOOL": path}).error
        assert error["code"] == 5
        assert f"{path}/c0ffee:eth0: {os.strerror(reason)}" in error["msg"]
    # Nobody makes files there, not even root.
    assert call(plugin, "DEL", extra={**node.environment, "SPIDERLEDGER_SPOOL": "/proc/self"}).error["code"] == 5


def test_a_disk_that_fills_up_leaves_nothing_behind(plugin: Path, node: Node) -> None:
    node.spool.mkdir()
    done = subprocess.run(
        [plugin],
        input=CONFIGURATION.ljust(100_000),
        env={"CNI_COMMAND": "DEL", **node.environment},
        capture_output=True,
        check=False,
        restore_signals=False,  # Python ignores SIGXFSZ: a limit on a file's size is then an error of write().
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    error = Outcome(done.returncode, done.stdout, done.stderr).error
    assert error["code"] == 5
    assert os.strerror(27) in error["msg"]
    assert node.spooled == []


INVALID = [
    *[
        ("CNI_CONTAINERID", value)
        for value in (None, "", "-a", "_a", ".a", "a/b", "a:b", "a b", "\u00e4", "a\n", "../x")
    ],
    *[("CNI_IFNAME", value) for value in (None, "", ".", "..", "a/b", "a:b", "a b", "a\t", "a\n", "x" * 16)],
    ("CNI_CONTAINERID", "x" * (255 - len(":eth0") + 1)),
]


@pytest.mark.parametrize(("variable", "value"), INVALID)
def test_a_del_that_cannot_be_named_is_error_4(plugin: Path, node: Node, variable: str, value: str | None) -> None:
    environment = {name: text for name, text in {**node.environment, variable: value}.items() if text is not None}
    error = call(plugin, "DEL", extra=environment).error
    assert error["code"] == 4
    assert variable in error["msg"]
    assert node.spooled == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [("CNI_CONTAINERID", "0_.-Z"), ("CNI_CONTAINERID", "x" * (255 - len(":eth0"))), ("CNI_IFNAME", "x" * 15)],
)
def test_a_del_that_can_just_be_named_is_kept(plugin: Path, node: Node, variable: str, value: str) -> None:
    environment = {**node.environment, variable: value}
    assert call(plugin, "DEL", extra=environment).status == 0
    assert node.spooled == [f"{environment['CNI_CONTAINERID']}:{environment['CNI_IFNAME']}"]


# Hostile input ---------------------------------------------------------------------------------------------------

VALID = [
    CONFIGURATION,
    b'{"cniVersion":"0.4.0","prevResult":{"cniVersion":"0.3.1","ips":[{"address":"10.6.0.7/16"}]},"ipam":{}}',
    b'{"ipam":{"ipam_unix_socket_path":"\\/run\\/a\\u002eb","log":{"a":[1,-2.5e3,true,null]}},"cniVersion":"1.1.0"}',
    json.dumps(
        {"x": {"ipam": {}}, "ipam": {"y": [], "ipam_unix_socket_path": "/t\u00fcr"}, "cniVersion": '"'}
    ).encode(),
]
PIECES = [b'"', b"\\", b"{", b"}", b"[", b"]", b":", b",", b"\\u00", b"\\u00ff", b"\0", b"null", b'"ipam":{', b"\xff"]


def mutated(chance: random.Random, text: bytes) -> bytes:
    """The text with up to four bytes changed, inserted, removed or cut off behind."""
    changed = bytearray(text)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed) + 1)
        piece = chance.choice([*PIECES, bytes([chance.randrange(256)])])
        width = chance.choice([0, 0, 1, 1, 5])
        changed[at : at + width] = piece if chance.random() < 0.8 else b""
        if chance.random() < 0.1:
            del changed[at:]
    return bytes(changed)


def invented(chance: random.Random, depth: int = 0) -> Any:
    """Any JSON, in which the names that matter stand at every depth."""
    kind = chance.randrange(3 if depth == 0 else 8)
    if depth == 4 or kind > 4:
        return chance.choice([None, 7, True, "", "0.4.0", "/run/a", '}{\\"', "\u00e9", "x" * 31, "x" * 32, "x" * 108])
    if kind == 4:
        return [invented(chance, depth + 1) for _ in range(chance.randrange(3))]
    names = ["cniVersion", "ipam", "ipam_unix_socket_path", "prevResult", "\u00e9", 'a"\\']
    return {name: invented(chance, depth + 1) for name in chance.sample(names, chance.randrange(len(names)))}


def expected(text: bytes) -> list[Any] | None:
    """What Python's parser finds; None where the plugin need not see the same: broken JSON, names that come twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError
        return dict(pairs)

    try:
        document = json.loads(text.decode(), object_pairs_hook=once)
    except (ValueError, RecursionError):
        return None
    top = document if isinstance(document, dict) else {}
    ipam = top.get("ipam") if isinstance(top.get("ipam"), dict) else {}
    assert isinstance(ipam, dict)
    version, path = top.get("cniVersion"), ipam.get("ipam_unix_socket_path")
    for value in (version, path):
        if isinstance(value, str) and any(not " " <= letter <= "\u00ff" for letter in value):
            return None  # Whether it is usable depends on its spelling.
    usable = isinstance(path, str) and len(path.encode()) <= 107
    return [
        version if isinstance(version, str) and len(version.encode()) <= 31 else "",
        path if usable else "",
        not usable and path is not None,
    ]


def shown(text: str) -> str:
    """As the plugin prints it: ASCII."""
    return "".join(chr(byte) if byte < 0x7F else f"\\x{byte:02x}" for byte in text.encode())


def answers(program: Path, texts: list[bytes], node: Node) -> list[tuple[list[Any], str, int]]:
    """For each text: what the scan found, what the program printed, and its status."""
    stdin = b"".join(struct.pack("=I", len(text)) + text for text in texts)
    extra = {**node.environment, "SPIDERLEDGER_SOCKET": "/no"}
    with (node.spool.parent / "texts").open("w+b") as file:
        file.write(stdin)
        file.seek(0)
        done = subprocess.run(
            [program], stdin=file, env={**SANITIZER_OPTIONS, **extra}, capture_output=True, timeout=120, check=False
        )
    assert (done.returncode, done.stderr) == (0, b"")
    lines = iter(done.stdout.decode("ascii").splitlines())
    told = []
    for found in lines:
        printed = next(lines)
        status = printed if printed.isdigit() else next(lines)
        told.append((json.loads(found), "" if printed.isdigit() else printed, int(status)))
    return told


def check_texts(program: Path, texts: list[bytes], node: Node) -> int:
    """Runs them all; asserts that nothing crashed and all was found; how many could be compared."""
    told = answers(program, texts, node)
    assert len(told) == len(texts)
    compared = 0
    for text, (found, printed, status) in zip(texts, told, strict=True):
        assert status in (0, 1), (text, status)
        assert printed == "" or isinstance(json.loads(printed), dict), text
        wanted = expected(text)
        if wanted is not None:
            compared += 1
            assert found == [shown(wanted[0]), shown(wanted[1]), wanted[2]], text
    return compared


def test_mutated_configurations_never_crash_it(many_texts: Path, node: Node) -> None:
    chance = random.Random(SEED)
    texts = [mutated(chance, VALID[number % len(VALID)]) for number in range(MUTATIONS)]
    assert check_texts(many_texts, texts, node) > 100


def test_every_beginning_of_a_configuration_is_safe(many_texts: Path, node: Node) -> None:
    texts = [text[:length] for text in VALID for length in range(len(text) + 1)]
    assert check_texts(many_texts, texts, node) >= len(VALID)


def test_it_finds_what_a_json_parser_finds(many_texts: Path, node: Node) -> None:
    chance = random.Random(SEED)
    documents = [invented(chance) for _ in range(500)]
    texts = [
        json.dumps(document, ensure_ascii=chance.random() < 0.5, indent=chance.choice([None, 1])).encode()
        for document in documents
    ]
    assert check_texts(many_texts, texts, node) == len(texts)


def test_mutated_answers_never_crash_it(sanitized: Path, node: Node) -> None:
    chance = random.Random(SEED)
    mutations = [mutated(chance, http(RESULT, head=b"Server: x\r\n")) for _ in range(150)]

    def say(answer: bytes) -> Script:
        def script(peer: socket.socket) -> None:
            with suppress(OSError):
                peer.sendall(answer)

        return script

    with agent(node.socket, *map(say, mutations)):
        for answer in mutations:
            outcome = call(sanitized, "ADD", extra=node.environment)
            assert outcome.status in (0, 1), (answer, outcome)
            assert outcome.err == b""


def test_the_whole_way_is_clean_under_sanitizers(sanitized: Path, node: Node) -> None:
    large = CONFIGURATION.ljust(constant("STDIN_MAX"))
    with agent(node.socket, says(http(RESULT.ljust(constant("ANSWER_MAX")))), says(http(REFUSAL, "500 No")), says(b"")):
        assert call(sanitized, "ADD", large, node.environment).status == 0
        assert call(sanitized, "ADD", large, node.environment) == Outcome(1, REFUSAL, b"")
        assert call(sanitized, "DEL", large, node.environment) == Outcome(0, b"", b"")
    assert call(sanitized, "VERSION", large + b" ", node.environment).error["code"] == 6
    assert call(sanitized, "DEL", extra={**node.environment, "SPIDERLEDGER_SPOOL": "/no/spool"}).error["code"] == 5


# How it is built -------------------------------------------------------------------------------------------------

PT_DYNAMIC, PT_INTERP = 2, 3


def segments(program: bytes) -> list[int]:
    """The types of a 64-bit or 32-bit ELF file's program headers."""
    assert program[:4] == b"\x7fELF"
    order = "<" if program[5] == 1 else ">"
    offset_at, offset_format, size_at = (32, "Q", 54) if program[4] == 2 else (28, "I", 42)
    (offset,) = struct.unpack_from(order + offset_format, program, offset_at)
    size, count = struct.unpack_from(order + "HH", program, size_at)
    return [struct.unpack_from(order + "I", program, offset + size * number)[0] for number in range(count)]


def test_it_needs_nothing_of_the_host(plugin: Path) -> None:
    assert not {PT_INTERP, PT_DYNAMIC} & set(segments(plugin.read_bytes()))
    assert PT_INTERP in segments(Path("/proc/self/exe").read_bytes()) or "musl" in str(find_compiler())


def test_the_wheel_is_for_this_machine(plugin: Path, tmp_path: Path) -> None:
    assert wheel_tag(plugin) == f"py3-none-linux_{os.uname().machine}"
    foreign = bytearray(plugin.read_bytes()[:64])
    foreign[18] ^= 0xFF
    (tmp_path / "foreign").write_bytes(foreign)
    with pytest.raises(PluginNotCompiledError, match="another kind of machine"):
        wheel_tag(tmp_path / "foreign")


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def complaint(output: Path) -> str:
    with pytest.raises(PluginNotCompiledError) as raised:
        compile_plugin(output)
    text = str(raised.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def test_what_is_missing_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = " ".join(find_compiler())
    no_libc = script(
        tmp_path / "no-libc",
        f'case " $* " in *" -static "*) echo "ld: cannot find -lc" >&2; exit 1;; esac; exec {real} "$@"',
    )
    cases = {
        "/nonexistent/cc": "there is no /nonexistent/cc: install one",
        no_libc: "finds no static C library: install",
        script(tmp_path / "broken", "exit 1"): "compiles nothing: install",
    }
    for compiler, sentence in cases.items():
        monkeypatch.setenv("CC", compiler)
        assert sentence in complaint(tmp_path / "plugin")
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no cc nor gcc nor clang" in complaint(tmp_path / "plugin")


def test_a_wrong_source_is_not_blamed_on_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / "wrong.c"
    wrong.write_text("int main(void) { return nothing; }\n")
    monkeypatch.setattr(hatch_build, "PLUGIN_SOURCE", wrong)
    with pytest.raises(PluginNotCompiledError, match="nothing"):
        compile_plugin(tmp_path / "plugin")
