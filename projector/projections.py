"""What the journal says, folded into rows: how full each pool is, and who held which address from when until when.

A projection names the rows that an event touches and says how one such row (an *image*) becomes the next. It does
not read or write them: the tail, a rebuild and the questions bring images and events, and all three fold by this code.

* `OCCUPANCY` counts, so it must see every event exactly once; the checkpoint sees to that. What a definition says is
  absolute: the highest definition stands. Definitions are made one at a time, under the lock of the ledger's row,
  and take their transaction's number after it, so that they stand in the journal in the order of their versions.
* `HOLDING` has a row per address and first step, and its events may come in any order and again: the allocation says
  its start, the release its end, and who speaks for it (subject, container, node) is said by the highest step of
  an allocation or a rebinding, which `last_step` keeps. Being unbound changes nothing: it tells who spoke last.

Pure. Called by `projector.tail` and `projector.present`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

from ledger.addresses import Ip
from ledger.events import Event, EventType, current
from ledger.ranges import TOTAL_MAX

Image = TypeVar("Image", bound=tuple[Any, ...])
Key: TypeAlias = tuple[int, ...]
"""What finds an image: the values of the table's primary key."""


@dataclass(frozen=True)
class Projection(Generic[Image]):
    """A read model: its name (its table's and its checkpoint's), and how an event changes it."""

    name: str
    make: Callable[[Iterable[Any]], Image]
    touched: Callable[[Event], tuple[Key, ...]]
    apply: Callable[[Image | None, Key, Event], Image]

    def keys(self, events: Sequence[Event]) -> set[Key]:
        """The images that `fold` must be given, as far as they exist."""
        return {key for event in events for key in self.touched(event)}

    def fold(self, images: Mapping[Key, Image], events: Sequence[Event]) -> dict[Key, Image]:
        """The images after the events; ValueError for an event that this software does not know."""
        folded = dict(images)
        for event in map(current, events):
            for key in self.touched(event):
                folded[key] = self.apply(folded.get(key), key, event)
        return folded


class Occupancy(NamedTuple):
    """How full a pool is. Totals are saturated as `status.totalIPCount` is; withheld is what is not available."""

    pool: int
    definition: int = 0
    total: int = 0
    withheld: int = 0
    allocated: int = 0
    refused: int = 0


class Holding(NamedTuple):
    """One claim held this address from … until …; what no event has said yet is None."""

    ip: Ip
    step: int
    last_step: int = 0
    pool: int | None = None
    claim: bytes | None = None
    interface: str | None = None
    subject: bytes | None = None
    container: str | None = None
    node: str | None = None
    held_from: int | None = None
    held_until: int | None = None
    recorded_from: int | None = None
    recorded_until: int | None = None
    cause: str | None = None


_POOL: Final = frozenset(
    {EventType.POOL_DEFINED, EventType.POOL_REDEFINED, EventType.POOL_CLOSED, EventType.POOL_RETIRED}
)
_RESERVATION: Final = frozenset(
    {EventType.RESERVATION_DEFINED, EventType.RESERVATION_REDEFINED, EventType.RESERVATION_RETIRED}
)
_COUNTED: Final = {EventType.ALLOCATED: 1, EventType.RELEASED: -1}
_HOLDS: Final = frozenset({EventType.ALLOCATED, EventType.REBOUND, EventType.RELEASED})


def _pools(event: Event) -> tuple[Key, ...]:
    if event.type in _COUNTED or event.type in _POOL:
        assert event.pool is not None
        return ((event.pool,),)
    if event.type == EventType.REFUSED:
        return tuple(dict.fromkeys((pool,) for pool in event.details["pools"]))
    if event.type in _RESERVATION:
        return tuple((int(pool),) for pool in event.details["available"])
    return ()


def _occupy(image: Occupancy | None, key: Key, event: Event) -> Occupancy:
    image = image or Occupancy(*key)
    if event.type == EventType.REFUSED:
        return image._replace(refused=image.refused + 1)
    if event.type in _POOL:
        return _redefine(image, event, total=event.details["total"], available=event.details["available"])
    if event.type in _RESERVATION:
        return _redefine(image, event, total=image.total, available=event.details["available"][str(image.pool)])
    return image._replace(allocated=image.allocated + _COUNTED[EventType(event.type)])


def _redefine(image: Occupancy, event: Event, *, total: int, available: int) -> Occupancy:
    assert event.definition is not None
    if event.definition < image.definition:
        return image
    total = min(total, TOTAL_MAX)
    return image._replace(definition=event.definition, total=total, withheld=max(total - available, 0))


def _holdings(event: Event) -> tuple[Key, ...]:
    if event.type not in _HOLDS:
        return ()
    assert event.ip is not None
    assert event.holding is not None
    return ((event.ip, event.holding),)


def _hold(image: Holding | None, key: Key, event: Event) -> Holding:
    image = image or Holding(Ip(key[0]), key[1])
    if event.type == EventType.RELEASED:
        return image._replace(held_until=event.happened_at, recorded_until=event.recorded_at, cause=event.cause)
    if event.type == EventType.ALLOCATED:
        image = image._replace(
            pool=event.pool,
            claim=event.claim,
            interface=event.interface,
            held_from=event.happened_at,
            recorded_from=event.recorded_at,
        )
    assert event.step is not None
    if event.step <= image.last_step:
        return image
    return image._replace(last_step=event.step, subject=event.subject, container=event.container, node=event.node)


OCCUPANCY: Final = Projection("occupancy", Occupancy._make, _pools, _occupy)
HOLDING: Final = Projection("holding", Holding._make, _holdings, _hold)
PROJECTIONS: Final[tuple[Projection[Any], ...]] = (HOLDING, OCCUPANCY)
"""All that the journal is projected into."""
