"""The command line as people and scripts use it: the real program, as a process, on both databases."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import Engine, create_engine, select, text, update

from ledger.addresses import parse
from ledger.claims import Subject
from ledger.commands import printable
from ledger.database import database_url
from ledger.events import EventType
from ledger.requests import Candidate
from ledger.store import Ledger
from ledger.tables import checkpoint, occupancy
from ledger.times import moment, rfc3339
from ledger.writer import WriterLock
from projector import checkpoints
from projector.lines import HoldingLine
from projector.present import AsOf
from projector.printing import Table, history_table, laid_out, up_to
from projector.projections import Holding
from tests.acts import Pod, a_pool, a_reservation, add, define, delete, given, journal, one, pods, until
from tests.conftest import Database
from tests.postgresql import Server

ROOT = Path(__file__).parent.parent
COMMAND = (sys.executable, "-m", "spiderledger")
AS_INSTALLED = (
    sys.executable,
    "-c",
    "import sys; sys.argv[0] = 'spiderledger'; import spiderledger; spiderledger.main()",
)
RUN_SECONDS_MAX = 120
TIME = re.compile(r"[0-9-]{10}T[0-9:]{8}(?:\.[0-9]{6})?Z")
SECOND = "T..................Z"
MICROSECOND = "T.........................Z"
WIDE_BLANKS = re.compile(" {3,}")


@dataclass(frozen=True)
class Outcome:
    """What a run ended with, and what it printed, times blotted out at their width."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """What it printed, for comparing word by word."""
        return TIME.sub(lambda found: f"T{'.' * (len(found[0]) - 2)}Z", self.out).splitlines()

    @property
    def document(self) -> Any:
        """The JSON that it printed."""
        assert self.code in (0, 1), self
        return json.loads(self.out)


@dataclass(frozen=True)
class CommandLine:
    """The program with an environment of its own."""

    database: str
    state: Path
    command: Sequence[str] = COMMAND

    def __call__(self, *arguments: str, **environment: str) -> Outcome:
        done = subprocess.run(
            [*self.command, *arguments], env={**self.environment, **environment}, cwd=ROOT, capture_output=True,
            text=True, timeout=RUN_SECONDS_MAX, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return Outcome(done.returncode, done.stdout, done.stderr)

    @property
    def environment(self) -> dict[str, str]:
        """Nothing of the tester's own but the ways to programs."""
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        ours = {"SPIDERLEDGER_DATABASE": self.database, "SPIDERLEDGER_STATE": str(self.state)}
        return {**kept, **ours, "USER": "ada", "TERM": "xterm"}


@pytest.fixture
def run(database: Database, tmp_path: Path) -> CommandLine:
    """The program on the test's ledger."""
    return CommandLine(database.url, tmp_path)


@contextmanager
def writer(database: Database) -> Iterator[Ledger]:
    """The ledger, as an agent that is stopped before the command line is used."""
    engine = database.engine()
    try:
        yield Ledger(engine)
    finally:
        engine.dispose()


ALPHA = Pod("test-app-j9ftl", "u1", "c1", "controller-node-1")
BETA = Pod("test-app-nkq5h", "u2", "c2", "worker-node-1")
GONE = Pod("gone", "u3", "c3", "worker-node-1")


def define_zones(ledger: Ledger) -> None:
    """The pools of the cross-zone scenario, and one address of the second reserved."""
    six = a_pool("test-ippool-6", "10.6.168.60-10.6.168.69", subnet="10.6.0.0/16", cooling=86_400)
    seven = a_pool("test-ippool-7", "10.7.168.60-10.7.168.69", subnet="10.7.0.0/16", node_name=("n1", "n2"))
    define(ledger, six, seven, a_reservation("rest", "10.7.168.69"))


def fill(database: Database) -> None:
    """Two pods hold an address each, a third has had one, and an unlucky one was refused."""
    with writer(database) as ledger:
        define_zones(ledger)
        assert given(ledger, ALPHA, "test-ippool-6") == "10.6.168.60"
        assert given(ledger, BETA, "test-ippool-7") == "10.7.168.60"
        assert given(ledger, GONE, "test-ippool-6") == "10.6.168.61"
        one(ledger, delete(GONE, node_time=1 << 60))
        ask = add(ledger.definition(), Pod("unlucky", "u4", "c4"), "test-ippool-6", address="10.6.168.60", exact=True)
        looked_at = (Candidate("test-ippool-6"), Candidate("test-ippool-7", "unmatched nodeName"))
        one(ledger, replace(ask, wants=(replace(ask.wants[0], candidates=looked_at),)))


