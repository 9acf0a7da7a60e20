"""The ledger: state tables, the journal with its guards, projections, roles."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
oldest_software = "0.1.0"

AGENT = "spiderledger_agent"
READER = "spiderledger_reader"
STATE = ("ledger", "pool", "reservation", "object_uid", "extent", "address", "subject")
PROJECTED = ("checkpoint", "occupancy", "holding")

big, small, whole, words, octets, flag = (
    sa.BigInteger(), sa.SmallInteger(), sa.Integer(), sa.Text(), sa.LargeBinary(), sa.Boolean(),
)  # fmt: skip
exact = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def column(name: str, kind: sa.types.TypeEngine, null: bool = False) -> sa.Column:
    """A column without defaults: whoever inserts says everything."""
    return sa.Column(name, kind, nullable=null, autoincrement=False)


def upgrade() -> None:
    """Forward only: what a ledger has recorded is never taken back."""
    postgresql = op.get_bind().dialect.name == "postgresql"
    _state()
    _journal(postgresql)
    _projections()
    if postgresql:
        _guards_postgresql()
        _roles()
    else:
        _guards_sqlite()
    _open()


def _state() -> None:
    op.create_table(
        "ledger", column("one", small), column("epoch", whole), column("definition", big),
        column("incarnation", words), column("doubted", words, True), column("doubt_until", big, True),
        column("fenced", words, True), column("salt", octets), column("oldest_software", words),
        sa.PrimaryKeyConstraint("one", name="ledger_key"), sa.CheckConstraint("one = 1", name="one_ledger"),
    )  # fmt: skip
    _defined("pool", "one_pool_per_object", "one_living_pool_per_name")
    _defined("reservation", "one_reservation_per_object", "one_living_reservation_per_name")
    op.create_table(
        "object_uid", column("kind", words), column("namespace", words), column("name", words), column("uid", words),
        sa.PrimaryKeyConstraint("kind", "namespace", "name", name="one_uid_per_object"),
    )  # fmt: skip
    op.create_table(
        "extent", column("pool", whole), column("high", octets), column("low", octets),
        sa.PrimaryKeyConstraint("pool", "high", name="extent_key"), postgresql_with={"fillfactor": 10},
        sqlite_with_rowid=False,
    )  # fmt: skip
    op.create_table(
        "address", column("ip", octets), column("pool", whole), column("held", flag), column("withheld", flag),
        column("ready", big), column("step", big), column("at", big), column("holding", big, True),
        column("claim", exact, True), column("subject", octets, True), column("container", words, True),
        column("network", words, True), column("netns", words, True), column("node", words, True),
        column("stamp", big, True), column("bound_at", big, True), column("result", words),
        sa.PrimaryKeyConstraint("ip", name="one_row_per_address"),
        sa.UniqueConstraint("claim", name="one_address_per_claim"),
        sa.CheckConstraint("NOT held OR claim IS NOT NULL", name="held_by_a_claim"),
        sa.CheckConstraint("container IS NULL OR held", name="bound_while_held"), sqlite_with_rowid=False,
    )  # fmt: skip
    idle = sa.text("NOT held AND NOT withheld")
    op.create_index("address_ready", "address", ["pool", "ready"], postgresql_where=idle, sqlite_where=idle)
    op.create_table(
        "subject", column("id", octets), column("document", words, True),
        sa.PrimaryKeyConstraint("id", name="subject_key"), sqlite_with_rowid=False,
    )  # fmt: skip


def _defined(name: str, one_per_object: str, one_per_name: str) -> None:
    op.create_table(
        name, column("id", whole), column("uid", words), column("name", words), column("state", words),
        column("document", words),
        sa.PrimaryKeyConstraint("id", name=f"{name}_key"), sa.UniqueConstraint("uid", name=one_per_object),
        sa.CheckConstraint("state IN ('open', 'closed', 'retired')", name=f"{name}_state"),
    )  # fmt: skip
    living = sa.text("state <> 'retired'")
    op.create_index(one_per_name, name, ["name"], unique=True, postgresql_where=living, sqlite_where=living)


def _journal(postgresql: bool) -> None:
    position = sa.Column("position", big, sa.Identity(always=False), nullable=False)
    op.create_table(
        "event", column("tx", big), position, column("id", big), column("type", words), column("version", small),
        column("recorded_at", big), column("happened_at", big), column("node_time", big, True),
        column("ip", octets, True), column("family", small, True), column("step", big, True),
        column("holding", big, True), column("pool", whole, True), column("definition", big, True),
        column("claim", octets, True), column("interface", words, True), column("subject", octets, True),
        column("container", words, True), column("network", words, True), column("netns", words, True),
        column("node", words, True), column("stamp", big, True), column("actor", words), column("cause", words),
        column("data", words), column("digest", octets),
        sa.PrimaryKeyConstraint("tx", "position", name="event_order"),
        postgresql_partition_by="RANGE (tx)", sqlite_with_rowid=False,
    )  # fmt: skip
    refused = sa.text("type = 'allocation.refused'")
    op.create_index("event_refused", "event", ["subject"], postgresql_where=refused, sqlite_where=refused)
    if postgresql:
        # Whatever has no partition of its own; those are made ahead by `ledger.partitions`.
        op.execute("CREATE TABLE event_rest PARTITION OF event DEFAULT")


def _projections() -> None:
    op.create_table(
        "checkpoint", column("projection", words), column("tx", big), column("position", big),
        sa.PrimaryKeyConstraint("projection", name="checkpoint_key"),
    )  # fmt: skip
    op.create_table(
        "occupancy", column("pool", whole), column("definition", big), column("total", big), column("withheld", big),
        column("allocated", big), column("refused", big), sa.PrimaryKeyConstraint("pool", name="occupancy_key"),
    )  # fmt: skip
    op.create_table(
        "holding", column("ip", octets), column("step", big), column("last_step", big), column("pool", whole, True),
        column("claim", octets, True), column("interface", words, True), column("subject", octets, True),
        column("container", words, True), column("node", words, True), column("held_from", big, True),
        column("held_until", big, True), column("recorded_from", big, True), column("recorded_until", big, True),
        column("cause", words, True), sa.PrimaryKeyConstraint("ip", "step", name="holding_key"),
    )  # fmt: skip
    op.create_index("holding_subject", "holding", ["subject"])


_POSTGRESQL_GUARDS = """
CREATE FUNCTION event_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'event_is_append_only: % of the journal is refused', TG_OP USING ERRCODE = '23514';
END $$;
CREATE TRIGGER event_is_append_only BEFORE UPDATE OR DELETE ON event
    FOR EACH ROW EXECUTE FUNCTION event_is_append_only();
