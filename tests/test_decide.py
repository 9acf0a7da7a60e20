"""The rules of one batch as tables: what is read in, what is written and answered out. No database."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from ledger.addresses import Ip, parse, text
from ledger.claims import claim_of
from ledger.course import BATCH_POOLS, Pending, advance, batch_of, begin, plan_of, subject_of
from ledger.decide import Attempt, Decision, Setback, Unmet, decide, place_of
from ledger.definition import Definition, Pool, State
from ledger.events import digest
from ledger.images import UNBOUND, Address, Demand, Extent, Head, Images
from ledger.requests import Acquire, Done, Free, Granted, Reason, Refusal, Refuse, Release, Request, Reselect
from ledger.supply import Supply
from tests.acts import NODE, Pod, a_pool, acquire, delete, outside, shown, want