def cells(line: str) -> list[str]:
    return WIDE_BLANKS.split(line)


# Tables and documents ---------------------------------------------------------------------------


def test_a_table_is_as_wide_as_its_cells_and_has_no_borders() -> None:
    table = Table(("NAME", "N", "LAST"), [("a", "1", ""), ("long-name", "22", "x y")])
    assert laid_out(table) == [
        "NAME        N    LAST",
        "a           1",
        "long-name   22   x y",
    ]  # fmt: skip


def test_pools_are_printed_with_the_columns_that_kubectl_shows(database: Database, run: CommandLine) -> None:
    fill(database)
    shown = run("get", "pools")
    assert (shown.code, shown.err) == (0, "")
    assert shown.lines == [
        "NAME            VERSION   SUBNET        ALLOCATED-IP-COUNT   TOTAL-IP-COUNT   DEFAULT   DISABLE",
        "test-ippool-6   4         10.6.0.0/16   1                    10               false     false",
        "test-ippool-7   4         10.7.0.0/16   1                    10               false     false",
    ]
    wide = [cells(line)[7:] for line in run("get", "pools", "-o", "wide").lines]
    assert wide == [
        ["NODENAME", "MULTUSNAME", "APP-NAMESPACE", "STATE", "WITHHELD", "COOLING", "REFUSED"],
        ["<none>", "<none>", "<none>", "open", "0", "1", "1"],
        ["n1,n2", "<none>", "<none>", "open", "1", "0", "0"],
    ]


def test_json_and_yaml_are_one_document_with_stable_names(database: Database, run: CommandLine) -> None:
    fill(database)
    found = run("get", "pools", "-o", "json").document
    assert [*found] == ["items", "as_of"]
    assert found["items"][1] == {
        "name": "test-ippool-7", "version": 4, "subnet": "10.7.0.0/16", "allocated": 1, "total": 10, "default": False,
        "disable": False, "node_name": ["n1", "n2"], "multus_name": [], "app_namespace": "", "state": "open",
        "withheld": 1, "cooling": 0, "refused": 0,
    }  # fmt: skip
    assert yaml.safe_load(run("get", "pools", "-o", "yaml").out)["items"] == found["items"]
    assert [*found["as_of"]] == ["tx", "position", "recorded_at", "read_at", "complete"]
    assert TIME.fullmatch(found["as_of"]["recorded_at"])


def test_allocations_are_printed(database: Database, run: CommandLine) -> None:
    fill(database)
    assert run("get", "allocations", "-o", "wide").lines == [
        "POD                      INTERFACE   IP               POOL            NODE                SINCE"
        "                  CONTAINER",
        f"default/test-app-j9ftl   eth0        10.6.168.60/16   test-ippool-6   controller-node-1   {SECOND}   c1",
        f"default/test-app-nkq5h   eth0        10.7.168.60/16   test-ippool-7   worker-node-1       {SECOND}   c2",
    ]
    first = run("get", "allocations", "-o", "json").document["items"][0]
    began = journal(database.engine(), EventType.ALLOCATED)[0].happened_at
    assert (first["ip"], first["name"], first["uid"], first["since"]) == (
        "10.6.168.60", "test-app-j9ftl", "u1", rfc3339(began),
    )  # fmt: skip


def test_an_allocation_is_as_old_as_its_holding_and_not_as_its_container(database: Database, run: CommandLine) -> None:
    fill(database)
    with writer(database) as ledger:
        assert given(ledger, ALPHA.new("c1-again"), "test-ippool-6") == "10.6.168.60"
    first = run("get", "allocations", "-o", "json").document["items"][0]
    began = journal(database.engine(), EventType.ALLOCATED)[0].happened_at
    assert (first["container"], first["since"]) == ("c1-again", rfc3339(began))


def test_events_are_printed_newest_first(database: Database, run: CommandLine) -> None:
    fill(database)
    assert run("get", "events").lines == [
        "TIME                   TYPE                  IP            POD                      POOL            "
        "NODE                ACTOR        CAUSE",
        f"{SECOND}   allocation.refused    <none>        default/unlucky          test-ippool-6   "
        "node-1              agent        add",
        f"{SECOND}   address.released      10.6.168.61   default/gone             test-ippool-6   "
        "worker-node-1       agent        del",
        f"{SECOND}   address.allocated     10.6.168.61   default/gone             test-ippool-6   "
        "worker-node-1       agent        add",
        f"{SECOND}   address.allocated     10.7.168.60   default/test-app-nkq5h   test-ippool-7   "
        "worker-node-1       agent        add",
        f"{SECOND}   address.allocated     10.6.168.60   default/test-app-j9ftl   test-ippool-6   "
        "controller-node-1   agent        add",
        f"{SECOND}   reservation.defined   <none>        <none>                   <none>          "
        "<none>              controller   test",
        f"{SECOND}   pool.defined          <none>        <none>                   test-ippool-7   "
        "<none>              controller   test",
        f"{SECOND}   pool.defined          <none>        <none>                   test-ippool-6   "
        "<none>              controller   test",
        f"{SECOND}   ledger.opened         <none>        <none>                   <none>          "
        "<none>              agent        standing",
    ]


