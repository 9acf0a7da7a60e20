"""The rights of the agent's role: it needs each of them, and has no others.

Each right is taken away once, in a ledger of its own, and then the agent's work must fail for the lack of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from ledger.operating import perform
from ledger.redefine import DefinePool, RetirePool, RetireReservation
from ledger.schema import check_schema
from ledger.store import Ledger, Settings
from ledger.verify import verify
from projector.projections import PROJECTIONS
from projector.tail import Tail, rebuild
from tests.acts import Pod, a_pool, a_reservation, add, close, define, delete, given, one
from tests.conftest import Database

AGENT = "spiderledger_agent"
LOGIN = "lone_agent"
RIGHTS = (
    "DELETE ON extent", "DELETE ON holding", "DELETE ON object_uid", "DELETE ON occupancy",
    "INSERT ON address", "INSERT ON checkpoint", "INSERT ON event", "INSERT ON extent", "INSERT ON holding",
    "INSERT ON object_uid", "INSERT ON occupancy", "INSERT ON pool", "INSERT ON reservation", "INSERT ON subject",
    "SELECT ON address", "SELECT ON alembic_version", "SELECT ON checkpoint", "SELECT ON event", "SELECT ON extent",
    "SELECT ON holding", "SELECT ON ledger", "SELECT ON object_uid", "SELECT ON occupancy", "SELECT ON pool",
    "SELECT ON reservation", "SELECT ON subject",
    "UPDATE ON address", "UPDATE ON checkpoint", "UPDATE ON extent", "UPDATE ON holding", "UPDATE ON ledger",
    "UPDATE ON occupancy", "UPDATE ON pool", "UPDATE ON reservation",
)  # fmt: skip


@pytest.fixture
def login(postgresql: Database) -> Iterator[Database]:
    """The ledger, as an agent logs in to it."""
    with postgresql.engine().begin() as connection:
        connection.execute(text(f"CREATE ROLE {LOGIN} LOGIN IN ROLE {AGENT}"))
    database = Database("postgresql", postgresql.url.replace("//owner@", f"//{LOGIN}@"))
    yield database
    database.dispose()
    with postgresql.engine().begin() as connection:
        connection.execute(text(f"DROP ROLE {LOGIN}"))


def work(engine: Engine) -> None:
    """All that agent, controller, projector and an operator beside them ask of a database."""
    check_schema(engine)
    ledger = Ledger(engine, Settings(doubt_seconds=0))
    ledger.name_objects([("Pod", "default", "web"), ("Pod", "default", "other")])
    ledger.name_objects([("Pod", "default", "web")])
    first, last = a_pool("p", "10.1.0.1-10.1.0.9"), a_pool("p", "10.1.0.1-10.1.0.5")
    define(ledger, first, a_pool("q", "10.1.1.1"), a_reservation("r", "10.1.0.3"), last)
    define(ledger, DefinePool(first), a_reservation("r", "10.1.0.2"), RetireReservation("uid-r"))
    pod, refused = Pod(), Pod("none", "none", "none")
    given(ledger, pod, "p")
    given(ledger, pod.new("c2"), "p")
    one(ledger, delete(pod.new("c2")))
    given(ledger, Pod("second", "second", "second"), "q")
    one(ledger, add(ledger.definition(), refused, "q"))
    order = {"name": "by-hand", "pool": "p", "operator": "me", "reason": "test"}
    done = perform(ledger, {"allocate": order})
    perform(ledger, {"release": {"address": done["address"], "operator": "me", "reason": "test"}})
    one(ledger, delete(Pod("second", "second", "second", stamp=1 << 60)))
    define(ledger, close("q"), RetirePool("uid-q"))
    Tail(engine, PROJECTIONS).step()
    for projection in PROJECTIONS:
        rebuild(engine, projection.name)
    assert not verify(engine).faults


def granted(engine: Engine) -> set[str]:
    """What the agent's role was given, on the tables and on columns of them, partitions and sequences."""
    with engine.connect() as connection:
        tables = (
            "SELECT privilege_type || ' ON ' || table_name FROM information_schema.role_table_grants WHERE grantee "
        )
        columns = (
            "SELECT DISTINCT privilege_type || ' ON ' || table_name FROM information_schema.role_column_grants "
            "WHERE grantee "
        )
        usage = (
            "SELECT privilege_type || ' ON ' || object_name FROM information_schema.role_usage_grants WHERE grantee "
        )
        queries = (f"{query} = '{AGENT}'" for query in (tables, columns, usage))
        return {right for query in queries for right in connection.execute(text(query)).scalars()}