CREATE TRIGGER event_is_not_truncated BEFORE TRUNCATE ON event
    FOR EACH STATEMENT EXECUTE FUNCTION event_is_append_only();
-- Statement triggers do not pass from a partitioned table to its partitions.
CREATE TRIGGER event_is_not_truncated BEFORE TRUNCATE ON event_rest
    FOR EACH STATEMENT EXECUTE FUNCTION event_is_append_only();

CREATE FUNCTION address_step_follows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'address_step_follows: step % after %', NEW.step, OLD.step
        USING ERRCODE = '23514', CONSTRAINT = 'address_step_follows';
END $$;
CREATE TRIGGER address_step_follows BEFORE UPDATE ON address FOR EACH ROW
    WHEN (NEW.step <> OLD.step + 1 OR (OLD.held AND NEW.held AND OLD.claim IS DISTINCT FROM NEW.claim))
    EXECUTE FUNCTION address_step_follows();

CREATE FUNCTION address_is_for_ever() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'address_is_for_ever: % of address rows is refused', TG_OP USING ERRCODE = '23514';
END $$;
CREATE TRIGGER address_is_for_ever BEFORE DELETE ON address
    FOR EACH ROW EXECUTE FUNCTION address_is_for_ever();
CREATE TRIGGER address_is_not_truncated BEFORE TRUNCATE ON address
    FOR EACH STATEMENT EXECUTE FUNCTION address_is_for_ever();
"""


def _guards_postgresql() -> None:
    op.execute(_POSTGRESQL_GUARDS)


_SQLITE_GUARDS = (
    "CREATE TRIGGER event_is_append_only_update BEFORE UPDATE ON event "
    "BEGIN SELECT RAISE(ABORT, 'event_is_append_only: UPDATE of the journal is refused'); END",
    "CREATE TRIGGER event_is_append_only_delete BEFORE DELETE ON event "
    "BEGIN SELECT RAISE(ABORT, 'event_is_append_only: DELETE of the journal is refused'); END",
    # REPLACE deletes without firing the trigger above unless the connection asks for it.
    "CREATE TRIGGER event_is_append_only_replace BEFORE INSERT ON event "
    "WHEN EXISTS (SELECT 1 FROM event WHERE tx = NEW.tx AND position = NEW.position) "
    "BEGIN SELECT RAISE(ABORT, 'event_is_append_only: REPLACE in the journal is refused'); END",
    "CREATE TRIGGER address_step_follows BEFORE UPDATE ON address "
    "WHEN NEW.step <> OLD.step + 1 OR (OLD.held AND NEW.held AND OLD.claim IS NOT NEW.claim) "
    "BEGIN SELECT RAISE(ABORT, 'address_step_follows'); END",
    "CREATE TRIGGER address_is_for_ever BEFORE DELETE ON address "
    "BEGIN SELECT RAISE(ABORT, 'address_is_for_ever: DELETE of address rows is refused'); END",
)


def _guards_sqlite() -> None:
    for guard in _SQLITE_GUARDS:
        op.execute(guard)


def _roles() -> None:
    """Two roles that own nothing; people grant them to their login roles."""
    for role in (AGENT, READER):
        op.execute(
            f"DO $$ BEGIN CREATE ROLE {role} NOLOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$"
        )
    everything = ", ".join((*STATE, *PROJECTED, "event", "alembic_version"))
    op.execute(f"GRANT SELECT ON {everything} TO {READER}, {AGENT}")
    op.execute(f"GRANT INSERT ON event, pool, reservation, object_uid, extent, address, subject TO {AGENT}")
    # Of the whole table `ledger`: without it `restore` could not lock it.
    op.execute(f"GRANT UPDATE ON ledger, pool, reservation, extent, address TO {AGENT}")
    op.execute(f"GRANT DELETE ON extent, object_uid TO {AGENT}")
    op.execute(f"GRANT INSERT, UPDATE ON {', '.join(PROJECTED)} TO {AGENT}")
    op.execute(f"GRANT DELETE ON occupancy, holding TO {AGENT}")


def _open() -> None:
    """The one row. Its first incarnation is unknown: the first agent records which it trusts, as an event."""
    row = sa.table(
        "ledger", *(sa.column(name) for name in
        ("one", "epoch", "definition", "incarnation", "salt", "oldest_software"))
    )  # fmt: skip
    op.bulk_insert(row, [{
        "one": 1, "epoch": 1, "definition": 0, "incarnation": "", "salt": secrets.token_bytes(32),
        "oldest_software": oldest_software,
    }])  # fmt: skip