@pytest.mark.parametrize(("filters", "expected"), [
    (("--pod", "gone"), ["address.released", "address.allocated"]),
    (("--pool", "test-ippool-7", "--ip", "10.7.168.60", "--node", "worker-node-1"), ["address.allocated"]),
    (("--until", "-1h"), []),
    (("--since", "-1h", "--type", "ledger.opened", "--type", "reservation.defined"),
     ["reservation.defined", "ledger.opened"]),
], ids=" ".join)  # fmt: skip
def test_events_are_filtered(sqlite: Database, tmp_path: Path, filters: tuple[str, ...], expected: list[str]) -> None:
    fill(sqlite)
    found = CommandLine(sqlite.url, tmp_path)("get", "events", "-o", "json", *filters)
    assert [each["type"] for each in found.document["items"]] == expected


def test_events_are_read_on_from_where_a_limit_stopped(database: Database, run: CommandLine) -> None:
    fill(database)
    first = run("get", "events", "--limit", "1", "-o", "json")
    found = re.fullmatch(r"There may be older ones: ask on with --before (\S+)\.\n", first.err)
    assert found
    second = run("get", "events", "--limit", "1", "-o", "json", "--before", found[1])
    types = [each["type"] for answer in (first, second) for each in answer.document["items"]]
    assert types == ["allocation.refused", "address.released"]


def test_nothing_to_get_is_said_on_stderr_and_is_no_failure(database: Database, run: CommandLine) -> None:
    for what in ("pools", "allocations"):
        shown = run("get", what)
        assert (shown.code, shown.out, shown.err) == (0, "", "No resources found.\n")


def test_every_allocation_is_printed_however_many_there_are(sqlite: Database, tmp_path: Path) -> None:
    with writer(sqlite) as ledger:
        definition = define(ledger, a_pool("big", "10.1.0.1-10.1.8.0"))
        ledger.act([add(definition, pod) for pod in pods(1_001)])
    found = CommandLine(sqlite.url, tmp_path)("get", "allocations", "-o", "json").document["items"]
    assert len({each["name"] for each in found}) == len(found) == 1_001
    assert all(TIME.fullmatch(each["since"]) for each in found)


# The audit --------------------------------------------------------------------------------------


def test_who_held_says_what_an_address_was(database: Database, run: CommandLine) -> None:
    fill(database)
    held, gone, _ = (rfc3339(each.happened_at) for each in _of_address(database, "10.6.168.60", "10.6.168.61"))
    now = [
        ("10.6.168.60", 0, f"held default/test-app-j9ftl eth0 test-ippool-6 controller-node-1 {MICROSECOND} <none>"),
        ("10.6.168.61", 1, f"cooling <none> <none> test-ippool-6 <none> <none> {MICROSECOND}"),
        ("10.6.168.62", 1, "free <none> <none> test-ippool-6 <none> <none> <none>"),
        ("10.7.168.69", 1, "withheld <none> <none> test-ippool-7 <none> <none> <none>"),
        ("192.0.2.1", 1, "unknown <none> <none> <none> <none> <none> <none>"),
    ]
    for ip, code, expected in now:
        answer = run("who-held", ip)
        assert (answer.code, cells(answer.lines[1])) == (code, [ip, *expected.split()]), ip
    then = run("who-held", "10.6.168.61", "--at", gone)
    assert (then.code, cells(then.lines[1])[1:3]) == (0, ["held", "default/gone"])
    earlier = run("who-held", "10.6.168.61", "--at", held)
    assert (earlier.code, cells(earlier.lines[1])[1:3]) == (1, ["free", "<none>"])


def _of_address(database: Database, *ips: str) -> list[Any]:
    """The events of these addresses, oldest first."""
    wanted = {parse(ip) for ip in ips}
    found = [event for event in journal(database.engine()) if event.ip in wanted]
    return sorted(found, key=lambda event: event.recorded_at)