def test_the_role_has_these_rights_and_no_others(postgresql: Database) -> None:
    assert granted(postgresql.engine()) == set(RIGHTS)


def test_with_its_rights_the_agent_does_all_its_work(login: Database) -> None:
    work(login.engine())


@pytest.mark.parametrize("right", RIGHTS)
def test_without_this_right_the_work_fails(login: Database, postgresql: Database, right: str) -> None:
    with postgresql.engine().begin() as connection:
        connection.execute(text(f"REVOKE {right} FROM {AGENT}"))
    with pytest.raises((DBAPIError, psycopg.Error), match=rf"permission denied for table {right.split()[2]}\b"):
        work(login.engine())


def partitions(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        query = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'event'::regclass"
        return list(connection.execute(text(query)).scalars())


FORBIDDEN = (
    "UPDATE {event} SET cause = ''", "DELETE FROM {event}", "TRUNCATE {event}",
    "ALTER TABLE {event} DISABLE TRIGGER ALL", "DROP TABLE {event}", "LOCK TABLE {event} IN ACCESS EXCLUSIVE MODE",
    "ALTER TABLE {event} OWNER TO lone_agent",
)  # fmt: skip
ALSO_FORBIDDEN = (
    "TRUNCATE address", "DELETE FROM address", "DELETE FROM ledger", "INSERT INTO ledger SELECT * FROM ledger",
    "DELETE FROM pool", "DELETE FROM subject",
    "UPDATE subject SET document = ''", "DELETE FROM reservation", "DELETE FROM checkpoint",
    "UPDATE alembic_version SET version_num = ''", "ALTER TABLE address DISABLE TRIGGER address_step_follows",
    "DROP FUNCTION address_step_follows CASCADE", "CREATE TABLE mine (x int)", "CREATE FUNCTION mine() RETURNS int "
    "LANGUAGE sql AS 'SELECT 1'", "CREATE SCHEMA mine", "SELECT setval('event_position_seq', 1)",
    "SELECT nextval('event_position_seq')", "SET session_replication_role = replica", "CREATE INDEX ON event (id)",
    "ALTER SEQUENCE event_position_seq RESTART", "CREATE TRIGGER mine BEFORE INSERT ON event EXECUTE FUNCTION "
    "event_is_append_only()", "COMMENT ON TABLE event IS ''", "CREATE ROLE mine",
    "COPY event TO PROGRAM 'true'", "SET ROLE owner",
)  # fmt: skip


def test_history_is_out_of_its_reach_in_each_partition(login: Database, postgresql: Database) -> None:
    work(login.engine())
    engine = login.engine()
    for table in ("event", *partitions(postgresql.engine())):
        for statement in FORBIDDEN:
            refused(engine, statement.format(event=table))


def test_what_is_not_its_work_is_refused(login: Database) -> None:
    engine = login.engine()
    for statement in ALSO_FORBIDDEN:
        refused(engine, statement)


def refused(engine: Engine, statement: str) -> None:
    said = r"permission denied|must be owner|must be superuser|must be a member"
    with engine.connect() as connection, connection.begin() as transaction:
        try:
            connection.execute(text(statement))
        except DBAPIError as error:
            assert re.search(said, str(error.orig)), (statement, error)
        else:
            raise AssertionError(f"not refused: {statement}")
        finally:
            transaction.rollback()
