"""What a person sees while the lab works: one line per step, and one kind of failure."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class LabError(Exception):
    """Something a person can mend; the message says what failed, why and what to do."""


@contextmanager
def step(verb: str, what: str) -> Iterator[None]:
    """Print ``verb what … ok (3.1 s)`` around the work, ``failed`` if it raises."""
    start = time.monotonic()
    line = f"{verb:<6}{what} …"
    interactive = sys.stderr.isatty()
    if interactive:
        print(line, end=" ", file=sys.stderr, flush=True)
    outcome = "failed"
    try:
        yield
        outcome = "ok"
    finally:
        ending = f"{outcome} ({time.monotonic() - start:.1f} s)"
        print(ending if interactive else f"{line} {ending}", file=sys.stderr, flush=True)