def test_who_held_says_up_to_which_event_and_time_it_holds(database: Database, run: CommandLine) -> None:
    fill(database)
    last = journal(database.engine())[-1]
    answer = run("who-held", "10.6.168.61")
    *_, empty, moment_, before = answer.out.splitlines()
    upto = f"Complete up to event {last.tx}/{last.position}, recorded at {rfc3339(last.recorded_at)}; read at "
    assert (empty, upto in moment_) == ("", True), moment_
    assert re.fullmatch(r"The last before who held it was default/gone, until \S+Z\.", before)
    said = run("who-held", "10.6.168.61", "-o", "json").document
    assert (said["standing"], said["holding"], said["last"]["subject"]["name"]) == ("cooling", None, "gone")
    assert (said["as_of"]["tx"], said["as_of"]["position"]) == (last.tx, last.position)


@pytest.mark.parametrize(("at", "why"), [
    ("2026-03-31T14:03:00", "is not a time with its zone"),
    ("2999-01-01T00:00:00Z", "lies in the future"),
])  # fmt: skip
def test_who_held_takes_no_time_that_can_be_misunderstood(sqlite: Database, tmp_path: Path, at: str, why: str) -> None:
    answer = CommandLine(sqlite.url, tmp_path)("who-held", "10.6.168.61", "--at", at)
    assert (answer.code, answer.out) == (2, "")
    assert at in answer.err
    assert why in answer.err


NOW = datetime(2026, 3, 31, 14, 3, tzinfo=UTC)
NOW_US = 1_774_965_780_000_000


@pytest.mark.parametrize(("said", "meant"), [
    ("now", NOW),
    ("-2h", NOW - timedelta(hours=2)),
    ("-1d2h30m15s", NOW - timedelta(days=1, hours=2, minutes=30, seconds=15)),
    ("2026-03-31T14:03:00Z", NOW),
    ("2026-03-31t16:03:00+02:00", NOW),
    ("2026-03-31 04:33:00-09:30", NOW),
    ("2026-03-31T14:03:00.000001z", NOW + timedelta(microseconds=1)),
    ("2026-03-31T14:03:00.0000019Z", NOW + timedelta(microseconds=1)),
    ("-999999999d", datetime(1970, 1, 1, tzinfo=UTC)),
    ("2h", None), ("-2w", None), ("-", None), ("", None), ("- 2h", None), ("-2h ", None),
    ("2026-03-31", None), ("2026-03-31T14:03Z", None), ("20260331T140300Z", None), ("2026-W14-2T14:03:00Z", None),
    ("2026-03-31T14:03:60Z", None), ("2026-03-31T25:03:00Z", None), ("2026-03-31T14:03:00+0200", None),
])  # fmt: skip
def test_a_time_is_rfc_3339_with_a_zone_or_so_long_ago(said: str, meant: datetime | None) -> None:
    if meant is None:
        with pytest.raises(ValueError, match="RFC 3339"):
            moment(said, NOW_US)
    else:
        assert moment(said, NOW_US) == NOW_US + (meant - NOW) // timedelta(microseconds=1)


@pytest.mark.parametrize(("at", "exact", "expected"), [
    (NOW_US, True, "2026-03-31T14:03:00.000000Z"),
    (NOW_US + 999_999, False, "2026-03-31T14:03:00Z"),
    (2**62, True, "9999-12-31T23:59:59.999999Z"),
    (-(2**62), True, "0001-01-01T00:00:00.000000Z"),
    (None, True, ""),
])  # fmt: skip
def test_a_time_is_written_in_utc(at: int | None, exact: bool, expected: str) -> None:
    assert rfc3339(at, exact=exact) == expected


@pytest.mark.parametrize(("as_of", "sentence"), [
    (AsOf(5, 7, NOW_US, NOW_US + 1), "Complete up to event 5/7, recorded at 2026-03-31T14:03:00.000000Z; "
     "read at 2026-03-31T14:03:00.000001Z."),
    (AsOf(5, 7, NOW_US, NOW_US + 1, complete=False), "Complete up to event 5/7, recorded at "
     "2026-03-31T14:03:00.000000Z; the projections are too far behind for what came later, until "
     "2026-03-31T14:03:00.000001Z."),
    (AsOf(0, 0, None, NOW_US), "The journal has no event yet; read at 2026-03-31T14:03:00.000000Z."),
])  # fmt: skip
def test_an_answer_says_how_far_it_holds(as_of: AsOf, sentence: str) -> None:
    assert up_to(as_of) == sentence


