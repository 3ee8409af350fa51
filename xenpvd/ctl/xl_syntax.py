"""Reads the text of an xl.cfg: ``key = value`` pairs of strings, numbers and lists (Xen: docs/man/xl.cfg.5).

It looks like Python and is none; nothing is evaluated. Atoms stay texts: what one means is its key's affair.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

#: vnuma has lists of lists; no key has more
DEPTH_MAX = 8

Value = str | list["Value"]


class XlFault(Exception):
    """What of an xl.cfg cannot be used: ``line 3: why``."""

    def __init__(self, why: str, line: int | None = None) -> None:
        super().__init__(f"line {line}: {why}" if line else why)


class Setting(NamedTuple):
    value: Value
    line: int


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


_TOKEN = re.compile(
    r"""(?P<blank>[ \t\r\f]+|\#[^\n]*)
    |(?P<newline>\n)
    |(?P<key>[A-Za-z_][A-Za-z0-9_.]*)
    |(?P<number>-?[0-9][0-9A-Za-z]*)
    |(?P<string>'(?:[^'\\\n]|\\[^\n])*'|"(?:[^"\\\n]|\\[^\n])*")
    |(?P<mark>\+=|[=,;\[\]])""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:x(?P<hex>[0-9A-Fa-f]{2})|(?P<octal>[0-7]{1,3})|(?P<one>.))", re.DOTALL)
_LETTERS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_LETTERS |= {quoted: quoted for quoted in "'\"\\"}


def parse(text: str) -> dict[str, Setting]:
    """Every key's last value, as xl counts it. Raises :class:`XlFault`."""
    return _Parser(text).settings()


def _tokens(text: str) -> Iterator[_Token]:
    at, line = 0, 1
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise _unreadable(text[at:], line)
        kind = found.lastgroup or ""
        if kind != "blank":
            yield _Token(kind, found[0], line)
        line += kind == "newline"
        at = found.end()
    yield _Token("newline", "", line)
    yield _Token("end", "", line)


def _unreadable(rest: str, line: int) -> XlFault:
    words = rest.split("\n", 1)[0].strip()
    if rest[0] in "'\"":
        return XlFault("a string does not end on its line.", line)
    return XlFault(
        f"cannot read {words[:40]!r}: there can be strings, numbers and lists of them, but no Python. "
        "Write the values out.",
        line,
    )


class _Parser:
    def __init__(self, text: str) -> None:
        self._stream = _tokens(text)
        self._next = next(self._stream)

    def settings(self) -> dict[str, Setting]:
        found: dict[str, Setting] = {}
        while self._next.kind != "end":
            if self._next.kind == "newline" or self._next.text == ";":
                self._take()
                continue
            key = self._expect("key", "a key is wanted here, as in: memory = 512")
            if self._next.text not in ("=", "+="):
                raise XlFault(f"after {key.text} an = is wanted.", self._next.line)
            adds = self._take().text == "+="
            value = self._value(0)
            if self._next.kind != "newline" and self._next.text != ";":
                raise _unreadable(self._next.text, self._next.line)
            if adds and key.text in found:
                value = _sum(found[key.text].value, value, key)
            found[key.text] = Setting(value, key.line)
        return found

    def _value(self, depth: int) -> Value:
        if self._next.text != "[":
            return self._atom()
        if depth == DEPTH_MAX:
            raise XlFault("there are too many lists in lists.", self._next.line)
        opened = self._take()
        values: list[Value] = []
        while True:
            self._skip_newlines()
            if self._next.text == "]":
                self._take()
                return values
            if self._next.kind == "end":
                raise XlFault("this list has no end. A ] is missing.", opened.line)
            values.append(self._value(depth + 1))
            self._skip_newlines()
            if self._next.text == ",":
                self._take()
            elif self._next.text != "]" and self._next.kind != "end":
                raise XlFault("in a list a comma is missing.", self._next.line)

    def _atom(self) -> str:
        if self._next.kind == "number":
            return self._take().text
        return _unquote(self._expect("string", "a string, a number or a list is wanted here"))

    def _expect(self, kind: str, wish: str) -> _Token:
        if self._next.kind != kind:
            there = f", not {self._next.text!r}" if self._next.text.strip() else ""
            raise XlFault(f"{wish}{there}.", self._next.line)
        return self._take()

    def _skip_newlines(self) -> None:
        while self._next.kind == "newline":
            self._take()

    def _take(self) -> _Token:
        taken = self._next
        if taken.kind != "end":
            self._next = next(self._stream)
        return taken


def _unquote(token: _Token) -> str:
    def one(found: re.Match[str]) -> str:
        if found["one"] is not None:
            if found["one"] not in _LETTERS:
                raise XlFault(f"there is no such escape as \\{found['one']} in a string.", token.line)
            return _LETTERS[found["one"]]
        number = int(found["hex"], 16) if found["hex"] else int(found["octal"], 8)
        if not 0 < number < 0x80:  # bytes, of which we do not know what they mean
            raise XlFault(f"{found[0]} is no character of ASCII. Write the character itself.", token.line)
        return chr(number)

    text = _ESCAPE.sub(one, token.text[1:-1])
    if any("\ud800" <= character <= "\udfff" for character in text) or "\0" in text:
        raise XlFault("a string is no UTF-8. Save the file as UTF-8.", token.line)
    return text


def _sum(before: Value, more: Value, key: _Token) -> Value:
    if isinstance(before, str) and isinstance(more, str):
        return before + more
    if isinstance(before, list) and isinstance(more, list):
        return before + more
    raise XlFault(f"{key.text} cannot be both a list and a string.", key.line)
