"""The guest's consoles by name: "0" is its hvc0, "xen" the log of the Xen below it, others are its
channels (``channels.py``). With them their log files and what is watched for; all outlive a VM."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from xenpvd.backends.console.backend import Console
from xenpvd.backends.console.logfile import LogFile, LogTerms
from xenpvd.backends.console.search import Searcher
from xenpvd.backends.console.viewer import Viewer
from xenpvd.config import ConsoleConfig
from xenpvd.errors import (
    BadConfig,
    Busy,
    Exists,
    LimitReached,
    NotFound,
    PermissionRefused,
    TimedOut,
)
from xenpvd.events import Publish
from xenpvd.figures import ConsoleStats
from xenpvd.patterns import compile
from xenpvd.tasks import Tasks
from xenpvd.views import ConsoleChunk, ConsoleInfo, ConsoleMatch, ConsoleViewerInfo

MAIN, XEN = "0", "xen"

#: Bytes of Xen's log that are kept
XEN_LOG = 1 << 18
#: Those who wait for a pattern on one console, and how many of them may be of those who only look on
WAITS_MAX, WAITS_VIEWERS = 64, 48
#: Seconds between two events of one pattern that is watched for
MATCH_PAUSE = 1.0


class Consoles:
    """Loop thread only.

    Event ``console.match`` {console, pattern, start, end, text, skipped}: something came that the definition
    watches for; ``skipped`` came since the one before and were told by no event.
    """

    def __init__(self, publish: Publish, main: Console | None = None) -> None:
        self._publish = publish
        self.main = main or Console(publish, 1 << 20, MAIN, number=0)
        self.xen = Console(publish, XEN_LOG, XEN, input="none")
        self._all = {MAIN: self.main, XEN: self.xen}
        self._logs: dict[str, LogFile] = {}
        self._config = ConsoleConfig.model_validate({})
        self._waits: Counter[str] = Counter()
        self._searcher = Searcher()
        self._watching = Tasks()
        self._watched: tuple[str, ...] = ()

    def get(self, name: str) -> Console:
        """Raises :class:`NotFound`."""
        if name not in self._all:
            why = f"there is no console {name!r}. Choose from {', '.join(self._all)}."
            raise NotFound(why, "console", name)
        return self._all[name]

    async def configure(self, config: ConsoleConfig) -> None:
        """As a definition has it, from now on. Raises :class:`HostError` for a log that cannot be written."""
        self._config = config
        self.main.history.limit = config.history
        self.main.input = config.input
        for name, path in ((MAIN, config.log), (XEN, config.xen_log)):
            await self._log(name, path)
        if config.match != self._watched:
            await self._watching.cancel()
            for pattern in config.match:
                self._watching.spawn(self._watch(pattern), f"console pattern {pattern}")
            self._watched = config.match

    async def open_log(
        self, console: Console, path: str | None, before: LogFile | None = None
    ) -> LogFile | None:
        """For one that is to be :meth:`put`; in place of ``before``. Raises :class:`HostError` if it cannot
        be written."""
        if (terms := self._terms(path)) is None:
            return None
        logfile = LogFile(console.history, console.name, terms, self._publish, time.time)
        await logfile.open(before)
        return logfile

    def put(self, console: Console, logfile: LogFile | None = None) -> None:
        """One more. Raises :class:`Exists`."""
        if console.name in self._all:
            raise Exists(f"there is a console {console.name} already.", kind="console", name=console.name)
        self._all[console.name] = console
        if logfile is not None:
            self._logs[console.name] = logfile

    async def drop(self, name: str) -> None:
        """It is no more: whoever looks at it is told."""
        console = self._all.pop(name)
        for viewer in console.viewers:
            console.detach(viewer, "the console was removed")
        console.close()
        if (logfile := self._logs.pop(name, None)) is not None:
            await logfile.close()

    async def _log(self, name: str, path: str | None) -> None:
        before = self._logs.get(name)
        if before is not None and before.terms == self._terms(path):
            return
        logfile = await self.open_log(self._all[name], path, before)
        if logfile is not None:
            self._logs[name] = logfile
        elif before is not None:
            await self._logs.pop(name).close()

    def _terms(self, path: str | None) -> LogTerms | None:
        if path is None:
            return None
        config = self._config
        return LogTerms(Path(path), config.log_max, config.log_keep, config.log_timestamps, config.log_safe)

    def reopen_logs(self) -> None:
        """They were renamed, as logrotate does."""
        for logfile in self._logs.values():
            logfile.reopen()

    def listing(self) -> list[ConsoleInfo]:
        return [self.info(name) for name in self._all]

    def info(self, name: str) -> ConsoleInfo:
        """Raises :class:`NotFound`."""
        info, logfile = self.get(name).info(), self._logs.get(name)
        return replace(info, log=None if logfile is None else str(logfile.terms.path))

    def stats(self) -> tuple[ConsoleStats, ...]:
        return tuple(
            ConsoleStats(
                name,
                console.history.end,
                console.taken,
                len(console.viewers),
                logfile.lost if (logfile := self._logs.get(name)) else 0,
            )
            for name, console in self._all.items()
        )

    def read(self, name: str, since: int, ago: float | None, limit: int) -> ConsoleChunk:
        """``limit`` bytes at most, from offset ``since`` on (below 0: from the end), or of the last ``ago``
        seconds. Raises :class:`NotFound`."""
        history = self.get(name).history
        if ago is not None:
            since = history.at(time.time() - ago)
        wanted = max(0, history.end + since) if since < 0 else since
        start, data = history.read(wanted, limit)
        return ConsoleChunk(start, start + len(data), max(0, start - wanted), data)

    async def write(self, name: str, data: bytes, timeout: float) -> int:
        """Type; the number of bytes. Raises :class:`Busy` while a viewer has the only keyboard, and what
        :meth:`Console.type` does."""
        console = self.get(name)

        def check() -> None:
            if console.input == "single" and (writer := console.writer) is not None:
                why = f"cannot type: {writer} has the keyboard. Ask it to detach, or end it (console.kick)."
                raise Busy(why, by=writer)

        check()
        await console.type(data, timeout, check)
        return len(data)

    def attach(
        self,
        name: str,
        mode: str,
        since: int | None,
        ago: float | None,
        who: str,
        on_mode: Callable[[str], None] = lambda mode: None,
        may_type: bool = True,
    ) -> Viewer:
        """See :meth:`Console.attach`; ``ago`` comes before ``since``. Raises :class:`NotFound` as well."""
        console = self.get(name)
        if ago is not None:
            since = console.history.at(time.time() - ago)
        return console.attach(mode, since, who, on_mode, may_type)

    async def clear(self, name: str) -> None:
        """Forget what is kept; offsets go on. A log file gets it first, if it can be written. Raises
        :class:`NotFound`."""
        history = self.get(name).history
        end = history.end  # what comes meanwhile is none of it, and may not be in the log yet
        if (logfile := self._logs.get(name)) is not None:
            await logfile.settle()
        history.clear(end)

    def viewers(self) -> list[ConsoleViewerInfo]:
        return [viewer.info() for console in self._all.values() for viewer in console.viewers]

    def kick(self, number: int, by: str) -> None:
        """End a viewer. Raises :class:`NotFound`."""
        console, viewer = self._viewer(number)
        console.kick(viewer, f"ended by {by}")

    def steal(self, number: int) -> None:
        """Give a viewer the keyboard, and take it from who has it. Raises :class:`NotFound`,
        :class:`Unsupported`, :class:`PermissionRefused`."""
        _, viewer = self._viewer(number)
        if not viewer.may_type:
            why = f"cannot give viewer {number} the keyboard: it may only look on, or has ended its typing."
            raise PermissionRefused(why, need="operator", role="viewer")
        viewer.steal()

    def _viewer(self, number: int) -> tuple[Console, Viewer]:
        for console in self._all.values():
            for viewer in console.viewers:
                if viewer.number == number:
                    return console, viewer
        raise NotFound(f"there is no viewer {number}. See console.viewers.", "viewer", str(number))

    async def wait(
        self, name: str, regex: str, since: int, timeout: float, privileged: bool = False
    ) -> ConsoleMatch:
        """For a pattern at or after offset ``since``. Not all places are for those who are not
        ``privileged``.

        Raises :class:`BadConfig` for one that is none, :class:`TimedOut`, :class:`LimitReached`, and
        :class:`NotFound` when the recording ends without it.
        """
        console = self.get(name)
        try:
            pattern = compile(regex)
        except ValueError as fault:
            what = f"cannot wait for {regex!r}: {fault}. It is RE2's syntax, which has no look-around."
            raise BadConfig(what, [("regex", str(fault))]) from None
        most = WAITS_MAX if privileged else WAITS_VIEWERS
        if self._waits[name] >= most:
            why = f"cannot wait for {regex!r}: {most} wait on console {name}. Let one end."
            raise LimitReached(why, limit=most)
        self._waits[name] += 1
        try:
            async with asyncio.timeout(timeout):
                found = await self._searcher.find(console.history, pattern, since)
        except TimeoutError:
            why = (
                f"{regex!r} has not come on console {name} within {timeout:g} s. See what did: xenpvctl log."
            )
            raise TimedOut(why) from None
        finally:
            self._waits[name] -= 1
        if found is None:
            why = "the console was removed, or the daemon ends"
            raise NotFound(f"{regex!r} will not come on console {name}: {why}.", "pattern", regex)
        return found

    async def _watch(self, regex: str) -> None:
        history, pattern, clock = self.main.history, compile(regex), asyncio.get_running_loop().time
        since, again, skipped = history.end, clock(), 0
        last: ConsoleMatch | None = None  # that no event told yet
        try:
            while True:
                try:
                    async with asyncio.timeout_at(again if last is not None else None):
                        found = await self._searcher.find(history, pattern, since)
                except TimeoutError:
                    skipped -= 1
                else:
                    if found is None:
                        return
                    since, last = max(found.end, found.start + 1), found
                    if clock() < again:
                        skipped += 1
                        await asyncio.sleep(0)  # there may be very many
                        continue
                assert last is not None
                self._publish("console.match", skipped=skipped, **_event(last, regex))
                again, skipped, last = clock() + MATCH_PAUSE, 0, None
        finally:
            if last is not None:  # the pause is longer than the daemon lives, or the pattern is watched for
                self._publish("console.match", skipped=skipped - 1, **_event(last, regex))

    async def close(self) -> None:
        """The daemon ends: every viewer is told, and the logs are written to their ends."""
        for console in self._all.values():
            console.close()
        for logfile in self._logs.values():
            await logfile.close()
        self._logs.clear()
        await self._watching.cancel()


def _event(found: ConsoleMatch, regex: str) -> dict[str, Any]:
    return {
        "console": MAIN,
        "pattern": regex,
        "start": found.start,
        "end": found.end,
        "text": found.text.decode("utf-8", "replace"),
    }