@pytest.mark.parametrize(("cited", "subject", "shown"), [
    (b"1", Subject("", "default", "web-0", "u1"), "default/web-0"),
    (b"1", None, "<removed>"),
    (None, None, "<none>"),
])  # fmt: skip
def test_names_that_were_removed_are_no_names_that_never_were(
    cited: bytes | None, subject: Subject | None, shown: str
) -> None:
    line = HoldingLine(Holding(parse("10.6.168.60"), 1, subject=cited), "p", subject)
    assert history_table([line], wide=False).rows[0][1] == shown


def test_history_is_told_of_an_address_and_of_a_pod(database: Database, run: CommandLine) -> None:
    fill(database)
    by_ip, by_pod = run("history", "10.6.168.61"), run("history", "gone")
    assert by_ip.code == by_pod.code == 0
    assert by_ip.lines[:3] == [
        "IP            POD            INTERFACE   POOL            NODE            FROM                          UNTIL",
        f"10.6.168.61   default/gone   eth0        test-ippool-6   worker-node-1   {MICROSECOND}   {MICROSECOND}",
        "",
    ]
    assert by_ip.lines[3].startswith("Complete up to event ")
    assert by_pod.out.splitlines()[:2] == by_ip.out.splitlines()[:2]
    nobody = run("history", "kube-system/gone")
    assert (nobody.code, nobody.out) == (1, "")
    assert nobody.err.startswith("No resources found.\nComplete up to event ")


def test_explain_tells_each_pool_that_was_looked_at(database: Database, run: CommandLine) -> None:
    fill(database)
    assert run("explain", "unlucky").lines[:-2] == [
        "TIME                          OUTCOME   INTERFACE   IP       POOL            WHY",
        f"{MICROSECOND}   refused   eth0        <none>   <none>          "
        "address-taken: 10.6.168.60 is already allocated",
        "                                                             test-ippool-6   tried",
        "                                                             test-ippool-7   passed over: unmatched nodeName",
    ]
    assert cells(run("explain", "default/gone").lines[1]) == [
        MICROSECOND, "allocated", "eth0", "10.6.168.61", "test-ippool-6", f"held until {MICROSECOND} (del)",
    ]  # fmt: skip
    assert run("explain", "nobody").code == 1


@pytest.mark.parametrize("words", [
    ("history", "a/b/c"), ("explain", "default/"), ("who-held", "10.6.168.60/x"),
    ("get", "events", "--type", "address.painted"), ("get", "events", "--before", "7"),
    ("get", "pools", "-o", "xml"), ("allocate", "web-0", "--pool", "p"),
], ids=" ".join)  # fmt: skip
def test_what_is_not_understood_is_said_and_ends_with_2(
    sqlite: Database, tmp_path: Path, words: tuple[str, ...]
) -> None:
    answer = CommandLine(sqlite.url, tmp_path)(*words)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err


# Orders by hand ---------------------------------------------------------------------------------


def test_an_operator_gives_and_takes_an_address_and_the_journal_says_who_and_why(
    database: Database, run: CommandLine
) -> None:
    with writer(database) as ledger:
        define_zones(ledger)
    ask = ("allocate", "printer", "--pool", "test-ippool-6", "--reason")
    assert run(*ask, "by the door").out == "10.6.168.60 is held by default/printer (pool test-ippool-6)\n"
    assert run(*ask, "asked again").out == "10.6.168.60 is held by default/printer (pool test-ippool-6)\n"
    taken = run("allocate", "scanner", "--pool", "test-ippool-6", "--address", "10.6.168.60", "--reason", "x")
    assert (taken.code, taken.out) == (1, "")
    assert "10.6.168.60" in taken.err
    other = run("allocate", "printer", "--pool", "test-ippool-6", "--address", "10.6.168.61", "--reason", "x")
    assert (other.code, other.out) == (1, "")
    assert "printer holds 10.6.168.60 already: release it first" in other.err
    gone = run("release", "10.6.168.60", "--reason", "sold", "--operator", "bob")
    assert (gone.code, gone.out) == (0, "10.6.168.60 is released; default/printer held it\n")
    again = run("release", "10.6.168.60", "--reason", "sold")
    assert (again.code, again.err) == (1, "spiderledger: nobody holds 10.6.168.60\n")
    found = [(each.type, each.actor, each.cause) for each in _of_address(database, "10.6.168.60")]
    assert found == [("address.allocated", "ada", "by the door"), ("address.released", "bob", "operator")]
    assert journal(database.engine(), EventType.RELEASED)[0].details["evidence"] == {"reason": "sold"}


