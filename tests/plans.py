"""What a database really did for a batch of the ledger: which index found which rows, and how much work that was.

The statements are those that the driver executes, on the agent's own engine and in its own session: PostgreSQL tells
the plan of each by auto_explain (prepared ones by the plan that was cached for them), SQLite the text of each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, event, text

from ledger.database import open_engine

TABLES = ("address", "extent", "event", "subject")
"""Those that grow with use."""
AUTO_EXPLAIN = {
    "session_preload_libraries": "auto_explain", "auto_explain.log_analyze": "on", "auto_explain.log_buffers": "on",
    "auto_explain.log_timing": "off", "auto_explain.log_format": "json", "auto_explain.log_level": "notice",
}  # fmt: skip
LAST_EVENT = "SCAN event"
"""How SQLite tells that it takes the journal's last event, and no other: what that costs is measured."""
STEPS_EACH = 10
"""SQLite reports its progress once in so many instructions."""


@dataclass
class Work:
    """Of one batch: the indexes it searched, the reads no index bounded, and how much it did.

    `cost` is in buffers on PostgreSQL, and in instructions of the virtual machine on SQLite. `rows` is the largest
    number of rows that one part of a plan looked at, kept or not (PostgreSQL).
    """

    indexes: set[str] = field(default_factory=set)
    unbounded: list[str] = field(default_factory=list)
    cost: int = 0
    rows: int = 0


class Watched:
    """A ledger's engine of one session, whose statements are looked at inside of `looking`."""

    def __init__(self, url: str) -> None:
        self.engine: Engine = open_engine(url, connections=1)

    @contextmanager
    def looking(self) -> Iterator[Work]:
        """The work of what is done inside, filled in at its end."""
        raise NotImplementedError


class WatchedPostgresql(Watched):
    """See the module. The server must have been started with `AUTO_EXPLAIN`."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._plans: list[dict[str, Any]] = []

        @event.listens_for(self.engine, "connect")
        def listen(connection: Any, record: Any) -> None:
            connection.add_notice_handler(self._told)

        with self.engine.connect() as connection:
            query = (
                "SELECT c.relname AS child, p.relname AS parent FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid "
            )
            query += "JOIN pg_class p ON p.oid = inhparent"
            self._parents = {row.child: row.parent for row in connection.execute(text(query))}

    @contextmanager
    def looking(self) -> Iterator[Work]:
        work = Work()
        self._explain("0")
        self._plans.clear()
        yield work
        for plan in list(self._plans):
            self._judge(plan["Plan"], work)
            work.cost += _buffers(plan["Plan"])
        self._explain("-1")

    def generic_plans(self) -> int:
        """How often this session used a plan that was made for any parameters."""
        with self.engine.connect() as connection:
            return int(connection.execute(text("SELECT sum(generic_plans) FROM pg_prepared_statements")).scalar_one())

    def _explain(self, longer_than_ms: str) -> None:
        with self.engine.begin() as connection:
            query = text("SELECT set_config('auto_explain.log_min_duration', :ms, false)")
            connection.execute(query, {"ms": longer_than_ms})

    def _told(self, notice: Any) -> None:
        _, found, plan = (notice.message_primary or "").partition("plan:\n")
        if found:
            self._plans.append(json.loads(plan))

    def _judge(self, node: dict[str, Any], work: Work) -> None:
        for child in node.get("Plans", ()):
            self._judge(child, work)
        table = node.get("Relation Name") or ""
        table = self._parents.get(table, table)
        index = node.get("Index Name", "")
        used = (index, *node.get("Conflict Arbiter Indexes", ()))
        work.indexes |= {self._parents.get(each, each) for each in used if each}
        if "Scan" in node["Node Type"] and table in TABLES:
            passed_over = sum(node.get(f"Rows Removed by {why}", 0) for why in ("Filter", "Index Recheck"))
            work.rows = max(work.rows, (node["Actual Rows"] + passed_over) * node["Actual Loops"])
        searches = "Scan" in node["Node Type"] and node["Node Type"] != "Bitmap Heap Scan"
        searches = searches and (bool(index) or table in TABLES)
        if searches and table != "ledger" and node["Actual Loops"] and "Index Cond" not in node:
            work.unbounded.append(f"{node['Node Type']} of {table or index}")


def _buffers(plan: dict[str, Any]) -> int:
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


class WatchedSqlite(Watched):
    """See the module."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._statements: list[str] = []
        self._steps = 0
        self._look: Callable[[bool], None] = lambda on: None

        @event.listens_for(self.engine, "connect")
        def listen(connection: Any, record: Any) -> None:
            def look(on: bool) -> None:
                connection.set_trace_callback(self._statements.append if on else None)
                connection.set_progress_handler(self._step if on else None, STEPS_EACH)

            self._look = look

        self.engine.connect().close()

    @contextmanager
    def looking(self) -> Iterator[Work]:
        work = Work()
        self._statements.clear()
        self._steps = 0
        self._look(True)
        try:
            yield work
        finally:
            self._look(False)
        work.cost = self._steps * STEPS_EACH
        with self.engine.connect() as connection:
            for statement in self._statements:
                if re.match(r"\s*(WITH|SELECT|INSERT|UPDATE|DELETE)\b", statement):
                    found = connection.connection.cursor().execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
                    _judge_sqlite([row[3] for row in found], work)

    def _step(self) -> int:
        self._steps += 1
        return 0


def _judge_sqlite(lines: list[str], work: Work) -> None:
    for line in lines:
        if found := re.match(rf"(SEARCH|SCAN) ({'|'.join(TABLES)})\b(.*)", line):
            how, table, rest = found.groups()
            index = re.search(r"INDEX (\w+)", rest)
            work.indexes.add(index[1] if index else f"{table}'s primary key")
            if how == "SCAN" and line != LAST_EVENT:
                work.unbounded.append(line)
