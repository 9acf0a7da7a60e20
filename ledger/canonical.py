"""One JSON text for one value: sorted keys, no blanks, no floats by convention. Pure."""

from __future__ import annotations

import json
from typing import Any

_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def canonical(value: Any) -> str:
    """The text that is stored and digested. Equal values have equal texts."""
    return _encode(value)


def composed(**texts: str) -> str:
    """The canonical text of an object, from the canonical texts of its members."""
    return "{" + ",".join(f'"{name}":{texts[name]}' for name in sorted(texts)) + "}"