def test_a_reason_cannot_forge_a_line_or_colour_a_terminal(database: Database, run: CommandLine) -> None:
    with writer(database) as ledger:
        define_zones(ledger)
    reason = "a\nb\x1b[31m"
    assert run("allocate", "printer", "--pool", "test-ippool-6", "--reason", reason).code == 0
    shown = run("get", "events", "--pod", "printer").out.splitlines()
    assert (len(shown), cells(shown[1])[-1]) == (2, r"a\nb\x1b[31m")
    assert printable("plain, ü 中") == "plain, ü 中"


@contextmanager
def agent(run: CommandLine, path: Path) -> Iterator[None]:
    """The agent of bare containers on this ledger, until the block ends."""
    with (path.with_suffix(".log")).open("wb") as log:
        process = subprocess.Popen(
            [*COMMAND, "agent", "--socket", str(path)], env=run.environment, cwd=ROOT, stdout=log, stderr=log
        )
    try:
        until(lambda: _answers(path) or process.poll() is not None, "the agent answers")
        assert process.poll() is None, path.with_suffix(".log").read_text()
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(RUN_SECONDS_MAX)


def _answers(path: Path) -> bool:
    with closing(socket.socket(socket.AF_UNIX)) as probe, suppress(OSError):
        probe.connect(str(path))
        return True
    return False


def test_on_sqlite_an_order_goes_to_the_agent_that_writes(sqlite: Database, tmp_path: Path) -> None:
    run, path = CommandLine(sqlite.url, tmp_path), tmp_path / "agent.sock"
    with writer(sqlite) as ledger:
        define_zones(ledger)
    ask = ("allocate", "printer", "--pool", "test-ippool-6", "--reason", "by the door")
    with agent(run, path):
        assert run(*ask, "--socket", str(path)).out == "10.6.168.60 is held by default/printer (pool test-ippool-6)\n"
        refused = run("release", "10.6.168.61", "--reason", "x", SPIDERLEDGER_SOCKET=str(path))
        assert (refused.code, refused.err) == (1, "spiderledger: nobody holds 10.6.168.61\n")
        elsewhere = run(*ask, "--socket", str(tmp_path / "nobody.sock"))
        assert (elsewhere.code, elsewhere.out) == (2, "")
        assert "no agent answers on" in elsewhere.err
        assert run("projector").code == run("migrate").code == 2
        assert cells(run("get", "allocations").lines[1])[:3] == ["default/printer", "<none>", "10.6.168.60/16"]


