"""Looking for patterns in recordings that go on, without holding up the loop that records them."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor

from xenpvd.backends.console.history import History
from xenpvd.patterns import Match, Pattern
from xenpvd.views import ConsoleMatch

#: Bytes that a match can have and still be found whole, wherever it lies
MATCH_MAX = 4096
#: Bytes in which a match may begin that are looked at in one go
STEP = 1 << 14
#: Bytes times instructions of patterns that one turn of the loop looks at: 5 ms at the very worst, as RE2
#: never takes more than 10 ns for one on one
TURN = 1 << 19

#: For what is more; RE2 leaves the GIL to others. One: who asks for much waits for their own kind only.
_thread = ThreadPoolExecutor(1, "console search")


class Searcher:
    """For all who wait at one guest's consoles. Loop thread only."""

    def __init__(self) -> None:
        self._spent = 0  # in this turn of the loop

    async def find(self, history: History, pattern: Pattern, since: int) -> ConsoleMatch | None:
        """Wait for the first match that begins at or after ``since``; None if the recording ends before.

        A match may have ``MATCH_MAX`` bytes, in any number of lines, and ends where the recording does for
        now: a pattern that could match more when more comes does not wait for it.
        """
        while await history.wait(since - 1):
            # with the bytes on both sides of the piece, by which ^, $ and \b know where they are
            start, data = history.read(since - 1, 1 + STEP + MATCH_MAX + 1)
            begin = max(since - start, 0)
            last = start + len(data) >= history.end
            found = await self._search(pattern, data, begin, len(data) if last else len(data) - 1)
            if found is not None and (last or found.start() < begin + STEP):
                return ConsoleMatch(start + found.start(), start + found.end(), found[0], found.groups())
            if not last:
                since = start + begin + STEP
                continue
            # what may be the beginning of a match is looked at again with what comes
            since = max(start + begin, start + len(data) - MATCH_MAX)
            if not await history.wait(start + len(data)):
                break
        return None

    async def _search(self, pattern: Pattern, data: bytes, begin: int, end: int) -> Match | None:
        loop, cost = asyncio.get_running_loop(), (end - begin) * pattern.programsize
        if self._spent + cost > TURN:
            with contextlib.suppress(RuntimeError):  # the host gives no thread: then here, after all
                return await loop.run_in_executor(_thread, pattern.search, data, begin, end)
        if not self._spent:
            loop.call_soon(self._next_turn)
        self._spent += cost
        return pattern.search(data, begin, end)

    def _next_turn(self) -> None:
        self._spent = 0
