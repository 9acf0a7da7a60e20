"""What an agent keeps is its user's alone, whom it talks to is verified, and its password is nobody's to read."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import text

from ledger.database import open_engine
from ledger.schema import migrate
from tests.agents import COMMAND, END_SECONDS_MAX, ROOT, RunningAgent, Sandbox
from tests.postgresql import Server, unprivileged
from tests.test_agent import NODES, P, pod, until, write

# What lies on disk ----------------------------------------------------------------------------------


def test_all_that_the_agent_makes_is_its_users_alone(plugin: Path, tmp_path: Path) -> None:
    """Though it is started with a umask that keeps nothing from anybody, in folders that are not there yet."""
    cluster = tmp_path / "cluster"
    cluster.mkdir()
    write(cluster, "nodes.yaml", NODES + pod("web-0", "uid-0"))
    write(cluster, "pool.yaml", P)
    made = tmp_path / "made"
    listening = {"SPIDERLEDGER_STATE": str(made / "var" / "state")}
    agent = RunningAgent(plugin, cluster, made / "run" / "state", environment=listening)
    agent.log_path = tmp_path / "log"
    before = os.umask(0)
    try:
        agent.start()
    finally:
        os.umask(before)
    try:
        assert agent.add(Sandbox("c1", pod="web-0", uid="uid-0")).code == 0
        (cluster / "broken.yaml").symlink_to("nowhere")  # What is not seen now proves nothing: the DEL is spooled.
        write(cluster, "nodes.yaml", NODES)
        assert agent.delete(Sandbox("c1", pod="web-0", uid="uid-0")).code == 0
        found = {path.relative_to(made).as_posix(): stat.S_IMODE(path.lstat().st_mode) for path in made.rglob("*")}
    finally:
        agent.kill()
    ledger = {f"var/state/ledger.db{more}" for more in ("", "-wal", "-shm", ".lock")}
    files = {*ledger, "var/state/witness", "var/state/spool/c1:eth0", "run/state/agent.sock"}
    folders = {"var", "var/state", "var/state/spool", "run", "run/state"}
    assert found == {**dict.fromkeys(files, 0o600), **dict.fromkeys(folders, 0o700)}
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


# TLS ------------------------------------------------------------------------------------------------

PASSWORD = "a-secret-that-nobody-may-read"
HOST = "localhost"
DAYS = "2"


def openssl(folder: Path, *arguments: str) -> None:
    """As an administrator makes keys and certificates."""
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def authority(folder: Path, name: str) -> Path:
    """A certificate authority's certificate."""
    subject = ("-subj", f"/CN={name}", "-days", DAYS, "-keyout", f"{name}.key", "-out", f"{name}.crt")
    openssl(folder, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", *subject)
    return folder / f"{name}.crt"


def certificate(folder: Path, by: str, host: str, name: str) -> tuple[Path, Path]:
    """A server's certificate for this host, signed by the authority of this name, and its key."""
    request = ("-subj", f"/CN={host}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
    openssl(folder, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", *request)
    (folder / f"{name}.ext").write_text(f"subjectAltName=DNS:{host}\n")
    signed = ("-CA", f"{by}.crt", "-CAkey", f"{by}.key", "-CAcreateserial", "-extfile", f"{name}.ext")
    openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-days", DAYS, *signed, "-out", f"{name}.crt")
    return folder / f"{name}.crt", folder / f"{name}.key"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority that signed the server's certificate, and another one."""
    folder = tmp_path_factory.mktemp("keys")
    authority(folder, "ours")
    authority(folder, "theirs")
    certificate(folder, "ours", HOST, "server")
    return folder


@pytest.fixture(scope="module")
def secured(keys: Path) -> Iterator[int]:
    """The port of a server that takes only TLS and passwords over TCP, with a migrated ledger."""
    server = Server().create()
    data = server.folder / "data"
    for name in ("server.crt", "server.key"):
        shutil.copy(keys / name, data / name)
        (data / name).chmod(0o600)
        if user := unprivileged():
            os.chown(data / name, *user)
    hba = "local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n"
    (data / "pg_hba.conf").write_text(hba)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server.port = int(free.getsockname()[1])
    server.options = ("-c", "listen_addresses=127.0.0.1", "-c", "ssl=on")
    server.start()
    engine = open_engine(server.url())
    migrate(engine)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE node LOGIN IN ROLE spiderledger_agent PASSWORD '{PASSWORD}'"))
    engine.dispose()
    yield server.port
    server.remove()


def address(port: int, authority: Path, host: str = HOST, password: str = PASSWORD) -> str:
    """As operations.md says: verified, by the authority in this file."""
    # The address is said beside the name, so that no resolver has a part in it.
    return (
        f"postgresql://node:{password}@{host}:{port}/postgres?hostaddr=127.0.0.1"
        f"&sslmode=verify-full&sslrootcert={authority}"
    )


def test_an_agent_works_over_verified_tls(plugin: Path, tmp_path: Path, keys: Path, secured: int) -> None:
    cluster = tmp_path / "cluster"
    cluster.mkdir()
    write(cluster, "nodes.yaml", NODES + pod("web-0", "uid-0"))
    write(cluster, "pool.yaml", P)
    database = address(secured, keys / "ours.crt")
    with RunningAgent(plugin, cluster, tmp_path / "state", database, ("--doubt", "0")) as agent:
        assert agent.add(Sandbox("c1", pod="web-0", uid="uid-0")).addresses == ["10.9.0.10/24"]
        engine = open_engine(database)
        with engine.connect() as connection:
            query = "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'node'"
            assert connection.execute(text(query)).scalar_one() is True
        engine.dispose()
        assert agent.ask("verify").status == 0


WRONG = {
    "authority": ({"authority": "theirs.crt"}, "certificate verify failed"),
    "host name": ({"host": "elsewhere.example"}, 'does not match host name "elsewhere.example"'),
    "authority file": ({"authority": "nobodys.crt"}, "nobodys.crt"),
    "password": ({"password": "wrong-" + PASSWORD}, "password authentication failed"),
}


@pytest.mark.parametrize(("changed", "sentence"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_server_is_refused_with_one_sentence(
    plugin: Path, tmp_path: Path, keys: Path, secured: int, changed: dict[str, str], sentence: str
) -> None:
    said = {"authority": "ours.crt", **changed}
    database = address(secured, keys / said.pop("authority"), **said)
    agent = RunningAgent(plugin, None, tmp_path / "state", database, ("--doubt", "0"))
    for words in (("migrate",), ("allocate", "x", "--pool", "p", "--reason", "r")):
        answer = agent.ask(*words)
        assert answer.status == 2, answer
        told = answer.err.decode()
        assert sentence in told, told
        assert told.count("\n") == 1, told
        assert PASSWORD not in told
    agent.launch()
    try:
        until(agent.socket.exists)
        until(lambda: sentence in agent.status().document.get("msg", ""))
        assert agent.add(Sandbox("c1")).code == 11
        assert agent.stop() == 0
        assert PASSWORD not in agent.log
        assert "Traceback" not in agent.log
    finally:
        agent.kill()


# Secrets --------------------------------------------------------------------------------------------

UNUSABLE = {
    "a port that is none": "postgresql://node:{0}@localhost:port/ledger",
    "a broken escape": "postgresql://node:{0}%ZZ@[::1/ledger",
    "an unknown option": "postgresql://node:{0}@/ledger?host={1}&nonsense=1",
    "a wrong option": "postgresql://node@/ledger?host={1}&password={0}&sslmode=nonsense",
    "nobody there": "postgresql://node:{0}@/ledger?host={1}",
    "another database": "mysql://node:{0}@localhost/ledger",
}


@pytest.mark.parametrize("form", UNUSABLE.values(), ids=UNUSABLE.keys())
def test_an_address_that_cannot_be_used_is_told_without_its_password(plugin: Path, tmp_path: Path, form: str) -> None:
    agent = RunningAgent(plugin, None, tmp_path / "state", form.format(PASSWORD, tmp_path))
    for words in (("migrate",), ("projector",)):
        answer = agent.ask(*words)
        assert answer.status == 2, answer
        assert PASSWORD.encode() not in answer.out + answer.err, answer
        assert answer.err.count(b"\n") == 1, answer


def command_lines() -> str:
    """Those of all processes: everybody can read them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # It has ended.
            found.append(path.read_bytes().decode(errors="replace"))
    return "\n".join(found)


def test_the_password_stands_in_no_command_line_log_or_event(
    plugin: Path, tmp_path: Path, keys: Path, secured: int
) -> None:
    database = address(secured, keys / "ours.crt")
    file = tmp_path / "address"
    file.write_text(database)
    chatty = ("--doubt", "0", "--log-level", "debug", "--node", "node-1")
    with RunningAgent(plugin, None, tmp_path / "state", database, chatty) as agent:
        agent.add(Sandbox("c1"))
        beside = subprocess.Popen([*COMMAND, "--database-file", str(file), "projector"], cwd=ROOT)
        try:
            until(lambda: "projector" in command_lines())
            assert PASSWORD not in command_lines()
        finally:
            beside.terminate()
            beside.wait(END_SECONDS_MAX)
        assert agent.ask("allocate", "x", "--pool", "none", "--reason", "r").status == 1
        log = agent.log
    assert "serving on" in log
    assert PASSWORD not in log
    engine = open_engine(database)
    with engine.connect() as connection:
        journal = connection.execute(text("SELECT string_agg(event::text, ' ') FROM event")).scalar_one()
    engine.dispose()
    assert "ledger.opened" in journal
    assert PASSWORD not in journal


def test_an_address_with_a_password_and_no_scheme_is_refused_and_becomes_no_file(tmp_path: Path) -> None:
    said = subprocess.run(
        [*COMMAND, "migrate"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SPIDERLEDGER_DATABASE": "node:do-not-tell@localhost"},
    )  # fmt: skip
    assert (said.returncode, said.stdout, said.stderr.count("\n")) == (2, "", 1)
    assert "has an @ and no postgresql:// before it" in said.stderr
    assert "do-not-tell" not in said.stderr
    assert list(tmp_path.iterdir()) == []