def test_an_answer_that_does_not_come_is_no_yes(sqlite: Database, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with closing(socket.socket(socket.AF_UNIX)) as deaf, _locked(sqlite):
        deaf.bind(str(path))
        deaf.listen()
        done = subprocess.Popen(
            [*COMMAND, "release", "10.6.168.60", "--reason", "x", "--socket", str(path)],
            env=CommandLine(sqlite.url, tmp_path).environment, cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        caller, _ = deaf.accept()
        caller.recv(1 << 16)
        caller.close()
        _, err = done.communicate(timeout=RUN_SECONDS_MAX)
    assert done.returncode == 2
    assert "look what became of the order" in err


@contextmanager
def _locked(database: Database) -> Iterator[None]:
    from ledger.database import Database as Place

    lock = WriterLock.take(Place(database.url, Path("/nowhere")))
    try:
        yield
    finally:
        lock.release()


# Whether it is true -----------------------------------------------------------------------------


def test_verify_says_how_much_is_right_and_up_to_where(database: Database, run: CommandLine) -> None:
    fill(database)
    last = journal(database.engine())[-1]
    answer = run("verify")
    expected = f"no faults: 9 events, 3 addresses, up to event {last.tx}/{last.position}\n"
    assert (answer.code, answer.out, answer.err) == (0, expected, "")


def test_verify_names_each_fault_and_ends_with_1(database: Database, run: CommandLine) -> None:
    fill(database)
    _execute(database.engine(), "UPDATE ledger SET fenced = 'by hand'")
    answer = run("verify")
    assert answer.code == 1
    assert "fenced" in answer.out
    assert answer.err.startswith("spiderledger: faults: 1 in 9 events")


def test_verify_is_no_yes_while_a_projection_is_being_rebuilt(database: Database, run: CommandLine) -> None:
    fill(database)
    with database.engine().begin() as connection:
        checkpoints.reset(connection, "holding")
    answer = run("verify")
    assert (answer.code, answer.out) == (2, "")
    assert "not judged: " in answer.err


def _execute(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(statement))


# Databases that are not as they should be -------------------------------------------------------


@pytest.fixture
def empty_postgresql(server: Server) -> Iterator[str]:
    """A database without tables."""
    admin = create_engine(database_url(server.url()), isolation_level="AUTOCOMMIT")
    _execute(admin, "CREATE DATABASE cli_empty")
    yield server.url("cli_empty")
    _execute(admin, "DROP DATABASE cli_empty WITH (FORCE)")
    admin.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def nothing_yet(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a ledger."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state/ledger.db"
    found: str = request.getfixturevalue("empty_postgresql")
    return found


def test_a_ledger_that_is_not_there_yet_is_made_by_migrate(nothing_yet: str, tmp_path: Path) -> None:
    run = CommandLine(nothing_yet, tmp_path / "state")
    for words in (("get", "pools"), ("verify",), ("release", "10.6.168.60", "--reason", "x")):
        missing = run(*words)
        assert (missing.code, missing.out, missing.err.count("\n")) == (2, "", 1)
        assert missing.err.endswith("run `spiderledger migrate`\n")
    assert not (tmp_path / "state").exists()
    assert re.fullmatch(r"the schema is at revision \S+\n", run("migrate").out)
    assert run("get", "pools").err == "No resources found.\n"


def test_migrate_says_who_is_in_its_way(postgresql: Database, tmp_path: Path) -> None:
    run = CommandLine(postgresql.url, tmp_path)
    with postgresql.engine().connect() as connection:
        name = connection.execute(text("SELECT max(relname) FROM pg_class WHERE relname ~ '^event_[0-9]+$'")).scalar()
        connection.execute(text(f"DROP TABLE {name}"))
        connection.commit()
        connection.execute(text("SELECT count(*) FROM event"))  # Its lock stays until the transaction ends.
        refused = run("migrate")
    assert (refused.code, refused.err.startswith("spiderledger: others are at work on the ledger, try again")) == (
        2,
        True,
    )
    assert run("migrate").code == 0


@pytest.mark.parametrize("words", [("get", "pools"), ("migrate",), ("allocate", "x", "--pool", "p", "--reason", "r")])
def test_a_database_that_is_away_is_one_line_without_its_password(tmp_path: Path, words: tuple[str, ...]) -> None:
    answer = CommandLine("postgresql://owner:s3cret@127.0.0.1:1/ledger", tmp_path)(*words)
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert "does not answer" in answer.err
    assert "s3cret" not in answer.err


def test_a_role_without_rights_is_told_so(postgresql: Database, tmp_path: Path) -> None:
    engine = postgresql.engine()
    _execute(engine, "CREATE ROLE stranger LOGIN")
    answer = CommandLine(postgresql.url.replace("owner@", "stranger@"), tmp_path)("get", "pools")
    _execute(engine, "DROP ROLE stranger")
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert "permission denied" in answer.err


def test_a_file_that_is_no_ledger_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("Dear Ada, this is no database at all.")
    answer = CommandLine(str(tmp_path / "letter"), tmp_path)("get", "pools")
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)


# The projector ----------------------------------------------------------------------------------


def test_the_projector_follows_until_it_is_told_to_stop(database: Database, run: CommandLine) -> None:
    fill(database)
    engine = database.engine(writes=False)
    process = subprocess.Popen(
        [*COMMAND, "projector"], env=run.environment, cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        until(lambda: len(_checkpoints(engine)) == 2 or process.poll() is not None, "both projections have read on")
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=RUN_SECONDS_MAX)
    last = journal(engine)[-1]
    assert (process.returncode, _checkpoints(engine)) == (0, [(last.tx, last.position)] * 2), err


def test_a_projection_is_made_anew_on_demand(database: Database, run: CommandLine) -> None:
    fill(database)
    engine = database.engine()
    assert run("projector", "--rebuild", "occupancy").code == 0
    with engine.begin() as connection:
        right = connection.execute(select(occupancy)).all()
        connection.execute(update(occupancy).values(allocated=occupancy.c.allocated + 7))
    engine.dispose()
    assert run("projector", "--rebuild", "occupancy").code == 0
    with engine.connect() as connection:
        assert connection.execute(select(occupancy)).all() == right != []
    engine.dispose()
    unknown = run("projector", "--rebuild", "occupation")
    assert (unknown.code, unknown.out) == (2, "")
    assert "there is no projection occupation: choose holding or occupancy" in unknown.err


def test_nobody_projects_beside_the_process_that_writes_the_file(sqlite: Database, tmp_path: Path) -> None:
    fill(sqlite)
    with _locked(sqlite):
        refused = CommandLine(sqlite.url, tmp_path)("projector", "--rebuild", "holding")
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert "another process writes to" in refused.err


def _checkpoints(engine: Engine) -> list[tuple[int, int]]:
    with engine.connect() as connection:
        return [(row.tx, row.position) for row in connection.execute(select(checkpoint))]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_whoever_waits_to_be_told_to_stop_is_told_in_the_middle_of_any_step(number: signal.Signals) -> None:
    waits = (
        "from ledger.commands import stop_on_signals\n"
        "stop = stop_on_signals()\n"
        "print('ready', flush=True)\n"
        "while not stop.wait(0): pass\n"
    )
    for _ in range(10):
        with subprocess.Popen([sys.executable, "-c", waits], cwd=ROOT, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(number)
            try:
                assert process.wait(RUN_SECONDS_MAX) == 0
            finally:
                process.kill()


# The plugin -------------------------------------------------------------------------------------


@pytest.fixture
def installation(tmp_path: Path) -> CommandLine:
    """An installation of its own, to which the plugin may be given."""
    made = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made], check=True, timeout=RUN_SECONDS_MAX)
    return CommandLine("", tmp_path, (str(made / "bin" / "python"), "-m", "spiderledger"))


def test_the_plugin_is_put_where_the_runtime_looks(installation: CommandLine, tmp_path: Path) -> None:
    places = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    missing = installation("install-plugin", str(plugins), **places)
    assert (missing.code, missing.out, list(plugins.iterdir())) == (2, "", [])
    assert "no plugin spiderpool in" in missing.err
    (tmp_path / "environment/bin/spiderpool").write_bytes(b"\x7fELF the new one")
    (plugins / "spiderpool").write_bytes(b"the old one")
    with (plugins / "spiderpool").open("rb") as running:
        done = installation("install-plugin", str(plugins), **places)
        assert (done.code, done.out) == (0, f"installed {plugins}/spiderpool\n")
        assert running.read() == b"the old one"
    [there] = plugins.iterdir()
    assert (there.read_bytes(), there.stat().st_mode & 0o7777) == (b"\x7fELF the new one", 0o755)
    nowhere = installation("install-plugin", str(tmp_path / "nowhere"), **places)
    assert (nowhere.code, nowhere.err) == (2, f"spiderledger: {tmp_path}/nowhere is not a folder\n")


# The shell --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("typed", "expected"), [
    ("spiderledger ", {"migrate", "projector", "install-plugin", "get", "who-held", "history", "explain", "allocate",
                       "release", "verify", "agent"}),
    ("spiderledger who", {"who-held"}),
    ("spiderledger get ", {"pools", "allocations", "events"}),
    ("spiderledger get pools -o ", {"table", "wide", "json", "yaml"}),
])  # fmt: skip
def test_the_shell_completes_verbs(tmp_path: Path, typed: str, expected: set[str]) -> None:
    asked = {"_SPIDERLEDGER_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    answer = CommandLine("", tmp_path, AS_INSTALLED)(**asked)
    assert expected <= set(answer.out.split())


def test_the_verbs_never_load_the_kubernetes_client(sqlite: Database, tmp_path: Path) -> None:
    program = (
        "import sys, spiderledger; sys.argv = ['spiderledger', 'get', 'pools']\n"
        "try: spiderledger.main()\n"
        "finally: print('loaded:', 'kubernetes' in sys.modules, 'projector.answers' in sys.modules)"
    )
    answer = CommandLine(sqlite.url, tmp_path, (sys.executable, "-c", program))()
    assert answer.out == "loaded: False True\n"


def test_the_modules_of_the_verbs_are_quick_to_load(tmp_path: Path) -> None:
    program = (
        "import sys, ledger.commands, projector.commands, cni.commands\n"
        "print(sorted({'sqlalchemy', 'pydantic', 'yaml', 'rich', 'alembic'} & set(sys.modules)))"
    )
    assert CommandLine("", tmp_path, (sys.executable, "-c", program))().out == "[]\n"


def test_headings_are_bold_on_a_terminal_and_plain_in_a_pipe(sqlite: Database, tmp_path: Path) -> None:
    fill(sqlite)
    run = CommandLine(sqlite.url, tmp_path)
    assert "\x1b" not in run("get", "pools").out
    shown = _on_a_terminal([*COMMAND, "get", "pools"], run.environment)
    assert shown.startswith("\x1b[1mNAME ")
    assert shown.count("\x1b") == 2


def _on_a_terminal(command: Sequence[str], environment: Mapping[str, str]) -> str:
    ours, theirs = pty.openpty()
    try:
        subprocess.run(command, env=environment, cwd=ROOT, stdout=theirs, check=True, timeout=RUN_SECONDS_MAX)
        return os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)
