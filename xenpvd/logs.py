"""The daemon's own log: how a line looks on stderr, what is kept of it for who asks, and how much is written.

The guest's console and Xen's log are no part of it.
"""

from __future__ import annotations

import json
import logging
import os
import traceback
from collections import deque
from itertools import count
from typing import Any, Literal

from xenpvd.errors import BadConfig, NotFound
from xenpvd.views import LogRecord

Format = Literal["text", "json", "journal"]

#: Records that are kept, and characters of each
KEPT = 1000
TEXT_MAX = 4096

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
#: Not a level: as the logger above it has it
INHERIT = "inherit"

#: sd-daemon(3): what begins a line for the journal, by the least level
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


class Lines(logging.Formatter):
    """A message is one line, and steers no terminal: clients and guests have written some of it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _plain(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(_plain, super().formatException(ei).split("\n")))


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


class Journal(Lines):
    """For stderr that is the journal, which has the time itself: each line begins with its priority."""

    def __init__(self) -> None:
        super().__init__("%(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        priority = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines() or [""])


class Json(logging.Formatter):
    """An object a line."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(fields, ensure_ascii=False)


class Ring(logging.Handler):
    """Keeps the last records. Any thread."""

    def __init__(self, kept: int = KEPT) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s"))
        self._kept: deque[tuple[int, LogRecord]] = deque(maxlen=kept)
        self._seq = count(1)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)[:TEXT_MAX]
        except Exception:  # a call of ours that does not fit its own text
            self.handleError(record)
            return
        told = LogRecord(next(self._seq), record.created, record.levelname.lower(), record.name, text)
        self._kept.append((record.levelno, told))

    def tail(self, most: int, level: str, logger: str) -> list[LogRecord]:
        """The newest ``most`` of ``level`` and above, oldest first; of ``logger`` and those below it."""
        fits = [
            told
            for number, told in tuple(self._kept)
            if number >= LEVELS[level] and (not logger or f"{told.logger}.".startswith(f"{logger}."))
        ]
        return fits[-most:]


#: The one of this process, as logging itself is
RING = Ring()
tail = RING.tail


def configure(format: Format | Literal["auto"], level: str) -> Format:
    """Log to stderr, and into :data:`RING`; returns what ``auto`` came to."""
    if format == "auto":
        format = "journal" if is_journal(2) else "text"
    stderr = logging.StreamHandler()
    stderr.setFormatter(
        Journal() if format == "journal"
        else Json() if format == "json"
        else Lines("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )  # fmt: skip
    logging.basicConfig(level=LEVELS[level], handlers=[stderr, RING])
    return format


def is_journal(fd: int) -> bool:
    """Is the descriptor systemd's journal? systemd.exec(5): $JOURNAL_STREAM; a child has it even where its
    stderr goes elsewhere."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def set_level(logger: str, level: str) -> None:
    """How much ``logger`` and those below it write from now on; "" is all. Raises :class:`NotFound`, and
    :class:`BadConfig` if there is nobody to inherit from."""
    if not logger:
        if level == INHERIT:
            why = "the log as a whole has nothing to inherit its level from. Choose a level."
            raise BadConfig(f"cannot set the level: {why}", [("level", "a level")])
        logging.getLogger().setLevel(LEVELS[level])
        return
    if logger not in logging.root.manager.loggerDict:  # else asking for it would make it
        why = f"cannot set the level of {logger!r}: nothing logs by that name. See the names in log.tail."
        raise NotFound(why, "logger", logger)
    logging.getLogger(logger).setLevel(logging.NOTSET if level == INHERIT else LEVELS[level])
