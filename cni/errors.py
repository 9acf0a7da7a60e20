"""The errors that a CNI call can end with: their numbers, which never change, and the JSON a runtime reads.

Numbers below 100 are the CNI specification's; from 100 on they are ours. Reading a call raises a
`CniError`; a refusal of the ledger or of the choice of pools becomes one here. Nothing here writes
to a runtime: the agent does.

Pure.
"""

from __future__ import annotations

import json
from enum import IntEnum
from typing import Any

from ledger.requests import Reason, Refusal

NEWEST_VERSION = "1.1.0"
"""What an error says when the request's own version could not be read."""

SHOWN_MAX = 100

ALLOCATION_FAILED = "spiderpool IP allocation error"
"""The words under which people find a refused pod among the events of their cluster."""


class Code(IntEnum):
    """Why a call failed. A number is never given another meaning."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    BAD_ENVIRONMENT = 4
    IO = 5
    UNDECODABLE = 6
    INVALID_CONFIGURATION = 7
    TRY_AGAIN = 11
    NOT_AVAILABLE = 50
    LIMITED_CONNECTIVITY = 51
    NO_POOL = 100
    USED_OUT = 101
    ADDRESS_TAKEN = 102
    ADDRESS_OUTSIDE = 103
    WRONG_INPUT = 104
    DEAD_POD = 105
    GC_NEEDS_NODE = 106
    RESERVATION_GONE = 107


CODE_OF_REASON = {
    Reason.NO_POOL: Code.NO_POOL,
    Reason.USED_OUT: Code.USED_OUT,
    Reason.ADDRESS_TAKEN: Code.ADDRESS_TAKEN,
    Reason.ADDRESS_OUTSIDE: Code.ADDRESS_OUTSIDE,
    Reason.WRONG_INPUT: Code.WRONG_INPUT,
    Reason.DEAD_POD: Code.DEAD_POD,
    Reason.SUPERSEDED: Code.TRY_AGAIN,
    Reason.BUSY: Code.TRY_AGAIN,
    Reason.DOUBT: Code.TRY_AGAIN,
    Reason.FENCED: Code.TRY_AGAIN,
}


class CniError(Exception):
    """A call that failed, as the runtime is told."""

    def __init__(self, code: Code, msg: str, details: str = "", version: str = NEWEST_VERSION) -> None:
        super().__init__(code, msg, details, version)
        self.code = code
        self.msg = msg
        self.details = details
        self.version = version

    def __str__(self) -> str:
        """What people read in a log."""
        return f"{self.msg}; {self.details}" if self.details else self.msg

    @property
    def document(self) -> dict[str, Any]:
        """The JSON object that goes to the runtime; what a JSON text cannot carry was refused when it was read."""
        return {"cniVersion": self.version, "code": int(self.code), "msg": self.msg, "details": self.details}


def refused(refusal: Refusal, version: str) -> CniError:
    """The error for a refusal; its details name each pool that was looked at, and why it was passed over."""
    looked_at = "; ".join(f"{each.pool}: {each.passed_over or 'tried'}" for each in refusal.candidates)
    return CniError(CODE_OF_REASON[refusal.reason], f"{ALLOCATION_FAILED}: {refusal.text}", looked_at, version)


def bad_environment(variable: str, problem: str) -> CniError:
    """The error for a variable that says nothing usable."""
    return CniError(Code.BAD_ENVIRONMENT, f"invalid environment variable: {variable} {problem}")


def invalid_configuration(field: str, problem: str, value: object) -> CniError:
    """The error for a field of the network configuration."""
    said = f"invalid CNI network configuration: {field}: {problem}"
    return CniError(Code.INVALID_CONFIGURATION, said, f"{field} is {shown(value)}")


def shown(value: object) -> str:
    """A value for an error's text, cut short."""
    text = json.dumps(value, default=str)
    return text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "..."
