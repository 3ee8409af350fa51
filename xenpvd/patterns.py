"""Regular expressions of users: RE2's, whose time grows with their size and with what they look at, never
faster than that."""

from __future__ import annotations

from typing import Any

import re2

#: A compiled one, for bytes, and what it finds; re2 has no types.
Pattern = Any
Match = Any

_OPTIONS = re2.Options()
_OPTIONS.log_errors = False
_OPTIONS.max_mem = 1 << 20


def compile(pattern: str) -> Pattern:
    """``^`` and ``$`` are those of lines. Raises ValueError, which says why."""
    try:
        return re2.compile(b"(?m)" + pattern.encode(), _OPTIONS)
    except re2.error as fault:
        why = fault.args[0]
        text = why.decode("utf-8", "replace") if isinstance(why, bytes) else str(why)
        raise ValueError(text.replace("(?m)", "", 1)) from None
