"""Looking for a pattern in a recording that goes on."""

from __future__ import annotations

from xenpvd.backends.console.history import History
from xenpvd.patterns import Pattern
from xenpvd.views import ConsoleMatch

#: Bytes that a match can have
MATCH_MAX = 4096


async def find(history: History, pattern: Pattern, since: int) -> ConsoleMatch | None:
    """Wait for the first match at or after ``since``; None if the recording ends before.

    A match may have ``MATCH_MAX`` bytes, in any number of lines, and ends where the recording does for now: a
    pattern that could match more when more comes does not wait for it.
    """
    while True:
        start, data = history.read(since, history.limit)
        if (found := pattern.search(data)) is not None:
            begin, end = found.span()
            return ConsoleMatch(start + begin, start + end, found[0], found.groups())
        # looked at again with what comes: what may be the beginning of a match, from a line's start on
        again = max(0, len(data) - MATCH_MAX)
        since = start + (data.find(b"\n", again) + 1 or again if again else 0)
        if not await history.wait(start + len(data)):
            return None
