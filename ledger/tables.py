"""The tables, as the statements of this package see them; `migrations` makes them and a test proves the two equal.

Times are microseconds since 1970 UTC; an address is the bytes of `ledger.addresses.key`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Dialect,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    and_,
    not_,
    text,
    type_coerce,
)

from ledger.addresses import Ip, from_key, key


class IpKey(TypeDecorator[Ip]):
    """An `Ip` stored as its sortable bytes."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Ip | None, dialect: Dialect) -> bytes | None:
        """To the database."""
        return None if value is None else key(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Ip | None:
        """From the database."""
        return None if value is None else from_key(value)


metadata = MetaData()
exact_text = Text().with_variant(Text(collation="C"), "postgresql")
"""Claim keys are compared byte by byte, so that a prefix is a range of the index."""

# What every batch writes has no rowid on SQLite: a page less to write for each table and commit.

ledger = Table(
    "ledger",
    metadata,
    Column("one", SmallInteger, autoincrement=False),
    Column("epoch", Integer, nullable=False),
    Column("definition", BigInteger, nullable=False),
    Column("incarnation", Text, nullable=False),
    Column("doubted", Text),
    Column("doubt_until", BigInteger),
    Column("fenced", Text),
    Column("salt", LargeBinary, nullable=False),
    Column("oldest_software", Text, nullable=False),
    PrimaryKeyConstraint("one", name="ledger_key"),
    CheckConstraint("one = 1", name="one_ledger"),
)


def _defined(name: str, one_per_object: str, one_per_name: str) -> Table:
    """Pools and reserved addresses are kept alike: an object of the cluster and what it says."""
    table = Table(
        name,
        metadata,
        Column("id", Integer, autoincrement=False),
        Column("uid", Text, nullable=False),
        Column("name", Text, nullable=False),
        Column("state", Text, nullable=False),
        Column("document", Text, nullable=False),
        PrimaryKeyConstraint("id", name=f"{name}_key"),
        UniqueConstraint("uid", name=one_per_object),
        CheckConstraint("state IN ('open', 'closed', 'retired')", name=f"{name}_state"),
    )
    living = text("state <> 'retired'")
    Index(one_per_name, table.c.name, unique=True, postgresql_where=living, sqlite_where=living)
    return table


pool = _defined("pool", "one_pool_per_object", "one_living_pool_per_name")
reservation = _defined("reservation", "one_reservation_per_object", "one_living_reservation_per_name")

object_uid = Table(
    "object_uid",
    metadata,
    Column("kind", Text),
    Column("namespace", Text),
    Column("name", Text),
    Column("uid", Text, nullable=False),
    PrimaryKeyConstraint("kind", "namespace", "name", name="one_uid_per_object"),
)

# Keyed by its end, which never moves: allocating moves `low`, splitting leaves the upper half its key.
extent = Table(
    "extent",
    metadata,
    Column("pool", Integer, autoincrement=False),
    Column("high", IpKey),
    Column("low", IpKey, nullable=False),
    PrimaryKeyConstraint("pool", "high", name="extent_key"),
    postgresql_with={"fillfactor": 10},
    sqlite_with_rowid=False,
)

address = Table(
    "address",
    metadata,
    Column("ip", IpKey),
    Column("pool", Integer, nullable=False),
    Column("held", Boolean, nullable=False),
    Column("withheld", Boolean, nullable=False),
    Column("ready", BigInteger, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("holding", BigInteger),
    Column("claim", exact_text),
    Column("subject", LargeBinary),
    Column("container", Text),
    Column("network", Text),
    Column("netns", Text),
    Column("node", Text),
    Column("stamp", BigInteger),
    Column("bound_at", BigInteger),
    Column("result", Text, nullable=False),
    PrimaryKeyConstraint("ip", name="one_row_per_address"),
    UniqueConstraint("claim", name="one_address_per_claim"),
    CheckConstraint("NOT held OR claim IS NOT NULL", name="held_by_a_claim"),
    CheckConstraint("container IS NULL OR held", name="bound_while_held"),
    sqlite_with_rowid=False,
)
# As the index says it, word for word: SQLite would not see that `held = 0` says the same, and read the whole table.
idle = and_(*(not_(type_coerce(address.c[name], Integer)) for name in ("held", "withheld")))
_idle = text("NOT held AND NOT withheld")
Index("address_ready", address.c.pool, address.c.ready, postgresql_where=_idle, sqlite_where=_idle)

subject = Table(
    "subject",
    metadata,
    Column("id", LargeBinary),
    Column("document", Text),
    PrimaryKeyConstraint("id", name="subject_key"),
    sqlite_with_rowid=False,
)

event = Table(
    "event",
    metadata,
    Column("tx", BigInteger, autoincrement=False),
    Column("position", BigInteger, Identity(always=False)),
    Column("id", BigInteger, nullable=False),
    Column("type", Text, nullable=False),
    Column("version", SmallInteger, nullable=False),
    Column("recorded_at", BigInteger, nullable=False),
    Column("happened_at", BigInteger, nullable=False),
    Column("node_time", BigInteger),
    Column("ip", IpKey),
    Column("family", SmallInteger),
    Column("step", BigInteger),
    Column("holding", BigInteger),
    Column("pool", Integer),
    Column("definition", BigInteger),
    Column("claim", LargeBinary),
    Column("interface", Text),
    Column("subject", LargeBinary),
    Column("container", Text),
    Column("network", Text),
    Column("netns", Text),
    Column("node", Text),
    Column("stamp", BigInteger),
    Column("actor", Text, nullable=False),
    Column("cause", Text, nullable=False),
    Column("data", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    PrimaryKeyConstraint("tx", "position", name="event_order"),
    postgresql_partition_by="RANGE (tx)",
    sqlite_with_rowid=False,
)
_refused = text("type = 'allocation.refused'")
Index("event_refused", event.c.subject, postgresql_where=_refused, sqlite_where=_refused)

checkpoint = Table(
    "checkpoint",
    metadata,
    Column("projection", Text),
    Column("tx", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False),
    PrimaryKeyConstraint("projection", name="checkpoint_key"),
)

occupancy = Table(
    "occupancy",
    metadata,
    Column("pool", Integer, autoincrement=False),
    Column("definition", BigInteger, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("withheld", BigInteger, nullable=False),
    Column("allocated", BigInteger, nullable=False),
    Column("refused", BigInteger, nullable=False),
    PrimaryKeyConstraint("pool", name="occupancy_key"),
)

holding = Table(
    "holding",
    metadata,
    Column("ip", IpKey),
    Column("step", BigInteger, autoincrement=False),
    Column("last_step", BigInteger, nullable=False),
    Column("pool", Integer),
    Column("claim", LargeBinary),
    Column("interface", Text),
    Column("subject", LargeBinary),
    Column("container", Text),
    Column("node", Text),
    Column("held_from", BigInteger),
    Column("held_until", BigInteger),
    Column("recorded_from", BigInteger),
    Column("recorded_until", BigInteger),
    Column("cause", Text),
    PrimaryKeyConstraint("ip", "step", name="holding_key"),
)
Index("holding_subject", holding.c.subject)
