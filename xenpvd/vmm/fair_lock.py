"""The machine's lock: a lock of Python's own goes to whoever is running, which is the thread that had it."""

from __future__ import annotations

import threading


class FairLock:
    """Re-entrant. Whoever waits has it before the thread that lets it go can take it again: the next one
    stands in a turnstile in front of it, and keeps all others out of that."""

    def __init__(self) -> None:
        self._turnstile = threading.Lock()
        self._held = threading.Lock()
        self._owner: int | None = None
        self._depth = 0

    def __enter__(self) -> None:
        me = threading.get_ident()
        if self._owner != me:  # nobody else writes our own number there
            with self._turnstile:
                self._held.acquire()
            self._owner = me
        self._depth += 1

    def __exit__(self, *fault: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
            self._held.release()

    def let_others(self) -> None:
        """The holder, who has taken it once, lets it go and takes it again."""
        self.__exit__()
        self.__enter__()
