"""How answers are written: tables as kubectl draws them, one JSON or YAML document.

Field names of documents are kept for ever. A table shows what people ask for, in one line each; a document has it all.
Times are RFC 3339 in UTC: documents and the tables of an audit have microseconds, those of `get` do without. Pure.
Called by `projector.commands`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import yaml

from ledger.addresses import Ip, text
from ledger.claims import Subject
from ledger.times import rfc3339
from projector.holders import Standing
from projector.lines import AllocationLine, EventLine, HoldingLine, PoolLine, RefusalLine, WhoHeld
from projector.present import AsOf

BLANKS: Final = "   "
NOTHING: Final = "<none>"
REMOVED: Final = "<removed>"
"""Names that were taken out of the ledger; the interval stays."""

Document = dict[str, Any]


class Table(NamedTuple):
    """Headings and as many cells in each row."""

    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def laid_out(table: Table) -> list[str]:
    """The table's lines, the headings first, each column as wide as its widest cell."""
    rows = [table.headings, *table.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ((cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return [BLANKS.join(row).rstrip() for row in padded]


def written(document: Document, *, as_yaml: bool) -> str:
    """The document as JSON or YAML. Both are plain ASCII, so that any terminal and any pipe takes them."""
    if as_yaml:
        return str(yaml.safe_dump(document, sort_keys=False)).rstrip()
    return json.dumps(document, indent=2)


# How far an answer holds --------------------------------------------------------------------------


def up_to(as_of: AsOf) -> str:
    """Up to which event and moment nothing is missing."""
    if as_of.at is None:
        return f"The journal has no event yet; read at {rfc3339(as_of.read_at)}."
    sentence = f"Complete up to event {as_of.tx}/{as_of.position}, recorded at {rfc3339(as_of.at)}"
    if as_of.complete:
        return f"{sentence}; read at {rfc3339(as_of.read_at)}."
    return f"{sentence}; the projections are too far behind for what came later, until {rfc3339(as_of.read_at)}."


def as_of_document(as_of: AsOf) -> Document:
    """The same for programs."""
    return {
        "tx": as_of.tx,
        "position": as_of.position,
        "recorded_at": _time(as_of.at),
        "read_at": _time(as_of.read_at),
        "complete": as_of.complete,
    }


def listed(items: Iterable[Document], as_of: AsOf, **more: object) -> Document:
    """Several lines in one document."""
    return {"items": list(items), **more, "as_of": as_of_document(as_of)}


# Pools ------------------------------------------------------------------------------------------

_POOL: Final = ("NAME", "VERSION", "SUBNET", "ALLOCATED-IP-COUNT", "TOTAL-IP-COUNT", "DEFAULT", "DISABLE")
_POOL_WIDE: Final = ("NODENAME", "MULTUSNAME", "APP-NAMESPACE", "STATE", "WITHHELD", "COOLING", "REFUSED")


def pool_table(lines: Iterable[PoolLine], *, wide: bool) -> Table:
    """Spiderpool's columns; wide, its other ones and ours."""
    return _table(_POOL, _POOL_WIDE, [tuple(map(_cell, line)) for line in lines], wide=wide)


def pool_document(line: PoolLine) -> Document:
    """One pool."""
    cells = {**line._asdict(), "state": str(line.state)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in cells.items()}


# Allocations ------------------------------------------------------------------------------------

_ALLOCATION: Final = ("POD", "INTERFACE", "IP", "POOL", "NODE", "SINCE")
_ALLOCATION_WIDE: Final = ("CONTAINER",)
Since = Mapping[Ip, int | None]
"""When the holdings began."""


def allocation_table(lines: Iterable[AllocationLine], since: Since, *, wide: bool) -> Table:
    """Who holds what now."""
    return _table(_ALLOCATION, _ALLOCATION_WIDE, [_allocation_row(line, since) for line in lines], wide=wide)


def _allocation_row(line: AllocationLine, since: Since) -> tuple[str, ...]:
    row = line.address
    return (
        f"{line.claim.namespace}/{line.claim.name}",
        _cell(line.claim.interface),
        _with_prefix(line),
        _cell(line.pool),
        _cell(row.node),
        _cell(rfc3339(since.get(row.ip), exact=False)),
        _cell(row.container),
    )


def allocation_document(line: AllocationLine, since: Since) -> Document:
    """One address that is held now."""
    row, claim = line.address, line.claim
    return {
        "ip": text(row.ip),
        "address": _with_prefix(line),
        "pool": line.pool,
        **claim._asdict(),
        "step": row.step,
        "holding": row.holding,
        "since": _time(since.get(row.ip)),
        "withheld": row.withheld,
        "container": row.container,
        "network": row.network,
        "netns": row.netns,
        "node": row.node,
        "bound_at": _time(row.bound_at),
        "subject": _subject_document(line.subject),
    }


def _with_prefix(line: AllocationLine) -> str:
    prefix = json.loads(line.address.result).get("prefix")
    return text(line.address.ip) + ("" if prefix is None else f"/{prefix}")


# Events -----------------------------------------------------------------------------------------

_EVENT: Final = ("TIME", "TYPE", "IP", "POD", "POOL", "NODE", "ACTOR", "CAUSE")
_EVENT_WIDE: Final = ("EVENT", "STEP", "INTERFACE", "CONTAINER")


def event_table(lines: Iterable[EventLine], *, wide: bool) -> Table:
    """What has happened."""
    return _table(_EVENT, _EVENT_WIDE, [_event_row(line) for line in lines], wide=wide)


def _event_row(line: EventLine) -> tuple[str, ...]:
    event = line.event
    return (
        rfc3339(event.recorded_at, exact=False),
        event.type,
        _cell(None if event.ip is None else text(event.ip)),
        _whose(line.subject, known=event.subject is not None),
        _cell(line.pools),
        _cell(event.node),
        _cell(event.actor),
        _cell(event.cause),
        f"{event.tx}/{event.position}",
        _cell(event.step),
        _cell(event.interface),
        _cell(event.container),
    )


def event_document(line: EventLine) -> Document:
    """One event, whole."""
    cells: Document = line.event._asdict()
    for name in ("recorded_at", "happened_at", "node_time"):
        cells[name] = _time(cells[name])
    for name in ("claim", "subject", "digest"):
        cells[name] = None if cells[name] is None else cells[name].hex()
    # Readers of JSON that count in floating point would round these.
    for name in ("id", "stamp"):
        cells[name] = None if cells[name] is None else str(cells[name])
    cells["ip"] = None if line.event.ip is None else text(line.event.ip)
    cells["data"] = line.event.details
    return {**cells, "pools": list(line.pools), "who": _subject_document(line.subject)}


# Holdings ---------------------------------------------------------------------------------------

_HOLDING: Final = ("IP", "POD", "INTERFACE", "POOL", "NODE", "FROM", "UNTIL")
_HOLDING_WIDE: Final = ("CONTAINER", "CAUSE")


def history_table(lines: Iterable[HoldingLine], *, wide: bool) -> Table:
    """Who held what from when until when."""
    return _table(_HOLDING, _HOLDING_WIDE, [_holding_row(line) for line in lines], wide=wide)


def _holding_row(line: HoldingLine) -> tuple[str, ...]:
    held = line.holding
    return (
        text(held.ip),
        _whose_holding(line),
        _cell(held.interface),
        _cell(line.pool),
        _cell(held.node),
        _cell(rfc3339(held.held_from)),
        _cell(rfc3339(held.held_until)),
        _cell(held.container),
        _cell(held.cause),
    )


def holding_document(line: HoldingLine) -> Document:
    """One holding."""
    held = line.holding
    return {
        "ip": text(held.ip),
        "step": held.step,
        "pool": line.pool,
        "held_from": _time(held.held_from),
        "held_until": _time(held.held_until),
        "recorded_from": _time(held.recorded_from),
        "recorded_until": _time(held.recorded_until),
        "cause": held.cause,
        "interface": held.interface,
        "container": held.container,
        "node": held.node,
        "claim": None if held.claim is None else held.claim.hex(),
        "subject": _subject_document(line.subject),
    }


# Who held ---------------------------------------------------------------------------------------

_WHO: Final = ("IP", "STANDING", *_HOLDING[1:])


def who_held_table(answer: WhoHeld, *, wide: bool) -> Table:
    """What the address was then: a holder, or what it was instead."""
    ip, held = text(answer.ip), answer.line if answer.standing is Standing.HELD else None
    if held is not None:
        _, *cells = _holding_row(held)
    else:
        until = _cell(rfc3339(answer.until))
        cells = [NOTHING, NOTHING, _cell(answer.pool), NOTHING, NOTHING, until, NOTHING, NOTHING]
    return _table(_WHO, _HOLDING_WIDE, [(ip, answer.standing, *cells)], wide=wide)


def who_held_sentences(answer: WhoHeld) -> list[str]:
    """What the table has no column for: the moment, the last holder, and how far the answer holds."""
    said = [f"At {rfc3339(answer.at)}. {up_to(answer.as_of)}"]
    if answer.standing is Standing.UNKNOWN:
        said.append("The ledger was not open yet then." if answer.pool else "No pool has it.")
    if answer.standing is not Standing.HELD and answer.line is not None:
        until = rfc3339(answer.line.holding.held_until)
        said.append(f"The last before who held it was {_whose_holding(answer.line)}, until {until}.")
    return said


def who_held_document(answer: WhoHeld) -> Document:
    """Whose it was; `last` is the last holding before, when it is nobody's."""
    line = None if answer.line is None else holding_document(answer.line)
    held = answer.standing is Standing.HELD
    return {
        "ip": text(answer.ip),
        "at": _time(answer.at),
        "standing": str(answer.standing),
        "until": _time(answer.until),
        "pool": answer.pool,
        "definition": answer.definition,
        "holding": line if held else None,
        "last": None if held else line,
        "as_of": as_of_document(answer.as_of),
    }


# Explanations -----------------------------------------------------------------------------------

_OUTCOME: Final = ("TIME", "OUTCOME", "INTERFACE", "IP", "POOL", "WHY")


def explanation_table(lines: Iterable[RefusalLine | HoldingLine]) -> Table:
    """What was asked for and what came of it; under a refusal a row for each pool that was looked at."""
    rows: list[tuple[str, ...]] = []
    for line in lines:
        rows += _refusal_rows(line) if isinstance(line, RefusalLine) else [_grant_row(line)]
    return Table(_OUTCOME, rows)


def _refusal_rows(line: RefusalLine) -> list[tuple[str, ...]]:
    first = (rfc3339(line.at), "refused", _cell(line.interface), NOTHING, NOTHING, f"{line.reason}: {line.text}")
    passed = [
        ("", "", "", "", each.pool, f"passed over: {each.passed_over}" if each.passed_over else "tried")
        for each in line.candidates
    ]
    return [first, *passed]


def _grant_row(line: HoldingLine) -> tuple[str, ...]:
    held = line.holding
    end = "held still" if held.held_until is None else f"held until {rfc3339(held.held_until)} ({held.cause})"
    begin = _cell(rfc3339(held.held_from))
    return begin, "allocated", _cell(held.interface), text(held.ip), _cell(line.pool), end


def explanation_document(line: RefusalLine | HoldingLine) -> Document:
    """One refusal or one holding."""
    if isinstance(line, HoldingLine):
        return {"outcome": "allocated", "at": _time(line.holding.held_from), **holding_document(line)}
    return {
        "outcome": "refused",
        "at": _time(line.at),
        "interface": line.interface,
        "reason": line.reason,
        "text": line.text,
        "candidates": [{"pool": each.pool, "passed_over": each.passed_over} for each in line.candidates],
        "subject": _subject_document(line.subject),
    }


# Cells ------------------------------------------------------------------------------------------


def _table(headings: Sequence[str], more: Sequence[str], rows: Iterable[Sequence[str]], *, wide: bool) -> Table:
    """The rows have cells for all headings; those of `more` are for wide tables."""
    shown = (*headings, *more) if wide else tuple(headings)
    return Table(shown, [tuple(row[: len(shown)]) for row in rows])


def _cell(value: object) -> str:
    if value is None or value in ("", ()):
        return NOTHING
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _whose_holding(line: HoldingLine) -> str:
    return _whose(line.subject, known=line.holding.subject is not None)


def _whose(subject: Subject | None, *, known: bool) -> str:
    if subject is None:
        return REMOVED if known else NOTHING
    return f"{subject.namespace}/{subject.name}"


def _subject_document(subject: Subject | None) -> Document | None:
    return None if subject is None else {**subject._asdict(), "labels": dict(subject.labels)}


def _time(at: int | None) -> str | None:
    return None if at is None else rfc3339(at)
