"""Bytes to JSON-RPC messages: where one ends, and whether it is JSON in the strict sense. Sans-IO.

A message is one JSON value on one line (NDJSON). It is complete at its closing bracket already, so that a
client which sends no newline (QMP's habit) is understood; and a newline ends it in any case, broken or not,
so that the next line always starts afresh.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from pydantic_core import from_json

MESSAGE_MAX = 1 << 20
DEPTH_MAX = 64

_BEGIN = re.compile(rb"[^ \t\r\n]")
_OUTSIDE = re.compile(rb'["{}\[\]\n]')
_INSIDE_STRING = re.compile(rb'["\\\n]')
_END_OF_LINE = re.compile(rb"\n")


class MessageTooLong(Exception):
    """More than ``MESSAGE_MAX`` bytes without an end: there is no place to start again from."""


class Framer:
    """Collects bytes and cuts them into messages. ``feed`` in, ``next`` until None; at EOF ``finish``."""

    def __init__(self, limit: int = MESSAGE_MAX) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._start = 0  # where the current message begins, while _open
        self._at = 0  # scanned up to here
        self._open = False
        self._depth = 0
        self._string = False  # inside a JSON string
        self._line = False  # no bracket at its beginning: only a newline ends it

    def feed(self, data: bytes) -> None:
        done = self._start if self._open else self._at
        del self._buffer[:done]
        self._start -= done
        self._at -= done
        self._buffer += data

    def next(self) -> bytes | None:
        """The next whole message, or None: feed more. Raises :class:`MessageTooLong`."""
        buffer = self._buffer
        if not self._open:
            begin = _BEGIN.search(buffer, self._at)
            if begin is None:
                self._at = len(buffer)
                return None
            self._start = self._at = begin.start()
            self._line = begin.group() not in b"{["
            self._open = True
        while True:
            pattern = _END_OF_LINE if self._line else _INSIDE_STRING if self._string else _OUTSIDE
            found = pattern.search(buffer, self._at)
            if found is None:
                self._at = len(buffer)
                break
            mark = found.group()
            self._at = found.end()
            if mark == b"\n":
                return self._take(found.start())
            if mark == b'"':
                self._string = not self._string
            elif mark == b"\\":
                if self._at == len(buffer):
                    self._at -= 1  # what it escapes is yet to come
                    break
                if buffer[self._at] != 0x0A:
                    self._at += 1
            elif mark in b"{[":
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth == 0:
                    return self._take(self._at)
        if len(buffer) - self._start > self._limit:
            raise MessageTooLong
        return None

    def _take(self, end: int) -> bytes:
        if end - self._start > self._limit:
            raise MessageTooLong
        message = bytes(self._buffer[self._start : end])
        self._open = self._string = False
        self._depth = 0
        return message

    def finish(self) -> bytes | None:
        """At the end of input: the message that was never finished, if any."""
        return self._take(len(self._buffer)) if self._open else None

    def rest(self) -> bytes:
        """What lies behind the last message, for a connection that stops being JSON."""
        return bytes(self._buffer[self._at :])


def parse(message: bytes) -> Any:
    """The value of ``message``: strict UTF-8 and RFC 8259, no NaN, no lone surrogate, no number out of
    range, no repeated key, at most ``DEPTH_MAX`` deep. Raises ValueError with the reason."""
    from_json(message, allow_inf_nan=False)
    # Two things pass from_json: a repeated key (the last would win in silence) and 1e400, read as infinity.
    value = _STRICT.decode(message.decode())
    if _deeper(value, DEPTH_MAX):
        raise ValueError(f"more than {DEPTH_MAX} levels deep")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("number out of range")
    return number


def _deeper(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        if not level:
            return False
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
    return any(isinstance(node, dict | list) for node in level)


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite)
