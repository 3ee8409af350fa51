"""Text as mdoc(7), the language of the manual's pages."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator

#: What roff would take for something else, or a typesetter make prettier than a shell likes
_ESCAPES = {"\\": "\\e", "^": "\\(ha", "~": "\\(ti", "`": "\\(ga"}


def escape(text: str) -> str:
    text = "".join(_ESCAPES.get(character, character) for character in text)
    return re.sub(r"(?<![\w-])--?(?=\w)", lambda dashes: "\\-" * len(dashes[0]), text)


def words(text: str) -> str:
    """Arguments of a macro, none of which is a macro itself."""
    return " ".join(
        "\\&" + escape(word) if re.fullmatch(r"[A-Z%][a-z0-9]{1,2}|[.,:;?!()\[\]]", word) else escape(word)
        for word in text.split()
    )


def prose(text: str) -> Iterator[str]:
    """Lines of text: a sentence begins its own, as mdoc's authors do; an empty line begins a paragraph."""
    text = re.sub(r"``(.+?)``", "\x01\\1\x02", text)  # code, in a docstring
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip())):
        if number:
            yield ".Pp"
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z(])", " ".join(paragraph.split())):
            for line in textwrap.wrap(sentence, 78, break_long_words=False, break_on_hyphens=False):
                line = escape(line).replace("\x01", "\\(lq").replace("\x02", "\\(rq")
                yield "\\&" + line if line[:1] in (".", "'") else line


def items(entries: Iterable[tuple[str, Iterable[str]]], *, compact: bool = False) -> Iterator[str]:
    """A list of (head, lines); the head is a macro with its arguments. Nothing, if it is empty."""
    begun = False
    for head, body in entries:
        if not begun:
            yield ".Bl -tag -width 4n" + (" -compact" if compact else "")
            begun = True
        yield f".It {head}"
        yield from body
    if begun:
        yield ".El"
